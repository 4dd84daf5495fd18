// Stage 3, data: partials, where they lie in the workspace, and copies of them in shared memory.
#pragma once

#include "item_rows.cuh"
#include "ptx.cuh"
#include "traits.cuh"

namespace leanattn {

// A partial in the workspace, [heads x block_rows, head_dim + kPartialRowExtra]: rows of O, each followed by its m and
// l.
template <typename Traits>
struct Partial {
  static constexpr int kRow = Traits::kHeadDim + kPartialRowExtra;
  float* memory;

  __device__ __forceinline__ static Partial at(const DecodeParams& p, int32_t slot) {
    return {p.workspace.partials + int64_t{slot * p.team_size + member_here()} * p.partial_floats};
  }
  __device__ __forceinline__ float4& o(int row, int column) const {
    return *reinterpret_cast<float4*>(memory + row * kRow + column);
  }
  __device__ __forceinline__ float2& ml(int row) const {
    return *reinterpret_cast<float2*>(memory + row * kRow + Traits::kHeadDim);
  }
  __device__ __forceinline__ void store(int row, int column, float4 value, float2 row_ml) const {
    o(row, column) = value;
    if (column == 0) ml(row) = row_ml;
  }
};

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
  // A slot has a partial of every member of a team.
  __device__ __forceinline__ static int32_t floats_of_slot(const DecodeParams& p) {
    return p.team_size * p.partial_floats;
  }
  // The same partials without their first rows.
  __device__ __forceinline__ PartialList from_row(int32_t row) const {
    return {first + row * Partial<Traits>::kRow, to_second, stride, count};
  }
  // The n-th.
  __device__ __forceinline__ const float* at(int32_t n) const {
    return first + (n == 0 ? 0 : to_second + (n - 1) * stride);
  }
  // Past L1: other CTAs wrote it.
  __device__ __forceinline__ static float4 load(const float4* from) { return __ldcg(from); }
  __device__ __forceinline__ static float2 load(const float2* from) { return ptx::load_now(from); }
};

// Copies of them in shared memory, one after the other.
struct StagedPartials {
  const float* memory;
  int32_t stride, count;

  __device__ __forceinline__ const float* at(int32_t n) const { return memory + n * stride; }
  template <typename Vector>
  __device__ __forceinline__ static Vector load(const Vector* from) {
    return ptx::load_shared(from);
  }
};

}  // namespace leanattn
