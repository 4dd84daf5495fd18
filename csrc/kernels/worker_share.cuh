// Stage 1 on a GPU: a CTA finds its own share of the line of tiles (schedule.h), from the lengths on the device.
// The sums that total_units() and worker_spans() do with one thread are done here by a warp, without a barrier.
#pragma once

#include "params.h"
#include "plan.h"
#include "ptx.cuh"
#include "traits.cuh"

namespace leanattn {

template <typename Spans>
struct ShareOf {
  Cuts cuts;
  Spans spans;
};
using WorkerShare = ShareOf<SpanCursor>;

// The spans of a share, as far as a kernel knows of pieces.
template <typename Traits>
using Spans = std::conditional_t<Traits::kFixedPieces, PieceCursor, SpanCursor>;

// Of all lanes of a warp, each a run of consecutive sequences: one for a batch of up to 32.
struct LaneRun {
  int32_t begin, end;

  __device__ __forceinline__ static LaneRun of(const TileLine& line) {
    const int32_t length = ceil_div(line.batch, 32), begin = min(int32_t(threadIdx.x) % 32 * length, line.batch);
    return {begin, min(begin + length, line.batch)};
  }
  // Lanes that may have one.
  __device__ __forceinline__ static int32_t lanes(const TileLine& line) { return min(line.batch, 32); }
};

// Sum over the lanes up to and with this one, right in the first `lanes` of them.
__device__ __forceinline__ int32_t sum_of_lanes_so_far(int32_t value, int32_t lanes) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    if (step >= lanes) break;
    const int32_t below = __shfl_up_sync(~0u, value, step);
    if (int32_t(threadIdx.x) % 32 >= step) value += below;
  }
  return value;
}

// The sequence in which place `at` falls, if each sequence takes length_of(seq) places, and how far into it. `run_end`
// is the place where this lane's run ends. There must be such a sequence.
struct SequencePlace {
  int32_t seq, offset;

  template <bool kFew, typename LengthOf>
  __device__ __forceinline__ static SequencePlace find(const LaneRun& run, int32_t run_length, int32_t run_end,
                                                       int32_t at, const LengthOf& length_of) {
    // Exactly one lane's run holds the place.
    const int32_t run_begin = run_end - run_length;
    const bool here = run_begin <= at && at < run_end;
    SequencePlace place{run.begin, at - run_begin};
    if (!kFew && here && run.end - run.begin > 1) {
      bool found = false;  // no way out of the loop: its loads shall not wait for each other
#pragma unroll 8
      for (int32_t i = run.begin; i < run.end; ++i) {
        const int32_t n = length_of(i);
        found = found || n > place.offset;
        if (!found) place = {i + 1, place.offset - n};
      }
    }
    const int finder = __ffs(int(__ballot_sync(~0u, here))) - 1;
    return {__shfl_sync(~0u, place.seq, finder), __shfl_sync(~0u, place.offset, finder)};
  }
};

// A copy that is asked for here, however late it is used.
template <typename T>
__device__ __forceinline__ T load_now(const T* from) {
  static_assert(sizeof(T) % sizeof(int4) == 0 && alignof(T) >= alignof(int4));
  alignas(16) int4 words[sizeof(T) / sizeof(int4)];
#pragma unroll
  for (size_t i = 0; i < sizeof(T) / sizeof(int4); ++i)
    words[i] = ptx::load_now(reinterpret_cast<const int4*>(from) + i);
  return reinterpret_cast<const T&>(words);
}

// The line, as a warp sees it: all lanes call it and get the same answers.
//
// To find its share is a chain that every call waits for. So few sequences, a lane each, are a case of their own
// (kFew): no loop, nothing read twice, and no code to jump over, since what is jumped to must be fetched first.
template <bool kFew>
struct LineOfWarp {
  TileLine line;
  LaneRun run;
  int32_t run_units, run_end;  // units of this lane's run, and the place where it ends
  int32_t total_units;
  int32_t longest;  // units of the longest item
  int32_t tokens;   // kFew: of this lane's sequence

  __device__ __forceinline__ static LineOfWarp of(const TileLine& line) {
    LineOfWarp result{line, LaneRun::of(line), 0, 0, 0, 0, 0};
    if constexpr (kFew) {
      if (result.run.begin < result.run.end) result.tokens = line.tokens(result.run.begin);
      result.longest = line.units_of(result.tokens);
      result.run_units = result.longest * line.items_per_seq;
    } else {
#pragma unroll 8
      for (int32_t seq = result.run.begin; seq < result.run.end; ++seq) {
        const int32_t item_units = line.item_units(seq);
        result.run_units += item_units * line.items_per_seq;
        result.longest = max(result.longest, item_units);
      }
    }
    const int32_t lanes = LaneRun::lanes(line);
    result.longest = __reduce_max_sync(~0u, result.longest);
    result.run_end = sum_of_lanes_so_far(result.run_units, lanes);
    result.total_units = __shfl_sync(~0u, result.run_end, lanes - 1);
    return result;
  }
  // Of a place before the end of the line.
  __device__ __forceinline__ SequencePlace find(int32_t at) const {
    return SequencePlace::find<kFew>(run, run_units, run_end, at, [&](int32_t seq) { return line.seq_units(seq); });
  }
  __device__ __forceinline__ SpanCursor spans(int32_t begin, int32_t units) const {
    if (units == 0) return SpanCursor::none(line);
    return spans_at(line, find(begin), begin, units);
  }
  // The place is that of `begin` on a line of the same sequences.
  __device__ __forceinline__ SpanCursor spans_at(const TileLine& of_line, const SequencePlace& place, int32_t begin,
                                                 int32_t units) const {
    const int32_t seq = place.seq;
    int32_t seq_tokens, following;
    if constexpr (kFew) {
      seq_tokens = __shfl_sync(~0u, tokens, seq);
      following = __shfl_sync(~0u, tokens, seq + 1);
      if (seq + 1 == line.batch) following = 0;
    } else {
      seq_tokens = line.tokens(seq);
      following = line.tokens_after(seq);
    }
    return SpanCursor::at(of_line, seq, seq_tokens, following, place.offset, begin, units);
  }
};

template <bool kFew>
__device__ __forceinline__ WorkerShare locate_worker_share(const TileLine& line, int32_t workers, int32_t worker) {
  const auto warp_line = LineOfWarp<kFew>::of(line);
  const int32_t total_units = warp_line.total_units, longest = warp_line.longest;
  if (!LineCut::may_be_even(line, total_units, longest, workers)) {
    const auto cut = LineCut::anywhere(line, total_units, workers);
    return {Cuts::of_line(cut), warp_line.spans(cut.shares.begin(worker), cut.shares.size(worker))};
  }
  const auto cut = LineCut::even(line, total_units, longest, workers);
  const int32_t begin = cut.shares.begin(worker), units = cut.shares.size(worker);
  if (!cut.uniform) return {Cuts::of_line(cut), warp_line.spans(begin, units)};
  if (units == 0) return {Cuts::of_line(cut), SpanCursor::none(line)};
  TileLine uniform = line;
  uniform.item_cost = cut.item_cost;
  const int32_t seq_units = (longest - line.item_cost + cut.item_cost) * line.items_per_seq;
  const int32_t seq = quotient(begin, seq_units);
  return {Cuts::of_line(cut), warp_line.spans_at(uniform, {seq, begin - seq * seq_units}, begin, units)};
}

// The share of a worker of a batch-invariant call. As Cuts::of_fixed_pieces() and moved_cut() of cuts.h.
__device__ __noinline__ inline WorkerShare locate_fixed_pieces(const TileLine line, const FixedPieces fixed,
                                                               const int32_t workers, const int32_t worker) {
  const auto warp_line = LineOfWarp<false>::of(line);
  const auto cuts = Cuts::of_fixed_pieces(line, warp_line.total_units, workers);
  const auto moved = [&](int32_t at) {
    if (at == warp_line.total_units) return at;
    const SequencePlace place = warp_line.find(at);
    const int32_t tiles = line.item_tiles(place.seq), offset = place.offset % (tiles + line.item_cost);
    return at - offset + moved_to_border(line, fixed, tiles, offset);
  };
  const int32_t begin = moved(cuts.shares.begin(worker)), end = moved(cuts.shares.begin(worker + 1));
  return {cuts, warp_line.spans(begin, end - begin)};
}

// The share of a worker: from the plan, or found here and now.
template <typename Traits>
__device__ __forceinline__ WorkerShare find_share(const DecodeParams& params, int32_t worker) {
  TileLine line = line_of<Traits>(params);
  line.tile_tokens = Traits::kTileTokens;
  if (params.plan != nullptr) {
    const Plan plan{params.plan};
    const auto share = load_now(&plan.share(worker));  // together with the header
    const PlanHeader header = plan.header();
    if (header.fits(line, item_kind_of<Traits>(params), params.teams))
      return {header.cuts, share.on(plan.on_its_lengths(line))};
  }
  if constexpr (Traits::kFixedPieces) {
    if (params.fixed_pieces.any()) {
      return locate_fixed_pieces(line, params.fixed_pieces, params.teams, worker);
    }
  }
  if (params.debug.fixed_splits == 0) {
    return line.batch <= 32 ? locate_worker_share<true>(line, params.teams, worker)
                            : locate_worker_share<false>(line, params.teams, worker);
  }
  return {{}, FixedSplit{params.debug.fixed_splits}.worker_spans(line, worker)};
}

template <typename Traits>
__device__ __forceinline__ ShareOf<Spans<Traits>> worker_share(const DecodeParams& params, int32_t worker) {
  if constexpr (Traits::kFixedPieces) {
    const WorkerShare share = find_share<Traits>(params, worker);
    return {share.cuts, PieceCursor::at(share.spans, params.fixed_pieces)};
  } else {
    return find_share<Traits>(params, worker);
  }
}

}  // namespace leanattn
