"""Better cuts than those of the line (csrc/kernels/cuts.h): even pieces and whole items."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate, groupby

from hypothesis import example, given, settings
from hypothesis import strategies as st
from schedule_cases import MAX_TOKENS, items_of, piece_tiles, schedules, tiles_of_item, uniform_share

from leanattn.schedule import Schedule


@settings(max_examples=500, deadline=None)
@given(
    st.integers(1, 300),
    st.one_of(st.integers(1, 40), st.integers(1, 200_000)),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([1, 7, 33, 66, 132]),
)
@example(64, 2048, 1, 66)
@example(128, 1024, 1, 66)
@example(3, 8192, 1, 44)
def test_equally_long_sequences(batch: int, tokens: int, items_per_seq: int, workers: int) -> None:
    """In pieces, or whole, where that is nearly as even: no worker has parts of two items."""
    s = Schedule((tokens,) * batch, items_per_seq, 16, MAX_TOKENS, workers, item_cost=1)
    share = uniform_share(s)
    loads = s.worker_tiles()
    assert sum(loads) == s.total_tiles
    if share is None:
        assert s.line_item_cost == 1
        return
    assert max(loads) <= -(-s.total_units // workers) + 6
    for worker in range(workers):
        spans = s.worker_spans(worker)
        assert len(spans) <= 1 or all(span.slot is None for span in spans)


@settings(max_examples=2500, deadline=None)
@given(schedules())
@example(Schedule((4096,), 8, 64, MAX_TOKENS, 132, item_cost=1, planned=True))
@example(Schedule((1024,) * 8, 8, 64, MAX_TOKENS, 132, item_cost=1, planned=True))
def test_even_pieces(s: Schedule) -> None:
    """A worker has one piece at most, and not much more to do than with equal shares."""
    items = items_of(s)
    if not s.planned or s.item_cost == 0 or len(s.seqlens) * s.items_per_seq > s.workers or not items:
        assert s.piece_tiles == 0
        return
    longest = max(tiles_of_item(s, seq) for seq, _ in items)
    least, most = piece_tiles(s.total_tiles, longest, s.workers)
    candidates = [least, least + 1, most]
    if longest <= least + 6:  # no item is cut
        candidates.append(longest)
    pieces = [sum(-(-tiles_of_item(s, seq) // size) for seq, _ in items) for size in candidates]
    fitting = [size for size, count in zip(candidates, pieces, strict=True) if count <= s.workers]
    assert s.piece_tiles == (fitting[0] if fitting else 0)
    if fitting:
        spans = s.spans()
        assert len(spans) == len({span.worker for span in spans})
        assert max(s.worker_tiles()) <= s.piece_tiles
        for (seq, _), run in groupby(spans, key=lambda span: (span.seq, span.item)):
            sizes = [span.tile_end - span.tile_begin for span in run]
            assert len(sizes) == -(-tiles_of_item(s, seq) // s.piece_tiles)
            assert len(set(sizes[:-1])) <= 1
            assert sizes[-1] <= sizes[0]


@settings(max_examples=2500, deadline=None)
@given(schedules())
@example(Schedule((1024,) * 128, 1, 16, MAX_TOKENS, 66, item_cost=1, planned=True))
@example(Schedule((100, 90, 0, 110) * 60, 2, 64, MAX_TOKENS, 66, item_cost=1, planned=True))
@example(Schedule((1024,) * 64, 4, 64, MAX_TOKENS, 33, item_cost=1, planned=True))
def test_whole_items(s: Schedule) -> None:
    """Where moving the cuts to the borders of items costs little, no item is cut."""
    items = [s.item_cost + tiles_of_item(s, seq) for seq, _ in items_of(s)]
    share, longest = -(-s.total_units // s.workers), max(items, default=0)
    if not s.planned or s.item_cost == 0 or not items or s.piece_tiles or longest > share:
        assert not s.whole_items
        return
    borders = [0, *accumulate(items)]

    def most_units(cut_every: int) -> int:
        cuts = range(cut_every, s.total_units, cut_every)
        # To the nearest border; from the middle of an item to its end.
        near = [bisect_left(borders, cut) for cut in cuts]
        moves = [
            min((b - cut for b in borders[i - 1 : i + 1]), key=lambda move: (abs(move), -move))
            for cut, i in zip(cuts, near, strict=True)
        ]
        return cut_every + max([0, *moves]) - min([0, *moves])

    candidates = (share, -(-share // longest) * longest)
    assert s.whole_items == any(most_units(units) <= share + 6 for units in candidates)
    if s.whole_items:
        assert s.cut_items() == []
        loads = [0] * s.workers
        for span in s.spans():
            loads[span.worker] += span.item_tiles + s.item_cost
        assert max(loads) <= share + 6


def test_a_plan_gives_each_item_a_worker_if_it_can() -> None:
    s = Schedule((64, 64, 64), 1, 64, 1_000, 4, item_cost=1, planned=True)
    assert [(span.worker, span.seq) for span in s.spans()] == [(0, 0), (1, 1), (2, 2)]
