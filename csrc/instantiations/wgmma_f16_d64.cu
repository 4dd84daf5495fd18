#include "kernels/launch_wgmma.cuh"

namespace leanattn {
const RegisteredKernel wgmma_f16_d64(wgmma_kernel<cutlass::half_t, 64>());
}
