"""Paged caches made of the inputs in decode_cases, with all that must not matter filled with garbage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from decode_cases import Inputs, make_inputs
from torch import Tensor
from torch.nn.functional import pad

PAGE_SIZES = (1, 3, 4, 8, 16, 24, 32, 40, 64, 128, 256)
PAGE_LAYOUTS = ("tokens_first", "heads_first", "interleaved", "padded")

SPARE_PAGES = 3
NO_PAGES = (-1, 2**31 - 1, -(2**31))  # and the number of pages


def capacity(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size) * page_size


def page_borders(page_size: int, q_len: int = 1) -> list[int]:
    """Around the ends of pages, and of the queries; the longest fills its last page."""
    ends = (pages * page_size + more for pages in (1, 2, 5) for more in (1, -1, 0))
    lengths = [0, 1, *ends, q_len - 1, q_len + 1, 300, 0, page_size + q_len // 2]
    return [*lengths, capacity(max(700, *lengths), page_size)]


def make_whole_pages(lengths: Sequence[int], page_size: int, *, tokens: int = 0, **options: Any) -> Inputs:
    """Inputs for ``paged``, with room for ``tokens`` at least."""
    longest = max([tokens, *lengths])
    return make_inputs(lengths, max_tokens=capacity(longest, page_size), **options)


def paged(
    inputs: Inputs, page_size: int, *, layout: str = "tokens_first", wide: bool = False, seed: int = 0
) -> tuple[Inputs, Tensor]:
    """The same call with pages for caches, and its block table, part of a wider one if ``wide``.

    Pages lie in any order, and some are of no sequence. Memory that must not matter holds NaN, entries that
    must not matter are no pages. Sequences that share memory share their pages.
    """
    lengths, k, device = inputs.cache_seqlens, inputs.k_cache, inputs.q.device
    max_pages = k.shape[1] // page_size
    assert max_pages * page_size == k.shape[1]
    used = torch.arange(max_pages, device=device) * page_size < lengths[:, None]  # [batch, max_pages]
    stored = used.any(0, keepdim=True) if k.stride(0) == 0 else used
    count = int(stored.sum())
    num_pages = count + SPARE_PAGES
    ids = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed))[:count].to(device)

    def pages_of(cache: Tensor) -> Tensor:
        pages = cache.new_full((num_pages, page_size, *cache.shape[2:]), torch.nan)
        pages[ids] = cache[: len(stored)].unflatten(1, (max_pages, page_size))[stored]
        return pages

    garbage = torch.tensor((*NO_PAGES, num_pages), device=device)
    garbage = garbage[torch.arange(used.numel(), device=device) % len(garbage)].view(used.shape)
    entries = torch.zeros_like(stored, dtype=torch.int64)
    entries[stored] = ids
    table = torch.where(used, entries, garbage).int()
    if wide:
        table = pad(table, (2, 3), value=-1)[:, 2:-3]
    pages = laid_out(pages_of(k), pages_of(inputs.v_cache), layout)
    return replace(inputs, k_cache=pages[0], v_cache=pages[1]), table


def laid_out(k: Tensor, v: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """The same pages [num_pages, page_size, num_kv_heads, head_dim] with other strides."""
    if layout == "heads_first":
        return k.transpose(1, 2).contiguous().transpose(1, 2), v.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "interleaved" and k.shape == v.shape:
        both = torch.stack((k, v), 1)
        return both[:, 0], both[:, 1]
    if layout == "interleaved":
        both = torch.cat((k, v), -1)
        return both[..., : k.shape[-1]], both[..., k.shape[-1] :]
    if layout == "padded":
        wider = pad(k, (8, 0, 0, 1, 3, 0), value=torch.nan)
        return wider[:, 3:, :-1, 8:], pad(v, (0, 16), value=torch.nan)[..., :-16]
    assert layout == "tokens_first"
    return k, v


def gathered(pages: Inputs, table: Tensor) -> Inputs:
    """The same call with contiguous caches, whatever pages the table names and however often."""
    k, v = (cache[table.long()].flatten(1, 2) for cache in (pages.k_cache, pages.v_cache))
    return replace(pages, k_cache=k, v_cache=v)
