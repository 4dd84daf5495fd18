"""What decode must do with several query tokens a sequence; tests/cpu and tests/gpu run it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from decode_cases import (
    TILE_SIZES,
    Inputs,
    Reference,
    check_against_reference,
    make_inputs,
    parts_of_larger_tensors,
    plan_of,
)
from decode_contract import RAGGED, decode_and_check, decode_debug
from torch import Tensor

import leanattn

ops = torch.ops.leanattn

GROUPS = (1, 4, 5, 8, 16, 71)

both_masks = pytest.mark.parametrize("causal", [True, False])

# Query and KV heads, q_len, and the cache: a GPU's items have 8 rows at most of a small one, 16 of one
# between of one KV head, 32 of a large one, or with wgmma 128. Several blocks of rows, borders of blocks
# inside a token, and several KV heads of 8 rows each, which few workers read together.
SHAPES = [
    ((8, 2), 2, "small"),
    ((8, 2), 4, "between"),
    ((8, 1), 4, "large"),
    ((8, 1), 5, "small"),
    ((16, 1), 16, "small"),
    ((16, 1), 16, "large"),
    ((71, 1), 3, "between"),
    ((71, 1), 3, "large"),
    ((5, 1), 13, "small"),
    ((5, 1), 13, "large"),
    ((16, 16), 8, "between"),
    ((16, 8), 4, "small"),
    ((16, 4), 3, "large"),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
Shape = tuple[tuple[int, int], int, str]


def borders(q_len: int, longest: int = 3000) -> tuple[int, ...]:
    """Shorter than the queries and around the borders of tiles, which may lie between two query tokens."""
    ends = (end + more for end in (*TILE_SIZES, 192) for more in (q_len // 2, 1, -1, 0, q_len))
    return (0, 1, q_len // 2, q_len - 1, longest, q_len, q_len + 1, *ends)


def inputs_of(device: torch.device, shape: Shape, head_dim: int, dtype: torch.dtype) -> Inputs:
    heads, q_len, cache = shape
    return make_inputs(
        borders(q_len, {"small": 200, "between": 1200, "large": 3000}[cache]),
        device=device,
        q_len=q_len,
        heads=heads,
        head_dim=head_dim,
        dtype=dtype,
        # Memory that all sequences share counts for each of them.
        layout="expanded" if cache == "large" else "interleaved",
        max_tokens=40_000 if cache == "large" else None,
    )


@cache
def case(device: torch.device, shape: Shape, causal: bool) -> tuple[Inputs, Reference]:
    """Computed once for many tests; none may change it."""
    inputs = inputs_of(device, shape, 64, torch.bfloat16)
    inputs.causal = causal
    return inputs, Reference(inputs)


def decode(inputs: Inputs, workers: int = 0, **options: int | Tensor) -> tuple[Tensor, Tensor]:
    out, lse = ops.decode_lse(*inputs.tensors(), causal=inputs.causal, num_workers=workers, **options)
    return out, lse


class QueryTokensContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize("group", GROUPS)
    @pytest.mark.parametrize("q_len", range(1, 17))
    def test_every_q_len(self, device: torch.device, q_len: int, group: int) -> None:
        """Caches, head dims and dtypes take turns."""
        turn = q_len + GROUPS.index(group)
        heads = (2 * group, 2) if group < 32 else (group, 1)
        cache, head_dim = ("small", "between", "large")[turn % 3], (64, 128)[turn % 2]
        dtype = (torch.bfloat16, torch.float16)[turn // 2 % 2]
        inputs = inputs_of(device, (heads, q_len, cache), head_dim, dtype)
        for causal in (True, False):
            inputs.causal = causal
            decode_and_check(inputs)

    @pytest.mark.parametrize("workers", [1, 3, 40, 132, 1024])
    @every_shape
    def test_items_are_cut_where_some_queries_see_nothing(
        self, device: torch.device, shape: Shape, workers: int
    ) -> None:
        """A worker may have nothing but tokens after those of some of its rows."""
        for causal in (True, False):
            inputs, reference = case(device, shape, causal)
            expected = decode(inputs, workers)
            reference.check(*expected)
            for seed in (1, 2):
                got = decode_debug(inputs, workers, delay_seed=seed, garbage=torch.nan)
                assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize("workers", [26, 90, 200])
    @pytest.mark.parametrize(("heads", "q_len"), [((8, 1), 4), ((24, 1), 5), ((71, 1), 16)])
    def test_items_of_many_partials(
        self, device: torch.device, heads: tuple[int, int], q_len: int, workers: int
    ) -> None:
        # Items of 8 rows and of more.
        for layout, max_tokens in (("tokens_first", 5000), ("expanded", 70_000)):
            inputs = make_inputs(
                (5000, 900, 64 * 40 + 1),
                device=device,
                q_len=q_len,
                heads=heads,
                head_dim=128,
                layout=layout,
                max_tokens=max_tokens,
            )
            expected = decode(inputs, workers)
            check_against_reference(inputs, *expected)
            for seed in (1, 2):
                assert all(map(torch.equal, decode_debug(inputs, workers, delay_seed=seed), expected))

    @both_masks
    # No more than 1024 pieces, of up to 32 blocks of rows a sequence.
    @pytest.mark.parametrize("splits", [1, 2, 6])
    @pytest.mark.parametrize(("heads", "q_len"), [((8, 2), 3), ((16, 1), 16), ((71, 1), 2), ((16, 16), 7)])
    @pytest.mark.parametrize(("layout", "max_tokens"), [("tokens_first", None), ("expanded", 60_000)])
    def test_fixed_splits(
        self,
        device: torch.device,
        heads: tuple[int, int],
        q_len: int,
        splits: int,
        causal: bool,
        layout: str,
        max_tokens: int | None,
    ) -> None:
        inputs = make_inputs(
            (700, 1, 0, 129, 67),
            device=device,
            q_len=q_len,
            heads=heads,
            layout=layout,
            max_tokens=max_tokens,
        )
        inputs.causal = causal
        expected = decode_debug(inputs, 1, fixed_splits=splits)
        check_against_reference(inputs, *expected)
        got = decode_debug(inputs, 1, fixed_splits=splits, delay_seed=1, garbage=torch.nan)
        assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize("max_tokens", [3000, 60_000])
    def test_more_pieces_than_are_merged_at_once(self, device: torch.device, max_tokens: int) -> None:
        """Also of more rows than others have, if there is wgmma."""
        lengths, heads = (3000, 1, 0, 1700), (8, 1)
        inputs = make_inputs(
            lengths, device=device, q_len=16, heads=heads, layout="expanded", max_tokens=max_tokens
        )
        expected = decode_debug(inputs, 1, fixed_splits=27)
        check_against_reference(inputs, *expected)
        for seed in (1, 2):
            got = decode_debug(inputs, 1, fixed_splits=27, delay_seed=seed, garbage=torch.nan)
            assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize(("heads", "q_len"), [((8, 2), 5), ((71, 1), 16), ((16, 16), 8)])
    def test_the_mask_is_a_call_for_each_token(
        self, device: torch.device, heads: tuple[int, int], q_len: int
    ) -> None:
        inputs = make_inputs(borders(q_len), device=device, q_len=q_len, heads=heads, dtype=torch.float16)
        q, k, v, lengths = inputs.tensors()
        out, lse = decode_and_check(inputs)
        for token in range(q_len):
            seen = lengths - (q_len - 1 - token)  # below 0 counts as 0
            one, one_lse = leanattn.decode(q[:, token], k, v, seen, return_lse=True)
            torch.testing.assert_close(out[:, token], one, atol=2e-3, rtol=4e-3)
            torch.testing.assert_close(lse[:, :, token], one_lse, atol=1e-5, rtol=1e-5)

    def test_without_a_mask_tokens_are_as_more_heads(self, device: torch.device) -> None:
        inputs = make_inputs(borders(6), device=device, q_len=6, dtype=torch.float16)
        inputs.causal = False
        q, *rest = inputs.tensors()
        out, lse = decode_and_check(inputs)
        as_heads = q.unflatten(2, (2, 4)).permute(
            0, 2, 1, 3, 4
        )  # [batch, num_kv_heads, q_len, group, head_dim]
        flat, flat_lse = leanattn.decode(as_heads.flatten(1, 3), *rest, return_lse=True)
        out = out.unflatten(2, (2, 4)).permute(0, 2, 1, 3, 4).flatten(1, 3)
        lse = lse.unflatten(1, (2, 4)).transpose(2, 3).flatten(1)
        torch.testing.assert_close(out, flat, atol=2e-3, rtol=4e-3)
        torch.testing.assert_close(lse, flat_lse, atol=1e-5, rtol=1e-5)

    def test_one_token_is_the_same_with_and_without_the_mask(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        expected, expected_lse = decode_and_check(inputs)
        for causal in (True, False):
            inputs.causal = causal
            assert torch.equal(decode_and_check(inputs)[0], expected)
        inputs.q = inputs.q[:, None]
        for causal in (True, False):
            inputs.causal = causal
            out, lse = decode_and_check(inputs)
            assert torch.equal(out[:, 0], expected)
            assert torch.equal(lse[:, :, 0], expected_lse)

    @both_masks
    def test_lengths_are_clamped_to_the_cache(self, device: torch.device, causal: bool) -> None:
        inputs = make_inputs((100, 0, 100), device=device, q_len=3, max_tokens=100)
        inputs.causal = causal
        expected = decode_and_check(inputs)
        inputs.cache_seqlens = torch.tensor((101, -1, 2**31 - 1), dtype=torch.int32, device=device)
        assert all(map(torch.equal, decode_and_check(inputs), expected))

    @pytest.mark.parametrize("q_len", [2, 16])
    @pytest.mark.parametrize(("lengths", "max_tokens"), [((), 70), ((0, 0), 0), ((0, 1, 0), 1), ((3, 5), 5)])
    def test_little_to_see(
        self, device: torch.device, lengths: tuple[int, ...], max_tokens: int, q_len: int
    ) -> None:
        inputs = make_inputs(lengths, device=device, q_len=q_len, max_tokens=max_tokens)
        for causal in (True, False):
            inputs.causal = causal
            out, lse = decode_and_check(inputs)
            assert out.shape == (len(lengths), q_len, 8, 64)
            assert lse.shape == (len(lengths), 8, q_len)

    def test_softmax_scale(self, device: torch.device) -> None:
        inputs = make_inputs((300, 65, 3, 0), device=device, q_len=4)
        for scale in (0.0, -0.3, 5.0):
            inputs.softmax_scale = scale
            decode_and_check(inputs)

    @both_masks
    def test_queries_and_outputs_cut_from_larger_tensors(self, device: torch.device, causal: bool) -> None:
        inputs = make_inputs(RAGGED, device=device, q_len=4)
        inputs.causal = causal
        q, *rest = inputs.tensors()
        expected, expected_lse = decode_and_check(inputs)
        for i, (_, query) in enumerate(parts_of_larger_tensors(torch.nan, q)):
            query.copy_(q)
            assert torch.equal(leanattn.decode(query, *rest, causal=causal), expected)
            for j, (whole, out) in enumerate(parts_of_larger_tensors(7.0, q)):
                got, lse = leanattn.decode(query, *rest, causal=causal, out=out, return_lse=True)
                assert got is out
                assert torch.equal(out, expected), f"q of tensor {i}, out of tensor {j}"
                assert torch.equal(lse, expected_lse)
                out.fill_(7.0)
                assert (whole == 7.0).all(), f"something beside the output of tensor {j} was written"

    @both_masks
    @pytest.mark.parametrize("workers", [3, 40, 132])
    @every_shape
    def test_a_promise_changes_no_bit(
        self, device: torch.device, shape: Shape, workers: int, causal: bool
    ) -> None:
        inputs, _ = case(device, shape, causal)
        expected = decode(inputs, workers)
        for fresh_tokens in (shape[1], shape[1] + 1, 200, 2**40):
            got = decode(inputs, workers, fresh_tokens=fresh_tokens)
            assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize("workers", [0, 3, 132, 1024])
    @every_shape
    def test_a_plan_is_followed(self, device: torch.device, shape: Shape, workers: int) -> None:
        """Its lengths say which tokens are the last, too."""
        for causal in (True, False):
            inputs, reference = case(device, shape, causal)
            plan = plan_of(inputs, workers)
            wrong = torch.full_like(inputs.cache_seqlens, -1)  # nobody reads them any more
            inputs = replace(inputs, cache_seqlens=wrong)
            expected = decode(inputs, workers, plan=plan)
            reference.check(*expected)
            promised = decode(inputs, workers, plan=plan, fresh_tokens=shape[1])
            assert all(map(torch.equal, promised, expected))

    def test_the_documented_plan(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device, q_len=9)  # 36 rows of a KV head: two items, not one
        q, k, v, lengths = inputs.tensors()
        plan = leanattn.plan(q, k, lengths)
        for _ in range(2):
            out, lse = leanattn.decode(q, k, v, torch.full_like(lengths, -1), plan=plan, return_lse=True)
            check_against_reference(inputs, out, lse)
            plan.fill_(0)
            assert leanattn.plan(q, k, lengths, out=plan) is plan

    @pytest.mark.parametrize(("planned", "q_len"), [(1, 4), (4, 1), (16, 4), (4, 16), (8, 9), (16, 15)])
    def test_a_plan_for_another_q_len(self, device: torch.device, planned: int, q_len: int) -> None:
        for workers in (7, 132):
            inputs = make_inputs(borders(q_len), device=device, q_len=planned, heads=(16, 2))
            plan = plan_of(inputs, workers)
            inputs = make_inputs(borders(q_len), device=device, q_len=q_len, heads=(16, 2))
            check_against_reference(inputs, *decode(inputs, workers, plan=plan))

    def test_same_bits_in_every_run(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device, q_len=5)
        expected = leanattn.decode(*inputs.tensors())
        for _ in range(100):
            assert torch.equal(leanattn.decode(*inputs.tensors()), expected)

    def test_merged_states_of_a_prefix_and_the_new_tokens(self, device: torch.device) -> None:
        """All queries see the whole prefix; among the new tokens the mask holds."""
        q_len, prefix = 5, 300
        inputs = make_inputs((prefix + q_len,) * 3, device=device, q_len=q_len, dtype=torch.float16)
        q, k, v, lengths = inputs.tensors()
        new = k[:, prefix:], v[:, prefix:], lengths - prefix
        old = k[:, :prefix], v[:, :prefix], lengths.clamp_max(prefix)
        parts = [
            leanattn.decode(q, *old, causal=False, return_lse=True),
            leanattn.decode(q, *new, return_lse=True),
        ]
        out, lse = leanattn.merge_states([out for out, _ in parts], [lse.transpose(1, 2) for _, lse in parts])
        whole, whole_lse = decode_and_check(inputs)
        torch.testing.assert_close(out, whole, atol=2e-3, rtol=4e-3)
        torch.testing.assert_close(lse.transpose(1, 2), whole_lse, atol=1e-5, rtol=1e-5)

    def test_an_lse_of_another_order_is_refused(self, device: torch.device) -> None:
        inputs = make_inputs((40, 3), device=device, q_len=3, heads=(4, 2))
        tensors, out = inputs.tensors(), torch.empty_like(inputs.q)
        for shape in ((2, 3, 4), (24,), (2, 12), (2, 4)):
            with pytest.raises(ValueError, match=r"lse: expected \[2, 4, 3\], got"):
                ops.decode_out(*tensors, out, lse=torch.empty(shape, device=device))
        ops.decode_out(*tensors, out, lse=torch.empty(2, 4, 3, device=device))
