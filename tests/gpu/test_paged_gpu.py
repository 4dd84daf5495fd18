"""Paged KV caches on a GPU: the contract of every device, graphs, promises, and pages far apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decode_cases import Inputs, check_against_reference, make_inputs
from decode_contract import decode_debug
from paged_cases import gathered, make_whole_pages, page_borders, paged
from paged_contract import HEADS, PagedContract
from paged_edges_contract import PagedEdgesContract, pool
from query_tokens_contract import decode
from test_promise import Batch, Calls, Shape, check_promises, few_and_all_workers

import leanattn

pytestmark = pytest.mark.gpu

ops = torch.ops.leanattn


class TestPaged(PagedContract):
    pass


class TestPagedEdges(PagedEdgesContract):
    pass


@pytest.mark.parametrize("max_stages", [2, 3, 4])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("page_size", [1, 16, 40, 64, 256])
@pytest.mark.parametrize("heads", HEADS)
def test_a_short_ring(
    gpu: torch.device, heads: tuple[int, int], page_size: int, head_dim: int, max_stages: int
) -> None:
    lengths = [3000, *page_borders(page_size)]
    inputs = make_whole_pages(lengths, page_size, device=gpu, heads=heads, head_dim=head_dim)
    pages, table = paged(inputs, page_size)
    for workers in (1, 3, 40):
        got = decode_debug(pages, workers, block_table=table, max_stages=max_stages)
        assert all(map(torch.equal, got, decode(inputs, workers)))


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("page_size", [1, 16, 48])
def test_captured_and_replayed_with_other_tables_and_lengths(
    gpu: torch.device, page_size: int, planned: bool
) -> None:
    """Both are changed in place; at the capture no entry is a page."""
    max_pages = 9000 // page_size
    longest = max_pages * page_size
    pages = pool(gpu, 1000, page_size, (0,) * 4)
    table = torch.full((4, max_pages), -1, dtype=torch.int32, device=gpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = leanattn.plan(pages.q, pages.k_cache, pages.cache_seqlens, block_table=table)
        plan = made if planned else None
        out, lse = leanattn.decode(*pages.tensors(), block_table=table, plan=plan, return_lse=True)
    for lengths in ([1, page_size - 1, page_size, 0], [65, 64, longest, 1], [longest] * 4, [0] * 4):
        table.copy_(torch.randint(1000, table.shape, device=gpu))
        pages.cache_seqlens.copy_(torch.tensor(lengths, dtype=torch.int32))
        out.fill_(torch.nan)
        graph.replay()
        contiguous = gathered(pages, table)
        check_against_reference(contiguous, out, lse)
        if not planned:
            expected = leanattn.decode(*contiguous.tensors(), return_lse=True)
            assert all(map(torch.equal, (out, lse), expected))


def test_pages_and_lengths_that_grow_inside_the_graph(gpu: torch.device) -> None:
    """Step after step, as in a server: a sequence gets a page from the pool when its last one is full."""
    pages = pool(gpu, 60, 16, (300, 1))
    table = torch.full((2, 30), -1, dtype=torch.int32, device=gpu)
    free = torch.randperm(60, device=gpu).int().view(2, 30)
    table[0, :19], table[1, :1] = free[0, :19], free[1, :1]
    graph = torch.cuda.CUDAGraph()
    columns = torch.arange(30, device=gpu)
    with torch.cuda.graph(graph):
        pages.cache_seqlens.add_(1)
        in_use = columns * 16 < pages.cache_seqlens[:, None]
        table.copy_(torch.where(in_use, free, -1))
        out = leanattn.decode(*pages.tensors(), block_table=table)
    for _ in range(100):
        graph.replay()
        contiguous = gathered(pages, free)
        assert torch.equal(out, leanattn.decode(*contiguous.tensors()))
    assert pages.cache_seqlens.tolist() == [400, 101]


class PagedCalls(Calls):
    """The same calls, with the caches of test_promise seen as pages, in order."""

    def __init__(self, device: torch.device, shape: Shape, batch: Batch, page_size: int, q_len: int) -> None:
        super().__init__(device, shape, batch, q_len=q_len)
        k, v = (cache.unflatten(1, (-1, page_size)) for cache in (self.inputs.k_cache, self.inputs.v_cache))
        self.table = torch.arange(k.shape[0] * k.shape[1], dtype=torch.int32, device=device).view(k.shape[:2])
        self.pages = replace(self.inputs, k_cache=k.flatten(0, 1), v_cache=v.flatten(0, 1))
        assert self.pages.k_cache.data_ptr() == self.inputs.k_cache.data_ptr()

    def queue(self, workers: int, **options: int) -> None:
        ops.decode_out(*self.ahead.tensors(), self.newest, num_workers=1)
        q, *rest = self.pages.tensors()
        for out, lse in self.results:
            results = (out, lse, self.workspace)
            ops._decode_debug(q, *rest, *results, num_workers=workers, block_table=self.table, **options)
            q = out


@few_and_all_workers
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("batch", [(5001, 0, 1), (26, 61, 12), (41, 0, 300)], ids=str)
@pytest.mark.parametrize(
    ("shape", "q_len"), [((8, 2, 128), 1), ((32, 8, 128), 2), ((16, 1, 64), 16), ((8, 8, 64), 1)], ids=str
)
def test_fresh_tokens_are_waited_for(
    gpu: torch.device, shape: Shape, q_len: int, batch: Batch, page_size: int, workers: int
) -> None:
    """With room for whole pages of 16 tokens: 7 more than the longest sequence has."""
    calls = PagedCalls(gpu, shape, batch, page_size, q_len)
    check_promises(calls, workers, fresh_tokens=(q_len, 200, 2**40), max_stages=(0, 2))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_pages_beyond_32_bits(gpu: torch.device, head_dim: int) -> None:
    """Pages 2^24 elements apart: those from 128 on begin at element 2^31 or later."""
    needed = 150 * 2**24 * 2
    if torch.cuda.mem_get_info(gpu)[0] < needed + 2**30:
        pytest.skip(f"needs {needed / 1e9:.1f} GB of free GPU memory")
    memory = torch.full((150, 2**24), torch.nan, dtype=torch.bfloat16, device=gpu)
    k, v = (memory[:, start : start + 32 * head_dim].view(150, 16, 2, head_dim) for start in (0, 2**20))
    for cache in (k, v):
        cache.normal_()
    inputs = make_inputs((2000, 333, 0, 16), device=gpu, head_dim=head_dim)
    pages = Inputs(inputs.q, k, v, inputs.cache_seqlens)
    table = torch.stack([torch.randperm(150, device=gpu)[:125] for _ in range(4)]).int()
    got = decode(pages, block_table=table)
    check_against_reference(gathered(pages, table), *got)
    assert all(map(torch.equal, got, decode(gathered(pages, table))))
