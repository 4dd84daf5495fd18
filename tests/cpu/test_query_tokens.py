"""Several query tokens a sequence on the CPU: the contract of every device, and any shapes at all."""

from __future__ import annotations

import torch
from decode_cases import check_against_reference, make_inputs, plan_of
from decode_contract import decode_debug
from hypothesis import given, settings
from hypothesis import strategies as st
from query_tokens_contract import QueryTokensContract, decode

CPU = torch.device("cpu")


class TestQueryTokens(QueryTokensContract):
    pass


@settings(max_examples=400, deadline=None)
@given(
    q_len=st.integers(1, 16),
    group=st.integers(1, 40),
    num_kv_heads=st.integers(1, 5),
    head_dim=st.sampled_from([8, 24, 64]),
    lengths=st.lists(st.one_of(st.integers(0, 20), st.integers(0, 300)), max_size=5),
    workers=st.one_of(st.integers(1, 12), st.integers(1, 1024)),
    causal=st.booleans(),
    splits=st.integers(0, 6),
)
def test_any_shape(
    q_len: int,
    group: int,
    num_kv_heads: int,
    head_dim: int,
    lengths: list[int],
    workers: int,
    causal: bool,
    splits: int,
) -> None:
    heads = (group * num_kv_heads, num_kv_heads)
    inputs = make_inputs(
        lengths, device=CPU, q_len=q_len, heads=heads, head_dim=head_dim, dtype=torch.float16
    )
    inputs.causal = causal
    check_against_reference(inputs, *decode(inputs, workers))
    expected = decode(inputs, workers, plan=plan_of(inputs, workers))
    check_against_reference(inputs, *expected)
    got = decode_debug(inputs, workers, garbage=torch.nan, plan=plan_of(inputs, workers))
    assert all(map(torch.equal, got, expected))
    if splits > 0 and len(lengths) * num_kv_heads * -(-q_len * group // 32) * splits <= 1024:
        check_against_reference(inputs, *decode_debug(inputs, 1, fixed_splits=splits))
