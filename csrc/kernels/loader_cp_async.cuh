// Brings tiles by cp.async, sm_80 and up. There is a producer warp for each warp that computes, and it loads that
// one's tokens; all of them share the loading of the queries.
//
// In a paged cache the tokens of a tile lie in as many places as pages: each lane looks up the page of one of its
// warp's tokens, a tile ahead, and when the tile is loaded the lanes that load a token ask that one by a shuffle.
#pragma once

#include "copy.cuh"
#include "item_rows.cuh"
#include "reduction.cuh"
#include "tile_ring.cuh"

namespace leanattn {

template <typename Traits>
class CpAsyncLoader {
  using Element = typename Traits::Element;
  static constexpr int kChunk = 16 / int(sizeof(Element));        // elements of one cp.async
  static constexpr int kLanesPerRow = Traits::kHeadDim / kChunk;  // a row of K or V is one contiguous read
  static constexpr int kRowsPerPass = 32 / kLanesPerRow;
  static_assert(Traits::kWarpTokens <= 32, "a lane for each token of a warp");

 public:
  static constexpr int kProducerWarps = Traits::kWarps;
  static constexpr int kProducerThreads = 32 * kProducerWarps;
  // Of a stage's `full` barrier: every lane when its copies have landed, and the writer of the note.
  static constexpr int kArrivals = kProducerThreads + 1;

  // Stage 3: partials, `floats` of each, into shared memory, a warp a partial.
  static constexpr int kStagingArrivals = Traits::kComputeThreads;
  __device__ __forceinline__ static void stage_partials(const PartialList<Traits>& list, int32_t floats,
                                                        const Staging& staging) {
    const int warp = ptx::thread_index_here() / 32, lane = ptx::thread_index_here() % 32;
    for (int32_t n = warp; n < list.count; n += Traits::kWarps) {
      const float* from = list.at(n);
      float* to = staging.memory + n * floats;
#pragma unroll 4
      for (int i = lane * 4; i < floats; i += 32 * 4) copy_16_bytes(to + i, from + i);
    }
    ptx::mbarrier_arrive_after_copies(staging.barrier);
  }

  // Threads of two warps, so that neither is held up by both.
  __device__ __forceinline__ static bool writes_notes() { return producer_thread() == 0; }
  __device__ __forceinline__ static bool writes_tasks() { return producer_thread() == 32; }

  __device__ __forceinline__ CpAsyncLoader(const DecodeParams& params, const TileRing<Traits>& ring)
      : params_(params), ring_(ring) {}

  // At the span's first tile, which begins with `token`; `visible` tokens follow in the sequence.
  __device__ __forceinline__ void begin_span(const ItemRows& rows, int32_t token, int32_t visible) {
    rows_ = rows;
    if constexpr (Traits::kPaged) {
      k_ = source(params_.k, params_.k_strides, 0, 0);
      v_ = source(params_.v, params_.v_strides, 0, 0);
      find_page(token, visible);
    } else {
      const int32_t lane_token = token + Traits::first_token_of_warp(producer_warp()) + row_of_lane();
      k_ = source(params_.k, params_.k_strides, rows.seq, lane_token);
      v_ = source(params_.v, params_.v_strides, rows.seq, lane_token);
    }
  }

  // The tile at the loader's place, which begins with `token`; `visible` tokens from there on belong to the sequence.
  // The caller then calls finish(): only with its arrivals can the stage be full.
  __device__ __forceinline__ void load(int stage, int32_t token, int32_t visible) {
    if constexpr (Traits::kPaged) {
      const TokenPlace place{params_.page_table.clamped(place_.page), place_.token};
      load_rows(stage, visible, [&](int row) {
        const int lane = row + row_of_lane();
        return TokenPlace{__shfl_sync(~0u, place.page, lane), __shfl_sync(~0u, place.token, lane)};
      });
      find_page(token + Traits::kTileTokens, visible - Traits::kTileTokens);
    } else {
      load_rows(stage, visible, [](int row) { return TokenPlace{0, row}; });
      k_ += Traits::kTileTokens * params_.k_strides.token;
      v_ += Traits::kTileTokens * params_.v_strides.token;
    }
  }
  __device__ __forceinline__ void finish(int stage) {
    ptx::mbarrier_arrive_after_copies(&ring_.smem.full[stage]);
    if (writes_notes()) ptx::mbarrier_arrive(&ring_.smem.full[stage]);
  }

  // Called by the 128 producer threads, or by as many others. Rows that the item does not have become zero.
  __device__ __forceinline__ static void load_query(const DecodeParams& params, const TileRing<Traits>& ring,
                                                    const ItemRows& item, int slot) {
    const auto* q = static_cast<const Element*>(params.q);
    const typename Traits::QueryLayout layout;
    const int rows = item.count / Traits::kHeads;  // of a head
    for (int i = int(threadIdx.x) % kProducerThreads; i < Traits::kHeads * Traits::kRows * kLanesPerRow;
         i += kProducerThreads) {
      const int head = i / (Traits::kRows * kLanesPerRow), row = i / kLanesPerRow % Traits::kRows;
      const int column = i % kLanesPerRow * kChunk;
      const QueryRow from = item.query_row(params, head * rows + row);
      copy_or_zero(ring.query(slot, head) + layout(row, column), q + params.q_strides.offset(item.seq, from) + column,
                   row < rows);
    }
  }

 private:
  __device__ __forceinline__ static int producer_thread() { return int(threadIdx.x) - Traits::kComputeThreads; }
  __device__ __forceinline__ static int producer_warp() { return producer_thread() / 32; }
  __device__ __forceinline__ static int row_of_lane() { return int(threadIdx.x) % 32 / kLanesPerRow; }
  __device__ __forceinline__ static int column_of_lane() { return int(threadIdx.x) % kLanesPerRow * kChunk; }

  // This lane's chunk of a token of its head; in a paged cache `batch` is a page.
  __device__ __forceinline__ const Element* source(const void* cache, const CacheStrides& strides, int32_t batch,
                                                   int32_t token) const {
    return static_cast<const Element*>(cache) + batch * strides.batch +
           (rows_.kv_head + Traits::head_of_warp(producer_warp())) * strides.head + token * strides.token +
           column_of_lane();
  }

  // Where a token lies: in its page, or, if not paged, from the loader's place on.
  struct TokenPlace {
    int32_t page, token;

    __device__ __forceinline__ int64_t offset(const CacheStrides& strides) const {
      return page * strides.batch + token * strides.token;
    }
  };

  // This lane's rows of a tile, each from place_of(row).
  template <typename PlaceOf>
  __device__ __forceinline__ void load_rows(int stage, int32_t visible, const PlaceOf& place_of) {
    const typename Traits::KvLayout layout;
    const int lane_offset = layout(row_of_lane(), column_of_lane());
    const int lane_visible = visible - Traits::first_token_of_warp(producer_warp()) - row_of_lane();
    Element* keys = ring_.keys(stage, producer_warp());
    Element* values = ring_.values(stage, producer_warp());
#pragma unroll
    for (int row = 0; row < Traits::kWarpTokens; row += kRowsPerPass) {
      // layout(row + row_of_lane(), column_of_lane()): the two rows have no bit in common, and the swizzle is linear in
      // bits, so one constant a pass does what would otherwise be a register a pass.
      const int offset = lane_offset ^ layout(row, 0);
      const TokenPlace from = place_of(row);
      // A token beyond the length becomes zeros: whatever is there (NaN) times a weight of zero would not be zero.
      copy_or_zero(keys + offset, k_ + from.offset(params_.k_strides), row < lane_visible);
      copy_or_zero(values + offset, v_ + from.offset(params_.v_strides), row < lane_visible);
    }
  }

  // The place of this lane's token of the tile that begins with `token`, its page as it stands in the table: to clamp
  // it would be to wait for it. A token beyond the sequence has none: what follows in the table may be anything.
  __device__ __forceinline__ void find_page(int32_t token, int32_t visible) {
    const PageTable& table = params_.page_table;
    const int lane = int(threadIdx.x) % 32, in_tile = Traits::first_token_of_warp(producer_warp()) + lane;
    place_ = {0, 0};
    if (lane >= Traits::kWarpTokens || in_tile >= visible) return;
    const int32_t index = quotient(token + in_tile, table.page_size);
    place_ = {table.entry(rows_.seq, index), token + in_tile - index * table.page_size};
  }

  const DecodeParams& params_;
  const TileRing<Traits>& ring_;
  ItemRows rows_{};
  const Element* k_ = nullptr;  // this lane's chunk of the next tile's K; if paged, of page 0
  const Element* v_ = nullptr;  // ... and V
  TokenPlace place_{};          // if paged, of the token of the next tile that this lane looks up
};

}  // namespace leanattn
