"""Times several query tokens a sequence beside one: `python -m benchmarks.query_tokens`.

The method is that of benchmarks.decode, back to back: cold caches, a CUDA graph, medians; plans are made
beforehand. "tree q8" has a mask of the new tokens that hides what a causal one hides; "packed" has the same
queries with `cu_seqlens_q`. "1k in 8k" is sequences of 1k tokens in a cache that could hold 8k of each: how
much a call reads is not known where it is decided which kernel computes many query rows.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks import method
from benchmarks.case import Case
from benchmarks.measure import ShapeBench
from benchmarks.ours import bind_leanattn
from benchmarks.shape_command import Record, ShapeCommand, time, time_against
from benchmarks.shapes import K, Shape, speculative, tokens_text, uniform
from benchmarks.tables import microseconds, number
from benchmarks.timing import Call

Q_LENS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
TREE_OF = 8
TREE = f"tree q{TREE_OF}"
PACKED = (8, 16)


@dataclass(frozen=True)
class InCache:
    """Sequences in a cache that could hold `capacity` tokens of each."""

    shape: Shape
    capacity: int

    @property
    def name(self) -> str:
        larger = self.capacity > self.shape.max_tokens
        return f"{self.shape.name} in {tokens_text(self.capacity)}" if larger else self.shape.name


SHAPES = tuple(
    InCache(uniform("query tokens", heads, batch, tokens), capacity)
    for heads, batch, tokens, capacity in (
        ("llama8b", 1, 16 * K, 16 * K),
        ("llama8b", 4, 16 * K, 16 * K),
        ("llama8b", 32, 4 * K, 4 * K),
        ("70b/tp8", 16, 8 * K, 8 * K),
        ("mha32", 1, 64 * K, 64 * K),
        ("llama8b", 1, 1 * K, 1 * K),
        ("llama8b", 1, 1 * K, 128 * K),
        ("70b/tp8", 16, 1 * K, 1 * K),
        ("70b/tp8", 16, 1 * K, 8 * K),
        ("70b/tp8", 32, 1 * K, 128 * K),
    )
)


def with_queries(case: Case, q_len: int) -> Case:
    """The same caches under other queries."""
    shape = speculative(case.shape, q_len)
    return replace(case, shape=shape, q=torch.randn(shape.q_shape, dtype=case.q.dtype, device=case.q.device))


def causal_tree(batch: int, q_len: int, device: torch.device) -> Tensor:
    """[batch, q_len, 1] int32: bit j of query token i is j <= i."""
    seen = 2 ** torch.arange(1, q_len + 1, device=device) - 1
    return seen.int().expand(batch, -1)[..., None].contiguous()


def bind_tree(case: Case) -> list[Call]:
    tree = causal_tree(case.shape.batch, case.shape.q_len, case.q.device)
    return bind_leanattn(case, planned=True, tree_mask=tree)


def bind_packed(case: Case) -> list[Call]:
    """Outputs are [batch x q_len, query heads, head_dim]."""
    offsets = torch.arange(case.shape.batch + 1, dtype=torch.int32, device=case.q.device) * case.shape.q_len
    return bind_leanattn(replace(case, q=case.q.flatten(0, 1)), planned=True, cu_seqlens_q=offsets)


def measure(in_cache: InCache) -> Record:
    case = Case.random(in_cache.shape, torch.bfloat16, "cuda", max_tokens=in_cache.capacity)
    us: Record = {}
    for q_len in Q_LENS:
        of = with_queries(case, q_len)
        bench = ShapeBench(of, method.TOLERANCE["bf16"])
        us[f"q{q_len}"] = time(bench, bind_leanattn(of, planned=True))
        if q_len == TREE_OF:
            us[TREE] = time(bench, bind_tree(of))
        if q_len in PACKED:
            expected = bench.expected.flatten(0, 1)
            us[f"packed q{q_len}"] = time_against(expected, bind_packed(of), bench.kv_bytes)
    return {"name": in_cache.name, "us": us}


def row(shape: Record) -> list[str]:
    us = shape["us"]

    def times_q1(name: str) -> str:
        return number(us[name] / us["q1"] if us[name] and us["q1"] else None, 3)

    return [shape["name"], microseconds(us["q1"]), *(times_q1(name) for name in COLUMNS)]


COLUMNS = (*(f"q{q_len}" for q_len in Q_LENS[1:]), TREE, *(f"packed q{q_len}" for q_len in PACKED))


def command() -> ShapeCommand:
    columns = ("shape", "q1 us", *(f"x {name}" for name in COLUMNS))
    return ShapeCommand("benchmarks.query_tokens", __doc__ or "", columns, measure, row, SHAPES)


if __name__ == "__main__":
    command().run()
