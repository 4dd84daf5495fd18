// Stage 3: partials of a cut item become one. Nobody waits: the last worker to arrive merges.
#pragma once

#include <atomic>

#include "kernels/params.h"
#include "tile_kernels.h"

namespace leanattn::cpu {

inline SoftmaxRows partial(const DecodeParams& p, int32_t slot) {
  float* memory = p.workspace.partials + int64_t{slot} * p.partial_floats;
  return {memory, memory + int64_t{p.block_rows} * p.v_head_dim};
}

// Says that so many partials of the item lie in their slots: all that this worker has. True for the worker that comes
// last: it sees all the others' partials (the chain of acq_rel increments), and leaves the ticket at zero for the next
// call. `Cut`: CutItem, or CutPieces of a batch-invariant call.
template <class Cut>
bool takes_last_ticket(const DecodeParams& p, const Cut& item, uint32_t partials) {
  std::atomic_ref<uint32_t> ticket(p.workspace.tickets[item.first_worker]);
  const uint32_t arrived = ticket.fetch_add(partials, std::memory_order_acq_rel) + partials;
  if (arrived != static_cast<uint32_t>(item.partials)) return false;
  ticket.store(0, std::memory_order_relaxed);
  return true;
}

// Merges in token order, so that the result does not depend on who finished when. The partial of slot(0) becomes the
// sum: nobody else reads it any more. Returns it.
template <class Cut>
SoftmaxRows merge_partials(const DecodeParams& p, const Cut& item, const TileKernels& kernels, int32_t rows) {
  const SoftmaxRows sum = partial(p, item.slot(0));
  for (int32_t i = 1; i < item.partials; ++i) kernels.merge(sum, partial(p, item.slot(i)), rows, p.v_head_dim);
  return sum;
}

}  // namespace leanattn::cpu
