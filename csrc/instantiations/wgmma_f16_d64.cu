#include "kernels/launch_wgmma.cuh"
#include "manifest.h"

namespace leanattn {
constinit const DecodeKernel wgmma_f16_d64 = wgmma_kernel<cutlass::half_t, 64>();
}
