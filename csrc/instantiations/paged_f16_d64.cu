#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
const DecodeKernel paged_f16_d64{DType::kFloat16, 64, true, launch_portable<cutlass::half_t, 64, true>};
}
