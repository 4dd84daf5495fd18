#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
const DecodeKernel paged_bf16_d64{DType::kBFloat16, 64, true, launch_portable<cutlass::bfloat16_t, 64, true>};
}
