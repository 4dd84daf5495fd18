"""Windows, padding, soft caps, sinks and ALiBi on the CPU, and combinations of them drawn at random."""

from __future__ import annotations

from typing import Any

import torch
from decode_cases import LAYOUTS, check_error, make_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_cases import make_whole_pages, paged
from score_options_contract import ScoreOptionsContract, poison_unseen
from torch import Tensor

from leanattn.reference import decode_reference
from leanattn.score_options import ScoreOptions

CPU = torch.device("cpu")


class TestScoreOptions(ScoreOptionsContract):
    pass


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int]:
    sides = st.one_of(st.just(-1), st.integers(0, 20), st.integers(0, 400))
    return draw(sides), draw(sides)


@settings(max_examples=400, deadline=None)
@given(
    q_len=st.one_of(st.none(), st.integers(1, 16)),
    group=st.integers(1, 9),
    num_kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([8, 40, 64, 128]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    layout=st.sampled_from([layout for layout in LAYOUTS if layout != "expanded"]),
    page_size=st.sampled_from([0, 1, 16, 24]),
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=5),
    causal=st.booleans(),
    window=st.one_of(st.just((-1, -1)), windows()),
    softcap=st.sampled_from([0.0, 2.0, 30.0]),
    sinks=st.booleans(),
    alibi=st.sampled_from(["none", "heads", "batch"]),
    leftpad=st.booleans(),
    workers=st.sampled_from([1, 2, 7, 40]),
    seed=st.integers(0, 3),
)
def test_any_combination(
    q_len: int | None,
    group: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    layout: str,
    page_size: int,
    lengths: list[int],
    causal: bool,
    window: tuple[int, int],
    softcap: float,
    sinks: bool,
    alibi: str,
    leftpad: bool,
    workers: int,
    seed: int,
) -> None:
    heads = (group * num_kv_heads, num_kv_heads)
    shape: dict[str, Any] = {"device": CPU, "q_len": q_len, "heads": heads}
    shape |= {"head_dim": head_dim, "dtype": dtype}
    if page_size:
        inputs = make_whole_pages(lengths, page_size, seed=seed, **shape)
    else:
        inputs = make_inputs(lengths, layout=layout, seed=seed, **shape)
    random = torch.Generator().manual_seed(seed)
    inputs.causal = causal
    inputs.options = {"window_size": window, "softcap": softcap}
    if sinks:
        inputs.options["sinks"] = 3 * torch.randn(heads[0], generator=random)
    if alibi != "none":
        of = heads[:1] if alibi == "heads" else (len(lengths), heads[0])
        inputs.options["alibi_slopes"] = torch.rand(of, generator=random)
    if leftpad:
        inputs.options["cache_leftpad"] = torch.randint(-5, 90, (len(lengths),), generator=random).int()

    def reference(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return decode_reference(*inputs.tensors(), causal=causal, dtype=dtype, **inputs.options)

    exact, exact_lse = reference(torch.float64)
    same, _ = reference(dtype)
    poison_unseen(inputs)
    more: dict[str, Any] = ScoreOptions(**inputs.options).as_op_arguments()
    more |= {"causal": causal, "num_workers": workers}
    got, lse = torch.ops.leanattn.decode_lse(*inputs.tensors(), **more)
    if page_size:
        pages, table = paged(inputs, page_size, seed=seed)
        of_pages = torch.ops.leanattn.decode_lse(*pages.tensors(), block_table=table, **more)
        assert all(map(torch.equal, of_pages, (got, lse)))
    # Of few numbers the yardstick is right by chance, so some roundings are allowed beside it.
    check_error("out", got, exact, same, roundings=8, least_size=0.25)
    nothing = exact_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, nothing)
    torch.testing.assert_close(
        lse.masked_fill(nothing, 0.0).double(), exact_lse.masked_fill(nothing, 0.0), rtol=2e-5, atol=2e-5
    )
