"""Head dims between those that kernels are built for."""

from __future__ import annotations

import pytest
import torch
from decode_cases import check_against_reference, make_inputs
from decode_contract import RAGGED
from float8_contract import check as check_float8
from float8_contract import in_float8
from paged_cases import make_whole_pages, paged
from score_options_contract import decode
from v_head_dim_contract import in_cache_of

import leanattn
from leanattn.support import EIGHT_BITS, FLOAT8

pytestmark = pytest.mark.gpu

HEAD_DIMS = (*range(8, 257, 8), 264, 320, 384, 512)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(8, 2), (3, 3), (40, 2), (16, 16)])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_any_multiple_of_eight(
    gpu: torch.device, head_dim: int, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    for q_len, layout in ((1, "tokens_first"), (4, "padded")):  # beside a padded head there is NaN
        inputs = make_inputs(
            RAGGED, device=gpu, q_len=q_len, heads=heads, head_dim=head_dim, dtype=dtype, layout=layout
        )
        out, lse = leanattn.decode(*inputs.tensors(), return_lse=True)
        check_against_reference(inputs, out, lse)
        plan = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens)
        inputs.cache_seqlens, lengths = torch.zeros_like(inputs.cache_seqlens), inputs.cache_seqlens
        out = leanattn.decode(*inputs.tensors(), plan=plan)  # over the plan's lengths, so it is followed
        inputs.cache_seqlens = lengths
        check_against_reference(inputs, out)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_nothing_beside_the_output_is_written(gpu: torch.device, head_dim: int) -> None:
    inputs = make_inputs(RAGGED, device=gpu, head_dim=head_dim)
    wide = torch.full((len(RAGGED), 8, head_dim + 16), 7.0, dtype=torch.bfloat16, device=gpu)
    leanattn.decode(*inputs.tensors(), out=wide[..., 8:-8])
    check_against_reference(inputs, wide[..., 8:-8])
    assert (wide[..., :8] == 7).all()
    assert (wide[..., -8:] == 7).all()


@pytest.mark.parametrize("head_dim", [24, 96, 192, 256, 264, 512])
def test_pages(gpu: torch.device, head_dim: int) -> None:
    inputs = make_whole_pages(RAGGED, 16, device=gpu, head_dim=head_dim, q_len=2)
    pages, table = paged(inputs, 16)
    check_against_reference(inputs, leanattn.decode(*pages.tensors(), block_table=table))


@pytest.mark.parametrize("cache_dtype", FLOAT8)
@pytest.mark.parametrize("head_dim", [16, 48, 80, 96, 112, 144, 192, 256])
def test_float8(gpu: torch.device, head_dim: int, cache_dtype: torch.dtype) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        inputs = make_inputs(RAGGED, device=gpu, head_dim=head_dim, dtype=dtype, q_len=3)
        check_float8(in_float8(inputs, cache_dtype, 2))


def test_refusals(gpu: torch.device) -> None:
    inputs = make_inputs((70, 9), device=gpu, head_dim=520)
    with pytest.raises(NotImplementedError, match="q: head_dim 520, expected one of 8, 16, ..., 512 on cuda"):
        leanattn.decode(*inputs.tensors())
    for dtype in EIGHT_BITS:
        call = in_cache_of(dtype, make_inputs((70, 9), device=gpu, head_dim=64, v_head_dim=272))
        with pytest.raises(
            NotImplementedError, match="v_cache: head_dim 272, expected at most 256 with a cache"
        ):
            decode(call)
        with pytest.raises(
            ValueError, match="v_cache: head_dim 272 has no CUDA kernel for a cache of 8 bits"
        ):
            torch.ops.leanattn.decode(*call.tensors(), **call.options)
    padded = make_inputs((70, 9), device=gpu, head_dim=48)
    eighth = in_cache_of(FLOAT8[0], padded)
    eighth.q, eighth.k_cache, eighth.v_cache = (
        t[..., :40] for t in (eighth.q, eighth.k_cache, eighth.v_cache)
    )
    with pytest.raises(NotImplementedError, match="q: head_dim 40, expected a multiple of 16 with a cache"):
        leanattn.decode(*eighth.tensors())
    with pytest.raises(ValueError, match="q: head_dim 40, expected a multiple of 16 with a cache of 8 bits"):
        torch.ops.leanattn.decode(*eighth.tensors())
