"""Properties of the lean decomposition (csrc/kernels/schedule.h), over random ragged batches."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from schedule_cases import MAX_TOKENS, items_of, schedules, tiles_of_item, uniform_share

from leanattn import schedule
from leanattn.schedule import Schedule, Shares, Span

ROOT = Path(__file__).parents[2]


@settings(max_examples=2500, deadline=None)
@given(schedules())
@example(Schedule((), 8, 64, MAX_TOKENS, 132))
@example(Schedule((0, 0, 0), 8, 64, MAX_TOKENS, 132))
@example(Schedule((1,), 1, 64, MAX_TOKENS, 1024))
@example(Schedule((1_000_000,) * 4, 8, 64, MAX_TOKENS, 132))
@example(Schedule((64,) * 100, 8, 64, MAX_TOKENS, 132, item_cost=3))
def test_spans_cover_the_line_once_and_in_order(s: Schedule) -> None:
    spans = s.spans()
    by_item = {key: list(run) for key, run in groupby(spans, key=lambda x: (x.seq, x.item))}
    assert list(by_item) == items_of(s), "items in the order of the line, none missing, none twice"

    place = 0
    for (seq, _), run in by_item.items():
        place += s.line_item_cost
        item_line, tile = place, 0
        for span in run:
            assert span.tile_begin == tile < span.tile_end
            assert span.item_tiles == tiles_of_item(s, seq)
            assert s.piece_tiles or span.item_line == item_line
            tile = span.tile_end
        assert tile == tiles_of_item(s, seq), "every tile of the item exactly once"
        place += tile
    assert place == s.shares.begin(s.shares.workers)
    assert s.total_tiles == s.total_units - s.item_cost * len(by_item)


@settings(max_examples=2500, deadline=None)
@given(schedules())
def test_loads_are_equal(s: Schedule) -> None:
    """Workers do the tiles that lie in their shares of the line; shares differ by one unit at most."""
    items = len(s.seqlens) * s.items_per_seq
    sharing = s.shares.workers
    shares = [(s.shares.begin(w), s.shares.begin(w + 1)) for w in range(sharing)]
    sizes = [end - begin for begin, end in shares]
    assert sizes == [s.shares.size(w) for w in range(sharing)]
    if (share := uniform_share(s)) is not None:
        assert set(sizes[:-1]) <= {share}
    else:
        few = (
            s.item_cost > 0
            and items > 0
            and 24 * items < s.workers
            and s.total_units <= (3 * 24 + s.item_cost) * items
        )
        workers = 24 * items if few else s.workers
        assert sharing == min(workers, s.total_units), "no more than 24 partials of a short item"
        assert sum(sizes) == s.total_units
        assert not sizes or max(sizes) - min(sizes) <= 1
    for span in [] if s.piece_tiles or s.whole_items else s.spans():
        begin, end = shares[span.worker]
        assert begin <= span.item_line + span.tile_begin < span.item_line + span.tile_end <= end
    tiles = s.worker_tiles()
    assert sum(tiles) == s.total_tiles
    if s.item_cost == 0:
        assert tiles == sizes + [0] * (s.workers - sharing)


@settings(max_examples=2500, deadline=None)
@given(schedules())
def test_partials_are_bounded_and_found_by_every_worker(s: Schedule) -> None:
    spans = s.spans()
    partials = [span for span in spans if span.slot is not None]
    slots = [span.slot for span in partials if span.slot is not None]
    assert len(set(slots)) == len(slots), "no two partials share a slot"
    assert all(0 <= slot < schedule.partial_slots(s.workers) for slot in slots)
    assert len(partials) <= 2 * s.workers
    for _, own in groupby(partials, key=lambda span: span.worker):
        assert len(list(own)) <= 2

    cut = []
    for (seq, item), group in groupby(spans, key=lambda span: (span.seq, span.item)):
        run = list(group)
        workers = [span.worker for span in run]
        assert workers == list(range(workers[0], workers[0] + len(run))), "one span for each sharing worker"
        for span in run:
            assert (span.first_worker, span.partials) == (workers[0], len(run))
            assert (span.slot is None) == (len(run) == 1)
        if len(run) > 1:
            cut.append((seq, item, workers[0], tuple(span.slot for span in run)))
    assert s.cut_items() == cut, "the merge reads the slots that the workers wrote, in token order"
    first_workers = [first for _, _, first, _ in cut]
    assert len(set(first_workers)) == len(first_workers), "no two cut items share a ticket"


@settings(max_examples=300, deadline=None)
@given(schedules(), st.data())
def test_a_worker_finds_its_spans_alone(s: Schedule, data: st.DataObject) -> None:
    worker = data.draw(st.integers(0, s.workers - 1))
    assert s.worker_spans(worker) == [span for span in s.spans() if span.worker == worker]


@settings(max_examples=2500, deadline=None)
@given(st.integers(1, 2**31 - 1), st.integers(1, schedule.MAX_WORKERS), st.data())
def test_worker_of_inverts_begin(total: int, workers: int, data: st.DataObject) -> None:
    shares = Shares(total, workers)
    assert shares.begin(0) == 0
    assert shares.begin(workers) == total
    unit = data.draw(st.integers(0, total - 1))
    owner = shares.worker_of(unit)
    assert shares.begin(owner) <= unit < shares.begin(owner) + shares.size(owner)
    assert shares.begin(owner) + shares.size(owner) == shares.begin(owner + 1)
    first = shares.begin(owner)
    assert shares.worker_of(first) == owner
    assert first == 0 or shares.worker_of(first - 1) == owner - 1


@pytest.mark.parametrize("workers", [1, 132, 1024])
def test_large_batches(workers: int) -> None:
    seqlens = tuple((i * 7919) % 700 if i % 5 else 0 for i in range(12_000))
    s = Schedule(seqlens, 2, 64, 1_000, workers)
    spans = s.spans()
    assert sum(span.tile_end - span.tile_begin for span in spans) == s.total_tiles
    assert len({(span.seq, span.item) for span in spans}) == 2 * sum(n > 0 for n in seqlens)
    assert len(spans) < 2 * 12_000 + workers


def test_more_workers_than_tiles() -> None:
    s = Schedule((64, 0, 130), 1, 64, 1_000, 10)
    assert [span.worker for span in s.spans()] == [0, 1, 2, 3]
    assert s.worker_spans(9) == []


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("item_cost", [0, 1])
@pytest.mark.parametrize("workers", [1, 2, 8, 1000])
def test_the_longest_lines(workers: int, item_cost: int, planned: bool) -> None:
    """Sums on the way to the cuts stay inside 32 bits."""
    for lengths in ((2**31 - 200,), (1_500_000_000,), (536_000_000,) * 4):
        s = Schedule(lengths, 1, 1, 2**31 - 2, workers, item_cost, planned)
        assert s.shares.workers == workers
        assert sum(s.worker_tiles()) == s.total_tiles == sum(lengths)
        assert max(s.worker_tiles()) - min(s.worker_tiles()) <= 1 + len(lengths) * item_cost


def test_a_share_may_end_before_the_tiles_of_an_item() -> None:
    """Three items of 2 units and 1 tile, in shares of 2 and 1 units: a worker with no tile has no span."""
    s = Schedule((64, 64, 0, 64), 1, 64, 1_000, 4, item_cost=1)
    assert [(span.worker, span.seq) for span in s.spans()] == [(0, 0), (1, 1), (3, 3)]
    assert s.worker_spans(2) == []
    assert s.worker_tiles() == [1, 1, 0, 1]


def test_a_whole_item_leaves_no_partial() -> None:
    s = Schedule((128, 128), 1, 64, 1_000, 2)
    assert s.spans() == [
        Span(0, 0, 0, 0, 2, item_tiles=2, item_line=0, slot=None, first_worker=0, partials=1),
        Span(1, 1, 0, 0, 2, item_tiles=2, item_line=2, slot=None, first_worker=1, partials=1),
    ]
    assert s.cut_items() == []


def test_lengths_are_clamped_to_the_cache() -> None:
    assert Schedule((-5, 10**9), 1, 64, 640, 4).total_tiles == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "workers: expected 1..1024, got 0"),
        ({"workers": 1025}, "workers: expected 1..1024, got 1025"),
        ({"tile_tokens": 0}, "tile_tokens"),
        ({"items_per_seq": -1}, "items_per_seq"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**31 - 64}, "max_tokens: expected 0..2147483583, got 2147483584"),
        ({"item_cost": -1}, "item_cost: expected 0..1048576, got -1"),
        ({"item_cost": 2**20 + 1}, "item_cost: expected 0..1048576, got 1048577"),
        ({"seqlens": (1,) * 5, "items_per_seq": 2**31 - 1, "item_cost": 2**20}, "2\\^31 or more"),
        ({"seqlens": (2**31 - 100,) * 65, "max_tokens": 2**31 - 100}, "2\\^31 or more"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    good = {"seqlens": (5,), "items_per_seq": 1, "tile_tokens": 64, "max_tokens": 100, "workers": 2}
    with pytest.raises(ValueError, match=message):
        Schedule(**(good | change))  # type: ignore[arg-type]
    Schedule(**good)  # type: ignore[arg-type]


def test_a_worker_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"worker: expected 0\.\.1, got 2"):
        Schedule((5,), 1, 64, 100, 2).worker_spans(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Shares(5, 0), r"workers: expected 1\.\.1024, got 0"),
        (lambda: Shares(5, 1025), r"workers: expected 1\.\.1024, got 1025"),
        (lambda: Shares(-1, 8), "total_units: expected 0 or more, got -1"),
        (lambda: Shares(5, 8).worker_of(6), "unit: expected one of the line's 5, got 6"),
        (lambda: Shares(0, 8).worker_of(0), "unit: expected one of the line's 0, got 0"),
        (lambda: Shares(5, 8).worker_of(-1), "unit: .*got -1"),
        (lambda: Shares(5, 8).begin(9), r"worker: expected 0\.\.8, got 9"),
        (lambda: Shares(5, 8).size(8), r"worker: expected 0\.\.7, got 8"),
        (lambda: schedule.partial_slots(2**30), "workers: .*got 1073741824"),
    ],
)
def test_numbers_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_cpp_unit_tests(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "test_schedule"
    source = ROOT / "tests" / "cpp" / "test_schedule.cpp"
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
    subprocess.run([compiler, *flags, f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 90)), max_size=6),
    st.integers(1, 9),
    st.sampled_from([-1, 0, 1, 5, 2**31 - 1]),
)
def test_blocks_of_packed_queries(
    sequences: list[tuple[int, int]], block_tokens: int, window_right: int
) -> None:
    """Each query once, in order; a block is as long as what its last query sees."""
    offsets = [0, *itertools.accumulate(count for count, _ in sequences)]
    lengths = [length for _, length in sequences]
    blocks = schedule.query_blocks(
        offsets, lengths, max_tokens=80, block_tokens=block_tokens, window_right=window_right
    )
    assert len(blocks) <= schedule.most_query_blocks(offsets[-1], len(sequences), block_tokens)
    queries = [(b.seq, b.first + i, b.query + i) for b in blocks for i in range(b.tokens)]
    assert queries == [
        (seq, i, offsets[seq] + i) for seq, (count, _) in enumerate(sequences) for i in range(count)
    ]
    for block in blocks:
        count, length = sequences[block.seq]
        assert 1 <= block.tokens <= block_tokens
        length = min(length, 80)
        own = length - count + block.first
        seen = length if window_right < 0 else own + block.tokens + window_right
        assert block.length == max(0, min(length, seen))
        assert block.tail == block.length - own


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(60, 200), st.integers(-3, 90)), min_size=1, max_size=4
    ),
    st.integers(1, 9),
    st.sampled_from([-1, 0, 1, 17, 2**31 - 1]),
    st.sampled_from([-1, 0, 5]),
    st.booleans(),
)
def test_tokens_that_no_query_of_a_block_sees(
    sequences: list[tuple[int, int, int]], block_tokens: int, left: int, right: int, padded: bool
) -> None:
    pads = [pad if padded else 0 for _, _, pad in sequences]
    blocks = schedule.query_blocks(
        [0, *itertools.accumulate(count for count, _, _ in sequences)],
        [length for _, length, _ in sequences],
        max_tokens=200,
        block_tokens=block_tokens,
        window_left=left,
        window_right=right,
        cache_leftpad=pads if padded else (),
    )
    for block in blocks:
        count, length, _ = sequences[block.seq]

        def sees(query: int, token: int, own: int = length - count + block.first) -> bool:
            behind, after = own + query - token, token - own - query
            return (left < 0 or behind <= left) and (right < 0 or after <= right)

        seen = [
            token
            for token in range(max(0, pads[block.seq]), length)
            if any(sees(query, token) for query in range(block.tokens))
        ]
        if seen:
            assert max(0, block.unseen) == seen[0]
            assert block.length == seen[-1] + 1
        else:
            assert block.unseen >= block.length
