// Batch-invariant calls: a sequence gets the same bits whatever else is in the batch.
//
// The sums of an item are rounded, so their order must not depend on where the shares of workers end. So an item is cut
// at borders of its own into pieces, which depend on its tiles, the shapes of the call and the number of workers. Each
// piece becomes a partial, also where one worker has several, and all of an item are merged at once in token order.
// Shares are those of the line, each end moved to a border of pieces, so that a piece is of the worker whose share has
// the tile in its middle:
//
//   line      [A A A A A A|A A A B B B|B B B B B B|C C C C D D]     the ends of equal shares,
//   pieces    [A A A A A|A A A A|B B B B B|B B B B|C C C C|D D]     the borders,
//   workers   [    0    |    1  |    1    |   2   |   3   | 3 ]     and who has the pieces: A is cut, and B
//
// A worker has up to half a piece more or less at either end of its share.
#pragma once

#include <algorithm>
#include <cmath>

#include "schedule.h"

namespace leanattn {

// How many pieces an item has, whoever does them.
struct FixedPieces {
  int32_t most = 0;  // of an item; 0: the call is not batch-invariant, and items are cut where shares end

  // Tiles of a piece at least: each costs a CTA about as long as a tile besides (its queries, the merge of its warps, a
  // partial).
  static constexpr int32_t kLeastTiles = 8;

  LEANATTN_HOST_DEVICE bool any() const { return most > 0; }
  LEANATTN_HOST_DEVICE int32_t count(int32_t item_tiles) const {
    const int32_t fit = quotient(item_tiles, kLeastTiles);
    return fit > most ? most : (fit > 1 ? fit : 1);
  }
  // Of an item's tiles, as equal as can be: the n-th share is the n-th piece.
  LEANATTN_HOST_DEVICE Shares of_item(int32_t item_tiles) const { return Shares::of(item_tiles, count(item_tiles)); }

  // As many as are merged at once; or fewer, where a sequence that is alone is then given out more evenly, but as many
  // as are nearly the best at that. None that no sequence has room for.
  static FixedPieces of(int32_t items_per_seq, int32_t workers, int32_t longest_item_tiles) {
    constexpr double kNearly = 0.97;  // short pieces are worth that: what they save in a batch of long and short ones
    const auto evenness = [&](int32_t pieces) {
      const double shares = double(items_per_seq) * pieces / workers;
      return shares / std::ceil(shares);
    };
    double best = 0;
    for (int32_t pieces = 1; pieces <= MergeGroups::kMaxAtOnce; ++pieces) best = std::max(best, evenness(pieces));
    FixedPieces found{MergeGroups::kMaxAtOnce};
    while (evenness(found.most) < kNearly * best) --found.most;
    return {found.count(longest_item_tiles)};
  }
};

// The tile of an item's piece that decides who has it.
LEANATTN_HOST_DEVICE int32_t middle_of(const Shares& pieces, int32_t piece) {
  return pieces.begin(piece) + quotient(pieces.size(piece), 2);
}

// Of an item's `pieces`: the first one whose middle is not ahead of tile `at`, which may be negative; if there is none,
// the number of pieces.
LEANATTN_HOST_DEVICE int32_t piece_from(const Shares& pieces, int32_t count, int32_t at) {
  if (at < 0) return 0;
  if (at >= pieces.total_units) return count;
  const int32_t piece = pieces.worker_of(at);
  return piece + (at > middle_of(pieces, piece) ? 1 : 0);
}

// The end of a share that lies `offset` units after the begin of an item: where it is moved to.
LEANATTN_HOST_DEVICE int32_t moved_to_border(const TileLine& line, const FixedPieces& fixed, int32_t item_tiles,
                                             int32_t offset) {
  const Shares pieces = fixed.of_item(item_tiles);
  const int32_t piece = piece_from(pieces, fixed.count(item_tiles), offset - line.item_cost);
  return piece == 0 ? 0 : line.item_cost + pieces.begin(piece);
}

// One past the last tile of the piece of an item that has `tile`. Of few calls: a function of its own, so that others
// do not fetch its divisions.
LEANATTN_COLD inline int32_t end_of_piece(const FixedPieces fixed, const int32_t item_tiles, const int32_t tile) {
  const Shares pieces = fixed.of_item(item_tiles);
  return pieces.begin(pieces.worker_of(tile) + 1);
}

// Walks the spans of one worker; in a batch-invariant call, piece by piece.
struct PieceCursor {
  SpanCursor spans;
  FixedPieces fixed;
  Span piece{};  // at the cursor

  // `spans`: at the begin of a piece.
  LEANATTN_HOST_DEVICE static PieceCursor at(const SpanCursor& spans, const FixedPieces& fixed) {
    PieceCursor cursor{spans, fixed};
    cursor.begin_span();
    return cursor;
  }

  LEANATTN_HOST_DEVICE bool done() const { return spans.done(); }
  // The piece at the cursor; only while !done().
  LEANATTN_HOST_DEVICE Span span() const { return piece; }
  // Nothing follows the piece at the cursor.
  LEANATTN_HOST_DEVICE bool last() const { return spans.last() && ends_span(); }
  LEANATTN_HOST_DEVICE void next() {
    if (ends_span()) {
      spans.next();
      begin_span();
    } else {
      piece.tile_begin = piece.tile_end;
      piece.tile_end = end_of_piece(fixed, piece.item_tiles, piece.tile_begin);
    }
  }

 private:
  LEANATTN_HOST_DEVICE bool ends_span() const { return !fixed.any() || piece.tile_end == spans.span().tile_end; }
  LEANATTN_HOST_DEVICE void begin_span() {
    if (spans.done()) return;
    piece = spans.span();
    if (fixed.any()) piece.tile_end = end_of_piece(fixed, piece.item_tiles, piece.tile_begin);
  }
};

// Slots of partials: `most` a worker for the item that it begins and others go on with, of which there is one at most,
// its last; and as many for the items that it has alone. It is done with one of those before it writes the next.
// None if no item can have two pieces.
constexpr int32_t partial_slots(int32_t workers, const FixedPieces& fixed) {
  return fixed.most > 1 ? 2 * fixed.most * workers : 0;
}

// An item of several pieces, as the worker of one of them sees it.
struct CutPieces {
  int32_t first_worker;  // of the item; also its ticket
  int32_t partials;      // one of each piece
  int32_t piece;         // the one asked about
  int32_t begin, end;    // the pieces that its worker has
  int32_t first_slot;    // of the item's partials, which follow each other

  // The shares are those of the line, whose ends have not been moved. Not inlined, so what is passed by reference would
  // have to be in memory: `fixed`, a parameter of the call, is.
  LEANATTN_COLD static CutPieces of(const FixedPieces& fixed, Shares shares, int32_t workers, int32_t worker,
                                    Span span) {
    const Shares pieces = fixed.of_item(span.item_tiles);
    const int32_t count = fixed.count(span.item_tiles);
    CutPieces cut{shares.worker_of(span.item_line + middle_of(pieces, 0)),
                  count,
                  pieces.worker_of(span.tile_begin),
                  piece_from(pieces, count, shares.begin(worker) - span.item_line),
                  piece_from(pieces, count, shares.begin(worker + 1) - span.item_line),
                  0};
    cut.first_slot = (cut.shared() ? cut.first_worker : workers + worker) * fixed.most;
    return cut;
  }
  LEANATTN_HOST_DEVICE int32_t own() const { return end - begin; }
  // Several workers have pieces.
  LEANATTN_HOST_DEVICE bool shared() const { return own() < partials; }
  // The worker has no piece of the item after this one.
  LEANATTN_HOST_DEVICE bool last_own() const { return piece + 1 == end; }
  // Of the i-th partial in token order.
  LEANATTN_HOST_DEVICE int32_t slot(int32_t i) const { return first_slot + i; }
};

}  // namespace leanattn
