// The ops that make plans.
#include "kernels/plan.h"

#include <algorithm>
#include <utility>

#include "allocate.h"
#include "arguments.h"
#include "backend.h"
#include "decode.h"
#include "errors.h"
#include "tensor_view.h"

namespace leanattn {
namespace {

// A dtype of these elements: all that a plan asks of one.
DType dtype_of(int64_t itemsize) {
  check_argument(itemsize == 1 || itemsize == 2 || itemsize == 4, "itemsize: ", itemsize, ", expected 1, 2 or 4");
  return itemsize == 1 ? DType::kFloat8E4M3 : (itemsize == 2 ? DType::kFloat16 : DType::kFloat32);
}

// What a plan of packed queries counts as sequences. The arguments are checked afterwards.
int64_t most_query_blocks(const Tensor& cache_seqlens, int64_t tokens, int64_t num_q_heads, int64_t num_kv_heads,
                          int64_t head_dim, int64_t v_head_dim, int64_t itemsize, bool batch_invariant) {
  DecodeParams p{};
  p.group = std::max(1, to_int32(num_q_heads, "num_q_heads") / std::max(1, to_int32(num_kv_heads, "num_kv_heads")));
  p.head_dim = to_int32(head_dim, "head_dim");
  p.v_head_dim = to_int32(v_head_dim, "v_head_dim");
  p.cache_dtype = dtype_of(itemsize);
  p.batch_invariant = batch_invariant;
  const int64_t batch = cache_seqlens.size(0);
  const int32_t rows = row_limit_of(Device::of(cache_seqlens), p, tokens, batch);
  return PackedQueries::most_blocks(to_int32(tokens, "q: tokens"), to_int32(batch, "cache_seqlens: batch"),
                                    tile_table::block_tokens(p.group, rows));
}

}  // namespace

void plan_out(const Tensor& cache_seqlens, Tensor plan, int64_t max_tokens, int64_t num_q_heads, int64_t num_kv_heads,
              int64_t head_dim, int64_t q_len, int64_t num_workers, int64_t page_size, int64_t window_left,
              bool score_options, int64_t itemsize, int64_t window_right, std::optional<Tensor> cu_seqlens_q,
              std::optional<Tensor> cache_leftpad, bool batch_invariant, std::optional<int64_t> v_head_dim) {
  const TensorView lengths = TensorView::of(cache_seqlens);
  check_argument(lengths.dtype == torch::headeronly::ScalarType::Int && lengths.dim() == 1 && lengths.is_contiguous(),
                 "cache_seqlens: expected [batch] int32, contiguous, got ", lengths.dim(), " dimensions of dtype ",
                 toString(lengths.dtype));
  check_argument(num_kv_heads > 0 && num_q_heads > 0 && num_q_heads % num_kv_heads == 0, "num_q_heads: ", num_q_heads,
                 ", expected a multiple of num_kv_heads, ", num_kv_heads, ", one at least");
  check_argument(head_dim > 0, "head_dim: ", head_dim, ", expected 1 or more");
  const int64_t of_values = v_head_dim.value_or(head_dim);
  check_argument(of_values > 0, "v_head_dim: ", of_values, ", expected None, or 1 or more");
  const int32_t workers = checked_workers(num_workers);
  DecodeCall call{};
  DecodeParams& p = call.params;
  p.seqlens = static_cast<const int32_t*>(lengths.data);
  p.batch = to_int32(lengths.size(0), "cache_seqlens: batch");
  p.num_kv_heads = to_int32(num_kv_heads, "num_kv_heads");
  p.max_tokens = to_int32(max_tokens, "max_tokens");
  p.head_dim = to_int32(head_dim, "head_dim");
  p.v_head_dim = to_int32(of_values, "v_head_dim");
  p.workers = workers;
  // All that the tiling asks of pages and of the cache is whether there are any, and how large its elements are.
  p.page_table.page_size = to_int32(page_size, "page_size");
  p.cache_dtype = dtype_of(itemsize);
  p.scores.window_left = checked_window(window_left, "window_left");
  p.scores.window_right = checked_window(window_right, "window_right");
  if (cache_leftpad) {
    const TensorView pads = TensorView::of(*cache_leftpad);
    check_argument(pads.dtype == torch::headeronly::ScalarType::Int && pads.dim() == 1 && pads.is_contiguous() &&
                       pads.size(0) == lengths.size(0) && same_device(pads.device, lengths.device),
                   "cache_leftpad: expected as cache_seqlens, [", lengths.size(0), "] int32, contiguous, on ",
                   lengths.device);
    p.scores.leftpad = static_cast<const int32_t*>(pads.data);
  }
  p.batch_invariant = batch_invariant;
  const int64_t group = num_q_heads / num_kv_heads;
  if (cu_seqlens_q) {
    p.group = to_int32(group, "num_q_heads");
    call.packed = checked_packed_queries(*cu_seqlens_q, lengths, q_len, p);
  } else {
    check_q_len(q_len);
    set_query_rows(p, q_len, group);
  }
  p.plan = checked_plan(plan, p.batch, lengths.device);
  set_window(p, p.scores.window_left, cu_seqlens_q.has_value());
  p.score_options = score_options || p.score_options;
#ifdef LEANATTN_WITH_CUDA
  if (lengths.device.type == aoti_torch_device_type_cuda()) return plan_cuda(call, lengths.device.index);
#endif
  plan_cpu(call);
}

Tensor plan(const Tensor& cache_seqlens, int64_t max_tokens, int64_t num_q_heads, int64_t num_kv_heads,
            int64_t head_dim, int64_t q_len, int64_t num_workers, int64_t page_size, int64_t window_left,
            bool score_options, int64_t itemsize, int64_t window_right, std::optional<Tensor> cu_seqlens_q,
            std::optional<Tensor> cache_leftpad, bool batch_invariant, std::optional<int64_t> v_head_dim) {
  check_argument(cache_seqlens.dim() == 1, "cache_seqlens: expected [batch], got ", cache_seqlens.dim(), " dimensions");
  int64_t sequences = cache_seqlens.size(0);
  if (cu_seqlens_q) {
    sequences = most_query_blocks(cache_seqlens, q_len, num_q_heads, num_kv_heads, head_dim,
                                  v_head_dim.value_or(head_dim), itemsize, batch_invariant);
  }
  Tensor plan = empty_tensor({Plan::elements(sequences)}, aoti_torch_dtype_int32(), Device::of(cache_seqlens));
  plan_out(cache_seqlens, plan, max_tokens, num_q_heads, num_kv_heads, head_dim, q_len, num_workers, page_size,
           window_left, score_options, itemsize, window_right, std::move(cu_seqlens_q), std::move(cache_leftpad),
           batch_invariant, v_head_dim);
  return plan;
}

}  // namespace leanattn
