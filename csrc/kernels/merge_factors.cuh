// Stage 3, arithmetic of a merge: what each partial weighs.
#pragma once

#include "partials.cuh"
#include "softmax_state.cuh"

namespace leanattn {

// What partials weigh in the merge of one row, and the m and l of the result. Of the partials each thread of the row
// has one, or two where a row has only sixteen threads; what they weigh goes round by shuffles.
template <typename Traits>
struct MergeFactors {
  static constexpr int kRowThreads = Traits::kHeadDim / 4;               // a thread has four columns of a row
  static constexpr int kRowLanes = kRowThreads < 32 ? kRowThreads : 32;  // of a warp; several of a row do the same
  static constexpr int kMaxPartials = 32, kParts = kMaxPartials / kRowLanes;
  static_assert(MergeGroups::kMaxAtOnce <= kMaxPartials);
  static_assert(kMaxPartials * kMaxPartials >= tile_table::kMaxWorkers, "members of a group, and groups");

  float2 ml;
  float factor[kParts];

  // What they are made of: (m, l) of this thread's partials.
  struct Parts {
    float2 ml[kParts];

    __device__ __forceinline__ static Parts load(const PartialList<Traits>& list, int row, int thread_of_row) {
      Parts parts;
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        const int32_t n = thread_of_row % kRowLanes + p * kRowLanes;
        const float* ml = list.at(n) + row * Partial<Traits>::kRow + Traits::kHeadDim;
        parts.ml[p] = n < list.count ? ptx::load_relaxed(reinterpret_cast<const float2*>(ml)) : float2{kNoMaximum, 0.f};
      }
      return parts;
    }
  };

  __device__ __forceinline__ static MergeFactors of(const Parts& parts) {
    MergeFactors result{{kNoMaximum, 0.f}, {}};
#pragma unroll
    for (int p = 0; p < kParts; ++p) result.ml.x = fmaxf(result.ml.x, parts.ml[p].x);
#pragma unroll
    for (int step = 1; step < kRowLanes; step *= 2) {
      result.ml.x = fmaxf(result.ml.x, __shfl_xor_sync(~0u, result.ml.x, step));
    }
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      result.factor[p] = rescale_factor(parts.ml[p].x, result.ml.x);
      result.ml.y += parts.ml[p].y * result.factor[p];
    }
#pragma unroll
    for (int step = 1; step < kRowLanes; step *= 2) result.ml.y += __shfl_xor_sync(~0u, result.ml.y, step);
    return result;
  }
  // Of the list's n-th partial.
  __device__ __forceinline__ float operator[](int32_t n) const {
    float result = __shfl_sync(~0u, factor[0], n % kRowLanes, kRowLanes);
    if constexpr (kParts == 2) {
      const float second = __shfl_sync(~0u, factor[1], n % kRowLanes, kRowLanes);
      if (n >= kRowLanes) result = second;
    }
    return result;
  }
};

}  // namespace leanattn
