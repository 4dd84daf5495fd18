"""What decode must do on every device; tests/cpu and tests/gpu run it, each on its own."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch
from decode_cases import LAYOUTS, TILE_SIZES, Inputs, check_against_reference, make_inputs
from torch import Tensor

import leanattn
from leanattn.checks import lse_shape, out_shape
from leanattn.reference import decode_reference

ops = torch.ops.leanattn

# One token; around borders near and far. Not sorted, so that the shares of workers fall anywhere.
BORDER_LENGTHS = (1, *(n * t + off for t in TILE_SIZES for n in (3, 1, 2, 17) for off in (1, -1, 0)))

RAGGED = (700, 1, 0, 64, 2500, 0, 65, 129, 1300, 3)


def decode_and_check(inputs: Inputs, sm_margin: int = 0) -> tuple[Tensor, Tensor]:
    out, lse = leanattn.decode(
        *inputs.tensors(),
        softmax_scale=inputs.softmax_scale,
        causal=inputs.causal,
        return_lse=True,
        sm_margin=sm_margin,
    )
    check_against_reference(inputs, out, lse)
    return out, lse


class DecodeContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize("head_dim", [64, 128])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_ragged_batch(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
        decode_and_check(make_inputs(RAGGED, device=device, dtype=dtype, head_dim=head_dim))

    @pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32])
    def test_groups(self, device: torch.device, group: int) -> None:
        decode_and_check(make_inputs((400, 65, 0, 1), device=device, heads=(2 * group, 2)))

    @pytest.mark.parametrize("workers", [1, 3, 40])
    @pytest.mark.parametrize("head_dim", [64, 128])
    @pytest.mark.parametrize("heads", [(16, 16), (48, 16), (128, 16), (100, 20), (40, 8), (144, 16)])
    def test_kv_heads_that_are_read_together(
        self, device: torch.device, heads: tuple[int, int], head_dim: int, workers: int
    ) -> None:
        """Few workers for many sequences of many KV heads: a GPU then makes one item of four."""
        lengths = (*BORDER_LENGTHS, 0, 0)
        inputs = make_inputs(lengths, device=device, heads=heads, head_dim=head_dim)
        check_against_reference(inputs, *ops.decode_lse(*inputs.tensors(), num_workers=workers))

    @pytest.mark.parametrize("workers", [24, 25, 26, 29, 31, 37, 50, 90])
    @pytest.mark.parametrize(("heads", "head_dim"), [((8, 1), 128), ((48, 2), 64), ((71, 1), 128)])
    def test_items_of_many_partials(
        self, device: torch.device, heads: tuple[int, int], head_dim: int, workers: int
    ) -> None:
        """Around the number of partials from which they are merged in groups, the last of one or more."""
        inputs = make_inputs((5000, 900, 3300), device=device, heads=heads, head_dim=head_dim)
        expected = ops.decode_lse(*inputs.tensors(), num_workers=workers)
        check_against_reference(inputs, *expected)
        for seed in range(1, 4):
            assert all(map(torch.equal, decode_debug(inputs, workers, delay_seed=seed), expected))

    @pytest.mark.parametrize("num_q_heads", [1, 33, 64, 71, 128])
    def test_mqa(self, device: torch.device, num_q_heads: int) -> None:
        decode_and_check(make_inputs((400, 65), device=device, heads=(num_q_heads, 1), head_dim=128))

    def test_mha(self, device: torch.device) -> None:
        decode_and_check(make_inputs((400, 65, 1), device=device, heads=(40, 40)))

    @pytest.mark.parametrize("head_dim", [64, 128])
    def test_lengths_around_tile_borders(self, device: torch.device, head_dim: int) -> None:
        decode_and_check(make_inputs(BORDER_LENGTHS, device=device, head_dim=head_dim))

    @pytest.mark.parametrize("length", sorted({*range(1, 18), 31, 32, 33, 63, 64, 65, 127, 128, 129}))
    def test_short_lengths_alone(self, device: torch.device, length: int) -> None:
        decode_and_check(make_inputs((length,), device=device))

    def test_length_equal_to_the_cache(self, device: torch.device) -> None:
        decode_and_check(make_inputs((200, 130), device=device, max_tokens=200))

    def test_lengths_are_clamped_to_the_cache(self, device: torch.device) -> None:
        inputs = make_inputs((100, 0, 100), device=device, max_tokens=100)
        expected = decode_and_check(inputs)
        inputs.cache_seqlens = torch.tensor((101, -1, 2**31 - 1), dtype=torch.int32, device=device)
        got = leanattn.decode(*inputs.tensors(), return_lse=True)
        assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize("lengths", [(0,), (0, 0, 0), (0, 5, 0, 0, 300, 0)])
    def test_empty_sequences(self, device: torch.device, lengths: tuple[int, ...]) -> None:
        out, lse = decode_and_check(make_inputs(lengths, device=device))
        empty = torch.tensor(lengths, device=device) == 0
        assert (out[empty] == 0).all()
        assert (lse[empty] == -torch.inf).all()

    def test_a_cache_of_no_tokens(self, device: torch.device) -> None:
        out, lse = decode_and_check(make_inputs((0, 0), device=device, max_tokens=0))
        assert (out == 0).all()
        assert (lse == -torch.inf).all()

    def test_batch_of_none(self, device: torch.device) -> None:
        out, lse = decode_and_check(make_inputs((), device=device))
        assert out.shape == (0, 8, 64)
        assert lse.shape == (0, 8)

    def test_batch_of_4096(self, device: torch.device) -> None:
        lengths = tuple((i * 7919) % 200 if i % 3 == 0 else 0 for i in range(4096))
        decode_and_check(make_inputs(lengths, device=device, heads=(4, 1)))

    @pytest.mark.parametrize("head_dim", [64, 128])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_cache_layouts(self, device: torch.device, layout: str, head_dim: int) -> None:
        decode_and_check(make_inputs((300, 65, 0, 700), device=device, layout=layout, head_dim=head_dim))

    def test_kv_heads_that_share_memory(self, device: torch.device) -> None:
        inputs = make_inputs((300, 65), device=device, heads=(8, 1))
        inputs.k_cache = inputs.k_cache.expand(-1, -1, 4, -1)
        inputs.v_cache = inputs.v_cache.expand(-1, -1, 4, -1)
        decode_and_check(inputs)

    def test_query_cut_from_a_packed_projection(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        packed = torch.full((len(RAGGED), 12, 64), torch.nan, dtype=inputs.q.dtype, device=device)
        packed[:, 2:10] = inputs.q
        expected = decode_and_check(inputs)
        inputs.q = packed[:, 2:10]
        assert all(map(torch.equal, decode_and_check(inputs), expected))

    def test_query_of_four_dimensions(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        out, lse = decode_and_check(inputs)
        inputs.q = inputs.q[:, None]
        out4, lse4 = decode_and_check(inputs)
        assert torch.equal(out4, out[:, None])
        assert torch.equal(lse4, lse[:, :, None])

    def test_logits_of_any_size(self, device: torch.device) -> None:
        # The scores are 9984 = 0.125 * 64 * 8 * 156, its negative or 0, all exactly.
        high, low, none = [156.0], [-156.0], [0.0]
        keys = (high * 200, low * 200, low * 150 + high + none * 49, low * 199 + high, low * 140 + high * 60)
        inputs = make_inputs([200] * len(keys), device=device)
        inputs.q.fill_(8.0)
        inputs.k_cache[:, :200] = torch.tensor(keys, device=device)[:, :, None, None]
        inputs.softmax_scale = 0.125
        decode_and_check(inputs)

    def test_all_logits_equal(self, device: torch.device) -> None:
        inputs = make_inputs((1, 64, 1000), device=device)
        inputs.q.zero_()
        _, lse = decode_and_check(inputs)
        for seq, length in enumerate((1, 64, 1000)):
            assert lse[seq].tolist() == pytest.approx([math.log(length)] * 8, abs=1e-6)

    @pytest.mark.parametrize("scale", [None, 0.0, -0.3, 1.0, 5.0])
    def test_softmax_scale(self, device: torch.device, scale: float | None) -> None:
        inputs = make_inputs((300, 65, 0), device=device)
        inputs.softmax_scale = scale
        decode_and_check(inputs)

    def test_out(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        expected, expected_lse = decode_and_check(inputs)
        wide = torch.full((len(RAGGED), 9, 80), 7.0, dtype=inputs.q.dtype, device=device)
        for out in (torch.full_like(inputs.q, torch.nan), wide[:, 1:, 8:72]):
            assert leanattn.decode(*inputs.tensors(), out=out) is out
            assert torch.equal(out, expected)
            got, lse = leanattn.decode(*inputs.tensors(), out=out, return_lse=True)
            assert got is out
            assert torch.equal(lse, expected_lse)
        wide[:, 1:, 8:72] = 7.0
        assert (wide == 7.0).all(), "nothing beside the output was written"

    def test_return_lse_changes_nothing_else(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        assert torch.equal(leanattn.decode(*inputs.tensors()), decode_and_check(inputs)[0])

    @pytest.mark.parametrize("workers", [1, 2, 3, 5, 16, 64, 131, 500, 1024])
    def test_any_number_of_workers(self, device: torch.device, workers: int) -> None:
        inputs = make_inputs(RAGGED, device=device)
        out, lse = ops.decode_lse(*inputs.tensors(), num_workers=workers)
        check_against_reference(inputs, out, lse)

    def test_workers_share_one_item(self, device: torch.device) -> None:
        inputs = make_inputs((20_000,), device=device, heads=(4, 1))
        for workers in (2, 33, 157, 200):
            check_against_reference(inputs, *ops.decode_lse(*inputs.tensors(), num_workers=workers))

    def test_margin_of_free_workers(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        decode_and_check(inputs, sm_margin=1)

    @pytest.mark.parametrize("workers", [1, 3, 40, 131])
    @pytest.mark.parametrize(
        ("heads", "layout"), list(zip([(8, 2), (6, 2), (16, 16), (32, 4), (71, 1)], LAYOUTS, strict=True))
    )
    @pytest.mark.parametrize("lengths", [RAGGED, BORDER_LENGTHS, (5000,)], ids=["ragged", "borders", "long"])
    def test_a_promise_changes_no_bit(
        self,
        device: torch.device,
        lengths: tuple[int, ...],
        heads: tuple[int, int],
        layout: str,
        workers: int,
    ) -> None:
        """What the kernel ahead may write is read later, not otherwise; here it writes no cache."""
        inputs = make_inputs(lengths, device=device, heads=heads, layout=layout)
        expected = ops.decode_lse(*inputs.tensors(), num_workers=workers)
        check_against_reference(inputs, *expected)
        for fresh_tokens in (0, 1, 5, 10**6, 2**40):
            got = ops.decode_lse(*inputs.tensors(), num_workers=workers, fresh_tokens=fresh_tokens)
            assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize("workers", [3, 40])
    def test_what_the_workspace_held_does_not_matter(self, device: torch.device, workers: int) -> None:
        inputs = make_inputs(RAGGED, device=device)
        expected = ops.decode_lse(*inputs.tensors(), num_workers=workers)
        check_against_reference(inputs, *expected)
        for garbage, delay_seed in product((torch.nan, torch.inf, -torch.inf, 1e30), range(3)):
            got = decode_debug(inputs, workers, garbage=garbage, delay_seed=delay_seed)
            assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize("head_dim", [64, 128])
    @pytest.mark.parametrize("workers", [1, 7, 40, 200])
    def test_nan_in_a_value_stays_with_its_head(
        self, device: torch.device, workers: int, head_dim: int
    ) -> None:
        """And the merge of its item ends, to which parts that have not come yet are NaN, too."""
        inputs = make_inputs((3000, 70), device=device, heads=(8, 2), head_dim=head_dim)
        expected, expected_lse = ops.decode_lse(*inputs.tensors(), num_workers=workers)
        inputs.v_cache[0, 1500, 1].view(torch.int16).fill_(-1)  # all bits: a pattern of its own
        for delay_seed in range(3):
            out, lse = decode_debug(inputs, workers, delay_seed=delay_seed)
            assert out[0, 4:].isnan().all()
            assert torch.equal(out[0, :4], expected[0, :4])
            assert torch.equal(out[1], expected[1])
            assert torch.equal(lse, expected_lse)

    @pytest.mark.parametrize("heads", [(8, 2), (32, 16)])
    @pytest.mark.parametrize("workers", [2, 7, 40, 200])
    def test_order_of_arrival_does_not_matter(
        self, device: torch.device, workers: int, heads: tuple[int, int]
    ) -> None:
        inputs = make_inputs(RAGGED, device=device, heads=heads)
        expected = ops.decode_lse(*inputs.tensors(), num_workers=workers)
        for seed in range(1, 11):
            assert all(map(torch.equal, decode_debug(inputs, workers, delay_seed=seed), expected))

    @pytest.mark.parametrize("group", [4, 16, 32])
    def test_which_worker_merges_does_not_matter(self, device: torch.device, group: int) -> None:
        """Items of many partials, whose last worker is sometimes one that has another span to do after it."""
        inputs = make_inputs((3000, 2100), device=device, heads=(2 * group, 2), head_dim=128)
        expected = ops.decode_lse(*inputs.tensors(), num_workers=90)
        for seed in range(1, 21):
            assert all(map(torch.equal, decode_debug(inputs, 90, delay_seed=seed), expected))

    def test_same_bits_in_every_run(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        expected = leanattn.decode(*inputs.tensors())
        out = torch.empty_like(expected)
        differences = torch.zeros((), dtype=torch.int64, device=device)
        for _ in range(1000):
            leanattn.decode(*inputs.tensors(), out=out)
            differences += (out != expected).sum()
        assert differences.item() == 0

    def test_merged_states_of_two_parts_are_the_whole(self, device: torch.device) -> None:
        whole = make_inputs((700, 300, 0), device=device, max_tokens=700)
        parts = []
        for begin, end in pairwise((0, 250, 700)):
            lengths = (whole.cache_seqlens - begin).clamp(0, end - begin)
            caches = whole.k_cache[:, begin:end], whole.v_cache[:, begin:end]
            parts.append(leanattn.decode(whole.q, *caches, lengths, return_lse=True))
        outs, lses = zip(*parts, strict=True)
        out, lse = leanattn.merge_states(outs, lses)
        exact, exact_lse = decode_reference(*whole.tensors())
        torch.testing.assert_close(out.double(), exact, atol=2e-2, rtol=0)
        torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=0)


def decode_debug(
    inputs: Inputs, workers: int, *, garbage: float = 0.0, fixed_splits: int = 0, **options: int | Tensor
) -> tuple[Tensor, Tensor]:
    """decode_lse with ``garbage`` in its workspace; a ``delay_seed`` makes workers pause where they meet."""
    q = inputs.q
    out = q.new_full(out_shape(q, inputs.v_cache), torch.nan)
    lse = torch.full(lse_shape(q), torch.nan, device=q.device)
    # Three partials a worker, of a batch-invariant call 2 x 24, [rows, head_dim of a kernel] and a few
    # numbers a row each; more than needed is no matter.
    # With fixed splits a worker has a piece of an item, and the items of a sequence have its rows together.
    partials = (48 if options.get("batch_invariant") else 3) * max(workers, fixed_splits * q.shape[0])
    rows, head_dim = lse[:1].numel(), max(q.shape[-1], out.shape[-1])
    workspace = torch.full((partials * rows * (2 * max(head_dim, 32) + 32),), garbage, device=q.device)
    options |= {"causal": inputs.causal, "num_workers": workers, "fixed_splits": fixed_splits}
    ops._decode_debug(*inputs.tensors(), out, lse, workspace, **options)
    return out, lse
