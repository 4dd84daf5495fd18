// SIMD policy in GCC's and Clang's vector extensions: SSE2 on x86-64, NEON on ARM, and so on.
//
// A policy is a vector of kLanes floats, the arithmetic on it that the compiler does not offer as an operator, and
// loads and stores that convert from and to each element type. It also says how many sums fit its registers. head_dim
// is a multiple of 8: a policy with 16 lanes has loads and stores of width Half for the rest of a row.
#pragma once

#include "tile_kernels.h"

namespace leanattn::cpu {

struct Portable {
  typedef float Vec __attribute__((vector_size(16)));
  static constexpr int32_t kLanes = 4;
  // Of 16 registers, 8 hold sums (2 rows x 4 tokens, 4 rows x 2 vectors of O), the others operands.
  static constexpr int32_t kScoreRows = 2;     // query rows whose scores are summed up together
  static constexpr int32_t kValueRows = 4;     // query rows whose O is
  static constexpr int32_t kValueVectors = 2;  // and how many vectors of it

  static Vec set1(float x) { return Vec{x, x, x, x}; }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b if either is NaN
  static Vec round(Vec x) {                               // to nearest, |x| < 2^22
    const Vec shift = set1(12582912.0f);                  // 1.5 * 2^23: its last bit is worth 1
    return (x + shift) - shift;
  }
  static Vec times_power_of_two(Vec x, Vec n) {  // n whole, -127 (result 0) .. 127
    return x * (Vec)((__builtin_convertvector(n, Ints) + 127) << 23);
  }
  static float first(Vec x) { return x[0]; }
  static float max_of_lanes(Vec x) {
    const float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
  }
  static float sum_of_lanes(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static void store_sums(float* p, const Vec (&x)[4]) {  // p[i] = sum of the lanes of x[i]
    for (int32_t i = 0; i < 4; ++i) p[i] = sum_of_lanes(x[i]);
  }

  struct Whole {};

  static Vec load(const float* p, Whole = {}) {
    Vec x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static Vec load(const BFloat16* p, Whole) {
    return (Vec)__builtin_shufflevector(Halves{}, load_halves(p), 0, 8, 1, 9, 2, 10, 3, 11);
  }
  static Vec load(const Float16* p, Whole) {
    const Halves halves = load_halves(p);
    return widened<16, 13, 0x7c00>((Ints)__builtin_shufflevector(halves, Halves{}, 0, 8, 1, 9, 2, 10, 3, 11), 0x1p112f);
  }
  static Vec load(const Float8E4M3* p, Whole) { return widened<8, 20, 0x7f>(load_bytes(p), 0x1p120f); }
  static Vec load(const Float8E5M2* p, Whole) { return widened<8, 21, 0x7c>(load_bytes(p), 0x1p112f); }
  static Vec load(const Int8* p, Whole) { return __builtin_convertvector(load_bytes(p), Vec); }

  static void store(float* p, Vec x, Whole = {}) { __builtin_memcpy(p, &x, sizeof x); }
  template <class T>
  static void store(T* p, Vec x, Whole) {
    const Bits bits = narrowed(p, x);
    for (int32_t i = 0; i < kLanes; ++i) p[i].bits = static_cast<decltype(p[i].bits)>(bits[i]);
  }

 private:
  typedef int32_t Ints __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  typedef uint64_t Words __attribute__((vector_size(16)));
  typedef uint16_t Halves __attribute__((vector_size(16)));
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the shuffles put a half into the first bytes of a float");

  static Halves load_halves(const void* p) {  // four of them; the rest is 0
    uint64_t x;
    __builtin_memcpy(&x, p, sizeof x);
    return (Halves)Words{x, 0};
  }

  template <class T>
  static Ints load_bytes(const T* p) {
    return Ints{p[0].bits, p[1].bits, p[2].bits, p[3].bits};
  }
  // Floats of `bits` bits, whose exponents and mantissas, moved by `shift`, are floats `scale` times too small. Only
  // Inf and NaN, from `special` on, need more.
  template <int32_t bits, int32_t shift, int32_t special>
  static Vec widened(Ints x, float scale) {
    const Ints magnitude = x & ((1 << (bits - 1)) - 1), moved = magnitude << shift;
    const Ints finite = (Ints)((Vec)moved * scale);
    return (Vec)((magnitude < special ? finite : moved | 0x7f800000) | (x ^ magnitude) << (32 - bits));
  }

  static Bits narrowed(const BFloat16*, Vec x) {  // to nearest even; NaN stays NaN
    const Bits bits = (Bits)x;
    return (x == x ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000) >> 16;
  }
  static Bits narrowed(const Float8E4M3*, Vec x) { return narrowed_to_float8<20, 120, 0x7e>(x, 0x1p-6f, 0x1p14f); }
  static Bits narrowed(const Float8E5M2*, Vec x) { return narrowed_to_float8<21, 112, 0x7b>(x, 0x1p-14f, 0x1p7f); }
  // To nearest even, at most `largest`; NaN stays NaN. As below: numbers smaller than `normal` get their mantissa by
  // adding a float whose last bit is worth as much as theirs.
  template <int32_t shift, int32_t bias, uint32_t largest>
  static Bits narrowed_to_float8(Vec x, float normal, float shifting) {
    const Bits bits = (Bits)x, magnitude = bits & 0x7fffffff, zero = {};
    const Bits small = (Bits)((Vec)magnitude + shifting) - (Bits)set1(shifting);
    const Bits rounded =
        ((magnitude + ((1u << (shift - 1)) - 1) + ((magnitude >> shift) & 1)) >> shift) - (bias << (23 - shift));
    const Bits finite = (Vec)magnitude < normal ? small : (rounded > largest ? zero + largest : rounded);
    return (x == x ? finite : zero + 0x7f) | (bits >> 24 & 0x80);
  }
  // To nearest even. Below the smallest normal half, 2^-14, adding 0.5 shifts the mantissa to where a half has it;
  // above, the mantissa is rounded as an integer, and its carry moves into the exponent, up to Inf.
  static Bits narrowed(const Float16*, Vec x) {
    const Bits bits = (Bits)x, magnitude = bits & 0x7fffffff;
    const Bits small = (Bits)((Vec)magnitude + 0.5f) - 0x3f000000;
    const Bits normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
    const Bits too_large = x == x ? Bits{} + 0x7c00 : Bits{} + 0x7e00;
    const Bits half = magnitude < 0x38800000 ? small : magnitude < 0x47800000 ? normal : too_large;
    return half | (bits >> 16 & 0x8000);
  }
};

}  // namespace leanattn::cpu
