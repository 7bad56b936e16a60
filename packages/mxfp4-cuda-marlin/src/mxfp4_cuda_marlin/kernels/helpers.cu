// What surrounds the GEMM: routing tables, the sum over the chosen experts, the sum over splits of k.
typedef unsigned int u32; typedef unsigned short u16;
constexpr int MAX_EXPERTS = 1024;

__device__ __forceinline__ u32 pack2(float lo, float hi) {
  u32 d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}
__device__ __forceinline__ float bf(u16 v) { return __uint_as_float((u32)v << 16); }

// One block of MAX_EXPERTS threads. Slots (token * top_k + j) are grouped by expert into tiles of nt rows; the rest of a
// tile is -1. Their order inside an expert may differ from run to run, which no result depends on.
// ids that are no expert, before or after the map, become empty slots: local[slot] = -1.
extern "C" __global__ void __launch_bounds__(MAX_EXPERTS) route(
    const int* __restrict__ ids, const int* __restrict__ expert_map, int* __restrict__ local, int* __restrict__ rows,
    int* __restrict__ tile_expert, int* __restrict__ tile_start, int* __restrict__ num_tiles,
    int slots, int experts, int total, int nt) {
  __shared__ int count[MAX_EXPERTS], first[MAX_EXPERTS], next[MAX_EXPERTS], sums[32];
  const int t = threadIdx.x;
  count[t] = 0; next[t] = 0;
  __syncthreads();
  for (int i = t; i < slots; i += MAX_EXPERTS) {
    int e = ids[i];
    if (expert_map) e = e >= 0 && e < total ? expert_map[e] : -1;
    if (e < 0 || e >= experts) e = -1;
    local[i] = e;
    if (e >= 0) atomicAdd(&count[e], 1);
  }
  __syncthreads();
  const int tiles = t < experts ? (count[t] + nt - 1) / nt : 0;
  int sum = tiles;  // inclusive prefix sum over the experts
  for (int d = 1; d < 32; d <<= 1) { int v = __shfl_up_sync(~0u, sum, d); if ((t & 31) >= d) sum += v; }
  if ((t & 31) == 31) sums[t >> 5] = sum;
  __syncthreads();
  if (t < 32) {
    int v = sums[t];
    for (int d = 1; d < 32; d <<= 1) { int u = __shfl_up_sync(~0u, v, d); if (t >= d) v += u; }
    sums[t] = v;
  }
  __syncthreads();
  const int start = sum - tiles + (t >= 32 ? sums[(t >> 5) - 1] : 0);
  first[t] = start;
  if (t == MAX_EXPERTS - 1) *num_tiles = start + tiles;
  for (int j = 0; j < tiles; ++j) { tile_expert[start + j] = t; tile_start[start + j] = (start + j) * nt; }
  for (int j = count[t]; j < tiles * nt; ++j) rows[start * nt + j] = -1;
  __syncthreads();
  for (int i = t; i < slots; i += MAX_EXPERTS) {
    const int e = local[i];
    if (e >= 0) rows[first[e] * nt + atomicAdd(&next[e], 1)] = i;
  }
}

// out[token] = sum of y[token * top_k + j] over the slots that are not empty, in the order of the slots; two columns a thread.
extern "C" __global__ void combine(const u32* __restrict__ y, const int* __restrict__ local, u32* __restrict__ out,
                                   int m, int half, int top_k) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (long long)m * half) return;
  const long long token = i / half, column = i % half;
  float a = 0.f, b = 0.f;
  for (int j = 0; j < top_k; ++j) {
    const long long slot = token * top_k + j;
    if (local[slot] < 0) continue;
    const u32 v = y[slot * half + column];
    a += __uint_as_float(v << 16); b += __uint_as_float(v & 0xffff0000u);
  }
  out[i] = pack2(a, b);
}

// out = bias + sum of the splits of k, in their order; partial is [splits, rows, n] with rows >= m, two columns a thread.
extern "C" __global__ void reduce_splits(const float* __restrict__ partial, u32* __restrict__ out,
                                         const u16* __restrict__ bias, int m, int n, int rows, int splits) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (long long)m * (n / 2)) return;
  const long long token = i / (n / 2), column = i % (n / 2) * 2;
  float a = 0.f, b = 0.f;
  for (int s = 0; s < splits; ++s) {
    const float* p = partial + ((long long)s * rows + token) * n + column;
    a += p[0]; b += p[1];
  }
  if (bias) { a += bf(bias[column]); b += bf(bias[column + 1]); }
  out[i] = pack2(a, b);
}
