#include "cuda_tickets.h"

#include <map>
#include <memory>
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

struct FreeMemory {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct DestroyStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};

// Zeroed on a stream of its own: the caller's may be in a capture, which would make the memset a node of the graph.
uint32_t* allocate_chunk() {
  const RelaxedCapture relaxed;
  void* allocated = nullptr;
  check_cuda(cudaMalloc(&allocated, kBlocksPerChunk * kBlockBytes),
             "256 KiB for tickets (torch may hold the GPU's memory: torch.cuda.empty_cache())");
  std::unique_ptr<void, FreeMemory> memory(allocated);
  cudaStream_t created = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking), "a stream to clear tickets");
  const std::unique_ptr<CUstream_st, DestroyStream> stream(created);
  check_cuda(cudaMemsetAsync(memory.get(), 0, kBlocksPerChunk * kBlockBytes, stream.get()), "clearing tickets");
  check_cuda(cudaStreamSynchronize(stream.get()), "clearing tickets");
  return static_cast<uint32_t*>(memory.release());
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
