// SIMD policy for AVX-512 (F, BW, DQ, VL). What a policy is: simd_portable.h.
#pragma once

#include <immintrin.h>

#include "tile_kernels.h"

namespace leanattn::cpu {

struct Avx512 {
  using Vec = __m512;
  static constexpr int32_t kLanes = 16;
  // Of 32 registers, 16 hold sums (4 rows x 4 tokens, 4 rows x 4 vectors of O), the others operands.
  static constexpr int32_t kScoreRows = 4;
  static constexpr int32_t kValueRows = 4;
  static constexpr int32_t kValueVectors = 4;

  static Vec set1(float x) { return _mm512_set1_ps(x); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static Vec round(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Vec times_power_of_two(Vec x, Vec n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return x * _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
  }
  static float first(Vec x) { return _mm512_cvtss_f32(x); }
  static float max_of_lanes(Vec x) { return _mm512_reduce_max_ps(x); }
  static float sum_of_lanes(Vec x) { return _mm512_reduce_add_ps(x); }

  static void store_sums(float* p, const Vec (&x)[4]) {
    const Vec ab = _mm512_unpacklo_ps(x[0], x[1]) + _mm512_unpackhi_ps(x[0], x[1]);
    const Vec cd = _mm512_unpacklo_ps(x[2], x[3]) + _mm512_unpackhi_ps(x[2], x[3]);
    const Vec abcd = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
    const __m256 half = _mm512_castps512_ps256(abcd) + _mm512_extractf32x8_ps(abcd, 1);
    _mm_storeu_ps(p, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
  }

  struct Whole {};
  struct Half {};  // 8 elements; the other lanes are 0

  static Vec load(const float* p, Whole = {}) { return _mm512_loadu_ps(p); }
  static Vec load(const Float16* p, Whole) { return _mm512_cvtph_ps(load256(p)); }
  static Vec load(const BFloat16* p, Whole) { return widened(_mm512_castsi256_si512(load256(p))); }
  static Vec load(const float* p, Half) { return _mm512_zextps256_ps512(_mm256_loadu_ps(p)); }
  static Vec load(const Float16* p, Half) { return _mm512_cvtph_ps(_mm256_zextsi128_si256(load128(p))); }
  static Vec load(const BFloat16* p, Half) { return widened(_mm512_zextsi128_si512(load128(p))); }

  static Vec load(const Float8E5M2* p, Whole) { return _mm512_cvtph_ps(high_bytes(load128(p))); }
  static Vec load(const Float8E5M2* p, Half) { return _mm512_cvtph_ps(high_bytes(load64(p))); }
  static Vec load(const Float8E4M3* p, Whole) { return widened_e4m3(high_bytes(load128(p))); }
  static Vec load(const Float8E4M3* p, Half) { return widened_e4m3(high_bytes(load64(p))); }

  static Vec load(const Int8* p, Whole) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load128(p))); }
  static Vec load(const Int8* p, Half) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load64(p))); }

  static void store(float* p, Vec x, Whole = {}) { _mm512_storeu_ps(p, x); }
  static void store(float* p, Vec x, Half) { _mm256_storeu_ps(p, _mm512_castps512_ps256(x)); }
  template <class T>
  static void store(T* p, Vec x, Whole) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(p, x));
  }
  template <class T>
  static void store(T* p, Vec x, Half) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(narrowed(p, x)));
  }

 private:
  static __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

  // The first 16 bfloat16 become the upper halves of floats: one shuffle.
  static Vec widened(__m512i bits) {
    const __m512i from = _mm512_setr_epi32(0, 1 << 16, 2 << 16, 3 << 16, 4 << 16, 5 << 16, 6 << 16, 7 << 16, 8 << 16,
                                           9 << 16, 10 << 16, 11 << 16, 12 << 16, 13 << 16, 14 << 16, 15 << 16);
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, from, bits));
  }
  static __m128i load64(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
  // Each byte as the upper one of 16 bits: of an E5M2, a half.
  static __m256i high_bytes(__m128i x) { return _mm256_slli_epi16(_mm256_cvtepu8_epi16(x), 8); }
  // Moved by a bit, an E4M3 is a half 2^-8 times as large; all bits set are NaN in both.
  static Vec widened_e4m3(__m256i x) {
    const __m256i most = _mm256_set1_epi16(0x7f00), magnitude = _mm256_and_si256(x, most);
    const __m256i sign = _mm256_and_si256(x, _mm256_set1_epi16(-0x8000));
    const __m256i half = _mm256_or_si256(_mm256_srli_epi16(magnitude, 1), sign);
    return _mm512_cvtph_ps(_mm256_or_si256(half, _mm256_cmpeq_epi16(magnitude, most))) * set1(256);
  }
  static __m256i narrowed(const Float16*, Vec x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
  static __m256i narrowed(const BFloat16*, Vec x) {  // to nearest even; NaN stays NaN
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i last_bit = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(last_bit, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, is_nan, quiet), 16));
  }
};

}  // namespace leanattn::cpu
