"""A paged cache, for peers that read nothing else: a view of the contiguous one.

So the memory that they read is that of every other implementation.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.case import Case

# XQA takes 16, 32, 64 or 128 and reads tiles of 64, so that 64 is one look-up a tile; the others take any.
PAGE_TOKENS = 64


@dataclass(frozen=True)
class PageTable:
    """Which pages hold which sequence, in compressed rows. All lists become int32 tensors."""

    indptr: list[int]  # [batch + 1]: where in `indices` the pages of a sequence begin
    indices: list[int]  # [pages in use]
    last_page_tokens: list[int]  # [batch]: tokens in a sequence's last page, 1..PAGE_TOKENS

    def dense(self) -> list[list[int]]:
        """[batch, pages of the longest sequence], filled up with page 0, which is not read there."""
        rows = [self.indices[begin:end] for begin, end in itertools.pairwise(self.indptr)]
        width = max(len(row) for row in rows)
        return [row + [0] * (width - len(row)) for row in rows]


def page_step(max_tokens: int) -> int:
    """Tokens from the start of a page to the start of the next, in the view that `pages_of` makes.

    A sequence has to begin with a page, at a multiple of max_tokens. Where pages don't divide max_tokens,
    they overlap: one begins at every multiple of the greatest common divisor. The kernels find a token by
    the strides and read none beyond the length, so neither a copy nor a smaller page is needed.
    """
    return math.gcd(max_tokens, PAGE_TOKENS)


def pages_of(cache: Tensor) -> Tensor:
    """[batch, max_tokens, kv heads, head_dim] as [pages, PAGE_TOKENS, kv heads, head_dim], the same memory.

    A partly filled page may begin behind the last one of the view: the kernels don't ask for their number.
    """
    batch, max_tokens, kv_heads, head_dim = cache.shape
    if batch * max_tokens < PAGE_TOKENS:  # not even one page would lie inside the memory
        raise NotImplementedError(f"only caches of a page and more, {PAGE_TOKENS} tokens")
    token = kv_heads * head_dim
    step = page_step(max_tokens)
    pages = (batch * max_tokens - PAGE_TOKENS) // step + 1
    return cache.as_strided((pages, PAGE_TOKENS, kv_heads, head_dim), (step * token, token, head_dim, 1))


def page_table(lengths: tuple[int, ...], max_tokens: int) -> PageTable:
    """The pages of sequences of `lengths` tokens, at least 1 each, in the view that `pages_of` makes."""
    step = page_step(max_tokens)
    table = PageTable([0], [], [])
    for sequence, tokens in enumerate(lengths):
        first_tokens = range(0, tokens, PAGE_TOKENS)
        table.indices.extend((sequence * max_tokens + first) // step for first in first_tokens)
        table.indptr.append(len(table.indices))
        table.last_page_tokens.append(tokens - first_tokens[-1])
    return table


def table_of(case: Case) -> PageTable:
    return page_table(case.shape.lengths, max_tokens=case.k[0].shape[1])
