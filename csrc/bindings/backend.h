// What a backend offers to decode.cpp. Each takes checked parameters, fills in workers, the tiling (tile_table.h) and
// the workspace, and runs the call; it throws std::invalid_argument for what it does not support.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "arguments.h"
#include "kernels/append.h"

namespace leanattn {

struct RunOptions {
  const torch::stable::Tensor* workspace = nullptr;  // float32 scratch for the partials; allocated if null
  DebugOptions debug = {};
};

void run_cpu(const DecodeCall& call, const RunOptions& options);
void run_cuda(const DecodeCall& call, int32_t device, const RunOptions& options);

// Fill params.plan; of the rest only what the schedule needs has to be there.
void plan_cpu(const DecodeCall& call);
void plan_cuda(const DecodeCall& call, int32_t device);

// append.h; nothing is left to fill in. On a CPU also throws if a token that is no padding has no place.
void append_cpu(const AppendParams& params);
void append_cuda(const AppendParams& params, int32_t device);

// Whether kernels with wgmma run there.
bool has_wgmma(int32_t device);

// Of packed queries, tile_table::packed_row_limit(). Of `p`: group, head_dim, v_head_dim, cache_dtype and
// batch_invariant.
int32_t row_limit_of(Device device, const DecodeParams& p, int64_t tokens, int64_t batch);

// Float32 elements of all partials. Whatever the batch: it is bounded by the number of workers. Of a batch-invariant
// call up to 2 x 24 partials a worker, some tens of MB, where others have 3.
int64_t workspace_elements(const DecodeParams& params);
// The memory of a workspace for a call on `device`; throws std::invalid_argument unless it can hold the partials.
float* checked_workspace(const torch::stable::Tensor& workspace, const DecodeParams& params, Device device);
// Lets the partials lie in `memory`, which has workspace_elements(params) elements.
void bind_workspace(DecodeParams& params, float* memory);

}  // namespace leanattn
