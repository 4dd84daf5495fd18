// Every inline assembly of the kernels, as a named function.
#pragma once

#include <cstdint>

namespace leanattn::ptx {

// Takes a ticket: returns the old value and adds one, wrapping to zero after `last`. Release: what this CTA wrote
// before a barrier is visible to whoever takes a later ticket. Acquire: so is what the takers of earlier tickets wrote.
__device__ __forceinline__ uint32_t atomic_inc_acq_rel(uint32_t* address, uint32_t last) {
  uint32_t old;
  asm volatile("atom.acq_rel.gpu.inc.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(last) : "memory");
  return old;
}

// 2^x, with 2 ulp of error; 0 for -inf.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Programmatic dependent launch: a kernel launched with that attribute may start while the one ahead of it in the
// stream still runs, and must wait before it touches memory. Both do nothing in a kernel that was launched without it.
__device__ __forceinline__ void grid_dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void grid_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// threadIdx.x, but read here and now: what is computed from it is not hoisted out of the loops around, where it would
// occupy registers that the tile loop needs.
__device__ __forceinline__ int thread_index_here() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace leanattn::ptx
