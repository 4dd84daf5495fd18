// Makes a plan (plan.h): a warp finds the share of one worker.
#include "launch.h"
#include "worker_share.cuh"

namespace leanattn {
namespace {

constexpr int kWarps = 4;  // of a CTA

// Even pieces, if there are workers enough; else Pieces{}. The sums of cuts_of().
__device__ __forceinline__ Pieces find_pieces(const TileLine& line, int32_t workers, const LaneRun& run) {
  int32_t tiles = 0, longest = 0;
#pragma unroll 2
  for (int32_t seq = run.begin; seq < run.end; ++seq) {
    const int32_t n = line.item_tiles(seq);
    tiles += n;
    longest = max(longest, n);
  }
  tiles = __reduce_add_sync(~0u, tiles) * line.items_per_seq;
  longest = __reduce_max_sync(~0u, longest);
  if (!Pieces::possible(line, tiles, workers)) return {};
  int32_t counts[Pieces::kCandidates] = {};
#pragma unroll 1
  for (int32_t seq = run.begin; seq < run.end; ++seq) {
#pragma unroll
    for (int i = 0; i < Pieces::kCandidates; ++i) {
      counts[i] += Pieces::candidate(i, tiles, longest, workers).count(line.item_tiles(seq));
    }
  }
  Pieces found{};
#pragma unroll
  for (int i = Pieces::kCandidates - 1; i >= 0; --i) {
    const bool enough = __reduce_add_sync(~0u, counts[i]) * line.items_per_seq <= workers;
    if (enough) found = Pieces::candidate(i, tiles, longest, workers);
  }
  return found;
}

// As moved_cut() of cuts.h.
__device__ __forceinline__ int32_t whole_item_cut(const LineOfWarp<false>& warp_line, int32_t at) {
  if (at == warp_line.total_units) return at;
  const SequencePlace place = warp_line.find(at);
  const int32_t item_units = warp_line.line.item_units(place.seq);
  return WholeItems::nearest_border(at, at - place.offset % item_units, item_units);
}

// Whole items, if that is nearly as even; else WholeItems{}. As cuts_of() does it.
__device__ __forceinline__ WholeItems find_whole_items(const LineOfWarp<false>& warp_line, int32_t workers) {
  const TileLine& line = warp_line.line;
  if (!WholeItems::possible(line, warp_line.total_units, warp_line.longest, workers)) return {};
#pragma unroll 1
  for (int i = 0; i < WholeItems::kCandidates; ++i) {
    const auto whole = WholeItems::candidate(i, warp_line.total_units, warp_line.longest, workers);
    WholeItems::Moves moves;
    int32_t at = warp_line.run_end - warp_line.run_units;
#pragma unroll 1
    for (int32_t seq = warp_line.run.begin; seq < warp_line.run.end; at += line.seq_units(seq++)) {
      moves.add(line, whole, seq, at);
    }
    moves = {__reduce_min_sync(~0u, moves.left), __reduce_max_sync(~0u, moves.right)};
    if (whole.even(moves, warp_line.total_units, workers)) return whole;
  }
  return {};
}

// As locate_worker_share(), of pieces.
__device__ __forceinline__ WorkerShare locate_piece(const TileLine& line, const Pieces& pieces, const LaneRun& run,
                                                    int32_t worker) {
  const auto pieces_of = [&](int32_t seq) { return pieces.count(line.item_tiles(seq)) * line.items_per_seq; };
  int32_t run_pieces = 0;
#pragma unroll 1
  for (int32_t seq = run.begin; seq < run.end; ++seq) run_pieces += pieces_of(seq);
  const int32_t lanes = LaneRun::lanes(line), run_end = sum_of_lanes_so_far(run_pieces, lanes);
  const Cuts cuts{{}, pieces, {}, line.item_cost};
  if (worker >= __shfl_sync(~0u, run_end, lanes - 1)) return {cuts, SpanCursor::none(line)};
  const auto place = SequencePlace::find<false>(run, run_pieces, run_end, worker, pieces_of);
  return {cuts, pieces.worker_spans(line, place.seq, place.offset)};
}

// The cuts of the line, or of whole items where that is as good.
__device__ __forceinline__ WorkerShare locate_on_line(const TileLine& line, int32_t workers, int32_t worker) {
  const auto warp_line = LineOfWarp<false>::of(line);
  Cuts cuts{shares_of(line, warp_line.total_units, workers), {}, {}, line.item_cost};
  cuts.whole = find_whole_items(warp_line, workers);
  if (cuts.whole.units == 0) return {cuts, warp_line.spans(cuts.shares.begin(worker), cuts.shares.size(worker))};
  const int32_t begin = whole_item_cut(warp_line, cuts.whole.cut(worker, warp_line.total_units));
  const int32_t end = whole_item_cut(warp_line, cuts.whole.cut(worker + 1, warp_line.total_units));
  return {cuts, warp_line.spans(begin, end - begin)};
}

__device__ __forceinline__ WorkerShare find_planned_share(const TileLine& line, const FixedPieces& fixed,
                                                          int32_t workers, int32_t worker) {
  if (fixed.any()) return locate_fixed_pieces(line, fixed, workers, worker);
  const LaneRun run = LaneRun::of(line);
  const Pieces pieces = find_pieces(line, workers, run);
  return pieces.tiles > 0 ? locate_piece(line, pieces, run, worker) : locate_on_line(line, workers, worker);
}

__global__ void plan_kernel(const __grid_constant__ TileLine line, const FixedPieces fixed, const int32_t workers,
                            int32_t* memory) {
  const Plan plan{memory};
  const int32_t thread = blockIdx.x * blockDim.x + threadIdx.x, worker = thread / 32;
  if (worker < workers) {
    const WorkerShare share = find_planned_share(line, fixed, workers, worker);
    if (thread % 32 == 0) plan.share(worker) = PlannedShare::of(share.spans);
    if (thread == 0) plan.header() = PlanHeader::of(line, PlanHeader::kind_of(line, fixed), workers, share.cuts);
  }
  for (int32_t seq = thread; seq < line.batch; seq += gridDim.x * blockDim.x) plan.keep(line, seq);
}

}  // namespace

cudaError_t launch_plan(const DecodeParams& params, cudaStream_t stream) {
  plan_kernel<<<ceil_div(params.teams, kWarps), 32 * kWarps, 0, stream>>>(params.line(), params.fixed_pieces,
                                                                          params.teams, params.plan);
  return cudaGetLastError();
}

}  // namespace leanattn
