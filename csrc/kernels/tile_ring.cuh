// Between the two halves of stage 2: a ring of lean tiles in shared memory, which producer warps fill and the warps
// that compute empty. A stage has two mbarriers: `full`, that its tile has landed, and `empty`, that all threads are
// done with it (of a share's last stage, where rows are many, that its partial is written: decode_kernel.cuh). The
// loads run ahead of the arithmetic by all stages, and across the borders of spans: while a finished item is merged and
// written, the next one's tiles arrive.
//
// What a span needs besides tiles, its queries and what becomes of the result, has a ring of its own, a slot a span,
// filled while its tiles are. A span has a tile at least, so no more spans than stages are under way, and a slot
// is free when its turn comes. The third mbarrier of a slot, `task_there`, is for the latter: to work it out takes as
// long as the span's last tile is on its way, or longer. It also says that the partial of a cut span has been cleared:
// nothing of it may be written before.
#pragma once

#include "ptx.cuh"
#include "schedule.h"
#include "token_scales.cuh"
#include "traits.cuh"

namespace leanattn {

// A position in a ring and, for its barriers, the parity of the round.
struct RingIndex {
  int slot = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance(int num_slots) {
    if (++slot == num_slots) {
      slot = 0;
      parity ^= 1;
    }
  }
  __device__ __forceinline__ RingIndex before(int num_slots) const {
    return slot == 0 ? RingIndex{num_slots - 1, parity ^ 1} : RingIndex{slot - 1, parity};
  }
};

// The slot of a span's queries: that of its task, or where there are two of them, one of these by turns. Then the
// producer has to wait until the span that was there last is done.
template <typename Traits>
class QuerySlot {
  static constexpr bool kTwo = Traits::kFixedQueryBytes > 0;
  int slot_ = 0;
  int32_t last_tile_[2],
      tile_ = 0;  // of each slot's last span, and that which is being loaded: how many are ahead of it

 public:
  __device__ __forceinline__ int of(const RingIndex& span_slot) const { return kTwo ? slot_ : span_slot.slot; }
  __device__ __forceinline__ void next_span() { slot_ ^= 1; }

  // By the producer, before it loads the queries of a span, whose first tile it is loading; `spans` have been ahead.
  __device__ __forceinline__ void wait(uint64_t* empty, int32_t spans, int num_stages) const {
    if constexpr (kTwo) {
      const int32_t last = slot_ == 0 ? last_tile_[0] : last_tile_[1];
      // Of a stage that has been filled again, that has been waited for, and its barrier is further on.
      if (spans < 2 || tile_ - last >= num_stages) return;
      const int32_t round = quotient(last, num_stages);
      ptx::mbarrier_wait(&empty[last - round * num_stages], round % 2);
    }
  }
  // By the producer, behind each tile.
  __device__ __forceinline__ void count_tile(bool ends_span) {
    if constexpr (kTwo) {
      if (ends_span) {
        (slot_ == 0 ? last_tile_[0] : last_tile_[1]) = tile_;
        next_span();
      }
      ++tile_;
    }
  }
};

template <typename Traits>
struct TileRing {
  using Element = typename Traits::Element;
  using SharedMemory = typename Traits::SharedMemory;

  SharedMemory& smem;
  int num_stages;
  Element* tiles;    // [stage, token warp, K|V, kWarpTokens, units]
  Element* queries;  // [slot, head, row, head_dim], QueryLayout
  float* scales;     // [stage, token warp, K|V, kWarpTokens], with kTokenScales

  __device__ __forceinline__ TileRing(unsigned char* memory, int stages)
      : smem(*reinterpret_cast<SharedMemory*>(memory + stages * Traits::kStageBytes + Traits::kFixedQueryBytes)),
        num_stages(stages),
        tiles(reinterpret_cast<Element*>(memory)),
        queries(tiles + stages * Traits::kStageElements),
        scales(reinterpret_cast<float*>(queries + stages * Traits::kQueryElements)) {}

  // One thread calls it, before a barrier of the CTA.
  __device__ __forceinline__ void init_barriers(int full_arrivals) const {
    for (auto& barrier : smem.tickets_there) ptx::mbarrier_init(&barrier, 1);
    for (int i = 0; i < num_stages; ++i) {
      ptx::mbarrier_init(&smem.full[i], full_arrivals);
      ptx::mbarrier_init(&smem.empty[i], Traits::kComputeThreads);
      ptx::mbarrier_init(&smem.task_there[i], 1);
    }
  }

  __device__ __forceinline__ int bytes() const { return num_stages * Traits::kStageElements * int(sizeof(Element)); }

  __device__ __forceinline__ Element* keys(int stage, int warp) const {
    return tiles + stage * Traits::kStageElements + warp / Traits::kColumnWarps * 2 * Traits::kWarpElements;
  }
  __device__ __forceinline__ Element* values(int stage, int warp) const {
    return keys(stage, warp) + Traits::kWarpElements;
  }
  // The columns of V that the warp takes.
  __device__ __forceinline__ Element* value_columns(int stage, int warp) const {
    constexpr int kColumnElements = Traits::kWarpElements / Traits::kColumnWarps;
    return values(stage, warp) + warp % Traits::kColumnWarps * kColumnElements;
  }
  __device__ __forceinline__ TileScales<Traits> tile_scales(int stage) const { return {scales, stage}; }
  __device__ __forceinline__ Element* query(int slot, int head) const {
    return queries + slot * Traits::kQueryElements + head * (Traits::kQueryElements / Traits::kHeads);
  }
};

}  // namespace leanattn
