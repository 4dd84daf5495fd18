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
  // A half's exponent and mantissa, read as a float's, are its value times 2^-112; only Inf and NaN need more.
  static Vec load(const Float16* p, Whole) {
    const Ints bits = (Ints)__builtin_shufflevector(load_halves(p), Halves{}, 0, 8, 1, 9, 2, 10, 3, 11);
    const Ints magnitude = bits & 0x7fff;
    const Ints finite = (Ints)((Vec)(magnitude << 13) * 0x1p112f);
    return (Vec)((magnitude < 0x7c00 ? finite : magnitude << 13 | 0x7f800000) | (bits ^ magnitude) << 16);
  }

  static void store(float* p, Vec x, Whole = {}) { __builtin_memcpy(p, &x, sizeof x); }
  template <class T>
  static void store(T* p, Vec x, Whole) {
    const Bits bits = narrowed(p, x);
    for (int32_t i = 0; i < kLanes; ++i) p[i].bits = static_cast<uint16_t>(bits[i]);
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

  static Bits narrowed(const BFloat16*, Vec x) {  // to nearest even; NaN stays NaN
    const Bits bits = (Bits)x;
    return (x == x ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000) >> 16;
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
