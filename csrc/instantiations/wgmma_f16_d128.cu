#include "kernels/launch_wgmma.cuh"
#include "manifest.h"

namespace leanattn {
constinit const DecodeKernel wgmma_f16_d128 = wgmma_kernel<cutlass::half_t, 128>();
}
