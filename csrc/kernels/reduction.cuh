// Stage 3: the host-block reduction. Every span of a cut item leaves a partial (m, l, O) in the workspace, and one of
// the workers, the host block (tickets.cuh), merges them in token order; of many query rows, each of several workers
// merges a part (merge_parts.h). An item of many partials is merged in two levels: groups of neighbours first, then
// the groups (MergeGroups). The order of the sums is that of the tokens and not of arrival: the same bits on every run.
// In a batch-invariant call (fixed_pieces.h) a worker may have several partials of an item, or all of them.
//
// A trip to L2 takes a third of a microsecond, and the tail of a call is made of them. So nobody asks whether a partial
// is complete: before its worker takes a ticket it is cleared to a value that is never written (kUnwritten), and who
// reads it sees from each word whether it is there. What is not is asked for again.
#pragma once

#include "debug_delay.cuh"
#include "merge.cuh"
#include "output.cuh"
#include "tickets.cuh"

namespace leanattn {

// A barrier of all threads that compute. Numbers from 1 on are those of single heads (warp_merge.cuh).
template <typename Traits>
__device__ __forceinline__ void compute_barrier() {
  ptx::named_barrier_sync<Traits::kComputeThreads>(1 + Traits::kHeads);
}

// Where a row of a result goes: to the output, or to a partial.
template <typename Traits>
struct ResultRow {
  OutputRow<Traits> output;
  float* partial;  // null: to the output

  // Of the item's `row`, from `column` on, with the row's m and l.
  __device__ __forceinline__ static ResultRow of(const DecodeParams& p, const ItemRows& rows, bool whole,
                                                 const Partial<Traits>& partial, int row, int column, float2 ml) {
    if (whole) {
      const int32_t kv_head = rows.template kv_head_of<Traits::kHeads>(row);
      return {OutputRow<Traits>::of(p, rows.query, kv_head, rows.query_row(p, row), column, ml), nullptr};
    }
    return {{}, partial.row(row, column, ml)};
  }
  // Four neighbouring columns of O.
  __device__ __forceinline__ void store(const DecodeParams& p, int column, const float4& o) const {
    if (partial == nullptr) {
      output.store(p, column, o);
    } else {
      Partial<Traits>::write(partial + column, o);
    }
  }
};

// The merges that fall to this worker after its span, one at least. What ends in the host block of the item with
// 4. its output. `pieces`: of a batch-invariant call.
template <typename Traits>
__device__ __forceinline__ void reduce_partials(const DecodeParams& p, const SpanTask& task, const CutPieces& pieces,
                                                const Merges& merges, const Staging& staging) {
  using List = PartialList<Traits>;
  const CutItem& cut = task.cut;
  const MergeGroups& groups = task.groups;
  const auto group_result = Partial<Traits>::at(p, group_slot(p.teams, cut.first_worker, task.group));
  uint32_t parts = merges.parts;
#pragma unroll 1
  for (bool top = !merges.of_group;; top = true) {
    const bool of_groups = top && groups.count > 1;
    List list = of_groups ? List::of_groups(p, cut, groups) : List::of(p, cut, task.group * groups.size, task.members);
    if (fixed_pieces_of<Traits>(p).any()) list = List::of_pieces(p, pieces);
    debug_delay(p.debug, worker_here(p), 4 * task.rows.query + 2 + of_groups);
    compute_barrier<Traits>();  // nobody reads what was in the ring, and what all have written is there
    int first_row = 0, rows = task.rows.count;
    if constexpr (Traits::kManyRows) {
      if (top) {  // the first run of parts that follow each other
        const int first = __ffs(int(parts)) - 1, count = __ffs(int(~(parts >> first))) - 1;
        first_row = task.parts.begin(first, rows, kMergeStepRows<Traits>);
        rows = task.parts.begin(first + count, rows, kMergeStepRows<Traits>);
        parts &= ~(((1u << count) - 1) << first);
      }
    }
    merge_partials<Traits>(list, staging, first_row, rows, [&](int row, int column, float4 o, float2 ml) {
      ResultRow<Traits>::of(p, task.rows, top, group_result, row, column, ml).store(p, column, o);
    });
    if (parts == 0 || (top && !Traits::kManyRows)) return;
  }
}

}  // namespace leanattn
