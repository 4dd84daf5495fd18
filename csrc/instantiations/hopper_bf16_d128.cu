#include "kernels/launch_hopper.cuh"
#include "manifest.h"

namespace leanattn {
const DecodeKernel hopper_bf16_d128{Body::kHopper, DType::kBFloat16, 128, launch_hopper<cutlass::bfloat16_t, 128>};
}
