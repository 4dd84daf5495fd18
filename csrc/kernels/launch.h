// How the bindings start a kernel: no template and no CuTe here. Errors are returned; nothing exits.
#pragma once

#include <cuda_runtime_api.h>

#include "params.h"

namespace leanattn {

constexpr int kMaxDevices = 64;

struct DeviceLimits {
  int ordinal;  // less than kMaxDevices
  int sm_count;
  int shared_memory_bytes;  // that one CTA may ask for
  int major;                // compute capability
};

// What brings the tiles of a kernel: cp.async on any GPU, or the copy engine of Hopper.
enum class Body { kPortable, kHopper };

// One entry of the manifest (instantiations/manifest.cu).
struct DecodeKernel {
  Body body;
  DType dtype;
  int32_t head_dim;
  // cudaErrorNotSupported: this body has no way to read these caches; the portable one does.
  cudaError_t (*launch)(const DecodeParams& params, const DeviceLimits& device, cudaStream_t stream);
};

// The kernel for a dtype and head dim, or null.
const DecodeKernel* find_decode_kernel(Body body, DType dtype, int32_t head_dim);

}  // namespace leanattn
