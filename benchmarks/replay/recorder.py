"""Collects results in the document, saves it after each part of the run, and tells the progress."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import READ_LIMIT
from benchmarks.recorder import DocumentRecorder
from benchmarks.replay.estimates import measured_names, seconds
from benchmarks.replay.plan import Record
from benchmarks.results import Document
from benchmarks.supervisor import Step

# Of a result; the rest follows from the method and the bytes. Digits beyond six say nothing in a measurement.
WORDS, NUMBERS = ("status", "detail"), ("median_us", "min_us", "max_us", "row_error")
DIGITS = 6


def replay_name(replay: Record) -> str:
    return f"{replay['heads']} limit {replay['limit']}"


class Recorder(DocumentRecorder):
    """The parts of a run are its replays, and the read limit."""

    def __init__(self, document: Document, steps: Sequence[Step], path: Path | None) -> None:
        self.replays = {replay_name(replay): replay for replay in document["replays"]}
        parts = {name: replay["sampled"] for name, replay in self.replays.items()}
        parts[READ_LIMIT] = document["read_sizes"]
        self.records = {record["name"]: (part, record) for part, of in parts.items() for record in of}
        self.steps_left = Counter(self.records[step.shape][0] for step in steps)
        super().__init__(document, path, len(parts))

    def on_result(self, step: Step, result: dict[str, Any]) -> None:
        part, record = self.records[step.shape]
        record["results"][step.implementation] = {
            **{key: result[key] for key in WORDS if key in result},
            **{key: float(f"{result[key]:.{DIGITS}g}") for key in NUMBERS if key in result},
        }
        self.steps_left[part] -= 1
        if self.steps_left[part] == 0:
            self.save()  # not after each result: there are thousands, and the file is large
            self.progress.finish(part, outcomes(self.replays[part]) if part in self.replays else "")


def outcomes(replay: Record) -> str:
    totals = {name: seconds(replay, name) for name in measured_names(replay)}
    return ", ".join(f"{name} {total.value:.3f} s" for name, total in totals.items() if total is not None)
