"""Batch-invariant calls on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_cases import make_inputs, of_sequences
from decode_contract import decode_debug
from invariant_contract import LENGTHS, InvariantContract, decode

import leanattn

pytestmark = pytest.mark.gpu


class TestInvariant(InvariantContract):
    pass


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("heads", [(8, 2), (16, 16), (40, 2)])
def test_a_short_ring(gpu: torch.device, heads: tuple[int, int], head_dim: int) -> None:
    """As on GPUs with less shared memory, in many orders of arrival, with NaN in the workspace."""
    inputs = make_inputs(LENGTHS, device=gpu, heads=heads, head_dim=head_dim)
    for workers in (3, 40, 132):
        expected = decode(inputs, workers)
        for options in ({"max_stages": 2}, {"delay_seed": 1}, {"delay_seed": 7, "max_stages": 3}):
            for fresh_tokens in (None, 1, 5000):
                more: dict[str, Any] = {**options, "fresh_tokens": fresh_tokens, "batch_invariant": True}
                got = decode_debug(inputs, workers, garbage=torch.nan, **more)
                assert all(map(torch.equal, got, expected))


def test_a_gpu_full_of_sequences(gpu: torch.device) -> None:
    """More than a warp has lanes, all workers, and every sequence again alone."""
    lengths = [seed * 7919 % 20_000 for seed in range(100)]
    inputs = make_inputs(lengths, device=gpu, heads=(32, 8), head_dim=128)
    whole = decode(inputs, 0)
    for seq in range(100):
        alone = decode(of_sequences(inputs, [seq]), 0)
        assert all(torch.equal(x[0], y[seq]) for x, y in zip(alone, whole, strict=True))


def test_captured_and_replayed_with_other_lengths(gpu: torch.device) -> None:
    inputs = make_inputs((30_000,) * 8, device=gpu, heads=(32, 8), head_dim=128)
    decode(inputs, 0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens, batch_invariant=True)
        results = [decode(inputs, 0), decode(inputs, 0, plan=plan, fresh_tokens=1)]
    for seed in range(20):
        lengths = torch.randint(0, 30_000, (8,), generator=torch.Generator().manual_seed(seed))
        inputs.cache_seqlens.copy_(lengths)
        graph.replay()
        alone = decode(of_sequences(inputs, [seed % 8]), 0)
        for result in results:
            assert all(torch.equal(x[0], y[seed % 8]) for x, y in zip(alone, result, strict=True))
