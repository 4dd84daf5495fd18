#include "kernels/launch_portable.cuh"

namespace leanattn {
const RegisteredKernel general_bf16_d512(portable_kernel<cutlass::bfloat16_t, 512, KernelKind::kGeneral>());
}
