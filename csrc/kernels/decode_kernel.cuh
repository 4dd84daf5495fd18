// The kernel: the table of contents of a decode call. One CTA is one worker.
#pragma once

#include "debug_delay.cuh"
#include "reduction.cuh"
#include "warp_merge.cuh"
#include "worker_share.cuh"

namespace leanattn {

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams params, const int num_stages) {
  using Element = typename Traits::Element;
  extern __shared__ __align__(128) unsigned char shared_memory[];
  auto& smem = *reinterpret_cast<typename Traits::SharedMemory*>(shared_memory);
  const int32_t worker = blockIdx.x, warp = threadIdx.x / 32;

  // Nothing is read or written before the kernel ahead in the stream has finished.
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();

  // 1. Schedule: this worker's share of the line of lean tiles. Its first K/V loads start at once.
  auto [shares, spans] = locate_worker_share<Traits>(params.line(), params.workers, worker, smem);
  Element* ring_memory = reinterpret_cast<Element*>(shared_memory + Traits::kFixedBytes);
  Element* queries = ring_memory + Traits::kWarps * num_stages * Traits::kStageElements;
  KvRing<Traits> ring(params, spans, ring_memory + warp * num_stages * Traits::kStageElements, queries, num_stages);
  write_empty_outputs<Traits>(params, worker);

  TileLoop<Traits> loop;
  for (; !spans.done(); spans.next()) {
    const Span span = spans.span();
    // 2. Lean tile loop: each warp folds its tokens of every tile into its own (m, l, O).
    loop.begin_span();
    const int32_t first_token = span.tile_begin * Traits::kTileTokens + warp * Traits::kWarpTokens;
    int32_t visible = spans.line.tokens(span.seq) - first_token;  // tokens from this warp's first one on
    const int32_t tiles = span.tile_end - span.tile_begin;
    for (int32_t i = 0; i < tiles; ++i, visible -= Traits::kTileTokens) {
      const Element* kv = ring.next_tile();
      if (i == 0) {
        __syncthreads();  // all warps have their part of the queries
        loop.set_query(ring.next_query());
      }
      loop.fold_tile(kv, params.scale_log2, visible, [&](int step) { ring.load_step(step); });
    }

    const ItemRows rows = ItemRows::of(params, span.seq, span.item);
    if (span.whole_item()) {
      // 4. Output, at once: nobody else has a part of this item.
      merge_warps<Traits>(loop, smem, rows.count, [&](int row, int column, float4 o, float2 ml) {
        store_output<Traits>(params, rows, row, column, o, ml);
      });
    } else {
      // 3. Host-block reduction: publish the partial; the last CTA of the item merges them all and
      // 4. writes the output.
      const auto partial = Partial<Traits>::at(params, partial_slot(worker, span));
      merge_warps<Traits>(loop, smem, rows.count,
                          [&](int row, int column, float4 o, float2 ml) { partial.store(row, column, o, ml); });
      const CutItem cut = CutItem::of(shares, span);
      debug_delay(params.debug, worker, 2 * span.seq);
      if (is_host_block<Traits>(params, cut, smem)) {
        debug_delay(params.debug, worker, 2 * span.seq + 1);
        // After the last span the ring is idle, and holds many partials; before, the merge buffer holds one at least.
        Staging staging{&smem.merge[0][0][0], int(sizeof(smem.merge) / sizeof(float))};
        if (spans.last()) {
          staging = {reinterpret_cast<float*>(ring_memory), num_stages * Traits::kRingBytes / int(sizeof(float))};
        }
        merge_partials<Traits>(params, cut, rows, staging, smem);
      }
    }
  }
}

}  // namespace leanattn
