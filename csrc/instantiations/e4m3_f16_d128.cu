#include "kernels/launch_portable.cuh"

namespace leanattn {
const RegisteredKernel e4m3_f16_d128(portable_kernel<cutlass::half_t, 128, KernelKind::kE4M3>());
}
