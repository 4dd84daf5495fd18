// What the files of one instruction set (isa_*.cpp) offer to the rest of the backend: plain structs and function
// pointers. Those files are compiled with -m flags, and the linker keeps one copy of any inline function that several
// files emit: so they include only headers whose functions are templates over their own SIMD policy, and never the
// schedule, torch or the standard library's containers and algorithms.
#pragma once

#include <cstdint>

namespace leanattn::cpu {

// Storage of the 16-bit element types; arithmetic is in float32.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// Of the cache only. OCP 8-bit floating point: E4M3 has no infinity, and one NaN of each sign.
struct Float8E4M3 {
  uint8_t bits;
};
struct Float8E5M2 {
  uint8_t bits;
};
// Of the cache only, times the scale of its token and KV head.
struct Int8 {
  int8_t bits;
};
template <class Cached>
constexpr bool has_token_scales = false;
template <>
inline constexpr bool has_token_scales<Int8> = true;

constexpr int32_t kMaxHeadDim = 512;
constexpr int32_t kMaxRows = 32;  // query rows of a task, all heads together
constexpr int32_t kMaxTileTokens = 64;

// In elements.
struct TokenStrides {
  int64_t token, head;
};
struct PageStrides {
  int64_t page, token, head;
};
// Of an int8 cache.
struct TokenScales {
  const float* values;  // [tokens of the sequence, heads], from the first KV head on; if paged,
                        // [num_pages, page_size, heads]
  PageStrides strides;
};

// Spans over the same tokens of one or several neighbouring KV heads, each with `rows` query rows of its own.
struct SpanTask {
  const void* q;  // [q_len, heads * group, head_dim], from the first KV head's queries on
  const void* k;  // [tokens of the sequence, heads, head_dim], from the first KV head on; if paged,
                  // [num_pages, page_size, heads, head_dim]
  const void* v;  // as k but for v_head_dim
  TokenStrides q_strides;
  PageStrides k_strides, v_strides;
  const int32_t* pages;          // [pages of the sequence]; null: not paged
  int32_t page_size, num_pages;  // PageTable (params.h)
  int32_t first_token;           // of the spans, in the sequence
  int32_t heads, rows, tokens, head_dim, v_head_dim, tile_tokens;
  int32_t group;              // query heads of a KV head: its rows are numbered token by token,
  int32_t first_row;          // and these are `rows` of them from here on
  int32_t tokens_behind;      // tokens of the sequence behind the spans
  int32_t causal_tokens;      // params.h
  int32_t tail;               // QueryBlock (query_blocks.h)
  int32_t first_new;          // tokens of the sequence from the first new one on, up to `tail`'s end
  int32_t window_left;        // tokens ahead of its own that a query sees; -1: all
  float softcap_log2;         // 0: none
  const float* alibi_slopes;  // [heads * group], of the first KV head's queries on; or null
  const int32_t* tree_bits;   // TreeMask (params.h) of the first query token; or null
  int32_t tree_words;
  const float* k_scales;  // of the first KV head on, the n-th at n * k_scale_stride: factors of keys; or null
  int32_t k_scale_stride;
  TokenScales k_token_scales, v_token_scales;
  float scale_log2;
};

// (m, l, O) of some query rows: a partial, or what an output tile has been reduced to so far.
struct SoftmaxRows {
  float* out;  // [rows, v_head_dim], un-normalised O
  float* ml;   // [rows, 2], m (in log2 units) and l
};

// A worker's memory for one task.
struct SpanScratch {
  float* q;       // [heads * rows, head_dim] Q as float32, times scale_log2 and the head's k_scale
  float* scores;  // [rows, tile_tokens], then P, of an int8 cache times the tokens' scales of V
};

// The numerical work, for one instruction set, element type of queries, and of the cache.
struct TileKernels {
  void (*attend)(const SpanTask& task, const SpanTask* next, const SpanScratch& scratch, const SoftmaxRows& result);
  void (*merge)(const SoftmaxRows& into, const SoftmaxRows& from, int32_t rows, int32_t v_head_dim);
  void (*store_row)(const float* out, float factor, int32_t v_head_dim, void* destination);  // casts out * factor
};

// TileKernels of one element type of queries and output, by that of the cache.
struct CacheKernels {
  TileKernels same, float8_e4m3, float8_e5m2, int8;
};
struct IsaKernels {
  CacheKernels float16, bfloat16, float32;
};

extern const IsaKernels kPortableKernels;
#if defined(__x86_64__)
extern const IsaKernels kAvx2Kernels;    // needs AVX2, FMA, F16C
extern const IsaKernels kAvx512Kernels;  // needs AVX-512 F, BW, DQ, VL
#endif

}  // namespace leanattn::cpu
