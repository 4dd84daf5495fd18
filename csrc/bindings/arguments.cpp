#include "arguments.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "errors.h"
#include "kernels/plan.h"
#include "kernels/tile_table.h"

namespace leanattn {
namespace {

using torch::headeronly::ScalarType;

struct Views {
  TensorView q, out;
  std::optional<TensorView> lse;
  CacheViews cache;
  std::optional<TensorView> offsets;  // of packed queries

  static Views of(const DecodeArguments& a) {
    return {
        TensorView::of(a.q),
        TensorView::of(a.out),
        view_of(a.lse),
        {TensorView::of(a.k_cache), TensorView::of(a.v_cache), TensorView::of(a.cache_seqlens), view_of(a.block_table)},
        view_of(a.cu_seqlens_q)};
  }
  Anchor anchor() const { return {q, "q", offsets ? std::optional(offsets->numel() - 1) : std::nullopt}; }
};

int64_t q_len_of(const TensorView& q) { return q.dim() == 4 ? q.size(1) : 1; }

void check_shapes(const Views& a) {
  const auto &q = a.q, &k = a.cache.k;
  check_argument(q.dim() == 3 || (q.dim() == 4 && !a.offsets), "q: expected [batch, num_q_heads, head_dim] or ",
                 "[batch, q_len, num_q_heads, head_dim], with cu_seqlens_q [tokens, num_q_heads, head_dim], got ",
                 ShapeOf{q});
  const int64_t batch = q.size(0), heads = q.size(q.dim() - 2), head_dim = q.size(q.dim() - 1);
  check_argument(head_dim >= 1, "q: head_dim ", head_dim, ", expected 1 or more");
  // A bound for the query rows as well, which RowBlocks rounds up in 32 bits.
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max() - tile_table::kMaxBlockRows;
  const int64_t q_len = q_len_of(q);
  check_q_len(q_len);
  a.cache.check_shapes(a.anchor());
  const int64_t v_head_dim = a.cache.v_head_dim(), widest = std::max(head_dim, v_head_dim);
  check_argument(heads <= kLargest / widest / q_len, "q: q_len ", q_len, " x num_q_heads ", heads, " x head_dim ",
                 widest, ", expected a product of at most ", kLargest);
  check_argument(k.size(2) > 0 && heads > 0 && heads % k.size(2) == 0, "q: its ", heads,
                 " heads are not a multiple of the ", k.size(2), " KV heads of k_cache");
  const int64_t last = q.dim() - 1;
  check_argument(a.out.fits(q, last) && a.out.size(last) == v_head_dim, "out: expected the shape of q, ", ShapeOf{q},
                 ", with the head_dim of v_cache, ", v_head_dim, ", got ", ShapeOf{a.out});
  if (a.lse && a.offsets) {
    check_argument(a.lse->dim() == 2 && a.lse->size(0) == heads && a.lse->size(1) == batch, "lse: expected [", heads,
                   ", ", batch, "], got ", ShapeOf{*a.lse});
  } else if (a.lse) {
    // Of one query token, the shape with q_len and the one without are the same memory.
    const bool fits = a.lse->numel() == batch * heads * q_len;
    check_argument(fits && (q_len == 1 || (a.lse->dim() == 3 && a.lse->size(1) == heads)), "lse: expected [", batch,
                   ", ", heads, ", ", q_len, "], got ", ShapeOf{*a.lse});
  }
}

void check_types_and_layout(const Views& a) {
  check_rows_aligned(a.q, "q");
  a.cache.check_types_and_layout(a.anchor());
  check_like(a.anchor(), a.out, "out");
  check_rows_aligned(a.out, "out");
  check_rows_apart(a.out, "out");
  if (a.lse) {
    check_dtype(*a.lse, ScalarType::Float, "lse");
    check_device_of(a.anchor(), *a.lse, "lse");
    check_argument(a.lse->is_contiguous(), "lse: expected a contiguous tensor");
  }
}

RowStrides lse_strides(const Views& a, const DecodeParams& p) {
  if (a.offsets) return {1, 1, a.q.size(0)};
  return {int64_t{p.num_kv_heads} * p.rows, 1, p.q_len};
}

}  // namespace

void check_q_len(int64_t q_len) {
  check_argument(q_len >= 1 && q_len <= tile_table::kMaxQueryTokens, "q: q_len ", q_len, ", expected 1..",
                 tile_table::kMaxQueryTokens);
}

int32_t checked_workers(int64_t num_workers) {
  check_argument(num_workers >= 0 && num_workers <= tile_table::kMaxWorkers, "num_workers: expected 0..",
                 tile_table::kMaxWorkers, ", got ", num_workers);
  return static_cast<int32_t>(num_workers);
}

int32_t* checked_plan(const torch::stable::Tensor& tensor, int64_t batch, Device device) {
  const TensorView plan = TensorView::of(tensor);
  check_dtype(plan, ScalarType::Int, "plan");
  check_argument(same_device(plan.device, device), "plan: device ", plan.device, ", expected ", device);
  const auto past = reinterpret_cast<uintptr_t>(plan.data) % alignof(PlanHeader);
  check_argument(plan.dim() == 1 && plan.size(0) == Plan::elements(batch) && plan.is_contiguous() && past == 0,
                 "plan: expected what leanattn.plan makes for ", batch, " sequences, [", Plan::elements(batch),
                 "] contiguous, starting at a multiple of 16 bytes, got ", ShapeOf{plan}, ", ", past,
                 " bytes past such a multiple");
  return static_cast<int32_t*>(plan.data);
}

DecodeCall checked_call(const DecodeArguments& args) {
  const Views a = Views::of(args);
  const DType dtype = checked_dtype(a.anchor());
  check_shapes(a);
  check_types_and_layout(a);
  const int32_t workers = checked_workers(args.num_workers);

  const int64_t head_dim = a.q.size(a.q.dim() - 1);
  const double scale = args.softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(head_dim)));
  const auto scale_log2 = static_cast<float>(scale * kLog2E);
  check_argument(std::isfinite(scale_log2), "softmax_scale: expected that in float32, times log2(e), it is a finite ",
                 "number, got ", scale);

  DecodeCall call{};
  DecodeParams& p = call.params;
  p.q = a.q.data;
  p.k = a.cache.k.data;
  p.v = a.cache.v.data;
  p.seqlens = static_cast<const int32_t*>(a.cache.seqlens.data);
  p.out = a.out.data;
  p.lse = a.lse ? static_cast<float*>(a.lse->data) : nullptr;
  p.batch_invariant = args.batch_invariant;
  p.q_strides = row_strides(a.q);
  p.out_strides = row_strides(a.out);
  if (a.offsets) {  // a query token's place is one along either
    p.q_strides.token = p.q_strides.batch;
    p.out_strides.token = p.out_strides.batch;
  }
  p.k_strides = cache_strides(a.cache.k);
  p.v_strides = cache_strides(a.cache.v);
  p.dtype = dtype;
  p.cache_dtype = cache_dtype(a.cache.k, dtype);
  p.batch = to_int32(a.anchor().batch(), "q: batch");
  p.num_kv_heads = to_int32(a.cache.k.size(2), "k_cache: num_kv_heads");
  p.max_tokens = a.cache.max_tokens();
  p.page_table = a.cache.page_table();
  p.head_dim = to_int32(head_dim, "q: head_dim");
  p.v_head_dim = to_int32(a.cache.v_head_dim(), "v_cache: head_dim");
  if (is_8_bit(p.cache_dtype)) {
    for (const auto& [name, dim] : {std::pair{"q", p.head_dim}, {"v_cache", p.v_head_dim}})
      check_argument(dim % 16 == 0, name, ": head_dim ", dim, ", expected a multiple of 16 with a cache of 8 bits");
  }
  set_query_rows(p, q_len_of(a.q), a.q.size(a.q.dim() - 2) / a.cache.k.size(2));
  p.k_scales = checked_head_scales(args.k_scale, p.cache_dtype, a.cache, a.anchor(), "k_scale");
  p.v_scales = checked_head_scales(args.v_scale, p.cache_dtype, a.cache, a.anchor(), "v_scale");
  p.k_token_scales = checked_token_scales(args.k_scale, p.cache_dtype, a.cache, a.anchor(), "k_scale");
  p.v_token_scales = checked_token_scales(args.v_scale, p.cache_dtype, a.cache, a.anchor(), "v_scale");
  p.scores = checked_score_options(args.scores, p, a.anchor());
  if (args.causal) p.scores.window_right = 0;
  if (a.offsets) call.packed = checked_packed_queries(*args.cu_seqlens_q, a.cache.seqlens, a.q.size(0), p);
  p.lse_strides = lse_strides(a, p);
  p.plan = args.plan != nullptr ? checked_plan(*args.plan, p.batch, a.q.device) : nullptr;
  set_window(p, p.scores.window_left, a.offsets.has_value());
  p.score_changes = p.scores.changes();
  p.workers = workers;
  p.scale_log2 = scale_log2;
  const int64_t fresh_tokens = args.fresh_tokens.value_or(-1);
  check_argument(!args.fresh_tokens || fresh_tokens >= 0, "fresh_tokens: expected None, or 0 and more, got ",
                 fresh_tokens);
  p.fresh_tokens = static_cast<int32_t>(std::min<int64_t>(fresh_tokens, p.max_tokens));
  // What makes the blocks of packed queries stands directly ahead, and writes their lengths.
  if (a.offsets) p.fresh_tokens = -1;
  return call;
}

void set_window(DecodeParams& p, int32_t window_left, bool packed) {
  p.scores.window_left = window_left < p.max_tokens ? window_left : -1;
  // The window of the first query token reaches back furthest. The queries of a block of packed ones have tokens after
  // the last one's own, as many as window_right lets it see.
  const bool unbounded = window_left < 0 || (packed && p.scores.window_right < 0);
  const int64_t in_window = int64_t{window_left} + p.q_len + (packed ? p.scores.window_right : 0);
  p.seen_tokens = unbounded ? p.max_tokens : static_cast<int32_t>(std::min<int64_t>(p.max_tokens, in_window));
  p.causal_tokens = hidden_tokens(p.q_len, p.scores.window_right);
  const bool some_see_later_tokens = p.causal_tokens > 0 && p.causal_tokens < p.q_len - 1;
  p.score_options = p.scores.any() || some_see_later_tokens;
}

void set_query_rows(DecodeParams& p, int64_t q_len, int64_t group) {
  const int64_t most = kMostRows / q_len;
  check_argument(group <= most, "q: ", group, " query heads a KV head, expected at most ", most);
  p.q_len = static_cast<int32_t>(q_len);
  p.group = static_cast<int32_t>(group);
  p.inverse_group = 1.f / static_cast<float>(p.group);
  p.rows = p.q_len * p.group;
}

void check_line_fits(const DecodeParams& p) {
  // Rounded up to whole tiles, a length still fits 32 bits. An expanded cache (stride 0) can be that long.
  const int32_t longest = std::numeric_limits<int32_t>::max() - p.tile_tokens;
  check_argument(p.max_tokens <= longest, "k_cache: max_tokens ", p.max_tokens, ", expected at most ", longest);
  const double item_units = double(p.max_tokens) / p.tile_tokens + 1 + p.item_cost;
  const double units = double(p.batch) * p.num_kv_heads * p.row_blocks * item_units;
  check_argument(units < double(std::numeric_limits<int32_t>::max()),
                 "k_cache: batch x num_kv_heads x max_tokens make ", units, " lean tiles, 2^31 or more");
}

void apply_fixed_splits(DecodeParams& p, int32_t most_teams) {
  if (p.debug.fixed_splits == 0) return;
  check_argument(!p.batch_invariant, "fixed_splits: ", p.debug.fixed_splits, ", expected 0 with batch_invariant");
  const int64_t teams = int64_t{p.batch} * p.items_per_team * p.debug.fixed_splits, pieces = teams * p.team_size;
  // Whole items take no ticket.
  const int64_t most = p.debug.fixed_splits == 1 ? int64_t{most_teams} * p.team_size : tile_table::kMaxWorkers;
  check_argument(pieces <= most, "fixed_splits: ", p.debug.fixed_splits, " make ", pieces,
                 " pieces of items, expected at most ", most);
  p.teams = static_cast<int32_t>(teams);
  p.workers = static_cast<int32_t>(pieces);
  p.plan = nullptr;  // of the lean decomposition
}

}  // namespace leanattn
