#include "kernels/launch_portable.cuh"

namespace leanattn {
const RegisteredKernel general_bf16_d256(portable_kernel<cutlass::bfloat16_t, 256, KernelKind::kGeneral>());
}
