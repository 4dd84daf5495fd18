"""Times packed queries: sequences that decode beside chunks of prompts: `python -m benchmarks.packed`.

The method is that of benchmarks.decode, back to back: cold caches, a CUDA graph, medians; plans are made
beforehand. "apart" is the time of two calls, one of the sequences that decode, not packed, and one of the
chunks. FlashAttention-3, where it is installed, gets the same packed queries over contiguous caches.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import leanattn
from benchmarks import method
from benchmarks.packages import Missing, import_first
from benchmarks.shape_command import Record, ShapeCommand, time_against
from benchmarks.shapes import HEADS, Heads, K
from benchmarks.tables import microseconds, number
from benchmarks.timing import Call
from leanattn.reference import decode_reference

PAGE_SIZE = 16
FLOAT8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class PackedShape:
    """A batch of sequences of (tokens in the cache, query tokens)."""

    name: str
    heads: Heads
    sequences: tuple[tuple[int, int], ...]
    paged: bool = False  # lengths are whole pages
    float8: bool = False

    @property
    def lengths(self) -> list[int]:
        return [length for length, _ in self.sequences]

    @property
    def query_tokens(self) -> list[int]:
        return [count for _, count in self.sequences]

    def kv_bytes(self, element_bytes: int) -> int:
        return 2 * sum(self.lengths) * self.heads.kv * self.heads.dim * element_bytes

    def flops(self) -> int:
        """Of both products, of what a causal mask leaves."""
        seen = sum(count * length - count * (count - 1) // 2 for length, count in self.sequences)
        return 4 * seen * self.heads.query * self.heads.dim


def packed_shape(heads: str, name: str, *sequences: tuple[int, int]) -> PackedShape:
    return PackedShape(f"{heads} {name}", HEADS[heads], sequences)


def in_pages(shape: PackedShape) -> PackedShape:
    return replace(shape, name=f"{shape.name}, pages", paged=True)


def in_float8(shape: PackedShape) -> PackedShape:
    return replace(shape, name=f"{shape.name}, float8", float8=True)


CONTIGUOUS = (
    packed_shape("llama8b", "B32 4k", *[(4 * K, 1)] * 32),
    packed_shape("llama8b", "B32 4k, 1 to 8 queries", *[(4 * K, 1 + i % 8) for i in range(32)]),
    packed_shape("llama8b", "B32 4k + 512 of 4k", *[(4 * K, 1)] * 32, (4 * K, 512)),
    packed_shape("llama8b", "B64 2k + 2048 of 2k", *[(2 * K, 1)] * 64, (2 * K, 2048)),
    packed_shape("llama8b", "2048 of 8k", (8 * K, 2048)),
    packed_shape("llama8b", "4 x 512 of 2k", *[(2 * K, 512)] * 4),
    packed_shape("70b/tp8", "B16 8k + 1024 of 8k", *[(8 * K, 1)] * 16, (8 * K, 1024)),
    packed_shape("mha32 d64", "B4 16k + 512 of 16k", *[(16 * K, 1)] * 4, (16 * K, 512)),
)
SHAPES = (
    *CONTIGUOUS,
    *(other(shape) for shape in (CONTIGUOUS[0], CONTIGUOUS[2]) for other in (in_pages, in_float8)),
)


def offsets_of(query_tokens: Sequence[int]) -> Tensor:
    return torch.tensor([0, *query_tokens], device="cuda").cumsum(0).int()


@dataclass
class PackedCase:
    """Tensors of some sequences, queries in bfloat16."""

    shape: PackedShape
    q: Tensor  # [query tokens, query heads, head_dim]
    lengths: Tensor  # [batch] int32
    offsets: Tensor  # [batch + 1] int32
    k: list[Tensor]  # per copy [batch, max_tokens, kv heads, head_dim], or of pages
    v: list[Tensor]  # as k
    block_table: Tensor | None = None  # [batch, pages] int32

    @staticmethod
    def random(shape: PackedShape) -> "PackedCase":
        heads, batch, tokens = shape.heads, len(shape.sequences), max(shape.lengths)
        make = partial(torch.randn, dtype=torch.bfloat16, device="cuda")
        size, table = (batch, tokens), None
        if shape.paged:
            pages = batch * tokens // PAGE_SIZE
            size, table = (pages, PAGE_SIZE), torch.randperm(pages, device="cuda").int().view(batch, -1)
        dtype = FLOAT8 if shape.float8 else torch.bfloat16
        copies = method.copies_for(shape.kv_bytes(dtype.itemsize))
        k, v = ([make((*size, heads.kv, heads.dim)).to(dtype) for _ in range(copies)] for _ in range(2))
        return PackedCase(
            shape,
            make(sum(shape.query_tokens), heads.query, heads.dim),
            torch.tensor(shape.lengths, dtype=torch.int32, device="cuda"),
            offsets_of(shape.query_tokens),
            k,
            v,
            table,
        )

    def options(self) -> dict[str, Any]:
        return {} if self.block_table is None else {"block_table": self.block_table}

    def packed_options(self) -> dict[str, Any]:
        return {**self.options(), "cu_seqlens_q": self.offsets}

    def part(self, which: slice) -> "PackedCase":
        """Only some sequences, in the same memory."""
        shape = replace(self.shape, sequences=self.shape.sequences[which])
        begin, count = int(self.offsets[which][0]), sum(shape.query_tokens)
        queries = self.q[begin : begin + count]
        of = (shape, queries, self.lengths[which], offsets_of(shape.query_tokens))
        if self.block_table is not None:
            return PackedCase(*of, self.k, self.v, self.block_table[which].contiguous())
        k, v = ([cache[which] for cache in caches] for caches in (self.k, self.v))
        return PackedCase(*of, k, v)

    def kv_bytes(self) -> int:
        return self.shape.kv_bytes(self.k[0].element_size())

    def calls(self, decode: Callable[[Tensor, Tensor], Tensor]) -> list[Call]:
        return [partial(decode, k, v) for k, v in zip(self.k, self.v, strict=True)]


def bind(case: PackedCase, options: dict[str, Any]) -> list[Call]:
    plan = leanattn.plan(case.q, case.k[0], case.lengths, **options)
    return case.calls(lambda k, v: leanattn.decode(case.q, k, v, case.lengths, plan=plan, **options))


def bind_packed(case: PackedCase) -> list[Call]:
    return bind(case, case.packed_options())


def bind_decode(case: PackedCase) -> list[Call]:
    """One query token of each sequence."""
    return bind(case, case.options())


def bind_fa3(case: PackedCase) -> list[Call]:
    if case.shape.paged or case.shape.float8:
        raise Missing("measured with contiguous caches of 16 bits only")
    fa3 = import_first("fa3_fwd_interface", "flash_attn_interface")
    call = partial(
        fa3.flash_attn_with_kvcache,
        case.q,
        cache_seqlens=case.lengths,
        cu_seqlens_q=case.offsets,
        max_seqlen_q=max(case.shape.query_tokens),
        causal=True,
    )
    return case.calls(lambda k, v: call(k_cache=k, v_cache=v))


def time_apart(case: PackedCase, expected: Tensor) -> float | None:
    """Of sequences that decode, which come first and have a row each, and of chunks, by themselves.

    None if one is wrong.
    """
    decoding = sum(1 for _ in itertools.takewhile(lambda count: count == 1, case.shape.query_tokens))
    times = []
    for which, bind in ((slice(0, decoding), bind_decode), (slice(decoding, None), bind_packed)):
        if case.shape.sequences[which]:
            part = case.part(which)
            times.append(time_against(expected[which], bind(part), part.kv_bytes()))
    return None if None in times else sum(t for t in times if t is not None)


def measure(shape: PackedShape) -> Record:
    case = PackedCase.random(shape)
    caches = (case.k[0].to(case.q.dtype), case.v[0].to(case.q.dtype))
    expected, _ = decode_reference(case.q, *caches, case.lengths, **case.packed_options())
    times = {
        "packed": time_against(expected, bind_packed(case), case.kv_bytes()),
        "apart": time_apart(case, expected),
    }
    try:
        times["fa3"] = time_against(expected, bind_fa3(case), case.kv_bytes())
    except (Missing, RuntimeError) as error:
        print(f"fa3, {shape.name}: {error}", file=sys.stderr)
    return {"name": shape.name, "flops": shape.flops(), "kv_bytes": case.kv_bytes(), "us": times}


def row(shape: Record) -> Sequence[str]:
    us = shape["us"]
    packed, apart, fa3 = us["packed"], us["apart"], us.get("fa3")

    def over(other: float | None) -> str:
        return number(other / packed if other and packed else None, 2)

    rates = [
        f"{shape[name] / packed / 1e6:.{digits}f}" if packed else "-"
        for name, digits in (("kv_bytes", 2), ("flops", 0))
    ]
    times = [microseconds(t) for t in (packed, apart, fa3)]
    return [shape["name"], *times[:2], over(apart), times[2], over(fa3), *rates]


def command() -> ShapeCommand:
    columns = (
        "batch",
        "packed us",
        "apart us",
        "apart / packed",
        "FA3 us",
        "FA3 / packed",
        "TB/s",
        "TFLOP/s",
    )
    return ShapeCommand("benchmarks.packed", __doc__ or "", columns, measure, row, SHAPES)


if __name__ == "__main__":
    command().run()
