// The op that writes new tokens into a cache: checks, parameters, the backend of the device that k is on.
#include "append.h"

#include <limits>

#include "backend.h"
#include "checks.h"
#include "errors.h"

namespace leanattn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Views {
  TensorView k, v;
  CacheViews cache;
  std::optional<TensorView> q, cos, sin;

  Anchor anchor() const { return {k, "k"}; }
  int64_t new_tokens() const { return k.dim() == 4 ? k.size(1) : 1; }
  int64_t num_kv_heads() const { return k.size(k.dim() - 2); }
  int64_t v_head_dim() const { return v.size(v.dim() - 1); }
};

void check_head_dim(int64_t head_dim, const char* name) {
  check_argument(head_dim >= kAppendChunk && head_dim <= kMaxAppendHeadDim && head_dim % kAppendChunk == 0, name,
                 ": head_dim ", head_dim, ", expected a multiple of ", kAppendChunk, ", ", kAppendChunk, "..",
                 kMaxAppendHeadDim);
}

void check_shapes(const Views& a) {
  const TensorView& k = a.k;
  check_argument(k.dim() == 3 || k.dim() == 4, "k: expected [batch, num_kv_heads, head_dim] or ",
                 "[batch, new_tokens, num_kv_heads, head_dim], got ", ShapeOf{k});
  check_head_dim(a.anchor().head_dim(), "k");
  check_argument(a.new_tokens() >= 1 && a.num_kv_heads() >= 1, "k: expected one new token and one KV head at least, ",
                 "got ", ShapeOf{k});
  check_argument(a.v.fits(k, k.dim() - 1), "v: expected the shape of k, ", ShapeOf{k}, ", but for head_dim, got ",
                 ShapeOf{a.v});
  check_head_dim(a.v_head_dim(), "v");
  a.cache.check_shapes(a.anchor());
  check_argument(a.cache.v_head_dim() == a.v_head_dim(), "v_cache: head_dim ", a.cache.v_head_dim(),
                 ", expected that of v, ", a.v_head_dim());
  check_argument(a.cache.k.size(2) == a.num_kv_heads(), "k_cache: ", a.cache.k.size(2), " KV heads, expected the ",
                 a.num_kv_heads(), " of k");
  if (a.q) {
    check_argument(a.q->fits(k, k.dim() - 2), "q: expected the shape of k, ", ShapeOf{k}, ", but for the heads, got ",
                   ShapeOf{*a.q});
  }
  // Each is the part of a few CTAs, and a GPU's grid has no more.
  constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();
  check_argument(a.anchor().batch() <= kMostTokens / a.new_tokens(), "k: ", a.anchor().batch(), " x ", a.new_tokens(),
                 " new tokens, expected at most ", kMostTokens);
  check_argument(a.num_kv_heads() <= kMaxAppendHeads, "k: ", a.num_kv_heads(), " KV heads, expected at most ",
                 kMaxAppendHeads);
  const int64_t q_heads = a.q ? a.q->size(k.dim() - 2) : 0;
  check_argument(q_heads <= kMaxAppendHeads, "q: ", q_heads, " heads, expected at most ", kMaxAppendHeads);
}

void check_rotary(const Views& a) {
  check_argument(a.cos.has_value() == a.sin.has_value(), a.cos ? "rotary_sin: None, expected a tensor like rotary_cos"
                                                               : "rotary_cos: None, expected a tensor like rotary_sin");
  if (!a.cos) {
    check_argument(!a.q, "q: expected None without rotary_cos and rotary_sin: it is there to be rotated");
    return;
  }
  const TensorView& cos = *a.cos;
  check_argument(cos.dim() == 2, "rotary_cos: expected [max_positions, rotary_dim / 2], got ", ShapeOf{cos});
  const int64_t dim = 2 * cos.size(1), step = 2 * kAppendChunk, head_dim = a.anchor().head_dim();
  check_argument(dim > 0 && dim <= head_dim && dim % step == 0, "rotary_cos: rotary_dim ", dim,
                 ", expected a multiple of ", step, ", at most the head_dim of k, ", head_dim);
  check_argument(cos.dtype == ScalarType::Float || cos.dtype == a.k.dtype, "rotary_cos: dtype ", toString(cos.dtype),
                 ", expected Float or that of k, ", toString(a.k.dtype));
  check_device_of(a.anchor(), cos, "rotary_cos");
  check_rows_aligned(cos, "rotary_cos");
  check_argument(a.sin->sizes == cos.sizes, "rotary_sin: expected the shape of rotary_cos, ", ShapeOf{cos}, ", got ",
                 ShapeOf{*a.sin});
  check_like({cos, "rotary_cos"}, *a.sin, "rotary_sin");
  check_rows_aligned(*a.sin, "rotary_sin");
}

void check_types_and_layout(const Views& a) {
  check_rows_aligned(a.k, "k");
  check_like(a.anchor(), a.v, "v");
  check_rows_aligned(a.v, "v");
  a.cache.check_types_and_layout(a.anchor());
  check_rows_apart(a.cache.k, "k_cache");
  check_rows_apart(a.cache.v, "v_cache");
  if (a.q) {
    check_like(a.anchor(), *a.q, "q");
    check_rows_aligned(*a.q, "q");
    check_rows_apart(*a.q, "q");
  }
}

Rotary rotary_of(const Views& a, DType dtype, bool interleaved) {
  if (!a.cos) return {};
  return {a.cos->data,
          a.sin->data,
          stride_of(*a.cos, 0),
          stride_of(*a.sin, 0),
          a.cos->dtype == ScalarType::Float ? DType::kFloat32 : dtype,
          static_cast<int32_t>(2 * a.cos->size(1)),
          to_int32(a.cos->size(0), "rotary_cos: max_positions"),
          interleaved};
}

AppendParams checked_params(const Views& a, bool interleaved, const Tensor* k_scale, const Tensor* v_scale) {
  AppendParams p{};
  p.dtype = checked_dtype(a.anchor());
  check_shapes(a);
  check_types_and_layout(a);
  check_rotary(a);
  p.cache_dtype = cache_dtype(a.cache.k, p.dtype);
  check_argument(p.cache_dtype != DType::kInt8, "k_cache: dtype Char, expected that of k or one of float8: what makes ",
                 "int8 of a row also has to choose its scale");
  p.k_scales = checked_head_scales(k_scale, p.cache_dtype, a.cache, a.anchor(), "k_scale");
  p.v_scales = checked_head_scales(v_scale, p.cache_dtype, a.cache, a.anchor(), "v_scale");
  p.k = a.k.data;
  p.v = a.v.data;
  p.q = a.q ? a.q->data : nullptr;
  p.k_cache = a.cache.k.data;
  p.v_cache = a.cache.v.data;
  p.seqlens = static_cast<const int32_t*>(a.cache.seqlens.data);
  p.k_strides = row_strides(a.k);
  p.v_strides = row_strides(a.v);
  if (a.q) p.q_strides = row_strides(*a.q);
  p.k_cache_strides = cache_strides(a.cache.k);
  p.v_cache_strides = cache_strides(a.cache.v);
  p.batch = to_int32(a.anchor().batch(), "k: batch");
  p.new_tokens = to_int32(a.new_tokens(), "k: new_tokens");
  p.num_kv_heads = to_int32(a.num_kv_heads(), "k: num_kv_heads");
  p.num_q_heads = a.q ? to_int32(a.q->size(a.q->dim() - 2), "q: num_q_heads") : 0;
  p.head_dim = to_int32(a.anchor().head_dim(), "k: head_dim");
  p.v_head_dim = to_int32(a.v_head_dim(), "v: head_dim");
  p.max_tokens = a.cache.max_tokens();
  p.page_table = a.cache.page_table();
  p.rotary = rotary_of(a, p.dtype, interleaved);
  return p;
}

}  // namespace

void append_kv(const Tensor& k, const Tensor& v, Tensor k_cache, Tensor v_cache, const Tensor& cache_seqlens,
               std::optional<Tensor> block_table, std::optional<Tensor> q, std::optional<Tensor> rotary_cos,
               std::optional<Tensor> rotary_sin, bool rotary_interleaved, std::optional<Tensor> k_scale,
               std::optional<Tensor> v_scale) {
  const Views views{
      TensorView::of(k),
      TensorView::of(v),
      {TensorView::of(k_cache), TensorView::of(v_cache), TensorView::of(cache_seqlens), view_of(or_null(block_table))},
      view_of(or_null(q)),
      view_of(or_null(rotary_cos)),
      view_of(or_null(rotary_sin))};
  const AppendParams params = checked_params(views, rotary_interleaved, or_null(k_scale), or_null(v_scale));
  if (params.batch == 0) return;
#ifdef LEANATTN_WITH_CUDA
  if (views.k.device.type == aoti_torch_device_type_cuda()) return append_cuda(params, views.k.device.index);
#endif
  append_cpu(params);
}

}  // namespace leanattn
