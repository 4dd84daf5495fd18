// Stage 3: the host-block reduction. Every span of a cut item leaves a partial (m, l, O) in the workspace and takes a
// ticket. Whoever takes the last ticket is the host block: all partials are there, and it merges them in token order.
// Nobody waits for another CTA, so it needs neither co-residency nor flags to clear; the ticket wraps to zero by
// itself. An item of many partials is merged in two levels, each with its own tickets: groups of neighbours first, then
// the groups (MergeGroups). The order of the sums is that of the tokens and not of arrival: the same bits on every run.
#pragma once

#include "debug_delay.cuh"
#include "merge.cuh"
#include "output.cuh"

namespace leanattn {

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
      const StagedPartials staged{staging.memory, floats, staged_rows > 0 ? list.count : 0};
      const auto stage = [&] {
        if (staged_rows > 0) Traits::Loader::stage_partials(part, floats, staging);
      };
      const auto wait = [&] {
        if (staged_rows == 0) return;
        ptx::mbarrier_wait(staging.barrier, staging.parity);
        staging.parity ^= 1;
      };
      merge_partials<Traits>(part, staged, count, stage, wait, [&](int row, int column, float4 o, float2 ml) {
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
