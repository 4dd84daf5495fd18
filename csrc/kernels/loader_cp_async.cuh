// Brings tiles by cp.async, sm_80 and up. There is a producer warp for each warp that computes, and it loads that
// one's tokens; all of them share the loading of the queries. Where all that compute take every token (wgmma),
// the loader warps take rows by turns.
//
// In a paged cache the tokens of a tile lie in as many places as pages: each lane looks up the page of one of its
// warp's tokens, or two, a tile ahead, and the lanes that load a token ask that one by a shuffle.
#pragma once

#include <type_traits>

#include "copy.cuh"
#include "item_rows.cuh"
#include "loader_scales.cuh"
#include "tile_ring.cuh"

namespace leanattn {

template <typename Traits>
class CpAsyncLoader {
  using Element = typename Traits::Element;
  using Cached = std::conditional_t<Traits::kItemsize == 1, uint8_t, Element>;
  static constexpr int kChunk = 16 / int(sizeof(Element));  // units of one cp.async
  // A row of K or V is one contiguous read, or if it is longer than those of a warp's lanes, two that follow each
  // other.
  static constexpr int kChunksPerRow = Traits::kUnits / kChunk;
  static constexpr int kLanesPerRow = kChunksPerRow < 32 ? kChunksPerRow : 32, kRowParts = kChunksPerRow / kLanesPerRow;
  static constexpr int kRowsPerPass = 32 / kLanesPerRow;
  // Of the tokens of a warp that computes; where several compute with the same, their loaders share them.
  static constexpr int kTokens = Traits::kWarpTokens / Traits::kColumnWarps, kPasses = kTokens / kRowsPerPass;
  // Rows of the tile from pass to pass. Where all warps bring a tile for all that compute, they take their rows by
  // turns: so a lane's rows have one place in the swizzle of eight, and the passes' offsets are constants of the
  // instructions.
  static constexpr int kPassRows = (Traits::kWgmma ? Traits::kLoaderWarps : 1) * kRowsPerPass;
  static_assert(!Traits::kWgmma || kPassRows % 8 == 0);
  // In a paged cache, the addresses of a tile are worked out while there is no stage for it yet: up to 1.3 times as
  // fast as when the free stage waits for them (docs/tuning.md). They are 32 registers, which 32 query rows do not
  // leave.
  static constexpr bool kRowsAhead = Traits::kPaged && Traits::kRows <= 16;
  static constexpr int kTokensOfLane = (kTokens + 31) / 32;
  static_assert(kTokens % kRowsPerPass == 0 && 32 % kRowsPerPass == 0);

 public:
  static constexpr int kProducerWarps = Traits::kLoaderWarps;
  static constexpr int kProducerThreads = 32 * kProducerWarps;
  // Of a stage's `full` barrier: every lane when its copies have landed, and the writer of the note.
  static constexpr int kArrivals = kProducerThreads + 1;

  // Threads of two warps, so that neither is held up by both.
  __device__ __forceinline__ static bool writes_notes() { return producer_thread() == 0; }
  __device__ __forceinline__ static bool in_task_warp() { return producer_warp() == 1; }
  __device__ __forceinline__ static bool writes_tasks() { return producer_thread() == 32; }

  __device__ __forceinline__ CpAsyncLoader(const DecodeParams& params, const TileRing<Traits>& ring)
      : params_(params), ring_(ring), k_scales_(params.k_token_scales), v_scales_(params.v_token_scales) {}

  // At the span's first tile, which begins with `token`; `visible` tokens follow in the sequence.
  __device__ __forceinline__ void begin_span(const SpanOrigin& origin, int32_t token, int32_t visible) {
    seq_ = origin.block.seq;
    kv_head_ = origin.kv_head;
    if (paged()) {
      k_ = source(params_.k, params_.k_strides, 0, 0);
      v_ = source(params_.v, params_.v_strides, 0, 0);
      begin_scales(0, 0);
      find_page(token, visible);
    } else {
      const int32_t lane_token = token + first_token() + row_of_lane();
      k_ = source(params_.k, params_.k_strides, seq_, lane_token);
      v_ = source(params_.v, params_.v_strides, seq_, lane_token);
      begin_scales(seq_, token + first_token() + int(threadIdx.x) % 32);
    }
  }

  // Calls f(std::bool_constant<is the cache paged?>), known at compile time where it can be.
  template <typename F>
  __device__ __forceinline__ void by_layout(const F& f) const {
    if constexpr (!Traits::kPaged) {
      f(std::false_type{});
    } else if constexpr (!Traits::kGeneral) {
      f(std::true_type{});
    } else if (paged()) {
      f(std::true_type{});
    } else {
      f(std::false_type{});
    }
  }

  // Works out where the tile at the loader's place is, before there is a stage for it. It begins with `token`;
  // `visible` tokens from there on belong to the sequence.
  template <bool kPagedCache>
  __device__ __forceinline__ void locate(int32_t token, int32_t visible) {
    if constexpr (kPagedCache) {
#pragma unroll
      for (int i = 0; i < kTokensOfLane; ++i) {
        const int32_t page = params_.page_table.clamped(place_[i].page);
        k_lane_[i] = page * params_.k_strides.batch + place_[i].token * params_.k_strides.token;
        v_lane_[i] = page * params_.v_strides.batch + place_[i].token * params_.v_strides.token;
        if constexpr (Traits::kTokenScales) {
          k_scales_.locate(i, page, place_[i].token);
          v_scales_.locate(i, page, place_[i].token);
        }
      }
      if constexpr (kRowsAhead) {
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
          k_rows_[pass] = k_ + of_row(k_lane_, pass);
          v_rows_[pass] = v_ + of_row(v_lane_, pass);
        }
      }
      find_page(token + Traits::kTileTokens, visible - Traits::kTileTokens);
    }
  }
  // Asks for it, and moves on. The caller then calls finish(): only with its arrivals can the stage be full.
  template <bool kPagedCache>
  __device__ __forceinline__ void load(int stage, int32_t visible) {
    if constexpr (Traits::kTokenScales) {
      const auto to = ring_.tile_scales(stage);
      k_scales_.template load<kPagedCache>(to.keys(producer_warp()) + first_row(), visible - first_token());
      v_scales_.template load<kPagedCache>(to.values(producer_warp()) + first_row(), visible - first_token());
    }
    if constexpr (!kPagedCache) {
      // The next row as a sum: a product of 64 bits would take six instructions.
      const auto in_order = [](const Cached*& next, int64_t step) {
        return [&next, step](int) {
          const Cached* row = next;
          next += step;
          return row;
        };
      };
      load_rows(stage, visible, in_order(k_, kPassRows * params_.k_strides.token),
                in_order(v_, kPassRows * params_.v_strides.token));
      // From there to this lane's first row of the next tile.
      constexpr int kOthersRows = Traits::kTileTokens - kPasses * kPassRows;
      k_ += kOthersRows * params_.k_strides.token;
      v_ += kOthersRows * params_.v_strides.token;
    } else if constexpr (kRowsAhead) {
      load_rows(stage, visible, [&](int pass) { return k_rows_[pass]; }, [&](int pass) { return v_rows_[pass]; });
    } else {
      load_rows(
          stage, visible, [&](int pass) { return k_ + of_row(k_lane_, pass); },
          [&](int pass) { return v_ + of_row(v_lane_, pass); });
    }
  }
  __device__ __forceinline__ void finish(int stage) {
    ptx::mbarrier_arrive_after_copies(&ring_.smem.full[stage]);
    if (writes_notes()) ptx::mbarrier_arrive(&ring_.smem.full[stage]);
  }

  // Called by the 128 producer threads, or by as many others. Rows that the item does not have become zero.
  __device__ __forceinline__ static void load_query(const DecodeParams& params, const TileRing<Traits>& ring,
                                                    const ItemRows& item, int slot) {
    if constexpr (Traits::kWgmma) return load_block_query(params, ring, item, slot);
    const auto* q = static_cast<const Element*>(params.q);
    const typename Traits::QueryLayout layout;
    constexpr int kRowChunks = Traits::kHeadDim / kChunk;
    const int rows = item.count / Traits::kHeads;  // of a head
#pragma unroll 1
    for (int i = int(threadIdx.x) % kProducerThreads; i < Traits::kHeads * Traits::kRows * kRowChunks;
         i += kProducerThreads) {
      const int head = i / (Traits::kRows * kRowChunks), row = i / kRowChunks % Traits::kRows;
      const int column = i % kRowChunks * kChunk;
      const QueryRow from = item.query_row(params, head * rows + row);
      copy_or_zero(ring.query(slot, head) + layout(row, column), q + params.q_strides.offset(item.query, from) + column,
                   row < rows && has_column(column, params.head_dim));
    }
  }

 private:
  // A kernel that can do more takes both kinds of cache.
  __device__ __forceinline__ bool paged() const { return Traits::kPaged && (!Traits::kGeneral || params_.paged()); }
  __device__ __forceinline__ static int producer_thread() { return int(threadIdx.x) - Traits::kComputeThreads; }
  __device__ __forceinline__ static int producer_warp() { return producer_thread() / 32; }
  // This warp's first token, in the tile, and among those of the warp that computes with it.
  __device__ __forceinline__ static int first_token() {
    return Traits::first_token_of_warp(producer_warp()) + first_row();
  }
  __device__ __forceinline__ static int first_row() {
    return producer_warp() % Traits::kColumnWarps * (Traits::kWgmma ? kRowsPerPass : kTokens);
  }
  __device__ __forceinline__ static int row_of_lane() { return int(threadIdx.x) % 32 / kLanesPerRow; }
  // Is there one, of `head_dim`?
  __device__ __forceinline__ static bool has_column(int column, int32_t head_dim) {
    return !Traits::kGeneral || column < head_dim;
  }
  __device__ __forceinline__ static int chunk_of_lane() { return int(threadIdx.x) % kLanesPerRow; }

  // Row of the tile, or of a block's queries, that is this warp's i-th.
  __device__ __forceinline__ static int row_of_warp(int i) { return i / kRowsPerPass * kPassRows + i % kRowsPerPass; }

  // load_query() of many rows, by the producer. Each lane finds the place of one, and the lanes that load it ask that
  // one: to find it takes branches and products of 64 bits.
  __device__ __forceinline__ static void load_block_query(const DecodeParams& params, const TileRing<Traits>& ring,
                                                          const ItemRows& item, int slot) {
    constexpr int kQueryPasses = Traits::kRows / kPassRows;
    static_assert(kQueryPasses * kRowsPerPass == 32, "a row for each lane");
    const typename Traits::QueryLayout layout;
    const int column = chunk_of_lane() * kChunk, first = first_row() + row_of_lane();
    const QueryRow own = item.query_row(params, min(first_row() + row_of_warp(int(threadIdx.x) % 32), item.count - 1));
    const int64_t own_offset = params.q_strides.offset(item.query, own);
    const auto* q = static_cast<const Element*>(params.q) + column;
    Element* to = ring.query(slot, 0) + layout(first, column);
    const int rows = has_column(column, params.head_dim) ? item.count - first : 0;
#pragma unroll 2
    for (int pass = 0; pass < kQueryPasses; ++pass) {
      const int64_t offset = __shfl_sync(~0u, own_offset, pass * kRowsPerPass + row_of_lane());
      copy_or_zero(to + layout(pass * kPassRows, 0), q + offset, pass * kPassRows < rows);
    }
  }

  // This lane's chunk of a token of its head; in a paged cache `batch` is a page.
  __device__ __forceinline__ const Cached* source(const void* cache, const CacheStrides& strides, int32_t batch,
                                                  int32_t token) const {
    return static_cast<const Cached*>(cache) + batch * strides.batch +
           (kv_head_ + Traits::head_of_warp(producer_warp())) * strides.head + token * strides.token +
           chunk_of_lane() * (16 / int(sizeof(Cached)));
  }

  __device__ __forceinline__ void begin_scales(int32_t batch, int32_t token) {
    if constexpr (Traits::kTokenScales) {
      const int32_t kv_head = kv_head_ + Traits::head_of_warp(producer_warp());
      k_scales_.begin_span(batch, kv_head, token);
      v_scales_.begin_span(batch, kv_head, token);
    }
  }

  // What the lane that looked up the token of this lane's row has.
  __device__ __forceinline__ static int64_t of_row(const int64_t (&of_lane)[kTokensOfLane], int pass) {
    const int row = pass * kRowsPerPass;
    return __shfl_sync(~0u, of_lane[kTokensOfLane == 1 ? 0 : row / 32], row % 32 + row_of_lane());
  }

  // This lane's chunks of a tile: in each pass one of K and one of V, or as many as a row has parts.
  template <typename KeysOf, typename ValuesOf>
  __device__ __forceinline__ void load_rows(int stage, int32_t visible, const KeysOf& keys_of,
                                            const ValuesOf& values_of) {
    const typename Traits::KvLayout layout;
    const int lane_offset = layout(first_row() + row_of_lane(), chunk_of_lane() * kChunk);
    constexpr int kChunkElements = 16 / int(sizeof(Cached)), kPartElements = kLanesPerRow * kChunkElements;
    const int lane_visible = visible - first_token() - row_of_lane();
    int keys_visible[kRowParts], values_visible[kRowParts];
#pragma unroll
    for (int part = 0; part < kRowParts; ++part) {
      const int column = chunk_of_lane() * kChunkElements + part * kPartElements;
      keys_visible[part] = has_column(column, params_.head_dim) ? lane_visible : 0;
      values_visible[part] = has_column(column, params_.v_head_dim) ? lane_visible : 0;
    }
    Element* keys = ring_.keys(stage, producer_warp());
    Element* values = ring_.values(stage, producer_warp());
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = pass * kPassRows;
      const Cached *k = keys_of(pass), *v = values_of(pass);
#pragma unroll
      for (int part = 0; part < kRowParts; ++part) {
        // layout(row + row_of_lane(), its column): the two rows have no bit in common, nor have the columns, and the
        // swizzle is linear in bits, so one constant does what would otherwise be a register. From row 8 on the swizzle
        // is the same again, and a sum has no carry into it: the constant is a part of the instruction.
        const int pass_offset = layout(row, part * kLanesPerRow * kChunk);
        const int offset = kPassRows % 8 == 0 ? lane_offset + pass_offset : lane_offset ^ pass_offset;
        // A token beyond the length becomes zeros: whatever is there (NaN) times a weight of zero would not be zero.
        copy_or_zero(keys + offset, k + part * kPartElements, row < keys_visible[part]);
        copy_or_zero(values + offset, v + part * kPartElements, row < values_visible[part]);
      }
    }
  }

  // The places of this lane's tokens of the tile that begins with `token`, their pages as they stand in the table: to
  // clamp them would be to wait for them. A token beyond the sequence has none: what follows in the table may be
  // anything.
  __device__ __forceinline__ void find_page(int32_t token, int32_t visible) {
    const PageTable& table = params_.page_table;
#pragma unroll
    for (int i = 0; i < kTokensOfLane; ++i) {
      const int in_warp = int(threadIdx.x) % 32 + 32 * i;
      const int in_tile = first_token() + row_of_warp(in_warp);
      place_[i] = {0, 0};
      if (in_warp >= kTokens || in_tile >= visible) continue;
      const int32_t index = quotient(token + in_tile, table.page_size);
      place_[i] = {table.entry(seq_, index), token + in_tile - index * table.page_size};
    }
  }

  const DecodeParams& params_;
  const TileRing<Traits>& ring_;
  int32_t seq_ = 0, kv_head_ = 0;  // of the span
  const Cached* k_ = nullptr;      // this lane's chunk of the next tile's K; if paged, of page 0
  const Cached* v_ = nullptr;      // ... and V
  // If paged: where the token of the next tile is that this lane looks up; in the cache, of the tile to load; and this
  // lane's rows of that one.
  struct {
    int32_t page, token;
  } place_[kTokensOfLane]{};
  int64_t k_lane_[kTokensOfLane]{}, v_lane_[kTokensOfLane]{};
  const Cached *k_rows_[kPasses], *v_rows_[kPasses];
  ScaleLoader<Traits, kTokens> k_scales_, v_scales_;  // with kTokenScales
};

}  // namespace leanattn
