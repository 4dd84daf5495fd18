// Brings tiles by the copy engine of Hopper (TMA): one thread asks for whole boxes of K and V, and the engine writes
// them swizzled and counts their bytes in the stage's `full` barrier. Rows of Q come by bulk copies, one each.
#pragma once

#include <cuda.h>  // CUtensorMap, a type; no function of the driver library is linked

#include "item_rows.cuh"
#include "reduction.cuh"
#include "tile_ring.cuh"

namespace leanattn {

// K and V as the engine sees them, [batch, num_kv_heads, head_dim / 64, max_tokens, 64]; a box is what one warp
// computes with, [1, 1, head_dim / 64, kWarpTokens, 64] (tensor_map.h).
struct TmaSource {
  CUtensorMap k, v;
};

template <typename Traits>
class TmaLoader {
  using Element = typename Traits::Element;
  static constexpr int kBoxBytes = Traits::kWarpElements * int(sizeof(Element));
  static constexpr int kQueryRowBytes = Traits::kHeadDim * int(sizeof(Element));

 public:
  static constexpr int kProducerThreads = 32;
  static constexpr int kArrivals = 1;  // of a stage's `full` barrier: the thread that says how many bytes will come
  // A box holds whatever is in the cache beyond the length.
  static constexpr bool kZeroesTail = false;

  // Rows of a query slot that no item fills are read as well; they must not look like enormous scores.
  __device__ __forceinline__ static void prepare(const TmaSource& source, const TileRing<Traits>& ring) {
    if (runs_here()) {
      ptx::prefetch_tensor_map(&source.k);
      ptx::prefetch_tensor_map(&source.v);
    }
    constexpr int kChunk = 16 / int(sizeof(Element));
    for (int i = int(threadIdx.x); i < ring.num_stages * Traits::kQueryElements / kChunk; i += Traits::kThreads) {
      reinterpret_cast<uint4*>(ring.queries)[i] = {};
    }
    ptx::fence_async_proxy();
  }

  // Stage 3: partials [first, end) of a list into shared memory, one copy each.
  static constexpr int kStagingArrivals = 1;
  __device__ __forceinline__ static void stage_partials(const PartialList<Traits>& list, int32_t first, int32_t end,
                                                        int rows, const Staging& staging) {
    if (threadIdx.x != 0) return;
    ptx::fence_async_proxy_all();  // ordinary stores wrote them, of other CTAs
    const uint32_t bytes = rows * Partial<Traits>::kRow * int(sizeof(float));
    ptx::mbarrier_arrive_expect(staging.barrier, (end - first) * bytes);
    for (int32_t i = first; i < end; ++i) {
      ptx::bulk_load(staging.memory + (i - first) * list.floats(), list[i].memory, bytes, staging.barrier);
    }
  }

  __device__ __forceinline__ static bool runs_here() { return threadIdx.x == Traits::kComputeThreads; }
  __device__ __forceinline__ static bool writes_notes() { return true; }

  __device__ __forceinline__ TmaLoader(const DecodeParams& params, const TmaSource& source,
                                       const TileRing<Traits>& ring)
      : params_(params), source_(source), ring_(ring) {}

  __device__ __forceinline__ void begin_span(const ItemRows& rows, int32_t) { rows_ = rows; }

  __device__ __forceinline__ void load_nothing(int stage) { ptx::mbarrier_arrive(&ring_.smem.full[stage]); }

  // The tile that begins at `token`; `visible` tokens of it belong to the sequence. A warp without any gets no box.
  __device__ __forceinline__ void load(int stage, int32_t token, int32_t visible, bool first, int span_slot) {
    uint64_t* full = &ring_.smem.full[stage];
    const int warps = min(Traits::kWarps, ceil_div(visible, Traits::kWarpTokens));
    ptx::mbarrier_arrive_expect(full, warps * 2 * kBoxBytes + (first ? rows_.count * kQueryRowBytes : 0));
    if (first) load_query(full, span_slot);
#pragma unroll
    for (int warp = 0; warp < Traits::kWarps; ++warp) {
      if (warp >= warps) break;
      const int32_t begin = token + warp * Traits::kWarpTokens;
      ptx::tma_load(ring_.keys(stage, warp), &source_.k, full, begin, rows_.kv_head, rows_.seq);
      ptx::tma_load(ring_.values(stage, warp), &source_.v, full, begin, rows_.kv_head, rows_.seq);
    }
  }

 private:
  __device__ __forceinline__ void load_query(uint64_t* full, int slot) const {
    const auto* q = static_cast<const Element*>(params_.q) + rows_.seq * params_.q_strides.batch +
                    rows_.first_head * params_.q_strides.head;
    Element* to = ring_.query(slot);
    for (int row = 0; row < rows_.count; ++row) {
      ptx::bulk_load(to + row * Traits::kQueryStride, q + row * params_.q_strides.head, kQueryRowBytes, full);
    }
  }

  const DecodeParams& params_;
  const TmaSource& source_;
  const TileRing<Traits>& ring_;
  ItemRows rows_{};
};

}  // namespace leanattn
