"""What the record of a shape says: times, speed-ups, distance to what could be read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.peers import FIXED_SPLIT, LEANATTN, PEER_NAMES, READ_LIMIT

Document = dict[str, Any]  # what benchmarks.decode writes
ShapeRecord = dict[str, Any]  # one element of document["shapes"]

BACK_TO_BACK = "back_to_back"  # the times of a result itself; method.IN_MODEL is the other timing

# What the kernel is meant to reach: reading at 98% of the limit, and 1.5 us for all else.
GOAL_OF_LIMIT, GOAL_US = 1.02, 1.5

# From this size on the read limit is the bar: smaller caches are dominated by the fixed cost of a launch.
LARGE_BYTES = 256_000_000

# Measured for a comparison or a plot of their own; they count in no average over the sets.
UNCOUNTED_SETS = ("context", "twins")


def times(shape: ShapeRecord, name: str, timing: str = BACK_TO_BACK) -> dict[str, float]:
    """Of an implementation; empty unless it was measured."""
    result: dict[str, Any] = shape["results"].get(name, {})
    if result.get("status") != "ok":
        return {}
    return result if timing == BACK_TO_BACK else result.get(timing, {})


def median(shape: ShapeRecord, name: str, timing: str = BACK_TO_BACK) -> float | None:
    """Microseconds of a call, None unless it was measured."""
    return times(shape, name, timing).get("median_us")


def spread(shape: ShapeRecord, name: str) -> float | None:
    """Largest distance of a replay from the median, in percent."""
    of = times(shape, name)
    if not of:
        return None
    us = of["median_us"]
    return 100.0 * max(us - of["min_us"], of["max_us"] - us) / us


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or denominator is None else numerator / denominator


def best_peer(shape: ShapeRecord, timing: str = BACK_TO_BACK) -> tuple[float | None, str]:
    measured = [(us, name) for name in PEER_NAMES if (us := median(shape, name, timing)) is not None]
    return min(measured) if measured else (None, "-")


def speed_up(shape: ShapeRecord, over: str, of: str = LEANATTN, timing: str = BACK_TO_BACK) -> float | None:
    return ratio(median(shape, over, timing), median(shape, of, timing))


def speed_up_over_best(shape: ShapeRecord, of: str = LEANATTN, timing: str = BACK_TO_BACK) -> float | None:
    return ratio(best_peer(shape, timing)[0], median(shape, of, timing))


def goal(shape: ShapeRecord) -> float | None:
    limit = median(shape, READ_LIMIT)
    return None if limit is None else GOAL_OF_LIMIT * limit + GOAL_US


def over_goal(shape: ShapeRecord, name: str) -> float | None:
    """Microseconds; negative if the goal is reached."""
    us, bar = median(shape, name), goal(shape)
    return None if us is None or bar is None else us - bar


def share_of_limit(shape: ShapeRecord, name: str) -> float | None:
    return ratio(median(shape, READ_LIMIT), median(shape, name))


def splits(shape: ShapeRecord) -> int | None:
    """Pieces of an item in the fixed split of our kernel."""
    result: dict[str, Any] = shape["results"].get(FIXED_SPLIT, {})
    return result.get("splits")


def twins(shapes: Sequence[ShapeRecord]) -> list[tuple[ShapeRecord, ShapeRecord]]:
    """Ragged shapes, each with its uniform twin."""
    by_name = {shape["name"]: shape for shape in shapes}
    pairs = [(by_name.get(shape.get("twin_of") or ""), shape) for shape in shapes]
    return [(ragged, uniform) for ragged, uniform in pairs if ragged is not None]


def time_per_byte_ratio(shape: ShapeRecord, twin: ShapeRecord, name: str) -> float | None:
    """Of `shape` over that of `twin`: 1 if it costs nothing that the lengths differ."""
    times_ratio = ratio(median(shape, name), median(twin, name))
    return None if times_ratio is None else times_ratio * twin["kv_bytes"] / shape["kv_bytes"]


def counted(shapes: Iterable[ShapeRecord]) -> list[ShapeRecord]:
    return [shape for shape in shapes if shape["set"] not in UNCOUNTED_SETS]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))
