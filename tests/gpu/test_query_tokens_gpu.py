"""Several query tokens a sequence on a GPU."""

from __future__ import annotations

import pytest
import torch
from decode_cases import check_against_reference, make_inputs
from decode_contract import RAGGED, decode_debug
from query_tokens_contract import QueryTokensContract, Shape, decode, every_shape, inputs_of
from test_graphs import Captured, set_lengths

import leanattn
from leanattn.schedule import tiling
from leanattn.support import has_wgmma

pytestmark = pytest.mark.gpu


class TestQueryTokens(QueryTokensContract):
    pass


@pytest.mark.parametrize("max_stages", [2, 3])
@pytest.mark.parametrize("head_dim", [64, 128])
@every_shape
def test_a_short_ring(gpu: torch.device, shape: Shape, head_dim: int, max_stages: int) -> None:
    inputs = inputs_of(gpu, shape, head_dim, torch.bfloat16)
    for workers in (3, 40):
        got = decode_debug(inputs, workers, max_stages=max_stages)
        assert all(map(torch.equal, got, decode(inputs, workers)))


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize(
    ("heads", "q_len"), [((8, 2), 16), ((16, 2), 5), ((9, 1), 16), ((64, 1), 1), ((32, 2), 4)]
)
def test_many_rows_over_a_large_cache(
    gpu: torch.device, heads: tuple[int, int], q_len: int, head_dim: int
) -> None:
    """Where there is wgmma, one item of up to 128 rows; the rows of (9, 1) are two blocks."""
    lengths, max_tokens = 2 * RAGGED, 20_000  # enough items for 132 workers
    rows = q_len * heads[0] // heads[1]
    sizes = tiling(
        "cuda",
        batch=len(lengths),
        max_tokens=max_tokens,
        num_kv_heads=heads[1],
        rows=rows,
        head_dim=head_dim,
        workers=40,
        wgmma=has_wgmma(gpu),
    )
    assert not has_wgmma(gpu) or sizes.block_rows == min(rows, 72)
    inputs = make_inputs(
        lengths, device=gpu, q_len=q_len, heads=heads, head_dim=head_dim, max_tokens=max_tokens
    )
    for workers in (3, 40):
        check_against_reference(inputs, *decode(inputs, workers))
    out, lse = leanattn.decode(*inputs.tensors(), return_lse=True)
    check_against_reference(inputs, out, lse)
    plan = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens)
    arguments = (inputs.q, inputs.k_cache, inputs.v_cache, torch.zeros_like(inputs.cache_seqlens))
    # Over the plan's lengths, so it is followed.
    check_against_reference(inputs, leanattn.decode(*arguments, plan=plan))


@pytest.mark.parametrize(("heads", "q_len"), [((8, 2), 5), ((32, 8), 2), ((71, 1), 16)])
def test_captured_and_replayed_at_any_length(gpu: torch.device, heads: tuple[int, int], q_len: int) -> None:
    inputs = make_inputs([9000] * 4, device=gpu, q_len=q_len, heads=heads)
    set_lengths(inputs, [1] * 4)
    captured = Captured(inputs)
    for lengths in (
        [1, q_len - 1, q_len, 0],
        [64, 65, 63 + q_len, 9000],
        [9000] * 4,
        [0] * 4,
        [3, 128, 1, 7],
    ):
        set_lengths(inputs, lengths)
        captured.out.fill_(torch.nan)
        captured.graph.replay()
        check_against_reference(inputs, captured.out, captured.lse)
