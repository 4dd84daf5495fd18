#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
const DecodeKernel portable_f16_d128{DType::kFloat16, 128, false, launch_portable<cutlass::half_t, 128, false>};
}
