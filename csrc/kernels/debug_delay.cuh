// Pseudo-random pauses for tests: they shuffle the order in which CTAs publish, merge and finish.
#pragma once

#include "params.h"

namespace leanattn {

__device__ __forceinline__ void debug_delay(const DebugOptions& debug, uint32_t worker, uint32_t where) {
  if (debug.delay_seed == 0) return;
  constexpr uint32_t kMaxNanoseconds = 1u << 15;  // many times what a tile takes
  uint32_t hash = debug.delay_seed ^ (worker * 0x9E3779B1u) ^ (where * 0x85EBCA77u);
  hash = (hash ^ (hash >> 15)) * 0x2C1B3C6Du;
  __nanosleep((hash ^ (hash >> 12)) % kMaxNanoseconds);
}

}  // namespace leanattn
