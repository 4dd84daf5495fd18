"""What decode supports, as a table: asked of what `is_supported` asks, call by call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch

from leanattn.info import listed
from leanattn.support import EIGHT_BITS, OPTIONS, PACKED, backend_refusals

COLUMNS = {"CUDA": "cuda", "CPU": "cpu"}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CACHE_DTYPES = (*EIGHT_BITS, torch.float8_e4m3fnuz, torch.uint8)
# Beyond what any backend takes.
HEAD_DIMS = range(1, 1025)
Q_LENS = range(1, 129)


def markdown() -> str:
    """A row a property, a column a backend."""
    rows: list[tuple[str, Callable[[str], str]]] = [
        ("dtypes of q and the caches", lambda device: ", ".join(_dtypes(device))),
        ("dtypes of the caches besides", lambda device: ", ".join(_cache_dtypes(device))),
        ("head_dim", lambda device: _numbers(d for d in HEAD_DIMS if _takes(device, head_dim=d))),
        (
            "head_dim with caches of 8 bits",
            lambda device: _numbers(
                d for d in HEAD_DIMS if _takes(device, head_dim=d, cache_dtype=EIGHT_BITS[0])
            ),
        ),
        (
            "head_dim of V, the same or another",
            lambda device: _numbers(d for d in HEAD_DIMS if _takes(device, v_head_dim=d)),
        ),
        (
            "query tokens a sequence",
            lambda device: _numbers(n for n in Q_LENS if _takes(device, q_len=n)),
        ),
        (
            f"query tokens a sequence with `{PACKED}`",
            lambda device: _any_number(n for n in Q_LENS if _takes(device, q_len=n, options=[PACKED])),
        ),
        *((f"`{name}`", _option(name)) for name in OPTIONS),
    ]
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for title, cell in rows:
        lines.append(f"| {title} | {' | '.join(cell(device) for device in COLUMNS.values())} |")
    return "\n".join(lines)


def _takes(
    device: str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    head_dim: int = 64,
    q_len: int = 1,
    options: Iterable[str] = (),
    cache_dtype: torch.dtype | None = None,
    v_head_dim: int | None = None,
) -> bool:
    return not backend_refusals(device, dtype, head_dim, q_len, options, cache_dtype, v_head_dim)


def _dtypes(device: str) -> list[str]:
    return [str(dtype).removeprefix("torch.") for dtype in DTYPES if _takes(device, dtype=dtype)]


def _cache_dtypes(device: str) -> list[str]:
    found = [dtype for dtype in CACHE_DTYPES if _takes(device, cache_dtype=dtype)]
    return [str(dtype).removeprefix("torch.") for dtype in found]


def _option(name: str) -> Callable[[str], str]:
    return lambda device: "yes" if _takes(device, options=[name]) else "no"


def _any_number(candidates: Iterable[int]) -> str:
    """Of Q_LENS."""
    found = list(candidates)
    return "any number" if found == list(Q_LENS) else _numbers(found)


def _numbers(candidates: Iterable[int]) -> str:
    found = list(candidates)
    steps = {after - before for before, after in pairwise(found)}
    equal = len(found) > 3 and len(steps) == 1
    return listed(range(found[0], found[-1] + 1, steps.pop()) if equal else found)
