// Which worker a CTA is, which query rows its item is about, and what becomes of a span's result.
#pragma once

#include "merge_parts.h"
#include "params.h"

namespace leanattn {

// Which worker a CTA is: in the grid, x counts the members of a team, y the teams.
__device__ __forceinline__ int32_t team_here() { return int32_t(blockIdx.y); }
__device__ __forceinline__ int32_t member_here() { return int32_t(blockIdx.x); }
__device__ __forceinline__ int32_t worker_here(const DecodeParams& p) {
  return team_here() * p.team_size + member_here();
}

// Where the query rows of an item are: all rows of one or several neighbouring KV heads, or a block of those of one.
struct ItemRows {
  int32_t query;      // place in q, out and lse, along RowStrides::batch
  int32_t kv_head;    // the first
  int32_t first_row;  // the item's row 0, among those of its KV head
  int32_t count;      // rows of this item, of all its heads: the last query block may have fewer

  // This worker's item, where its team's is `team_item`.
  __device__ __forceinline__ static ItemRows of(const DecodeParams& p, int32_t seq, int32_t team_item) {
    const int32_t item = team_item * p.team_size + member_here();
    if (p.row_blocks == 1) {
      return {seq, item * p.heads, 0, p.heads * p.rows};
    }
    const int32_t kv_head = item / p.row_blocks, row = item % p.row_blocks * p.block_rows;
    return {seq, kv_head, row, min(p.block_rows, p.rows - row)};
  }
  // The same of a block of packed queries, which may have fewer of them. Items are of one KV head.
  __device__ __forceinline__ ItemRows of_block(const DecodeParams& p, const QueryBlock& block) const {
    return {block.query, kv_head, first_row, p.item_rows(block, first_row)};
  }
  // Of the item's `row`, of one of kHeads heads.
  template <int kHeads>
  __device__ __forceinline__ int32_t kv_head_of(int32_t row) const {
    return kHeads == 1 ? kv_head : kv_head + quotient(row, count / kHeads);
  }
  // The item's `row`, 0..count - 1: head by head.
  __device__ __forceinline__ QueryRow query_row(const DecodeParams& p, int32_t row) const {
    if (p.q_len == 1) return {0, kv_head * p.group + first_row + row};  // neighbours, across KV heads too
    const int32_t head = p.heads == 1 ? 0 : row / p.rows;
    return p.query_row(kv_head + head, first_row + row - head * p.rows);
  }
};

// What is to be done with the result of a span. The producer, which has time, works it out for the warps that compute.
struct SpanTask {
  ItemRows rows;
  bool whole_item;  // the result is the output; else it is a partial:
  int32_t slot;     // its place in the workspace, among those of the same members of all teams
  CutItem cut;
  MergeGroups groups;
  int32_t group;  // of neighbours that are merged first, with this many members; one alone goes to the next level
  int32_t members;
  MergeParts parts;  // {1} until task_of() knows better
  bool ends_share;

  __device__ __forceinline__ static SpanTask of(const DecodeParams& p, const Cuts& cuts, const Span& span,
                                                const ItemRows& rows, bool ends_share) {
    const int32_t team = team_here();
    SpanTask task{rows, span.whole_item(), partial_slot(team, span), {}, {}, 0, 0, {1}, ends_share};
    if (!task.whole_item) {
      task.cut = p.cut_item(cuts, team, span);
      task.groups = MergeGroups::of(task.cut.partials);
      task.group = task.groups.group_of(team - task.cut.first_worker);
      task.members = task.groups.members(task.group, task.cut.partials);
      if (task.members == 1) task.slot = group_slot(p.teams, task.cut.first_worker, task.group);
    }
    return task;
  }
  // Of a batch-invariant call. All partials of an item are merged at once.
  __device__ __forceinline__ static SpanTask of_piece(const CutPieces& cut, const Span& span, const ItemRows& rows,
                                                      bool ends_share) {
    const MergeGroups groups{cut.partials, 1};
    return {rows, span.whole_item(), cut.slot(cut.piece), {cut.first_worker, cut.partials}, groups, 0, cut.partials,
            {1},  ends_share};
  }
};

// Which merges of a cut span's item fall to this worker.
struct Merges {
  bool of_group;
  uint32_t parts;  // of the item's rows, a bit each
};

}  // namespace leanattn
