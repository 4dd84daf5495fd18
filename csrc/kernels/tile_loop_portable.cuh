// Stage 2, arithmetic: one warp's part of a span. For each tile, S = Q K^T, the online softmax, O += P V, with
// mma.sync m16n8k16 and the query rows of a KV head as its M. Scores and weights never leave the registers.
#pragma once

#include <cutlass/numeric_conversion.h>

#include "kv_ring.cuh"
#include "softmax_state.cuh"

namespace leanattn {

template <typename Traits>
class TileLoop {
  using Element = typename Traits::Element;
  using TiledMma = typename Traits::TiledMma;
  static constexpr int kRowAtoms = Traits::kRows / 16;
  static constexpr int kTokenAtoms = Traits::kWarpTokens / 8;
  static constexpr int kColumnAtoms = Traits::kHeadDim / 8;
  static constexpr int kDepthAtoms = Traits::kHeadDim / 16;
  static constexpr bool kTwoScoreChains = kRowAtoms == 1;

  // An accumulator of the MMA seen as this thread's rows x columns. A thread holds rows lane / 4 and lane / 4 + 8 of
  // each 16-row atom, and two neighbouring columns of each 8-column atom.
  template <int kAtoms>
  using ThreadRowsLayout =
      cute::Layout<cute::Shape<cute::Shape<cute::_2, cute::Int<kRowAtoms>>, cute::Shape<cute::_2, cute::Int<kAtoms>>>,
                   cute::Stride<cute::Stride<cute::_2, cute::_4>, cute::Stride<cute::_1, cute::Int<4 * kRowAtoms>>>>;

 public:
  static constexpr int kThreadRows = 2 * kRowAtoms;
  static constexpr int kThreadColumns = 2 * kColumnAtoms;

  // First row of the eight that the warp's lanes hold as r, and column of this thread's element c.
  __device__ __forceinline__ static int first_row(int r) { return r / 2 * 16 + r % 2 * 8; }
  __device__ __forceinline__ static int column(int c) { return c / 2 * 8 + int(threadIdx.x) % 4 * 2 + c % 2; }

  SoftmaxState<kThreadRows> state;

  __device__ __forceinline__ auto output() {
    return cute::make_tensor(output_.data(), ThreadRowsLayout<kColumnAtoms>{});
  }

  __device__ __forceinline__ void begin_span() {
    state.clear();
    cute::clear(output_);
  }

  // `query`: [rows, head_dim] in shared memory, QueryLayout. It stays valid until the end of the span.
  __device__ __forceinline__ void set_query(const Element* query) {
    query_memory_ = query;
    if constexpr (Traits::kQueryInRegisters) load_query(query_);
  }

  // Folds in a tile of which `visible` tokens, counted from this warp's first one, belong to the sequence.
  // load_step(0), ..., load_step(kLoadSteps - 1) are called between the instructions.
  template <typename LoadStep>
  __device__ __forceinline__ void fold_tile(const Element* k_tile, float scale_log2, int visible,
                                            const LoadStep& load_step) {
    using namespace cute;
    auto scores = multiply_query_key(k_tile, load_step);
#pragma unroll
    for (int i = 0; i < size(scores); ++i) scores(i) *= scale_log2;

    auto thread_scores = make_tensor(scores.data(), ThreadRowsLayout<kTokenAtoms>{});
    if (visible < Traits::kWarpTokens) {
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
        for (int c = 0; c < size<1>(thread_scores); ++c) {
          if (column(c) >= visible) thread_scores(r, c) = kMinusInfinity;
        }
      }
    }
    auto thread_output = output();
    state.fold(thread_scores, thread_output);
    multiply_weight_value(scores, k_tile + Traits::kWarpTokens * Traits::kHeadDim);
  }

 private:
  using LoadMatrix = cute::Copy_Atom<cute::SM75_U32x4_LDSM_N, Element>;
  using LoadMatrixTransposed = cute::Copy_Atom<cute::SM75_U16x8_LDSM_T, Element>;

  __device__ __forceinline__ static auto thread_mma() { return TiledMma{}.get_thread_slice(int(threadIdx.x) % 32); }
  __device__ __forceinline__ static auto query_tensor(const Element* memory) {
    return cute::make_tensor(cute::make_smem_ptr(memory), typename Traits::QueryLayout{});
  }

  template <typename Fragment>
  __device__ __forceinline__ void load_query(Fragment& fragment) const {
    using namespace cute;
    auto copier = make_tiled_copy_A(LoadMatrix{}, TiledMma{});
    auto thread_copy = copier.get_thread_slice(int(threadIdx.x) % 32);
    copy(copier, thread_copy.partition_S(query_tensor(query_memory_)), thread_copy.retile_D(fragment));
  }

  // Q K^T, [rows, tokens]. With 16 rows the sum over head_dim runs in two chains, even and odd steps: one chain of
  // dependent MMAs would be the longest wait of the loop. 32 rows have twice the independent MMAs, and no registers
  // left.
  template <typename LoadStep>
  __device__ __forceinline__ auto multiply_query_key(const Element* k_tile, const LoadStep& load_step) const {
    using namespace cute;
    auto keys = make_tensor(make_smem_ptr(k_tile), typename Traits::KvLayout{});  // [tokens, head_dim]
    auto fragment = thread_mma().partition_fragment_B(keys);                      // (MMA, tokens / 8, head_dim / 16)
    auto copier = make_tiled_copy_B(LoadMatrix{}, TiledMma{});
    auto thread_copy = copier.get_thread_slice(int(threadIdx.x) % 32);
    auto from = thread_copy.partition_S(keys);
    auto to = thread_copy.retile_D(fragment);

    using ScoreShape = Shape<Int<Traits::kRows>, Int<Traits::kWarpTokens>>;
    auto scores = partition_fragment_C(TiledMma{}, ScoreShape{});
    auto odd_scores = partition_fragment_C(TiledMma{}, ScoreShape{});
    clear(scores);
    clear(odd_scores);
    copy(copier, from(_, _, 0), to(_, _, 0));
#pragma unroll
    for (int k = 0; k < kDepthAtoms; ++k) {
      if (k + 1 < kDepthAtoms) copy(copier, from(_, _, k + 1), to(_, _, k + 1));
      load_step(k);
      const bool odd = kTwoScoreChains && k % 2 == 1;
      gemm(TiledMma{}, query_step(k), fragment(_, _, k), odd ? odd_scores : scores);
    }
    if constexpr (kTwoScoreChains) {
#pragma unroll
      for (int i = 0; i < size(scores); ++i) scores(i) += odd_scores(i);
    }
    return scores;
  }

  // Columns 16 k to 16 k + 15 of Q as an operand: from the registers, or from shared memory.
  __device__ __forceinline__ auto query_step(int k) const {
    using namespace cute;
    auto step = make_tensor<Element>(partition_shape_A(TiledMma{}, Shape<Int<Traits::kRows>, _16>{}));
    if constexpr (Traits::kQueryInRegisters) {
      copy(query_(_, _, k), step(_, _, 0));
    } else {
      auto copier = make_tiled_copy_A(LoadMatrix{}, TiledMma{});
      auto thread_copy = copier.get_thread_slice(int(threadIdx.x) % 32);
      copy(copier, thread_copy.partition_S(query_tensor(query_memory_))(_, _, k), thread_copy.retile_D(step)(_, _, 0));
    }
    return step(_, _, 0);
  }

  // O [rows, head_dim] += P [rows, tokens] V; the weights P are in `scores`.
  template <typename Scores>
  __device__ __forceinline__ void multiply_weight_value(const Scores& scores, const Element* v_tile) {
    using namespace cute;
    auto weights = make_tensor_like<Element>(scores);
    cutlass::NumericArrayConverter<Element, float, size(Scores{})> to_element;
    using From = cutlass::Array<float, size(Scores{})>;
    using To = cutlass::Array<Element, size(Scores{})>;
    *reinterpret_cast<To*>(weights.data()) = to_element(*reinterpret_cast<const From*>(scores.data()));
    // Two 8-token accumulator atoms of S are one 16-token A operand of the next MMA.
    auto weight_operand =
        make_tensor(weights.data(), Layout<Shape<Shape<_4, _2>, Int<kRowAtoms>, Int<kTokenAtoms / 2>>,
                                           Stride<Stride<_1, Int<4 * kRowAtoms>>, _4, Int<8 * kRowAtoms>>>{});

    // V is [tokens, head_dim] in memory and the [head_dim, tokens] operand of the MMA: ldmatrix transposes.
    auto transposed = composition(
        typename Traits::KvLayout{},
        Layout<Shape<Int<Traits::kHeadDim>, Int<Traits::kWarpTokens>>, Stride<Int<Traits::kWarpTokens>, _1>>{});
    auto values = make_tensor(make_smem_ptr(v_tile), transposed);
    auto fragment = thread_mma().partition_fragment_B(
        make_tensor(make_smem_ptr(v_tile), Layout<Shape<Int<Traits::kHeadDim>, Int<Traits::kWarpTokens>>>{}));
    auto copier = make_tiled_copy_B(LoadMatrixTransposed{}, TiledMma{});
    auto thread_copy = copier.get_thread_slice(int(threadIdx.x) % 32);
    auto from = thread_copy.partition_S(values);
    auto to = thread_copy.retile_D(fragment);
    // Sixteen columns at a time: all of V at once would not fit into the registers beside 32 rows of O.
#pragma unroll
    for (int k = 0; k < kTokenAtoms / 2; ++k) {
      copy(copier, from(_, 0, k), to(_, 0, k));
#pragma unroll
      for (int n = 0; n < kColumnAtoms; n += 2) {
        if (n + 2 < kColumnAtoms) copy(copier, from(_, n / 2 + 1, k), to(_, n / 2 + 1, k));
#pragma unroll
        for (int m = 0; m < kRowAtoms; ++m) {
          gemm(TiledMma{}, weight_operand(_, m, k), fragment(_, n, k), output_(_, m, n));
          gemm(TiledMma{}, weight_operand(_, m, k), fragment(_, n + 1, k), output_(_, m, n + 1));
        }
      }
    }
  }

  using OutputFragment = decltype(cute::partition_fragment_C(
      TiledMma{}, cute::Shape<cute::Int<Traits::kRows>, cute::Int<Traits::kHeadDim>>{}));
  using QueryFragment = decltype(cute::make_tensor<Element>(
      cute::partition_shape_A(TiledMma{}, cute::Shape<cute::Int<Traits::kRows>, cute::Int<Traits::kHeadDim>>{})));

  OutputFragment output_;  // (MMA, rows / 16, head_dim / 8)
  QueryFragment query_;    // (MMA, rows / 16, head_dim / 16); unused, and no register, if Q stays in shared memory
  const Element* query_memory_ = nullptr;
};

}  // namespace leanattn
