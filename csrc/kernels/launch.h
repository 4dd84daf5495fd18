// How the bindings start a kernel: no template and no CuTe here. Errors are returned; nothing exits.
#pragma once

#include <cuda_runtime_api.h>

#include "append.h"
#include "params.h"

namespace leanattn {

constexpr int kMaxDevices = 64;

struct DeviceLimits {
  int ordinal;  // less than kMaxDevices
  int sm_count;
  int shared_memory_bytes;  // that one CTA may ask for
};

// One entry of the manifest (instantiations/manifest.cu).
struct DecodeKernel {
  DType dtype;
  int32_t head_dim;
  bool paged;
  cudaError_t (*launch)(const DecodeParams& params, const DeviceLimits& device, cudaStream_t stream);
};

// Makes params.plan from params.line().
cudaError_t launch_plan(const DecodeParams& params, cudaStream_t stream);

// Of 16-bit elements; batch, new_tokens and num_kv_heads at least 1.
cudaError_t launch_append(const AppendParams& params, const DeviceLimits& device, cudaStream_t stream);

// The kernel for a dtype and head dim, of a paged cache or one that is not, or null.
const DecodeKernel* find_decode_kernel(DType dtype, int32_t head_dim, bool paged);

}  // namespace leanattn
