#include "decode_cpu.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>

#include "bundle.h"
#include "kernels/plan.h"
#include "kernels/tile_table.h"
#include "output.h"
#include "reduction.h"

namespace leanattn::cpu {
namespace {

static_assert(tile_table::kMaxBlockRows <= kMaxRows && tile_table::kCpuTileTokens <= kMaxTileTokens);

// What one worker needs beside the workspace: 137 KiB, on its stack.
struct alignas(64) WorkerMemory {
  float q[kMaxRows * kMaxHeadDim];
  float scores[kMaxRows * kMaxTileTokens];
  float out[kMaxRows * kMaxHeadDim];  // of whole items
  float ml[kMaxRows * 2];
};

// For tests: lets workers arrive in many orders.
void pause(const DecodeParams& p, int32_t worker, uint32_t moment) {
  if (p.debug.delay_seed == 0) return;
  const uint32_t mixed = (p.debug.delay_seed + 2 * worker + moment) * 2654435761u;  // Knuth's multiplicative hash
  std::this_thread::sleep_for(std::chrono::microseconds(mixed >> 25));              // 0..127
}

struct WorkerShare {
  Cuts cuts;
  PieceCursor spans;
};

int32_t item_kind(const DecodeParams& p) { return PlanHeader::kind_of(p.line(), p.fixed_pieces); }

WorkerShare worker_share(const DecodeParams& p, int32_t worker) {
  const TileLine line = p.line();
  const Plan plan{p.plan};
  if (p.debug.fixed_splits > 0) {
    return {{}, PieceCursor::at(FixedSplit{p.debug.fixed_splits}.worker_spans(line, worker), {})};
  }
  if (plan.serves(line, item_kind(p), p.teams)) {
    return {plan.header().cuts, PieceCursor::at(plan.share(worker).on(plan.on_its_lengths(line)), p.fixed_pieces)};
  }
  const Cuts cuts = Cuts::of_line(line, p.teams, p.fixed_pieces);
  return {cuts, worker_spans(line, cuts, worker, p.fixed_pieces)};
}

// Stage 3: the partial of a span has been written. The rows of its item, if this worker is the last one to have
// anything of it.
std::optional<SoftmaxRows> reduce(const DecodeParams& p, const TileKernels& kernels, const Cuts& cuts, int32_t worker,
                                  const Bundle& bundle) {
  const auto merge = [&](const auto& cut, uint32_t own, bool shared) -> std::optional<SoftmaxRows> {
    pause(p, worker, 0);
    if (shared && !takes_last_ticket(p, cut, own)) return std::nullopt;
    pause(p, worker, 1);
    return merge_partials(p, cut, kernels, bundle.rows);
  };
  if (!p.fixed_pieces.any()) return merge(p.cut_item(cuts, worker, bundle.span), 1, true);
  const auto cut = CutPieces::of(p.fixed_pieces, cuts.shares, p.teams, worker, bundle.span);
  return cut.last_own() ? merge(cut, cut.own(), cut.shared()) : std::nullopt;
}

// Where the partial of a span goes.
int32_t slot_of(const DecodeParams& p, const Cuts& cuts, int32_t worker, const Span& span) {
  if (!p.fixed_pieces.any()) return partial_slot(worker, span);
  const auto cut = CutPieces::of(p.fixed_pieces, cuts.shares, p.teams, worker, span);
  return cut.slot(cut.piece);
}

}  // namespace

void make_plan(const DecodeParams& p) {
  const TileLine line = p.line();
  const Plan plan{p.plan};
  const Cuts cuts = cuts_of(line, p.teams, p.fixed_pieces);
  plan.header() = PlanHeader::of(line, item_kind(p), p.teams, cuts);
  for (int32_t worker = 0; worker < p.teams; ++worker) {
    plan.share(worker) = PlannedShare::of(worker_spans(line, cuts, worker, p.fixed_pieces).spans);
  }
  for (int32_t seq = 0; seq < line.batch; ++seq) plan.keep(line, seq);
}

void run_worker(const DecodeParams& p, const TileKernels& kernels, int32_t worker) {
  write_empty_outputs(p, worker);

  // 1 schedule
  const auto [cuts, first] = worker_share(p, worker);
  PieceCursor cursor = first;
  const auto take = [&] { return cursor.done() ? std::nullopt : std::optional(Bundle::take(p, cursor)); };

  WorkerMemory memory;
  std::optional<Bundle> following = take();
  while (following) {
    const Bundle bundle = *following;
    following = take();

    // 2 lean tile loop
    const bool whole = bundle.span.whole_item();
    SoftmaxRows rows = whole ? SoftmaxRows{memory.out, memory.ml} : partial(p, slot_of(p, cuts, worker, bundle.span));
    const SpanTask task = bundle.task(p);
    const std::optional<SpanTask> next = following ? std::optional(following->task(p)) : std::nullopt;
    kernels.attend(task, next ? &*next : nullptr, {memory.q, memory.scores}, rows);

    // 3 host-block reduction
    if (!whole) {
      const std::optional<SoftmaxRows> merged = reduce(p, kernels, cuts, worker, bundle);
      if (!merged) continue;
      rows = *merged;
    }

    // 4 output
    write_output(p, kernels, bundle, rows);
  }
}

}  // namespace leanattn::cpu
