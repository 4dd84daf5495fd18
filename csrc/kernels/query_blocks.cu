// Makes the blocks of packed queries (query_blocks.h), for the decode kernel or the plan that follows.
#include <cub/block/block_scan.cuh>

#include "launch.h"
#include "query_blocks.h"

namespace leanattn {
namespace {

// One CTA: there are as many blocks as SMs have rows of queries to work on for some milliseconds, at most some ten
// thousand, and that takes it some ten microseconds.
constexpr int kThreads = 1024;

// Where the blocks of each sequence begin; returns how many there are.
__device__ int32_t number_blocks(const PackedQueries& packed, int32_t* first_ones) {
  using Scan = cub::BlockScan<int32_t, kThreads>;
  __shared__ typename Scan::TempStorage scan;
  int32_t so_far = 0;
  for (int32_t begin = 0; begin < packed.seqs; begin += kThreads) {
    const int32_t seq = begin + int32_t(threadIdx.x);
    int32_t first = seq < packed.seqs ? packed.blocks(seq) : 0, in_round;
    Scan(scan).ExclusiveSum(first, first, in_round);
    if (seq < packed.seqs) first_ones[seq] = so_far + first;
    so_far += in_round;
    __syncthreads();  // before the next round uses the memory of the scan
  }
  return so_far;
}

// The sequence that has block `number`: the last one that begins there or ahead.
__device__ int32_t sequence_of(const int32_t* first_ones, int32_t seqs, int32_t number) {
  int32_t low = 0, high = seqs;
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    (first_ones[middle] <= number ? low : high) = middle;
  }
  return low;
}

__global__ void __launch_bounds__(kThreads)
    pack_kernel(const __grid_constant__ PackedQueries packed, const __grid_constant__ QueryBlocks result) {
  const int32_t count = number_blocks(packed, result.first_ones);
  for (int32_t i = int32_t(threadIdx.x); i < packed.most_blocks(); i += kThreads) {
    if (i >= count) {
      result.set_none(i);
      continue;
    }
    const int32_t seq = sequence_of(result.first_ones, packed.seqs, i);
    result.set(packed, seq, i - result.first_ones[seq], i);
  }
}

}  // namespace

cudaError_t launch_pack(const PackedQueries& packed, const QueryBlocks& result, cudaStream_t stream) {
  pack_kernel<<<1, kThreads, 0, stream>>>(packed, result);
  return cudaGetLastError();
}

}  // namespace leanattn
