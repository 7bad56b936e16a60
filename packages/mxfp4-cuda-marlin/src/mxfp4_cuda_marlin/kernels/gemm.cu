// W4A16 GEMM for SM90: out[slot, n] = x[slot / x_div, k] * W[expert][n, k], W in the layout of layout.py.
//
// Weights are the A operand, widened to bfloat16 in registers; tokens are the B operand, in shared memory with the
// 128-byte swizzle. One producer warpgroup (or warp) copies stages; WG consumer warpgroups of MB strips of 64 rows each
// widen and multiply: wgmma, or mma.sync where NT is at most 16 (SMALLM). Accumulators are float32; the order of the sum
// over k is fixed, so results repeat. Defined on the command line:
//   NT tokens in a tile; WG, MB see above; STAGES in shared memory; OCC blocks per multiprocessor;
//   MODE 0 linear, 1 gate-up with the gated activation, 2 down with the weights of the router;
//   SMALL 1 if every scale byte is at most 128, else weights are multiplied twice.
typedef unsigned int u32; typedef unsigned long long u64; typedef unsigned char u8; typedef unsigned short u16;
#define DEV __device__ __forceinline__
DEV u32 smem_u32(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEV void mbar_init(u32 b, u32 n) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(b), "r"(n)); }
DEV void mbar_arrive(u32 b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(b) : "memory"); }
DEV void mbar_expect(u32 b, u32 n) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(b), "r"(n) : "memory"); }
DEV void mbar_wait(u32 b, u32 parity) {
  asm volatile("{\n.reg .pred p;\nW: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra D;\nbra W;\nD:\n}" :: "r"(b), "r"(parity) : "memory");
}
DEV void bulk(u32 dst, const void* src, u32 bytes, u32 bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" :: "r"(dst), "l"(src), "r"(bytes), "r"(bar) : "memory");
}
DEV void cp16(u32 dst, const void* src, u32 bytes) { asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(dst), "l"(src), "r"(bytes) : "memory"); }
DEV u32 mul2(u32 a, u32 b) { u32 d; asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b)); return d; }
DEV u32 pack2(float lo, float hi) { u32 d; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo)); return d; }
DEV float bf(u16 v) { return __uint_as_float((u32)v << 16); }
//WGMMA//
#define ROWS (WG * MB)                                                 // 64-row strips in a CTA
constexpr u32 CODES = ROWS * 2048, SCALES = ROWS * 128, XBYTES = NT * 128;
constexpr u32 STAGE = ((CODES + XBYTES + SCALES + 1023) / 1024) * 1024;   // x first (1024-aligned), then codes, scales
constexpr int PT = SMALLM ? 32 : 128;                                     // producer threads
constexpr int CP = (NT * 8 + PT - 1) / PT;                                // 16-byte copies of x per producer thread and stage

// Eight codes to four pairs of bfloat16: sign to bit 15, the three bits of the magnitude to 8:6. A code then reads as its
// value times 2^-126, exactly, subnormals included; the factor of the scale makes up for it. Pairs: row r, row r + 8,
// and both again 8 columns further; where their bits come from is in layout.py.
DEV void widen(u32 w, u32 (&a)[4], u32 s0, u32 s1) {
  const u32 M = 0x81c081c0u;
  u32 p0 = w & M, p1 = (w << 4) & M, p2 = __funnelshift_r(w, w, 6) & M;
  u32 p3 = ((w << 6) & 0x80c080c0u) | ((w >> 2) & 0x01000100u);
  if (!SMALL) { const u32 C = 0x7e807e80u; p0 = mul2(p0, C); p1 = mul2(p1, C); p2 = mul2(p2, C); p3 = mul2(p3, C); }
  a[0] = mul2(p0, s0); a[1] = mul2(p1, s1); a[2] = mul2(p2, s0); a[3] = mul2(p3, s1);
}
// The factor of a scale byte, twice: 2^(b - 1) if all bytes are small, else 2^(b - 127) after widen multiplied by 2^126.
DEV u32 splat_scale(u32 b) {
  if (SMALL) return b * 0x00800080u + 0x3f003f00u;
  u32 v = b == 255 ? 0x7fc0u : (b == 0 ? 0x0040u : b << 7);
  return v | (v << 16);
}

extern "C" __global__ void __launch_bounds__(128 * WG + PT, OCC) gemm(
    const u8* __restrict__ codes, const u8* __restrict__ scales, const u16* __restrict__ x, u16* __restrict__ out,
    const u16* __restrict__ bias, const int* __restrict__ tile_expert, const int* __restrict__ tile_start, const int* __restrict__ rows,
    const int* __restrict__ num_tiles, const float* __restrict__ weights, float* __restrict__ partial, int* __restrict__ counters,
    int m, int n, int k, int x_div, int splits, float alpha, float limit, float up_offset) {
  extern __shared__ __align__(1024) u8 smem[];
  __shared__ __align__(8) u64 bars[2 * STAGES];
  __shared__ int row_of[NT];
  const int tid = threadIdx.x, wg = tid >> 7, tile = blockIdx.y;
  if (num_tiles && tile >= *num_tiles) return;
  const int expert = tile_expert ? tile_expert[tile] : 0;
  const int nt = blockIdx.x, split = blockIdx.z, KT = k / 64;
  const int k0 = (int)((long long)KT * split / splits), k1 = (int)((long long)KT * (split + 1) / splits);
  u32 base = smem_u32(smem), bar = smem_u32(bars);
  if (tid == 0) { for (int i = 0; i < STAGES; ++i) { mbar_init(bar + 8 * i, PT + 1); mbar_init(bar + 8 * (STAGES + i), 4 * WG); }
    asm volatile("fence.mbarrier_init.release.cluster;"); }
  for (int i = tid; i < NT; i += blockDim.x) {
    int r; if (tile_start) { r = rows[tile_start[tile] + i]; } else { r = tile * NT + i; if (r >= m) r = -1; }
    row_of[i] = r;
  }
  __syncthreads();
  const int strips = n / 64;
  if (wg == WG) {  // producer
    if (!SMALLM && OCC == 1) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    const int t = tid - WG * 128;
    const u16* src[CP]; u32 dst[CP]; u32 ok[CP];
#pragma unroll
    for (int i = 0; i < CP; ++i) {
      int c = t + i * PT, r = c >> 3, ch = c & 7; bool in = c < NT * 8; int row = in ? row_of[r] : -1;
      ok[i] = row >= 0 ? 16 : 0; src[i] = x + (long long)(row < 0 ? 0 : row / x_div) * k + ch * 8; dst[i] = in ? r * 128 + ((ch ^ (r & 7)) << 4) : 0xffffffffu;
    }
    const u8* wc = codes + ((long long)(expert * strips + nt * ROWS) * KT) * 2048;
    const u8* ws = scales + ((long long)(expert * strips + nt * ROWS) * KT) * 128;
    int it = 0;
    for (int kt = k0; kt < k1; ++kt, ++it) {
      int s = it % STAGES; if (it >= STAGES) mbar_wait(bar + 8 * (STAGES + s), ((it / STAGES) - 1) & 1);
      u32 st = base + s * STAGE, fb = bar + 8 * s;
      if (t == 0) {
        int present = strips - nt * ROWS < ROWS ? strips - nt * ROWS : ROWS;
        mbar_expect(fb, present * (2048 + 128));
        for (int g = 0; g < present; ++g) {
          bulk(st + XBYTES + g * 2048, wc + ((long long)g * KT + kt) * 2048, 2048, fb);
          bulk(st + XBYTES + CODES + g * 128, ws + ((long long)g * KT + kt) * 128, 128, fb);
        }
      }
#pragma unroll
      for (int i = 0; i < CP; ++i) if (dst[i] != 0xffffffffu) cp16(st + dst[i], src[i] + kt * 64, ok[i]);
      asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" :: "r"(fb) : "memory");
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    return;
  }
  if (!SMALLM && OCC == 1) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  const int lane = tid & 31, warp = (tid >> 5) & 3, q = tid & 127;
  int it = 0;
  float acc[MB][NT / 2];
#pragma unroll
  for (int b = 0; b < MB; ++b)
#pragma unroll
  for (int i = 0; i < NT / 2; ++i) acc[b][i] = 0.f;
  auto fetch = [&](u32 st, int b, u32 (&a)[16]) {
    u32 w0, w1, w2, w3, sc; const int strip = wg * MB + b;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(w0), "=r"(w1), "=r"(w2), "=r"(w3) : "r"(st + XBYTES + strip * 2048 + q * 16));
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(sc) : "r"(st + XBYTES + CODES + strip * 128 + (warp * 8 + (lane >> 2)) * 4));
    u32 r0b0 = splat_scale(sc & 0xff), r0b1 = splat_scale((sc >> 8) & 0xff), r1b0 = splat_scale((sc >> 16) & 0xff), r1b1 = splat_scale(sc >> 24);
    widen(w0, *(u32(*)[4])(a + 0), r0b0, r1b0); widen(w1, *(u32(*)[4])(a + 4), r0b0, r1b0);
    widen(w2, *(u32(*)[4])(a + 8), r0b1, r1b1); widen(w3, *(u32(*)[4])(a + 12), r0b1, r1b1);
  };
#if SMALLM
  int s = 0; u32 ph = 0;
  for (int kt = k0; kt < k1; ++kt) {
    mbar_wait(bar + 8 * s, ph);
    const u32 st = base + s * STAGE;
    u32 xb[NT / 8][8];
#pragma unroll
    for (int i = 0; i < NT / 8; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {   // ldmatrix x4: k 0-31 or 32-63 of 8 tokens
        const u32 r = lane & 7, ch = h * 4 + (lane >> 3);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(xb[i][4 * h]), "=r"(xb[i][4 * h + 1]), "=r"(xb[i][4 * h + 2]), "=r"(xb[i][4 * h + 3]) : "r"(st + (i * 8 + r) * 128 + ((ch ^ r) << 4)));
      }
#pragma unroll
    for (int b = 0; b < MB; ++b) {
      u32 a[16]; fetch(st, b, a);
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < NT / 8; ++i)
          asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(acc[b][4 * i]), "+f"(acc[b][4 * i + 1]), "+f"(acc[b][4 * i + 2]), "+f"(acc[b][4 * i + 3])
            : "r"(a[4 * j]), "r"(a[4 * j + 1]), "r"(a[4 * j + 2]), "r"(a[4 * j + 3]), "r"(xb[i][2 * j]), "r"(xb[i][2 * j + 1]));
    }
    __syncwarp();
    if (lane == 0) mbar_arrive(bar + 8 * (STAGES + s));
    if (++s == STAGES) { s = 0; ph ^= 1; }
  }
#else
  u32 a[2][16];
  for (int kt = k0; kt < k1; kt += (MB == 1 ? 2 : 1)) {
#pragma unroll
    for (int u = 0; u < (MB == 1 ? 2 : 1); ++u) {
      if (kt + u < k1) {
        int s = it % STAGES; mbar_wait(bar + 8 * s, (it / STAGES) & 1);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        u32 st = base + s * STAGE;
        u64 desc = ((u64)(st >> 4) & 0x3fff) | (1ull << 16) | (64ull << 32) | (1ull << 62);
#pragma unroll
        for (int b = 0; b < MB; ++b) {
          fetch(st, b, a[(u + b) & 1]);
          asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
          for (int j = 0; j < 4; ++j) wgmma(acc[b], a[(u + b) & 1][4 * j], a[(u + b) & 1][4 * j + 1], a[(u + b) & 1][4 * j + 2], a[(u + b) & 1][4 * j + 3], desc + 2 * j);
          asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
          asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
          if (b == 0 && it > 0 && lane == 0) mbar_arrive(bar + 8 * (STAGES + (it - 1) % STAGES));
        }
        ++it;
      }
    }
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int b = 0; b < MB; ++b)
#pragma unroll
  for (int i = 0; i < NT / 2; ++i) asm volatile("" : "+f"(acc[b][i]) :: "memory");
#endif
#pragma unroll
  for (int b = 0; b < MB; ++b) {
  const int strip = (nt * WG + wg) * MB + b; if (strip >= strips) break;
  const int r0 = strip * 64 + warp * 16 + (lane >> 2);   // rows r0, r0 + 8
  if (splits > 1) {
    float* mine = partial + ((long long)split * gridDim.y + tile) * NT * n;
#pragma unroll
    for (int i = 0; i < NT / 8; ++i)
#pragma unroll
      for (int c = 0; c < 4; ++c) { int col = i * 8 + (lane & 3) * 2 + (c & 1), row = r0 + (c >> 1) * 8; mine[(long long)col * n + row] = acc[b][4 * i + c]; }
    continue;
  }
#pragma unroll
  for (int i = 0; i < NT / 8; ++i) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      int col = i * 8 + (lane & 3) * 2 + c, slot = row_of[col];
      if (slot < 0) continue;
      float v0 = acc[b][4 * i + c], v1 = acc[b][4 * i + 2 + c];
      if (bias) { v0 += bf(bias[(long long)expert * n + r0]); v1 += bf(bias[(long long)expert * n + r0 + 8]); }
      if (MODE == 1) {
        // Comparisons, not fminf: a NaN must stay one.
        float g = v0 > limit ? limit : v0, up = v1 > limit ? limit : v1 < -limit ? -limit : v1;
        float h = (up + up_offset) * g / (1.f + __expf(-alpha * g));
        int f = strip * 32 + warp * 8 + (lane >> 2);
        u32 p = pack2(h, 0.f); out[(long long)slot * (n / 2) + f] = (u16)p;
      } else {
        if (MODE == 2) { float w = weights[slot]; v0 *= w; v1 *= w; }
        u32 p = pack2(v0, v1); out[(long long)slot * n + r0] = (u16)p; out[(long long)slot * n + r0 + 8] = (u16)(p >> 16);
      }
    }
  }
  }
}
