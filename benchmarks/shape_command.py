"""A benchmark command that measures some shapes, one after the other, and prints a table."""

import argparse
import json
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import method
from benchmarks.decode import commit_here
from benchmarks.environment import environment
from benchmarks.measure import ShapeBench, Wrong, checked_error, time_on_gpu
from benchmarks.shapes import SHAPES
from benchmarks.tables import table
from benchmarks.timing import Call

# Of every kind: small and large, few heads and many, uniform and ragged.
SHAPE_NAMES = (
    *("llama8b B1 1k", "llama8b B1 16k", "llama8b B8 8k", "llama8b B32 4k", "llama8b B128 1k"),
    *("70b/tp8 B16 8k", "mha32 B1 64k", "mha32 d64 B4 16k", "llama8b short B256", "llama8b lognormal B32"),
)

USUAL_SHAPES = tuple(shape for shape in SHAPES if shape.name in SHAPE_NAMES)

Record = dict[str, Any]  # of a shape, or of a timing


def median_us(timed: Callable[[], Record]) -> float | None:
    """Microseconds of a call; None if it is wrong."""
    try:
        return float(timed()["median_us"])
    except Wrong:
        return None


def time(bench: ShapeBench, calls: list[Call]) -> float | None:
    """The median of calls that the bench knows the result of."""
    return median_us(partial(bench.time_calls, calls, bench.kv_bytes, bench.check))


def time_against(expected: Tensor, calls: list[Call], kv_bytes: int) -> float | None:
    """The median of calls in bfloat16 that return this, back to back."""
    check = partial(checked_error, expected=expected, tolerance=method.TOLERANCE["bf16"])
    return median_us(partial(time_on_gpu, calls, kv_bytes, check))


class ShapeCommand(NamedTuple):
    name: str  # python -m name
    text: str  # for --help
    columns: Sequence[str]
    measure: Callable[[Any], Record]  # of one of the shapes
    row: Callable[[Record], Sequence[str]]
    shapes: Sequence[Any] = USUAL_SHAPES  # which have a name

    def parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"python -m {self.name}", description=self.text)
        names = [shape.name for shape in self.shapes]
        parser.add_argument("--shape", nargs="+", choices=names, default=names, metavar="NAME")
        parser.add_argument("--json", type=Path, metavar="PATH", help="file for the results")
        parser.add_argument("--commit", help="the commit that is measured, if git can't tell here")
        parser.add_argument(
            "--render", type=Path, metavar="PATH", help="only the table of such a file, as Markdown"
        )
        return parser

    def render(self, document: Record, markdown: bool) -> str:
        rows = [tuple(self.row(shape)) for shape in document["shapes"]]
        env = document["environment"]
        head = f"{env['gpu']}; torch {env['torch']}; commit {document['commit'][:7]}; {document['date']}"
        lines = table(tuple(self.columns), rows, tuple(self.columns[:1]), markdown)
        return "\n".join([head, f"Made by: python -m {self.name}", "", *lines])

    def run(self) -> None:
        args = self.parser().parse_args()
        if args.render is not None:
            print(self.render(json.loads(args.render.read_text()), markdown=True))
            return
        torch.manual_seed(0)
        document: Record = {
            "commit": args.commit or commit_here(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "environment": environment(),
            "shapes": [],
        }
        for shape in self.shapes:
            if shape.name in args.shape:
                document["shapes"].append(self.measure(shape))
                torch.cuda.empty_cache()
                if args.json is not None:
                    args.json.write_text(json.dumps(document, indent=1) + "\n")
        print(self.render(document, markdown=False))
