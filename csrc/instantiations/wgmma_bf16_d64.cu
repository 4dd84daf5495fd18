#include "kernels/launch_wgmma.cuh"

namespace leanattn {
const RegisteredKernel wgmma_bf16_d64(wgmma_kernel<cutlass::bfloat16_t, 64>());
}
