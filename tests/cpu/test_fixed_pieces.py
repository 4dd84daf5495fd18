"""The pieces of batch-invariant calls (csrc/kernels/fixed_pieces.h), over random ragged batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from schedule_cases import MAX_TOKENS, items_of, schedules, tiles_of_item

from leanattn import schedule
from leanattn.schedule import Schedule, Span

# Fewer would cost more than they even out; more are not merged at once.
LEAST_TILES, MOST_PIECES = 8, 24

invariant_schedules = schedules().map(lambda s: replace(s, batch_invariant=True))


def runs_of(spans: Iterable[Span]) -> dict[tuple[int, int], list[Span]]:
    return {key: list(run) for key, run in groupby(spans, key=lambda span: (span.seq, span.item))}


def borders_of(run: list[Span]) -> list[int]:
    return [0, *(span.tile_end for span in run)]


@settings(max_examples=2500, deadline=None)
@given(invariant_schedules)
@example(Schedule((), 8, 64, MAX_TOKENS, 132, batch_invariant=True))
@example(Schedule((1_000_000,), 2, 64, MAX_TOKENS, 33, item_cost=1, batch_invariant=True))
@example(Schedule((64 * 33, 64 * 8, 64 * 17) * 9, 1, 64, MAX_TOKENS, 7, item_cost=3, batch_invariant=True))
def test_spans_are_the_pieces_of_items(s: Schedule) -> None:
    runs = runs_of(s.spans())
    assert list(runs) == items_of(s), "items in the order of the line, none missing, none twice"
    for (seq, _), run in runs.items():
        tiles = tiles_of_item(s, seq)
        borders = borders_of(run)
        assert [span.tile_begin for span in run] == borders[:-1], "every tile once"
        assert borders[-1] == tiles
        sizes = [end - begin for begin, end in pairwise(borders)]
        assert len(run) == max(1, min(tiles // LEAST_TILES, s.fixed_pieces)) <= MOST_PIECES
        assert max(sizes) - min(sizes) <= 1
        assert {span.partials for span in run} == {len(run)}


@settings(max_examples=1000, deadline=None)
@given(invariant_schedules, st.data())
def test_pieces_do_not_depend_on_the_rest_of_the_batch(s: Schedule, data: st.DataObject) -> None:
    """Nor on what the cache can hold, nor on a plan."""
    runs = runs_of(s.spans())
    if not runs:
        return
    seq, item = data.draw(st.sampled_from(list(runs)))
    fitting = max(s.seqlens[seq], 1)
    for seqlens, max_tokens in (((s.seqlens[seq],), MAX_TOKENS), ((0, s.seqlens[seq], 7_000), fitting)):
        for planned in (False, True):
            other = replace(s, seqlens=seqlens, max_tokens=max_tokens, planned=planned)
            run = runs_of(other.spans())[len(seqlens) // 2, item]
            assert borders_of(run) == borders_of(runs[seq, item])
            assert (
                s.planned == planned
                or max_tokens < MAX_TOKENS
                or other.spans() == replace(other, planned=not planned).spans()
            )


@settings(max_examples=2500, deadline=None)
@given(invariant_schedules)
def test_a_piece_is_of_the_share_that_has_its_middle(s: Schedule) -> None:
    spans = s.spans()
    assert s.shares.workers == min(s.workers, s.total_units)
    longest: dict[int, int] = {}
    for span in spans:
        size = span.tile_end - span.tile_begin
        longest[span.worker] = max(size, longest.get(span.worker, 0))
        assert s.shares.worker_of(span.item_line + span.tile_begin + size // 2) == span.worker
    assert [span.worker for span in spans] == sorted(span.worker for span in spans)
    for worker, load in enumerate(s.worker_tiles()):
        if load:
            assert load <= s.shares.size(worker) + longest[worker] + 1


@settings(max_examples=2500, deadline=None)
@given(invariant_schedules)
def test_partials_are_bounded_and_never_in_each_others_way(s: Schedule) -> None:
    """What a worker has alone is merged before its next partials are written; all others stay."""
    assert s.partial_slots == (2 * s.fixed_pieces * s.workers if s.fixed_pieces > 1 else 0)
    assert s.partial_slots <= 2 * MOST_PIECES * s.workers
    cut, shared_slots, alone_slots = [], [], dict[int, set[int]]()
    first_workers = []
    for (seq, item), run in runs_of(s.spans()).items():
        slots = [span.slot for span in run if span.slot is not None]
        if len(run) == 1:
            assert not slots
            continue
        assert slots == list(range(slots[0], slots[0] + len(run))), "neighbours, in token order"
        assert 0 <= slots[0] <= slots[-1] < s.partial_slots
        assert {span.first_worker for span in run} == {run[0].worker}
        cut.append((seq, item, run[0].worker, tuple(slots)))
        if run[0].worker == run[-1].worker:
            alone_slots.setdefault(run[0].worker, set()).update(slots)
        else:
            shared_slots += slots
            first_workers.append(run[0].worker)
    assert s.cut_items() == cut
    everything = shared_slots + [slot for slots in alone_slots.values() for slot in slots]
    assert len(set(everything)) == len(everything), "no two partials that are needed at once share a slot"
    assert len(set(first_workers)) == len(first_workers), "no two shared items share a ticket"


@settings(max_examples=300, deadline=None)
@given(invariant_schedules, st.data())
def test_a_worker_finds_its_pieces_alone(s: Schedule, data: st.DataObject) -> None:
    worker = data.draw(st.integers(0, s.workers - 1))
    assert s.worker_spans(worker) == [span for span in s.spans() if span.worker == worker]


@pytest.mark.parametrize(
    ("items_per_seq", "workers", "pieces"),
    [
        (1, 1, 24),
        (1, 132, 24),
        (8, 132, 16),
        (2, 33, 16),
        (8, 33, 24),
        (40, 33, 24),
        (1, 17, 17),
        (3, 66, 22),
    ],
)
def test_a_sequence_alone_is_given_out_evenly(items_per_seq: int, workers: int, pieces: int) -> None:
    s = Schedule((1_000_000,), items_per_seq, 64, MAX_TOKENS, workers, item_cost=1, batch_invariant=True)
    assert s.fixed_pieces == pieces
    busy = [load for load in s.worker_tiles() if load]
    assert max(busy) <= 1.05 * s.total_tiles / min(workers, items_per_seq * pieces)


@pytest.mark.parametrize("workers", [1, 2, 8, 1000])
def test_the_longest_lines(workers: int) -> None:
    """Sums on the way stay inside 32 bits."""
    for lengths in ((2**31 - 200,), (1_500_000_000,), (536_000_000,) * 4):
        s = Schedule(lengths, 1, 1, 2**31 - 2, workers, 1, batch_invariant=True)
        assert sum(s.worker_tiles()) == s.total_tiles == sum(lengths)


def test_a_cache_without_room_for_two_pieces_needs_no_partials() -> None:
    assert Schedule((100,), 2, 64, 64 * (2 * LEAST_TILES - 1), 8, batch_invariant=True).partial_slots == 0
    assert Schedule((100,), 2, 64, 64 * 2 * LEAST_TILES, 8, batch_invariant=True).partial_slots == 2 * 2 * 8


@pytest.mark.parametrize("changes", [{}, {"rows": 4}, {"rows": 71}, {"num_kv_heads": 16}, {"head_dim": 256}])
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_the_tiling_does_not_depend_on_the_batch(device_type: str, changes: dict[str, int]) -> None:
    shape: dict[str, Any] = {"num_kv_heads": 8, "rows": 12, "head_dim": 128, "workers": 132} | changes
    tilings = {
        schedule.tiling(
            device_type, batch=batch, max_tokens=max_tokens, paged=paged, batch_invariant=True, **shape
        )
        for batch in (1, 7, 500)
        for max_tokens in (1, 100, 2**20)
        for paged in (False, True)
    }
    assert len(tilings) == 1
    assert tilings.pop().heads == 1
