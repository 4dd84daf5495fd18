// A cache of 8 bits: K and V go from shared memory to the MMA through float16 (widen.cuh).
//
// What ldmatrix gives a lane, as four bytes that follow each other, are of K four columns of a token, and of V
// (transposed) two columns of each of two tokens. The operand of the MMA wants two tokens, so the even bytes make one
// pair and the odd ones another. That permutes the columns within each 16. For K the sum over head_dim does not mind,
// as long as Q is permuted alike (load_query); for V it is the columns of O that lie elsewhere (column).
#pragma once

#include "traits.cuh"
#include "widen.cuh"

namespace leanattn {

template <typename Traits>
struct CachedBytes {
  using Element = typename Traits::Element;
  using Cached = typename Traits::Cached;

  // Column of O of this lane's i.
  __device__ __forceinline__ static int column(int lane, int i) { return i / 2 * 16 + lane / 4 * 2 + i % 2; }

  // bfloat16 has larger and smaller numbers than float16: each row of Q is multiplied with a power of two.
  static constexpr bool kScaledRows = !std::is_same_v<Element, cutlass::half_t>;

  // Q, [rows, head_dim] in QueryLayout, as an operand of float16, (MMA, rows / 8, head_dim / 16). Sets, for the rows of
  // this lane's scores (TileLoop::row), what their scores are to be multiplied with, if kScaledRows.
  template <typename Fragment, int kThreadRows>
  __device__ __forceinline__ static void load_query(const Element* query, Fragment& fragment,
                                                    float (&row_scales)[kThreadRows]) {
    auto words = cute::recast<uint32_t>(fragment);
    const int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int n = 0; n < Traits::kRows / 8; ++n) {
#pragma unroll
      for (int k = 0; k < Traits::kHeadDim / 16; ++k) {
        const auto* from = query + (8 * n + lane / 4) * Traits::kQueryStride + 16 * k + lane % 4 * 4;
        const uint2 four = *reinterpret_cast<const uint2*>(from);
        words(0, n, k) = __byte_perm(four.x, four.y, 0x5410);
        words(1, n, k) = __byte_perm(four.x, four.y, 0x7632);
      }
      if constexpr (kScaledRows) {
        const float scale = scaled_to_float16(words(cute::_, n, cute::_));
        // Four lanes have row 8 n + lane / 4 of Q, and each lane scores of rows 8 n + 2 (lane % 4) and the next.
#pragma unroll
        for (int i = 0; i < 2; ++i) row_scales[2 * n + i] = __shfl_sync(~0u, scale, (lane % 4 * 2 + i) * 4);
      }
    }
  }

  // Tokens 16 m to 16 m + 15, columns 32 k to 32 k + 31 of K as two operands, (MMA, 2).
  template <typename Fragment>
  __device__ __forceinline__ static void load_keys(const Element* keys, int m, int k, Fragment&& fragment) {
    load<cute::SM75_U32x4_LDSM_N, typename Traits::KvLayout, 1, 2>(keys, m, k, fragment);
  }
  // Columns 32 m to 32 m + 31, tokens 16 k to 16 k + 15 of V^T as two operands, (MMA, 2).
  template <typename Fragment>
  __device__ __forceinline__ static void load_values(const Element* values, int m, int k, Fragment&& fragment) {
    load<cute::SM75_U16x8_LDSM_T, typename Traits::ValueLayout, 2, 1>(values, k, m, fragment);
  }

 private:
  // From token 16 `tokens` and column 32 `columns` on. `kNextTokens`: from the word of an operand with the first eight
  // tokens to that with the next; `kOdd`: from that of the even bytes to that of the odd ones.
  template <typename Ldmatrix, typename Layout, int kNextTokens, int kOdd, typename Fragment>
  __device__ __forceinline__ static void load(const Element* tile, int tokens, int columns, Fragment& fragment) {
    uint32_t bytes[4];
    Ldmatrix::copy(row_of_lane<Layout>(tile, tokens, columns), bytes[0], bytes[1], bytes[2], bytes[3]);
    auto words = cute::recast<uint32_t>(fragment);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // of the tokens
        const auto [even, odd] = Cached::widen(bytes[2 * i + half]);
        words(half * kNextTokens, i) = even;
        words(half * kNextTokens + kOdd, i) = odd;
      }
    }
  }

  // Pairs of bfloat16, of a row that four lanes share: the largest becomes a float16 of about 2^14. Returns what undoes
  // it.
  template <typename Words>
  __device__ __forceinline__ static float scaled_to_float16(Words&& words) {
    uint32_t most = 0;  // as bits of a float; of an infinity or NaN too
#pragma unroll
    for (int i = 0; i < cute::size(words); ++i) {
      most = max(most, max(words(i) << 16 & 0x7FFFFFFF, words(i) & 0x7FFF0000));
    }
    most = max(most, __shfl_xor_sync(~0u, most, 1));
    most = max(most, __shfl_xor_sync(~0u, most, 2));
    // Exponents of floats: the product's is that of 2^14, and neither factor's is 0, or more than 253.
    const uint32_t factor_exponent = min(268 - (most >> 23), 253u);
    const float factor = __uint_as_float(factor_exponent << 23);
#pragma unroll
    for (int i = 0; i < cute::size(words); ++i) {
      const float low = __uint_as_float(words(i) << 16), high = __uint_as_float(words(i) & 0xFFFF0000);
      const __half2 pair = __floats2half2_rn(low * factor, high * factor);
      words(i) = reinterpret_cast<const uint32_t&>(pair);
    }
    return __uint_as_float((254 - factor_exponent) << 23);
  }

  // The row that this lane names to ldmatrix: of four matrices of 8 tokens x 16 bytes, two above each other, then two
  // beside them. The first is at token 16 `tokens` and column 32 `columns`.
  template <typename Layout>
  __device__ __forceinline__ static const cute::uint128_t& row_of_lane(const Element* tile, int tokens, int columns) {
    const Layout layout;
    const int lane = int(threadIdx.x) % 32;
    // As in the loader, the two parts have no bit in common.
    const int offset = layout(lane % 16, lane / 16 * 8) ^ layout(16 * tokens, 16 * columns);
    return reinterpret_cast<const cute::uint128_t&>(tile[offset]);
  }
};

}  // namespace leanattn
