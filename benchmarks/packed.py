"""Times packed queries: sequences that decode beside chunks of prompts: `python -m benchmarks.packed`.

The method is that of benchmarks.decode, back to back: cold caches, a CUDA graph, medians; plans are made
beforehand. "apart" is the time of two calls, one of the sequences that decode, not packed, and one of the
chunks. FlashAttention-3, where it is installed, gets the same packed queries.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import leanattn
from benchmarks import method
from benchmarks.case import row_error
from benchmarks.packages import Missing, import_first
from benchmarks.shape_command import Record, ShapeCommand
from benchmarks.shapes import HEADS, Heads, K
from benchmarks.tables import microseconds, number
from benchmarks.timing import Call, GraphOfCalls
from leanattn.reference import decode_reference


@dataclass(frozen=True)
class PackedShape:
    """A batch of sequences of (tokens in the cache, query tokens)."""

    name: str
    heads: Heads
    sequences: tuple[tuple[int, int], ...]

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


SHAPES = (
    packed_shape("llama8b", "B32 4k", *[(4 * K, 1)] * 32),
    packed_shape("llama8b", "B32 4k, 1 to 8 queries", *[(4 * K, 1 + i % 8) for i in range(32)]),
    packed_shape("llama8b", "B32 4k + 512 of 4k", *[(4 * K, 1)] * 32, (4 * K, 512)),
    packed_shape("llama8b", "B64 2k + 2048 of 2k", *[(2 * K, 1)] * 64, (2 * K, 2048)),
    packed_shape("llama8b", "2048 of 8k", (8 * K, 2048)),
    packed_shape("llama8b", "4 x 512 of 2k", *[(2 * K, 512)] * 4),
    packed_shape("70b/tp8", "B16 8k + 1024 of 8k", *[(8 * K, 1)] * 16, (8 * K, 1024)),
    packed_shape("mha32 d64", "B4 16k + 512 of 16k", *[(16 * K, 1)] * 4, (16 * K, 512)),
)


class PackedCase:
    """Tensors of some sequences, in bfloat16."""

    def __init__(self, shape: PackedShape) -> None:
        heads, self.shape = shape.heads, shape
        self.lengths = torch.tensor(shape.lengths, dtype=torch.int32, device="cuda")
        counts = torch.tensor([0, *shape.query_tokens], device="cuda")
        self.offsets = counts.cumsum(0).int()
        make = partial(torch.randn, dtype=torch.bfloat16, device="cuda")
        self.q = make(sum(shape.query_tokens), heads.query, heads.dim)
        cache = (len(shape.sequences), max(shape.lengths), heads.kv, heads.dim)
        copies = method.copies_for(shape.kv_bytes(2))
        self.k, self.v = ([make(cache) for _ in range(copies)] for _ in range(2))

    def part(self, which: slice) -> "PackedCase":
        """Only some sequences, in the same memory."""
        part = object.__new__(PackedCase)
        part.shape = PackedShape(self.shape.name, self.shape.heads, self.shape.sequences[which])
        part.lengths, begin = self.lengths[which], int(self.offsets[which][0])
        part.offsets = torch.tensor([0, *part.shape.query_tokens], device="cuda").cumsum(0).int()
        part.q = self.q[begin : begin + sum(part.shape.query_tokens)]
        part.k, part.v = ([cache[which] for cache in caches] for caches in (self.k, self.v))
        return part

    def calls(self, decode: Callable[[Tensor, Tensor], Tensor]) -> list[Call]:
        return [partial(decode, k, v) for k, v in zip(self.k, self.v, strict=True)]


def bind_packed(case: PackedCase) -> list[Call]:
    plan = leanattn.plan(case.q, case.k[0], case.lengths, cu_seqlens_q=case.offsets)
    return case.calls(
        lambda k, v: leanattn.decode(case.q, k, v, case.lengths, cu_seqlens_q=case.offsets, plan=plan)
    )


def bind_decode(case: PackedCase) -> list[Call]:
    """One query token of each sequence."""
    plan = leanattn.plan(case.q, case.k[0], case.lengths)
    return case.calls(lambda k, v: leanattn.decode(case.q, k, v, case.lengths, plan=plan))


def bind_fa3(case: PackedCase) -> list[Call]:
    fa3 = import_first("fa3_fwd_interface", "flash_attn_interface")
    call = partial(
        fa3.flash_attn_with_kvcache,
        case.q,
        cache_seqlens=case.lengths,
        cu_seqlens_q=case.offsets,
        max_seqlen_q=max(case.shape.query_tokens),
        causal=True,
    )
    return [partial(call, k_cache=k, v_cache=v) for k, v in zip(case.k, case.v, strict=True)]


def time(case: PackedCase, calls: list[Call], expected: Tensor | None) -> float | None:
    """Microseconds of a call; None if it is wrong."""
    graph = GraphOfCalls(calls, method.calls_per_graph(case.shape.kv_bytes(2)))
    graph.result_of_copy_0.fill_(torch.nan)
    timing = graph.time()
    if expected is not None and not row_error(graph.result_of_copy_0, expected) < method.TOLERANCE["bf16"]:
        return None
    return timing.median_us


def time_apart(case: PackedCase) -> float | None:
    """Of sequences that decode, which come first, and of chunks, by themselves."""
    decoding = sum(1 for _ in itertools.takewhile(lambda count: count == 1, case.shape.query_tokens))
    times = []
    if decoding > 0:
        part = case.part(slice(0, decoding))
        times.append(time(part, bind_decode(part), None))
    if decoding < len(case.shape.sequences):
        part = case.part(slice(decoding, None))
        times.append(time(part, bind_packed(part), None))
    return sum(t for t in times if t is not None)


def measure(shape: PackedShape) -> Record:
    case = PackedCase(shape)
    expected, _ = decode_reference(case.q, case.k[0], case.v[0], case.lengths, cu_seqlens_q=case.offsets)
    times = {"packed": time(case, bind_packed(case), expected), "apart": time_apart(case)}
    try:
        times["fa3"] = time(case, bind_fa3(case), expected)
    except (Missing, RuntimeError) as error:
        print(f"fa3, {shape.name}: {error}", file=sys.stderr)
    return {"name": shape.name, "flops": shape.flops(), "kv_bytes": shape.kv_bytes(2), "us": times}


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
