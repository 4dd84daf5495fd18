#include "kernels/launch_portable.cuh"

namespace leanattn {
const RegisteredKernel general_f16_d512(portable_kernel<cutlass::half_t, 512, KernelKind::kGeneral>());
}
