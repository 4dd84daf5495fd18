// Who owns the tickets of stage 3.
//
// Tickets are the only state that outlives a call: zero before it, zero after it. Two calls that may be in flight at
// the same time must not share them. Calls on one stream follow each other, so a block of tickets belongs to
//   - a stream, for calls that run at once;
//   - a (capture, stream) pair, for calls that are captured into a CUDA graph, which may be replayed on any stream.
// The partials come from torch's allocator, call by call; in a graph that means from the graph's memory pool.
// Hence the rule for users: a captured graph must not run beside itself (two instantiations, two child nodes), nor
// beside a graph with which it shares a memory pool.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace leanattn {

// Device memory of kMaxWorkers zeros, for a call on `stream` of the current device. It lives as long as the process:
// a graph does not say when it ends, and a block is 4 KiB. Throws std::runtime_error if CUDA fails.
uint32_t* lease_tickets(int32_t device, cudaStream_t stream);

}  // namespace leanattn
