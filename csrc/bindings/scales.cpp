// The scales of a cache of 8 bits: of KV heads if it is of float8, of tokens and KV heads if it is of int8.
#include "checks.h"
#include "errors.h"

namespace leanattn {

using torch::headeronly::ScalarType;

HeadScales checked_head_scales(const torch::stable::Tensor* tensor, DType cache_dtype, const CacheViews& cache,
                               const Anchor& anchor, const char* name) {
  if (tensor == nullptr || cache_dtype == DType::kInt8) return {nullptr, 0};
  check_argument(is_float8(cache_dtype), name, ": expected None for a cache that is not of 8 bits");
  const TensorView t = TensorView::of(*tensor);
  const int64_t num_kv_heads = cache.k.size(2);
  check_dtype(t, ScalarType::Float, name);
  check_device_of(anchor, t, name);
  check_argument(t.dim() == 1 && (t.size(0) == 1 || t.size(0) == num_kv_heads) && t.is_contiguous(), name,
                 ": expected [1] or [", num_kv_heads, "], contiguous, got ", ShapeOf{t});
  return {static_cast<const float*>(t.data), t.size(0) == 1 ? 0 : 1};
}

TokenScales checked_token_scales(const torch::stable::Tensor* tensor, DType cache_dtype, const CacheViews& cache,
                                 const Anchor& anchor, const char* name) {
  if (cache_dtype != DType::kInt8) return {};
  check_argument(tensor != nullptr, name, ": None, expected the scales of an int8 cache");
  const TensorView t = TensorView::of(*tensor);
  const TensorView& k = cache.k;
  check_dtype(t, ScalarType::Float, name);
  check_device_of(anchor, t, name);
  check_argument(t.dim() == 3 && t.size(0) == k.size(0) && t.size(1) == k.size(1) && t.size(2) == k.size(2), name,
                 ": expected [", k.size(0), ", ", k.size(1), ", ", k.size(2), "] as in k_cache, got ", ShapeOf{t});
  return {static_cast<const float*>(t.data), {stride_of(t, 0), stride_of(t, 1), stride_of(t, 2)}};
}

}  // namespace leanattn
