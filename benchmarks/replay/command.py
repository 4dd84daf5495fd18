"""Sums the attention time of all decode steps of a trace of requests: `python -m benchmarks.replay`."""

import argparse
import itertools
import random
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import method
from benchmarks.decode import commit_here
from benchmarks.peers import COMPARED_NAMES, IMPLEMENTATIONS, LEANATTN, OUR_NAMES, PEER_NAMES, READ_LIMIT
from benchmarks.replay.estimates import seconds
from benchmarks.replay.plan import DTYPE, Plan
from benchmarks.replay.recorder import Recorder
from benchmarks.replay.report import render
from benchmarks.results import Document
from benchmarks.run import run
from benchmarks.shapes import HEADS, Shape
from benchmarks.supervisor import Step
from leanattn.lengths import CONVERSATIONS, Request, read_trace, sample_requests

# Of a replay. With 48, totals have standard errors of some tenths of a percent, like the timing itself.
STEPS, QUICK_STEPS = 48, 6
BATCH_LIMITS = (16, 64, 256)
HEAD_NAMES = ("llama8b", "70b/tp8")  # eight KV heads and one

FALLBACK_REQUESTS = 19_366  # as many as in the trace that the distribution was fitted to
FALLBACK_SEED = 0

RAGGED_PEERS = tuple(name for name in PEER_NAMES if IMPLEMENTATIONS[name].ragged)
COMPARED = tuple(name for name in COMPARED_NAMES if IMPLEMENTATIONS[name].ragged)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    trace_help = "CSV: TIMESTAMP,ContextTokens,GeneratedTokens; default: requests like real conversations"
    parser.add_argument("--trace", metavar="FILE", help=trace_help)
    steps_help = f"measured steps of a replay; default: {STEPS}, with --quick {QUICK_STEPS}"
    parser.add_argument("--steps", type=positive, metavar="N", help=steps_help)
    limits_help = f"default: {' '.join(map(str, BATCH_LIMITS))}"
    parser.add_argument("--batch", nargs="+", type=positive, metavar="LIMIT", help=limits_help)
    heads_help = f"of {', '.join(HEADS)}; default: {', '.join(HEAD_NAMES)}"
    parser.add_argument("--heads", nargs="+", choices=HEADS, metavar="NAME", help=heads_help)
    parser.set_defaults(batch=list(BATCH_LIMITS), heads=list(HEAD_NAMES))
    peers_help = f"of {', '.join(COMPARED)}; default: {', '.join(RAGGED_PEERS)}"
    parser.add_argument("--peers", nargs="*", choices=COMPARED, metavar="NAME", help=peers_help)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the results, kept up to date")
    parser.add_argument("--commit", help="the commit that is measured, if git can't tell here")
    return parser


def command_line(args: argparse.Namespace) -> str:
    """The command without what only says where files are."""
    words = ["python", "-m", "benchmarks.replay"]
    words += ["--trace", Path(args.trace).name] if args.trace is not None else []
    words += ["--steps", str(args.steps), "--batch", *map(str, args.batch), "--heads", *args.heads]
    words += ["--peers", *args.peers] if args.peers is not None else []
    return shlex.join(words)


def requests_of(trace: str | None) -> tuple[list[Request], str]:
    """The requests, and words for where they come from."""
    if trace is not None:
        return read_trace(trace), f"trace {Path(trace).name}"
    requests = sample_requests(CONVERSATIONS, FALLBACK_REQUESTS, random.Random(FALLBACK_SEED))
    return requests, "a distribution fitted to real conversations"


def plan_of(requests: Sequence[Request], args: argparse.Namespace) -> Plan:
    plan = Plan()
    for heads_name, limit in itertools.product(dict.fromkeys(args.heads), dict.fromkeys(args.batch)):
        plan.add_replay(requests, heads_name, limit, args.steps)
    plan.add_read_sizes()
    return plan


def steps_of(plan: Plan, names: Sequence[str]) -> list[Step]:
    """The read limit first, while the caches do not take their memory yet."""
    reads = [Step(record["name"], READ_LIMIT) for record in plan.read_sizes]
    sampled = [record["name"] for replay in plan.replays for record in replay["sampled"]]
    return reads + [Step(shape_name, name) for shape_name in sampled for name in names]


def new_document(args: argparse.Namespace, requests: Sequence[Request], source: str, plan: Plan) -> Document:
    peers = RAGGED_PEERS if args.peers is None else args.peers
    names = [*OUR_NAMES, *(name for name in COMPARED if name in peers)]
    how = method.describe(DTYPE) | {"inputs": "standard normal, also beyond the lengths"}
    del how[method.IN_MODEL]  # calls are only timed back to back
    return {
        "command": command_line(args),
        "commit": args.commit or commit_here(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "method": how,
        "implementations": {name: IMPLEMENTATIONS[name].what for name in names},
        "environment": {},
        "source": source,
        "requests": len(requests),
        "generated_tokens": sum(request.generated for request in requests),
        "read_sizes": plan.read_sizes,
        "replays": plan.replays,
    }


def run_worker(
    connection: Connection, steps: Sequence[Step], shapes: Mapping[str, Shape], folder: Path
) -> None:
    from benchmarks.replay.worker import run_steps  # only that process needs the GPU

    run_steps(connection, steps, shapes, folder)


def main(argv: Sequence[str] | None = None) -> int:
    command = parser()
    args = command.parse_args(argv)
    args.steps = args.steps or (QUICK_STEPS if args.quick else STEPS)
    try:
        requests, source = requests_of(args.trace)
        plan = plan_of(requests, args)
    except (OSError, ValueError) as error:
        command.error(str(error))
    document = new_document(args, requests, source, plan)
    steps = steps_of(plan, list(document["implementations"]))
    recorder = Recorder(document, steps, args.json)
    run("benchmarks.replay", partial(run_worker, shapes=plan.shapes), steps, recorder, render)
    return 0 if all(seconds(replay, LEANATTN) is not None for replay in document["replays"]) else 1
