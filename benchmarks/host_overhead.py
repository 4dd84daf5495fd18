"""Time that a call costs the host: `python -m benchmarks.host_overhead`.

The problem is tiny, so that the device is not what is waited for; torch.add says what any op costs there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

import leanattn

CALLS = 200  # few enough that the launch queue of a GPU never fills
ROUNDS = 20


def best_microseconds(call: Callable[[], object], device: torch.device) -> float:
    """Per call, the best of several rounds of calls without a synchronisation between them."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, (time.perf_counter() - begin) / CALLS)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return best * 1e6


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
    for name, call in calls.items():
        print(f"{name:30} {best_microseconds(call, device):6.2f} us")


if __name__ == "__main__":
    main()
