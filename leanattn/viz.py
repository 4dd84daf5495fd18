"""A schedule as text: who does which lean tiles, and where items are cut."""

from __future__ import annotations

from itertools import groupby
from string import ascii_lowercase

from leanattn.schedule import Schedule

# Enough workers to see the pattern, few enough for one screen.
MAX_ROWS = 16


def picture(schedule: Schedule, width: int = 60) -> str:
    """Draws the share of each worker, a row each: its tiles in order, one letter an item.

    Letters go through the alphabet in the order of the items on the line. An upper-case item is done by one
    worker alone; a lower-case one is cut, and each run of its letters is a span that leaves a partial. Shares
    of more than ``width`` tiles are drawn with every n-th tile only. Of many workers, the first ones and the
    last are drawn.
    """
    if schedule.total_tiles == 0:
        return "no lean tiles: all sequences are empty"
    step = -(-max(schedule.worker_tiles()) // width)
    rows = []
    items_begun = 0
    for worker, spans in groupby(schedule.spans(), key=lambda span: span.worker):
        tiles, partials, count = "", 0, 0
        for span in spans:
            items_begun += span.tile_begin == 0
            letter = ascii_lowercase[(items_begun - 1) % len(ascii_lowercase)]
            tiles += (letter if span.slot is not None else letter.upper()) * (span.tile_end - span.tile_begin)
            partials += span.slot is not None
            count += 1
        rows.append(f"{worker:6} {len(tiles):6,} {count:6,} {partials:9}  {tiles[::step]}")
    if len(rows) > MAX_ROWS:
        rows[MAX_ROWS - 2 : -1] = [f"{'...':>6} {len(rows) - MAX_ROWS + 1} more workers"]
    scale = "a letter a tile" if step == 1 else f"a letter for every {step} tiles"
    return "\n".join([f"worker  tiles  spans  partials  {scale}; lower case: the item is cut", *rows])
