"""Calls of append_kv on any device, and what must be in memory afterwards, to the last byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from decode_cases import make_caches
from paged_cases import NO_PAGES, SPARE_PAGES, capacity, laid_out
from torch import Tensor

import leanattn
from leanattn.support import BACKENDS, FLOAT8

SOURCES = ("fused", "apart", "heads_first", "expanded")


@dataclass
class Append:
    """Arguments: k, v [batch, num_kv_heads, head_dim] or [batch, new_tokens, num_kv_heads, head_dim], q like
    them, caches as in decode.
    """

    k: Tensor
    v: Tensor
    k_cache: Tensor
    v_cache: Tensor
    cache_seqlens: Tensor
    block_table: Tensor | None = None
    q: Tensor | None = None
    rotary_cos: Tensor | None = None
    rotary_sin: Tensor | None = None
    rotary_interleaved: bool = False
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.k, self.v, self.k_cache, self.v_cache, self.cache_seqlens

    def options(self) -> dict[str, Any]:
        names = ("block_table", "q", "rotary_cos", "rotary_sin", "rotary_interleaved", "k_scale", "v_scale")
        return {name: getattr(self, name) for name in names}

    def run(self) -> None:
        leanattn.append_kv(*self.tensors(), **self.options())


def dtypes_of(device: torch.device) -> tuple[torch.dtype, ...]:
    return BACKENDS[device.type].dtypes


def make_append(
    lengths: Sequence[int],
    new_tokens: int | None = None,
    *,
    device: torch.device,
    heads: tuple[int, int] = (8, 2),
    head_dim: int = 64,
    v_head_dim: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    layout: str = "tokens_first",
    source: str = "fused",
    page_size: int | None = None,
    whole_table: bool = False,
    max_tokens: int | None = None,
    rotary_dim: int = 0,
    factors: torch.dtype = torch.float32,
    with_q: bool = True,
    interleaved: bool = False,
    cache_dtype: torch.dtype | None = None,
    scales: int | None = None,
) -> Append:
    """Normal random inputs; ``heads`` is query and KV heads. There is a q if there is something to rotate.

    Entries of the table that a call need not read are no pages, unless the table is to be whole.
    """
    num_q_heads, num_kv_heads = heads
    generator = torch.Generator(device).manual_seed(len(lengths) + head_dim + num_kv_heads)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    batch, count = len(lengths), new_tokens or 1
    dims = (head_dim, v_head_dim or head_dim)
    rows = ((num_kv_heads, dims[0]), (num_kv_heads, dims[1]), (num_q_heads, dims[0]))
    k, v, q = _sources(normal, source, (batch, count), rows)
    if new_tokens is None:
        k, v, q = k[:, 0], v[:, 0], q[:, 0]
    if max_tokens is None:
        max_tokens = max(lengths, default=0) + 5
    seqlens = torch.tensor(lengths, dtype=torch.int32, device=device)
    if page_size is None:
        k_cache, v_cache = make_caches(normal, batch, max_tokens, num_kv_heads, dims, layout)
        table = None
    else:
        max_pages = capacity(max_tokens, page_size) // page_size
        num_pages = batch * max_pages + SPARE_PAGES
        pages = [normal(num_pages, page_size, num_kv_heads, dim) for dim in dims]
        k_cache, v_cache = laid_out(pages[0], pages[1], layout)
        table = torch.randperm(num_pages, generator=generator, device=device)[: batch * max_pages]
        table = table.view(batch, max_pages).int()
        if not whole_table:
            table = _only_needed(table, seqlens, count, page_size, num_pages)
    call = Append(k, v, k_cache, v_cache, seqlens, table)
    if rotary_dim > 0:
        angles = torch.rand(max_tokens + 3, rotary_dim // 2, generator=generator, device=device) * 6.3
        call.rotary_cos, call.rotary_sin = angles.cos().to(factors), angles.sin().to(factors)
        call.rotary_interleaved = interleaved
        call.q = q if with_q else None
    if cache_dtype is not None:
        call.k_cache, call.v_cache = (
            _of_bytes(call.k_cache, cache_dtype),
            _of_bytes(call.v_cache, cache_dtype),
        )
        if scales is not None:
            made = torch.rand(2, scales, generator=generator, device=device) + 0.02
            call.k_scale, call.v_scale = made.unbind()
    return call


def _of_bytes(cache: Tensor, dtype: torch.dtype) -> Tensor:
    """The same layout, of other memory with random bytes."""
    memory = torch.randint(256, memory_of(cache).shape, device=cache.device, dtype=torch.uint8)
    return in_copy(memory.view(dtype), cache)


def _sources(
    normal: Any, source: str, tokens: tuple[int, int], rows: tuple[tuple[int, int], ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """K, V and Q [batch, new_tokens, heads, dim]; ``rows`` is (heads, dim) of each."""
    heads, dims = zip(*rows, strict=True)
    if source == "fused" and len(set(dims)) == 1:  # parts of one projection
        k, v, q = normal(*tokens, sum(heads), dims[0]).split(heads, dim=2)
        return k, v, q
    if source == "fused":
        parts = normal(*tokens, sum(n * dim for n, dim in rows)).split([n * dim for n, dim in rows], dim=2)
        k, v, q = (part.unflatten(2, row) for part, row in zip(parts, rows, strict=True))
        return k, v, q
    if source == "apart":
        k, v, q = (normal(tokens[0], tokens[1] + 1, n + 1, dim + 8)[:, 1:, 1:, 8:] for n, dim in rows)
        return k, v, q
    if source == "heads_first":
        k, v, q = (normal(tokens[0], n, tokens[1], dim).transpose(1, 2) for n, dim in rows)
        return k, v, q
    assert source == "expanded"  # all tokens and heads have one row
    k, v = (normal(tokens[0], 1, 1, dim).expand(-1, tokens[1], n, -1) for n, dim in rows[:2])
    return k, v, normal(*tokens, *rows[2])


def _only_needed(table: Tensor, seqlens: Tensor, count: int, page_size: int, num_pages: int) -> Tensor:
    first = torch.arange(table.shape[1], device=table.device) * page_size  # token of each page
    needed = (first < seqlens[:, None]) & (first + page_size > (seqlens - count).clamp_min(0)[:, None])
    garbage = torch.tensor((*NO_PAGES, num_pages), dtype=torch.int32, device=table.device)
    return torch.where(
        needed, table, garbage[torch.arange(table.numel(), device=table.device) % 4].view_as(table)
    )


@dataclass
class Places:
    """Where the tokens go that have a place; [n] each."""

    seqs: Tensor
    tokens: Tensor  # of the new ones
    positions: Tensor
    rows: Tensor  # of the caches' first dimension
    columns: Tensor  # of the second

    @classmethod
    def of(cls, call: Append) -> Places:
        count = call.k.shape[1] if call.k.dim() == 4 else 1
        num_pages, page_size = call.k_cache.shape[:2]
        table = None if call.block_table is None else call.block_table.tolist()
        found: list[tuple[int, ...]] = []
        for seq, length in enumerate(call.cache_seqlens.tolist()):
            for token in range(count):
                at = length - count + token
                row, column = seq, at
                if at < 0 or (call.rotary_cos is not None and at >= call.rotary_cos.shape[0]):
                    continue
                if table is not None:
                    index, column = divmod(at, page_size)
                    if index >= len(table[seq]):
                        continue
                    row = table[seq][index]
                if 0 <= row < num_pages and column < page_size:
                    found.append((seq, token, at, row, column))
        return cls(*torch.tensor(found, dtype=torch.int64, device=call.k.device).view(-1, 5).unbind(1))


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rows [n, heads, head_dim], by the definition; factors [n, rotary_dim / 2]."""
    cos, sin, half = cos[:, None], sin[:, None], cos.shape[1]
    if interleaved:
        a, b = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
    else:
        a, b = x[..., :half], x[..., half : 2 * half]
    pairs = (a * cos - b * sin, b * cos + a * sin)
    turned = torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)
    return torch.cat((turned, x[..., 2 * half :]), -1)


def memory_of(tensor: Tensor) -> Tensor:
    """All that its storage holds, whatever part of it the tensor is."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


def bits(tensor: Tensor) -> Tensor:
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(integers[tensor.element_size()])


def in_copy(memory: Tensor, like: Tensor) -> Tensor:
    """What ``like`` is of its storage, of a copy of that."""
    return memory.as_strided(like.shape, like.stride(), like.storage_offset())


def check_append(call: Append) -> None:
    """Runs it. Every row with a place is right, and nothing else in any memory has changed."""
    tensors = [t for t in (*call.tensors(), *call.options().values()) if isinstance(t, Tensor)]
    storages = {t.untyped_storage().data_ptr(): memory_of(t) for t in tensors}
    before = {storage: memory.clone() for storage, memory in storages.items()}
    call.run()
    after = {storage: memory.clone() for storage, memory in storages.items()}

    def now(tensor: Tensor) -> Tensor:
        return in_copy(after[tensor.untyped_storage().data_ptr()], tensor)

    def then(tensor: Tensor) -> Tensor:
        return in_copy(before[tensor.untyped_storage().data_ptr()], tensor)

    p = Places.of(call)

    def rows_of(source: Tensor) -> Tensor:  # [n, heads, head_dim]
        return then(source)[p.seqs, p.tokens] if source.dim() == 4 else then(source)[p.seqs]

    # Of bytes: of float8, torch can't take rows.
    caches = {cache: bits(now(cache)) for cache in (call.k_cache, call.v_cache)}
    keys, values = (cache[p.rows, p.columns] for cache in caches.values())
    if call.k_cache.dtype in FLOAT8:
        check_float8_rows(call, p, rows_of(call.k), keys.view(call.k_cache.dtype))
        assert torch.equal(values, bits(quantized_rows(rows_of(call.v), call.v_scale, call.v_cache.dtype)))
    else:
        check_rows(call, p, rows_of(call.k), keys.view(call.k_cache.dtype))
        assert torch.equal(values, bits(rows_of(call.v)))
    for cache, numbers in caches.items():
        numbers[p.rows, p.columns] = bits(then(cache))[p.rows, p.columns]
    if call.q is not None:
        at = (p.seqs, p.tokens) if call.q.dim() == 4 else (p.seqs,)
        check_rows(call, p, rows_of(call.q), now(call.q)[at])
        now(call.q)[at] = rows_of(call.q)
    for storage, memory in after.items():
        assert torch.equal(bits(memory), bits(before[storage])), "memory that is not to be written"


def quantized_rows(rows: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[n, heads, head_dim] as a cache of float8 has them."""
    most = torch.finfo(dtype).max
    divided = rows.float() if scale is None else rows.float() / scale[:, None]
    return divided.clamp(-most, most).to(dtype)


def check_float8_rows(call: Append, places: Places, source: Tensor, got: Tensor) -> None:
    """What is not rotated has the same bits; what is, is as near as a neighbour of the rounded 16 bits is."""
    scale = source.new_ones(1) if call.k_scale is None else call.k_scale
    if call.rotary_cos is None or call.rotary_sin is None:
        assert torch.equal(bits(got), bits(quantized_rows(source, scale, got.dtype)))
        return
    dim = 2 * call.rotary_cos.shape[1]
    kept = quantized_rows(source, scale, got.dtype)[..., dim:]
    assert torch.equal(bits(got[..., dim:].contiguous()), bits(kept.contiguous()))
    cos, sin = (table[places.positions].double() for table in (call.rotary_cos, call.rotary_sin))
    exact = rotated(source.double(), cos, sin, call.rotary_interleaved) / scale.double()[:, None]
    info, eps = torch.finfo(got.dtype), torch.finfo(source.dtype).eps
    exact = exact.clamp(-info.max, info.max)
    step = (exact.abs() * info.eps).clamp_min(info.smallest_normal * info.eps)  # between neighbours, at most
    allowed = step / 2 + eps * exact.abs() + 1e-6
    error = (got.double() - exact).abs()
    assert (error <= allowed).all(), f"error {error.max():.3e}"


def check_rows(call: Append, places: Places, source: Tensor, got: Tensor) -> None:
    """Rows [n, heads, head_dim]: rotated, with one rounding beside those of float32, or the same bits."""
    if call.rotary_cos is None or call.rotary_sin is None:
        assert torch.equal(bits(got), bits(source))
        return
    dim = 2 * call.rotary_cos.shape[1]
    assert torch.equal(bits(got[..., dim:].contiguous()), bits(source[..., dim:].contiguous()))
    cos, sin = (table[places.positions].double() for table in (call.rotary_cos, call.rotary_sin))
    exact = rotated(source.double(), cos, sin, call.rotary_interleaved)
    # Half of eps is what one rounding costs; in float32 two products and a sum have an error of their own.
    eps, eps32 = torch.finfo(got.dtype).eps, torch.finfo(torch.float32).eps
    allowed = eps / 2 * exact.abs() + 2 * eps32 * source.double().abs().amax(-1, keepdim=True)
    error = (got.double() - exact).abs()
    assert (error <= allowed).all(), f"error {error.max():.3e}"
