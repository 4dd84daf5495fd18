// Batch-invariant calls: a sequence gets the same bits whatever else is in the batch.
//
// The sums of an item are rounded, so their order must not depend on where the shares of workers end. So an item is cut
// at borders of its own into pieces, FixedPieces, which depend on its tiles, the shapes of the call and the number of
// workers. Each piece becomes a partial, also where one worker has several, and all of an item are merged at once in
// token order. Shares are those of the line, each cut moved to a border of pieces, so that a piece is of the worker
// that has the tile in its middle:
//
//   line      [A A A A A A|A A A B B B|B B B B B B|C C C C D D]     the cuts of equal shares,
//   pieces    [A A A A A|A A A A|B B B B B|B B B B|C C C C|D D]     the borders,
//   workers   [    0    |    1  |    1    |   2   |   3   | 3 ]     and who has the pieces: B is cut among 1 and 2
//
// A worker has up to half a piece more or less at either end of its share.
#pragma once

#include <algorithm>
#include <cmath>

#include "schedule.h"

namespace leanattn {

// As many pieces of an item as one level of merging takes, but for where fewer are given out more evenly when a sequence
// of these items is alone: then, as many as are within kNearlyAsEven of the best. None that no sequence has room for.
inline FixedPieces fixed_pieces_of(int32_t items_per_seq, int32_t workers, int32_t longest_item_tiles) {
  constexpr double kNearlyAsEven = 0.97;  // what more pieces are worth: batches of long and short sequences come out even
  const auto evenness = [&](int32_t pieces) {
    const double shares = double(items_per_seq) * pieces / workers;
    return shares / std::ceil(shares);
  };
  double best = 0;
  for (int32_t pieces = 1; pieces <= MergeGroups::kMaxAtOnce; ++pieces) best = std::max(best, evenness(pieces));
  int32_t most = MergeGroups::kMaxAtOnce;
  while (evenness(most) < kNearlyAsEven * best) --most;
  return {FixedPieces{most}.count(longest_item_tiles)};
}

// The tile of an item's piece that decides who has it.
LEANATTN_HOST_DEVICE int32_t middle_of(const Shares& pieces, int32_t piece) {
  return pieces.begin(piece) + quotient(pieces.size(piece), 2);
}

// The first piece of an item, of `item_tiles`, whose middle is not ahead of a place of the line, `offset` units after
// the item's first; of a place beyond the item, the number of pieces.
LEANATTN_HOST_DEVICE int32_t piece_from(const TileLine& line, int32_t item_tiles, int32_t offset) {
  const Shares pieces = line.fixed_pieces.of_item(item_tiles);
  const int32_t tile = offset - line.item_cost;
  if (tile >= item_tiles) return line.fixed_pieces.count(item_tiles);
  const int32_t piece = tile < 0 ? 0 : pieces.worker_of(tile);
  return piece + (tile > middle_of(pieces, piece) ? 1 : 0);
}

// The same place moved to the border ahead of that piece: still units after the item's first.
LEANATTN_HOST_DEVICE int32_t moved_to_border(const TileLine& line, int32_t item_tiles, int32_t offset) {
  const int32_t piece = piece_from(line, item_tiles, offset);
  return piece == 0 ? 0 : line.item_cost + line.fixed_pieces.of_item(item_tiles).begin(piece);
}

// Slots of partials: `most` a worker for the item that it begins and others go on with, of which there is one at most,
// its last; and as many for the items that it has alone. It is done with one of those before it writes the next.
LEANATTN_HOST_DEVICE constexpr int32_t partial_slots(int32_t workers, const FixedPieces& fixed) {
  return 2 * fixed.most * workers;
}

// A cut item, as the worker of one of its pieces sees it.
struct CutPieces {
  int32_t first_worker;  // of the item; also its ticket
  int32_t partials;      // one of each piece
  int32_t piece;         // the one asked about
  int32_t begin, end;    // the pieces that its worker has
  int32_t first_slot;    // of the item's partials, which follow each other

  LEANATTN_HOST_DEVICE static CutPieces of(const TileLine& line, const Shares& shares, int32_t workers, int32_t worker,
                                           const Span& span) {
    const Shares pieces = line.fixed_pieces.of_item(span.item_tiles);
    const int32_t item_begin = span.item_line - line.item_cost;
    const int32_t count = line.fixed_pieces.count(span.item_tiles);
    CutPieces cut{shares.worker_of(span.item_line + middle_of(pieces, 0)),
                  count,
                  pieces.worker_of(span.tile_begin),
                  piece_from(line, span.item_tiles, shares.begin(worker) - item_begin),
                  piece_from(line, span.item_tiles, shares.begin(worker + 1) - item_begin),
                  0};
    cut.first_slot = (cut.shared() ? cut.first_worker : workers + worker) * line.fixed_pieces.most;
    return cut;
  }
  LEANATTN_HOST_DEVICE int32_t own() const { return end - begin; }
  // Several workers have pieces.
  LEANATTN_HOST_DEVICE bool shared() const { return own() < partials; }
  // The worker has no other piece of the item after this one.
  LEANATTN_HOST_DEVICE bool last_own() const { return piece + 1 == end; }
  // Of the i-th partial in token order.
  LEANATTN_HOST_DEVICE int32_t slot(int32_t i) const { return first_slot + i; }
};

}  // namespace leanattn
