#include "cuda_tickets.h"

#include <map>
#include <mutex>
#include <tuple>

#include "cuda_error.h"
#include "kernels/tile_table.h"

namespace leanattn {
namespace {

constexpr size_t kBlockBytes = tile_table::kMaxWorkers * sizeof(uint32_t);
constexpr size_t kBlocksPerChunk = 64;  // 256 KiB a cudaMalloc: a server captures hundreds of graphs

// Allows cudaMalloc while some stream is being captured, as torch's allocator does.
class RelaxedCapture {
 public:
  RelaxedCapture() { check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_), "cudaThreadExchangeStreamCaptureMode"); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Zeroed on a stream of its own: the caller's may be in a capture, which would make the memset a node of the graph.
uint32_t* allocate_chunk() {
  const RelaxedCapture relaxed;
  void* memory = nullptr;
  cudaStream_t stream = nullptr;
  check_cuda(cudaMalloc(&memory, kBlocksPerChunk * kBlockBytes), "cudaMalloc of tickets");
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate for tickets");
  check_cuda(cudaMemsetAsync(memory, 0, kBlocksPerChunk * kBlockBytes, stream), "cudaMemset of tickets");
  check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize for tickets");
  check_cuda(cudaStreamDestroy(stream), "cudaStreamDestroy for tickets");
  return static_cast<uint32_t*>(memory);
}

struct Pool {
  std::mutex mutex;
  std::map<std::tuple<int32_t, uint64_t, uint64_t>, uint32_t*> leased;  // (device, capture or 0, stream) -> block
  struct Chunk {
    uint32_t* next = nullptr;
    size_t blocks_left = 0;
  };
  std::map<int32_t, Chunk> chunks;  // by device
};

Pool& pool() {
  static Pool* instance = new Pool;  // never destroyed: streams may outlive static objects
  return *instance;
}

}  // namespace

uint32_t* lease_tickets(int32_t device, cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  unsigned long long capture = 0, stream_id = 0;
  check_cuda(cudaStreamGetCaptureInfo(stream, &status, &capture), "cudaStreamGetCaptureInfo");
  if (status == cudaStreamCaptureStatusActive) {
    stream_id = reinterpret_cast<uintptr_t>(stream);  // a stream cannot go while it is captured; its id may not be read
  } else {
    // The id, not the handle: a handle may come back for a new stream, and every per-thread default stream has the
    // same.
    capture = 0;
    check_cuda(cudaStreamGetId(stream, &stream_id), "cudaStreamGetId");
  }

  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  uint32_t*& block = p.leased[{device, capture, stream_id}];
  if (block == nullptr) {
    Pool::Chunk& chunk = p.chunks[device];
    if (chunk.blocks_left == 0) chunk = {allocate_chunk(), kBlocksPerChunk};
    block = chunk.next;
    chunk.next += tile_table::kMaxWorkers;
    --chunk.blocks_left;
  }
  return block;
}

}  // namespace leanattn
