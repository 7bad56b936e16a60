// Few tokens: out = x * W^T where reading W is what takes time. W in the layout of layout.py.
//
// Weights are the A operand of mma.sync, widened in registers straight from global memory; tokens are the B operand,
// copied by each warp into its own ring. Warps divide k, and nothing joins those of a block before the end, when their parts
// of the sum are added in a fixed order. Defined on the command line:
//   NT tokens in a tile; ONE 1 if a tile is one token (then NT is 8, and all eight columns hold it);
//   G groups of 16 rows of a block; WARPS that divide k; DEPTH tiles of each in flight; OCC blocks per multiprocessor;
//   MODE 0 linear, 1 gate-up with the gated activation, 2 down for slots, with the weights of the router,
//   3 down for all slots of a token, summed in their order;
//   SPLIT blocks of a cluster that divide the slots of a token, mode 3 only;
//   SMALL 1 if every scale byte is at most 128, else weights are multiplied twice.
// The kernels of a layer overlap (see ptx.cuh): weights, which no kernel writes, are asked for before the wait.
DEV void copy16(u32 to, const void* from) { asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory"); }
DEV void load16(u32 (&words)[4], const u8* from) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "l"(from));
}
DEV void load4(u32& words, const u8* from) { asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(words) : "l"(from)); }

constexpr u32 TILE_BYTES = ONE ? 128 : NT * 128;                                  // tokens of a tile of 64 columns
constexpr int RING = DEPTH < 2 ? 2 : DEPTH;                                       // such tiles in the ring of a warp
constexpr int COPIES = ONE ? 1 : NT / 4;                                          // 16-byte copies of a thread for one of them
constexpr u32 PART = G * (ONE ? 64 : NT * 64);                                    // what a warp adds to the sum, float32
constexpr u32 WARP_BYTES = RING * TILE_BYTES > PART ? RING * TILE_BYTES : PART;   // shared memory of a warp
constexpr int SLOTS = 32;                                                         // of one token, MODE 3

#if SPLIT > 1
#define CLUSTER_OF_SPLITS __cluster_dims__(SPLIT, 1, 1)
#else
#define CLUSTER_OF_SPLITS
#endif
extern "C" __global__ void CLUSTER_OF_SPLITS __launch_bounds__(32 * WARPS, OCC) decode(
    const u8* __restrict__ codes, const u8* __restrict__ scales, const u16* __restrict__ x, u16* __restrict__ out,
    const u16* __restrict__ bias, const int* __restrict__ ids, const int* __restrict__ expert_map,
    const int* tile_expert, const int* rows, const int* num_tiles, const float* __restrict__ weights,
    int m, int n, int k, int top_k, int experts, int total, float alpha, float limit, float up_offset) {
  extern __shared__ __align__(1024) u8 memory[];
  __shared__ int row_of[MODE == 3 ? SLOTS : NT];
  __shared__ int expert_of[MODE == 3 ? SLOTS : 1];
  __shared__ float weight_of[MODE == 3 ? SLOTS : 1];
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int block = blockIdx.x / SPLIT, rank = blockIdx.x % SPLIT;
  const int columns = k / 64, strips = n / 64, blocks = strips * 4 / G, tile = block / blocks;
  const int group = block % blocks * G;                            // first group of 16 rows
  if (SPLIT > 1) cluster_arrive();
  int expert = 0, count = 1;
  auto expert_at = [&](int slot) {
    int e = ids[slot];
    if (expert_map) e = e >= 0 && e < total ? expert_map[e] : -1;
    return e < 0 || e >= experts ? -1 : e;
  };
  if (MODE == 0) {
    if (tid < NT) { int r = tile * NT + tid; row_of[tid] = r < m ? r : -1; }
  } else if (MODE == 1 && ONE) {
    allow_next();
    expert = expert_at(tile);
    if (expert < 0) return;
  } else if (MODE == 3) {
    int e = -1;
    if (tid < top_k) e = expert_at(tile * top_k + tid);
    const u32 mask = __ballot_sync(~0u, e >= 0);
    if (e >= 0) {
      const int at = __popc(mask & ((1u << lane) - 1));
      row_of[at] = tile * top_k + tid;
      expert_of[at] = e;
      weight_of[at] = weights[tile * top_k + tid];
    }
    count = __syncthreads_count(e >= 0);
  } else {
    if (MODE == 1) { wait_for_previous(); allow_next(); }
    if (tile >= *num_tiles) { if (MODE == 2) wait_for_previous(); return; }   // without slots no other block would wait
    expert = tile_expert[tile];
    if (tid < NT) row_of[tid] = rows[tile * NT + tid];
  }
  if (!ONE) __syncthreads();

  const int first = count * columns * rank / SPLIT, units = count * columns * (rank + 1) / SPLIT - first;
  const int mine = units > warp ? (units - warp + WARPS - 1) / WARPS : 0;
  u32 words[DEPTH][G][4], scale_words[DEPTH];
  float factor[DEPTH];
  const u8 *codes_at, *scales_at;
  int column = first + warp, slot = 0;
  const int scale_at = (group & 3) * 32 + (G == 4 ? lane : G == 2 ? lane & 15 : lane >> 2) * 4;
  auto seek = [&]() {
    const long long at = ((long long)expert * strips + (group >> 2)) * columns + column;
    codes_at = codes + at * 2048 + (group & 3) * 512 + lane * 16;
    scales_at = scales + at * 128 + scale_at;
  };
  auto enter = [&]() {   // MODE 3: k columns of one slot after those of another
    while (column >= columns) { column -= columns; ++slot; }
    if (slot < count) {
      expert = expert_of[slot];
      seek();
    }
  };
  if (MODE == 3) enter(); else seek();
  auto fetch_weights = [&](int s) {
    if (MODE == 3) factor[s] = weight_of[slot];
#pragma unroll
    for (int g = 0; g < G; ++g) load16(words[s][g], codes_at + g * 512);
    load4(scale_words[s], scales_at);
  };
  auto next = [&]() {
    column += WARPS;
    if (MODE == 3 && column >= columns) {
      enter();
    } else {
      codes_at += WARPS * 2048;
      scales_at += WARPS * 128;
    }
  };
  // The copies of x follow on their own, so that weights can be on their way before x exists.
  const u32 ring = shared_address(memory) + warp * WARP_BYTES, pitch = 2 * (u32)k;
  const int chunk = lane & 7, first_row = lane >> 3;                         // 16 bytes of row r0, then of every fourth
  const u32 to = ring + (ONE ? chunk * 16 : first_row * 128 + ((chunk ^ (first_row & 7)) << 4));
  int row[COPIES], x_column = first + warp, x_slot = 0;
  const u8* from = (const u8*)x + warp * 128ll + chunk * 16;
#pragma unroll
  for (int i = 0; i < COPIES; ++i) {
    const int r = first_row + i * 4;
    row[i] = r >= (ONE ? 1 : NT) ? -1 : MODE == 3 ? 0 : !ONE ? row_of[r] : MODE == 0 ? tile : tile / top_k;
    if (MODE == 1 && !ONE && row[i] >= 0) row[i] /= top_k;
  }
  auto enter_x = [&]() {
    while (x_column >= columns) { x_column -= columns; ++x_slot; }
    if (x_slot < count) {
      if (row[0] >= 0) row[0] = row_of[x_slot];
      from = (const u8*)x + x_column * 128ll + chunk * 16;
    }
  };
  auto fetch_x = [&](u32 stage) {
#pragma unroll
    for (int i = 0; i < COPIES; ++i)
      if (row[i] >= 0) copy16((i % 2 ? to ^ 64 : to) + i * 512 + stage, from + (u64)(u32)row[i] * pitch);
    x_column += WARPS;
    if (MODE == 3 && x_column >= columns) enter_x(); else from += WARPS * 128;
  };
  auto commit = [&]() { asm volatile("cp.async.commit_group;" ::: "memory"); };

#pragma unroll
  for (int s = 0; s < DEPTH; ++s) if (s < mine) { fetch_weights(s); next(); }
  if (MODE >= 2) { wait_for_previous(); allow_next(); }
  if (MODE == 3) enter_x();
#pragma unroll
  for (int s = 0; s < RING; ++s) { if (s < mine) fetch_x(s * TILE_BYTES); commit(); }

  float sums[G][NT / 8][4];
#pragma unroll
  for (int g = 0; g < G; ++g)
#pragma unroll
    for (int i = 0; i < NT / 8; ++i)
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[g][i][c] = 0.f;

  const u32 r = lane & 7, low = ring + (ONE ? (lane >> 3) * 16 : r * 128 + (((lane >> 3) ^ r) << 4)), high = low ^ 64;
  u32 stage = 0;
  for (int i0 = 0; i0 < mine; i0 += DEPTH) {
#pragma unroll
    for (int s = 0; s < DEPTH; ++s) {
      const int left = mine - i0 - s;
      if (left > 0) {
        asm volatile("cp.async.wait_group %0;" :: "n"(RING - 1) : "memory");
        __syncwarp();
        u32 tokens[NT / 8][8];
#pragma unroll
        for (int i = 0; i < NT / 8; ++i)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
              : "=r"(tokens[i][4 * h]), "=r"(tokens[i][4 * h + 1]), "=r"(tokens[i][4 * h + 2]), "=r"(tokens[i][4 * h + 3])
              : "r"((h ? high : low) + stage + i * 1024) : "memory");
        __syncwarp();
        if (left > RING) fetch_x(stage);
        commit();
        stage = stage == (RING - 1) * TILE_BYTES ? 0 : stage + TILE_BYTES;
        float part[G][NT / 8][4];
#pragma unroll
        for (int g = 0; g < G; ++g) {
          const u32 scale_word = G == 1 ? scale_words[s] : __shfl_sync(~0u, scale_words[s], g * 8 + (lane >> 2));
          const u32 factors[2] = {factors_of(scale_word), factors_of(__byte_perm(scale_word, 0, 0x4341))};   // of each 32 columns
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            u32 a[4];
            widen(words[s][g][j], a, factors[j >> 1]);
#pragma unroll
            for (int i = 0; i < NT / 8; ++i) {
              float* d = MODE == 3 ? part[g][i] : sums[g][i];
              if (MODE == 3 && j == 0) { d[0] = d[1] = d[2] = d[3] = 0.f; }
              asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(tokens[i][2 * j]), "r"(tokens[i][2 * j + 1]));
            }
          }
          if (left > DEPTH) load16(words[s][g], codes_at + g * 512);
          if (MODE == 3) {
#pragma unroll
            for (int i = 0; i < NT / 8; ++i)
#pragma unroll
              for (int c = 0; c < 4; ++c) sums[g][i][c] += factor[s] * part[g][i][c];
          }
        }
        if (left > DEPTH) {
          load4(scale_words[s], scales_at);
          if (MODE == 3) factor[s] = weight_of[slot];
          next();
        }
      }
    }
  }

  // The parts to shared memory, over the ring of each warp; then their sum, from warp 0 on.
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncwarp();
  float* part = (float*)(memory + warp * WARP_BYTES);
  if (ONE) {
    if ((lane & 3) == 0) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
        part[g * 16 + (lane >> 2)] = sums[g][0][0];
        part[g * 16 + 8 + (lane >> 2)] = sums[g][0][2];
      }
    }
  } else {
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int i = 0; i < NT / 8; ++i)
        ((float4*)part)[(g * (NT / 8) + i) * 32 + lane] = make_float4(sums[g][i][0], sums[g][i][1], sums[g][i][2], sums[g][i][3]);
  }
  __syncthreads();
  auto store = [&](int q, int r, int slot, float v0, float v1) {   // rows r and r + 8 of group q of the block
    const int first = (group + q) * 16 + r;
    if (MODE == 3) {
      if (bias) for (int j = 0; j < count; ++j) {
        const u16* b = bias + (long long)expert_of[j] * n + first;
        v0 += weight_of[j] * widened(b[0]);
        v1 += weight_of[j] * widened(b[8]);
      }
    } else if (bias) {
      v0 += widened(bias[(long long)expert * n + first]);
      v1 += widened(bias[(long long)expert * n + first + 8]);
    }
    if (MODE == 1) {
      out[(long long)slot * (n / 2) + (first >> 4) * 8 + r] = (u16)pack2(activate(v0, v1, alpha, limit, up_offset), 0.f);
    } else {
      const float f = MODE == 2 ? weights[slot] : 1.f;
      const u32 p = MODE == 2 ? pack2(v0 * f, v1 * f) : pack2(v0, v1);
      out[(long long)slot * n + first] = (u16)p;
      out[(long long)slot * n + first + 8] = (u16)(p >> 16);
    }
  };
  if (ONE) {   // one thread for rows r and r + 8 of a group
    const int q = tid >> 3, r = tid & 7;
    const bool sums_up = tid < G * 8;
    float v0 = 0.f, v1 = 0.f;
    if (sums_up) {
#pragma unroll
      for (int g = 0; g < WARPS; ++g) {
        const float* p = (const float*)(memory + g * WARP_BYTES) + q * 16 + r;
        v0 += p[0];
        v1 += p[8];
      }
    }
#if SPLIT > 1
    __shared__ float2 parts[SPLIT][G * 8];
    cluster_wait();   // the first block has begun
    if (sums_up)
      asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" :: "r"(in_block(shared_address(&parts[rank][tid]), 0)), "f"(v0), "f"(v1) : "memory");
    cluster_sync();
    if (rank) return;
    v0 = v1 = 0.f;
    if (sums_up)
#pragma unroll
      for (int i = 0; i < SPLIT; ++i) { v0 += parts[i][tid].x; v1 += parts[i][tid].y; }
#endif
    if (sums_up) store(q, r, tile, v0, v1);
  } else {
    for (int e = tid; e < G * (NT / 8) * 32; e += 32 * WARPS) {
      const int l = e & 31, i = (e >> 5) % (NT / 8), q = (e >> 5) / (NT / 8);
      const int s0 = row_of[i * 8 + (l & 3) * 2], s1 = row_of[i * 8 + (l & 3) * 2 + 1];
      if (s0 < 0 && s1 < 0) continue;
      float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
      for (int g = 0; g < WARPS; ++g) {
        const float4 p = ((const float4*)(memory + g * WARP_BYTES))[e];
        v.x += p.x;
        v.y += p.y;
        v.z += p.z;
        v.w += p.w;
      }
      if (s0 >= 0) store(q, l >> 2, s0, v.x, v.z);
      if (s1 >= 0) store(q, l >> 2, s1, v.y, v.w);
    }
  }
}
