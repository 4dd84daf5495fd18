"""Caches of int8 on a GPU."""

from __future__ import annotations

import pytest
import torch
from decode_cases import make_inputs
from decode_contract import RAGGED, decode_debug
from int8_cases import in_int8
from int8_contract import Int8Contract, check

pytestmark = pytest.mark.gpu


class TestInt8(Int8Contract):
    pass


@pytest.mark.parametrize("head_dim", [16, 48, 80, 96, 112, 144, 192, 256])
def test_other_head_dims(gpu: torch.device, head_dim: int) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        check(in_int8(make_inputs(RAGGED, device=gpu, head_dim=head_dim, dtype=dtype, q_len=3)))


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("heads", [(8, 2), (16, 16), (40, 2)])
def test_a_short_ring_and_late_workers(gpu: torch.device, heads: tuple[int, int], head_dim: int) -> None:
    """As on GPUs with less shared memory, in many orders of arrival, with NaN in the workspace."""
    inputs = in_int8(make_inputs(RAGGED, device=gpu, heads=heads, head_dim=head_dim))
    for workers in (3, 40):
        expected = torch.ops.leanattn.decode_lse(*inputs.tensors(), num_workers=workers, **inputs.options)
        for options in ({"max_stages": 2}, {"delay_seed": 1}, {"delay_seed": 7, "max_stages": 3}):
            got = decode_debug(inputs, workers, garbage=torch.nan, **options, **inputs.options)
            assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("heads", [(8, 8), (16, 16), (32, 8)])
def test_many_sequences(gpu: torch.device, heads: tuple[int, int]) -> None:
    """Enough items that some have several KV heads, whose warps have scales of their own."""
    for head_dim in (64, 128):
        check(in_int8(make_inputs((33, 0, 70, 128) * 20, device=gpu, heads=heads, head_dim=head_dim)))


def test_fresh_tokens_and_scales(gpu: torch.device) -> None:
    """A kernel directly ahead writes the last token and its scales, beside those that are read meanwhile."""
    inputs = in_int8(make_inputs((700, 65, 129, 1, 3000), device=gpu), "heads_first")
    scales = list(inputs.options.values())
    written = [inputs.k_cache, inputs.v_cache, *scales]
    seqs, last = torch.arange(5, device=gpu), inputs.cache_seqlens.long() - 1
    newest = [tensor[seqs, last].clone() for tensor in written]
    plan = torch.ops.leanattn.plan(
        inputs.cache_seqlens,
        max_tokens=inputs.k_cache.shape[1],
        num_q_heads=8,
        num_kv_heads=2,
        head_dim=64,
        itemsize=1,
    )
    expected = torch.ops.leanattn.decode(*inputs.tensors(), plan=plan, **inputs.options)
    for _ in range(20):
        for tensor in written:
            tensor[seqs, last] = 77
        torch.ops.leanattn.decode(*inputs.tensors(), plan=plan, **inputs.options)  # reads them
        for tensor, values in zip(written, newest, strict=True):
            tensor[seqs, last] = values
        out = torch.ops.leanattn.decode(*inputs.tensors(), plan=plan, fresh_tokens=1, **inputs.options)
        assert torch.equal(out, expected)
