#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
constinit const DecodeKernel general_bf16_d512 = portable_kernel<cutlass::bfloat16_t, 512, KernelKind::kGeneral>();
}
