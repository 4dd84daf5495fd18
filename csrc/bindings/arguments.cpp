#include "arguments.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "errors.h"
#include "kernels/plan.h"
#include "kernels/tile_table.h"
#include "tensor_view.h"

namespace leanattn {
namespace {

using torch::headeronly::ScalarType;

constexpr double kLog2E = 1.4426950408889634;

std::optional<TensorView> view_of(const torch::stable::Tensor* tensor) {
  return tensor != nullptr ? std::optional(TensorView::of(*tensor)) : std::nullopt;
}

struct Views {
  TensorView q, k_cache, v_cache, cache_seqlens, out;
  std::optional<TensorView> lse, block_table;

  static Views of(const DecodeArguments& a) {
    return {TensorView::of(a.q),       TensorView::of(a.k_cache),
            TensorView::of(a.v_cache), TensorView::of(a.cache_seqlens),
            TensorView::of(a.out),     view_of(a.lse),
            view_of(a.block_table)};
  }
};

// A shape in a message: a call that passes the checks never pays for the text.
struct ShapeOf {
  const TensorView& tensor;

  friend std::ostream& operator<<(std::ostream& stream, const ShapeOf& shape) {
    stream << '[';
    for (int64_t i = 0; i < shape.tensor.dim(); ++i) stream << (i ? ", " : "") << shape.tensor.size(i);
    return stream << ']';
  }
};

DType dtype_of(const TensorView& q) {
  switch (q.dtype) {
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Float: return DType::kFloat32;
    default:
      throw std::invalid_argument(
          concat("leanattn: q: dtype ", toString(q.dtype), ", expected float16, bfloat16 or float32"));
  }
}

void check_dtype(const TensorView& t, ScalarType expected, const char* name) {
  check_argument(t.dtype == expected, name, ": dtype ", toString(t.dtype), ", expected ", toString(expected));
}

void check_device_of_q(const TensorView& t, const TensorView& q, const char* name) {
  check_argument(same_device(t.device, q.device), name, ": device ", t.device, ", expected the device of q, ",
                 q.device);
}

void check_like_q(const TensorView& t, const TensorView& q, const char* name) {
  check_dtype(t, q.dtype, name);
  check_device_of_q(t, q, name);
}

// Vector loads of 16 bytes need every row to start at a multiple of 16 bytes.
void check_rows_aligned(const TensorView& t, const char* name) {
  const int64_t element = t.dtype == ScalarType::Float ? 4 : 2;  // dtype_of has refused every other
  const int64_t last = t.dim() - 1;
  check_argument(t.stride(last) == 1 || t.size(last) <= 1, name,
                 ": the last dimension must be contiguous, its stride is ", t.stride(last));
  if (t.numel() == 0) return;
  check_argument(reinterpret_cast<uintptr_t>(t.data) % 16 == 0, name,
                 ": the data must start at a multiple of 16 bytes");
  for (int64_t i = 0; i < last; ++i) {
    check_argument(t.size(i) == 1 || t.stride(i) * element % 16 == 0, name, ": stride ", t.stride(i), " of dimension ",
                   i, " is not a multiple of 16 bytes");
  }
}

// 0 where there is no second row: such a stride may be any number, and kernels form addresses of rows that do not
// exist.
int64_t stride_of(const TensorView& t, int64_t dim) { return t.size(dim) > 1 ? t.stride(dim) : 0; }

CacheStrides cache_strides(const TensorView& t) { return {stride_of(t, 0), stride_of(t, 1), stride_of(t, 2)}; }
RowStrides row_strides(const TensorView& t) {
  return {stride_of(t, 0), t.dim() == 4 ? stride_of(t, 1) : 0, stride_of(t, t.dim() - 2)};
}
int64_t q_len_of(const TensorView& q) { return q.dim() == 4 ? q.size(1) : 1; }
void check_q_len(int64_t q_len) {
  check_argument(q_len >= 1 && q_len <= tile_table::kMaxQueryTokens, "q: q_len ", q_len, ", expected 1..",
                 tile_table::kMaxQueryTokens);
}

// Workers write their rows at the same time: the rows of one dimension must end before the next of another begins.
void check_rows_apart(const TensorView& t, const char* name) {
  const int64_t columns = t.size(t.dim() - 1);
  for (int64_t dim = 0; dim + 1 < t.dim(); ++dim) {  // batch, perhaps query tokens, heads
    if (t.size(dim) <= 1) continue;
    int64_t extent = columns;  // of all rows of any dimension within this one
    for (int64_t inner = 0; inner + 1 < t.dim(); ++inner) {
      const bool within = t.stride(inner) < t.stride(dim) || (t.stride(inner) == t.stride(dim) && inner < dim);
      if (within && t.size(inner) > 1) extent = std::max(extent, t.stride(inner) * t.size(inner));
    }
    check_argument(t.stride(dim) >= extent, name, ": stride ", t.stride(dim), " of dimension ", dim,
                   ", expected rows of ", columns, " elements that do not overlap");
  }
}

void check_shapes(const Views& a) {
  const auto &q = a.q, &k = a.k_cache;
  check_argument(q.dim() == 3 || q.dim() == 4, "q: expected [batch, num_q_heads, head_dim] or ",
                 "[batch, q_len, num_q_heads, head_dim], got ", ShapeOf{q});
  const int64_t batch = q.size(0), heads = q.size(q.dim() - 2), head_dim = q.size(q.dim() - 1);
  check_argument(head_dim >= 1, "q: head_dim ", head_dim, ", expected 1 or more");
  // A bound for the query rows as well, which RowBlocks rounds up in 32 bits.
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max() - tile_table::kMaxBlockRows;
  const int64_t q_len = q_len_of(q);
  check_q_len(q_len);
  check_argument(heads <= kLargest / head_dim / q_len, "q: q_len ", q_len, " x num_q_heads ", heads, " x head_dim ",
                 head_dim, ", expected a product of at most ", kLargest);
  if (a.block_table) {
    check_argument(a.block_table->dim() == 2 && a.block_table->size(0) == batch, "block_table: expected [", batch,
                   ", max_pages] to fit q, got ", ShapeOf{*a.block_table});
    check_argument(k.dim() == 4 && k.size(1) >= 1 && k.size(3) == head_dim,
                   "k_cache: expected [num_pages, page_size, num_kv_heads, ", head_dim, "] to fit q, got ", ShapeOf{k});
  } else {
    check_argument(k.dim() == 4 && k.size(0) == batch && k.size(3) == head_dim, "k_cache: expected [", batch,
                   ", max_tokens, num_kv_heads, ", head_dim, "] to fit q, got ", ShapeOf{k});
  }
  check_argument(a.v_cache.dim() == 4 && a.v_cache.sizes == k.sizes, "v_cache: expected the shape of k_cache, ",
                 ShapeOf{k}, ", got ", ShapeOf{a.v_cache});
  check_argument(k.size(2) > 0 && heads > 0 && heads % k.size(2) == 0, "q: its ", heads,
                 " heads are not a multiple of the ", k.size(2), " KV heads of k_cache");
  check_argument(a.cache_seqlens.dim() == 1 && a.cache_seqlens.size(0) == batch, "cache_seqlens: expected [", batch,
                 "], got ", ShapeOf{a.cache_seqlens});
  check_argument(a.out.sizes == q.sizes, "out: expected the shape of q, ", ShapeOf{q}, ", got ", ShapeOf{a.out});
  if (a.lse) {
    // Of one query token, the shape with q_len and the one without are the same memory.
    const bool fits = a.lse->numel() == batch * heads * q_len;
    check_argument(fits && (q_len == 1 || (a.lse->dim() == 3 && a.lse->size(1) == heads)), "lse: expected [", batch,
                   ", ", heads, ", ", q_len, "], got ", ShapeOf{*a.lse});
  }
}

void check_types_and_layout(const Views& a) {
  check_like_q(a.k_cache, a.q, "k_cache");
  check_like_q(a.v_cache, a.q, "v_cache");
  check_like_q(a.out, a.q, "out");
  check_rows_aligned(a.q, "q");
  check_rows_aligned(a.k_cache, "k_cache");
  check_rows_aligned(a.v_cache, "v_cache");
  check_rows_aligned(a.out, "out");
  const TensorView& lens = a.cache_seqlens;
  check_dtype(lens, ScalarType::Int, "cache_seqlens");
  check_device_of_q(lens, a.q, "cache_seqlens");
  check_argument(lens.is_contiguous(), "cache_seqlens: expected a contiguous tensor");
  check_rows_apart(a.out, "out");
  if (a.block_table) {
    const TensorView& table = *a.block_table;
    check_dtype(table, ScalarType::Int, "block_table");
    check_device_of_q(table, a.q, "block_table");
    check_argument(table.size(1) <= 1 || table.stride(1) == 1,
                   "block_table: the last dimension must be contiguous, its stride is ", table.stride(1));
  }
  if (a.lse) {
    check_dtype(*a.lse, ScalarType::Float, "lse");
    check_device_of_q(*a.lse, a.q, "lse");
    check_argument(a.lse->is_contiguous(), "lse: expected a contiguous tensor");
  }
}

// Of a paged cache, how long a sequence can be depends on the table. Without a page there is no token.
void set_tokens(DecodeParams& p, const Views& a) {
  const int64_t page_size = a.k_cache.size(1);
  if (!a.block_table) {
    p.max_tokens = to_int32(page_size, "k_cache: max_tokens");
    return;
  }
  const TensorView& table = *a.block_table;
  const int64_t max_pages = table.size(1), num_pages = a.k_cache.size(0);
  p.page_table = {static_cast<const int32_t*>(table.data), stride_of(table, 0),
                  to_int32(page_size, "k_cache: page_size"), to_int32(num_pages, "k_cache: num_pages")};
  check_argument(max_pages <= std::numeric_limits<int32_t>::max() / page_size, "block_table: ", max_pages, " pages of ",
                 page_size, " tokens are 2^31 tokens or more");
  p.max_tokens = num_pages == 0 ? 0 : static_cast<int32_t>(max_pages * page_size);
}

}  // namespace

int32_t to_int32(int64_t value, const char* what) {
  check_argument(value >= 0 && value <= std::numeric_limits<int32_t>::max(), what, ": ", value, " is out of range");
  return static_cast<int32_t>(value);
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

DecodeParams checked_params(const DecodeArguments& args) {
  const Views a = Views::of(args);
  const DType dtype = dtype_of(a.q);
  check_shapes(a);
  check_types_and_layout(a);
  const int32_t workers = checked_workers(args.num_workers);

  const int64_t head_dim = a.q.size(a.q.dim() - 1);
  const double scale = args.softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(head_dim)));
  const auto scale_log2 = static_cast<float>(scale * kLog2E);
  check_argument(std::isfinite(scale_log2), "softmax_scale: expected that in float32, times log2(e), it is a finite ",
                 "number, got ", scale);

  DecodeParams p{};
  p.q = a.q.data;
  p.k = a.k_cache.data;
  p.v = a.v_cache.data;
  p.seqlens = static_cast<const int32_t*>(a.cache_seqlens.data);
  p.out = a.out.data;
  p.lse = a.lse ? static_cast<float*>(a.lse->data) : nullptr;
  p.plan = args.plan != nullptr ? checked_plan(*args.plan, a.q.size(0), a.q.device) : nullptr;
  p.q_strides = row_strides(a.q);
  p.out_strides = row_strides(a.out);
  p.k_strides = cache_strides(a.k_cache);
  p.v_strides = cache_strides(a.v_cache);
  p.dtype = dtype;
  p.batch = to_int32(a.q.size(0), "q: batch");
  p.num_kv_heads = to_int32(a.k_cache.size(2), "k_cache: num_kv_heads");
  set_tokens(p, a);
  p.head_dim = to_int32(head_dim, "q: head_dim");
  set_query_rows(p, q_len_of(a.q), a.q.size(a.q.dim() - 2) / a.k_cache.size(2));
  p.scores = checked_score_options(args.scores, p, a.q.device);
  const int32_t right = args.causal ? 0 : p.scores.window_right;
  p.causal_tokens = right < 0 ? 0 : std::max(0, p.q_len - 1 - right);
  p.workers = workers;
  p.scale_log2 = scale_log2;
  const int64_t fresh_tokens = args.fresh_tokens.value_or(-1);
  check_argument(!args.fresh_tokens || fresh_tokens >= 0, "fresh_tokens: expected None, or 0 and more, got ",
                 fresh_tokens);
  p.fresh_tokens = static_cast<int32_t>(std::min<int64_t>(fresh_tokens, p.max_tokens));
  return p;
}

void set_query_rows(DecodeParams& p, int64_t q_len, int64_t group) {
  check_q_len(q_len);
  const int64_t most = (std::numeric_limits<int32_t>::max() - tile_table::kMaxBlockRows) / q_len;
  check_argument(group <= most, "q: ", group, " query heads a KV head, expected at most ", most);
  p.q_len = static_cast<int32_t>(q_len);
  p.group = static_cast<int32_t>(group);
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
  const int64_t teams = int64_t{p.batch} * p.items_per_team * p.debug.fixed_splits, pieces = teams * p.team_size;
  // Whole items take no ticket.
  const int64_t most = p.debug.fixed_splits == 1 ? int64_t{most_teams} * p.team_size : tile_table::kMaxWorkers;
  check_argument(pieces <= most, "fixed_splits: ", p.debug.fixed_splits, " make ", pieces,
                 " pieces of items, expected at most ", most);
  p.teams = static_cast<int32_t>(teams);
  p.workers = static_cast<int32_t>(pieces);
  p.plan = nullptr;  // of the lean decomposition
}

// There is one CPU, whatever index its tensors carry.
bool same_device(Device a, Device b) {
  return a.type == b.type && (a.index == b.index || a.type == aoti_torch_device_type_cpu());
}

std::ostream& operator<<(std::ostream& stream, Device device) {
  if (device.type == aoti_torch_device_type_cpu()) return stream << "cpu";
  if (device.type == aoti_torch_device_type_cuda()) return stream << "cuda:" << device.index;
  return stream << "device type " << device.type << ':' << device.index;
}

}  // namespace leanattn
