// Stage 3, arithmetic: partials of an item become one, in token order, whoever merges them.
#pragma once

#include "partials.cuh"
#include "softmax_state.cuh"

namespace leanattn {

// What partials weigh in the merge of one row, and the m and l of the result. Of the partials each thread of the row
// has one, or two where a row has only sixteen threads; what they weigh goes round by shuffles.
template <typename Traits>
struct MergeFactors {
  static constexpr int kRowThreads = Traits::kHeadDim / 4;  // a thread has four columns of a row
  static constexpr int kMaxPartials = 32, kParts = kMaxPartials / kRowThreads;
  static_assert(MergeGroups::kMaxAtOnce <= kMaxPartials);
  static_assert(kMaxPartials * kMaxPartials >= tile_table::kMaxWorkers, "members of a group, and groups");

  float2 ml;
  float factor[kParts];

  // What they are made of: (m, l) of this thread's partials.
  struct Parts {
    float2 ml[kParts];

    template <typename List>
    __device__ __forceinline__ static Parts load(const List& list, int row, int thread_of_row) {
      Parts parts;
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        const int32_t n = thread_of_row + p * kRowThreads;
        const float* ml = list.at(n) + row * Partial<Traits>::kRow + Traits::kHeadDim;
        parts.ml[p] = n < list.count ? List::load(reinterpret_cast<const float2*>(ml)) : float2{kNoMaximum, 0.f};
      }
      return parts;
    }
  };

  __device__ __forceinline__ static MergeFactors of(const Parts& parts) {
    MergeFactors result{{kNoMaximum, 0.f}, {}};
#pragma unroll
    for (int p = 0; p < kParts; ++p) result.ml.x = fmaxf(result.ml.x, parts.ml[p].x);
#pragma unroll
    for (int step = 1; step < kRowThreads; step *= 2) {
      result.ml.x = fmaxf(result.ml.x, __shfl_xor_sync(~0u, result.ml.x, step));
    }
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      result.factor[p] = rescale_factor(parts.ml[p].x, result.ml.x);
      result.ml.y += parts.ml[p].y * result.factor[p];
    }
#pragma unroll
    for (int step = 1; step < kRowThreads; step *= 2) result.ml.y += __shfl_xor_sync(~0u, result.ml.y, step);
    return result;
  }
  // Of the list's n-th partial.
  __device__ __forceinline__ float operator[](int32_t n) const {
    float result = __shfl_sync(~0u, factor[0], n % kRowThreads, kRowThreads);
    if constexpr (kParts == 2) {
      const float second = __shfl_sync(~0u, factor[1], n % kRowThreads, kRowThreads);
      if (n >= kRowThreads) result = second;
    }
    return result;
  }
};

// A few rows at a time: more would take registers from the tile loop. One where that is enough for a group of four.
template <typename Traits>
struct MergePass {
  static constexpr int kRowStep = Traits::kComputeThreads / MergeFactors<Traits>::kRowThreads;
  static constexpr int kAllRows = Traits::kHeads * Traits::kRows;
  static constexpr int kThreadRows = kAllRows == 8 ? 1 : std::min(kAllRows / kRowStep, Traits::kRows <= 16 ? 4 : 2);
  static constexpr int kRows = kThreadRows * kRowStep;
  // Partials of fewer rows nearly always fit into the idle ring as they are, and small calls feel every instruction.
  static constexpr bool kInParts = Traits::kRows > 16;
};

// The sums of O over a list, in token order, of this thread's four columns of some rows.
template <typename Traits>
struct MergeSums {
  static constexpr int kThreadRows = MergePass<Traits>::kThreadRows;
  float4 sum[kThreadRows] = {};

  template <typename List>
  __device__ __forceinline__ void add(const List& list, const MergeFactors<Traits> (&factors)[kThreadRows],
                                      const int (&row)[kThreadRows], int column) {
    // Loads on their way. What lies in L2, since the ring is in use, are mostly two partials.
    constexpr int kAtOnce = kThreadRows == 1 && std::is_same_v<List, StagedPartials> ? 8 : 4;
#pragma unroll 1
    for (int32_t begin = 0; begin < list.count; begin += kAtOnce) {
      float4 o[kAtOnce][kThreadRows];
#pragma unroll
      for (int32_t n = 0; n < kAtOnce; ++n) {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
          const float* from = list.at(begin + n) + row[i] * Partial<Traits>::kRow + column;
          o[n][i] = begin + n < list.count ? List::load(reinterpret_cast<const float4*>(from)) : float4{};
        }
      }
#pragma unroll
      for (int32_t n = 0; n < kAtOnce; ++n) {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
          const float f = factors[i][begin + n];  // 0 after the last one
          const float4 part = o[n][i];
          sum[i] = {sum[i].x + part.x * f, sum[i].y + part.y * f, sum[i].z + part.z * f, sum[i].w + part.w * f};
        }
      }
    }
  }
};

// The merge: calls emit(row, column, O of four columns, (m, l) of the row) for every element of the item's rows. If
// `staged` is to hold any, stage() has them copied, O comes from there, and wait() makes sure that it is there; m and l
// of the first rows come from `list` meanwhile. O is summed in token order, l in an order that depends on the number of
// partials alone: whoever merges, and wherever from, gets the same bits. A row that the item does not have is a copy of
// its last one.
template <typename Traits, typename Stage, typename Wait, typename Emit>
__device__ __forceinline__ void merge_partials(const PartialList<Traits>& list, const StagedPartials& staged, int rows,
                                               const Stage& stage, const Wait& wait, const Emit& emit) {
  using Factors = MergeFactors<Traits>;
  using Pass = MergePass<Traits>;
  constexpr int kRowStep = Pass::kRowStep, kThreadRows = Pass::kThreadRows;
  const int thread = ptx::thread_index_here(), thread_of_row = thread % Factors::kRowThreads;
  const int column = thread_of_row * 4;
#pragma unroll 1
  for (int first_row = 0; first_row < rows; first_row += Pass::kRows) {
    Factors factors[kThreadRows];
    int row[kThreadRows];
    MergeSums<Traits> sums;
    typename Factors::Parts parts[kThreadRows];
    const bool from_staged = staged.count > 0 && first_row > 0;
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      row[i] = min(first_row + thread / Factors::kRowThreads + i * kRowStep, rows - 1);
      parts[i] = !from_staged ? Factors::Parts::load(list, row[i], thread_of_row)
                              : Factors::Parts::load(staged, row[i], thread_of_row);
    }
    if (first_row == 0) stage();
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) factors[i] = Factors::of(parts[i]);
    if (first_row == 0) wait();
    if (staged.count == 0) {
      sums.add(list, factors, row, column);
    } else {
      sums.add(staged, factors, row, column);
    }
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      const int r = first_row + thread / Factors::kRowThreads + i * kRowStep;
      if (r < rows) emit(r, column, sums.sum[i], factors[i].ml);
    }
  }
}

}  // namespace leanattn
