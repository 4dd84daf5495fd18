// The kernel: the table of contents of a decode call. One CTA is one worker.
#pragma once

#include "producer.cuh"
#include "reduction.cuh"

namespace leanattn {

// Of the scores of a warp.
template <typename Traits>
__device__ __forceinline__ float scale_of(const DecodeParams& params, const SpanOrigin& origin, int32_t warp) {
  if constexpr (!Traits::kHeadScales) return params.scale_log2;
  return params.scale_log2 * params.k_scales[origin.kv_head + Traits::head_of_warp(warp)];
}

// What the warps that compute do.
template <typename Traits>
__device__ __forceinline__ void consume_tiles(const DecodeParams& params, const TileRing<Traits>& ring) {
  const int32_t warp = threadIdx.x / 32;
  typename Traits::Loop loop;
  RingIndex stage, span_slot;
  QuerySlot<Traits> query_slot;
  int32_t flags = 0;
  while (!(flags & TileNote::kEnd)) {
    // 2. Lean tile loop: (m, l, O) of the span's tiles.
    ptx::mbarrier_wait(&ring.smem.full[stage.slot], stage.parity);
    if (ring.smem.notes[stage.slot].flags & TileNote::kNothing) return;
    const SpanOrigin& origin = ring.smem.origins[span_slot.slot];  // stays valid until the end of the span
    loop.begin_span(ring.query(query_slot.of(span_slot), Traits::head_of_warp(warp)),
                    scale_of<Traits>(params, origin, warp));
    flags = fold_span(loop, params, ring, origin, stage);
    // Also what orders the clearing of the partial and its writing.
    ptx::mbarrier_wait(&ring.smem.task_there[span_slot.slot], span_slot.parity);
    const SpanTask task = ring.smem.tasks[span_slot.slot];  // before the slot may be free
    CutPieces pieces;                                       // of a batch-invariant call
    if (fixed_pieces_of<Traits>(params).any()) pieces = ring.smem.pieces[span_slot.slot];
    // No tile waits for the last stage of a share. Where rows are many, it is freed when the partial has been written,
    // which is what the producer wants to know (take_merge_ticket).
    uint64_t* const last_stage = &ring.smem.empty[stage.slot];
    const bool when_written = Traits::kManyRows && (flags & TileNote::kEnd);
    if (!when_written) ptx::mbarrier_arrive(last_stage);
    stage.advance(ring.num_stages);
    span_slot.advance(ring.num_stages);
    query_slot.next_span();

    // 4. Output, at once if nobody else has a part of this item; else
    // 3. host-block reduction of what is written here, the partial.
    const auto partial = Partial<Traits>::at(params, task.slot);
    debug_delay(params.debug, worker_here(params), 4 * task.rows.query + 1);
    merge_warps(loop, ring.smem, task.rows.count / Traits::kHeads, params, [&](int row, int column, float2 ml) {
      return ResultRow<Traits>::of(params, task.rows, task.whole_item, partial, row, column, ml);
    });
    if (when_written) ptx::mbarrier_arrive(last_stage);
    if (!task.whole_item) {
      const Merges merges = merges_of<Traits>(params, ring.smem, task, pieces);
      const int32_t idle_floats = (flags & TileNote::kEnd) ? ring.bytes() / int(sizeof(float)) : 0;
      const Staging staging{reinterpret_cast<float*>(ring.tiles), idle_floats};
      if (merges.of_group || merges.parts != 0) reduce_partials<Traits>(params, task, pieces, merges, staging);
    }
  }
}

// Of the GPU that code is being made for.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasSm90a = false;
#else
constexpr bool kHasSm90a = true;
#endif
template <typename Traits>
constexpr bool kRunsHere = kHasSm90a || !Traits::kNeedsSm90a;

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams params, const int num_stages) {
  if constexpr (kRunsHere<Traits>) {
    // The swizzle counts rows from a multiple of 1 KiB.
    extern __shared__ __align__(1024) unsigned char shared_memory[];
    const TileRing<Traits> ring(shared_memory, num_stages);
    if (threadIdx.x >= Traits::kComputeThreads) {
      if constexpr (Traits::kNeedsSm90a) ptx::give_registers<Traits::kLoaderRegisters>();
      // 1. Schedule: this worker's share of the line of lean tiles. From then on the producer keeps the ring full.
      produce_tiles<Traits>(params, ring);
    } else {
      if constexpr (Traits::kNeedsSm90a) ptx::take_registers<Traits::kComputeRegisters>();
      if (threadIdx.x == 0) ring.init_barriers(Traits::Loader::kArrivals);
      compute_barrier<Traits>();
      ptx::named_barrier_arrive<Traits::kThreads>(kRingBarrier);
      // Nothing is written before the kernel ahead in the stream has finished.
      ptx::grid_dependency_wait();
      ptx::grid_launch_dependents();
      if (!Traits::kWgmma && params.promised()) load_first_query<Traits>(params, ring);
      write_empty_outputs<Traits>(params, worker_here(params));
      consume_tiles<Traits>(params, ring);
    }
  }
}

}  // namespace leanattn
