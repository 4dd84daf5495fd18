#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
constinit const DecodeKernel int8_bf16_d128 = portable_kernel<cutlass::bfloat16_t, 128, KernelKind::kInt8>();
}
