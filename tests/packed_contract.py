"""What decode must do with packed queries (cu_seqlens_q); tests/cpu and tests/gpu run it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from decode_cases import Inputs, Reference, check_against_reference, make_inputs
from float8_contract import in_float8
from packed_cases import make_packed, offsets, pack_queries
from paged_cases import make_whole_pages, paged
from score_options_contract import decode, like, poison_unseen
from torch import Tensor

import leanattn
from leanattn.support import FLOAT8

ops = torch.ops.leanattn

# Sequences that decode, verify guesses, and chunks of prompts; one without queries, one without tokens, and
# one whose first queries are ahead of its first token.
LENGTHS = (700, 1, 300, 64, 2500, 0, 65, 129, 20, 33)
QUERY_TOKENS = (1, 1, 300, 5, 70, 2, 0, 16, 40, 33)


def plan_of(inputs: Inputs, **more: Any) -> Tensor:
    known = ("window_size", "softcap", "sinks", "alibi_slopes", "cache_leftpad", "tree_mask")
    options = {name: inputs.options[name] for name in (*known, "cu_seqlens_q") if name in inputs.options}
    more |= {"causal": inputs.causal, "v_head_dim": inputs.v_cache.shape[3]}
    return leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens, **options, **more)


class PackedContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("heads", [(8, 2), (4, 4), (12, 1), (71, 1), (40, 2)])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_against_the_reference(
        self, device: torch.device, dtype: torch.dtype, heads: tuple[int, int], causal: bool
    ) -> None:
        inputs = make_packed(LENGTHS, QUERY_TOKENS, device=device, heads=heads, dtype=dtype)
        inputs.causal = causal
        reference = Reference(inputs)
        reference.check(*decode(inputs))
        reference.check(*decode(inputs, plan=plan_of(inputs)))

    @pytest.mark.parametrize("head_dim", [8, 72, 128, 256, 320, 512])
    def test_head_dims(self, device: torch.device, head_dim: int) -> None:
        inputs = make_packed(LENGTHS, QUERY_TOKENS, device=device, head_dim=head_dim)
        check_against_reference(inputs, *decode(inputs))

    @pytest.mark.parametrize("softmax_scale", [0.0, -0.25])
    def test_scales_that_are_not_positive(self, device: torch.device, softmax_scale: float) -> None:
        inputs = make_packed(LENGTHS, QUERY_TOKENS, device=device)
        inputs.softmax_scale = softmax_scale
        check_against_reference(inputs, *decode(inputs))

    def test_as_many_queries_of_all_are_the_call_of_four_dimensions(self, device: torch.device) -> None:
        inputs = make_inputs(LENGTHS, device=device, q_len=5)
        out, lse = decode(inputs)
        packed = replace(inputs, q=inputs.q.flatten(0, 1), options={})
        packed.options["cu_seqlens_q"] = offsets((5,) * len(LENGTHS), device)
        packed_out, packed_lse = decode(packed)
        torch.testing.assert_close(packed_out.view(out.shape), out, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(packed_lse, lse.transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "window", [(-1, 0), (0, 0), (100, -1), (64, 40), (3, 7), (-1, 2), (2**31 - 1, 5)]
    )
    @pytest.mark.parametrize("causal", [True, False])
    def test_windows(self, device: torch.device, causal: bool, window: tuple[int, int]) -> None:
        inputs = make_packed(LENGTHS, QUERY_TOKENS, device=device)
        inputs.causal = causal
        inputs.options["window_size"] = window
        reference = Reference(inputs)
        poison_unseen(inputs)
        reference.check(*decode(inputs))
        reference.check(*decode(inputs, plan=plan_of(inputs)))

    def options_of_all_kinds(self, inputs: Inputs, window: bool = True) -> None:
        num_q_heads, device = inputs.q.shape[-2], inputs.q.device
        batch = len(inputs.cache_seqlens)
        inputs.options |= {
            "softcap": 30.0,
            "sinks": torch.linspace(-1, 2, num_q_heads, device=device),
            "alibi_slopes": torch.rand(batch, num_q_heads, device=device) / 4,
            "cache_leftpad": torch.arange(batch, dtype=torch.int32, device=device) * 7,
        }
        if window:
            inputs.options["window_size"] = (250, -1)

    @pytest.mark.parametrize("cache_dtype", [None, *FLOAT8])
    def test_with_all_options(self, device: torch.device, cache_dtype: torch.dtype | None) -> None:
        inputs = make_packed(LENGTHS, QUERY_TOKENS, device=device)
        self.options_of_all_kinds(inputs)
        if cache_dtype is not None:
            inputs = in_float8(inputs, cache_dtype, 2)
        check_against_reference(inputs, *decode(inputs))
        check_against_reference(inputs, *decode(inputs, plan=plan_of(inputs)))

    @pytest.mark.parametrize("page_size", [1, 16, 40])
    def test_pages(self, device: torch.device, page_size: int) -> None:
        """Only entries of pages that a query sees are read."""
        inputs = pack_queries(make_whole_pages(LENGTHS, page_size, device=device), QUERY_TOKENS)
        self.options_of_all_kinds(inputs)
        reference = Reference(inputs)
        poison_unseen(inputs)
        pages, table = paged(inputs, page_size)
        pages.options = inputs.options
        reference.check(*decode(pages, block_table=table))

    @pytest.mark.parametrize("workers", [1, 7, 40, 1024])
    def test_any_number_of_workers(self, device: torch.device, workers: int) -> None:
        inputs = make_packed(LENGTHS, QUERY_TOKENS, device=device)
        reference = Reference(inputs)
        cu_seqlens_q = inputs.options["cu_seqlens_q"]
        first = ops.decode_lse(*inputs.tensors(), num_workers=workers, cu_seqlens_q=cu_seqlens_q)
        reference.check(*first)
        promised = ops.decode_lse(
            *inputs.tensors(), num_workers=workers, cu_seqlens_q=cu_seqlens_q, fresh_tokens=0
        )
        assert all(map(torch.equal, promised, first))

    def test_strides(self, device: torch.device) -> None:
        inputs = make_packed(LENGTHS, QUERY_TOKENS, device=device)
        out, lse = decode(inputs)
        wide = torch.full((inputs.q.shape[0], 12, 80), torch.nan, dtype=inputs.q.dtype, device=device)
        wide[:, 2:10, 8:72] = inputs.q
        inputs.q = wide[:, 2:10, 8:72]
        into = torch.full_like(wide, 7.0)
        result, its_lse = leanattn.decode(
            *inputs.tensors(), out=into[:, 2:10, 8:72], return_lse=True, **inputs.options
        )
        assert torch.equal(result, out)
        assert torch.equal(its_lse, lse)
        assert (into[:, :2] == 7).all()
        assert (into[:, :, :8] == 7).all()

    def test_rows_of_no_sequence_are_not_written(self, device: torch.device) -> None:
        inputs = make_packed((70, 9), (3, 2), device=device)
        reference = Reference(inputs)
        rest = torch.full_like(inputs.q, torch.nan)
        padded = replace(inputs, q=torch.cat([inputs.q, rest]))
        out = torch.full_like(padded.q, 7.0)
        leanattn.decode(*padded.tensors(), out=out, **padded.options)
        reference.check(out[:5])
        assert (out[5:] == 7).all()

    def test_no_queries_at_all(self, device: torch.device) -> None:
        for lengths, query_tokens in (((70, 9), (0, 0)), ((), ())):
            inputs = make_packed(lengths, query_tokens, device=device)
            out, lse = decode(inputs)
            assert out.shape == (0, 8, 64)
            assert lse.shape == (8, 0)

    @pytest.mark.parametrize(
        "bad", [(0, 3, 1, 12), (0, 3, -5, 12), (0, 3, 500, 12), (-9, 3, 5, 700), (12, 0, 12, 0)]
    )
    def test_offsets_that_do_not_rise_stay_inside(self, device: torch.device, bad: tuple[int, ...]) -> None:
        inputs = make_packed((70, 9, 300), (3, 2, 7), device=device)
        inputs.options["cu_seqlens_q"] = torch.tensor(bad, dtype=torch.int32, device=device)
        out, _ = decode(inputs)
        assert out.shape == inputs.q.shape
        inputs.options["cu_seqlens_q"] = offsets((3, 2, 7), device)
        check_against_reference(inputs, *decode(inputs))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"cu_seqlens_q": [0, 2]}, TypeError, "cu_seqlens_q: list, expected torch.Tensor"),
            ({"cu_seqlens_q": torch.zeros(3)}, TypeError, "cu_seqlens_q: dtype torch.float32"),
            (
                {"cu_seqlens_q": torch.zeros(2, dtype=torch.int32)},
                ValueError,
                r"cu_seqlens_q: shape \[2\], expected \[3\]",
            ),
            (
                {"cu_seqlens_q": torch.zeros(6, dtype=torch.int32)[::2]},
                ValueError,
                r"cu_seqlens_q: expected \[batch \+ 1\], \[3\], contiguous",
            ),
            (
                {"cu_seqlens_q": torch.zeros(3, dtype=torch.int32, device="meta")},
                ValueError,
                "cu_seqlens_q: device meta",
            ),
            ({"alibi_slopes": torch.zeros(5, 8)}, ValueError, r"alibi_slopes: shape \[5, 8\]"),
            ({"cache_leftpad": torch.zeros(5, dtype=torch.int32)}, ValueError, r"cache_leftpad: shape \[5\]"),
        ],
    )
    def test_refusals(
        self, device: torch.device, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        inputs = make_packed((70, 9), (3, 2), device=device)
        inputs.options |= {name: like(value, device) for name, value in options.items()}
        with pytest.raises(error, match=message):
            decode(inputs)

    def test_refusals_of_shapes(self, device: torch.device) -> None:
        inputs = make_packed((70, 9), (3, 2), device=device)
        with pytest.raises(ValueError, match=r"q: shape .* expected \[tokens, num_q_heads, head_dim\]"):
            decode(replace(inputs, q=inputs.q[None]))
        with pytest.raises(ValueError, match=r"k_cache: shape .* expected \[2, max_tokens"):
            decode(replace(inputs, k_cache=inputs.k_cache[:1]))
        with pytest.raises(ValueError, match=r"cu_seqlens_q: shape \[2\], expected \[3\]"):
            leanattn.plan(*inputs.tensors()[:2], inputs.cache_seqlens, cu_seqlens_q=offsets((3,), device))

    def test_a_plan_of_other_queries_is_not_used(self, device: torch.device) -> None:
        inputs = make_packed((70, 9), (1, 1), device=device)
        without = decode(inputs)
        one_each = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens)
        assert all(map(torch.equal, decode(inputs, plan=one_each), without))
        many = make_packed((70, 9), (300, 20), device=device)
        with pytest.raises(ValueError, match="plan: expected what leanattn.plan makes"):
            decode(many, plan=one_each)

    def test_opcheck_and_compile(self, device: torch.device) -> None:
        inputs = make_packed((70, 0, 9), (3, 1, 40), device=device)
        options = dict(inputs.options)
        torch.library.opcheck(ops.decode.default, inputs.tensors(), options)
        torch.library.opcheck(ops.decode_lse.default, inputs.tensors(), options)
        out = torch.zeros_like(inputs.q)
        torch.library.opcheck(ops.decode_out.default, (*inputs.tensors(), out), options)
        # With all workers there can be, nothing of a plan stays unwritten, and opcheck can compare it.
        shapes = {"max_tokens": 75, "num_q_heads": 8, "num_kv_heads": 1, "head_dim": 64, "q_len": 44}
        more = {**options, "window_right": 0, "num_workers": 1024}
        torch.library.opcheck(ops.plan.default, (inputs.cache_seqlens,), {**shapes, **more})

        def step() -> tuple[Tensor, Tensor]:
            return decode(inputs, plan=plan_of(inputs))

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(), step()))
