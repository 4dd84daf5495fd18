"""Fixed splits, for comparison with the lean decomposition, are right too; tests/cpu and tests/gpu run it."""

from __future__ import annotations

import pytest
import torch
from decode_cases import check_against_reference, make_inputs
from decode_contract import RAGGED, decode_debug

ops = torch.ops.leanattn

# 8 sequences: 14 splits of 9 items each (71 query rows, 8 an item) are no more pieces than there may be, as
# are 7 of 16. Some are empty, some have fewer tiles or even fewer tokens than splits.
LENGTHS = (700, 1, 0, 64, 2500, 0, 129, 29)

every_split = pytest.mark.parametrize("splits", [1, 2, 3, 7, 14])


class DecompositionContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @every_split
    @pytest.mark.parametrize("head_dim", [64, 128])
    @pytest.mark.parametrize("heads", [(2, 2), (8, 2), (24, 2), (64, 2), (71, 1)])
    def test_fixed_splits(
        self, device: torch.device, heads: tuple[int, int], head_dim: int, splits: int
    ) -> None:
        inputs = make_inputs(LENGTHS, device=device, heads=heads, head_dim=head_dim)
        check_against_reference(inputs, *decode_debug(inputs, 1, fixed_splits=splits))

    @pytest.mark.parametrize("splits", [1, 2, 3, 7])
    @pytest.mark.parametrize("workers", [1, 1000])
    @pytest.mark.parametrize("heads", [(16, 16), (48, 16), (128, 16)])
    def test_of_kv_heads_that_are_read_together(
        self, device: torch.device, heads: tuple[int, int], workers: int, splits: int
    ) -> None:
        """The number of workers that is asked for only decides whether a GPU's items are of four KV heads."""
        for head_dim in (64, 128):
            inputs = make_inputs(LENGTHS, device=device, heads=heads, head_dim=head_dim)
            check_against_reference(inputs, *decode_debug(inputs, workers, fixed_splits=splits))

    @every_split
    @pytest.mark.parametrize("heads", [(8, 2), (48, 2), (16, 4)])
    def test_neither_order_nor_garbage_nor_a_promise_matters(
        self, device: torch.device, heads: tuple[int, int], splits: int
    ) -> None:
        inputs = make_inputs(LENGTHS, device=device, heads=heads)
        expected = decode_debug(inputs, 1, fixed_splits=splits)
        check_against_reference(inputs, *expected)
        for seed in range(1, 6):
            got = decode_debug(inputs, 1, fixed_splits=splits, delay_seed=seed, garbage=torch.nan)
            assert all(map(torch.equal, got, expected))
        for fresh_tokens in (0, 1, 5, 2**40):
            got = decode_debug(inputs, 1, fixed_splits=splits, fresh_tokens=fresh_tokens)
            assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize("heads", [(8, 2), (16, 4), (71, 1)])
    def test_one_split_is_what_one_worker_does(self, device: torch.device, heads: tuple[int, int]) -> None:
        """And as there are no partials, it needs no memory for them."""
        inputs = make_inputs(RAGGED, device=device, heads=heads)
        out, lse = torch.full_like(inputs.q, torch.nan), torch.empty(inputs.q.shape[:2], device=device)
        nothing = torch.empty(0, device=device)
        ops._decode_debug(*inputs.tensors(), out, lse, nothing, num_workers=1, fixed_splits=1)
        assert all(map(torch.equal, (out, lse), ops.decode_lse(*inputs.tensors(), num_workers=1)))

    def test_as_many_whole_items_as_there_are(self, device: torch.device) -> None:
        """They take no tickets, which are what bounds the number of pieces."""
        inputs = make_inputs([i % 90 for i in range(700)], device=device)
        check_against_reference(inputs, *decode_debug(inputs, 1, fixed_splits=1))

    def test_as_many_pieces_as_there_are_tickets(self, device: torch.device) -> None:
        inputs = make_inputs((70_000,), device=device, heads=(4, 1))
        check_against_reference(inputs, *decode_debug(inputs, 1, fixed_splits=1024))
