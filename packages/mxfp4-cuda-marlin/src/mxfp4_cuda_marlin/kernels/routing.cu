// What surrounds the GEMMs of a MoE layer: which slot goes where, activations in the order in which the GEMM copies them, and the last sum.
constexpr int MAX_EXPERTS = 1024;

#ifdef CLUSTER
// One cluster of CLUSTER blocks of MAX_EXPERTS threads. Slots (token * top_k + j) are grouped by expert into tiles of nt rows; the rest of a
// tile is -1. Their order inside an expert may differ from run to run, which no result depends on.
// ids that are no expert, before or after the map, become empty slots: local[slot] = -1. row_weights, if it is wanted, is weights by row.
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(MAX_EXPERTS) route(
    const int* __restrict__ ids, const int* __restrict__ expert_map, const float* __restrict__ weights, int* local, int* rows,
    float* row_weights, int* tile_expert, int* num_tiles, int slots, int experts, int total, int nt) {
  __shared__ int count[MAX_EXPERTS], first[MAX_EXPERTS], next[MAX_EXPERTS], warps[32];
  const int t = threadIdx.x, rank = blockIdx.x;
  count[t] = 0;
  __syncthreads();
  wait_for_previous();
  allow_next();
  for (int i = rank * MAX_EXPERTS + t; i < slots; i += CLUSTER * MAX_EXPERTS) {
    int e = ids[i];
    if (expert_map) e = e >= 0 && e < total ? expert_map[e] : -1;
    if (e < 0 || e >= experts) e = -1;
    local[i] = e;
    if (e >= 0) atomicAdd(&count[e], 1);
  }
  cluster_sync();
  int all = 0, before = 0;   // slots of expert t, in all blocks and in those before this one
#pragma unroll
  for (int r = 0; r < CLUSTER; ++r) {
    int c;
    asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(c) : "r"(in_block(shared_address(&count[t]), r)) : "memory");
    if (r < rank) before += c;
    all += c;
  }
  const int tiles = t < experts ? (all + nt - 1) / nt : 0;
  int sum = tiles;   // inclusive prefix sum over the experts
  for (int d = 1; d < 32; d <<= 1) { const int v = __shfl_up_sync(~0u, sum, d); if ((t & 31) >= d) sum += v; }
  if ((t & 31) == 31) warps[t >> 5] = sum;
  __syncthreads();
  if (t < 32) {
    int v = warps[t];
    for (int d = 1; d < 32; d <<= 1) { const int u = __shfl_up_sync(~0u, v, d); if (t >= d) v += u; }
    warps[t] = v;
  }
  __syncthreads();
  const int start = sum - tiles + (t >= 32 ? warps[(t >> 5) - 1] : 0);
  first[t] = start;
  next[t] = before;
  if (rank == 0) {
    if (t == MAX_EXPERTS - 1) *num_tiles = start + tiles;
    for (int j = 0; j < tiles; ++j) tile_expert[start + j] = t;
  }
  if (rank == CLUSTER - 1) for (int j = all; j < tiles * nt; ++j) rows[start * nt + j] = -1;
  cluster_sync();   // no block may end while another reads its counts
  for (int i = rank * MAX_EXPERTS + t; i < slots; i += CLUSTER * MAX_EXPERTS) {
    const int e = local[i];
    if (e < 0) continue;
    const int row = first[e] * nt + atomicAdd(&next[e], 1);
    rows[row] = i;
    if (row_weights) row_weights[row] = weights[i];
  }
}
#endif

// The rows of x of each tile as the GEMM reads them (see gemm.cu); rows that are not there are zero. A block has eight rows, a warp every
// eighth 64 columns of them, so that a warp writes whole KiB.
extern "C" __global__ void __launch_bounds__(256) gather(
    const Four* __restrict__ x, Four* __restrict__ out, const int* rows, const int* num_tiles, int k, int nt, int top_k) {
  wait_for_previous();
  allow_next();
  const int row = blockIdx.x * 8, tile = row / nt, lane = threadIdx.x & 31, chunk = lane & 7, columns = k / 64;
  if (tile >= *num_tiles) return;
  const Four* from[2];
  Four* to[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = row + 4 * h + (lane >> 3), slot = rows[r];
    from[h] = slot < 0 ? nullptr : x + (long long)(slot / top_k) * columns * 8 + chunk;
    to[h] = out + ((long long)tile * columns * nt + r % nt) * 8 + (chunk ^ (r & 7));
  }
#pragma unroll 4
  for (int c = threadIdx.x >> 5; c < columns; c += 8) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Four v = {0, 0, 0, 0};
      if (from[h]) v = from[h][c * 8];
      to[h][(long long)c * nt * 8] = v;
    }
  }
}

// out[token] = sum of y[token * top_k + j] over the slots that are not empty, in the order of the slots; eight columns a thread.
extern "C" __global__ void __launch_bounds__(256) combine(const Four* y, const int* local, Four* out, int m, int chunks, int top_k) {
  wait_for_previous();
  allow_next();
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (long long)m * chunks) return;
  const long long token = i / chunks, column = i % chunks;
  float s[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
#pragma unroll 4
  for (int j = 0; j < top_k; ++j) {
    const long long slot = token * top_k + j;
    if (local[slot] < 0) continue;
    const Four v = y[slot * chunks + column];
    const u32 w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int h = 0; h < 4; ++h) { s[2 * h] += __uint_as_float(w[h] << 16); s[2 * h + 1] += __uint_as_float(w[h] & 0xffff0000u); }
  }
  out[i] = Four{pack2(s[0], s[1]), pack2(s[2], s[3]), pack2(s[4], s[5]), pack2(s[6], s[7])};
}
