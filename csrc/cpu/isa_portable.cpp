#include "isa_kernels.h"
#include "simd_portable.h"

namespace leanattn::cpu {
const IsaKernels kPortableKernels = kIsaKernels<Portable>;
}
