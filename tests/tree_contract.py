"""What decode must do with a tree_mask; tests/cpu and tests/gpu run it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_cases import check_against_reference, make_inputs
from decode_contract import RAGGED
from packed_cases import make_packed, packed_bits, random_bits
from packed_contract import LENGTHS, QUERY_TOKENS, plan_of
from paged_cases import make_whole_pages, paged
from score_options_contract import decode, like

import leanattn

# Parents of twelve guesses, each ahead of its children; -1 is the root.
PARENTS = (-1, 0, 0, 1, 1, 2, 3, 3, 4, 6, 6, 8)


def ancestors(node: int) -> list[int]:
    """From the root on, the node included."""
    return [] if node < 0 else [*ancestors(PARENTS[node]), node]


class TreeContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("q_len", [1, 4, 16])
    def test_any_bits(self, device: torch.device, q_len: int, causal: bool) -> None:
        inputs = make_inputs(RAGGED, device=device, q_len=q_len)
        inputs.causal = causal
        inputs.options = {"tree_mask": random_bits((len(RAGGED), q_len), 1, device)}
        check_against_reference(inputs, *decode(inputs))
        plan = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens, causal=causal, **inputs.options)
        check_against_reference(inputs, *decode(inputs, plan=plan))

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("words", [1, 2, 12])
    def test_any_bits_of_packed_queries(self, device: torch.device, words: int, causal: bool) -> None:
        inputs = make_packed(LENGTHS, QUERY_TOKENS, device=device)
        inputs.causal = causal
        inputs.options["tree_mask"] = random_bits((sum(QUERY_TOKENS),), words, device)
        check_against_reference(inputs, *decode(inputs))
        check_against_reference(inputs, *decode(inputs, plan=plan_of(inputs)))

    def test_a_branch_is_a_sequence(self, device: torch.device) -> None:
        """The output of each guess is that of the sequence that ends with it and has its ancestors alone."""
        length, nodes = 300, len(PARENTS)
        inputs = make_inputs((length + nodes,), device=device, q_len=nodes, dtype=torch.float16)
        seen = torch.zeros(1, nodes, nodes, dtype=torch.bool, device=device)
        for node in range(nodes):
            seen[0, node, ancestors(node)] = True
        out, lse = decode(inputs, tree_mask=packed_bits(seen))
        for node in range(nodes):
            tokens = [*range(length), *(length + ancestor for ancestor in ancestors(node))]
            branch, branch_lse = leanattn.decode(
                inputs.q[:, node],
                inputs.k_cache[:, tokens].contiguous(),
                inputs.v_cache[:, tokens].contiguous(),
                torch.tensor([len(tokens)], dtype=torch.int32, device=device),
                return_lse=True,
            )
            torch.testing.assert_close(out[:, node], branch, rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(lse[..., node], branch_lse, rtol=1e-4, atol=1e-4)

    def test_all_bits_hide_nothing(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device, q_len=7)
        plain = decode(inputs, softcap=1e6)  # of the same kind of kernel
        every = torch.full((len(RAGGED), 7, 1), -1, dtype=torch.int32, device=device)
        for got, expected in zip(decode(inputs, tree_mask=every, softcap=1e6), plain, strict=True):
            assert torch.equal(got, expected)

    def test_no_bit_hides_all_new_tokens(self, device: torch.device) -> None:
        inputs = make_inputs((16, 100), device=device, q_len=16)
        none = torch.zeros(2, 16, 1, dtype=torch.int32, device=device)
        out, lse = decode(inputs, tree_mask=none)
        assert not out[0].any()
        assert (lse[0] == -torch.inf).all()
        assert out[1].any()

    def test_with_other_options_and_pages(self, device: torch.device) -> None:
        inputs = make_whole_pages(RAGGED, 16, device=device, q_len=9)
        inputs.options = {
            "tree_mask": random_bits((len(RAGGED), 9), 1, device),
            "window_size": (250, -1),
            "softcap": 30.0,
            "sinks": torch.linspace(-1, 2, 8, device=device),
            "alibi_slopes": torch.linspace(0, 0.3, 8, device=device),
            "cache_leftpad": torch.arange(len(RAGGED), dtype=torch.int32, device=device),
        }
        pages, table = paged(inputs, 16)
        pages.options = inputs.options
        check_against_reference(inputs, *decode(pages, block_table=table))

    @pytest.mark.parametrize(
        ("q_len", "tree_mask", "error", "message"),
        [
            (2, torch.zeros(2, 2, 1), TypeError, "tree_mask: dtype torch.float32"),
            (2, [1], TypeError, "tree_mask: list, expected torch.Tensor"),
            (2, torch.zeros(2, 3, 1, dtype=torch.int32), ValueError, r"tree_mask: shape \[2, 3, 1\]"),
            (2, torch.zeros(2, 2, 0, dtype=torch.int32), ValueError, r"tree_mask: shape \[2, 2, 0\]"),
            (2, torch.zeros(2, 2, dtype=torch.int32), ValueError, r"tree_mask: shape \[2, 2\]"),
            (
                2,
                torch.zeros(2, 2, 2, dtype=torch.int32)[..., :1],
                ValueError,
                "tree_mask: expected .* contiguous",
            ),
            (2, torch.zeros(2, 2, 1, dtype=torch.int32, device="meta"), ValueError, "tree_mask: device meta"),
            (None, torch.zeros(2, 1, dtype=torch.int32), ValueError, "tree_mask: a tensor, expected None"),
        ],
    )
    def test_refusals(
        self, device: torch.device, q_len: int | None, tree_mask: Any, error: type[Exception], message: str
    ) -> None:
        inputs = make_inputs((70, 9), device=device, q_len=q_len)
        with pytest.raises(error, match=message):
            decode(inputs, tree_mask=like(tree_mask, device))

    def test_opcheck_and_compile(self, device: torch.device) -> None:
        inputs = make_inputs((70, 0, 9), device=device, q_len=4)
        options = {"tree_mask": random_bits((3, 4), 1, device)}
        torch.library.opcheck(torch.ops.leanattn.decode_lse.default, inputs.tensors(), options)
        compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(inputs, **options), decode(inputs, **options)))
