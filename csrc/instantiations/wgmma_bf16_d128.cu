#include "kernels/launch_wgmma.cuh"
#include "manifest.h"

namespace leanattn {
constinit const DecodeKernel wgmma_bf16_d128 = wgmma_kernel<cutlass::bfloat16_t, 128>();
}
