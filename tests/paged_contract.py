"""What decode must do with a paged KV cache; tests/cpu and tests/gpu run it, each on its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from decode_cases import Inputs, Reference, check_against_reference, plan_of
from decode_contract import decode_debug
from paged_cases import PAGE_LAYOUTS, PAGE_SIZES, make_whole_pages, page_borders, paged
from query_tokens_contract import both_masks, decode

import leanattn

HEADS = [(8, 2), (32, 16), (8, 1), (40, 2), (16, 16), (48, 16), (71, 1)]

OPTIONS: list[dict[str, Any]] = [{}, {"causal": False}, {"softmax_scale": 0.3}, {"sm_margin": 1}]


def check_paged(inputs: Inputs, page_size: int, *, workers: tuple[int, ...] = (0,), **where: Any) -> None:
    """Right, and bit for bit what contiguous caches give (if both are cut alike: test_tiling.py)."""
    pages, table = paged(inputs, page_size, **where)
    reference = Reference(inputs)
    for count in workers:
        got = decode(pages, count, block_table=table)
        reference.check(*got)
        assert all(map(torch.equal, got, decode(inputs, count))), f"{count} workers"


class PagedContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize("head_dim", [64, 128])
    @pytest.mark.parametrize("layout", PAGE_LAYOUTS)
    @pytest.mark.parametrize("page_size", PAGE_SIZES)
    def test_every_page_size(self, device: torch.device, page_size: int, layout: str, head_dim: int) -> None:
        lengths = page_borders(page_size)
        for dtype, wide in ((torch.bfloat16, False), (torch.float16, True)):
            inputs = make_whole_pages(lengths, page_size, device=device, dtype=dtype, head_dim=head_dim)
            check_paged(inputs, page_size, workers=(0, 1, 5), layout=layout, wide=wide)

    @both_masks
    @pytest.mark.parametrize("large", [False, True])
    @pytest.mark.parametrize("q_len", [None, 1, 2, 5, 16])
    @pytest.mark.parametrize("heads", HEADS)
    def test_heads(
        self, device: torch.device, heads: tuple[int, int], q_len: int | None, large: bool, causal: bool
    ) -> None:
        """Page sizes and head dims take turns. In a large cache all sequences share their pages."""
        turn = HEADS.index(heads) + (q_len or 0) + large
        page_size = (16, 1, 64, 40, 3, 24)[turn % 6]
        inputs = make_whole_pages(
            page_borders(page_size, q_len or 1),
            page_size,
            tokens=40_000 if large else 0,
            device=device,
            q_len=q_len,
            heads=heads,
            head_dim=(64, 128)[turn // 2 % 2],
            layout="expanded" if large else "tokens_first",
        )
        inputs.causal = causal
        check_paged(inputs, page_size, workers=(0, 3, 40))

    @pytest.mark.parametrize("q_len", range(1, 17))
    def test_every_q_len(self, device: torch.device, q_len: int) -> None:
        page_size = PAGE_SIZES[q_len % len(PAGE_SIZES)]
        lengths = page_borders(page_size, q_len)
        inputs = make_whole_pages(lengths, page_size, device=device, q_len=q_len, dtype=torch.float16)
        for causal in (True, False):
            inputs.causal = causal
            check_paged(inputs, page_size, workers=(0, 7))

    @pytest.mark.parametrize("workers", [1, 3, 40, 132, 1024])
    @pytest.mark.parametrize("page_size", [1, 16, 40, 64, 256])
    @pytest.mark.parametrize(("heads", "q_len"), [((8, 2), None), ((48, 16), 1), ((71, 1), 3)])
    def test_order_of_arrival_does_not_matter(
        self, device: torch.device, heads: tuple[int, int], q_len: int | None, page_size: int, workers: int
    ) -> None:
        lengths = [3000, *page_borders(page_size)]
        inputs = make_whole_pages(lengths, page_size, device=device, q_len=q_len, heads=heads)
        pages, table = paged(inputs, page_size)
        expected = decode(inputs, workers)
        check_against_reference(inputs, *expected)
        for seed in range(4):
            got = decode_debug(pages, workers, block_table=table, delay_seed=seed, garbage=torch.nan)
            assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize("splits", [1, 2, 6])
    def test_fixed_splits(self, device: torch.device, splits: int) -> None:
        inputs = make_whole_pages([700, 1, 0, 129, 67], 24, device=device, q_len=3)
        pages, table = paged(inputs, 24)
        got = decode_debug(pages, 1, fixed_splits=splits, block_table=table)
        check_against_reference(inputs, *got)
        assert all(map(torch.equal, got, decode_debug(inputs, 1, fixed_splits=splits)))

    @pytest.mark.parametrize("workers", [0, 3, 132, 1024])
    @pytest.mark.parametrize("page_size", [1, 16, 40, 128])
    @pytest.mark.parametrize(("heads", "q_len"), [((8, 2), None), ((16, 16), 5), ((71, 1), 2)])
    def test_a_plan_is_followed(
        self, device: torch.device, heads: tuple[int, int], q_len: int | None, page_size: int, workers: int
    ) -> None:
        inputs = make_whole_pages(page_borders(page_size), page_size, device=device, q_len=q_len, heads=heads)
        plan = plan_of(inputs, workers)
        pages, table = paged(inputs, page_size)
        wrong = torch.full_like(inputs.cache_seqlens, -1)  # nobody reads them any more
        expected = decode(replace(inputs, cache_seqlens=wrong), workers, plan=plan)
        check_against_reference(inputs, *expected)
        pages.cache_seqlens = wrong
        for fresh_tokens in (None, q_len or 1):
            promise = {} if fresh_tokens is None else {"fresh_tokens": fresh_tokens}
            got = decode(pages, workers, block_table=table, plan=plan, **promise)
            assert all(map(torch.equal, got, expected))

    def test_a_plan_knows_of_pages(self, device: torch.device) -> None:
        """Of eight KV heads a GPU makes other items in pages, so a plan without the table would not serve."""
        inputs = make_whole_pages(page_borders(16) * 6, 16, device=device, heads=(32, 8))
        pages, table = paged(inputs, 16)
        q, k, v, lengths = pages.tensors()
        plan = leanattn.plan(q, k, lengths, block_table=table)
        wrong = torch.full_like(lengths, -1)  # nobody reads them any more
        got = leanattn.decode(q, k, v, wrong, block_table=table, plan=plan, return_lse=True)
        check_against_reference(inputs, *got)

    def test_the_documented_plan(self, device: torch.device) -> None:
        inputs = make_whole_pages(page_borders(16, 9), 16, device=device, q_len=9)
        pages, table = paged(inputs, 16)
        q, k, v, lengths = pages.tensors()
        contiguous = leanattn.plan(q, inputs.k_cache, lengths)
        expected = leanattn.decode(*inputs.tensors(), plan=contiguous, return_lse=True)
        check_against_reference(inputs, *expected)
        plan = leanattn.plan(q, k, lengths, block_table=table)
        for _ in range(2):
            wrong = torch.full_like(lengths, -1)
            got = leanattn.decode(q, k, v, wrong, block_table=table, plan=plan, return_lse=True)
            assert all(map(torch.equal, got, expected))
            plan.fill_(0)
            assert leanattn.plan(q, k, lengths, block_table=table, out=plan) is plan

    def test_a_plan_of_another_capacity_is_not_used(self, device: torch.device) -> None:
        inputs = make_whole_pages(page_borders(16), 16, device=device)
        pages, table = paged(inputs, 16)
        plan = plan_of(pages, 7)  # as if a page were the cache of a sequence
        got = decode(pages, 7, block_table=table, plan=plan)
        assert all(map(torch.equal, got, decode(inputs, 7)))

    @pytest.mark.parametrize("workers", [3, 40, 132])
    @pytest.mark.parametrize("page_size", [1, 16, 24, 256])
    @pytest.mark.parametrize("q_len", [1, 4])
    def test_a_promise_changes_no_bit(
        self, device: torch.device, q_len: int, page_size: int, workers: int
    ) -> None:
        inputs = make_whole_pages(page_borders(page_size), page_size, device=device, q_len=q_len)
        pages, table = paged(inputs, page_size, layout="interleaved")
        expected = decode(inputs, workers)
        check_against_reference(inputs, *expected)
        for fresh_tokens in (q_len, q_len + 1, 200, 2**40):
            got = decode(pages, workers, block_table=table, fresh_tokens=fresh_tokens)
            assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize("q_len", [None, 3])
    def test_every_way_to_call(self, device: torch.device, q_len: int | None) -> None:
        inputs = make_whole_pages(page_borders(16), 16, device=device, q_len=q_len)
        pages, table = paged(inputs, 16)
        contiguous, tensors = inputs.tensors(), pages.tensors()
        for options in (*OPTIONS, {"fresh_tokens": 3}):
            expected, lse = leanattn.decode(*contiguous, return_lse=True, **options)
            assert torch.equal(leanattn.decode(*tensors, block_table=table, **options), expected)
            got = leanattn.decode(*tensors, block_table=table, return_lse=True, **options)
            assert all(map(torch.equal, got, (expected, lse)))
            out = torch.full_like(expected, torch.nan)
            assert leanattn.decode(*tensors, block_table=table, out=out, **options) is out
            assert torch.equal(out, expected)
            out.fill_(torch.nan)
            _, got_lse = leanattn.decode(*tensors, block_table=table, out=out, return_lse=True, **options)
            assert torch.equal(out, expected)
            assert torch.equal(got_lse, lse)
