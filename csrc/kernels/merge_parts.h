// Stage 3, who merges which rows of a cut item.
//
// Of few query rows whoever comes last merges all partials. In kernels of more than eight (Traits::kManyRows) that
// takes long: 16 rows of 16 partials are 135 KB, four microseconds for one SM, while the others have nothing to do. So
// the rows are shared out: the worker of the i-th partial merges the i-th part of them, if it can be sure of all
// partials when it has written its own. Who cannot gives its part to the last to come, and goes:
//
//   rows       [ part 0 | part 1 | part 2 ]
//   worker 0   arrives, and sees before its own partial is written that all have arrived: merges part 0
//   worker 1   arrives, and has another item to do: gives part 1 away
//   worker 2   arrives last: merges part 2, and part 1
//
// Nobody waits for a worker that has not arrived, as it may not be running. Each part is merged by one worker, in the
// order of tokens, whoever that is.
#pragma once

#include "schedule.h"

namespace leanattn {

// The rows of an item, in parts of whole steps: what the threads of a worker merge at once.
struct MergeParts {
  int32_t count;  // the workers of the first partials have one each; 1: the last to come merges all rows

  LEANATTN_HOST_DEVICE static MergeParts of(int32_t rows, int32_t step_rows, int32_t partials) {
    const int32_t steps = ceil_div(rows, step_rows);
    return {partials > MergeGroups::kMaxAtOnce ? 1 : (steps < partials ? steps : partials)};
  }
  // First row of a part; of one after the last, the number of rows.
  LEANATTN_HOST_DEVICE int32_t begin(int32_t part, int32_t rows, int32_t step_rows) const {
    const int32_t row = Shares::of(ceil_div(rows, step_rows), count).begin(part) * step_rows;
    return row < rows ? row : rows;
  }
};

// The word in which an item's workers find out who merges what. Each adds an arrival, when its partial has been
// cleared, and those with a part a decision: they keep it, if all have arrived, or give it away. Zero before a call;
// whoever makes it complete sets it back.
struct MergeTicket {
  int32_t partials, parts;
  int32_t own;  // number of this worker's partial

  static constexpr int kArrivalBits = 8;  // enough for
  static_assert(MergeGroups::kMaxAtOnce < 1 << kArrivalBits);
  static_assert(kArrivalBits + MergeGroups::kMaxAtOnce <= 32);  // ... and a bit for each part's decision

  LEANATTN_HOST_DEVICE bool has_part() const { return own < parts; }
  // Parts as bits.
  LEANATTN_HOST_DEVICE uint32_t own_part() const { return has_part() ? 1u << own : 0; }

  LEANATTN_HOST_DEVICE static uint32_t arrival() { return 1; }
  LEANATTN_HOST_DEVICE uint32_t decision() const { return own_part() << kArrivalBits; }

  LEANATTN_HOST_DEVICE bool all_arrived(uint32_t word) const {
    return word % (1u << kArrivalBits) == static_cast<uint32_t>(partials);
  }
  // What falls to a worker whose arrival, or arrival and decision, found the word like this.
  LEANATTN_HOST_DEVICE uint32_t parts_on_arrival(uint32_t before) const {
    return all_arrived(before + arrival()) ? before >> kArrivalBits | own_part() : 0;
  }
  // What falls to one that had arrived, and whose decision found the word like this.
  LEANATTN_HOST_DEVICE uint32_t parts_on_decision(uint32_t before) const {
    return all_arrived(before) ? own_part() : 0;
  }
  LEANATTN_HOST_DEVICE bool complete(uint32_t word) const {
    return all_arrived(word) && word >> kArrivalBits == (1u << parts) - 1;
  }
};

}  // namespace leanattn
