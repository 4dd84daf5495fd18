// Stage 3, who merges. Every span of a cut item has a ticket; whoever takes the last one is the host block, or, where
// the rows of an item are shared out (merge_parts.h), whoever finds that all have been taken. Tickets are taken ahead,
// by the producer, when the span's last tile has been asked for: the answer is there when the partial is.
//
// So the host block may have to wait for partials, but only of workers that have taken a ticket. Those are running,
// their last tile is on its way or about to be asked for, and none of them can wait for the host block in turn: all
// workers of an item but its first one begin their share with it, and that one can only be waiting for an earlier item
// (docs/design.md). The same holds of a batch-invariant call: with an item that a worker has alone it waits for nobody.
#pragma once

#include "debug_delay.cuh"
#include "partials.cuh"
#include "tile_ring.cuh"

namespace leanattn {

// Numbers from 8 on are those of warpgroups (wgmma_span.cuh).
constexpr int kLoaderBarrier = 7;

// The tickets of this worker's items are beside those of the other members of its team.
__device__ __forceinline__ uint32_t* ticket_at(const DecodeParams& p, int32_t number) {
  return p.workspace.tickets + number * p.team_size + member_here();
}

// This worker's part in the merges of a span's item. A warp calls it, after it has cleared the span's partial.
template <typename Traits>
__device__ __forceinline__ Merges take_tickets(const DecodeParams& p, const SpanTask& task) {
  const CutItem& cut = task.cut;
  const MergeGroups& groups = task.groups;
  const int lane = int(threadIdx.x) % 32;
  const auto is_last = [&](int32_t ticket, int32_t count) {
    debug_delay(p.debug, worker_here(p), 4 * task.rows.query);
    __syncwarp();  // all lanes have cleared
    uint32_t taken = 0;
    if (lane == 0) {
      taken = ptx::atomic_inc_acq_rel(ticket_at(p, ticket), uint32_t(count - 1));
    }
    return __shfl_sync(~0u, taken, 0) == uint32_t(count - 1);
  };
  if (groups.count == 1) return {false, uint32_t{is_last(cut.first_worker, cut.partials)}};
  const bool alone = task.members == 1;  // its partial is the group's
  if (!alone) {
    if (!is_last(cut.first_worker + task.group * groups.size, task.members)) return {false, 0};
    Partial<Traits>::at(p, group_slot(p.teams, cut.first_worker, task.group)).clear(p, task.rows.count);
  }
  return {!alone, uint32_t{is_last(cut.first_worker + groups.item_ticket(), groups.count)}};
}

// The same of a batch-invariant call, after all partials of the item that are this worker's have been cleared. There is
// a ticket for each, and a worker takes all of its own at once: how many workers have some, it need not know.
__device__ __forceinline__ Merges take_tickets_of_pieces(const DecodeParams& p, const SpanTask& task,
                                                         const CutPieces& cut) {
  debug_delay(p.debug, worker_here(p), 4 * task.rows.query);
  bool last = false;
  if (int(threadIdx.x) % 32 == 0) {
    uint32_t* tickets = ticket_at(p, cut.first_worker);
    last = ptx::atomic_add_acq_rel(tickets, cut.own()) + cut.own() == uint32_t(cut.partials);
    if (last) *tickets = 0;  // nobody else asks for one before the next call
  }
  return {false, uint32_t{last}};
}

// The same of an item whose rows are shared out (merge_parts.h); a lane calls it, and then does what is left to do for
// the next call. publish(merges): tells the warps that compute. written(): whether they have written the partial, and
// wait.
template <typename Written, typename Publish>
__device__ __forceinline__ void take_merge_ticket(const DecodeParams& p, const SpanTask& task, const Written& written,
                                                  const Publish& publish) {
  uint32_t* const word = ticket_at(p, task.cut.first_worker);
  const MergeTicket ticket{task.cut.partials, task.parts.count, team_here() - task.cut.first_worker};
  // Who has another item to do, or no part, need not see who comes.
  const bool waits = task.ends_share && ticket.has_part();
  uint32_t added = ticket.arrival() + (waits ? 0 : ticket.decision());
  uint32_t before = ptx::atomic_add_acq_rel(word, added);
  const uint32_t parts = ticket.parts_on_arrival(before);
  if (!waits) {
    publish({false, parts});
  } else {
    added = ticket.decision();
    bool certain = ticket.all_arrived(before + ticket.arrival());
    while (!certain && !written()) certain = ticket.all_arrived(ptx::load_acquire(word));
    if (certain) publish({false, parts | ticket.own_part()});
    before = ptx::atomic_add_acq_rel(word, added);
    if (!certain) publish({false, ticket.parts_on_decision(before)});
  }
  if (ticket.complete(before + added)) *word = 0;
}

// A barrier of the loader warps.
template <typename Traits>
__device__ __forceinline__ void loader_barrier() {
  static_assert(2 + Traits::kHeads < kLoaderBarrier);  // kShareBarrier (producer_ahead.cuh) is the highest below
  ptx::named_barrier_sync<Traits::Loader::kProducerThreads>(kLoaderBarrier);
}

// Of a cut span whose task is in `slot`: clears its partial, lets the warps that compute write it, and takes its
// tickets. `last_tile`: the one that was asked for last. The task's warp calls it; of many rows all loader warps do,
// and each clears a part.
template <typename Traits>
__device__ __forceinline__ void announce_cut_span(const DecodeParams& p, const TileRing<Traits>& ring, int slot,
                                                  const RingIndex& last_tile) {
  auto& smem = ring.smem;
  const int lane = int(threadIdx.x) % 32;
  __syncwarp();  // the lane that wrote the task has done so
  if constexpr (Traits::kManyRows) loader_barrier<Traits>();
  const SpanTask task = smem.tasks[slot];
  const bool pieces = fixed_pieces_of<Traits>(p).any();
  // What no other worker reads is read behind a barrier.
  const bool shared = !pieces || smem.pieces[slot].shared();
  constexpr int kThreads = Traits::kManyRows ? Traits::Loader::kProducerThreads : 32;
  if (shared) Partial<Traits>::at(p, task.slot).template clear<kThreads>(p, task.rows.count);
  __syncwarp();
  if constexpr (Traits::kManyRows) {
    loader_barrier<Traits>();
    if (!Traits::Loader::in_task_warp()) return;
  }
  if (lane == 0) ptx::mbarrier_arrive(&smem.task_there[slot]);
  if (pieces && !(shared && smem.pieces[slot].last_own())) return;
  const auto publish = [&](const Merges& merges) {
    smem.merges[task.ends_share] = merges;
    ptx::mbarrier_arrive(&smem.tickets_there[task.ends_share]);
  };
  if constexpr (Traits::kManyRows) {
    if (task.parts.count > 1) {
      debug_delay(p.debug, worker_here(p), 4 * task.rows.query);
      const auto written = [&] { return ptx::mbarrier_test(&smem.empty[last_tile.slot], last_tile.parity); };
      if (lane == 0) take_merge_ticket(p, task, written, publish);
      return;
    }
  }
  const Merges merges = pieces ? take_tickets_of_pieces(p, task, smem.pieces[slot]) : take_tickets<Traits>(p, task);
  if (lane == 0) publish(merges);
}

// The answer, for the warps that compute. `cut`: of a batch-invariant call.
template <typename Traits>
__device__ __forceinline__ Merges merges_of(const DecodeParams& p, typename Traits::SharedMemory& smem,
                                            const SpanTask& task, const CutPieces& cut) {
  if (fixed_pieces_of<Traits>(p).any()) {
    if (!cut.last_own()) return {false, 0};
    if (!cut.shared()) return {false, 1};
  }
  ptx::mbarrier_wait(&smem.tickets_there[task.ends_share], 0);
  return smem.merges[task.ends_share];
}

}  // namespace leanattn
