#include "kernels/launch_portable.cuh"

namespace leanattn {
const RegisteredKernel general_f16_d256(portable_kernel<cutlass::half_t, 256, KernelKind::kGeneral>());
}
