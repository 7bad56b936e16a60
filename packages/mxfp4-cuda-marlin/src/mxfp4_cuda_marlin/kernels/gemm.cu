// W4A16 GEMM for SM90 and more than a few tokens: out[slot, n] = x[slot, k] * W[expert][n, k], W in the layout of layout.py.
//
// Weights are the A operand of wgmma, widened to bfloat16 in registers; tokens are the B operand, in shared memory with the 128-byte swizzle.
// Blocks stay, one on each multiprocessor, and take items: a tile of NT tokens and ROWS strips of 64 output features. Four producer warps fill
// STAGES stages of COLS times 64 columns with bulk copies, also beyond the end of an item; WG consumer warpgroups of MB strips each widen one
// strip while the products of another are under way. Results leave through shared memory in whole rows. Accumulators are float32; the order of
// every sum is fixed, so results repeat. Defined on the command line:
//   NT tokens in a tile, a multiple of 16; WG, MB, STAGES see above;
//   MODE 0 linear, x by a tensor map; 1 gate-up with the gated activation; 2 down with the weights of the router;
//   SPLIT blocks of a cluster share an item and cut k, linear only, one item each;
//   NARROW tokens that a tile with no more of them multiplies, instead of NT;
//   COLS columns of 64 in a stage: more for few tokens, which want fewer and larger copies;
//   SMALL see ptx.cuh.
// In mode 1 and 2, x is [tile][k / 64][NT][64] with 16-byte chunks exclusive-ored with the token, and so is the output of mode 1.
template <int N> DEV void wgmma(float (&sums)[N / 2], u32 a0, u32 a1, u32 a2, u32 a3, u32 x);
//WGMMA//
constexpr u32 ROWS = WG * MB;
constexpr int GROUP = 16;
constexpr u32 CODES = ROWS * 2048, SCALES = ROWS * 128, X = NT * 128;
constexpr u32 STAGE = (COLS * (CODES + X + SCALES) + 1023) / 1024 * 1024;   // x first, on 1024 bytes for the swizzle, then codes, then scales
constexpr u32 PITCH = ROWS * 128 + 16;       // bytes of a token in the buffer of results; the 16 keep stmatrix free of bank conflicts
constexpr u32 SUM_PITCH = ROWS * 256 + 16;   // the same for the float32 sums of a split
constexpr int X_WARP = 3;                    // the producer that copies x: the last, whose strip is missing first
struct alignas(64) Map { u64 words[16]; };

template <int N> struct Width { static constexpr int tokens = N; };
struct Words { u32 codes[4], scales; };
DEV void read_words(Words& w, u32 codes, u32 scales) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.codes[0]), "=r"(w.codes[1]), "=r"(w.codes[2]), "=r"(w.codes[3]) : "r"(codes));
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w.scales) : "r"(scales));
}
DEV void widen_strip(const Words& w, u32 (&a)[16]) {
  const u32 factors = factors_of(w.scales), next = factors_of(__byte_perm(w.scales, 0, 0x4341));
  widen(w.codes[0], a, factors); widen(w.codes[1], a + 4, factors); widen(w.codes[2], a + 8, next); widen(w.codes[3], a + 12, next);
}
template <int N> DEV void multiply(float (&sums)[N / 2], u32 (&a)[16], u32 x) {
  const u32 descriptor = (x >> 4) + 0x10000;   // its low word; the high one, 128-byte swizzle and a stride of 1024, is in wgmma
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int j = 0; j < 4; ++j) wgmma<N>(sums, a[4 * j], a[4 * j + 1], a[4 * j + 2], a[4 * j + 3], descriptor + 2 * j);
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> DEV void wait_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }
// Consumer warpgroups that write results together: in mode 1, two strips are 64 values of the next x.
constexpr int TOGETHER = MODE == 1 && MB == 1 ? 2 : 1;
DEV void results_sync(int wg) { asm volatile("bar.sync %0, %1;" :: "r"(1 + wg / TOGETHER), "n"(128 * TOGETHER) : "memory"); }

// The items of a block, every step-th from a first one on. GROUP tiles in a row share the weights of a block of strips while these are in the
// L2 cache. The next item is looked up when one is taken, so that its expert has arrived when its turn comes. A tile with few tokens
// multiplies no more than width of its NT columns.
struct Items {
  const int *tile_expert, *rows;
  int m, tiles, strips, blocks, step;
  int group = 0, rest;   // first tile of the group of the next item, and its number in that group
  int tile, block, expert, present, width, next_tile, next_block, next_expert, next_beyond;
  DEV Items(const int* tile_expert, const int* rows, int m, int tiles, int strips, int first, int step)
      : tile_expert(tile_expert), rows(rows), m(m), tiles(tiles), strips(strips), blocks((strips + ROWS - 1) / ROWS), step(step), rest(first) { look(); }
  DEV void look() {
    while (rest >= GROUP * blocks && group < tiles) { rest -= GROUP * blocks; group += GROUP; }
    const int size = tiles - group < GROUP ? tiles - group : GROUP;
    next_block = size == GROUP ? rest / GROUP : size > 0 ? rest / size : blocks;
    next_tile = group + rest - next_block * size;
    if (next_block >= blocks) return;
    next_expert = tile_expert ? tile_expert[next_tile] : 0;
    const int row = next_tile * NT + NARROW;
    next_beyond = NARROW == NT ? 0 : MODE == 0 ? m - 1 - row : rows[row];   // negative if no token is there
  }
  DEV bool take() {
    if (next_block >= blocks) return false;
    tile = next_tile; block = next_block; expert = next_expert;
    width = next_beyond >= 0 ? NT : NARROW;
    const int left = strips - block * (int)ROWS;
    present = left < (int)ROWS ? left : ROWS;
    rest += step;
    look();
    return true;
  }
};

#if SPLIT > 1
#define CLUSTER_OF_SPLITS __cluster_dims__(SPLIT, 1, 1)
#else
#define CLUSTER_OF_SPLITS
#endif
extern "C" __global__ void CLUSTER_OF_SPLITS __launch_bounds__(128 * (WG + 1), 1) gemm(
    const u8* __restrict__ codes, const u8* __restrict__ scales, const u16* x, u16* out, const u16* __restrict__ bias,
    const int* tile_expert, const int* rows, const int* num_tiles, const float* row_weights,
    int m, int n, int k, int max_tiles, float alpha, float limit, float up_offset, const __grid_constant__ Map x_map) {
  extern __shared__ __align__(1024) u8 memory[];
  __shared__ __align__(8) u64 barriers[2 * STAGES];
  __shared__ float weight_of[WG][NT];
  const int tid = threadIdx.x, wg = tid >> 7, local_tid = tid & 127, lane = tid & 31, warp = (tid >> 5) & 3;
  const int strips = n / 64, columns = k / 64, rank = blockIdx.x % SPLIT;
  const int begin = (int)((long long)columns * rank / SPLIT), end = (int)((long long)columns * (rank + 1) / SPLIT);
  const u32 base = shared_address(memory), full = shared_address(barriers), empty = full + 8 * STAGES, buffer = base + STAGES * STAGE;
  if (tid == 0) {
    for (int i = 0; i < STAGES; ++i) { barrier_init(full + 8 * i, 4); barrier_init(empty + 8 * i, 4 * WG); }
    asm volatile("fence.mbarrier_init.release.cluster;");
  }
  __syncthreads();
  wait_for_previous();
  allow_next();
  Items item(tile_expert, rows, m, num_tiles ? *num_tiles : max_tiles, strips, blockIdx.x / SPLIT, gridDim.x / SPLIT);

  if (wg == WG) {   // producers: one lane of each warp, since a bulk copy keeps its thread for some hundred cycles
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(WG == 2 ? 40 : 32));
    if (lane) return;
    int stage = 0;
    u32 parity = 1;
    while (item.take()) {
      const long long strip = (long long)item.expert * strips + item.block * ROWS + warp;
      const u8* my_codes = codes + strip * columns * 2048;
      const u8* my_scales = scales + strip * columns * 128;
      const u16* my_x = x + (long long)item.tile * columns * NT * 64;
      const u32 tokens = MODE != 0 && COLS == 1 ? item.width * 128 : X;   // bytes of 64 columns of them
      const u32 bytes = (item.present > warp ? (item.present - warp + 3) / 4 : 0) * (2048 + 128) + (warp == X_WARP ? tokens : 0);
      for (int c = begin; c < end; c += COLS) {
        const int here = end - c < COLS ? end - c : COLS;
        const u32 at = base + stage * STAGE, barrier = full + 8 * stage;
        barrier_wait(empty + 8 * stage, parity);
        barrier_expect(barrier, here * bytes);
        if (warp == X_WARP) {
          if (MODE == 0)
            for (int h = 0; h < here; ++h)
              asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                :: "r"(at + h * X), "l"(&x_map), "r"((c + h) * 64), "r"(item.tile * NT), "r"(barrier) : "memory");
          else
            copy_in(at, my_x + (long long)c * NT * 64, here * tokens, barrier);
        }
#pragma unroll
        for (int g = 0; g < (ROWS + 3) / 4; ++g) {
          const int local = warp + 4 * g;
          if (local >= item.present) break;
          copy_in(at + COLS * (X + local * 2048), my_codes + ((long long)g * 4 * columns + c) * 2048, here * 2048, barrier);
          copy_in(at + COLS * (X + CODES + local * 128), my_scales + ((long long)g * 4 * columns + c) * 128, here * 128, barrier);
        }
        if (++stage == STAGES) { stage = 0; parity ^= 1; }
      }
    }
    return;
  }

  // Of 16 tokens: with more, ptxas 13.0 says that it has too few registers, and lets each product wait for the one before.
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(WG == 2 ? 232 : NT == 16 ? 104 : 112));
  const u32 my_codes = COLS * (X + wg * MB * 2048) + local_tid * 16, my_scales = COLS * (X + CODES + wg * MB * 128) + (warp * 8 + (lane >> 2)) * 4;
  int stage = 0;
  u32 parity = 0;
  auto compute = [&](auto width) {   // one item, of no more tokens than width
    constexpr int N = decltype(width)::tokens, EACH = (N + 127) / 128;   // rows of results of a consumer
    float sums[MB][N / 2];
#pragma unroll
    for (int b = 0; b < MB; ++b)
#pragma unroll
      for (int j = 0; j < N / 2; ++j) sums[b][j] = 0.f;
    // What the epilogue needs is asked for now. A row of results is copied by one thread of each warpgroup; of more than 128, two.
    float bias0[MB], bias8[MB], weight[EACH];
    int slot[EACH];
    if (MODE != 1) {
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        const int token = e * 128 + local_tid, row = item.tile * NT + token;
        slot[e] = -1;
        if (token >= N) break;
        if (MODE == 2) { slot[e] = rows[row]; weight[e] = row_weights[row]; } else if (row < m) slot[e] = row;
      }
    }
#pragma unroll
    for (int b = 0; b < MB; ++b) {
      const int local = wg * MB + b;
      const long long row = (long long)item.expert * n + (item.block * ROWS + local) * 64 + warp * 16 + (lane >> 2);
      const bool there = SPLIT == 1 && bias && local < item.present;
      bias0[b] = there ? widened(bias[row]) : 0.f;
      bias8[b] = there ? widened(bias[row + 8]) : 0.f;
    }
    // Two operands in turn: one is widened while the products of the other are under way. The words of the next step are read before
    // the wait. The first step of a stage frees the stage before, whose products have then ended.
    u32 even[16], odd[16], at, used = 0;
    Words words;
    auto read = [&](int h, int b) { read_words(words, at + my_codes + (b * COLS + h) * 2048, at + my_scales + (b * COLS + h) * 128); };
    auto enter = [&] {
      barrier_wait(full + 8 * stage, parity);
      at = base + stage * STAGE;
      read(0, 0);
    };
    auto leave = [&](bool more) {
      used = empty + 8 * stage;
      if (++stage == STAGES) { stage = 0; parity ^= 1; }
      if (more) enter();
    };
    auto free_stage = [&](u32 barrier) {
      __syncwarp();   // all lanes have read their words
      if (lane == 0) barrier_arrive(barrier);
    };
    auto step = [&](u32 (&a)[16], int h, int b, bool frees, auto next) {
      const u32 before = used;
      widen_strip(words, a);
      multiply<N>(sums[b], a, at + h * X);
      next();
      wait_products<1>();
      if (frees) free_stage(before);
    };
    if (begin < end) enter();
    int c = begin;
#if COLS * MB == 1   // two stages a turn
    for (; c + 2 <= end; c += 2) {
      step(even, 0, 0, c > begin, [&] { leave(true); });
      step(odd, 0, 0, true, [&] { leave(c + 2 < end); });
    }
    if (c < end) step(even, 0, 0, c > begin, [&] { leave(false); });
#else
    for (; c + COLS <= end; c += COLS) {
#pragma unroll
      for (int i = 0; i < COLS * MB; ++i)
        step(i & 1 ? odd : even, i / MB, i % MB, i == 0 && c > begin, [&] {
          if (i + 1 < COLS * MB) read((i + 1) / MB, (i + 1) % MB); else leave(c + COLS < end);
        });
    }
#endif
#if COLS > 1
    if (c < end) {   // the last stage has fewer columns
      const int steps = (end - c) * MB;
      int i = 0;
      for (; i + 2 <= steps; i += 2) {
        step(even, i / MB, 0, i == 0 && c > begin, [&] { read((i + 1) / MB, MB - 1); });
        step(odd, (i + 1) / MB, MB - 1, false, [&] { if (i + 2 < steps) read((i + 2) / MB, 0); });
      }
      if (i < steps) step(even, i / MB, 0, i == 0 && c > begin, [] {});
      leave(false);
    }
#endif
    wait_products<0>();
    if (begin < end) free_stage(used);
#pragma unroll
    for (int b = 0; b < MB; ++b)
#pragma unroll
      for (int j = 0; j < N / 2; ++j) asm volatile("" : "+f"(sums[b][j]) :: "memory");

#if SPLIT > 1
    // Every block keeps its sums in shared memory and adds up its share of the tokens over all blocks, in their order.
#pragma unroll
    for (int b = 0; b < MB; ++b)
#pragma unroll
      for (int j = 0; j < N / 2; ++j) {
        const int token = j / 4 * 8 + (lane & 3) * 2 + (j & 1), row = (wg * MB + b) * 64 + warp * 16 + (lane >> 2) + (j >> 1 & 1) * 8;
        asm volatile("st.shared.f32 [%0], %1;" :: "r"(buffer + token * SUM_PITCH + row * 4), "f"(sums[b][j]) : "memory");
      }
    cluster_sync();
    for (int e = tid; e < (int)(NT / SPLIT * ROWS * 16); e += 128 * WG) {
      const int local = NT / SPLIT * rank + e / (ROWS * 16), row = e % (ROWS * 16) * 4;
      const int token = item.tile * NT + local, feature = item.block * ROWS * 64 + row;
      if (token >= m || row >= item.present * 64) continue;
      float s[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int r = 0; r < SPLIT; ++r) {
        float v[4];
        asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
          : "r"(in_block(buffer + local * SUM_PITCH + row * 4, r)) : "memory");
#pragma unroll
        for (int h = 0; h < 4; ++h) s[h] += v[h];
      }
      if (bias)
#pragma unroll
        for (int h = 0; h < 4; ++h) s[h] += widened(bias[feature + h]);
      *(Two*)(out + (long long)token * n + feature) = Two{pack2(s[0], s[1]), pack2(s[2], s[3])};
    }
    cluster_sync();   // no block may end while another reads its sums
#else
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");   // the results of the last item have left the buffer
    if (MODE == 2) {
#pragma unroll
      for (int e = 0; e < EACH; ++e) if (e * 128 + local_tid < N) weight_of[wg][e * 128 + local_tid] = weight[e];
    }
    results_sync(wg);
#pragma unroll
    for (int b = 0; b < MB; ++b) {
      const int local = wg * MB + b;
      if (local >= item.present) break;
      if (MODE == 1) {
#pragma unroll
        for (int j = 0; j < N / 8; j += 4) {   // four groups of eight tokens, or the last two
          u32 p[4];
#pragma unroll
          for (int h = 0; h < 4 && j + h < N / 8; ++h) {
            const float* v = &sums[b][4 * (j + h)];
            p[h] = pack2(activate(v[0] + bias0[b], v[2] + bias8[b], alpha, limit, up_offset), activate(v[1] + bias0[b], v[3] + bias8[b], alpha, limit, up_offset));
          }
          const int groups = N / 8 - j < 4 ? 2 : 4, token = (j + (lane >> 3) % groups) * 8 + (lane & 7), chunk = (local & 1) * 4 + warp;
          const u32 at = buffer + (local >> 1) * X + token * 128 + ((chunk ^ (token & 7)) << 4);
          if (groups == 4)
            asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
              :: "r"(at), "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]) : "memory");
          else
            asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" :: "r"(at), "r"(p[0]), "r"(p[1]) : "memory");
        }
      } else {
#pragma unroll
        for (int j = 0; j < N / 8; j += 2) {
          u32 p[4];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float* v = &sums[b][4 * (j + h)];
            const int token = (j + h) * 8 + (lane & 3) * 2;
            const float w0 = MODE == 2 ? weight_of[wg][token] : 1.f, w1 = MODE == 2 ? weight_of[wg][token + 1] : 1.f;
            p[2 * h] = pack2((v[0] + bias0[b]) * w0, (v[1] + bias0[b]) * w1);
            p[2 * h + 1] = pack2((v[2] + bias8[b]) * w0, (v[3] + bias8[b]) * w1);
          }
          const u32 at = buffer + ((j + (lane >> 4)) * 8 + (lane & 7)) * PITCH + local * 128 + warp * 32 + ((lane >> 3) & 1) * 16;
          asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
            :: "r"(at), "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]) : "memory");
        }
      }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    results_sync(wg);
    if (MODE == 1) {
      const int pair = wg * MB / 2;
      if (local_tid == 0 && wg % TOGETHER == 0 && 2 * pair < item.present)
        copy_out(out + ((long long)item.tile * (n / 128) + item.block * (ROWS / 2) + pair) * NT * 64, buffer + pair * X, N * 128);
    } else if (wg * MB < item.present) {
      const u32 bytes = (item.present - wg * MB < MB ? item.present - wg * MB : MB) * 128;
#pragma unroll
      for (int e = 0; e < EACH; ++e)
        if (slot[e] >= 0)
          copy_out(out + (long long)slot[e] * n + (item.block * ROWS + wg * MB) * 64, buffer + (e * 128 + local_tid) * PITCH + wg * MB * 128, bytes);
    }
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
  };
  while (item.take()) {
    if (NARROW == NT || item.width == NT) compute(Width<NT>()); else compute(Width<NARROW>());
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
