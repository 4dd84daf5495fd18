"""What all shapes say together: a table by set, and sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.method import IN_MODEL
from benchmarks.peers import FA3, FIXED_SPLIT, LEANATTN, NO_SPLIT, OUR_NAMES, OWN_NO_SPLIT, PLAN, PROMISE
from benchmarks.results import (
    BACK_TO_BACK,
    LARGE_BYTES,
    UNCOUNTED_SETS,
    ShapeRecord,
    counted,
    geometric_mean,
    over_goal,
    share_of_limit,
    speed_up,
    speed_up_over_best,
    time_per_byte_ratio,
    twins,
)
from benchmarks.tables import Row, number

# Time per byte of a ragged batch over that of a uniform one: at most this is meant to be reached.
RAGGED_BAR = 1.03

# Where something was not measured is said by name up to so many shapes; the record has them all.
MOST_NAMES = 5


@dataclass(frozen=True)
class Comparison:
    """A speed-up of every shape; above 1 ours is faster."""

    column: str
    text: str
    of: Callable[[ShapeRecord], float | None]


COMPARISONS = (
    *(
        Comparison(
            f"best peer{of_timing}{option}",
            f"over the best peer{of_timing}{text}",
            partial(speed_up_over_best, of=name, timing=timing),
        )
        for of_timing, timing in (("", BACK_TO_BACK), (", in a model", IN_MODEL))
        for option, text, name in (
            ("", "", LEANATTN),
            (" (plan)", ", with a plan", PLAN),
            (" (promise)", ", with plan and promise", PROMISE),
        )
    ),
    Comparison("fa3", "over fa3", lambda shape: speed_up(shape, FA3)),
    Comparison("fa3 no split", "over fa3 without a split", lambda shape: speed_up(shape, NO_SPLIT)),
    Comparison(
        "fixed split",
        "over the fixed split in our kernel, with a plan",
        lambda shape: speed_up(shape, FIXED_SPLIT, PLAN),
    ),
    Comparison(
        "no split",
        "over no split in our kernel, with a plan",
        lambda shape: speed_up(shape, OWN_NO_SPLIT, PLAN),
    ),
)
SET_COLUMNS = ("set", "shapes", *(f"x {comparison.column}" for comparison in COMPARISONS))


def set_row(name: str, shapes: Sequence[ShapeRecord]) -> Row:
    cells = []
    for comparison in COMPARISONS:
        values = [value for shape in shapes if (value := comparison.of(shape)) is not None]
        cells.append(number(geometric_mean(values) if values else None, 2))
    return (name, str(len(shapes)), *cells)


def set_rows(shapes: Sequence[ShapeRecord]) -> list[Row]:
    """Geometric means, by set and of all shapes that count."""
    sets = dict.fromkeys(shape["set"] for shape in shapes)
    rows = [set_row(name, [shape for shape in shapes if shape["set"] == name]) for name in sets]
    return [*rows, set_row(f"all but {', '.join(UNCOUNTED_SETS)}", counted(shapes))]


def speed_up_totals(shapes: Sequence[ShapeRecord]) -> list[str]:
    lines = []
    for comparison in COMPARISONS:
        known = [
            (value, shape["name"]) for shape in counted(shapes) if (value := comparison.of(shape)) is not None
        ]
        if known:
            slower = [f"{name} ({value:.2f})" for value, name in sorted(known) if value < 1.0]
            mean, least = geometric_mean([value for value, _ in known]), min(known)[0]
            lines.append(
                f"Speed-up {comparison.text}: {mean:.2f} in geometric mean of {len(known)} shapes, "
                f"least {least:.2f}; slower on {', '.join(slower) or 'none'}."
            )
    return lines


def goal_totals(shapes: Sequence[ShapeRecord]) -> list[str]:
    lines = []
    for name in OUR_NAMES:
        known = [
            (us, shape["name"]) for shape in counted(shapes) if (us := over_goal(shape, name)) is not None
        ]
        if known:
            (most, where), reached = max(known), sum(us <= 0.0 for us, _ in known)
            lines.append(
                f"Goal, {name}: reached on {reached} of {len(known)} shapes; "
                f"furthest from it by {most:.1f} us ({where})."
            )
    return lines


def share_totals(shapes: Sequence[ShapeRecord]) -> list[str]:
    large = [shape for shape in counted(shapes) if shape["kv_bytes"] >= LARGE_BYTES]
    lines = []
    for name in OUR_NAMES:
        shares = [
            (share, shape["name"]) for shape in large if (share := share_of_limit(shape, name)) is not None
        ]
        if shares:
            (least, where), mean = min(shares), geometric_mean([share for share, _ in shares])
            lines.append(
                f"Share of the read limit at {LARGE_BYTES / 1e6:.0f} MB and more ({len(shares)} shapes), "
                f"{name}: {100.0 * mean:.1f}% in geometric mean, at least {100.0 * least:.1f}% ({where})."
            )
    return lines


def twin_totals(shapes: Sequence[ShapeRecord]) -> list[str]:
    known = [
        (value, shape["name"])
        for shape, twin in twins(shapes)
        if (value := time_per_byte_ratio(shape, twin, LEANATTN)) is not None
    ]
    if not known:
        return []
    (most, where), mean = max(known), geometric_mean([value for value, _ in known])
    within = sum(value <= RAGGED_BAR for value, _ in known)
    return [
        f"Time per byte of a ragged batch over that of its uniform twin: {mean:.3f} in geometric mean of "
        f"{len(known)} shapes, at most {most:.3f} ({where}); up to {RAGGED_BAR} on {within}."
    ]


def not_measured(shapes: Sequence[ShapeRecord]) -> list[str]:
    """Who was not measured where, and why: one line for an implementation and reason."""

    def places(names: list[str]) -> str:
        if len(names) == len(shapes):
            return "all"
        return ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} shapes"

    where = defaultdict(list)
    for shape in shapes:
        for name, result in shape["results"].items():
            if result["status"] != "ok":
                where[name, result["status"], result["detail"]].append(shape["name"])
            elif result.get("nan_reaches_output"):
                reason = "measured with zeros instead of NaN beyond the lengths, which reached its output"
                where[name, "note", reason].append(shape["name"])
    return [
        f"{name}: {status} on {places(names)}: {detail}" for (name, status, detail), names in where.items()
    ]


def all_totals(shapes: Sequence[ShapeRecord]) -> list[str]:
    parts = (speed_up_totals, goal_totals, share_totals, twin_totals, not_measured)
    return [line for part in parts for line in part(shapes)]
