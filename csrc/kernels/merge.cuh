// Stage 3, how: partials of an item become one, in token order, whoever merges them.
#pragma once

#include <algorithm>

#include "copy.cuh"
#include "merge_factors.cuh"

namespace leanattn {

// Shared memory for copies of partials.
struct Staging {
  float* memory;
  int32_t floats;  // 0 while the ring is in use
};

// One pass: kThreadRows rows of each thread, four columns of each. A thread copies to shared memory just what it sums
// itself, so that all of it is on the way at once and no thread waits for another.
template <typename Traits, int kThreadRows>
class MergePass {
  using Factors = MergeFactors<Traits>;
  using List = PartialList<Traits>;
  static constexpr int kRowFloats = Traits::kComputeThreads * 4;
  static constexpr int kPartialFloats = kThreadRows * kRowFloats;
  // Loads on their way, as registers allow.
  static constexpr int kCopiesAtOnce = kThreadRows <= 2 ? 8 : 4, kPartialsAtOnce = kThreadRows <= 2 ? 4 : 2;

 public:
  static constexpr int kRowStep = kMergeStepRows<Traits>;
  static constexpr int kRows = kThreadRows * kRowStep;

  __device__ __forceinline__ static bool fits(const List& list, const Staging& staging) {
    return list.count * kPartialFloats <= staging.floats;
  }

  // A row that the item does not have is a copy of its last one.
  __device__ __forceinline__ MergePass(const List& list, const Staging& staging, int first_row, int rows)
      : list_(list), staged_(fits(list, staging)) {
    const int thread = ptx::thread_index_here();
    copies_ = staging.memory + thread * 4;
    thread_of_row_ = thread % Factors::kRowThreads;
    column_ = thread_of_row_ * 4;
    first_row_ = first_row + thread / Factors::kRowThreads;
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) row_[i] = min(first_row_ + i * kRowStep, rows - 1);
  }

  // Calls emit(row, column, O of four columns, (m, l) of the row).
  template <typename Emit>
  __device__ __forceinline__ void run(int rows, const Emit& emit) {
    ask_for_ml();
    if (staged_) copy_all();
    for (uint32_t missing = find_missing(); missing != 0; missing = find_missing()) {
      ask_for_ml();
      if (!staged_) continue;
      wait_for_copies();  // what is on the way must not land after the new copies
      copy(missing);
    }
    Factors factors[kThreadRows];
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) factors[i] = Factors::of(parts_[i]);
    float4 sums[kThreadRows];
    if (!sum_copies(factors, sums)) sum_partials(factors, sums);
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      const int row = first_row_ + i * kRowStep;
      if (row < rows) emit(row, column_, sums[i], factors[i].ml);
    }
  }

 private:
  __device__ __forceinline__ const float* place(int32_t n, int i) const {
    return list_.at(n) + row_[i] * Partial<Traits>::kRow + column_;
  }
  __device__ __forceinline__ float* copy_of(int32_t n, int i) const {
    return copies_ + n * kPartialFloats + i * kRowFloats;
  }

  __device__ __forceinline__ void ask_for_ml() {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) parts_[i] = Factors::Parts::load(list_, row_[i], thread_of_row_);
  }
  // Bit n: m or l of the n-th partial, in a row of this warp, is not there yet.
  __device__ __forceinline__ uint32_t find_missing() const {
    uint32_t result = 0;
#pragma unroll
    for (int p = 0; p < Factors::kParts; ++p) {
      bool there = true;
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) there = there & is_written(parts_[i].ml[p]);
      uint32_t lanes = __ballot_sync(~0u, !there);
      if constexpr (Factors::kParts == 2) lanes = (lanes | lanes >> 16) & 0xFFFFu;  // two rows in a warp
      result |= lanes << (p * Factors::kRowLanes % 32);
    }
    return result;
  }

  __device__ __forceinline__ void copy_all() const {
    const float* from[kThreadRows];
    float* to = copies_;
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      from[i] = list_.first + row_[i] * Partial<Traits>::kRow + column_;
      copy_16_bytes(to + i * kRowFloats, from[i]);
      from[i] += list_.to_second;
    }
#pragma unroll 4
    for (int32_t n = 1; n < list_.count; ++n) {
      to += kPartialFloats;
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        copy_16_bytes(to + i * kRowFloats, from[i]);
        from[i] += list_.stride;
      }
    }
  }
  __device__ __forceinline__ void copy(uint32_t which) const {
#pragma unroll 1
    for (; which != 0; which &= which - 1) {
      const int n = __ffs(int(which)) - 1;
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) copy_16_bytes(copy_of(n, i), place(n, i));
    }
  }

  // In token order. kAwait: what is not written yet is loaded again until it is.
  template <int kAtOnce, bool kAwait, typename Load>
  __device__ __forceinline__ void sum(const Factors (&factors)[kThreadRows], float4 (&sums)[kThreadRows],
                                      const Load& load) const {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) sums[i] = {};
#pragma unroll 1
    for (int32_t begin = 0; begin < list_.count; begin += kAtOnce) {
      float4 o[kAtOnce][kThreadRows];
#pragma unroll
      for (int32_t n = 0; n < kAtOnce; ++n) {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) o[n][i] = begin + n < list_.count ? load(begin + n, i) : float4{};
      }
#pragma unroll
      for (int32_t n = 0; n < kAtOnce; ++n) {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
          while (kAwait && !is_written(o[n][i])) o[n][i] = load(begin + n, i);
        }
      }
#pragma unroll
      for (int32_t n = 0; n < kAtOnce; ++n) {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
          const float f = factors[i][begin + n];  // after the last one o is 0
          const float4 part = o[n][i];
          sums[i] = {sums[i].x + part.x * f, sums[i].y + part.y * f, sums[i].z + part.z * f, sums[i].w + part.w * f};
        }
      }
    }
  }
  // False if there are no copies, or something was copied before it was written: that is NaN, and so is its sum.
  __device__ __forceinline__ bool sum_copies(const Factors (&factors)[kThreadRows], float4 (&sums)[kThreadRows]) const {
    if (!staged_) return false;
    wait_for_copies();
    sum<kCopiesAtOnce, false>(factors, sums, [&](int32_t n, int i) {
      return ptx::load_shared(reinterpret_cast<const float4*>(copy_of(n, i)));
    });
    bool complete = true;
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) complete = complete & !has_nan(sums[i]);
    return __all_sync(~0u, complete);
  }
  // From L2.
  __device__ __forceinline__ void sum_partials(const Factors (&factors)[kThreadRows],
                                               float4 (&sums)[kThreadRows]) const {
    sum<kPartialsAtOnce, true>(factors, sums, [&](int32_t n, int i) {
      return ptx::load_relaxed(reinterpret_cast<const float4*>(place(n, i)));
    });
  }

  const List& list_;
  // Whether there are copies is a flag, and not a null pointer: for `p = null; if (fits) p = ...; if (p)` ptxas 13.0
  // gives CS2R, a predicated IMAD.WIDE and ISETP, and ISETP may read what was in the registers before CS2R
  // (docs/tuning.md).
  const bool staged_;
  float* copies_;  // this thread's, [partial, row, compute thread, 4]; if staged_
  int thread_of_row_, column_, first_row_;
  int row_[kThreadRows];
  typename Factors::Parts parts_[kThreadRows];
};

// The merge: calls emit(row, column, O of four columns, (m, l) of the row) for every element of the item's rows from
// `first_row` on, ahead of `rows`. O is summed in token order, l in an order that depends on the number of partials
// alone: whoever merges, and wherever from, gets the same bits. A pass of one row a thread takes what the wider ones
// leave: they would copy the last row again and again.
template <typename Traits, typename Emit>
__device__ __forceinline__ void merge_partials(const PartialList<Traits>& list, const Staging& staging, int first_row,
                                               int rows, const Emit& emit) {
  using OneRow = MergePass<Traits, 1>;
  constexpr int kSteps = Traits::kHeads * Traits::kRows / OneRow::kRowStep;
  constexpr int kMost = std::min(kSteps, Traits::kRows <= 16 ? 4 : 2);  // 32 query rows leave no registers for more
  using FewRows = MergePass<Traits, 2>;
  using ManyRows = MergePass<Traits, kMost>;
#pragma unroll 1
  while (rows - first_row > OneRow::kRows) {
    if constexpr (kMost > 2) {
      if (staging.floats > 0 && !ManyRows::fits(list, staging)) {  // many partials
        FewRows(list, staging, first_row, rows).run(rows, emit);
        first_row += FewRows::kRows;
        continue;
      }
    }
    ManyRows(list, staging, first_row, rows).run(rows, emit);
    first_row += ManyRows::kRows;
  }
  if (first_row < rows) OneRow(list, staging, first_row, rows).run(rows, emit);
}

}  // namespace leanattn
