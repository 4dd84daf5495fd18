// The (m, l, O) of a set of tokens: maximum, sum of exponentials, un-normalised output. Two of them combine into that
// of the union, associatively: with m = max(m1, m2), l = l1 2^(m1 - m) + l2 2^(m2 - m), and O alike. That is what lets
// a head be cut anywhere (LeanAttention, arXiv 2405.10480, section 3). Scores are in log2 units throughout.
//
// It stays true for any m that is not far below the largest score, which is all that m is for: that no exponential
// overflows. So the running m here follows the maximum only when a score is kSlack above it. Re-scaling, and the
// shuffles that find a maximum over the lanes of a warp, then happen in a span's first tile and hardly again.
#pragma once

#include <cute/tensor.hpp>
#include <limits>

#include "ptx.cuh"

namespace leanattn {

// m of a set without a token. Finite: the difference of two such m is 0 and not NaN, and that of any other m and this
// one still makes a factor of 0.
constexpr float kNoMaximum = -std::numeric_limits<float>::max();
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.4426950408889634f;

// The factor that re-scales l and O from maximum m to a maximum that is at least m.
__device__ __forceinline__ float rescale_factor(float m, float new_m) { return ptx::exp2_approx(m - new_m); }

// The state of one thread, over its query rows r of a warp's accumulators. The lanes that share the rows differ in the
// bits of a lane from kFirstBit on up to below kEndBit.
template <int kThreadRows, int kFirstBit, int kEndBit>
struct SoftmaxState {
  // A weight is at most 2^8 then: far from the largest float16, and l from the largest float32.
  static constexpr float kSlack = 8;

  float m[kThreadRows];  // the same in all lanes that share the row
  float l[kThreadRows];  // sum over this lane's tokens only, until finish()

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      m[r] = kNoMaximum;
      l[r] = 0.f;
    }
  }

  // Turns the scores of a tile (masked ones -inf) into weights, in place, and folds them into m and l. `scores(r, t)`
  // are this thread's, by row and token; `scale`, a positive number, makes log2 units of them. If m follows, the same
  // in all lanes of the warp, calls rescale(r, factor) for every row, what O is to be multiplied with, and returns
  // true.
  template <typename Scores, typename Rescale>
  __device__ __forceinline__ bool fold(Scores& scores, float scale, const Rescale& rescale) {
    using namespace cute;
    float highest[kThreadRows];
    bool higher = false;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      highest[r] = highest_score(scores, r) * scale;
      higher |= highest[r] > m[r] + kSlack;
    }
    higher = __any_sync(~0u, higher);
    if (higher) raise_maximum(highest, rescale);
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
      for (int t = 0; t < size<1>(scores); ++t) {
        scores(r, t) = ptx::exp2_approx(scores(r, t) * scale - m[r]);
        l[r] += scores(r, t);
      }
    }
    return higher;
  }

  // Completes l over the lanes of a row.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
      for (int step = kFirstBit; step < kEndBit; step *= 2) l[r] += __shfl_xor_sync(~0u, l[r], step);
    }
  }

 private:
  // Of this thread's. Two chains of maxima: one would be the longest wait of the softmax.
  template <typename Scores>
  __device__ __forceinline__ static float highest_score(const Scores& scores, int r) {
    constexpr int kTokens = decltype(cute::size<1>(scores))::value;
    static_assert(kTokens % 2 == 0);
    float even = scores(r, 0), odd = scores(r, 1);
#pragma unroll
    for (int t = 2; t < kTokens; t += 2) {
      even = fmaxf(even, scores(r, t));
      odd = fmaxf(odd, scores(r, t + 1));
    }
    return fmaxf(even, odd);
  }
  template <typename Rescale>
  __device__ __forceinline__ void raise_maximum(const float (&highest)[kThreadRows], const Rescale& rescale) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      float new_m = fmaxf(m[r], highest[r]);
#pragma unroll
      for (int step = kFirstBit; step < kEndBit; step *= 2) new_m = fmaxf(new_m, __shfl_xor_sync(~0u, new_m, step));
      const float factor = rescale_factor(m[r], new_m);
      m[r] = new_m;
      l[r] *= factor;
      rescale(r, factor);
    }
  }
};

}  // namespace leanattn
