#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
const DecodeKernel paged_bf16_d128{DType::kBFloat16, 128, true, launch_portable<cutlass::bfloat16_t, 128, true>};
}
