#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
constinit const DecodeKernel general_f16_d512 = portable_kernel<cutlass::half_t, 512, KernelKind::kGeneral>();
}
