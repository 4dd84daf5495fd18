"""Tables and totals from the JSON of benchmarks.decode: `python -m benchmarks.report PATH [--markdown]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.method import IN_MODEL
from benchmarks.peers import (
    FA3,
    FIXED_SPLIT,
    LEANATTN,
    NO_SPLIT,
    OWN_NO_SPLIT,
    PLAN,
    PROMISE,
    READ_LIMIT,
    STEP,
)
from benchmarks.results import (
    Document,
    ShapeRecord,
    best_peer,
    goal,
    median,
    over_goal,
    speed_up,
    speed_up_over_best,
    splits,
    spread,
    time_per_byte_ratio,
    twins,
)
from benchmarks.tables import Row, microseconds, number, table
from benchmarks.totals import SET_COLUMNS, all_totals, set_rows

TEXT_COLUMNS = ("set", "shape", "which")

SPEED_UP_DIGITS = 2


def back_to_back_row(shape: ShapeRecord) -> Row:
    peer_us, peer = best_peer(shape)
    return (
        shape["set"],
        shape["name"],
        number(shape["kv_bytes"] / 1e6, 1),
        microseconds(median(shape, READ_LIMIT)),
        microseconds(goal(shape)),
        microseconds(median(shape, LEANATTN)),
        number(spread(shape, LEANATTN), 1),
        number(over_goal(shape, LEANATTN), 1),
        microseconds(median(shape, PLAN)),
        microseconds(median(shape, PROMISE)),
        microseconds(peer_us),
        peer,
        number(speed_up_over_best(shape), SPEED_UP_DIGITS),
        number(speed_up_over_best(shape, PLAN), SPEED_UP_DIGITS),
        number(speed_up_over_best(shape, PROMISE), SPEED_UP_DIGITS),
        number(speed_up(shape, FA3), SPEED_UP_DIGITS),
        number(speed_up(shape, NO_SPLIT), SPEED_UP_DIGITS),
    )


def in_model_row(shape: ShapeRecord) -> Row:
    peer_us, peer = best_peer(shape, IN_MODEL)
    return (
        shape["set"],
        shape["name"],
        microseconds(median(shape, STEP)),
        microseconds(median(shape, LEANATTN, IN_MODEL)),
        microseconds(median(shape, PLAN, IN_MODEL)),
        microseconds(median(shape, PROMISE, IN_MODEL)),
        microseconds(peer_us),
        peer,
        number(speed_up_over_best(shape, LEANATTN, IN_MODEL), SPEED_UP_DIGITS),
        number(speed_up_over_best(shape, PLAN, IN_MODEL), SPEED_UP_DIGITS),
        number(speed_up_over_best(shape, PROMISE, IN_MODEL), SPEED_UP_DIGITS),
        number(speed_up(shape, FA3, LEANATTN, IN_MODEL), SPEED_UP_DIGITS),
    )


def decomposition_row(shape: ShapeRecord) -> Row:
    return (
        shape["set"],
        shape["name"],
        microseconds(median(shape, PLAN)),
        microseconds(median(shape, FIXED_SPLIT)),
        number(splits(shape), 0),
        number(speed_up(shape, FIXED_SPLIT, PLAN), SPEED_UP_DIGITS),
        microseconds(median(shape, OWN_NO_SPLIT)),
        number(speed_up(shape, OWN_NO_SPLIT, PLAN), SPEED_UP_DIGITS),
    )


def twin_row(shape: ShapeRecord, twin: ShapeRecord) -> Row:
    return (
        shape["set"],
        shape["name"],
        number(shape["kv_bytes"] / 1e6, 1),
        microseconds(median(shape, LEANATTN)),
        microseconds(median(twin, LEANATTN)),
        number(time_per_byte_ratio(shape, twin, LEANATTN), 3),
        number(time_per_byte_ratio(shape, twin, FA3), 3),
    )


@dataclass(frozen=True)
class Section:
    title: str
    columns: Row
    rows: Callable[[Sequence[ShapeRecord]], list[Row]]


SECTIONS = (
    Section("Speed-ups by set, geometric means", SET_COLUMNS, set_rows),
    Section(
        "Back to back",
        (
            *("set", "shape", "KV MB", "read limit us", "goal us", "leanattn us", "+-%", "over goal us"),
            *("plan us", "promise us", "best peer us", "which", "x best peer", "(plan)", "(promise)"),
            *("x fa3", "x fa3 no split"),
        ),
        lambda shapes: list(map(back_to_back_row, shapes)),
    ),
    Section(
        "In a model",
        (
            *("set", "shape", "step us", "leanattn us", "plan us", "promise us", "best peer us", "which"),
            *("x best peer", "(plan)", "(promise)", "x fa3"),
        ),
        lambda shapes: list(map(in_model_row, shapes)),
    ),
    Section(
        "Decompositions in the same kernel, back to back",
        (
            *("set", "shape", "lean us (plan)", "fixed split us", "splits", "x fixed split"),
            *("no split us", "x no split"),
        ),
        lambda shapes: list(map(decomposition_row, shapes)),
    ),
    Section(
        "Ragged batches beside uniform ones of the same bytes",
        ("set", "shape", "KV MB", "ragged us", "uniform us", "time per byte", "time per byte, fa3"),
        lambda shapes: [twin_row(*pair) for pair in twins(shapes)],
    ),
)


def environment(document: Document) -> list[str]:
    on = document["environment"]
    lines = [
        f"{on['gpu']}, {on['sms']} SMs, driver {on['driver']}; torch {on['torch']}, CUDA {on['cuda']}, "
        f"cuDNN {on['cudnn']}; commit {document['commit']}; {document['date']}"
    ]
    if "max_sm_clock" in on:  # the first records do not say so much
        packages = [f"{name} {version}" for name, version in on["packages"].items() if version is not None]
        lines.append(
            f"SM clock up to {on['max_sm_clock']} MHz, memory {on['max_memory_clock']} MHz, ECC {on['ecc']}; "
            f"nvcc {on['nvcc']}; {on['cpu']}; {', '.join(packages)}"
        )
    return [*lines, f"Made by: {document['command']}"]


def render(document: Document, markdown: bool = False) -> str:
    shapes = document["shapes"]
    lines = environment(document)
    for section in SECTIONS:
        if rows := section.rows(shapes):
            title = f"### {section.title}" if markdown else section.title
            lines += ["", title, "", *table(section.columns, rows, TEXT_COLUMNS, markdown)]
    notes = all_totals(shapes)
    return "\n".join([*lines, "", *(f"- {note}" if markdown else note for note in notes)])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("path", type=Path, help="JSON written by benchmarks.decode")
    parser.add_argument("--markdown", action="store_true", help="Markdown tables instead of text tables")
    return parser


def main() -> None:
    args = parser().parse_args()
    print(render(json.loads(args.path.read_text()), args.markdown))


if __name__ == "__main__":
    main()
