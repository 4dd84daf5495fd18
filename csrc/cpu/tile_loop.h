// Stage 2: the lean tiles of a span. A tile is: scores (Q K^T), online softmax, O += P V.
//
// K and V are read from memory once, converted to float32 in registers and used for several query rows there. Sums stay
// in registers too: kScoreRows x 4 of them over head_dim for the scores, kValueRows x kValueVectors over a tile's
// tokens for O. Reads end with the last valid token, so what lies behind it does not matter.
#pragma once

#include "paged_tokens.h"
#include "softmax_state.h"
#include "vectors.h"

namespace leanattn::cpu {

// For one SIMD policy, element type of queries and output (T), and element type of the cache. The rows of a task are
// numbered through its heads. The loops are compiled for paged caches and for others: short sequences that are not
// paged would take 2% longer with every row looked up.
template <class Simd, class T, class Cached>
class TileLoop {
 public:
  // `next` is what this worker does afterwards, if not null: its first tiles are fetched in time.
  TileLoop(const SpanTask& task, const SpanTask* next, const SpanScratch& scratch)
      : task_(task), next_(next), scratch_(scratch) {}

  void run(const SoftmaxRows& result) {
    const int32_t all_rows = task_.heads * task_.rows;
    for (int32_t r = 0; r < all_rows; ++r) start_row(r, result);
    if (task_.pages != nullptr) {
      run_tiles<true>(result);
    } else {
      run_tiles<false>(result);
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
  static constexpr bool kTokenScales = has_token_scales<Cached>;

  // Of the rows of a tile in a paged cache, in elements from the head's first row on.
  struct PageOffsets {
    int64_t k[kMaxTileTokens];  // [tokens]
    int64_t v[kMaxTileTokens];  // [tokens]
  };

  // Where a tile lies in K and V: the same for all heads, so it is found once for them.
  struct TileRows {
    const SpanTask* task;        // null: no tile
    int32_t begin;               // its first token, in the span
    int32_t tokens;              // at least 1
    const PageOffsets* offsets;  // if paged
  };

  // Rows of one head.
  template <bool paged>
  struct HeadRows {
    const Cached* base;      // the tile's first row; if paged, the head's
    int64_t stride;          // of tokens, if not paged
    const int64_t* offsets;  // [tokens], if paged

    const Cached* operator[](int32_t token) const {  // [(v_)head_dim]
      return base + (paged ? offsets[token] : token * stride);
    }
  };

  // What one head has to do of it.
  template <bool paged>
  struct Tile {
    int32_t first_row;  // of the head's query rows
    int32_t tokens;
    int32_t next_tokens;  // 0 if nothing follows
    HeadRows<paged> k, v;
    HeadRows<paged> next_k, next_v;  // to be prefetched
  };

  static int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
  template <class E>
  static const E* element(const void* base, int64_t offset) {
    return static_cast<const E*>(base) + offset;
  }

  // The tile of the task from token `begin` of the span on. `offsets` is its memory if paged.
  template <bool paged>
  static TileRows find_rows(const SpanTask& task, int32_t begin, PageOffsets& offsets) {
    const int32_t tokens = smaller(task.tokens - begin, task.tile_tokens);
    if constexpr (paged) {
      const PageStrides k = task.k_strides, v = task.v_strides;
      for_paged_tokens<Simd>(task, begin, tokens, [&](int32_t t, int64_t page, int32_t in_page) {
        offsets.k[t] = page * k.page + in_page * k.token;
        offsets.v[t] = page * v.page + in_page * v.token;
      });
    }
    return {&task, begin, tokens, &offsets};
  }

  template <bool paged>
  TileRows find_rows_after(const TileRows& rows, PageOffsets& offsets) const {
    const int32_t end = rows.begin + rows.tokens;
    if (end < task_.tokens) return find_rows<paged>(task_, end, offsets);
    return next_ != nullptr ? find_rows<paged>(*next_, 0, offsets) : TileRows{};
  }

  template <bool paged>
  static HeadRows<paged> rows_of(const TileRows& rows, const void* base, const PageStrides& strides, int32_t head,
                                 const int64_t* offsets) {
    const int64_t first_token = paged ? 0 : rows.task->first_token + rows.begin;
    return {element<Cached>(base, first_token * strides.token + head * strides.head), strides.token, offsets};
  }
  template <bool paged>
  static HeadRows<paged> k_of(const TileRows& rows, int32_t head) {
    return rows_of<paged>(rows, rows.task->k, rows.task->k_strides, head, rows.offsets->k);
  }
  template <bool paged>
  static HeadRows<paged> v_of(const TileRows& rows, int32_t head) {
    return rows_of<paged>(rows, rows.task->v, rows.task->v_strides, head, rows.offsets->v);
  }
  template <bool paged>
  Tile<paged> tile_at(const TileRows& rows, const TileRows& next_rows, int32_t head) const {
    const bool followed = next_rows.task != nullptr && head < next_rows.task->heads;
    return {.first_row = head * task_.rows,
            .tokens = rows.tokens,
            .next_tokens = followed ? next_rows.tokens : 0,
            .k = k_of<paged>(rows, head),
            .v = v_of<paged>(rows, head),
            .next_k = followed ? k_of<paged>(next_rows, head) : HeadRows<paged>{},
            .next_v = followed ? v_of<paged>(next_rows, head) : HeadRows<paged>{}};
  }

  template <bool paged>
  void run_tiles(const SoftmaxRows& result) {
    PageOffsets offsets[2];  // of this tile and the next
    TileRows rows = find_rows<paged>(task_, 0, offsets[0]);
    for (int32_t parity = 1; rows.task == &task_; parity ^= 1) {
      const TileRows next_rows = find_rows_after<paged>(rows, offsets[parity]);
      for (int32_t head = 0; head < task_.heads; ++head) {
        const Tile<paged> tile = tile_at<paged>(rows, next_rows, head);
        if constexpr (kTokenScales) {
          load_scales<Simd, paged>(task_, task_.k_token_scales, rows.begin, rows.tokens, head, k_scales_);
          load_scales<Simd, paged>(task_, task_.v_token_scales, rows.begin, rows.tokens, head, v_scales_);
        }
        for_blocks<Simd::kScoreRows>(task_.rows, [&]<int32_t n>(int32_t row) { score<n>(tile, row); });
        float shrink[kMaxRows];
        for (int32_t r = 0; r < task_.rows; ++r) shrink[r] = softmax(rows, head, r);
        for_blocks<Simd::kValueRows>(task_.rows,
                                     [&]<int32_t n>(int32_t row) { accumulate<n>(tile, row, shrink + row, result); });
      }
      rows = next_rows;
    }
  }

  // Sends `count` elements on their way to the L2 cache. (Into L1, a core has too few requests in flight.)
  static void prefetch(const Cached* p, int32_t count) {
    const char* const end = reinterpret_cast<const char*>(p + count);
    for (auto line = reinterpret_cast<const char*>(p); line < end; line += kCacheLine) __builtin_prefetch(line, 0, 2);
  }

  // Q as float32, scaled so that scores are in log2 units; the empty state.
  void start_row(int32_t row, const SoftmaxRows& result) {
    const int32_t head = row / task_.rows, head_row = task_.first_row + row % task_.rows;
    const int32_t query_head = head * task_.group + head_row % task_.group;
    const TokenStrides& strides = task_.q_strides;
    const T* q = element<T>(task_.q, head_row / task_.group * strides.token + query_head * strides.head);  // [head_dim]
    const float k_scale = task_.k_scales != nullptr ? task_.k_scales[head * task_.k_scale_stride] : 1;
    const Vec scale = Simd::set1(task_.scale_log2 * k_scale);
    for_vectors<Simd>(task_.head_dim, [&](int32_t d, auto width) {
      Simd::store(scratch_.q + row * task_.head_dim + d, Simd::load(q + d, width) * scale, width);
    });
    for_vectors<Simd>(task_.v_head_dim, [&](int32_t d, auto width) {
      Simd::store(result.out + row * task_.v_head_dim + d, Simd::set1(0.0f), width);
    });
    state_[row] = RowState<Simd>::empty();
  }

  // The scores of query rows row..row+n of the head: Q K^T.
  template <int32_t n, bool paged>
  void score(const Tile<paged>& tile, int32_t row) {
    const float* q = scratch_.q + (tile.first_row + row) * task_.head_dim;  // [n, head_dim]
    float* scores = scratch_.scores + row * task_.tile_tokens;              // [n, tile_tokens]
    const int32_t next_tokens = row == 0 ? tile.next_tokens : 0;
    for (int32_t t = 0; t < tile.tokens; t += kTokens) {
      const Cached* k[kTokens];  // [head_dim] each; past the end the last row again, its scores are overwritten
      unrolled<kTokens>([&](int32_t i) {
        k[i] = tile.k[smaller(t + i, tile.tokens - 1)];
        if (t + i < next_tokens) prefetch(tile.next_k[t + i], task_.head_dim);
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

  // The query token of a row of its head.
  int32_t query_token(int32_t row) const { return (task_.first_row + row) / task_.group; }
  // Tokens of the sequence from the tile's first one on.
  int32_t tokens_from(const TileRows& rows) const { return task_.tokens + task_.tokens_behind - rows.begin; }

  // Tokens of the tile up to the last one that a query row of its head sees.
  int32_t seen_tokens(const TileRows& rows, int32_t row) const {
    const int32_t hidden = task_.causal_tokens - query_token(row);
    if (hidden <= 0) return rows.tokens;
    return within(tokens_from(rows) - hidden, rows.tokens);
  }
  // Tokens of the tile ahead of the row's window.
  int32_t tokens_left_behind(const TileRows& rows, int32_t row) const {
    if (task_.window_left < 0) return 0;
    return within(tokens_from(rows) - task_.tail + query_token(row) - int64_t{task_.window_left}, rows.tokens);
  }
  static int32_t within(int64_t tokens, int32_t most) {
    return static_cast<int32_t>(tokens < 0 ? 0 : (tokens < most ? tokens : most));
  }

  // What is done to scores beside scaling them; in log2 units.
  void adjust_scores(const TileRows& rows, int32_t head, int32_t row, float* scores) const {
    if (task_.softcap_log2 > 0) {
      const Vec cap = Simd::set1(task_.softcap_log2), inverse = Simd::set1(1 / task_.softcap_log2);
      for (int32_t t = 0; t < rows.tokens; t += kLanes) {
        Simd::store(scores + t, cap * tanh<Simd>(Simd::load(scores + t) * inverse));
      }
    }
    if (task_.alibi_slopes != nullptr) {
      const int32_t query_head = head * task_.group + (task_.first_row + row) % task_.group;
      const float slope = task_.alibi_slopes[query_head] * kLog2E;
      const auto own = static_cast<float>(tokens_from(rows) - task_.tail + query_token(row));  // its place in the tile
      for (int32_t t = 0; t < rows.tokens; ++t) {
        scores[t] -= slope * __builtin_fabsf(own - static_cast<float>(t));
      }
    }
  }

  // Of the new tokens of the tile, those that the row's query does not see.
  void hide_by_tree(const TileRows& rows, int32_t row, float* scores) const {
    const int32_t* bits = task_.tree_bits + int64_t{query_token(row)} * task_.tree_words;  // [tree_words]
    const int32_t first_new = tokens_from(rows) - task_.first_new;                         // in the tile
    for (int32_t t = first_new < 0 ? 0 : first_new; t < rows.tokens; ++t) {
      const int32_t new_token = t - first_new;
      if (new_token >= 32 * task_.tree_words) break;
      if ((bits[new_token / 32] >> new_token % 32 & 1) == 0) scores[t] = kMinusInfinity;
    }
  }

  static void multiply(float* scores, const float* scales, int32_t tokens) {
    for (int32_t t = 0; t < tokens; ++t) scores[t] *= scales[t];
  }

  // A row's scores become P, of an int8 cache times the scales of V; returns the factor by which the O of earlier tiles
  // shrinks.
  float softmax(const TileRows& rows, int32_t head, int32_t row) {
    float* scores = scratch_.scores + row * task_.tile_tokens;  // [tile_tokens]
    if constexpr (kTokenScales) multiply(scores, k_scales_, rows.tokens);
    adjust_scores(rows, head, row, scores);
    int32_t end = seen_tokens(rows, row);
    const int32_t left_behind = smaller(tokens_left_behind(rows, row), end);
    for (int32_t t = 0; t < left_behind; ++t) scores[t] = kMinusInfinity;
    if (task_.tree_bits != nullptr) hide_by_tree(rows, row, scores);
    for (; end < rows.tokens || end % kLanes != 0; ++end) scores[end] = kMinusInfinity;
    Vec max = Simd::set1(kMinusInfinity);
    for (int32_t t = 0; t < end; t += kLanes) max = Simd::max(max, Simd::load(scores + t));
    RowState<Simd>& state = state_[head * task_.rows + row];
    const float shrink = state.raise_max(Simd::max_of_lanes(max));
    const Vec reference = Simd::set1(state.reference());
    Vec sum = Simd::set1(0.0f);
    for (int32_t t = 0; t < end; t += kLanes) {
      const Vec p = exp2<Simd>(Simd::load(scores + t) - reference);
      Simd::store(scores + t, p);
      sum = sum + p;
    }
    state.l += Simd::sum_of_lanes(sum);
    if constexpr (kTokenScales) multiply(scores, v_scales_, rows.tokens);
    return shrink;
  }

  // O of query rows row..row+n of the head: O * shrink + P V.
  template <int32_t n, bool paged>
  void accumulate(const Tile<paged>& tile, int32_t row, const float* shrink, const SoftmaxRows& result) {
    float* out = result.out + (tile.first_row + row) * task_.v_head_dim;  // [n, v_head_dim]
    const int32_t vectors = task_.v_head_dim / kLanes;
    for_blocks<Simd::kValueVectors>(vectors, [&]<int32_t m>(int32_t vector) {
      accumulate<n, m>(tile, row, shrink, out, vector * kLanes, typename Simd::Whole{});
    });
    if constexpr (kLanes > 8) {
      const int32_t done = vectors * kLanes;
      if (done < task_.v_head_dim) accumulate<n, 1>(tile, row, shrink, out, done, typename Simd::Half{});
    }
  }

  // The same for m vectors of O from dimension d on. A tile is summed up by itself, because rounding errors grow with
  // the number of terms and with the size of the sum.
  template <int32_t n, int32_t m, bool paged, class Width>
  void accumulate(const Tile<paged>& tile, int32_t row, const float* shrink, float* out, int32_t d, Width width) {
    const float* p = scratch_.scores + row * task_.tile_tokens;  // [n, tile_tokens]
    const int32_t next_tokens = row == 0 ? tile.next_tokens : 0;
    Vec sum[n][m];
    unrolled<n * m>([&](int32_t i) { sum[i / m][i % m] = Simd::set1(0.0f); });
    for (int32_t t = 0; t < tile.tokens; ++t) {
      const Cached* v = tile.v[t] + d;
      if (t < next_tokens) prefetch(tile.next_v[t] + d, m * kLanes);
      Vec v_row[m];
      unrolled<m>([&](int32_t i) { v_row[i] = Simd::load(v + i * kLanes, width); });
      unrolled<n>([&](int32_t r) {
        const Vec weight = Simd::set1(p[r * task_.tile_tokens + t]);
        unrolled<m>([&](int32_t i) { sum[r][i] = Simd::fma(weight, v_row[i], sum[r][i]); });
      });
    }
    unrolled<n * m>([&](int32_t i) {
      float* o = out + i / m * task_.v_head_dim + d + i % m * kLanes;
      Simd::store(o, Simd::fma(Simd::load(o, width), Simd::set1(shrink[i / m]), sum[i / m][i % m]), width);
    });
  }

  const SpanTask& task_;
  const SpanTask* const next_;
  const SpanScratch& scratch_;
  RowState<Simd> state_[kMaxRows];
  float k_scales_[kMaxTileTokens];  // [tokens] of the tile and the head at hand, with kTokenScales
  float v_scales_[kMaxTileTokens];
};

}  // namespace leanattn::cpu
