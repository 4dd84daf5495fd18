// The (m, l, O) of a set of tokens: running maximum, sum of exponentials, un-normalised output. Two of them combine
// into that of the union, associatively: with m = max(m1, m2), l = l1 2^(m1 - m) + l2 2^(m2 - m), and O alike. That is
// what lets a head be cut anywhere (LeanAttention, arXiv 2405.10480, section 3). Scores are in log2 units throughout.
#pragma once

#include <limits>

#include "ptx.cuh"

namespace leanattn {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The factor that re-scales l and O from maximum m to a maximum that is at least m. A state without a visible token has
// m = -inf and weight 0, whatever the other; -inf minus -inf must not become NaN. A NaN stays one.
__device__ __forceinline__ float rescale_factor(float m, float new_m) {
  return m == kMinusInfinity ? 0.f : ptx::exp2_approx(m - new_m);
}

// The state of one thread, over the rows and columns of its MMA accumulators.
template <int kThreadRows>
struct SoftmaxState {
  float m[kThreadRows];  // maximum over the whole row, the same in the four lanes that share it
  float l[kThreadRows];  // sum over this lane's tokens only, until finish()

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      m[r] = kMinusInfinity;
      l[r] = 0.f;
    }
  }

  // Turns the scores of a tile (log2 units, masked ones -inf) into weights, in place, and folds them into m and l.
  // `scores(r, c)` and `output(r, c)` are this thread's elements by row and column.
  template <typename Scores, typename Output>
  __device__ __forceinline__ void fold(Scores& scores, Output& output) {
    using namespace cute;
    float factor[kThreadRows];
    bool rescale = false;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      float tile_m = scores(r, 0);
#pragma unroll
      for (int c = 1; c < size<1>(scores); ++c) tile_m = fmaxf(tile_m, scores(r, c));
      tile_m = fmaxf(tile_m, __shfl_xor_sync(~0u, tile_m, 1));
      tile_m = fmaxf(tile_m, __shfl_xor_sync(~0u, tile_m, 2));
      const float new_m = fmaxf(m[r], tile_m);
      factor[r] = rescale_factor(m[r], new_m);
      rescale |= new_m > m[r];
      const float base = new_m == kMinusInfinity ? 0.f : new_m;
      float sum = 0.f;
#pragma unroll
      for (int c = 0; c < size<1>(scores); ++c) {
        scores(r, c) = ptx::exp2_approx(scores(r, c) - base);
        sum += scores(r, c);
      }
      m[r] = new_m;
      l[r] = l[r] * factor[r] + sum;
    }
    // A new maximum is rare after the first tiles; a quarter of the loop's instructions would multiply O by one.
    if (__any_sync(~0u, rescale)) {
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
        for (int c = 0; c < size<1>(output); ++c) output(r, c) *= factor[r];
      }
    }
  }

  // Completes l over the four lanes of a row.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      l[r] += __shfl_xor_sync(~0u, l[r], 1);
      l[r] += __shfl_xor_sync(~0u, l[r], 2);
    }
  }
};

}  // namespace leanattn
