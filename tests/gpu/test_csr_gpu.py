"""Pages in CSR form on a GPU, in a CUDA graph too."""

from __future__ import annotations

import pytest
import torch
from csr_contract import PAGE_SIZE, CsrContract, csr_of
from decode_cases import check_against_reference
from paged_cases import make_whole_pages, paged

import leanattn

pytestmark = pytest.mark.gpu


class TestCsr(CsrContract):
    pass


def test_captured_and_replayed_with_other_pages(gpu: torch.device) -> None:
    inputs = make_whole_pages((700, 40, 1), PAGE_SIZE, device=gpu)
    pages, table = paged(inputs, PAGE_SIZE)
    static = [torch.zeros_like(tensor) for tensor in csr_of(table, (700, 40, 1), PAGE_SIZE)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made, lengths = leanattn.block_table_from_csr(
            static[0], static[1], static[2], page_size=PAGE_SIZE, max_pages=50
        )
        out = leanattn.decode(pages.q, pages.k_cache, pages.v_cache, lengths, block_table=made)
    for seqlens in ((700, 40, 1), (16, 0, 1), (333, 17, 0)):
        for to, tensor in zip(static, csr_of(table, seqlens, PAGE_SIZE), strict=True):
            to[: len(tensor)].copy_(tensor)
        graph.replay()
        inputs.cache_seqlens = torch.tensor(seqlens, dtype=torch.int32, device=gpu)
        check_against_reference(inputs, out)
