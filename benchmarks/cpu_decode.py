"""Times decode attention on the CPU beside torch SDPA and a plain read: `python -m benchmarks.cpu_decode`.

Bandwidths count K and V of the tokens that a call reads, once. For every shape and dtype the output is first
compared with float64. Then all implementations are timed in turn, again and again, over copies of the cache
that together are larger than a CPU's own caches, and medians are taken. SDPA gets K and V in both layouts;
the faster one counts.
"""

import argparse
import itertools
import json
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import leanattn
from benchmarks.case import Case, reference, row_error
from benchmarks.decode import commit_here
from benchmarks.environment import cpu_name
from benchmarks.method import TOLERANCE, copies_for
from benchmarks.shapes import K, Shape, ragged, uniform

SHAPES = (
    uniform("uniform", "llama8b", 8, 4 * K, quick=True),
    uniform("uniform", "llama8b", 1, 16 * K, quick=True),
    uniform("uniform", "llama8b", 32, 512),
    uniform("uniform", "70b/tp8", 8, 8 * K),
    uniform("uniform", "gqa16", 4, 4 * K),
    uniform("uniform", "mha32", 4, 2 * K, quick=True),
    uniform("uniform", "mha32 d64", 4, 4 * K),
    ragged("ragged", "llama8b", "1x16k+15x512", (16 * K,) + (512,) * 15, quick=True),
    ragged("ragged", "llama8b", "128 of 1..511", tuple(1 + i * 173 % 511 for i in range(128))),
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Largest accepted error of a row; of float32 some hundred roundings.
TOLERANCES = TOLERANCE | {"fp32": 1e-5}

REPEATS, QUICK_REPEATS = 15, 5

LEANATTN, READ = "leanattn", "read"
SDPA = ("sdpa [batch, tokens, heads, dim]", "sdpa [batch, heads, tokens, dim]")

Record = dict[str, Any]  # of one shape and dtype
Calls = list[Callable[[], Tensor]]  # one for each copy of the cache


def sdpa(case: Case, heads_first: bool) -> Calls:
    """Where the lengths differ, a call for each sequence, so that nothing is padded."""

    def attend(k: list[Tensor], v: list[Tensor]) -> Tensor:
        q = case.q[:, :, None]  # [batch, query heads, 1, head_dim]
        if not case.shape.ragged:
            return scaled_dot_product_attention(q, k[0], v[0], enable_gqa=True)
        parts = (
            scaled_dot_product_attention(q[i : i + 1], k[i], v[i], enable_gqa=True) for i in range(len(k))
        )
        return torch.cat(list(parts))

    def heads_then_tokens(cache: Tensor) -> list[Tensor]:
        """[batch or 1, kv heads, tokens, head_dim], one for all sequences or one each."""
        if not case.shape.ragged:
            parts = [cache]
        else:
            parts = [cache[i : i + 1, :tokens] for i, tokens in enumerate(case.shape.lengths)]
        views = [part.transpose(1, 2) for part in parts]
        return [view.contiguous() for view in views] if heads_first else views

    copies = [(heads_then_tokens(k), heads_then_tokens(v)) for k, v in zip(case.k, case.v, strict=True)]
    return [partial(attend, k, v) for k, v in copies]


def decode(case: Case) -> Calls:
    copies = zip(case.k, case.v, strict=True)
    return [partial(leanattn.decode, case.q, k, v, case.seqlens) for k, v in copies]


def read(kv_bytes: int) -> Calls:
    """A reduction over as many bytes, by all threads: torch's largest integer of them."""
    buffers = [torch.ones(kv_bytes // 8, dtype=torch.int64) for _ in range(copies_for(kv_bytes))]
    return [buffer.amax for buffer in buffers]


def seconds(implementations: dict[str, Calls], repeats: int) -> dict[str, list[float]]:
    """Times of single calls. Everybody in turn, so that whatever else the machine does meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in implementations}
    for repeat in range(repeats):
        for name, calls in implementations.items():
            call = calls[repeat % len(calls)]
            begin = time.perf_counter()
            call()
            times[name].append(round(time.perf_counter() - begin, 7))
    return times


def measure(shape: Shape, dtype: str, repeats: int) -> Record:
    torch.manual_seed(0)
    case = Case.random(shape, DTYPES[dtype], "cpu")
    kv_bytes = shape.kv_bytes(DTYPES[dtype].itemsize)
    implementations = {
        LEANATTN: decode(case),
        SDPA[0]: sdpa(case, heads_first=False),
        SDPA[1]: sdpa(case, heads_first=True),
        READ: read(kv_bytes),
    }
    expected = reference(case)
    errors = {name: row_error(implementations[name][0](), expected) for name in (LEANATTN, *SDPA)}
    if not errors[LEANATTN] <= TOLERANCES[dtype]:
        raise SystemExit(
            f"{shape.name} {dtype}: error {errors[LEANATTN]:.1e}, accepted {TOLERANCES[dtype]:.1e}"
        )
    times = seconds(implementations, repeats)
    return {
        "name": shape.name,
        "dtype": dtype,
        "query_heads": shape.heads.query,
        "kv_heads": shape.heads.kv,
        "head_dim": shape.heads.dim,
        "lengths": list(shape.lengths),
        "kv_bytes": kv_bytes,
        "copies": len(case.k),
        "row_errors": errors,
        "seconds": times,
    }


def bandwidth(record: Record, name: str) -> float:
    """GB/s of the median call."""
    times: list[float] = record["seconds"][name]
    return float(record["kv_bytes"]) / 1e9 / statistics.median(times)


COLUMNS = "{:24} {:5} {:>6} {:>13} {:>9} {:>8} {:>9} {:>5}"
HEADER = ("shape", "dtype", "KV MB", "leanattn GB/s", "SDPA GB/s", "speed-up", "read GB/s", "share")


def row(record: Record) -> tuple[str, ...]:
    ours, limit = bandwidth(record, LEANATTN), bandwidth(record, READ)
    peer = max(bandwidth(record, name) for name in SDPA)
    numbers = f"{ours:.1f}", f"{peer:.1f}", f"{ours / peer:.1f}x", f"{limit:.1f}", f"{ours / limit:.0%}"
    return record["name"], record["dtype"], f"{record['kv_bytes'] / 1e6:.0f}", *numbers


def environment() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "LEANATTN_CPU_ISA": os.environ.get("LEANATTN_CPU_ISA"),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "leanattn": leanattn.__version__,
    }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_decode", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="a few shapes, fewer repeats")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--repeats", type=int, help=f"default: {REPEATS}, with --quick {QUICK_REPEATS}")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the results")
    parser.add_argument("--show", type=Path, metavar="PATH", help="only print the table of such a file")
    return parser


def command_line(args: argparse.Namespace) -> str:
    """The command without what only says where the results go."""
    words = ["python", "-m", "benchmarks.cpu_decode", "--dtype", *args.dtype]
    words += ["--quick"] if args.quick else []
    words += ["--threads", str(args.threads)] if args.threads is not None else []
    words += ["--repeats", str(args.repeats)] if args.repeats is not None else []
    return shlex.join(words)


def run(args: argparse.Namespace) -> list[Record]:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    repeats = args.repeats or (QUICK_REPEATS if args.quick else REPEATS)
    shapes = [shape for shape in SHAPES if shape.quick or not args.quick]
    records = []
    for shape, dtype in itertools.product(shapes, args.dtype):
        records.append(measure(shape, dtype, repeats))
        print(COLUMNS.format(*row(records[-1])), flush=True)
    return records


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    print(COLUMNS.format(*HEADER))
    if args.show is not None:
        for record in json.loads(args.show.read_text())["records"]:
            print(COLUMNS.format(*row(record)))
        return
    document = {
        "command": command_line(args),
        "commit": commit_here(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "records": run(args),
        "environment": environment(),
    }
    if args.json is not None:
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
