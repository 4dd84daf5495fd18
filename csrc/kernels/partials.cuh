// Stage 3, what: partials, and where they lie in the workspace.
#pragma once

#include "item_rows.cuh"
#include "ptx.cuh"
#include "traits.cuh"

namespace leanattn {

// What a word of a partial is until it is written: a NaN that arithmetic does not make, and that is never written. So a
// reader sees of each word whether it is there: memory keeps the order of what happens to one word. (Of words that
// cp.async copies, which PTX calls a weak read, this is the hardware's promise and not that of PTX: an aligned word is
// not torn.)
constexpr uint32_t kUnwritten = 0xFFFFFFFFu;
__device__ __forceinline__ bool is_written(float value) { return __float_as_uint(value) != kUnwritten; }
__device__ __forceinline__ bool is_written(const float2& v) { return is_written(v.x) & is_written(v.y); }
__device__ __forceinline__ bool is_written(const float4& v) {
  return is_written(v.x) & is_written(v.y) & is_written(v.z) & is_written(v.w);
}
__device__ __forceinline__ bool has_nan(const float4& v) { return isnan(v.x) | isnan(v.y) | isnan(v.z) | isnan(v.w); }
__device__ __forceinline__ float to_be_written(float value) {
  return is_written(value) ? value : __uint_as_float(0x7FFFFFFFu);
}

// A partial in the workspace, [heads x block_rows, head_dim + kPartialRowExtra]: rows of O, each followed by its m and
// l.
template <typename Traits>
struct Partial {
  static constexpr int kRow = Traits::kHeadDim + kPartialRowExtra;
  float* memory;

  __device__ __forceinline__ static Partial at(const DecodeParams& p, int32_t slot) {
    return {p.workspace.partials + int64_t{slot * p.team_size + member_here()} * p.partial_floats};
  }
  // Whoever has column 0 stores m and l.
  __device__ __forceinline__ float* row(int row, int column, const float2& ml) const {
    float* to = memory + row * kRow;
    if (column == 0) write(to + Traits::kHeadDim, {ml.x, ml.y, 0.f, 0.f});
    return to;
  }
  // Before anything of it is written; by whole warps. `rows`: that there are.
  template <int kThreads = 32>
  __device__ __forceinline__ void clear(const DecodeParams& p, int32_t rows) const {
    const float nothing = __uint_as_float(kUnwritten);
    const int32_t floats = Traits::kGeneral ? rows * kRow : p.partial_floats;
#pragma unroll 1
    for (int i = int(threadIdx.x) % kThreads * 4; i < floats; i += kThreads * 4) {
      ptx::store_relaxed(reinterpret_cast<float4*>(memory + i), {nothing, nothing, nothing, nothing});
    }
  }

  __device__ __forceinline__ static void write(float* to, const float4& v) {
    ptx::store_relaxed(reinterpret_cast<float4*>(to),
                       {to_be_written(v.x), to_be_written(v.y), to_be_written(v.z), to_be_written(v.w)});
  }
};

// Rows that the threads of a worker merge at once, each four columns of one.
template <typename Traits>
constexpr int kMergeStepRows = Traits::kComputeThreads / (Traits::kHeadDim / 4);

// The partials of an item that are merged together, in token order. All but the first lie evenly.
template <typename Traits>
struct PartialList {
  float* first;       // [heads x block_rows, Partial::kRow]
  int32_t to_second;  // from the first to the next one, in floats
  int32_t stride;     // from the second to the third, and so on
  int32_t count;

  // `count` neighbours from number `begin` of the item on.
  __device__ __forceinline__ static PartialList of(const DecodeParams& p, const CutItem& cut, int32_t begin,
                                                   int32_t count) {
    const int32_t slot = cut.slot(begin), floats = floats_of_slot(p);
    return {Partial<Traits>::at(p, slot).memory, (cut.slot(begin + 1) - slot) * floats, 2 * floats, count};
  }
  // The results of all groups of an item.
  __device__ __forceinline__ static PartialList of_groups(const DecodeParams& p, const CutItem& cut,
                                                          const MergeGroups& groups) {
    const int32_t slot = group_slot(p.teams, cut.first_worker, 0), floats = floats_of_slot(p);
    return {Partial<Traits>::at(p, slot).memory, floats, floats, groups.count};
  }
  // Of all pieces of an item.
  __device__ __forceinline__ static PartialList of_pieces(const DecodeParams& p, const CutPieces& cut) {
    const int32_t floats = floats_of_slot(p);
    return {Partial<Traits>::at(p, cut.first_slot).memory, floats, floats, cut.partials};
  }
  // A slot has a partial of every member of a team.
  __device__ __forceinline__ static int32_t floats_of_slot(const DecodeParams& p) {
    return p.team_size * p.partial_floats;
  }
  // The n-th.
  __device__ __forceinline__ const float* at(int32_t n) const {
    return first + (n == 0 ? 0 : to_second + (n - 1) * stride);
  }
};

}  // namespace leanattn
