"""Times decode attention on a GPU, beside its peers and the read limit: `python -m benchmarks.decode`."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import method
from benchmarks.peers import IMPLEMENTATIONS, LEANATTN, PEER_NAMES, READ_LIMIT
from benchmarks.report import Document, ShapeRecord, render
from benchmarks.shapes import SET_NAMES, Shape, select
from benchmarks.supervisor import Step, Supervisor, WorkerFailed


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few shapes of each set")
    sets, peers = ", ".join(SET_NAMES), ", ".join(PEER_NAMES)
    parser.add_argument("--set", nargs="+", choices=SET_NAMES, metavar="NAME", help=f"default: {sets}")
    parser.add_argument("--peers", nargs="*", choices=PEER_NAMES, metavar="NAME", help=f"default: {peers}")
    parser.add_argument("--dtype", choices=tuple(method.ELEMENT_BYTES), default="bf16")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the results, kept up to date")
    parser.add_argument("--commit", help="the commit that is measured, if git can't tell here")
    return parser.parse_args(argv)


def command_line(args: argparse.Namespace) -> str:
    """The command without what only says where the results go."""
    words = ["python", "-m", "benchmarks.decode"]
    words += ["--quick"] if args.quick else []
    words += ["--set", *args.set] if args.set is not None else []
    words += ["--peers", *args.peers] if args.peers is not None else []
    words += ["--dtype", args.dtype]
    return shlex.join(words)


def commit_here() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = Path(__file__).parent
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, cwd=here).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def shape_record(shape: Shape, dtype: str) -> ShapeRecord:
    kv_bytes = shape.kv_bytes(method.ELEMENT_BYTES[dtype])
    return {
        "set": shape.set_name,
        "name": shape.name,
        "batch": shape.batch,
        "query_heads": shape.heads.query,
        "kv_heads": shape.heads.kv,
        "head_dim": shape.heads.dim,
        "lengths": list(shape.lengths) if shape.ragged else shape.max_tokens,
        "kv_bytes": kv_bytes,
        "copies": method.copies_for(kv_bytes),
        "results": {},
    }


class Recorder:
    """Collects results in the document, saves it after each, and prints a line for each finished shape."""

    def __init__(self, document: Document, steps: Sequence[Step], path: Path | None) -> None:
        self.document = document
        self.path = path
        self.shapes = {record["name"]: record for record in document["shapes"]}
        self.steps_left = {name: sum(step.shape == name for step in steps) for name in self.shapes}
        self.started = time.monotonic()

    def on_ready(self, environment: dict[str, Any]) -> None:
        self.document["environment"] = environment
        print(f"[{self._seconds():4.0f} s] worker ready on {environment['gpu']}", flush=True)

    def on_result(self, step: Step, result: dict[str, Any]) -> None:
        record = self.shapes[step.shape]
        record["results"][step.implementation] = result
        self.save()
        self.steps_left[step.shape] -= 1
        if self.steps_left[step.shape] == 0:
            self._print_progress(record)

    def save(self) -> None:
        if self.path is not None:
            draft = self.path.with_name(self.path.name + ".part")
            draft.write_text(json.dumps(self.document, indent=1) + "\n")
            os.replace(draft, self.path)  # whoever reads it, or stops us, finds a whole file

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _print_progress(self, record: ShapeRecord) -> None:
        done = sum(left == 0 for left in self.steps_left.values())
        words = [f"[{self._seconds():4.0f} s, {done}/{len(self.shapes)}]", record["name"]]
        for name, result in record["results"].items():
            outcome = f"{result['median_us']:.1f}" if result["status"] == "ok" else result["status"]
            words.append(f" {name} {outcome}")
        print(*words, flush=True)


def run_worker(connection: Connection, steps: Sequence[Step], dtype: str, folder: Path) -> None:
    from benchmarks.worker import run_steps  # imports torch, which only the worker needs

    run_steps(connection, steps, dtype, folder)


def leanattn_is_sound(document: Document) -> bool:
    results = [shape["results"].get(LEANATTN, {}) for shape in document["shapes"]]
    return all(result.get("status") == "ok" and not result["nan_reaches_output"] for result in results)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    shapes = select(args.set, args.quick)
    names = [READ_LIMIT, LEANATTN, *(name for name in PEER_NAMES if args.peers is None or name in args.peers)]
    steps = [Step(shape.name, name) for shape in shapes for name in names]
    document: Document = {
        "command": command_line(args),
        "commit": args.commit or commit_here(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "method": method.describe(args.dtype),
        "implementations": {name: IMPLEMENTATIONS[name].what for name in names if name != READ_LIMIT},
        "environment": {},
        "shapes": [shape_record(shape, args.dtype) for shape in shapes],
    }
    recorder = Recorder(document, steps, args.json)
    with tempfile.TemporaryDirectory() as folder:
        worker = partial(run_worker, dtype=args.dtype, folder=Path(folder))
        try:
            Supervisor(worker, recorder.on_result, recorder.on_ready).run(steps)
        except WorkerFailed as error:
            print(f"benchmarks.decode: {error}", file=sys.stderr)
    if document["environment"]:  # absent if no worker could start
        print(render(document))
    return 0 if leanattn_is_sound(document) else 1


if __name__ == "__main__":
    sys.exit(main())
