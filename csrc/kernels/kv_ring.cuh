// Stage 2, input: one warp's ring of K/V tiles, filled by cp.async. The loads run ahead of the arithmetic by all stages
// but one, and across the borders of spans: while a finished item is merged and written, the next one's tiles arrive.
// The warp loads what it reads itself, so the ring needs no barrier but __syncwarp. The queries of an item come with
// its first tile, each warp a part of their rows, which all warps read: that takes one CTA barrier a span. A load is
// issued in steps between the arithmetic of the tile in hand: sixteen copies at once would fill the queue of the memory
// unit and stall the warp.
#pragma once

#include "copy.cuh"
#include "ptx.cuh"
#include "query.cuh"

namespace leanattn {

template <typename Traits>
class KvRing {
  using Element = typename Traits::Element;
  static constexpr int kChunk = 16 / int(sizeof(Element));        // elements of one cp.async
  static constexpr int kLanesPerRow = Traits::kHeadDim / kChunk;  // a row of K or V is one contiguous read
  static constexpr int kRowsPerPass = 32 / kLanesPerRow;
  static constexpr int kStepPasses = Traits::kWarpTokens / kRowsPerPass / Traits::kLoadSteps;
  static_assert(kStepPasses * kRowsPerPass * Traits::kLoadSteps == Traits::kWarpTokens);

 public:
  // `memory`: [num_stages, K|V, kWarpTokens, head_dim] of this warp; `queries`: [num_stages, kRows, head_dim] of the
  // CTA.
  __device__ __forceinline__ KvRing(const DecodeParams& params, const SpanCursor& spans, Element* memory,
                                    Element* queries, int num_stages)
      : params_(params), spans_(spans), memory_(memory), queries_(queries), num_stages_(num_stages) {
    if (!spans_.done()) enter_span();
    for (int i = 1; i < num_stages_; ++i) {
#pragma unroll
      for (int step = 0; step < Traits::kLoadSteps; ++step) load_step(step);
    }
  }

  // Waits for the oldest tile. Returns its K; its V follows at once. All load_steps must be called before the next
  // call.
  __device__ __forceinline__ const Element* next_tile() {
    wait_for_oldest();
    __syncwarp();  // every lane's copies have landed, and every lane is done with the tile before
    const Element* tile = memory_ + read_ * Traits::kStageElements;
    read_ = next(read_);
    return tile;
  }

  // The queries of the next span, once its first tile is there for all warps. A span has a tile at least, so no more
  // spans than stages are under way, and nobody reads the slot that is written.
  __device__ __forceinline__ const Element* next_query() {
    const Element* query = queries_ + query_read_ * Traits::kQueryElements;
    query_read_ = next(query_read_);
    return query;
  }

  // Part `step` of the load of the next tile, or of nothing at the end of the share. The last step closes the cp.async
  // group, full or empty, so that the number of groups in flight is always known.
  __device__ __forceinline__ void load_step(int step) {
    if (step == 0 && starts_span_) {
      load_query_rows<Traits>(params_, ItemRows::of(params_, spans_.seq, spans_.item),
                              queries_ + query_write_ * Traits::kQueryElements);
      query_write_ = next(query_write_);
      starts_span_ = false;
    }
    if (tiles_left_ > 0) {
      const typename Traits::KvLayout layout;
      const int lane_offset = layout(row_of_lane(), column_of_lane());
      Element* stage = memory_ + write_ * Traits::kStageElements;
#pragma unroll
      for (int pass = step * kStepPasses; pass < (step + 1) * kStepPasses; ++pass) {
        const int row = pass * kRowsPerPass;
        // layout(row + row_of_lane(), column_of_lane()): the two rows have no bit in common, and the swizzle is linear
        // in bits, so one constant a pass does what would otherwise be a register a pass.
        Element* to = stage + (lane_offset ^ layout(row, 0));
        // A token beyond the length becomes zeros: whatever is there (NaN) times a weight of zero would not be zero.
        const bool visible = row < tokens_left_;
        copy_or_zero(to, k_ + row * params_.k_strides.token, visible);
        copy_or_zero(to + Traits::kWarpTokens * Traits::kHeadDim, v_ + row * params_.v_strides.token, visible);
      }
    }
    if (step == Traits::kLoadSteps - 1) {
      if (tiles_left_ > 0) advance();
      cute::cp_async_fence();
    }
  }

 private:
  // The first tile of the span at the cursor.
  __device__ __forceinline__ void enter_span() {
    const Span span = spans_.span();
    const int32_t kv_head = ItemRows::of(params_, span.seq, span.item).kv_head;
    const int32_t token = span.tile_begin * Traits::kTileTokens + first_token();
    tiles_left_ = span.tile_end - span.tile_begin;
    tokens_left_ = spans_.line.tokens(span.seq) - token;
    starts_span_ = true;
    k_ = source(params_.k, params_.k_strides, span.seq, kv_head, token);
    v_ = source(params_.v, params_.v_strides, span.seq, kv_head, token);
  }

  __device__ __forceinline__ int next(int stage) const { return stage + 1 == num_stages_ ? 0 : stage + 1; }
  __device__ __forceinline__ static int row_of_lane() { return int(threadIdx.x) % 32 / kLanesPerRow; }
  __device__ __forceinline__ static int column_of_lane() { return int(threadIdx.x) % kLanesPerRow * kChunk; }
  __device__ __forceinline__ static int first_token() {
    return int(threadIdx.x) / 32 * Traits::kWarpTokens + row_of_lane();
  }

  __device__ __forceinline__ static const Element* source(const void* cache, const CacheStrides& strides, int32_t seq,
                                                          int32_t kv_head, int32_t token) {
    return static_cast<const Element*>(cache) + seq * strides.batch + kv_head * strides.head + token * strides.token +
           column_of_lane();
  }

  __device__ __forceinline__ void advance() {
    write_ = next(write_);
    k_ += Traits::kTileTokens * params_.k_strides.token;
    v_ += Traits::kTileTokens * params_.v_strides.token;
    tokens_left_ -= Traits::kTileTokens;
    if (--tiles_left_ == 0) {
      spans_.next();
      if (!spans_.done()) enter_span();
    }
  }

  // All groups but the newest num_stages - 2 are complete. The instruction takes only a constant.
  __device__ __forceinline__ void wait_for_oldest() const {
    static_assert(Traits::kMinStages == 2 && Traits::kMaxStages == 4);
    if (num_stages_ == 4) {
      ptx::cp_async_wait<2>();
    } else if (num_stages_ == 3) {
      ptx::cp_async_wait<1>();
    } else {
      ptx::cp_async_wait<0>();
    }
  }

  const DecodeParams& params_;
  SpanCursor spans_;
  Element* memory_;
  Element* queries_;
  int num_stages_;
  int write_ = 0, read_ = 0, query_write_ = 0, query_read_ = 0;
  bool starts_span_ = false;
  int32_t tiles_left_ = 0;      // of the span being loaded
  int32_t tokens_left_ = 0;     // from this lane's first row of the next tile to the end of the sequence
  const Element* k_ = nullptr;  // this lane's chunk of the next tile's K
  const Element* v_ = nullptr;  // ... and V
};

}  // namespace leanattn
