// The kernel: the table of contents of a decode call. One CTA is one worker.
#pragma once

#include "debug_delay.cuh"
#include "producer.cuh"
#include "reduction.cuh"
#include "warp_merge.cuh"
#include "worker_share.cuh"

namespace leanattn {

// 3. Host-block reduction: publishes the partial of a span; the last CTA of the item merges them all and
// 4. writes the output.
template <typename Traits>
__device__ __forceinline__ void reduce_span(const DecodeParams& params, const SpanTask& task, TileLoop<Traits>& loop,
                                            Staging& staging, typename Traits::SharedMemory& smem) {
  const int32_t worker = blockIdx.x;
  const ItemRows& rows = task.rows;
  const auto partial = Partial<Traits>::at(params, task.slot);
  merge_warps<Traits>(loop, smem, rows.count,
                      [&](int row, int column, float4 o, float2 ml) { partial.store(row, column, o, ml); });
  const CutItem& cut = task.cut;
  PartialList<Traits> list{params, cut, 0, 1, cut.partials};
  debug_delay(params.debug, worker, 3 * rows.seq);
  if (task.groups.count > 1) {
    const int32_t group = task.groups.group_of(task.partial);
    const int32_t members = task.groups.members(group, cut.partials);
    const PartialList<Traits> neighbours{params, cut, group * task.groups.size, 1, members};
    if (members > 1) {
      if (!arrives_last<Traits>(params, cut.first_worker + task.groups.group_ticket(group), members, smem)) return;
      debug_delay(params.debug, worker, 3 * rows.seq + 1);
      const auto merged = neighbours[0];
      merge_partials(neighbours, rows.count, staging, smem,
                     [&](int row, int column, float4 o, float2 ml) { merged.store(row, column, o, ml); });
    }
    list.step = task.groups.size;
    list.count = task.groups.count;
  }
  if (!arrives_last<Traits>(params, cut.first_worker + task.groups.item_ticket(), list.count, smem)) return;
  debug_delay(params.debug, worker, 3 * rows.seq + 2);
  merge_partials(list, rows.count, staging, smem, [&](int row, int column, float4 o, float2 ml) {
    store_output<Traits>(params, rows, row, column, o, ml);
  });
}

// What the warps that compute do.
template <typename Traits>
__device__ __forceinline__ void consume_tiles(const DecodeParams& params, const TileRing<Traits>& ring) {
  const int32_t warp = threadIdx.x / 32;
  TileLoop<Traits> loop;
  RingIndex stage, span_slot;
  int32_t flags = 0;
  while (!(flags & TileNote::kEnd)) {
    // 2. Lean tile loop: each warp folds its tokens of every tile into its own (m, l, O).
    loop.begin_span();
    SpanTask task;
    do {
      ptx::mbarrier_wait(&ring.smem.full[stage.slot], stage.parity);
      const TileNote note = ring.smem.notes[stage.slot];
      flags = note.flags;
      if (flags & TileNote::kFirst) loop.set_query(ring.query(span_slot.slot));
      if (flags & TileNote::kNothing) return;
      if (flags & TileNote::kLast) task = ring.smem.tasks[span_slot.slot];
      const int32_t visible = note.visible - warp * Traits::kWarpTokens;
      if (visible > 0) {
        loop.fold_tile(ring.keys(stage.slot, warp), ring.values(stage.slot, warp), params.scale_log2, visible);
      }
      __syncwarp();  // every lane is done with the tile
      if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&ring.smem.empty[stage.slot]);
      stage.advance(ring.num_stages);
    } while (!(flags & TileNote::kLast));
    span_slot.advance(ring.num_stages);

    if (task.whole_item) {
      // 4. Output, at once: nobody else has a part of this item.
      merge_warps<Traits>(loop, ring.smem, task.rows.count, [&](int row, int column, float4 o, float2 ml) {
        store_output<Traits>(params, task.rows, row, column, o, ml);
      });
    } else {
      // After the last span the ring is idle, and holds partials.
      Staging staging{reinterpret_cast<float*>(ring.tiles), 0, &ring.smem.staged, 0};
      if (flags & TileNote::kEnd) staging.capacity = ring.bytes() / int(params.partial_floats() * sizeof(float));
      reduce_span<Traits>(params, task, loop, staging, ring.smem);
    }
  }
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams params, const __grid_constant__ typename Traits::Source source,
                  const int num_stages) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];  // the swizzle counts rows from a multiple of 1 KiB
  const TileRing<Traits> ring(shared_memory, num_stages);
  if (threadIdx.x == 0) ring.init_barriers(Traits::Loader::kArrivals, Traits::Loader::kStagingArrivals);
  Traits::Loader::prepare(source, ring);
  __syncthreads();

  // Nothing is read or written before the kernel ahead in the stream has finished.
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();

  if (threadIdx.x >= Traits::kComputeThreads) {
    // 1. Schedule: this worker's share of the line of lean tiles. From then on the producer keeps the ring full.
    TileLine line = params.line();
    line.tile_tokens = Traits::kTileTokens;  // a constant: divisions by it become shifts
    const WorkerShare share = locate_worker_share(line, params.workers, blockIdx.x);
    if (Traits::Loader::runs_here()) produce_tiles<Traits>(params, source, share, ring);
  } else {
    write_empty_outputs<Traits>(params, blockIdx.x);
    consume_tiles<Traits>(params, ring);
  }
}

}  // namespace leanattn
