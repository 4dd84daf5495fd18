// Stage 1 on a GPU: a CTA finds its own share of the line of tiles (schedule.h), from the lengths on the device.
// The sums that total_units() and worker_spans() do with one thread are done here by a warp, without a barrier.
#pragma once

#include "params.h"
#include "plan.h"

namespace leanattn {

struct WorkerShare {
  Cuts cuts;
  SpanCursor spans;
};

// Of all lanes of a warp, each a run of consecutive sequences: one for a batch of up to 32.
struct LaneRun {
  int32_t begin, end;

  __device__ __forceinline__ static LaneRun of(const TileLine& line) {
    const int32_t length = ceil_div(line.batch, 32), begin = min(int32_t(threadIdx.x) % 32 * length, line.batch);
    return {begin, min(begin + length, line.batch)};
  }
};

// Sum over the lanes up to and with this one.
__device__ __forceinline__ int32_t sum_of_lanes_so_far(int32_t value) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int32_t below = __shfl_up_sync(~0u, value, step);
    if (int32_t(threadIdx.x) % 32 >= step) value += below;
  }
  return value;
}

// The sequence in which place `at` falls, if each sequence takes length_of(seq) places, and how far into it. `run_end`
// is the place where this lane's run ends. There must be such a sequence.
struct SequencePlace {
  int32_t seq, offset;

  template <typename LengthOf>
  __device__ __forceinline__ static SequencePlace find(const LaneRun& run, int32_t run_length, int32_t run_end,
                                                       int32_t at, const LengthOf& length_of) {
    // Exactly one lane's run holds the place.
    int32_t before = run_end - run_length, seq = run.begin;
    const bool here = before <= at && at < run_end;
    if (here && run.end - run.begin > 1) {
      bool found = false;  // no way out of the loop: its loads shall not wait for each other
#pragma unroll 8
      for (int32_t i = run.begin; i < run.end; ++i) {
        const int32_t n = length_of(i);
        found = found || before + n > at;
        if (!found) {
          before += n;
          seq = i + 1;
        }
      }
    }
    const int finder = __ffs(int(__ballot_sync(~0u, here))) - 1;
    return {__shfl_sync(~0u, seq, finder), at - __shfl_sync(~0u, before, finder)};
  }
};

// The line, as a warp sees it: all lanes call it and get the same answers.
struct LineOfWarp {
  TileLine line;
  LaneRun run;
  int32_t run_units, run_end;  // units of this lane's run, and the place where it ends
  int32_t total_units;
  int32_t longest;  // units of the longest item

  __device__ __forceinline__ static LineOfWarp of(const TileLine& line) {
    LineOfWarp result{line, LaneRun::of(line), 0, 0, 0, 0};
#pragma unroll 8
    for (int32_t seq = result.run.begin; seq < result.run.end; ++seq) {
      const int32_t item_units = line.item_units(seq);
      result.run_units += item_units * line.items_per_seq;
      result.longest = max(result.longest, item_units);
    }
    result.longest = __reduce_max_sync(~0u, result.longest);
    result.run_end = sum_of_lanes_so_far(result.run_units);
    result.total_units = __shfl_sync(~0u, result.run_end, 31);
    return result;
  }
  // Of a place before the end of the line.
  __device__ __forceinline__ SequencePlace find(int32_t at) const {
    return SequencePlace::find(run, run_units, run_end, at, [&](int32_t seq) { return line.seq_units(seq); });
  }
  __device__ __forceinline__ SpanCursor spans(int32_t begin, int32_t units) const {
    if (units == 0) return SpanCursor::at(line, 0, 0, 0, 0);
    const SequencePlace place = find(begin);
    return SpanCursor::at(line, place.seq, place.offset, begin, units);
  }
};

__device__ __forceinline__ WorkerShare locate_worker_share(const TileLine& line, int32_t workers, int32_t worker) {
  const auto warp_line = LineOfWarp::of(line);
  const LineCut cut = LineCut::of(line, warp_line.total_units, warp_line.longest, workers);
  const int32_t begin = cut.shares.begin(worker), units = cut.shares.size(worker);
  if (!cut.uniform) return {Cuts::of_line(cut), warp_line.spans(begin, units)};
  TileLine uniform = line;
  uniform.item_cost = cut.item_cost;
  const int32_t seq_units = (warp_line.longest - line.item_cost + cut.item_cost) * line.items_per_seq;
  const int32_t seq = begin / seq_units;
  return {Cuts::of_line(cut), SpanCursor::at(uniform, seq, begin - seq * seq_units, begin, units)};
}

// The share of a worker: from the plan, or found here and now.
__device__ __forceinline__ WorkerShare worker_share(const DecodeParams& params, int32_t tile_tokens, int32_t worker) {
  TileLine line = params.line();
  line.tile_tokens = tile_tokens;
  if (params.debug.fixed_splits > 0) return {{}, FixedSplit{params.debug.fixed_splits}.worker_spans(line, worker)};
  if (params.plan != nullptr) {
    const Plan plan{params.plan};
    const PlannedShare share = plan.share(worker);  // asked for together with the header
    const PlanHeader header = plan.header();
    if (header.fits(line, params.teams)) return {header.cuts, share.on(plan.on_its_lengths(line))};
  }
  return locate_worker_share(line, params.teams, worker);
}

}  // namespace leanattn
