#include "kernels/launch_hopper.cuh"
#include "manifest.h"

namespace leanattn {
const DecodeKernel hopper_f16_d128{Body::kHopper, DType::kFloat16, 128, launch_hopper<cutlass::half_t, 128>};
}
