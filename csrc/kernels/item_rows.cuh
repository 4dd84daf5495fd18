// Which query rows an item is about.
#pragma once

#include "params.h"

namespace leanattn {

// Which worker a CTA is: the first dimension of the grid is the team.
__device__ __forceinline__ int32_t team_here() { return int32_t(blockIdx.y); }
__device__ __forceinline__ int32_t member_here() { return int32_t(blockIdx.x); }
__device__ __forceinline__ int32_t worker_here(const DecodeParams& p) {
  return team_here() * p.team_size + member_here();
}

// Where the query rows of an item are. They are neighbours: either several KV heads with their whole groups, or a block
// of one group.
struct ItemRows {
  int32_t seq;
  int32_t kv_head;     // the first
  int32_t first_head;  // query head of the item's row 0
  int32_t count;       // rows of this item: the last query block of a group may have fewer

  // This worker's item, where its team's is `team_item`.
  __device__ __forceinline__ static ItemRows of(const DecodeParams& p, int32_t seq, int32_t team_item) {
    const int32_t item = team_item * p.team_size + member_here();
    if (p.row_blocks == 1) {
      const int32_t kv_head = item * p.heads;
      return {seq, kv_head, kv_head * p.group, p.heads * p.group};
    }
    const int32_t kv_head = item / p.row_blocks, row = item % p.row_blocks * p.block_rows;
    return {seq, kv_head, kv_head * p.group + row, min(p.block_rows, p.group - row)};
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

  __device__ __forceinline__ static SpanTask of(const DecodeParams& p, const Cuts& cuts, const Span& span,
                                                const ItemRows& rows) {
    const int32_t team = team_here();
    SpanTask task{rows, span.whole_item(), partial_slot(team, span), {}, {}, 0, 0};
    if (!task.whole_item) {
      task.cut = p.cut_item(cuts, team, span);
      task.groups = MergeGroups::of(task.cut.partials);
      task.group = task.groups.group_of(team - task.cut.first_worker);
      task.members = task.groups.members(task.group, task.cut.partials);
      if (task.members == 1) task.slot = group_slot(p.teams, task.cut.first_worker, task.group);
    }
    return task;
  }
};

}  // namespace leanattn
