"""Tables from the JSON of benchmarks.replay: `python -m benchmarks.replay.report PATH [--markdown]`."""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import LEANATTN, PROMISE
from benchmarks.replay.estimates import (
    SpeedUp,
    best_peer,
    measured_names,
    seconds,
    share_of_limit,
    speed_up,
)
from benchmarks.replay.plan import Record
from benchmarks.replay.recorder import replay_name
from benchmarks.replay.sampling import Estimate
from benchmarks.report import environment
from benchmarks.results import Document
from benchmarks.tables import Row, number, percent, table

SPEED_UP_COLUMNS = ("x", "+-", "p10", "p50", "p90", "least")
TOTAL_COLUMNS = (
    *("heads", "limit", "steps", "measured", "KV MB", "leanattn s", "+-%", "of limit"),
    *("best peer s", "which", *SPEED_UP_COLUMNS, "x (promise)"),
)
OTHER_COLUMNS = ("heads", "limit", "implementation", "s", "+-%", *SPEED_UP_COLUMNS)
TEXT_COLUMNS = ("heads", "which", "implementation")


def seconds_cells(total: Estimate | None) -> Row:
    """The total, and its standard error in percent."""
    if total is None:
        return "-", "-"
    return number(total.value, 3), number(100 * total.standard_error / total.value, 1)


def speed_up_cells(over: SpeedUp | None) -> Row:
    if over is None:
        return ("-",) * len(SPEED_UP_COLUMNS)
    spread = (over.deciles[0], over.deciles[4], over.deciles[8], over.least)
    total = number(over.total.value, 3), number(over.total.standard_error, 3)
    return *total, *(number(value, 2) for value in spread)


def total_row(replay: Record, document: Document) -> Row:
    peer = best_peer(replay)
    over = None if peer is None else speed_up(replay, peer)
    over_with_promise = None if peer is None else speed_up(replay, peer, PROMISE)
    share = share_of_limit(replay, document["read_sizes"])
    return (
        replay["heads"],
        str(replay["limit"]),
        str(replay["steps"]),
        str(len(replay["sampled"])),
        number(replay["kv_bytes"] / replay["steps"] / 1e6, 1),
        *seconds_cells(seconds(replay, LEANATTN)),
        percent(None if share is None else share.value),
        seconds_cells(None if peer is None else seconds(replay, peer))[0],
        peer or "-",
        *speed_up_cells(over),
        speed_up_cells(over_with_promise)[0],
    )


def other_rows(replay: Record) -> list[Row]:
    return [
        (
            *(replay["heads"], str(replay["limit"]), name),
            *seconds_cells(seconds(replay, name)),
            *speed_up_cells(speed_up(replay, name)),
        )
        for name in measured_names(replay)
        if name != LEANATTN
    ]


def summary(document: Document) -> list[str]:
    over_best = [
        (over, replay)
        for replay in document["replays"]
        if (peer := best_peer(replay)) is not None and (over := speed_up(replay, peer)) is not None
    ]
    if not over_best:
        return []
    total, replay = min(((over.total.value, replay) for over, replay in over_best), key=lambda pair: pair[0])
    worst, step = min(((over.least, over.least_at) for over, _ in over_best), key=lambda pair: pair[0])
    return [
        f"Speed-up over the best peer of a replay: at least {total:.3f} in total ({replay_name(replay)}).",
        f"Of a single step: at least {worst:.2f} ({step['name']}: batch {step['batch']}, longest "
        f"{step['max_tokens']} tokens, KV {step['kv_bytes'] / 1e6:.1f} MB).",
    ]


def sampling_notes(document: Document) -> list[str]:
    not_full = {
        str(replay["limit"]): replay["steps"] - replay["full_steps"] for replay in document["replays"]
    }
    limits = ", ".join(f"{steps} at limit {limit}" for limit, steps in not_full.items())
    return [
        f"{document['requests']} requests of {document['source']}, {document['generated_tokens']} generated "
        f"tokens. Steps with a batch below the limit, at the end: {limits}.",
        "Seconds are attention time of one layer over all steps, estimated from the measured ones; +- is the "
        "standard error of that. x is the other's total / leanattn's; p10, p50, p90 and least are of steps.",
    ]


def not_measured(document: Document) -> list[str]:
    """Who was not measured where, and why: one line for an implementation and reason."""
    where: defaultdict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)  # how often in which part
    parts = [(replay_name(replay), replay["sampled"]) for replay in document["replays"]]
    for part, records in [("read limit", document["read_sizes"]), *parts]:
        for record in records:
            for name, result in record["results"].items():
                if result["status"] != "ok":
                    where[name, result["status"], result["detail"]][part] += 1
    return [
        f"{name}: {status} on {counts.total()} steps ({', '.join(counts)}): {detail}"
        for (name, status, detail), counts in where.items()
    ]


def render(document: Document, markdown: bool = False) -> str:
    replays = document["replays"]
    sections = (
        ("Totals", TOTAL_COLUMNS, [total_row(replay, document) for replay in replays]),
        (
            "Every other implementation",
            OTHER_COLUMNS,
            [row for replay in replays for row in other_rows(replay)],
        ),
    )
    lines = environment(document)
    for title, columns, rows in sections:
        lines += ["", f"### {title}" if markdown else title, ""]
        lines += table(columns, rows, TEXT_COLUMNS, markdown)
    notes = summary(document) + sampling_notes(document) + not_measured(document)
    return "\n".join([*lines, "", *(f"- {note}" if markdown else note for note in notes)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay.report", description=__doc__)
    parser.add_argument("path", type=Path, help="JSON written by benchmarks.replay")
    parser.add_argument("--markdown", action="store_true", help="Markdown tables instead of text tables")
    args = parser.parse_args(argv)
    print(render(json.loads(args.path.read_text()), args.markdown))


if __name__ == "__main__":
    main()
