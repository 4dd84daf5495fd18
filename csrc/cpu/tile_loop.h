// Stage 2: the lean tiles of a span. A tile is: scores (Q K^T), online softmax, O += P V.
//
// K and V are read from memory once, converted to float32 in registers and used for several query rows there. Sums stay
// in registers too: kScoreRows x 4 of them over head_dim for the scores, kValueRows x kValueVectors over a tile's
// tokens for O. Reads end with the last valid token, so what lies behind it does not matter.
#pragma once

#include "softmax_state.h"
#include "vectors.h"

namespace leanattn::cpu {

// For one SIMD policy and element type. The rows of a task are numbered through its heads.
template <class Simd, class T>
class TileLoop {
 public:
  // `next` is what this worker does afterwards, if not null: its first tiles are fetched in time.
  TileLoop(const SpanTask& task, const SpanTask* next, const SpanScratch& scratch)
      : task_(task), next_(next), scratch_(scratch) {}

  void run(const SoftmaxRows& result) {
    const int32_t all_rows = task_.heads * task_.rows;
    for (int32_t r = 0; r < all_rows; ++r) start_row(r, result);
    for (int32_t begin = 0; begin < task_.tokens; begin += task_.tile_tokens) {
      for (int32_t head = 0; head < task_.heads; ++head) {
        const Tile tile = tile_at(begin, head);
        for_blocks<Simd::kScoreRows>(task_.rows, [&]<int32_t n>(int32_t row) { score<n>(tile, row); });
        float shrink[kMaxRows];
        for (int32_t r = 0; r < task_.rows; ++r) shrink[r] = softmax(tile, r);
        for_blocks<Simd::kValueRows>(task_.rows,
                                     [&]<int32_t n>(int32_t row) { accumulate<n>(tile, row, shrink + row, result); });
      }
    }
    for (int32_t r = 0; r < all_rows; ++r) {
      result.ml[2 * r] = state_[r].m;
      result.ml[2 * r + 1] = static_cast<float>(state_[r].l);
    }
  }

 private:
  using Vec = typename Simd::Vec;
  static constexpr int32_t kLanes = Simd::kLanes;
  static constexpr int32_t kTokens = 4;  // Simd::store_sums adds up four vectors
  static constexpr int32_t kCacheLine = 64;

  // Strides of tokens as in task_.
  struct Tile {
    int32_t begin;      // its first token, in the span
    int32_t first_row;  // of the head's query rows
    int32_t tokens;
    int32_t next_tokens;  // 0 if nothing follows
    const T* k;           // [tokens, head_dim]
    const T* v;           // [tokens, head_dim]
    const T* next_k;      // [next_tokens, head_dim], to be prefetched
    const T* next_v;      // [next_tokens, head_dim]
  };

  static int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
  static const T* row_at(const void* base, const TokenStrides& strides, int32_t token, int32_t head) {
    return static_cast<const T*>(base) + token * strides.token + head * strides.head;
  }

  Tile tile_at(int32_t begin, int32_t head) const {
    Tile tile{.begin = begin,
              .first_row = head * task_.rows,
              .tokens = smaller(task_.tokens - begin, task_.tile_tokens),
              .next_tokens = 0,
              .k = row_at(task_.k, task_.k_strides, begin, head),
              .v = row_at(task_.v, task_.v_strides, begin, head),
              .next_k = nullptr,
              .next_v = nullptr};
    const bool ends = begin + tile.tokens == task_.tokens;
    const SpanTask* next = ends ? next_ : &task_;
    const int32_t next_begin = ends ? 0 : begin + tile.tokens;
    if (next != nullptr && head < next->heads) {
      tile.next_tokens = smaller(next->tokens - next_begin, task_.tile_tokens);
      tile.next_k = row_at(next->k, next->k_strides, next_begin, head);
      tile.next_v = row_at(next->v, next->v_strides, next_begin, head);
    }
    return tile;
  }

  // Sends `count` elements on their way to the L2 cache. (Into L1, a core has too few requests in flight.)
  static void prefetch(const T* p, int32_t count) {
    const char* const end = reinterpret_cast<const char*>(p + count);
    for (auto line = reinterpret_cast<const char*>(p); line < end; line += kCacheLine) __builtin_prefetch(line, 0, 2);
  }

  // Q as float32, scaled so that scores are in log2 units; the empty state.
  void start_row(int32_t row, const SoftmaxRows& result) {
    const int32_t head = row / task_.rows, head_row = task_.first_row + row % task_.rows;
    const int32_t query_head = head * task_.group + head_row % task_.group;
    const T* q = row_at(task_.q, task_.q_strides, head_row / task_.group, query_head);  // [head_dim]
    const Vec scale = Simd::set1(task_.scale_log2);
    for_vectors<Simd>(task_.head_dim, [&](int32_t d, auto width) {
      Simd::store(scratch_.q + row * task_.head_dim + d, Simd::load(q + d, width) * scale, width);
      Simd::store(result.out + row * task_.head_dim + d, Simd::set1(0.0f), width);
    });
    state_[row] = RowState<Simd>::empty();
  }

  // The scores of query rows row..row+n of the head: Q K^T.
  template <int32_t n>
  void score(const Tile& tile, int32_t row) {
    const float* q = scratch_.q + (tile.first_row + row) * task_.head_dim;  // [n, head_dim]
    float* scores = scratch_.scores + row * task_.tile_tokens;              // [n, tile_tokens]
    const int32_t next_tokens = row == 0 ? tile.next_tokens : 0;
    for (int32_t t = 0; t < tile.tokens; t += kTokens) {
      const T* k[kTokens];  // [head_dim] each; past the end the last row again, its scores are overwritten
      unrolled<kTokens>([&](int32_t i) {
        k[i] = tile.k + smaller(t + i, tile.tokens - 1) * task_.k_strides.token;
        if (t + i < next_tokens) prefetch(tile.next_k + (t + i) * task_.k_strides.token, task_.head_dim);
      });
      Vec sum[n][kTokens];
      unrolled<n * kTokens>([&](int32_t i) { sum[i / kTokens][i % kTokens] = Simd::set1(0.0f); });
      for_vectors<Simd>(task_.head_dim, [&](int32_t d, auto width) __attribute__((always_inline)) {
        Vec q_row[n];
        unrolled<n>([&](int32_t r) { q_row[r] = Simd::load(q + r * task_.head_dim + d, width); });
        unrolled<kTokens>([&](int32_t i) {
          const Vec k_row = Simd::load(k[i] + d, width);
          unrolled<n>([&](int32_t r) { sum[r][i] = Simd::fma(q_row[r], k_row, sum[r][i]); });
        });
      });
      unrolled<n>([&](int32_t r) { Simd::store_sums(scores + r * task_.tile_tokens + t, sum[r]); });
    }
  }

  // Tokens of the tile that a query row of its head sees.
  int32_t seen_tokens(const Tile& tile, int32_t row) const {
    if (task_.causal_tokens == 0) return tile.tokens;
    const int32_t hidden = task_.causal_tokens - (task_.first_row + row) / task_.group;
    const int32_t seen = task_.tokens + task_.tokens_behind - hidden - tile.begin;
    return seen < 0 ? 0 : smaller(seen, tile.tokens);
  }

  // A row's scores become P; returns the factor by which the O of earlier tiles shrinks.
  float softmax(const Tile& tile, int32_t row) {
    float* scores = scratch_.scores + row * task_.tile_tokens;  // [tile_tokens]
    int32_t end = seen_tokens(tile, row);
    for (; end < tile.tokens || end % kLanes != 0; ++end) scores[end] = kMinusInfinity;
    Vec max = Simd::set1(kMinusInfinity);
    for (int32_t t = 0; t < end; t += kLanes) max = Simd::max(max, Simd::load(scores + t));
    RowState<Simd>& state = state_[tile.first_row + row];
    const float shrink = state.raise_max(Simd::max_of_lanes(max));
    const Vec reference = Simd::set1(state.reference());
    Vec sum = Simd::set1(0.0f);
    for (int32_t t = 0; t < end; t += kLanes) {
      const Vec p = exp2<Simd>(Simd::load(scores + t) - reference);
      Simd::store(scores + t, p);
      sum = sum + p;
    }
    state.l += Simd::sum_of_lanes(sum);
    return shrink;
  }

  // O of query rows row..row+n of the head: O * shrink + P V.
  template <int32_t n>
  void accumulate(const Tile& tile, int32_t row, const float* shrink, const SoftmaxRows& result) {
    float* out = result.out + (tile.first_row + row) * task_.head_dim;  // [n, head_dim]
    const int32_t vectors = task_.head_dim / kLanes;
    for_blocks<Simd::kValueVectors>(vectors, [&]<int32_t m>(int32_t vector) {
      accumulate<n, m>(tile, row, shrink, out, vector * kLanes, typename Simd::Whole{});
    });
    if constexpr (kLanes > 8) {
      const int32_t done = vectors * kLanes;
      if (done < task_.head_dim) accumulate<n, 1>(tile, row, shrink, out, done, typename Simd::Half{});
    }
  }

  // The same for m vectors of O from dimension d on. A tile is summed up by itself, because rounding errors grow with
  // the number of terms and with the size of the sum.
  template <int32_t n, int32_t m, class Width>
  void accumulate(const Tile& tile, int32_t row, const float* shrink, float* out, int32_t d, Width width) {
    const float* p = scratch_.scores + row * task_.tile_tokens;  // [n, tile_tokens]
    const int32_t next_tokens = row == 0 ? tile.next_tokens : 0;
    Vec sum[n][m];
    unrolled<n * m>([&](int32_t i) { sum[i / m][i % m] = Simd::set1(0.0f); });
    for (int32_t t = 0; t < tile.tokens; ++t) {
      const T* v = tile.v + t * task_.v_strides.token + d;
      if (t < next_tokens) prefetch(tile.next_v + t * task_.v_strides.token + d, m * kLanes);
      Vec v_row[m];
      unrolled<m>([&](int32_t i) { v_row[i] = Simd::load(v + i * kLanes, width); });
      unrolled<n>([&](int32_t r) {
        const Vec weight = Simd::set1(p[r * task_.tile_tokens + t]);
        unrolled<m>([&](int32_t i) { sum[r][i] = Simd::fma(weight, v_row[i], sum[r][i]); });
      });
    }
    unrolled<n * m>([&](int32_t i) {
      float* o = out + i / m * task_.head_dim + d + i % m * kLanes;
      Simd::store(o, Simd::fma(Simd::load(o, width), Simd::set1(shrink[i / m]), sum[i / m][i % m]), width);
    });
  }

  const SpanTask& task_;
  const SpanTask* const next_;
  const SpanScratch& scratch_;
  RowState<Simd> state_[kMaxRows];
};

}  // namespace leanattn::cpu
