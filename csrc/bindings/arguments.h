// From tensors to DecodeParams: with checks.h, every check that keeps a kernel inside its memory.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "allocate.h"
#include "checks.h"
#include "kernels/params.h"

namespace leanattn {

// What changes the scores, or which tokens a query sees (leanattn/decode.py).
struct ScoreArguments {
  int64_t window_left = -1, window_right = -1;           // -1: no bound
  double softcap = 0;                                    // 0: none
  const torch::stable::Tensor* sinks = nullptr;          // [num_q_heads] float32, or null
  const torch::stable::Tensor* alibi_slopes = nullptr;   // [num_q_heads] or [batch, num_q_heads] float32, or null
  const torch::stable::Tensor* cache_leftpad = nullptr;  // [batch] int32, or null
  const torch::stable::Tensor* tree_mask = nullptr;      // [query tokens as in q, words] int32, or null
};

struct DecodeArguments {
  const torch::stable::Tensor& q;        // [batch, num_q_heads, head_dim] or [batch, q_len, num_q_heads, head_dim];
                                         // with cu_seqlens_q [tokens, num_q_heads, head_dim]
  const torch::stable::Tensor& k_cache;  // [batch, max_tokens, num_kv_heads, head_dim], or with a block_table
                                         // [num_pages, page_size, num_kv_heads, head_dim]
  const torch::stable::Tensor& v_cache;  // as k_cache, but for its head_dim
  const torch::stable::Tensor& cache_seqlens;  // [batch] int32
  const torch::stable::Tensor& out;            // as q, but for head_dim, that of v_cache
  const torch::stable::Tensor* lse;            // [batch, num_q_heads] (or [..., q_len] for 4-D q; with cu_seqlens_q
                                               // [num_q_heads, tokens]) float32, or null
  std::optional<double> softmax_scale;         // 1 / sqrt(head_dim) if absent
  bool causal;                                 // a query token sees no later ones
  int64_t num_workers;                         // 0: the backend's default
  std::optional<int64_t> fresh_tokens;         // the caller's promise (params.h)
  const torch::stable::Tensor* plan;           // [Plan::elements(batch)] int32 (plan.h), or null
  const torch::stable::Tensor* block_table;    // [batch, max_pages] int32, or null
  ScoreArguments scores;
  const torch::stable::Tensor* k_scale;       // [1] or [num_kv_heads] float32: factors of a float8 cache; of an int8
                                              // cache [batch, max_tokens, num_kv_heads], or of pages; or null
  const torch::stable::Tensor* v_scale;       // as k_scale
  const torch::stable::Tensor* cu_seqlens_q;  // [batch + 1] int32, or null
  bool batch_invariant;                       // the same bits for a sequence whatever else is in the batch
};

// A call: what its kernel is given, and if its queries are packed what the blocks of them are made from.
struct DecodeCall {
  DecodeParams params;
  PackedQueries packed;
};

// num_workers of a call, 0 for the backend's default; throws if there can't be as many.
int32_t checked_workers(int64_t num_workers);

// Throws std::invalid_argument, naming the argument, unless all of them fit each other.
// Sets workers if num_workers is not 0. The tiling (tile_table.h), the workspace and the default of workers are the
// backend's to set.
// Of packed queries, what lies in their blocks' memory is the backend's to set too (bind_blocks()).
DecodeCall checked_call(const DecodeArguments& args);

// Lets the call read its blocks of queries from `memory`, which has QueryBlocks::elements(packed) elements.
QueryBlocks bind_blocks(DecodeParams& params, const PackedQueries& packed, int32_t* memory);

// The packed queries of a call, whose group, head_dim, v_head_dim, cache_dtype, max_tokens, window_left and
// window_right `params` has. Sets batch, row_limit, and what set_query_rows() does.
PackedQueries checked_packed_queries(const torch::stable::Tensor& cu_seqlens_q, const TensorView& seqlens,
                                     int64_t tokens, DecodeParams& params);

// What of the arguments changes scores or what is seen, for params that hold all else; throws std::invalid_argument,
// naming the argument.
ScoreOptions checked_score_options(const ScoreArguments& args, const DecodeParams& params, const Anchor& q);

// Sets scores.window_left, -1 for no bound or one that hides nothing, seen_tokens, causal_tokens and score_options;
// max_tokens, q_len and all else of scores are set.
void set_window(DecodeParams& params, int32_t window_left, bool packed);

// window_left or window_right, -1 for no bound; throws std::invalid_argument, naming it.
int32_t checked_window(int64_t tokens, const char* name);

// Sets q_len, group and rows; throws if there can't be as many.
void set_query_rows(DecodeParams& params, int64_t q_len, int64_t group);
void check_q_len(int64_t q_len);  // of queries that are not packed

// Throws unless the line of tiles (schedule.h) has fewer than 2^31 units when every sequence is max_tokens long.
void check_line_fits(const DecodeParams& params);

// With debug.fixed_splits, a worker for each piece of each item. Throws if there are not tickets for as many, or more
// than `most_teams` of whole items, which take none.
void apply_fixed_splits(DecodeParams& params, int32_t most_teams);

// The memory of a plan for `batch` sequences on `device`; throws unless it can hold one.
int32_t* checked_plan(const torch::stable::Tensor& plan, int64_t batch, Device device);

}  // namespace leanattn
