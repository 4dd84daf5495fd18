#include "kernels/launch_portable.cuh"

namespace leanattn {
const RegisteredKernel paged_f16_d64(portable_kernel<cutlass::half_t, 64, KernelKind::kPaged>());
}
