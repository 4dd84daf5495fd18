// Stage 2, arithmetic, for items of many query rows: the 64 rows of one warpgroup over a span's tiles. S = Q K^T, the
// softmax, O += P V, with wgmma of sm_90a: Q, K and V in shared memory, P in registers.
//
// Where one or a few queries read a cache, memory is the limit, and 16 rows of mma.sync are enough (tile_loop.cuh). A
// block of 128 rows reads each tile once for all of them, and the tensor cores are the limit.
#pragma once

#include <cutlass/numeric_conversion.h>

#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

#include "score_changes.cuh"
#include "softmax_state.cuh"
#include "traits.cuh"

namespace leanattn {

template <typename Traits>
class WgmmaLoop {
  using Element = typename Traits::Element;
  static constexpr int kGroupRows = 64;  // of a warpgroup
  static constexpr int kTokens = Traits::kTileTokens, kColumns = Traits::kHeadDim;
  using ScoreShape = cute::Shape<cute::Int<kGroupRows>, cute::Int<kTokens>, cute::_16>;
  using ValueShape = cute::Shape<cute::Int<kGroupRows>, cute::Int<kColumns>, cute::_16>;
  using ScoreMma = decltype(cute::make_tiled_mma(cute::GMMA::ss_op_selector<Element, Element, float, ScoreShape>()));
  using ValueMma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<Element, Element, float, ValueShape, cute::GMMA::Major::K, cute::GMMA::Major::MN>()));

  // An accumulator, (2, 2, kAtoms), seen as this thread's query rows x tokens (or columns): two neighbours of each
  // eight of row lane / 4 of its warp's 16, and of row lane / 4 + 8.
  template <int kAtoms>
  using ThreadRowsLayout = cute::Layout<cute::Shape<cute::_2, cute::Shape<cute::_2, cute::Int<kAtoms>>>,
                                        cute::Stride<cute::_2, cute::Stride<cute::_1, cute::_4>>>;

 public:
  static constexpr int kThreadRows = 2;

  // Query row of the item of this lane's r, and token of its i.
  __device__ __forceinline__ static int row(int lane, int r) {
    return ptx::thread_index_here() / 32 * 16 + lane / 4 + 8 * r;
  }
  __device__ __forceinline__ static int place(int lane, int i) { return i / 2 * 8 + lane % 4 * 2 + i % 2; }

  SoftmaxState<kThreadRows, 1, 4> state;

  __device__ __forceinline__ auto output() {  // (r, c)
    return cute::make_tensor(output_.data(), ThreadRowsLayout<kColumns / 8>{});
  }

  // `query`: [rows, head_dim] in shared memory, MmaQueryLayout. It stays valid until the end of the span.
  __device__ __forceinline__ void begin_span(const Element* query, float scale_log2) {
    state.clear();
    cute::clear(output_);
    cute::clear(weights_);
    query_ = query;
    scale_ = scale_log2;
  }

  __device__ __forceinline__ static int warpgroup() { return ptx::uniform(int(threadIdx.x) / 128); }
  // Of the item's `rows`, some are those of a warpgroup.
  __device__ __forceinline__ static bool has_rows(int rows, int warpgroup) { return rows > warpgroup * kGroupRows; }

  // Asks for a tile's scores, S = Q K^T. `keys`: [kTokens, head_dim], MmaKeyLayout; to be kept until fold_scores()
  // returns.
  __device__ __forceinline__ void begin_scores(const Element* keys) {
    using namespace cute;
    // What cp.async wrote is to be read by wgmma, which goes past the path of other loads.
    ptx::fence_async_shared();
    ScoreMma mma;
    const auto thread = slice(mma);
    const auto all_rows = make_tensor(make_smem_ptr(query_), typename Traits::MmaQueryLayout{});
    const auto rows = local_tile(all_rows, Shape<Int<kGroupRows>, Int<kColumns>>{}, make_coord(warpgroup(), 0));
    const auto query = thread.make_fragment_A(thread.partition_A(rows));
    const auto key =
        thread.make_fragment_B(thread.partition_B(make_tensor(make_smem_ptr(keys), typename Traits::MmaKeyLayout{})));
    mma.accumulate_ = GMMA::ScaleOut::Zero;
    warpgroup_fence_operand(scores_);
    warpgroup_arrive();
#pragma unroll
    for (int k = 0; k < size<2>(query); ++k) {
      gemm(mma, query(_, _, k), key(_, _, k), scores_);
      mma.accumulate_ = GMMA::ScaleOut::One;
    }
    warpgroup_commit_batch();
  }
  // Asks for O [rows, head_dim] += P V, with the weights that fold_scores() left. `values`: [kTokens, head_dim],
  // MmaKeyLayout; to be kept until it returns once more, or end_values().
  __device__ __forceinline__ void begin_values(const Element* values) {
    using namespace cute;
    ValueMma mma;
    const auto thread = slice(mma);
    const auto value = thread.make_fragment_B(
        thread.partition_B(make_tensor(make_smem_ptr(values), typename Traits::MmaValueLayout{})));
    mma.accumulate_ = GMMA::ScaleOut::One;
    warpgroup_fence_operand(output_);
    warpgroup_fence_operand(weights_);
    warpgroup_arrive();
#pragma unroll
    for (int k = 0; k < size<2>(weights_); ++k) gemm(mma, weights_(_, _, k), value(_, _, k), output_);
  }
  __device__ __forceinline__ void end_values() {
    cute::warpgroup_commit_batch();
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(output_);
  }

  // Of the scores, then of the values if any, that were asked for: folds in the scores' tile, as far as its values.
  // `visible`, at least one, of its tokens belong to the sequence.
  __device__ __forceinline__ void fold_scores(int visible, const CausalRows& causal,
                                              const ScoreChanges<Traits>& changes) {
    using namespace cute;
    warpgroup_commit_batch();  // of the values
    warpgroup_wait<1>();
    warpgroup_fence_operand(scores_);
    // Together with the softmax the scale costs nothing; but options change scores in log2 units, and a masked score
    // times 0 would be NaN.
    float scale = scale_;
    if (changes.params.score_changes != 0 || scale <= 0) {
#pragma unroll
      for (int i = 0; i < size(scores_); ++i) scores_(i) *= scale;
      scale = 1.f;
    }

    auto thread_scores = make_tensor(scores_.data(), ThreadRowsLayout<kTokens / 8>{});
    changes.template apply<WgmmaLoop>(thread_scores);
    if (visible - causal.tokens < kTokens) {
      hide_unseen<Traits, WgmmaLoop>(thread_scores, visible, causal, ptx::thread_index_here() % 32);
    }
    float factors[kThreadRows];
    const bool higher = state.fold(thread_scores, scale, [&](int r, float factor) { factors[r] = factor; });
    warpgroup_wait<0>();
    warpgroup_fence_operand(output_);
    if (higher) rescale_output(factors);
    // P [rows, tokens] is in scores_, in the order of an operand.
    static_assert(decltype(size(weights_))::value == kGroupRows * kTokens / 128);
    auto pairs = recast<cutlass::Array<Element, 2>>(weights_);
    cutlass::NumericArrayConverter<Element, float, 2> to_elements;
#pragma unroll
    for (int i = 0; i < size(pairs); ++i) pairs(i) = to_elements({scores_(2 * i), scores_(2 * i + 1)});
  }

 private:
  template <typename Mma>
  __device__ __forceinline__ static auto slice(const Mma& mma) {
    return mma.get_thread_slice(int(threadIdx.x) % 128);
  }

  __device__ __forceinline__ void rescale_output(const float (&factors)[kThreadRows]) {
    auto thread_output = output();
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
      for (int c = 0; c < cute::size<1>(thread_output); ++c) thread_output(r, c) *= factors[r];
    }
  }

  using OutputFragment =
      decltype(cute::partition_fragment_C(ValueMma{}, cute::Shape<cute::Int<kGroupRows>, cute::Int<kColumns>>{}));

  using ScoreFragment =
      decltype(cute::partition_fragment_C(ScoreMma{}, cute::Shape<cute::Int<kGroupRows>, cute::Int<kTokens>>{}));
  using WeightFragment = decltype(cute::make_tensor<Element>(
      cute::partition_shape_A(ValueMma{}, cute::Shape<cute::Int<kGroupRows>, cute::Int<kTokens>>{})));

  OutputFragment output_;   // [rows, head_dim]
  ScoreFragment scores_;    // [rows, tokens]
  WeightFragment weights_;  // as scores_
  const Element* query_ = nullptr;
  float scale_;  // of scores, to log2 units
};

// End of a span: a row's state is in four lanes of one warp. Stores every element of the item's rows in what
// result_row(row, column, (m, l) of the row) returns.
template <typename Traits, typename ResultRowOf>
__device__ __forceinline__ void merge_warps(WgmmaLoop<Traits>& loop, typename Traits::SharedMemory&, int rows,
                                            const DecodeParams& params, const ResultRowOf& result_row) {
  loop.state.finish();
  const auto output = loop.output();
  const int lane = ptx::thread_index_here() % 32, r = lane % 2, row = loop.row(lane, r),
            first_column = lane % 4 / 2 * 4;
  const float2 ml{r == 0 ? loop.state.m[0] : loop.state.m[1], r == 0 ? loop.state.l[0] : loop.state.l[1]};
  // Rows that there are not have no place to go to.
  const bool exists = row < rows;
  const auto to = result_row(exists ? row : 0, exists ? first_column : Traits::kHeadDim, ml);
  // Two neighbouring lanes have two columns each of two rows; each takes one row.
#pragma unroll
  for (int c = 0; c < cute::size<1>(output); c += 2) {
    const auto kept = [&](int i) { return r == 0 ? output(0, c + i) : output(1, c + i); };
    const auto given = [&](int i) { return __shfl_xor_sync(~0u, r == 0 ? output(1, c + i) : output(0, c + i), 1); };
    const float2 own{kept(0), kept(1)}, other{given(0), given(1)};
    const float4 four = r == 0 ? float4{own.x, own.y, other.x, other.y} : float4{other.x, other.y, own.x, own.y};
    if (exists) to.store(params, c / 2 * 8 + first_column, four);
  }
}

}  // namespace leanattn
