"""Time that a call costs the host: `python -m benchmarks.host_overhead`.

The problem is tiny, so that the device is not what is waited for; torch.add says what any op costs there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

import leanattn

CALLS = 200  # few enough that the launch queue of a GPU never fills
ROUNDS = 20


def microseconds(call: Callable[[], object], device: torch.device) -> float:
    """Per call, without a synchronisation between the calls."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    elapsed = time.perf_counter() - begin
    if device.type == "cuda":
        torch.cuda.synchronize()
    return elapsed / CALLS * 1e6


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    q = torch.randn(8, 32, 128, device=device, dtype=torch.bfloat16)
    cache = torch.randn(8, 64, 8, 128, device=device, dtype=torch.bfloat16)
    lengths = torch.full((8,), 64 if device.type == "cuda" else 1, device=device, dtype=torch.int32)
    out = torch.empty_like(q)
    calls: dict[str, Callable[[], object]] = {
        "leanattn.decode": lambda: leanattn.decode(q, cache, cache, lengths),
        "leanattn.decode, out=": lambda: leanattn.decode(q, cache, cache, lengths, out=out),
        "torch.ops.leanattn.decode": lambda: torch.ops.leanattn.decode(q, cache, cache, lengths),
        "torch.ops.leanattn.decode_out": lambda: torch.ops.leanattn.decode_out(q, cache, cache, lengths, out),
        "torch.add": lambda: torch.add(q, q),
    }
    # All calls in every round: a core that is slow for a while is slow for all of them.
    rounds = [[microseconds(call, device) for call in calls.values()] for _ in range(ROUNDS)]
    for name, times in zip(calls, zip(*rounds, strict=True), strict=True):
        print(f"{name:30} best {min(times):6.2f} us, median {median(times):6.2f} us")


if __name__ == "__main__":
    main()
