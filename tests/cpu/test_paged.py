"""Paged KV caches on the CPU: the contract of every device, and any shapes at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_cases import check_against_reference, plan_of
from decode_contract import decode_debug
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_cases import PAGE_LAYOUTS, make_whole_pages, page_borders, paged
from paged_contract import PagedContract, check_paged
from paged_edges_contract import PagedEdgesContract
from query_tokens_contract import decode

from leanattn.reference import decode_reference

CPU = torch.device("cpu")


class TestPaged(PagedContract):
    pass


class TestPagedEdges(PagedEdgesContract):
    pass


@pytest.mark.parametrize("layout", PAGE_LAYOUTS)
@pytest.mark.parametrize("page_size", [1, 3, 16, 40, 256])
@pytest.mark.parametrize("head_dim", [8, 64, 136, 256, 512])
def test_float32(head_dim: int, page_size: int, layout: str) -> None:
    lengths = page_borders(page_size)
    inputs = make_whole_pages(lengths, page_size, device=CPU, dtype=torch.float32, head_dim=head_dim)
    check_paged(inputs, page_size, workers=(0, 5), layout=layout)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("q_len", [None, 4])
def test_the_reference(q_len: int | None, dtype: torch.dtype) -> None:
    inputs = make_whole_pages(page_borders(24), 24, device=CPU, q_len=q_len)
    pages, table = paged(inputs, 24)
    got = decode_reference(*pages.tensors(), block_table=table, dtype=dtype)
    assert all(map(torch.equal, got, decode_reference(*inputs.tensors(), dtype=dtype)))


@settings(max_examples=300, deadline=None)
@given(
    page_size=st.integers(1, 70),
    layout=st.sampled_from(PAGE_LAYOUTS),
    wide=st.booleans(),
    q_len=st.one_of(st.none(), st.integers(1, 8)),
    group=st.integers(1, 20),
    num_kv_heads=st.integers(1, 4),
    head_dim=st.sampled_from([8, 24, 64]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    lengths=st.lists(st.one_of(st.integers(0, 20), st.integers(0, 300)), max_size=5),
    workers=st.one_of(st.integers(1, 12), st.integers(1, 1024)),
    causal=st.booleans(),
    planned=st.booleans(),
    seed=st.integers(0, 3),
)
def test_any_shape(
    page_size: int,
    layout: str,
    wide: bool,
    q_len: int | None,
    group: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    lengths: list[int],
    workers: int,
    causal: bool,
    planned: bool,
    seed: int,
) -> None:
    heads = (group * num_kv_heads, num_kv_heads)
    inputs = make_whole_pages(
        lengths, page_size, device=CPU, q_len=q_len, heads=heads, head_dim=head_dim, dtype=dtype
    )
    inputs.causal = causal
    pages, table = paged(inputs, page_size, layout=layout, wide=wide, seed=seed)
    plan: dict[str, Any] = {"plan": plan_of(inputs, workers)} if planned else {}
    got = decode(pages, workers, block_table=table, **plan)
    if dtype != torch.float32:  # of few numbers in float32, the yardstick is right by chance: bits must do
        check_against_reference(inputs, *got)
    assert all(map(torch.equal, got, decode(inputs, workers, **plan)))
    again = decode_debug(pages, workers, block_table=table, garbage=torch.nan, **plan)
    assert all(map(torch.equal, again, got))
