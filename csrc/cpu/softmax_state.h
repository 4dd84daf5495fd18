// The state of an online softmax, (m, l, O): maximum, sum of exponentials, un-normalised output; and its operator.
// Scores and m are in log2 units, so every exponential is an exp2. The operator is associative, which is what lets an
// item be cut anywhere (LeanAttention, arXiv 2405.10480, section 4; the online softmax is Milakov and Gimelshein's,
// arXiv 1805.02867). The tile loop and the reduction both use it.
#pragma once

#include "tile_kernels.h"

namespace leanattn::cpu {

constexpr float kMinusInfinity = -__builtin_inff();
constexpr float kLog2E = 1.44269504f;

// 2^x for x <= 127, at most 1 ulp off, exactly 1 at 0; results below 2^-126 become 0, NaN stays NaN.
// 2^x = 2^n * 2^f with n = round(x); the polynomial is the minimax one of degree 6 for 2^f, |f| <= 0.5 (relative
// error 2e-9, so that rounding dominates; degree 5 would not give exactly 1 at 0, which an unchanged maximum needs).
template <class Simd>
typename Simd::Vec exp2(typename Simd::Vec x) {
  x = Simd::max(Simd::set1(-127.0f), x);  // in this order a NaN passes
  const auto n = Simd::round(x);
  const auto f = x - n;
  auto p = Simd::set1(1.53458124e-4f);
  p = Simd::fma(p, f, Simd::set1(1.33999309e-3f));
  p = Simd::fma(p, f, Simd::set1(9.61848907e-3f));
  p = Simd::fma(p, f, Simd::set1(5.55032864e-2f));
  p = Simd::fma(p, f, Simd::set1(0.240226462f));
  p = Simd::fma(p, f, Simd::set1(0.693147182f));
  p = Simd::fma(p, f, Simd::set1(1.0f));
  return Simd::times_power_of_two(p, n);
}

// At most 4 ulp off. Near 0, where 1 - 2 / (1 + e^2x) would lose digits, its continued fraction x / (1 + x^2 / (3 + x^2
// / (5 + ...))), down to the 9.
template <class Simd>
typename Simd::Vec tanh(typename Simd::Vec x) {
  const auto one = Simd::set1(1.0f);
  const auto most = Simd::set1(126.0f);  // of the exponent; from 45 on the result is 1 anyway
  const auto exponent = x * Simd::set1(2 * kLog2E), bounded = exponent > most ? most : exponent;
  const auto far = one - Simd::set1(2.0f) / (one + exp2<Simd>(bounded));
  const auto square = x * x;
  const auto above = Simd::fma(square, square + Simd::set1(105.0f), Simd::set1(945.0f));
  const auto below = Simd::fma(square, Simd::set1(15.0f) * square + Simd::set1(420.0f), Simd::set1(945.0f));
  return square < Simd::set1(0.4f) ? x * above / below : far;
}

// m and l of one query row.
template <class Simd>
struct RowState {
  float m;
  double l;  // one addition a tile: in float32 its error would be most of the error of a long context

  static RowState empty() { return {kMinusInfinity, 0.0}; }

  // What exponents are taken relative to: m, but 0 while every score was -inf, because -inf - -inf is NaN.
  float reference() const { return m == kMinusInfinity ? 0.0f : m; }

  // Takes in the maximum of more scores. Returns the factor by which O must shrink, as l already has.
  float raise_max(float other) {
    const float old = m;
    m = other > m ? other : m;
    const float factor = Simd::first(exp2<Simd>(Simd::set1(old - reference())));
    l *= factor;
    return factor;
  }
};

// into = into + from, row by row.
template <class Simd>
void merge(const SoftmaxRows& into, const SoftmaxRows& from, int32_t rows, int32_t v_head_dim) {
  for (int32_t r = 0; r < rows; ++r) {
    const float* from_ml = from.ml + 2 * r;
    RowState<Simd> state{into.ml[2 * r], into.ml[2 * r + 1]};
    const float shrink = state.raise_max(from_ml[0]);
    const float factor = Simd::first(exp2<Simd>(Simd::set1(from_ml[0] - state.reference())));
    into.ml[2 * r] = state.m;
    into.ml[2 * r + 1] = static_cast<float>(state.l + factor * from_ml[1]);

    float* out = into.out + int64_t{r} * v_head_dim;             // [v_head_dim]
    const float* from_out = from.out + int64_t{r} * v_head_dim;  // [v_head_dim]
    for (int32_t d = 0; d < v_head_dim; ++d) out[d] = out[d] * shrink + from_out[d] * factor;
  }
}

}  // namespace leanattn::cpu
