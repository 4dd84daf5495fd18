"""Thousands of calls on short sequences, whose items are cut after a tile or two; all give the same bits:

    python tests/gpu/many_calls.py --rounds 20

A partial that is lost makes the call wait for ever. test_many_calls.py runs this in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from query_tokens_contract import Shape, decode, inputs_of  # noqa: E402

# Items of one KV head and of four, of 8 rows and of 16, in teams and not; of 128, whose workers share their
# merge, whether all fit on the GPU at once or not. Small and large ones take turns, so that caches, code and
# workspace are never quite as the call before of the same kind left them.
SHAPES: tuple[Shape, ...] = (
    ((8, 2), 2, "small"),
    ((8, 1), 5, "small"),
    ((16, 1), 16, "small"),
    ((16, 8), 4, "small"),
    ((16, 4), 3, "large"),
    ((16, 1), 16, "large"),
    ((32, 4), 16, "large"),
)
WORKERS = (3, 40, 132, 1024)
CALLS_IN_A_ROW = 20


def run(device: torch.device, rounds: int) -> int:
    """Returns the number of calls."""
    cases = []
    for shape in SHAPES:
        for causal in (True, False):
            inputs = inputs_of(device, shape, 64, torch.bfloat16)
            inputs.causal = causal
            cases.append(inputs)
    expected: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for _ in range(rounds):
        for number, inputs in enumerate(cases):
            for workers in WORKERS:
                results = [decode(inputs, workers) for _ in range(CALLS_IN_A_ROW)]
                first = expected.setdefault((number, workers), results[0])
                for result in results:
                    assert all(map(torch.equal, result, first)), f"case {number}, {workers} workers"
    return rounds * len(cases) * len(WORKERS) * CALLS_IN_A_ROW


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=20, help="of 1120 calls each")
    args = parser.parse_args()
    print(f"{run(torch.device(args.device), args.rounds)} calls gave the same bits")


if __name__ == "__main__":
    main()
