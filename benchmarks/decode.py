"""Times decode attention on a GPU, beside its peers and the read limit: `python -m benchmarks.decode`."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import method
from benchmarks.peers import COMPARED_NAMES, IMPLEMENTATIONS, OUR_NAMES, READ_LIMIT, STEP
from benchmarks.recorder import Recorder, shape_record
from benchmarks.report import render
from benchmarks.results import Document
from benchmarks.run import run
from benchmarks.sets import SET_NAMES, select
from benchmarks.shapes import Shape
from benchmarks.supervisor import Step


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few shapes of each set")
    sets, peers = ", ".join(SET_NAMES), ", ".join(COMPARED_NAMES)
    parser.add_argument("--set", nargs="+", choices=SET_NAMES, metavar="NAME", help=f"default: {sets}")
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=COMPARED_NAMES,
        metavar="NAME",
        help=f"what is measured beside {', '.join(OUR_NAMES)}; default: {peers}",
    )
    parser.add_argument("--dtype", choices=tuple(method.ELEMENT_BYTES), default="bf16")
    trace_help = "requests for the set `trace`, CSV: TIMESTAMP,ContextTokens,GeneratedTokens"
    parser.add_argument("--trace", metavar="FILE", help=trace_help)
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the results, kept up to date")
    parser.add_argument("--commit", help="the commit that is measured, if git can't tell here")
    return parser


def command_line(args: argparse.Namespace) -> str:
    """The command without what only says where files are."""
    words = ["python", "-m", "benchmarks.decode"]
    words += ["--quick"] if args.quick else []
    words += ["--set", *args.set] if args.set is not None else []
    words += ["--peers", *args.peers] if args.peers is not None else []
    words += ["--dtype", args.dtype]
    words += ["--trace", Path(args.trace).name] if args.trace is not None else []
    return shlex.join(words)


def commit_here() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = Path(__file__).parent
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, cwd=here).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run_worker(
    connection: Connection, steps: Sequence[Step], shapes: Sequence[Shape], dtype: str, folder: Path
) -> None:
    from benchmarks.worker import run_steps  # only that process needs the GPU

    run_steps(connection, steps, shapes, dtype, folder)


def leanattn_is_sound(document: Document) -> bool:
    results = [shape["results"].get(name, {}) for shape in document["shapes"] for name in OUR_NAMES]
    return all(result.get("status") == "ok" and not result["nan_reaches_output"] for result in results)


def main(argv: Sequence[str] | None = None) -> int:
    command = parser()
    args = command.parse_args(argv)
    try:
        shapes = select(args.set, args.quick, args.trace)
    except (OSError, ValueError) as error:  # of the trace
        command.error(str(error))
    compared = [name for name in COMPARED_NAMES if args.peers is None or name in args.peers]
    names = [*OUR_NAMES, *compared]
    steps = [Step(shape.name, name) for shape in shapes for name in (READ_LIMIT, STEP, *names)]
    document: Document = {
        "command": command_line(args),
        "commit": args.commit or commit_here(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "method": method.describe(args.dtype),
        "implementations": {name: IMPLEMENTATIONS[name].what for name in names},
        "environment": {},
        "shapes": [shape_record(shape, args.dtype) for shape in shapes],
    }
    recorder = Recorder(document, steps, args.json)
    run("benchmarks.decode", partial(run_worker, shapes=shapes, dtype=args.dtype), steps, recorder, render)
    return 0 if leanattn_is_sound(document) else 1


if __name__ == "__main__":
    sys.exit(main())
