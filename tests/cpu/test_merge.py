"""leanattn.merge_states against attention over the whole context."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanattn import merge_states


def parts_of_attention(scores: Tensor, values: Tensor, cuts: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Attention of each part between the cuts; scores [heads, tokens], values [tokens, head_dim]."""
    outs, lses = [], []
    for begin, end in zip([0, *cuts], [*cuts, scores.shape[1]], strict=True):
        weights = torch.softmax(scores[:, begin:end], dim=1).nan_to_num()
        outs.append(weights @ values[begin:end])
        lses.append(torch.logsumexp(scores[:, begin:end], dim=1))
    return outs, lses


@settings(max_examples=200, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 50), max_size=5).map(sorted),
    size=st.sampled_from([1.0, 100.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_any_cut_gives_the_whole(cuts: list[int], size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = size * torch.randn(3, 50, generator=generator)
    values = torch.randn(50, 8, generator=generator)
    (whole,), (whole_lse,) = parts_of_attention(scores, values, [])
    out, lse = merge_states(*parts_of_attention(scores, values, cuts))
    # A log-sum-exp of 4 * size has a rounding of 2^-24 times that, which the weights then have too.
    atol = 1e-6 * max(10.0, size)
    torch.testing.assert_close(out, whole, atol=atol, rtol=0)
    torch.testing.assert_close(lse, whole_lse, atol=atol, rtol=0)


def test_empty_parts_count_for_nothing() -> None:
    out = torch.randn(2, 4, 8)
    lse = torch.randn(2, 4)
    nothing = torch.full_like(out, torch.nan), torch.full_like(lse, -torch.inf)
    merged, merged_lse = merge_states([nothing[0], out, nothing[0]], [nothing[1], lse, nothing[1]])
    assert torch.equal(merged, out)
    assert torch.equal(merged_lse, lse)


def test_all_parts_empty() -> None:
    out, lse = merge_states(torch.zeros(3, 2, 8), torch.full((3, 2), -torch.inf))
    assert torch.equal(out, torch.zeros(2, 8))
    assert torch.equal(lse, torch.full((2,), -torch.inf))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_of_outs_is_kept(dtype: torch.dtype) -> None:
    out, lse = merge_states(torch.ones(2, 4, 8, dtype=dtype), torch.zeros(2, 4))
    assert torch.equal(out, torch.ones(4, 8, dtype=dtype))
    torch.testing.assert_close(lse, torch.full((4,), 2.0).log())


@pytest.mark.parametrize(
    ("outs", "lses", "error", "message"),
    [
        (torch.ones(2, 4, 8), torch.zeros(2, 4).double(), TypeError, "lses: dtype torch.float64"),
        (torch.ones(2, 4, 8), torch.zeros(2, 3), ValueError, r"lses: shape \[2, 3\], expected \[2, 4\]"),
        (torch.ones(0, 4, 8), torch.zeros(0, 4), ValueError, r"outs: shape \[0, 4, 8\]"),
        ([], [], ValueError, "outs: no tensors"),
        ([torch.ones(4, 8), torch.ones(3, 8)], torch.zeros(2, 4), ValueError, "outs: shapes"),
    ],
)
def test_bad_arguments(outs: Tensor, lses: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        merge_states(outs, lses)
