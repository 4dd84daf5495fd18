// The read limit: a kernel that only reads. A persistent grid walks the data in blocks of `threads x kLoads` 16-byte
// words; each thread has kLoads independent loads in flight.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

// Read-only path, no place in L1: what is read once should not push anything out.
__device__ uint4 load_once(const uint4* word) {
  uint4 w;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
               : "l"(word));
  return w;
}

__device__ uint32_t sum_of(uint4 w) { return w.x + w.y + w.z + w.w; }

// data: [words] 16-byte words. total: one integer, the sum of all 32-bit words modulo 2^32 is added to it;
// null while timing. That it could be written keeps the compiler from dropping the loads.
template <int kLoads>
__global__ void read_all(const uint4* __restrict__ data, int64_t words, uint32_t* total) {
  const int64_t block_words = int64_t(blockDim.x) * kLoads;
  const int64_t in_blocks = words - words % block_words;
  uint32_t sum = 0;
  for (int64_t block = blockIdx.x * block_words; block < in_blocks; block += gridDim.x * block_words) {
    uint4 w[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) w[i] = load_once(data + block + i * int64_t(blockDim.x) + threadIdx.x);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) sum += sum_of(w[i]);
  }
  const int64_t grid_threads = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = in_blocks + int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < words; at += grid_threads) {
    sum += sum_of(load_once(data + at));
  }
  if (total != nullptr) atomicAdd(total, sum);
}

}  // namespace

// Queues one read of `bytes` bytes (a multiple of 16) on `stream`. Returns a cudaError_t, 0 for success.
extern "C" int read_limit_launch(const void* data, int64_t bytes, int blocks, int threads, int loads, void* total,
                                 void* stream) {
  const auto* words = static_cast<const uint4*>(data);
  auto* sum = static_cast<uint32_t*>(total);
  auto* on = static_cast<cudaStream_t>(stream);
  if (bytes % 16 != 0) return cudaErrorInvalidValue;
  switch (loads) {
    case 2: read_all<2><<<blocks, threads, 0, on>>>(words, bytes / 16, sum); break;
    case 4: read_all<4><<<blocks, threads, 0, on>>>(words, bytes / 16, sum); break;
    case 8: read_all<8><<<blocks, threads, 0, on>>>(words, bytes / 16, sum); break;
    default: return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}
