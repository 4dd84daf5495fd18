// Stage 1 on a GPU: a CTA finds its own share of the line of tiles (schedule.h), from the lengths on the device.
// The sums that total_units() and worker_spans() do with one thread are done here by a warp, without a barrier.
#pragma once

#include "params.h"
#include "plan.h"

namespace leanattn {

struct WorkerShare {
  Shares shares;
  SpanCursor spans;
};

// All lanes of a warp call it and get the same answer. Each sums a run of consecutive sequences: one for a batch of up
// to 32.
__device__ __forceinline__ WorkerShare locate_worker_share(const TileLine& line, int32_t workers, int32_t worker) {
  const int32_t lane = int32_t(threadIdx.x) % 32;
  const int32_t run = ceil_div(line.batch, 32);
  const int32_t run_begin = min(lane * run, line.batch), run_end = min(run_begin + run, line.batch);
  int32_t run_units = 0;
#pragma unroll 8
  for (int32_t seq = run_begin; seq < run_end; ++seq) run_units += line.seq_units(seq);

  int32_t run_line_end = run_units;  // place on the line, as soon as the lanes below are added
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int32_t below = __shfl_up_sync(~0u, run_line_end, step);
    if (lane >= step) run_line_end += below;
  }
  const Shares shares = Shares::of(__shfl_sync(~0u, run_line_end, 31), workers);
  const int32_t begin = shares.begin(worker), units = shares.size(worker);
  if (units == 0) return {shares, SpanCursor::at(line, 0, 0, 0, 0)};

  // Exactly one lane's run holds the first unit of the share.
  int32_t seq_line = run_line_end - run_units, seq = run_begin;
  const bool here = seq_line <= begin && begin < run_line_end;
  if (here && run > 1) {
    bool found = false;  // no way out of the loop: its loads shall not wait for each other
#pragma unroll 8
    for (int32_t i = run_begin; i < run_end; ++i) {
      const int32_t n = line.seq_units(i);
      found = found || seq_line + n > begin;
      if (!found) {
        seq_line += n;
        seq = i + 1;
      }
    }
  }
  const int finder = __ffs(int(__ballot_sync(~0u, here))) - 1;
  seq = __shfl_sync(~0u, seq, finder);
  seq_line = __shfl_sync(~0u, seq_line, finder);
  return {shares, SpanCursor::at(line, seq, begin - seq_line, begin, units)};
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
    if (header.fits(line, params.workers)) return {header.shares, share.on(plan.on_its_lengths(line))};
  }
  return locate_worker_share(line, params.workers, worker);
}

}  // namespace leanattn
