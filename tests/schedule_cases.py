"""Random schedules, and their rules said once more in Python."""

from __future__ import annotations

from hypothesis import strategies as st

from leanattn.schedule import Schedule

MAX_TOKENS = 2_000_000

# Mostly short, often empty or just around a tile border, sometimes a million tokens.
lengths = st.one_of(
    st.just(0),
    st.integers(1, 300),
    st.builds(lambda tiles, off: max(0, 64 * tiles + off), st.integers(0, 40), st.integers(-1, 1)),
    st.integers(0, 1_000_000),
)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    seqlens = draw(st.lists(lengths, max_size=draw(st.sampled_from([2, 8, 40]))))
    items_per_seq = draw(st.sampled_from([1, 2, 3, 8, 40]))
    tile_tokens = draw(st.sampled_from([16, 64, 128]))
    workers = draw(st.one_of(st.integers(1, 20), st.sampled_from([78, 108, 132, 264, 1024])))
    item_cost = draw(st.sampled_from([0, 0, 1, 3]))
    planned = draw(st.booleans())
    return Schedule(tuple(seqlens), items_per_seq, tile_tokens, MAX_TOKENS, workers, item_cost, planned)


def tiles_of_item(s: Schedule, seq: int) -> int:
    return -(-s.seqlens[seq] // s.tile_tokens)


def items_of(s: Schedule) -> list[tuple[int, int]]:
    return [
        (seq, item)
        for seq in range(len(s.seqlens))
        if tiles_of_item(s, seq) > 0
        for item in range(s.items_per_seq)
    ]


def piece_tiles(tiles: int, longest: int, workers: int) -> tuple[int, int]:
    """Of a piece of an item, at least and at most; ``tiles`` of all items, ``longest`` of one."""
    least = -(-tiles // workers)
    if longest <= 3 * 24:  # partials that are merged at once
        least = max(least, -(-longest // 24))
    return least, least + (1 if least < 12 else 2 if least < 36 else 3)


def uniform_share(s: Schedule) -> int | None:
    """Units that a worker has of equally long sequences: pieces of an item, or whole items, or None."""
    longest = max((tiles_of_item(s, seq) for seq in range(len(s.seqlens))), default=0)
    if (
        s.planned
        or s.item_cost == 0
        or longest == 0
        or {tiles_of_item(s, i) for i in range(len(s.seqlens))} != {longest}
    ):
        return None
    items = len(s.seqlens) * s.items_per_seq
    if s.total_units < 6 * s.workers:
        return None  # to find them would take longer than they save
    if items <= s.workers:
        least, most = piece_tiles(longest * items, longest, s.workers)
        size = max(least, -(-longest // (s.workers // items)))
        if size <= most:
            return size
    share, units = -(-s.total_units // s.workers), longest + s.item_cost
    whole = -(-share // units) * units
    return whole if whole <= share + 6 else None
