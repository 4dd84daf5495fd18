#include "kernels/launch_portable.cuh"

namespace leanattn {
const RegisteredKernel plain_bf16_d64(portable_kernel<cutlass::bfloat16_t, 64, KernelKind::kPlain>());
}
