"""The reference against torch's own attention."""

from __future__ import annotations

import pytest
import torch
from decode_cases import make_inputs
from torch.nn.functional import scaled_dot_product_attention

from leanattn.reference import decode_reference

CPU = torch.device("cpu")


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_reference_is_scaled_dot_product_attention(heads: tuple[int, int], scale: float | None) -> None:
    inputs = make_inputs((70, 1, 33), device=CPU, heads=heads)
    out, lse = decode_reference(*inputs.tensors(), softmax_scale=scale)
    for seq, length in enumerate((70, 1, 33)):
        q = inputs.q[seq, :, None].double()  # [num_q_heads, 1, head_dim]
        k, v = (cache[seq, :length].double().transpose(0, 1) for cache in (inputs.k_cache, inputs.v_cache))
        expected = scaled_dot_product_attention(q[None], k[None], v[None], scale=scale, enable_gqa=True)
        torch.testing.assert_close(out[seq], expected[0, :, 0], atol=1e-12, rtol=0)
        k_of_q = k.repeat_interleave(heads[0] // heads[1], dim=0)  # [num_q_heads, tokens, head_dim]
        scores = (q @ k_of_q.transpose(1, 2))[:, 0] * (0.125 if scale is None else scale)
        torch.testing.assert_close(lse[seq], scores.exp().sum(1).log(), atol=1e-12, rtol=0)


def test_reference_of_empty_sequences_and_of_a_query_of_four_dimensions() -> None:
    inputs = make_inputs((0, 5), device=CPU)
    out, lse = decode_reference(*inputs.tensors())
    assert (out[0] == 0).all()
    assert (lse[0] == -torch.inf).all()
    inputs.q = inputs.q[:, None]
    out4, lse4 = decode_reference(*inputs.tensors())
    assert torch.equal(out4, out[:, None])
    assert torch.equal(lse4, lse[:, :, None])


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_reference_of_several_query_tokens(heads: tuple[int, int], causal: bool) -> None:
    """Each is a query token alone, over the tokens that it sees."""
    inputs = make_inputs((70, 0, 2, 5, 33), device=CPU, q_len=5, heads=heads)
    q, k, v, lengths = inputs.tensors()
    out, lse = decode_reference(q, k, v, lengths, causal=causal)
    assert out.shape == q.shape
    assert lse.shape == (5, heads[0], 5)
    for token in range(5):
        seen = lengths - 4 + token if causal else lengths
        one, one_lse = decode_reference(q[:, token], k, v, seen)
        torch.testing.assert_close(out[:, token], one, atol=1e-12, rtol=0)
        torch.testing.assert_close(lse[:, :, token], one_lse, atol=1e-12, rtol=0)


def test_the_mask_of_the_reference_is_that_of_torch() -> None:
    """Where there are as many tokens as queries, it does not matter at which end a mask begins."""
    inputs = make_inputs((7,), device=CPU, q_len=7)
    out, _ = decode_reference(*inputs.tensors())
    q, k, v = (x[:, :7].double().transpose(1, 2) for x in (inputs.q, inputs.k_cache, inputs.v_cache))
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out.transpose(1, 2), expected, atol=1e-12, rtol=0)


def test_reference_in_a_lower_dtype_is_less_exact() -> None:
    inputs = make_inputs((300,), device=CPU, dtype=torch.float32)
    exact, _ = decode_reference(*inputs.tensors())
    errors = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        out, lse = decode_reference(*inputs.tensors(), dtype=dtype)
        assert out.dtype == lse.dtype == dtype
        errors.append((out - exact).abs().max().item())
    assert errors == sorted(errors)
    assert errors[0] < 1e-6 < errors[1]
