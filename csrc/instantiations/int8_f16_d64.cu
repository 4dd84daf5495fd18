#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
constinit const DecodeKernel int8_f16_d64 = portable_kernel<cutlass::half_t, 64, KernelKind::kInt8>();
}
