// The C++ function behind torch.ops.leanattn.append_kv; schema in ops.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace leanattn {

void append_kv(const torch::stable::Tensor& k, const torch::stable::Tensor& v, torch::stable::Tensor k_cache,
               torch::stable::Tensor v_cache, const torch::stable::Tensor& cache_seqlens,
               std::optional<torch::stable::Tensor> block_table, std::optional<torch::stable::Tensor> q,
               std::optional<torch::stable::Tensor> rotary_cos, std::optional<torch::stable::Tensor> rotary_sin,
               bool rotary_interleaved, std::optional<torch::stable::Tensor> k_scale,
               std::optional<torch::stable::Tensor> v_scale);

}  // namespace leanattn
