// Instructions that CUDA C++ has no name for, and how codes become bfloat16. Every kernel of this folder begins with this text.
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;
typedef unsigned short u16;
#define DEV __device__ __forceinline__
struct alignas(8) Two { u32 x, y; };
struct alignas(16) Four { u32 x, y, z, w; };

DEV u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

DEV void barrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals));
}
DEV void barrier_arrive(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory"); }
DEV void barrier_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}
DEV void barrier_wait(u32 barrier, u32 parity) {
  asm volatile("{\n.reg .pred p;\nAGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}"
    :: "r"(barrier), "r"(parity) : "memory");
}
DEV void copy_in(u32 to, const void* from, u32 bytes, u32 barrier) {   // one bulk copy; sizes and addresses are multiples of 16
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
    :: "r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
DEV void copy_out(void* to, u32 from, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" :: "l"(to), "r"(from), "r"(bytes) : "memory");
}

// Programmatic dependent launch. A kernel that overlaps waits before it reads what the previous one wrote. That one has waited before it let
// this one start, so what the kernels before it wrote has arrived without a wait. What an earlier kernel of a call wrote must not be read
// through __restrict__: such loads may move before the wait.
DEV void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEV void allow_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

DEV void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEV void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEV void cluster_sync() { cluster_arrive(); cluster_wait(); }
DEV u32 in_block(u32 address, u32 rank) {   // the same place in the shared memory of another block of the cluster
  u32 there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

DEV float widened(u16 v) { return __uint_as_float((u32)v << 16); }
DEV u32 pack2(float low, float high) {
  u32 d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
DEV u32 mul2(u32 a, u32 b) {
  u32 d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
// Both halves of a by one half of b, which the instruction itself selects.
DEV u32 mul2_low(u32 a, u32 b) {
  u32 d;
  asm("{\n.reg .b16 l, h;\n.reg .b32 f;\nmov.b32 {l, h}, %2;\nmov.b32 f, {l, l};\nmul.rn.bf16x2 %0, %1, f;\n}" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
DEV u32 mul2_high(u32 a, u32 b) {
  u32 d;
  asm("{\n.reg .b16 l, h;\n.reg .b32 f;\nmov.b32 {l, h}, %2;\nmov.b32 f, {h, h};\nmul.rn.bf16x2 %0, %1, f;\n}" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

#ifdef SMALL
// Eight codes to four pairs of bfloat16: sign to bit 15, the three bits of the magnitude to 8:6. A code then reads as its value times 2^-126,
// exactly, subnormals included; the factor of the scale makes up for it. Pairs: row r, row r + 8, and both again 8 columns further; where their
// bits come from is in layout.py. SMALL is 1 if every scale byte is at most 128; else weights are multiplied twice.
// Rows r are multiplied by the low half of factors, rows r + 8 by the high one.
DEV void widen(u32 word, u32* a, u32 factors) {
  const u32 fields = 0x81c081c0u;
  u32 p0 = word & fields, p1 = (word << 4) & fields, p2 = __funnelshift_r(word, word, 6) & fields;
  u32 p3 = ((word << 6) & 0x80c080c0u) | ((word >> 2) & 0x01000100u);
  if (!SMALL) { const u32 up = 0x7e807e80u; p0 = mul2(p0, up); p1 = mul2(p1, up); p2 = mul2(p2, up); p3 = mul2(p3, up); }
  a[0] = mul2_low(p0, factors); a[1] = mul2_high(p1, factors); a[2] = mul2_low(p2, factors); a[3] = mul2_high(p3, factors);
}
// The factors of the scale bytes 0 and 2 of s, in the halves of a word: 2^(b - 1) if all bytes are small, else 2^(b - 127) after widen has
// multiplied by 2^126.
DEV u32 factor_of(u32 b) { return b == 255 ? 0x7fc0u : (b == 0 ? 0x0040u : b << 7); }
DEV u32 factors_of(u32 s) {
  if (!SMALL) return factor_of(s & 0xff) | factor_of(s >> 16 & 0xff) << 16;
  u32 d;   // asm, or the compiler makes three instructions of it
  asm("mad.lo.u32 %0, %1, 128, 0x3f003f00;" : "=r"(d) : "r"(s & 0x00ff00ffu));
  return d;
}

// Gate and up to the hidden value. Comparisons, not fminf: a NaN must stay one.
DEV float activate(float gate, float up, float alpha, float limit, float up_offset) {
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up < -limit ? -limit : up;
  return (up + up_offset) * __fdividef(gate, 1.f + __expf(-alpha * gate));
}
#endif
