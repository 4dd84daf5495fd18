// Stage 2, between the scores and the softmax: what a call's options (ScoreOptions) make of a tile's scores.
#pragma once

#include <utility>

#include "softmax_state.cuh"
#include "traits.cuh"

namespace leanattn {

// Which of a sequence's last tokens an item's rows do not see.
struct CausalRows {
  int32_t tokens;  // DecodeParams::causal_tokens; 0: all rows see all
  float inverse_group;
  int32_t first_row;

  __device__ __forceinline__ int32_t hidden(int32_t row) const {
    return tokens == 0 ? 0 : tokens - token_of(first_row + row, inverse_group);
  }
};

// Gives tokens that a row does not see a weight of 0, where the last `visible` tokens of the sequence begin with the
// first one of `scores(r, t)`, this lane's scores of the rows and tokens that `Loop` says.
template <typename Traits, typename Loop, typename Scores>
__device__ __forceinline__ void hide_unseen(Scores& scores, int visible, const CausalRows& causal, int lane) {
  int seen[Loop::kThreadRows];
#pragma unroll
  for (int r = 0; r < Loop::kThreadRows; ++r) {
    seen[r] = visible - causal.hidden(Loop::row(lane, r));
    if constexpr (Traits::kGeneral) seen[r] = min(seen[r], visible);  // of windows that reach further
  }
#pragma unroll
  for (int t = 0; t < decltype(cute::size<1>(scores))::value; ++t) {
#pragma unroll
    for (int r = 0; r < Loop::kThreadRows; ++r) {
      if (Loop::place(lane, t) >= seen[r]) scores(r, t) = kMinusInfinity;
    }
  }
}

// Of one warp's part of a tile. Empty in kernels of other kinds.
template <typename Traits, bool kAny = Traits::kGeneral>
struct ScoreChanges {
  __device__ __forceinline__ static ScoreChanges of(const DecodeParams&, const SpanOrigin&, int, int32_t, int32_t) {
    return {};
  }
  template <typename Loop, typename Scores>
  __device__ __forceinline__ void apply(Scores&) const {}
};

template <typename Traits>
struct ScoreChanges<Traits, true> {
  const DecodeParams& params;
  const SpanOrigin& origin;  // in shared memory: read where it is needed, it takes no registers
  int32_t warp;
  int32_t first_row;  // of the item, among those of its KV head
  int32_t first_own;  // the first query token's own token, from the first of the warp's on; may be negative

  // `visible`: tokens of the sequence from the first of the warp's on.
  __device__ __forceinline__ static ScoreChanges of(const DecodeParams& params, const SpanOrigin& origin, int warp,
                                                    int32_t first_row, int32_t visible) {
    return {params, origin, warp, first_row, visible - origin.block.tail};
  }

  // `scores(r, t)`: this lane's scores (log2 units) of the rows and tokens that `Loop` says.
  template <typename Loop, typename Scores>
  __device__ __forceinline__ void apply(Scores& scores) const {
    const ScoreOptions& options = params.scores;
    const int32_t changes = params.score_changes;
    if (changes == 0) return;
    // A loop of one round: of an `if` alone ptxas makes predicated instructions, which take their turn in calls without
    // a soft cap too, up to 300 of them a tile (docs/tuning.md).
    for (bool capped = changes & ScoreOptions::kSoftcap; capped; capped = params.batch < 0) {
      const float inverse = 1.f / options.softcap_log2;
      for_each_row<Loop>([&](int r, int) {
        for_each_token(scores, [&](int t) { scores(r, t) = options.softcap_log2 * tanhf(scores(r, t) * inverse); });
      });
    }
    if (changes & ScoreOptions::kAlibi) {
      const int32_t head = (origin.kv_head + Traits::head_of_warp(warp)) * params.group;
      const float* slopes = options.alibi_slopes + options.first_slope(origin.block.seq, head);  // of the KV head
      for_each_row<Loop>([&](int r, int lane) {
        const QueryRow row = params.query_row(0, first_row + Loop::row(lane, r));
        // The rows of padding have heads that there are not.
        const float slope = slopes[min(row.head, params.group - 1)] * kLog2E;
        const auto own = float(first_own + row.token);
        for_each_token(scores, [&](int t) { scores(r, t) -= slope * fabsf(own - float(Loop::place(lane, t))); });
      });
    }
    if ((changes & (ScoreOptions::kWindow | ScoreOptions::kTree)) == 0) return;
    // The last query token's window begins last.
    if (changes & ScoreOptions::kWindow && first_own + params.q_len - 1 > options.window_left) {
      for_each_row<Loop>([&](int r, int lane) {
        const int32_t own = first_own + params.query_row(0, first_row + Loop::row(lane, r)).token;
        for_each_token(scores, [&](int t) {
          if (Loop::place(lane, t) < own - options.window_left) scores(r, t) = kMinusInfinity;
        });
      });
    }
    if (changes & ScoreOptions::kTree) {
      const int32_t first_new = first_own - origin.block.first;
      if (first_new < Traits::kWarpTokens) hide_by_tree<Loop>(scores, first_new);
    }
  }

 private:
  // `first_new`: the sequence's first new token, from the first of the warp's on.
  template <typename Loop, typename Scores>
  __device__ __forceinline__ void hide_by_tree(Scores& scores, int32_t first_new) const {
    const TreeMask& tree = params.scores.tree;
    for_each_row<Loop>([&](int r, int lane) {
      // The rows of padding have query tokens that there are not.
      const int32_t token = min(params.query_row(0, first_row + Loop::row(lane, r)).token, origin.block.tokens - 1);
      const int32_t* bits = tree.of_query(origin.block.query, token);
      for_each_token(scores, [&](int t) {
        if (tree.hides(bits, Loop::place(lane, t) - first_new)) scores(r, t) = kMinusInfinity;
      });
    });
  }
  // Row by row: what belongs to a row takes registers, of which 16 rows leave few.
  template <typename Loop, typename Body>
  __device__ __forceinline__ static void for_each_row(const Body& body) {
    const int lane = ptx::thread_index_here() % 32;
#pragma unroll
    for (int r = 0; r < Loop::kThreadRows; ++r) body(r, lane);
  }
  template <typename Scores, typename Body>
  __device__ __forceinline__ static void for_each_token(Scores&, const Body& body) {
#pragma unroll
    for (int t = 0; t < decltype(cute::size<1>(std::declval<Scores&>()))::value; ++t) body(t);
  }
};

}  // namespace leanattn
