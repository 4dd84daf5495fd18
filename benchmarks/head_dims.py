"""Times head dims, of K and V the same or not, over as many bytes each: `python -m benchmarks.head_dims`.

The method is that of benchmarks.decode, back to back: cold caches, a CUDA graph, medians; plans are made
beforehand. Dims between those that kernels are made for (64, 128, 256, 512) take the next larger one's.
FlashAttention-3, where it is installed, gets what it can do of them.
"""

import sys
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import leanattn
from benchmarks import method
from benchmarks.packages import Missing, import_first
from benchmarks.read_limit import read_limit
from benchmarks.shape_command import Record, ShapeCommand, time_against
from benchmarks.tables import microseconds, number
from benchmarks.timing import Call
from leanattn.reference import decode_reference

BATCH, QUERY_HEADS, KV_HEADS = 8, 32, 8
ELEMENT_BYTES = method.ELEMENT_BYTES["bf16"]
KV_BYTES = 2**28  # of llama8b B8 8k


@dataclass(frozen=True)
class DimsShape:
    k: int
    v: int

    @property
    def name(self) -> str:
        return str(self.k) if self.k == self.v else f"{self.k}/{self.v}"

    @property
    def tokens(self) -> int:
        return KV_BYTES // (BATCH * KV_HEADS * (self.k + self.v) * ELEMENT_BYTES)

    def kv_bytes(self) -> int:
        return BATCH * self.tokens * KV_HEADS * (self.k + self.v) * ELEMENT_BYTES


SHAPES = tuple(
    DimsShape(k, v)
    for k, v in (
        *((64, 64), (80, 80), (96, 96), (128, 128), (192, 192), (256, 256), (384, 384), (512, 512)),
        *((192, 128), (128, 192)),
    )
)


@dataclass
class DimsCase:
    q: Tensor  # [batch, query heads, k]
    seqlens: Tensor  # [batch] int32
    k: list[Tensor]  # per copy [batch, tokens, kv heads, k]
    v: list[Tensor]  # per copy [batch, tokens, kv heads, v]

    @staticmethod
    def random(shape: DimsShape) -> "DimsCase":
        make = partial(torch.randn, dtype=torch.bfloat16, device="cuda")
        copies, cache = method.copies_for(shape.kv_bytes()), (BATCH, shape.tokens, KV_HEADS)
        return DimsCase(
            make(BATCH, QUERY_HEADS, shape.k),
            torch.full((BATCH,), shape.tokens, dtype=torch.int32, device="cuda"),
            [make(*cache, shape.k) for _ in range(copies)],
            [make(*cache, shape.v) for _ in range(copies)],
        )


def bind_leanattn(case: DimsCase) -> list[Call]:
    plan = leanattn.plan(case.q, case.k[0], case.seqlens, v_head_dim=case.v[0].shape[3])
    return [
        partial(leanattn.decode, case.q, k, v, case.seqlens, plan=plan)
        for k, v in zip(case.k, case.v, strict=True)
    ]


def bind_fa3(case: DimsCase) -> list[Call]:
    fa3 = import_first("fa3_fwd_interface", "flash_attn_interface")
    q = case.q[:, None]
    call = partial(fa3.flash_attn_with_kvcache, cache_seqlens=case.seqlens)
    return [partial(call, q, k, v) for k, v in zip(case.k, case.v, strict=True)]


def measure(shape: DimsShape) -> Record:
    case = DimsCase.random(shape)
    expected, _ = decode_reference(case.q, case.k[0], case.v[0], case.seqlens)
    kv_bytes = shape.kv_bytes()
    us = {"leanattn": time_against(expected, bind_leanattn(case), kv_bytes)}
    try:
        us["fa3"] = time_against(expected, bind_fa3(case), kv_bytes)
    except (Missing, RuntimeError) as error:
        print(f"fa3, {shape.name}: {str(error)[:200]}", file=sys.stderr)
    limit = read_limit().time(kv_bytes)[0].median_us
    return {"name": shape.name, "tokens": shape.tokens, "us": us, "read_limit": limit}


def row(shape: Record) -> list[str]:
    us, fa3, limit = shape["us"]["leanattn"], shape["us"].get("fa3"), shape["read_limit"]
    return [
        *(shape["name"], str(shape["tokens"]), microseconds(us), microseconds(limit)),
        number(us / limit if us else None, 3),
        *(microseconds(fa3), number(fa3 / us if us and fa3 else None, 2)),
    ]


def command() -> ShapeCommand:
    columns = ("head_dim", "tokens", "us", "read limit us", "x read limit", "FA3 us", "FA3 / leanattn")
    return ShapeCommand("benchmarks.head_dims", __doc__ or "", columns, measure, row, SHAPES)


if __name__ == "__main__":
    command().run()
