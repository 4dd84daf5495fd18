"""Tables and totals from the JSON of benchmarks.decode: `python -m benchmarks.report PATH [--markdown]`."""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.peers import LEANATTN, NO_SPLIT, PEER_NAMES, READ_LIMIT

Document = dict[str, Any]  # what benchmarks.decode writes
ShapeRecord = dict[str, Any]  # one element of document["shapes"]

FA3 = "fa3"

# From this size on the read limit is the bar: smaller caches are dominated by the fixed cost of a launch.
LARGE_BYTES = 256_000_000

COLUMNS = (
    *("set", "shape", "KV MB", "read limit us", "goal us", "leanattn us", "+-%", "of limit"),
    *("best peer us", "which", "x best peer", "x fa3", "x no split"),
)


def median(shape: ShapeRecord, name: str) -> float | None:
    """Median microseconds of an implementation, None unless it was measured."""
    result = shape["results"].get(name, {})
    return result["median_us"] if result.get("status") == "ok" else None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or denominator is None else numerator / denominator


def best_peer(shape: ShapeRecord) -> tuple[float | None, str]:
    times = [(us, name) for name in PEER_NAMES if (us := median(shape, name)) is not None]
    return min(times) if times else (None, "-")


def goal(shape: ShapeRecord) -> float | None:
    """What the kernel is meant to reach: reading at 98% of the limit, and 1.5 us for all else."""
    limit = median(shape, READ_LIMIT)
    return None if limit is None else 1.02 * limit + 1.5


def share_of_limit(shape: ShapeRecord) -> float | None:
    return ratio(median(shape, READ_LIMIT), median(shape, LEANATTN))


def speed_up(shape: ShapeRecord, name: str) -> float | None:
    return ratio(median(shape, name), median(shape, LEANATTN))


def speed_up_over_best(shape: ShapeRecord) -> float | None:
    return ratio(best_peer(shape)[0], median(shape, LEANATTN))


def spread(shape: ShapeRecord) -> float | None:
    """Largest distance of a replay of leanattn from its median, in percent."""
    us = median(shape, LEANATTN)
    result = shape["results"].get(LEANATTN, {})
    return None if us is None else 100.0 * max(us - result["min_us"], result["max_us"] - us) / us


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def microseconds(value: float | None) -> str:
    return number(value, 1 if value is None or value >= 10.0 else 2)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100.0 * value:.0f}%"


def row(shape: ShapeRecord) -> tuple[str, ...]:
    peer_us, peer = best_peer(shape)
    return (
        shape["set"],
        shape["name"],
        number(shape["kv_bytes"] / 1e6, 1),
        microseconds(median(shape, READ_LIMIT)),
        microseconds(goal(shape)),
        microseconds(median(shape, LEANATTN)),
        number(spread(shape), 1),
        percent(share_of_limit(shape)),
        microseconds(peer_us),
        peer,
        number(speed_up_over_best(shape), 2),
        number(speed_up(shape, FA3), 2),
        number(speed_up(shape, NO_SPLIT), 2),
    )


def table(shapes: list[ShapeRecord], markdown: bool) -> list[str]:
    rows = [COLUMNS, *(row(shape) for shape in shapes)]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(COLUMNS))]
    text_columns = {COLUMNS.index(name) for name in ("set", "shape", "which")}

    def line(cells: tuple[str, ...]) -> str:
        padded = [
            cell.ljust(width) if i in text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    rules = tuple(
        "-" * width if i in text_columns else "-" * (width - 1) + (":" if markdown else "-")
        for i, width in enumerate(widths)
    )
    return [line(rows[0]), line(rules), *map(line, rows[1:])]


def geometric_mean(values: list[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def speed_up_totals(shapes: list[ShapeRecord]) -> list[str]:
    lines = []
    for over, speed_up_of in (
        ("the best peer", speed_up_over_best),
        (FA3, lambda shape: speed_up(shape, FA3)),
        ("no split", lambda shape: speed_up(shape, NO_SPLIT)),
    ):
        known = [(value, shape["name"]) for shape in shapes if (value := speed_up_of(shape)) is not None]
        if known:
            slower = [f"{name} ({value:.2f})" for value, name in sorted(known) if value < 1.0]
            mean, least = geometric_mean([value for value, _ in known]), min(known)[0]
            lines.append(
                f"Speed-up over {over}: {mean:.2f} in geometric mean of {len(known)} shapes, "
                f"least {least:.2f}; slower on {', '.join(slower) or 'none'}."
            )
    return lines


def share_totals(shapes: list[ShapeRecord]) -> list[str]:
    large = [shape for shape in shapes if shape["kv_bytes"] >= LARGE_BYTES]
    shares = [(share, shape["name"]) for shape in large if (share := share_of_limit(shape)) is not None]
    if not shares:
        return []
    least, where = min(shares)
    mean = geometric_mean([share for share, _ in shares])
    what = f"Share of the read limit at {LARGE_BYTES / 1e6:.0f} MB and more ({len(shares)} shapes)"
    return [f"{what}: {100.0 * mean:.1f}% in geometric mean, at least {100.0 * least:.1f}% ({where})."]


def not_measured(shapes: list[ShapeRecord]) -> list[str]:
    """Who was not measured where, and why: one line for an implementation and reason."""
    where = defaultdict(list)
    for shape in shapes:
        for name, result in shape["results"].items():
            if result["status"] != "ok":
                where[name, result["status"], result["detail"]].append(shape["name"])
            elif result.get("nan_reaches_output"):
                reason = "measured with zeros instead of NaN beyond the lengths, which reached its output"
                where[name, "note", reason].append(shape["name"])
    return [
        f"{name}: {status} on {'all' if len(names) == len(shapes) else ', '.join(names)}: {detail}"
        for (name, status, detail), names in where.items()
    ]


def environment(document: Document) -> list[str]:
    on = document["environment"]
    return [
        f"{on['gpu']}, {on['sms']} SMs, driver {on['driver']}; torch {on['torch']}, CUDA {on['cuda']}, "
        f"cuDNN {on['cudnn']}; commit {document['commit']}; {document['date']}",
        f"Made by: {document['command']}",
    ]


def render(document: Document, markdown: bool = False) -> str:
    shapes = document["shapes"]
    notes = speed_up_totals(shapes) + share_totals(shapes) + not_measured(shapes)
    if markdown:
        notes = [f"- {note}" for note in notes]
    return "\n".join([*environment(document), "", *table(shapes, markdown), "", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("path", type=Path, help="JSON written by benchmarks.decode")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table instead of a text table")
    args = parser.parse_args()
    print(render(json.loads(args.path.read_text()), args.markdown))


if __name__ == "__main__":
    main()
