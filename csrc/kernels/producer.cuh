// Stage 2, input: the producer warps walk the CTA's share and keep the ring full. How a tile is brought is the
// loader's (loader_cp_async.cuh); what is brought before the kernel ahead has ended, that of producer_ahead.cuh.
//
// What is done for every tile is one short loop, and what is seldom done stands outside: a scheduler has one loader
// warp, which runs its instructions one after the other, and the tile of a small head_dim, or of 8 bits, is soon read
// (docs/tuning.md, "Look at who waits").
#pragma once

#include "producer_ahead.cuh"
#include "tile_ring.cuh"
#include "worker_share.cuh"

namespace leanattn {

// Between the producer, which finds the share, and the warps that compute, which set up the ring meanwhile.
constexpr int kRingBarrier = 0;

template <typename Traits>
__device__ __forceinline__ void produce_tiles(const DecodeParams& params, const TileRing<Traits>& ring) {
  using Loader = typename Traits::Loader;
  const bool promised = !Traits::kWgmma && params.promised();
  if (!promised) ptx::grid_dependency_wait();
  const auto share = worker_share<Traits>(params, team_here());
  Producer<Traits> producer(params, ring, share);
  ptx::named_barrier_sync<Traits::kThreads>(kRingBarrier);
  if (promised) {
    if (Loader::writes_notes()) ring.smem.first_rows = producer.item.rows;
    ptx::named_barrier_arrive<Traits::kThreads>(kShareBarrier<Traits>);
  }
  if (producer.tiles.done()) {
    if (Loader::writes_notes()) ring.smem.notes[0] = {0, TileNote::kNothing, 0};
    producer.loader.finish(0);
    return;
  }
  if (promised) load_ahead(producer, share);
  producer.loader.by_layout([&](auto paged) {
    while (!producer.tiles.done()) producer.template load_span<decltype(paged)::value>(promised);
  });
}

}  // namespace leanattn
