// Which query rows an item is about.
#pragma once

#include "params.h"

namespace leanattn {

// Where the query rows of an item are.
struct ItemRows {
  int32_t seq;
  int32_t kv_head;
  int32_t first_head;  // query head of the item's row 0
  int32_t count;       // rows of this item: the last query block of a group may have fewer

  __device__ __forceinline__ static ItemRows of(const DecodeParams& p, int32_t seq, int32_t item) {
    const int32_t kv_head = p.row_blocks == 1 ? item : item / p.row_blocks;
    const int32_t block = item - kv_head * p.row_blocks;
    const int32_t row = block * p.block_rows;
    return {seq, kv_head, kv_head * p.group + row, min(p.block_rows, p.group - row)};
  }
};

// What is to be done with the result of a span. The producer, which has time, works it out for the warps that compute.
struct SpanTask {
  ItemRows rows;
  bool whole_item;     // the result is the output; else it is a partial:
  int32_t slot;        // its place in the workspace
  int32_t partial;     // its number among the item's
  CutItem cut;
  MergeGroups groups;

  __device__ __forceinline__ static SpanTask of(const DecodeParams& p, const Shares& shares, int32_t worker,
                                                const Span& span, const ItemRows& rows) {
    SpanTask task{rows, span.whole_item(), partial_slot(worker, span), 0, {}, {}};
    if (!task.whole_item) {
      task.cut = CutItem::of(shares, span);
      task.partial = worker - task.cut.first_worker;
      task.groups = MergeGroups::of(task.cut.partials);
    }
    return task;
  }
};

}  // namespace leanattn
