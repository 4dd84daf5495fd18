#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
constinit const DecodeKernel int8_f16_d128 = portable_kernel<cutlass::half_t, 128, KernelKind::kInt8>();
}
