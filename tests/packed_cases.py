"""Packed queries: of each sequence a number of its own, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from decode_cases import Inputs, make_inputs
from torch import Tensor


def offsets(query_tokens: Sequence[int], device: torch.device) -> Tensor:
    """cu_seqlens_q [batch + 1] int32."""
    return torch.tensor([0, *itertools.accumulate(query_tokens)], dtype=torch.int32, device=device)


def pack_queries(inputs: Inputs, query_tokens: Sequence[int], seed: int = 0) -> Inputs:
    """The same caches, with other queries: so many of each sequence."""
    generator = torch.Generator().manual_seed(1000 + seed)
    shape = (sum(query_tokens), *inputs.q.shape[-2:])
    inputs.q = torch.randn(shape, generator=generator).to(inputs.q)
    inputs.options["cu_seqlens_q"] = offsets(query_tokens, inputs.q.device)
    return inputs


def make_packed(lengths: Sequence[int], query_tokens: Sequence[int], **shape: Any) -> Inputs:
    return pack_queries(make_inputs(lengths, **shape), query_tokens, shape.get("seed", 0))


def random_bits(query_tokens: tuple[int, ...], words: int, device: torch.device, seed: int = 0) -> Tensor:
    """A tree_mask [*query_tokens, words] of any bits."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (*query_tokens, words), generator=generator)
    return bits.to(torch.int32).to(device)


def packed_bits(seen: Tensor) -> Tensor:
    """bool [..., new tokens] as int32 [..., words]."""
    words = -(-seen.shape[-1] // 32)
    bits = torch.zeros(*seen.shape[:-1], 32 * words, dtype=torch.int64, device=seen.device)
    bits[..., : seen.shape[-1]] = seen
    values = (bits.unflatten(-1, (words, 32)) << torch.arange(32, device=seen.device)).sum(-1)
    words_of_32: Tensor = values - (values >> 31 << 32)
    return words_of_32.to(torch.int32)
