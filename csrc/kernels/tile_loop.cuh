// Stage 2, arithmetic: one warp's part of a span. For each tile, S^T = K Q^T, the softmax, O^T += V^T P^T, with
// mma.sync m16n8k16 and the query rows of a KV head as its N. Scores and weights never leave the registers.
#pragma once

#include <cutlass/numeric_conversion.h>

#include "cached_bytes.cuh"
#include "score_changes.cuh"
#include "softmax_state.cuh"
#include "token_scales.cuh"
#include "traits.cuh"

namespace leanattn {

template <typename Traits>
class TileLoop {
  using Element = typename Traits::Element;
  using Operand = typename Traits::Operand;
  using TiledMma = typename Traits::TiledMma;
  static constexpr int kRowAtoms = Traits::kRows / 8;
  static constexpr int kTokenAtoms = Traits::kWarpTokens / 16;
  static constexpr int kColumnAtoms = Traits::kWarpColumns / 16;
  static constexpr int kDepthAtoms = Traits::kHeadDim / 16;
  static constexpr bool kTwoScoreChains = kRowAtoms * kTokenAtoms <= 2;

  // An accumulator of the MMA, (4, kAtoms, kRowAtoms), seen as this thread's query rows x tokens (or columns). A thread
  // holds two neighbouring rows, 2 (lane % 4) and the next, of each 8-row atom, and lane / 4 and lane / 4 + 8 of each
  // 16-token atom.
  template <int kAtoms>
  using ThreadRowsLayout =
      cute::Layout<cute::Shape<cute::Shape<cute::_2, cute::Int<kRowAtoms>>, cute::Shape<cute::_2, cute::Int<kAtoms>>>,
                   cute::Stride<cute::Stride<cute::_1, cute::Int<4 * kAtoms>>, cute::Stride<cute::_2, cute::_4>>>;

 public:
  static constexpr int kThreadRows = 2 * kRowAtoms;
  static constexpr int kThreadColumns = 2 * kColumnAtoms;

  // Query row of this lane's r, token of its i, and column of O.
  __device__ __forceinline__ static int row(int lane, int r) { return r / 2 * 8 + lane % 4 * 2 + r % 2; }
  __device__ __forceinline__ static int place(int lane, int i) { return i / 2 * 16 + i % 2 * 8 + lane / 4; }
  __device__ __forceinline__ static int column(int lane, int i) {
    return Traits::kItemsize == 1 ? CachedBytes<Traits>::column(lane, i) : place(lane, i);
  }

  SoftmaxState<kThreadRows, 4, 32> state;

  // Ends a span: m and l are those of the warp, and O is complete.
  __device__ __forceinline__ void finish() {
    state.finish();
    if constexpr (Traits::kTokenScales) {
      auto thread_output = output();
      units_.finish(thread_output);
    }
  }

  __device__ __forceinline__ auto output() {  // (r, c)
    return cute::make_tensor(output_.data(), ThreadRowsLayout<kColumnAtoms>{});
  }

  // `query`: [rows, head_dim] in shared memory, QueryLayout. It stays valid until the end of the span.
  __device__ __forceinline__ void begin_span(const Element* query, float scale_log2) {
    state.clear();
    if constexpr (Traits::kTokenScales) units_.clear();
    cute::clear(output_);
    query_memory_ = query;
    scale_ = scale_log2;
    if constexpr (Traits::kItemsize == 1) {
      static_assert(Traits::kQueryInRegisters);
      scale_ /= Traits::Cached::kUnit;
      CachedBytes<Traits>::load_query(query, query_, row_scales_);
      if constexpr (Traits::kTokenScales && CachedBytes<Traits>::kScaledRows) row_powers_.pack(row_scales_);
    } else if constexpr (Traits::kQueryInRegisters) {
      using namespace cute;
      auto copier = query_copier();
      auto thread_copy = copier.get_thread_slice(int(threadIdx.x) % 32);
      copy(copier, thread_copy.partition_S(query_tensor()), thread_copy.retile_D(query_));
    }
  }

  // Folds in this warp's tokens of a tile; `visible`, at least one, belong to the sequence from the first of them on.
  // `keys`: [kWarpTokens, units], KvLayout. `values`: this warp's columns of V, [kWarpTokens, units], ValueLayout.
  __device__ __forceinline__ void fold_tile(const Element* keys, const Element* values,
                                            const TileScales<Traits>& scales, int visible, const CausalRows& causal,
                                            const ScoreChanges<Traits>& changes) {
    using namespace cute;
    auto scores = multiply_key_query(keys);
#pragma unroll
    for (int i = 0; i < size(scores); ++i) scores(i) *= scale_;

    auto thread_scores = make_tensor(scores.data(), ThreadRowsLayout<kTokenAtoms>{});
    if constexpr (CachedBytes<Traits>::kScaledRows && Traits::kItemsize == 1) {
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
        for (int t = 0; t < size<1>(thread_scores); ++t) thread_scores(r, t) *= row_scale(r);
      }
    }
    if constexpr (Traits::kTokenScales) scale_scores<TileLoop>(scales, thread_scores);
    changes.template apply<TileLoop>(thread_scores);
    if (visible - causal.tokens < Traits::kWarpTokens) {
      hide_unseen<Traits, TileLoop>(thread_scores, visible, causal, int(threadIdx.x) % 32);
    }
    auto thread_output = output();
    state.fold(thread_scores, 1.f, [&](int r, float factor) {
#pragma unroll
      for (int c = 0; c < size<1>(thread_output); ++c) thread_output(r, c) *= factor;
    });
    if constexpr (Traits::kTokenScales) units_.template scale_weights<TileLoop>(scales, thread_scores, thread_output);
    multiply_value_weight(values, scores);
  }

 private:
  __device__ __forceinline__ float row_scale(int r) const {
    return Traits::kTokenScales ? row_powers_[r] : row_scales_[r];
  }

  using LoadMatrix = cute::Copy_Atom<cute::SM75_U32x4_LDSM_N, Element>;
  using LoadMatrixTransposed = cute::Copy_Atom<cute::SM75_U16x8_LDSM_T, Element>;
  using LoadQuery =
      cute::Copy_Atom<std::conditional_t<Traits::kMmaRows == 8, cute::SM75_U32x2_LDSM_N, cute::SM75_U32x4_LDSM_N>,
                      Element>;

  __device__ __forceinline__ static auto thread_mma() { return TiledMma{}.get_thread_slice(int(threadIdx.x) % 32); }
  __device__ __forceinline__ static auto query_copier() { return cute::make_tiled_copy_B(LoadQuery{}, TiledMma{}); }
  __device__ __forceinline__ auto query_tensor() const {
    return cute::make_tensor(cute::make_smem_ptr(query_memory_), typename Traits::QueryLayout{});
  }

  // S^T = K Q^T, [tokens, rows]. With few independent accumulators the sum over head_dim runs in two chains, even and
  // odd steps: one chain of dependent MMAs would be the longest wait of the loop.
  __device__ __forceinline__ auto multiply_key_query(const Element* keys_memory) const {
    using namespace cute;
    using ScoreShape = Shape<Int<Traits::kWarpTokens>, Int<Traits::kRows>>;
    auto scores = partition_fragment_C(TiledMma{}, ScoreShape{});  // (MMA, tokens / 16, rows / 8)
    auto odd_scores = partition_fragment_C(TiledMma{}, ScoreShape{});
    clear(scores);
    clear(odd_scores);
    const auto multiply = [&](int k, const auto& keys_of_step) {
      const bool odd = kTwoScoreChains && k % 2 == 1;
      gemm(TiledMma{}, keys_of_step, query_step(k), odd ? odd_scores : scores);
    };
    if constexpr (Traits::kItemsize == 1) {
      auto steps = make_tensor<Operand>(Shape<_8, Int<kTokenAtoms>, _2>{});
#pragma unroll
      for (int k = 0; k < kDepthAtoms; k += 2) {
#pragma unroll
        for (int m = 0; m < kTokenAtoms; ++m) CachedBytes<Traits>::load_keys(keys_memory, m, k / 2, steps(_, m, _));
        multiply(k, steps(_, _, 0));
        multiply(k + 1, steps(_, _, 1));
      }
    } else {
      const auto fragment = load_keys(keys_memory);
#pragma unroll
      for (int k = 0; k < kDepthAtoms; ++k) multiply(k, fragment(_, _, k));
    }
    if constexpr (kTwoScoreChains) {
#pragma unroll
      for (int i = 0; i < size(scores); ++i) scores(i) += odd_scores(i);
    }
    return scores;
  }

  __device__ __forceinline__ auto load_keys(const Element* keys_memory) const {
    using namespace cute;
    auto keys = make_tensor(make_smem_ptr(keys_memory), typename Traits::KvLayout{});  // [tokens, head_dim]
    auto fragment = thread_mma().partition_fragment_A(keys);  // (MMA, tokens / 16, head_dim / 16)
    auto copier = make_tiled_copy_A(LoadMatrix{}, TiledMma{});
    auto thread_copy = copier.get_thread_slice(int(threadIdx.x) % 32);
    copy(copier, thread_copy.partition_S(keys), thread_copy.retile_D(fragment));
    return fragment;
  }

  // Columns 16 k to 16 k + 15 of Q as an operand, (MMA, rows / 8): from the registers, or from shared memory.
  __device__ __forceinline__ auto query_step(int k) const {
    using namespace cute;
    if constexpr (Traits::kQueryInRegisters) {
      return query_(_, _, k);
    } else {
      auto step = make_tensor<Element>(partition_shape_B(TiledMma{}, Shape<Int<Traits::kRows>, _16>{}));
      auto copier = query_copier();
      auto thread_copy = copier.get_thread_slice(int(threadIdx.x) % 32);
      copy(copier, thread_copy.partition_S(query_tensor())(_, _, k), thread_copy.retile_D(step)(_, _, 0));
      return make_tensor(step.data(), step(_, _, 0).layout());
    }
  }

  // O^T [head_dim, rows] += V^T P^T; the weights P^T [tokens, rows] are in `scores`.
  template <typename Scores>
  __device__ __forceinline__ void multiply_value_weight(const Element* values_memory, const Scores& scores) {
    using namespace cute;
    const auto weights = weight_operand(scores);
    const auto multiply = [&](int m, int k, const auto& values_of_step) {
#pragma unroll
      for (int n = 0; n < kRowAtoms; ++n) gemm(TiledMma{}, values_of_step, weights(_, n, k), output_(_, m, n));
    };
    if constexpr (Traits::kItemsize == 1) {
      auto step = make_tensor<Operand>(Shape<_8, _2>{});
#pragma unroll
      for (int k = 0; k < kTokenAtoms; ++k) {
#pragma unroll
        for (int m = 0; m < kColumnAtoms; m += 2) {
          CachedBytes<Traits>::load_values(values_memory, m / 2, k, step);
          multiply(m, k, step(_, 0));
          multiply(m + 1, k, step(_, 1));
        }
      }
    } else {
      load_and_multiply_values(values_memory, multiply);
    }
  }

  template <typename Multiply>
  __device__ __forceinline__ void load_and_multiply_values(const Element* values_memory, const Multiply& multiply) {
    using namespace cute;
    // V is [tokens, head_dim] in memory and the [head_dim, tokens] operand of the MMA: ldmatrix transposes.
    using TransposedShape = Shape<Int<Traits::kWarpColumns>, Int<Traits::kWarpTokens>>;
    auto transposed =
        composition(typename Traits::ValueLayout{}, Layout<TransposedShape, Stride<Int<Traits::kWarpTokens>, _1>>{});
    auto values = make_tensor(make_smem_ptr(values_memory), transposed);
    auto fragment = thread_mma().partition_fragment_A(
        make_tensor(make_smem_ptr(values_memory), Layout<TransposedShape>{}));  // (MMA, head_dim / 16, tokens / 16)
    auto copier = make_tiled_copy_A(LoadMatrixTransposed{}, TiledMma{});
    auto thread_copy = copier.get_thread_slice(int(threadIdx.x) % 32);
    auto from = thread_copy.partition_S(values);
    auto to = thread_copy.retile_D(fragment);
#pragma unroll
    for (int k = 0; k < kTokenAtoms; ++k) {
#pragma unroll
      for (int m = 0; m < kColumnAtoms; ++m) {
        copy(copier, from(_, m, k), to(_, m, k));
        multiply(m, k, fragment(_, m, k));
      }
    }
  }

  // The accumulator of S^T, [tokens, rows], as the operand P^T: (MMA, rows / 8, tokens / 16). A lane's pair of
  // neighbouring rows becomes a pair of neighbouring tokens.
  template <typename Scores>
  __device__ __forceinline__ static auto weight_operand(const Scores& scores) {
    using namespace cute;
    auto weights = make_tensor<Operand>(Shape<_4, Int<kRowAtoms>, Int<kTokenAtoms>>{});
    cutlass::NumericArrayConverter<Operand, float, 2> to_elements;
#pragma unroll
    for (int n = 0; n < kRowAtoms; ++n) {
#pragma unroll
      for (int m = 0; m < kTokenAtoms; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const auto pair = to_elements({scores(2 * half, m, n), scores(2 * half + 1, m, n)});
          reinterpret_cast<uint32_t&>(weights(2 * half, n, m)) =
              ptx::transpose_8x8(reinterpret_cast<const uint32_t&>(pair));
        }
      }
    }
    return weights;
  }

  using OutputFragment = decltype(cute::partition_fragment_C(
      TiledMma{}, cute::Shape<cute::Int<Traits::kWarpColumns>, cute::Int<Traits::kRows>>{}));
  using QueryFragment = decltype(cute::make_tensor<Operand>(
      cute::partition_shape_B(TiledMma{}, cute::Shape<cute::Int<Traits::kRows>, cute::Int<Traits::kHeadDim>>{})));

  OutputFragment output_;  // (MMA, head_dim / 16, rows / 8)
  QueryFragment query_;    // (MMA, rows / 8, head_dim / 16); unused, and no register, if Q stays in shared memory
  const Element* query_memory_ = nullptr;
  float scale_;  // of scores, to log2 units
  // Of a cache of 8 bits, factors of scores; with kTokenScales both are packed.
  float row_scales_[kThreadRows];
  PackedPowers<kThreadRows> row_powers_;
  ValueUnits<kThreadRows> units_;
};

}  // namespace leanattn
