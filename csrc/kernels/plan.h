// A plan: the shares of all workers, found once for all calls with the same lengths and shapes (the layers of a model
// in one decode step). A call with a plan reads its share; without one each worker sums the lengths of the batch
// itself.
//
// A plan holds the lengths that it was made from, and a call follows those: a plan that lags behind cache_seqlens
// gives attention over the old lengths, but workers never disagree about who does what.
#pragma once

#include "tile_table.h"

namespace leanattn {

// What the plan was made for, and where the items are cut.
struct alignas(16) PlanHeader {
  int32_t batch, items_per_seq, tile_tokens, item_kind, max_tokens, workers;
  Cuts cuts;

  // What an item costs, the pieces it may have, whether there is padding on the left, and how queries are packed: one
  // number, so that a kernel that knows of nothing but the cost compares that alone.
  LEANATTN_HOST_DEVICE static int32_t kind_of(const TileLine& line, const FixedPieces& fixed) {
    constexpr int32_t kPadding = 8, kBlockTokens = 9, kPieces = 18;  // bits ahead of each
    return line.item_cost + (line.leftpad != nullptr ? 1 << kPadding : 0) + (line.block_tokens << kBlockTokens) +
           (fixed.most << kPieces);
  }
  LEANATTN_HOST_DEVICE static PlanHeader of(const TileLine& line, int32_t item_kind, int32_t workers,
                                            const Cuts& cuts) {
    return {line.batch, line.items_per_seq, line.tile_tokens, item_kind, line.max_tokens, workers, cuts};
  }
  LEANATTN_HOST_DEVICE bool fits(const TileLine& line, int32_t kind, int32_t of_workers) const {
    return batch == line.batch && items_per_seq == line.items_per_seq && tile_tokens == line.tile_tokens &&
           item_kind == kind && max_tokens == line.max_tokens && workers == of_workers;
  }
};

// Where a worker's share begins: a SpanCursor without its line.
struct alignas(16) PlannedShare {
  int32_t units_left, seq, item, tile, item_tiles, item_line, tokens, following;

  LEANATTN_HOST_DEVICE static PlannedShare of(const SpanCursor& c) {
    return {c.units_left, c.seq, c.item, c.tile, c.item_tiles, c.item_line, c.tokens, c.following};
  }
  LEANATTN_HOST_DEVICE SpanCursor on(const TileLine& line) const {
    return {line, units_left, seq, item, tile, item_tiles, item_line, tokens, following};
  }
};

// The memory of a plan, int32 and aligned to 16 bytes: PlanHeader, kMaxWorkers x PlannedShare, lengths [batch],
// paddings on the left [batch].
struct Plan {
  int32_t* memory;

  static constexpr int32_t kHeaderElements = sizeof(PlanHeader) / sizeof(int32_t);
  static constexpr int32_t kShareElements = sizeof(PlannedShare) / sizeof(int32_t);
  static constexpr int32_t kLengths = kHeaderElements + tile_table::kMaxWorkers * kShareElements;
  static constexpr int64_t elements(int64_t batch) { return kLengths + 2 * batch; }

  LEANATTN_HOST_DEVICE PlanHeader& header() const { return *reinterpret_cast<PlanHeader*>(memory); }
  LEANATTN_HOST_DEVICE PlannedShare& share(int32_t worker) const {
    return reinterpret_cast<PlannedShare*>(memory + kHeaderElements)[worker];
  }
  LEANATTN_HOST_DEVICE int32_t* lengths() const { return memory + kLengths; }
  LEANATTN_HOST_DEVICE int32_t* leftpads(int32_t batch) const { return lengths() + batch; }
  LEANATTN_HOST_DEVICE void keep(const TileLine& line, int32_t seq) const {
    lengths()[seq] = line.seqlens[seq];
    leftpads(line.batch)[seq] = line.leftpad == nullptr ? 0 : line.leftpad[seq];
  }

  // Of a plan for other shapes, nothing is used: the call is right without it.
  LEANATTN_HOST_DEVICE bool serves(const TileLine& line, int32_t item_kind, int32_t workers) const {
    return memory != nullptr && header().fits(line, item_kind, workers);
  }
  LEANATTN_HOST_DEVICE TileLine on_its_lengths(TileLine line) const {
    line.seqlens = lengths();
    if (line.leftpad != nullptr) line.leftpad = leftpads(line.batch);
    return line;
  }
};

// `line`, of a call, over the lengths of its plan if it has one.
LEANATTN_HOST_DEVICE TileLine over_planned_lengths(const DecodeParams& params, const TileLine& line,
                                                   int32_t item_kind) {
  const Plan plan{params.plan};
  return plan.serves(line, item_kind, params.teams) ? plan.on_its_lengths(line) : line;
}

}  // namespace leanattn
