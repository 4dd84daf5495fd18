// Stage 1 on a GPU: a CTA finds its own share of the line of tiles (schedule.h), from the lengths on the device.
// The sums that total_units() and worker_spans() do with one thread are done here by all threads of the CTA.
#pragma once

#include "schedule.h"

namespace leanattn {

// Sum over the lanes below this one, and over the whole warp.
__device__ __forceinline__ int32_t warp_exclusive_sum(int32_t value, int32_t& total) {
  const int lane = threadIdx.x % 32;
  int32_t sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int32_t below = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += below;
  }
  total = __shfl_sync(~0u, sum, 31);
  return sum - value;
}

struct WorkerShare {
  Shares shares;
  SpanCursor spans;
};

// All threads of the CTA call it and get the same answer.
template <typename Traits>
__device__ __forceinline__ WorkerShare locate_worker_share(const TileLine& line, int32_t workers, int32_t worker,
                                                           typename Traits::SharedMemory& smem) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  // Each thread sums a run of consecutive sequences: one for a batch of up to 128.
  const int32_t run = ceil_div(line.batch, Traits::kThreads);
  const int32_t run_begin = min(int32_t(threadIdx.x) * run, line.batch);
  const int32_t run_end = min(run_begin + run, line.batch);
  int32_t run_units = 0;
  for (int32_t seq = run_begin; seq < run_end; ++seq) run_units += line.seq_units(seq);

  int32_t warp_units;
  int32_t run_line = warp_exclusive_sum(run_units, warp_units);  // place of the run on the line
  if (lane == 0) smem.scan[warp] = warp_units;
  __syncthreads();
  int32_t total = 0;
#pragma unroll
  for (int w = 0; w < Traits::kWarps; ++w) {
    if (w < warp) run_line += smem.scan[w];
    total += smem.scan[w];
  }

  const Shares shares = Shares::of(total, workers);
  const int32_t begin = shares.begin(worker), units = shares.size(worker);
  // Exactly one thread's run holds the first unit of the share; it finds the sequence.
  if (units > 0 && run_line <= begin && begin < run_line + run_units) {
    int32_t seq = run_begin;
    for (int32_t n = line.seq_units(seq); run_line + n <= begin; n = line.seq_units(++seq)) run_line += n;
    smem.located_seq = seq;
    smem.located_line = run_line;
  }
  __syncthreads();
  if (units == 0) return {shares, SpanCursor::at(line, 0, 0, 0, 0)};
  return {shares, SpanCursor::at(line, smem.located_seq, begin - smem.located_line, begin, units)};
}

}  // namespace leanattn
