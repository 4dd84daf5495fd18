"""What the plots show: numbers from the record, without matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.peers import LEANATTN, READ_LIMIT
from benchmarks.results import (
    ShapeRecord,
    best_peer,
    geometric_mean,
    goal,
    median,
    ratio,
    share_of_limit,
    speed_up,
    speed_up_over_best,
)
from benchmarks.shapes import HEADS, Heads

Curve = tuple[list[float], list[float]]  # x, y

BEST_PEER = "best peer"

# By what they are called in a plot; in both, every power of two of context is measured.
CONTEXT_HEADS = {"llama8b (8 KV heads)": HEADS["llama8b"], "70b/tp8 (1 KV head)": HEADS["70b/tp8"]}


class Range(NamedTuple):
    least: float
    mean: float  # geometric
    most: float


def speed_up_ranges(shapes: Sequence[ShapeRecord], names: Sequence[str]) -> dict[str, dict[str, Range]]:
    """By set, and by name: BEST_PEER or an implementation. What was not measured is left out."""
    ranges: dict[str, dict[str, Range]] = {}
    for set_name in dict.fromkeys(shape["set"] for shape in shapes):
        of_set = [shape for shape in shapes if shape["set"] == set_name]
        for name in names:
            if known := [value for shape in of_set if (value := speed_up_over(shape, name)) is not None]:
                over = Range(min(known), geometric_mean(known), max(known))
                ranges.setdefault(set_name, {})[name] = over
    return ranges


def speed_up_over(shape: ShapeRecord, name: str) -> float | None:
    return speed_up_over_best(shape) if name == BEST_PEER else speed_up(shape, name)


def share_points(shapes: Sequence[ShapeRecord], name: str = LEANATTN) -> Curve:
    """Megabytes, and share of the read limit."""
    return by_megabytes([(shape, share_of_limit(shape, name)) for shape in shapes])


def best_peer_points(shapes: Sequence[ShapeRecord]) -> Curve:
    return by_megabytes([(shape, ratio(median(shape, READ_LIMIT), best_peer(shape)[0])) for shape in shapes])


def goal_curve(shapes: Sequence[ShapeRecord]) -> Curve:
    return by_megabytes([(shape, ratio(median(shape, READ_LIMIT), goal(shape))) for shape in shapes])


def by_megabytes(values: Sequence[tuple[ShapeRecord, float | None]]) -> Curve:
    known = sorted((shape["kv_bytes"] / 1e6, value) for shape, value in values if value is not None)
    return [x for x, _ in known], [y for _, y in known]


def context_curve(shapes: Sequence[ShapeRecord], heads: Heads, name: str) -> Curve:
    """Tokens of a single sequence, and microseconds of a call; from whatever set."""
    found = {
        shape["lengths"]: us
        for shape in shapes
        if (shape["batch"], shape["query_heads"], shape["kv_heads"], shape["head_dim"])
        == (1, heads.query, heads.kv, heads.dim)
        and (us := median(shape, name)) is not None
    }
    return [float(tokens) for tokens in sorted(found)], [found[tokens] for tokens in sorted(found)]
