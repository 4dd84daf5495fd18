// SIMD policy for AVX2 with FMA and F16C. What a policy is: simd_portable.h.
#pragma once

#include <immintrin.h>

#include "tile_kernels.h"

namespace leanattn::cpu {

struct Avx2 {
  using Vec = __m256;
  static constexpr int32_t kLanes = 8;
  // Of 16 registers, 8 hold sums (2 rows x 4 tokens, 4 rows x 2 vectors of O), the others operands.
  static constexpr int32_t kScoreRows = 2;
  static constexpr int32_t kValueRows = 4;
  static constexpr int32_t kValueVectors = 2;

  static Vec set1(float x) { return _mm256_set1_ps(x); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static Vec round(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Vec times_power_of_two(Vec x, Vec n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return x * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static float first(Vec x) { return _mm256_cvtss_f32(x); }
  static float max_of_lanes(Vec x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }
  static float sum_of_lanes(Vec x) {
    __m128 s = _mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1);
    s = s + _mm_movehl_ps(s, s);
    return _mm_cvtss_f32(s + _mm_movehdup_ps(s));
  }

  static void store_sums(float* p, const Vec (&x)[4]) {
    const Vec sums = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    _mm_storeu_ps(p, _mm256_castps256_ps128(sums) + _mm256_extractf128_ps(sums, 1));
  }

  struct Whole {};

  static Vec load(const float* p, Whole = {}) { return _mm256_loadu_ps(p); }
  static Vec load(const Float16* p, Whole) { return _mm256_cvtph_ps(load128(p)); }
  // The bfloat16 become the upper halves of floats: one shuffle (-1 makes a zero byte).
  static Vec load(const BFloat16* p, Whole) {
    const __m256i from = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                          -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(p)), from));
  }

  static Vec load(const Float8E5M2* p, Whole) { return _mm256_cvtph_ps(load_high_bytes(p)); }  // the upper half of one
  // Moved by a bit, a half 2^-8 times as large; all bits set are NaN in both.
  static Vec load(const Float8E4M3* p, Whole) {
    const __m128i x = load_high_bytes(p), magnitude = _mm_and_si128(x, _mm_set1_epi16(0x7f00));
    const __m128i is_nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f00));
    const __m128i sign = _mm_and_si128(x, _mm_set1_epi16(-0x8000));
    const __m128i half = _mm_or_si128(_mm_or_si128(_mm_srli_epi16(magnitude, 1), sign), is_nan);
    return _mm256_cvtph_ps(half) * set1(256);
  }

  static Vec load(const Int8* p, Whole) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }

  static void store(float* p, Vec x, Whole = {}) { _mm256_storeu_ps(p, x); }
  template <class T>
  static void store(T* p, Vec x, Whole) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrowed(p, x));
  }

 private:
  static __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

  static __m128i load_high_bytes(const void* p) {  // eight bytes, each the upper one of 16 bits
    return _mm_unpacklo_epi8(_mm_setzero_si128(), _mm_loadl_epi64(static_cast<const __m128i*>(p)));
  }

  static __m128i narrowed(const Float16*, Vec x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
  static __m128i narrowed(const BFloat16*, Vec x) {  // to nearest even; NaN stays NaN
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i last_bit = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(last_bit, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
};

}  // namespace leanattn::cpu
