// The C++ functions behind torch.ops.leanattn; schemas in ops.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace leanattn {

using torch::stable::Tensor;

Tensor decode(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cache_seqlens,
              std::optional<double> softmax_scale, bool causal, int64_t num_workers,
              std::optional<int64_t> fresh_tokens, std::optional<Tensor> plan, std::optional<Tensor> block_table,
              int64_t window_left, int64_t window_right, double softcap, std::optional<Tensor> sinks,
              std::optional<Tensor> alibi_slopes, std::optional<Tensor> cache_leftpad, std::optional<Tensor> k_scale,
              std::optional<Tensor> v_scale, std::optional<Tensor> tree_mask, std::optional<Tensor> cu_seqlens_q,
              bool batch_invariant);

std::tuple<Tensor, Tensor> decode_lse(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                      const Tensor& cache_seqlens, std::optional<double> softmax_scale, bool causal,
                                      int64_t num_workers, std::optional<int64_t> fresh_tokens,
                                      std::optional<Tensor> plan, std::optional<Tensor> block_table,
                                      int64_t window_left, int64_t window_right, double softcap,
                                      std::optional<Tensor> sinks, std::optional<Tensor> alibi_slopes,
                                      std::optional<Tensor> cache_leftpad, std::optional<Tensor> k_scale,
                                      std::optional<Tensor> v_scale, std::optional<Tensor> tree_mask,
                                      std::optional<Tensor> cu_seqlens_q, bool batch_invariant);

void decode_out(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cache_seqlens, Tensor out,
                std::optional<Tensor> lse, std::optional<double> softmax_scale, bool causal, int64_t num_workers,
                std::optional<int64_t> fresh_tokens, std::optional<Tensor> plan, std::optional<Tensor> block_table,
                int64_t window_left, int64_t window_right, double softcap, std::optional<Tensor> sinks,
                std::optional<Tensor> alibi_slopes, std::optional<Tensor> cache_leftpad, std::optional<Tensor> k_scale,
                std::optional<Tensor> v_scale, std::optional<Tensor> tree_mask, std::optional<Tensor> cu_seqlens_q,
                bool batch_invariant);

void decode_debug(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cache_seqlens,
                  Tensor out, std::optional<Tensor> lse, Tensor workspace, std::optional<double> softmax_scale,
                  bool causal, int64_t num_workers, int64_t delay_seed, int64_t max_stages,
                  std::optional<int64_t> fresh_tokens, std::optional<Tensor> plan, std::optional<Tensor> block_table,
                  int64_t fixed_splits, std::optional<Tensor> k_scale, std::optional<Tensor> v_scale,
                  bool batch_invariant);

// num_workers 0: as many as decode would take.
Tensor plan(const Tensor& cache_seqlens, int64_t max_tokens, int64_t num_q_heads, int64_t num_kv_heads,
            int64_t head_dim, int64_t q_len, int64_t num_workers, int64_t page_size, int64_t window_left,
            bool score_options, int64_t itemsize, int64_t window_right, std::optional<Tensor> cu_seqlens_q,
            std::optional<Tensor> cache_leftpad, bool batch_invariant, std::optional<int64_t> v_head_dim);

void plan_out(const Tensor& cache_seqlens, Tensor plan, int64_t max_tokens, int64_t num_q_heads, int64_t num_kv_heads,
              int64_t head_dim, int64_t q_len, int64_t num_workers, int64_t page_size, int64_t window_left,
              bool score_options, int64_t itemsize, int64_t window_right, std::optional<Tensor> cu_seqlens_q,
              std::optional<Tensor> cache_leftpad, bool batch_invariant, std::optional<int64_t> v_head_dim);

}  // namespace leanattn
