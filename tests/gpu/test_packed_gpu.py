"""Packed queries and tree masks on a GPU."""

from __future__ import annotations

import pytest
import torch
from decode_cases import check_against_reference
from packed_cases import make_packed, offsets, random_bits
from packed_contract import PackedContract
from score_options_contract import decode
from tree_contract import TreeContract

import leanattn

pytestmark = pytest.mark.gpu


class TestPacked(PackedContract):
    pass


class TestTree(TreeContract):
    pass


@pytest.mark.parametrize("head_dim", [64, 128])
def test_chunks_of_prompts_beside_sequences_that_decode(gpu: torch.device, head_dim: int) -> None:
    lengths = (2048, 5000, 1, 4100, 700, 0, 2500, 17)
    query_tokens = (2048, 1, 1, 1000, 1, 0, 3, 17)
    inputs = make_packed(lengths, query_tokens, device=gpu, heads=(16, 4), head_dim=head_dim)
    check_against_reference(inputs, *decode(inputs))


def test_more_sequences_than_threads_that_number_their_blocks(gpu: torch.device) -> None:
    lengths = [i * 7919 % 90 for i in range(2500)]
    query_tokens = [i * 31 % 4 for i in range(2500)]
    inputs = make_packed(lengths, query_tokens, device=gpu)
    check_against_reference(inputs, *decode(inputs))


def test_captured_and_replayed_with_other_numbers_of_queries(gpu: torch.device) -> None:
    inputs = make_packed((700, 40, 129), (50, 1, 4), device=gpu)
    inputs.options["tree_mask"] = random_bits((55,), 2, gpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = leanattn.decode(*inputs.tensors(), return_lse=True, **inputs.options)
    for lengths, query_tokens in (
        ((700, 40, 129), (50, 1, 4)),
        ((1, 0, 64), (1, 1, 53)),
        ((333, 17, 90), (0, 3, 20)),
    ):
        inputs.cache_seqlens.copy_(torch.tensor(lengths))
        inputs.options["cu_seqlens_q"].copy_(offsets(query_tokens, gpu))
        for tensor in (out, lse):
            tensor.zero_()
        graph.replay()
        used = sum(query_tokens)
        lse[:, used:] = -torch.inf  # as the reference has rows of no sequence, which nobody writes
        check_against_reference(inputs, out, lse)
