#include "kernels/launch_portable.cuh"

namespace leanattn {
const RegisteredKernel plain_f16_d128(portable_kernel<cutlass::half_t, 128, KernelKind::kPlain>());
}
