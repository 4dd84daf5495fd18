// Stage 3: the host-block reduction. Every span of a cut item leaves a partial (m, l, O) in the workspace and takes a
// ticket. Whoever takes the last ticket is the host block: all partials are there, and it merges them in token order.
// Nobody waits for another CTA, so it needs neither co-residency nor flags to clear; the ticket wraps to zero by
// itself. An item of many partials is merged in two levels, each with its own tickets: groups of neighbours first, then
// the groups (MergeGroups). The order of the sums is that of the tokens and not of arrival: the same bits on every run.
#pragma once

#include "debug_delay.cuh"
#include "output.cuh"
#include "ptx.cuh"
#include "softmax_state.cuh"
#include "traits.cuh"

namespace leanattn {

// A partial in the workspace, [heads x block_rows, head_dim + kPartialRowExtra]: rows of O, each followed by its m and
// l.
template <typename Traits>
struct Partial {
  static constexpr int kRow = Traits::kHeadDim + kPartialRowExtra;
  float* memory;

  __device__ __forceinline__ static Partial at(const DecodeParams& p, int32_t slot) {
    return {p.workspace.partials + int64_t{slot * p.team_size + member_here()} * p.partial_floats};
  }
  __device__ __forceinline__ float4& o(int row, int column) const {
    return *reinterpret_cast<float4*>(memory + row * kRow + column);
  }
  __device__ __forceinline__ float2& ml(int row) const {
    return *reinterpret_cast<float2*>(memory + row * kRow + Traits::kHeadDim);
  }
  __device__ __forceinline__ void store(int row, int column, float4 value, float2 row_ml) const {
    o(row, column) = value;
    if (column == 0) ml(row) = row_ml;
  }
};

// A barrier of all threads that compute. Numbers from 1 on are those of single heads (warp_merge.cuh).
template <typename Traits>
__device__ __forceinline__ void compute_barrier() {
  ptx::named_barrier_sync<Traits::kComputeThreads>(1 + Traits::kHeads);
}

// True in exactly one of the `count` CTAs that take the ticket: the last one. All threads that compute call it.
template <typename Traits>
__device__ __forceinline__ bool arrives_last(const DecodeParams& p, int32_t ticket, int32_t count,
                                             typename Traits::SharedMemory& smem) {
  compute_barrier<Traits>();  // the whole partial is written before the ticket is taken
  if (threadIdx.x == 0) {
    smem.ticket =
        ptx::atomic_inc_acq_rel(p.workspace.tickets + ticket * p.team_size + member_here(), uint32_t(count - 1));
  }
  compute_barrier<Traits>();
  return smem.ticket == uint32_t(count - 1);
}

// The partials of an item that are merged together, in token order. All but the first lie evenly.
template <typename Traits>
struct PartialList {
  float* first;       // [heads x block_rows, Partial::kRow]
  int32_t to_second;  // from the first to the next one, in floats
  int32_t stride;     // from the second to the third, and so on
  int32_t count;

  // `count` neighbours from number `begin` of the item on.
  __device__ __forceinline__ static PartialList of(const DecodeParams& p, const CutItem& cut, int32_t begin,
                                                   int32_t count) {
    const int32_t slot = cut.slot(begin), floats = floats_of_slot(p);
    return {Partial<Traits>::at(p, slot).memory, (cut.slot(begin + 1) - slot) * floats, 2 * floats, count};
  }
  // The results of all groups of an item.
  __device__ __forceinline__ static PartialList of_groups(const DecodeParams& p, const CutItem& cut,
                                                          const MergeGroups& groups) {
    const int32_t slot = group_slot(p.teams, cut.first_worker, 0), floats = floats_of_slot(p);
    return {Partial<Traits>::at(p, slot).memory, floats, floats, groups.count};
  }
  // A slot has a partial of every member of a team.
  __device__ __forceinline__ static int32_t floats_of_slot(const DecodeParams& p) {
    return p.team_size * p.partial_floats;
  }
  // The same partials without their first rows.
  __device__ __forceinline__ PartialList from_row(int32_t row) const {
    return {first + row * Partial<Traits>::kRow, to_second, stride, count};
  }
  // From the first partial to the i-th, in floats.
  __device__ __forceinline__ int32_t offset(int32_t i) const { return i == 0 ? 0 : to_second + (i - 1) * stride; }
};

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

  // `row`: the row in the list's first partial.
  __device__ __forceinline__ static MergeFactors of(const PartialList<Traits>& list, const float* row,
                                                    int thread_of_row) {
    float2 part[kParts];
    MergeFactors result{{kNoMaximum, 0.f}, {}};
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const int32_t n = thread_of_row + p * kRowThreads;
      part[p] = {kNoMaximum, 0.f};
      if (n < list.count) part[p] = *reinterpret_cast<const float2*>(row + list.offset(n) + Traits::kHeadDim);
    }
#pragma unroll
    for (int p = 0; p < kParts; ++p) result.ml.x = fmaxf(result.ml.x, part[p].x);
#pragma unroll
    for (int step = 1; step < kRowThreads; step *= 2) {
      result.ml.x = fmaxf(result.ml.x, __shfl_xor_sync(~0u, result.ml.x, step));
    }
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      result.factor[p] = rescale_factor(part[p].x, result.ml.x);
      result.ml.y += part[p].y * result.factor[p];
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

// The merge: calls emit(row, column, O of four columns, (m, l) of the row) for every element of the item's rows. m and
// l of the first rows come from `list`, all else from `copied`, the same partials perhaps elsewhere, which wait() makes
// sure are there. O is summed in token order, l in an order that depends on the number of partials alone: whoever
// merges, and wherever from, gets the same bits. A row that the item does not have is a copy of its last one.
template <typename Traits, typename Wait, typename Emit>
__device__ __forceinline__ void merge_partials(const PartialList<Traits>& list, const PartialList<Traits>& copied,
                                               int rows, const Wait& wait, const Emit& emit) {
  using Factors = MergeFactors<Traits>;
  using Pass = MergePass<Traits>;
  constexpr int kRowStep = Pass::kRowStep, kThreadRows = Pass::kThreadRows;
  const int thread = ptx::thread_index_here(), thread_of_row = thread % Factors::kRowThreads;
#pragma unroll 1
  for (int first_row = 0; first_row < rows; first_row += Pass::kRows) {
    Factors factors[kThreadRows];
    int row[kThreadRows];
    float4 sum[kThreadRows] = {};
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      row[i] = min(first_row + thread / Factors::kRowThreads + i * kRowStep, rows - 1);
      const PartialList<Traits> near = first_row == 0 ? list : copied;
      factors[i] = Factors::of(near, near.first + row[i] * Partial<Traits>::kRow, thread_of_row);
    }
    if (first_row == 0) wait();
    const float* from = copied.first + thread_of_row * 4;
#pragma unroll 4
    for (int32_t n = 0; n < list.count; ++n) {
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const float4 o = *reinterpret_cast<const float4*>(from + copied.offset(n) + row[i] * Partial<Traits>::kRow);
        const float f = factors[i][n];
        sum[i] = {sum[i].x + o.x * f, sum[i].y + o.y * f, sum[i].z + o.z * f, sum[i].w + o.w * f};
      }
    }
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      const int r = first_row + thread / Factors::kRowThreads + i * kRowStep;
      if (r < rows) emit(r, thread_of_row * 4, sum[i], factors[i].ml);
    }
  }
}

// Shared memory into which partials are copied, all of them or as many rows of all as fit, while the ring is idle: the
// way to L2 is what costs time.
struct Staging {
  float* memory;
  int32_t floats;     // 0 while the ring is in use
  uint64_t* barrier;  // completes when the copies have landed
  uint32_t parity;

  // Rows of each of `count` partials: all, or whole passes, or none.
  template <typename Traits>
  __device__ __forceinline__ int32_t rows_that_fit(int32_t count, int32_t rows) const {
    const int32_t row_floats = count * Partial<Traits>::kRow;
    if (rows * row_floats <= floats) return rows;
    if constexpr (!MergePass<Traits>::kInParts) return 0;
    return floats / row_floats / MergePass<Traits>::kRows * MergePass<Traits>::kRows;
  }
};

// Stage 3 of a span whose partial is written. What ends in the last CTA of the item with
// 4. its output.
template <typename Traits>
__device__ __forceinline__ void reduce_partials(const DecodeParams& p, const SpanTask& task, Staging& staging,
                                                typename Traits::SharedMemory& smem) {
  const CutItem& cut = task.cut;
  const MergeGroups& groups = task.groups;
  const int32_t first_of_group = task.group * groups.size;
  const auto group_result = Partial<Traits>::at(p, group_slot(p.teams, cut.first_worker, task.group));
#pragma unroll 1
  for (bool top = groups.count == 1 || task.members == 1;; top = true) {
    const bool of_groups = top && groups.count > 1;
    using List = PartialList<Traits>;
    const List list = of_groups ? List::of_groups(p, cut, groups) : List::of(p, cut, first_of_group, task.members);
    const int32_t ticket = cut.first_worker + (of_groups ? groups.item_ticket() : first_of_group);
    debug_delay(p.debug, worker_here(p), 4 * task.rows.seq + 2 * of_groups);
    if (!arrives_last<Traits>(p, ticket, list.count, smem)) return;
    debug_delay(p.debug, worker_here(p), 4 * task.rows.seq + 2 * of_groups + 1);
    const int32_t rows = task.rows.count, staged_rows = staging.rows_that_fit<Traits>(list.count, rows);
    const auto merge = [&](int32_t begin, int32_t count) {
      const List part = list.from_row(begin);
      const int32_t floats = count * Partial<Traits>::kRow;
      if (staged_rows > 0) Traits::Loader::stage_partials(part, floats, staging);
      const List copied = staged_rows > 0 ? List{staging.memory, floats, floats, list.count} : part;
      const auto wait = [&] {
        if (staged_rows == 0) return;
        ptx::mbarrier_wait(staging.barrier, staging.parity);
        staging.parity ^= 1;
      };
      merge_partials<Traits>(part, copied, count, wait, [&](int row, int column, float4 o, float2 ml) {
        if (top) {
          store_output<Traits>(p, task.rows.seq, task.rows.query_row(p, begin + row), column, o, ml);
        } else {
          group_result.store(begin + row, column, o, ml);
        }
      });
    };
    if constexpr (MergePass<Traits>::kInParts) {
      const int32_t rows_at_once = staged_rows > 0 ? staged_rows : rows;
#pragma unroll 1
      for (int32_t begin = 0; begin < rows; begin += rows_at_once) {
        if (begin > 0) compute_barrier<Traits>();  // all have read what the next rows overwrite
        merge(begin, min(rows_at_once, rows - begin));
      }
    } else {
      merge(0, rows);
    }
    if (top) return;
  }
}

}  // namespace leanattn
