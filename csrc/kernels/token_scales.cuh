// Stage 2, of an int8 cache: its elements are multiplied with a factor of their token and KV head. That of a key can be
// multiplied with the score instead, that of a value with the token's weight.
//
// The weights go to the MMA as float16, and a weight times such a factor may be anything, in neighbouring tokens too.
// So each row of O has a unit, a power of two, that its weights are divided by. It follows the largest weight as the
// softmax's m follows the largest score (softmax_state.cuh): what is too small for a float16 then is nothing beside the
// weight that set the unit, which is in the same sum. So all float32 factors will do whose products with a weight, at
// most 2^8, and with the values are float32 as well.
#pragma once

#include <cute/tensor.hpp>

#include "packed_powers.cuh"
#include "ptx.cuh"

namespace leanattn {

// Of a stage of the ring, 0 beyond the sequence.
template <typename Traits>
struct TileScales {
  float* ring;  // [stage, token warp, K|V, kWarpTokens], in shared memory
  int stage;

  // Of the tokens of a warp, [kWarpTokens]. Not by the same formula: the compiler would keep what is common to both
  // from the one to the other, and of registers 16 rows of head_dim 128 have none left.
  __device__ __forceinline__ float* keys(int warp) const {
    constexpr int kStageWarps = Traits::kHeads * Traits::kTokenWarps;
    return ring + (stage * kStageWarps + warp / Traits::kColumnWarps) * 2 * Traits::kWarpTokens;
  }
  __device__ __forceinline__ float* values(int warp) const {
    return ring + stage * Traits::kStageScales + (warp / Traits::kColumnWarps * 2 + 1) * Traits::kWarpTokens;
  }
};

// `scores(r, t)`: this lane's scores of the rows and tokens that `Loop` says.
template <typename Loop, typename Traits, typename Scores>
__device__ __forceinline__ void scale_scores(const TileScales<Traits>& scales, Scores& scores) {
  const int thread = ptx::thread_index_here(), lane = thread % 32;
  const float* keys = scales.keys(static_cast<uint32_t>(thread) / 32);
#pragma unroll
  for (int t = 0; t < decltype(cute::size<1>(scores))::value; ++t) {
    const float scale = keys[Loop::place(lane, t)];
#pragma unroll
    for (int r = 0; r < Loop::kThreadRows; ++r) scores(r, t) *= scale;
  }
}

// The units of O of one thread's rows.
template <int kThreadRows>
class ValueUnits {
  // A weight is less than 2^8 units: far from the largest float16.
  static constexpr float kSlack = 256;

  PackedPowers<kThreadRows> inverse_;  // 1 / unit; the same in all lanes that share the row

 public:
  // The smallest unit whose inverse, and that of it, are normal numbers, 2^-126: the first weight raises it.
  __device__ __forceinline__ void clear() { inverse_.set_all(253); }

  // Turns the weights of a tile into those of the cache's integers, in units. `weights(r, t)` and `output(r, c)` are
  // this thread's elements by row and by token or column.
  template <typename Loop, typename Traits, typename Weights, typename Output>
  __device__ __forceinline__ void scale_weights(const TileScales<Traits>& scales, Weights& weights, Output& output) {
    using namespace cute;
    const int thread = ptx::thread_index_here(), lane = thread % 32;
    const float* values = scales.values(static_cast<uint32_t>(thread) / 32);
    bool higher = false;
#pragma unroll
    for (int t = 0; t < size<1>(weights); ++t) {
      const float scale = values[Loop::place(lane, t)];
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
        weights(r, t) *= scale;
        higher |= fabsf(weights(r, t)) * inverse_[r] >= kSlack;
      }
    }
    if (__any_sync(~0u, higher)) raise(weights, output);
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
      for (int t = 0; t < size<1>(weights); ++t) weights(r, t) *= inverse_[r];
    }
  }

  // O is itself again.
  template <typename Output>
  __device__ __forceinline__ void finish(Output& output) const {
    using namespace cute;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const float unit = power_of_two(254 - inverse_.exponent(r));
#pragma unroll
      for (int c = 0; c < size<1>(output); ++c) output(r, c) *= unit;
    }
  }

 private:
  template <typename Weights, typename Output>
  __device__ __forceinline__ void raise(const Weights& weights, Output& output) {
    using namespace cute;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      float most = 0;
#pragma unroll
      for (int t = 0; t < size<1>(weights); ++t) most = fmaxf(most, fabsf(weights(r, t)));
#pragma unroll
      for (int step = 4; step < 32; step *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
      // The largest becomes 1 to 2 units. (Infinity, and 2^127, leave the largest unit that there is.)
      const int wanted = max(254 - int(__float_as_uint(most) >> 23), 1), old = int(inverse_.exponent(r));
      const int steps = max(old - wanted, 0);
      inverse_.lower(r, steps);
      const float factor = power_of_two(max(127 - steps, 0));  // what is below 2^-126 leaves nothing
#pragma unroll
      for (int c = 0; c < size<1>(output); ++c) output(r, c) *= factor;
    }
  }
};

}  // namespace leanattn
