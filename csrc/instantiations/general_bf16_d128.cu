#include "kernels/launch_portable.cuh"

namespace leanattn {
const RegisteredKernel general_bf16_d128(portable_kernel<cutlass::bfloat16_t, 128, KernelKind::kGeneral>());
}
