"""Times what writes new tokens into a KV cache: `python -m benchmarks.append`.

A CUDA graph of calls back to back, medians. The new keys, values and queries are the same in every call, so
they come from the L2 cache as they do behind the projection that makes them. Beside it the same with
PyTorch's own operators, which get the places of all tokens ready-made.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

import leanattn
from benchmarks.measure import Wrong
from benchmarks.method import ELEMENT_BYTES, MAX_CALLS
from benchmarks.shape_command import Record, ShapeCommand
from benchmarks.shapes import HEADS, Heads, K
from benchmarks.tables import microseconds, number
from benchmarks.timing import Call, GraphOfCalls

PAGE_SIZE = 16
FLOAT8 = torch.float8_e4m3fn
# Largest accepted difference, relative and absolute: sums of two products in another order, rounded to
# bfloat16 or to the three bits of float8.
TOLERANCE = {torch.bfloat16: 2**-7, FLOAT8: 2**-3}


@dataclass(frozen=True)
class AppendShape:
    """`batch` sequences of `tokens`, of which `new_tokens` are written."""

    name: str
    heads: Heads
    batch: int
    new_tokens: int
    tokens: int

    def written_bytes(self) -> int:
        """Into a cache of the tokens' dtype."""
        return 2 * self.batch * self.new_tokens * self.heads.kv * self.heads.dim * ELEMENT_BYTES["bf16"]


def append_shape(heads: str, batch: int, new_tokens: int, tokens: int) -> AppendShape:
    return AppendShape(f"{heads} B{batch}, {new_tokens} new", HEADS[heads], batch, new_tokens, tokens)


SHAPES = (
    append_shape("llama8b", 1, 1, 4 * K),
    append_shape("llama8b", 32, 1, 4 * K),
    append_shape("llama8b", 256, 1, 1 * K),
    append_shape("70b/tp8", 64, 1, 4 * K),
    append_shape("llama8b", 8, 512, 4 * K),
    append_shape("llama8b", 1, 8 * K, 8 * K),
)


@dataclass(frozen=True)
class Variant:
    paged: bool = False
    rotary: bool = False  # of keys and queries
    float8: bool = False


VARIANTS = {
    "contiguous": Variant(),
    "pages": Variant(paged=True),
    "rotary": Variant(rotary=True),
    "all": Variant(paged=True, rotary=True, float8=True),
}


@dataclass
class AppendCase:
    shape: AppendShape
    k: Tensor  # [batch, new_tokens, kv heads, head_dim]
    v: Tensor  # as k
    q: Tensor | None  # [batch, new_tokens, query heads, head_dim]
    k_cache: Tensor  # [batch, tokens, kv heads, head_dim], or of pages
    v_cache: Tensor  # as k_cache
    seqlens: Tensor  # [batch] int32
    table: Tensor | None  # [batch, pages] int32
    cos: Tensor | None  # [tokens, head_dim / 2] float32
    sin: Tensor | None  # as cos
    positions: Tensor  # [batch, new_tokens] int64
    slots: Tensor  # [batch x new_tokens] int64: rows of the cache, as one list of tokens

    @staticmethod
    def random(shape: AppendShape, variant: Variant, device: torch.device) -> "AppendCase":
        make = partial(torch.randn, dtype=torch.bfloat16, device=device)
        heads, batch, tokens = shape.heads, shape.batch, shape.tokens
        new = (batch, shape.new_tokens)
        pages = tokens // PAGE_SIZE
        cache = (batch * pages, PAGE_SIZE) if variant.paged else (batch, tokens)
        dtype = FLOAT8 if variant.float8 else torch.bfloat16
        positions = torch.arange(tokens - shape.new_tokens, tokens, device=device).expand(new)
        first_rows = torch.arange(batch, device=device)[:, None] * tokens
        table = None
        slots = first_rows + positions
        if variant.paged:
            table = torch.randperm(batch * pages, device=device, dtype=torch.int32).view(batch, pages)
            page = table.long().gather(1, positions // PAGE_SIZE)
            slots = page * PAGE_SIZE + positions % PAGE_SIZE
        cos = sin = None
        if variant.rotary:
            frequencies = 10000.0 ** -(torch.arange(0, heads.dim, 2, device=device) / heads.dim)
            angles = torch.arange(tokens, device=device)[:, None] * frequencies
            cos, sin = angles.cos(), angles.sin()
        k_cache, v_cache = (
            torch.zeros(*cache, heads.kv, heads.dim, dtype=dtype, device=device) for _ in "kv"
        )
        return AppendCase(
            shape=shape,
            k=make(*new, heads.kv, heads.dim),
            v=make(*new, heads.kv, heads.dim),
            q=make(*new, heads.query, heads.dim) if variant.rotary else None,
            k_cache=k_cache,
            v_cache=v_cache,
            seqlens=torch.full((batch,), tokens, dtype=torch.int32, device=device),
            table=table,
            cos=cos,
            sin=sin,
            positions=positions,
            slots=slots.flatten(),
        )

    def with_places_to_write(self) -> "AppendCase":
        """The same new tokens, queries of its own, and caches of NaN."""

        def nan(cache: Tensor) -> Tensor:
            unwritten = torch.empty_like(cache)
            unwritten.view(torch.uint8).fill_(0xFF)
            return unwritten

        q = None if self.q is None else self.q.clone()
        return replace(self, q=q, k_cache=nan(self.k_cache), v_cache=nan(self.v_cache))

    def written(self) -> list[Tensor]:
        """The new tokens in the caches, [batch x new_tokens, kv heads, head_dim], and q; in float32."""
        rows = [cache.flatten(0, 1)[self.slots] for cache in (self.k_cache, self.v_cache)]
        return [tensor.float() for tensor in (*rows, self.q) if tensor is not None]


def by_leanattn(case: AppendCase) -> Call:
    def append() -> Tensor:
        leanattn.append_kv(
            *(case.k, case.v, case.k_cache, case.v_cache, case.seqlens),
            block_table=case.table,
            q=case.q,
            rotary_cos=case.cos,
            rotary_sin=case.sin,
        )
        return case.k_cache

    return append


def by_torch(case: AppendCase) -> Call:
    def rotated(x: Tensor) -> Tensor:
        if case.cos is None or case.sin is None:
            return x
        cos, sin = (table[case.positions][:, :, None] for table in (case.cos, case.sin))
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def write(cache: Tensor, rows: Tensor) -> None:
        # A float8 tensor can't be written by index.
        unsigned = {1: torch.uint8, 2: torch.int16}[cache.element_size()]
        flat = cache.flatten(0, 1).view(unsigned)
        flat[case.slots] = rows.flatten(0, 1).to(cache.dtype).view(unsigned)

    def append() -> Tensor:
        write(case.k_cache, rotated(case.k))
        write(case.v_cache, case.v)
        if case.q is not None:
            case.q.copy_(rotated(case.q))
        return case.k_cache

    return append


def check(case: AppendCase) -> None:
    """Raises Wrong unless both write the same."""

    def written_by(bind: Callable[[AppendCase], Call]) -> list[Tensor]:
        fresh = case.with_places_to_write()
        bind(fresh)()
        return fresh.written()

    tolerance = TOLERANCE[case.k_cache.dtype]
    for ours, theirs in zip(written_by(by_leanattn), written_by(by_torch), strict=True):
        if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance):
            raise Wrong(f"{case.shape.name}: a difference of {(ours - theirs).abs().max():.2g}")


def measure_variant(shape: AppendShape, variant: Variant) -> Record:
    """Microseconds by implementation; None if they write different things."""
    case = AppendCase.random(shape, variant, torch.device("cuda"))
    try:
        check(case)
    except Wrong:
        return {"leanattn": None, "torch": None}
    binds = {"leanattn": by_leanattn, "torch": by_torch}
    return {name: GraphOfCalls([bind(case)], MAX_CALLS).time().median_us for name, bind in binds.items()}


def measure(shape: AppendShape) -> Record:
    us = {name: measure_variant(shape, variant) for name, variant in VARIANTS.items()}
    return {"name": shape.name, "bytes": shape.written_bytes(), "us": us}


def row(shape: Record) -> list[str]:
    cells = [shape["name"], number(shape["bytes"] / 1e6, 2)]
    for name in VARIANTS:
        ours, theirs = shape["us"][name]["leanattn"], shape["us"][name]["torch"]
        cells += [microseconds(ours), number(theirs / ours if ours and theirs else None, 1)]
    return cells


def command() -> ShapeCommand:
    columns = ["tokens", "MB", *(f"{head} {name}" for name in VARIANTS for head in ("us", "x PyTorch"))]
    return ShapeCommand("benchmarks.append", __doc__ or "", columns, measure, row, SHAPES)


if __name__ == "__main__":
    command().run()
