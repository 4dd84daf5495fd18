// The ops: allocate the outputs, check, run the backend of the device that q is on.
#include "decode.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "allocate.h"
#include "arguments.h"
#include "backend.h"
#include "checks.h"
#include "errors.h"
#include "kernels/tile_table.h"

namespace leanattn {
namespace {

void run(const DecodeArguments& args, const RunOptions& options) {
  const DecodeCall call = checked_call(args);
  if (call.params.batch == 0) return;
#ifdef LEANATTN_WITH_CUDA
  if (args.q.is_cuda()) return run_cuda(call, args.q.get_device_index(), options);
#endif
  run_cpu(call, options);
}

int32_t checked_stages(int64_t max_stages) {
  check_argument(max_stages == 0 || max_stages >= 2, "max_stages: expected 0, or 2 and more, got ", max_stages);
  return static_cast<int32_t>(std::min<int64_t>(max_stages, std::numeric_limits<int32_t>::max()));
}

int32_t checked_splits(int64_t splits) {
  check_argument(splits >= 0 && splits <= tile_table::kMaxWorkers, "fixed_splits: expected 0..",
                 tile_table::kMaxWorkers, ", got ", splits);
  return static_cast<int32_t>(splits);
}

// As q but for head_dim, that of v_cache; contiguous.
Tensor empty_out(const Tensor& q, const Tensor& v_cache) {
  check_argument(q.dim() >= 1 && v_cache.dim() == 4, "v_cache: expected 4 dimensions, got ", v_cache.dim());
  int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(q.get(), &dtype));
  std::vector<int64_t> shape{q.sizes().begin(), q.sizes().end()};
  shape.back() = v_cache.size(3);
  return empty_tensor(shape, dtype, Device::of(q));
}

// [batch, num_q_heads], with the q_len dimension of a 4-D q last; of packed queries [num_q_heads, tokens].
Tensor empty_lse(const Tensor& q, bool packed) {
  check_argument(q.dim() == 3 || q.dim() == 4, "q: expected 3 or 4 dimensions, got ", q.dim());
  std::vector<int64_t> shape{q.size(0), q.size(q.dim() - 2)};
  if (q.dim() == 4) shape.push_back(q.size(1));
  if (packed) std::swap(shape[0], shape[1]);
  return empty_tensor(shape, aoti_torch_dtype_float32(), Device::of(q));
}

}  // namespace

Tensor decode(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cache_seqlens,
              std::optional<double> softmax_scale, bool causal, int64_t num_workers,
              std::optional<int64_t> fresh_tokens, std::optional<Tensor> plan, std::optional<Tensor> block_table,
              int64_t window_left, int64_t window_right, double softcap, std::optional<Tensor> sinks,
              std::optional<Tensor> alibi_slopes, std::optional<Tensor> cache_leftpad, std::optional<Tensor> k_scale,
              std::optional<Tensor> v_scale, std::optional<Tensor> tree_mask, std::optional<Tensor> cu_seqlens_q,
              bool batch_invariant) {
  Tensor out = empty_out(q, v_cache);
  decode_out(q, k_cache, v_cache, cache_seqlens, out, std::nullopt, softmax_scale, causal, num_workers, fresh_tokens,
             std::move(plan), std::move(block_table), window_left, window_right, softcap, std::move(sinks),
             std::move(alibi_slopes), std::move(cache_leftpad), std::move(k_scale), std::move(v_scale),
             std::move(tree_mask), std::move(cu_seqlens_q), batch_invariant);
  return out;
}

std::tuple<Tensor, Tensor> decode_lse(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                      const Tensor& cache_seqlens, std::optional<double> softmax_scale, bool causal,
                                      int64_t num_workers, std::optional<int64_t> fresh_tokens,
                                      std::optional<Tensor> plan, std::optional<Tensor> block_table,
                                      int64_t window_left, int64_t window_right, double softcap,
                                      std::optional<Tensor> sinks, std::optional<Tensor> alibi_slopes,
                                      std::optional<Tensor> cache_leftpad, std::optional<Tensor> k_scale,
                                      std::optional<Tensor> v_scale, std::optional<Tensor> tree_mask,
                                      std::optional<Tensor> cu_seqlens_q, bool batch_invariant) {
  Tensor out = empty_out(q, v_cache);
  Tensor lse = empty_lse(q, cu_seqlens_q.has_value());
  decode_out(q, k_cache, v_cache, cache_seqlens, out, lse, softmax_scale, causal, num_workers, fresh_tokens,
             std::move(plan), std::move(block_table), window_left, window_right, softcap, std::move(sinks),
             std::move(alibi_slopes), std::move(cache_leftpad), std::move(k_scale), std::move(v_scale),
             std::move(tree_mask), std::move(cu_seqlens_q), batch_invariant);
  return {out, lse};
}

void decode_out(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cache_seqlens, Tensor out,
                std::optional<Tensor> lse, std::optional<double> softmax_scale, bool causal, int64_t num_workers,
                std::optional<int64_t> fresh_tokens, std::optional<Tensor> plan, std::optional<Tensor> block_table,
                int64_t window_left, int64_t window_right, double softcap, std::optional<Tensor> sinks,
                std::optional<Tensor> alibi_slopes, std::optional<Tensor> cache_leftpad, std::optional<Tensor> k_scale,
                std::optional<Tensor> v_scale, std::optional<Tensor> tree_mask, std::optional<Tensor> cu_seqlens_q,
                bool batch_invariant) {
  const ScoreArguments scores{window_left,           window_right,           softcap,           or_null(sinks),
                              or_null(alibi_slopes), or_null(cache_leftpad), or_null(tree_mask)};
  run({q, k_cache, v_cache, cache_seqlens, out, or_null(lse), softmax_scale, causal, num_workers, fresh_tokens,
       or_null(plan), or_null(block_table), scores, or_null(k_scale), or_null(v_scale), or_null(cu_seqlens_q),
       batch_invariant},
      {});
}

void decode_debug(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cache_seqlens,
                  Tensor out, std::optional<Tensor> lse, Tensor workspace, std::optional<double> softmax_scale,
                  bool causal, int64_t num_workers, int64_t delay_seed, int64_t max_stages,
                  std::optional<int64_t> fresh_tokens, std::optional<Tensor> plan, std::optional<Tensor> block_table,
                  int64_t fixed_splits, std::optional<Tensor> k_scale, std::optional<Tensor> v_scale,
                  bool batch_invariant) {
  run({q, k_cache, v_cache, cache_seqlens, out, or_null(lse), softmax_scale, causal, num_workers, fresh_tokens,
       or_null(plan), or_null(block_table), ScoreArguments{}, or_null(k_scale), or_null(v_scale), nullptr,
       batch_invariant},
      {.workspace = &workspace,
       .debug = {.delay_seed = static_cast<uint32_t>(delay_seed),
                 .max_stages = checked_stages(max_stages),
                 .fixed_splits = checked_splits(fixed_splits)}});
}

}  // namespace leanattn
