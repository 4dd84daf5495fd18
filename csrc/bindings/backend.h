// What a backend offers to decode.cpp. Each takes checked parameters, fills in workers, tile_tokens and the workspace,
// and runs the call; it throws std::invalid_argument for what it does not support.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "kernels/params.h"

namespace leanattn {

struct RunOptions {
  const torch::stable::Tensor* workspace = nullptr;  // float32 scratch for the partials; allocated if null
  DebugOptions debug = {};
};

void run_cpu(DecodeParams params, const RunOptions& options);
void run_cuda(DecodeParams params, int32_t device, const RunOptions& options);

// Float32 elements of all partials.
int64_t workspace_elements(const DecodeParams& params);
// Lets the partials lie in `memory`, which has workspace_elements(params) elements.
void bind_workspace(DecodeParams& params, float* memory);

}  // namespace leanattn
