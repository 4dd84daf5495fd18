// The choice of instruction set, at run time.
#pragma once

#include "kernels/params.h"
#include "tile_kernels.h"

namespace leanattn::cpu {

// Kernels for queries of one dtype and a cache of the same or of 8 bits, of the best instruction set that this CPU has.
// The environment variable LEANATTN_CPU_ISA=portable|avx2|avx512 forces one; throws std::invalid_argument if it is
// unknown or this CPU lacks it.
const TileKernels& tile_kernels(DType dtype, DType cache_dtype);

}  // namespace leanattn::cpu
