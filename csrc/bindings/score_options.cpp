// From arguments to ScoreOptions (params.h).
#include <algorithm>
#include <cmath>
#include <limits>

#include "arguments.h"
#include "errors.h"

namespace leanattn {
namespace {

using torch::headeronly::ScalarType;

// The data of [size] or, if may_have_batch, [batch, size].
template <typename T>
const T* checked_data(const torch::stable::Tensor* tensor, ScalarType dtype, int64_t batch, int64_t size,
                      bool may_have_batch, const Anchor& q, const char* name) {
  if (tensor == nullptr) return nullptr;
  const TensorView t = TensorView::of(*tensor);
  check_dtype(t, dtype, name);
  check_device_of(q, t, name);
  const bool of_batch = may_have_batch && t.dim() == 2 && t.size(0) == batch && t.size(1) == size;
  check_argument(of_batch || (t.dim() == 1 && t.size(0) == size), name, ": expected [", size, "]",
                 may_have_batch ? " or [batch, num_q_heads]" : "", ", got ", t.dim(), " dimensions, ", t.numel(),
                 " elements");
  check_argument(t.is_contiguous(), name, ": expected a contiguous tensor");
  return static_cast<const T*>(t.data);
}

TreeMask checked_tree_mask(const torch::stable::Tensor& tensor, const DecodeParams& p, const Anchor& q) {
  const TensorView t = TensorView::of(tensor);
  check_dtype(t, ScalarType::Int, "tree_mask");
  check_device_of(q, t, "tree_mask");
  const bool packed = q.sequences.has_value();
  check_argument(packed || q.tensor.dim() == 4, "tree_mask: expected None for a q of one query token a sequence");
  bool fits = t.dim() == q.tensor.dim() - 1;
  for (int64_t i = 0; i + 1 < t.dim() && fits; ++i) fits = t.size(i) == q.tensor.size(i);
  const int64_t words = t.dim() > 0 ? t.size(t.dim() - 1) : 0;
  check_argument(fits && words >= 1 && words <= std::numeric_limits<int32_t>::max() / 32 && t.is_contiguous(),
                 "tree_mask: expected ", packed ? "[tokens" : "[batch, q_len",
                 ", words], contiguous, the first as in q, ", ShapeOf{q.tensor}, ", got ", ShapeOf{t});
  return {static_cast<const int32_t*>(t.data), static_cast<int32_t>(words), packed ? 1 : p.q_len};
}

}  // namespace

int32_t checked_window(int64_t tokens, const char* name) {
  check_argument(tokens >= -1, name, ": expected -1 (no bound) or more, got ", tokens);
  return static_cast<int32_t>(std::min<int64_t>(tokens, std::numeric_limits<int32_t>::max()));
}

ScoreOptions checked_score_options(const ScoreArguments& args, const DecodeParams& p, const Anchor& q) {
  ScoreOptions options;
  options.window_left = checked_window(args.window_left, "window_left");
  options.window_right = checked_window(args.window_right, "window_right");
  options.softcap_log2 = static_cast<float>(args.softcap * kLog2E);
  const bool is_none = args.softcap == 0;  // and so is nothing that is not 0, however small in float32
  check_argument(args.softcap >= 0 && std::isfinite(options.softcap_log2) && is_none == (options.softcap_log2 == 0) &&
                     (is_none || std::isfinite(1 / options.softcap_log2)),
                 "softcap: expected 0 (none) or a positive number that in float32 is neither 0 nor infinite, nor is "
                 "its inverse, got ",
                 args.softcap);
  const int64_t heads = int64_t{p.num_kv_heads} * p.group;
  options.sinks = checked_data<float>(args.sinks, ScalarType::Float, p.batch, heads, false, q, "sinks");
  options.alibi_slopes =
      checked_data<float>(args.alibi_slopes, ScalarType::Float, p.batch, heads, true, q, "alibi_slopes");
  check_argument(args.alibi_slopes == nullptr || args.alibi_slopes->numel() <= std::numeric_limits<int32_t>::max(),
                 "alibi_slopes: expected fewer than 2^31 elements");
  options.alibi_batch_stride = args.alibi_slopes != nullptr && args.alibi_slopes->dim() == 2 ? heads : 0;
  options.leftpad =
      checked_data<int32_t>(args.cache_leftpad, ScalarType::Int, p.batch, p.batch, false, q, "cache_leftpad");
  if (args.tree_mask != nullptr) options.tree = checked_tree_mask(*args.tree_mask, p, q);
  return options;
}

}  // namespace leanattn
