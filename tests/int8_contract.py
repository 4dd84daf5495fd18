"""What decode must do with a cache of int8 and scales of its tokens; tests/cpu and tests/gpu run it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from decode_cases import LAYOUTS, Inputs, Reference, make_inputs, plan_of
from decode_contract import RAGGED
from int8_cases import SCALE_LAYOUTS, in_int8, laid_out_scales
from packed_cases import pack_queries
from paged_cases import make_whole_pages, paged
from score_options_contract import decode, like
from torch import Tensor

import leanattn


def check(inputs: Inputs, **more: Any) -> tuple[Tensor, Tensor]:
    """The yardstick is the same computation in the dtype of q, of the same cache de-quantised beforehand."""
    got = decode(inputs, **more)
    Reference(inputs).check(*got)
    return got


def spread_scales(inputs: Inputs, name: str, exponents: tuple[int, int]) -> None:
    """Multiplies the scales with powers of two, of each token and head one between these at random."""
    scale = inputs.options[name]
    generator = torch.Generator().manual_seed(0)
    powers = torch.randint(exponents[0], exponents[1] + 1, scale.shape, generator=generator)
    inputs.options[name] = scale * torch.exp2(powers.to(scale.device))


class Int8Contract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("head_dim", [64, 128, 256])
    @pytest.mark.parametrize("heads", [(8, 2), (3, 3), (40, 2), (16, 16), (71, 1)])
    def test_shapes(
        self, device: torch.device, heads: tuple[int, int], head_dim: int, dtype: torch.dtype
    ) -> None:
        check(in_int8(make_inputs(RAGGED, device=device, heads=heads, head_dim=head_dim, dtype=dtype)))

    @pytest.mark.parametrize("q_len", [None, 1, 2, 4, 8, 16])
    def test_query_tokens(self, device: torch.device, q_len: int | None) -> None:
        for causal in (True, False):
            inputs = in_int8(make_inputs(RAGGED, device=device, q_len=q_len))
            inputs.causal = causal
            check(inputs)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("head_dim", [64, 128, 256])
    def test_every_number(self, device: torch.device, head_dim: int, dtype: torch.dtype) -> None:
        """A query that picks one column of K, and a token whose V is all that is seen: exact."""
        inputs = make_inputs((1,) * 256, device=device, heads=(head_dim, 1), head_dim=head_dim, dtype=dtype)
        columns = torch.arange(256, device=device)[:, None] + torch.arange(head_dim, device=device)
        row = columns.to(torch.uint8).view(torch.int8)  # [256, head_dim]
        inputs.q = torch.eye(head_dim, dtype=dtype, device=device).expand(256, -1, -1).contiguous()
        k, v = row[:, None, None].contiguous(), row[:, None, None].contiguous()
        scales = 2.0 ** -(torch.arange(256, device=device) % 8).float()[:, None, None]
        options = {"k_scale": scales, "v_scale": scales}
        inputs = replace(inputs, k_cache=k, v_cache=v, options=options, softmax_scale=1.0)
        out, lse = decode(inputs)
        values = row * scales[:, 0]
        assert torch.equal(out, values[:, None].expand(-1, head_dim, -1).to(dtype))
        torch.testing.assert_close(lse, values, rtol=3e-7, atol=0)

    @pytest.mark.parametrize("sizes", [(1e6, 1e6), (1e-20, 1e-20), (1e4, 1e-4), (0.0, 1.0), (0.0, 0.0)])
    def test_queries_of_any_size(self, device: torch.device, sizes: tuple[float, float]) -> None:
        """Also of those that no float16 is; different in the heads of a group."""
        for q_len in (1, 4):
            inputs = in_int8(make_inputs(RAGGED, device=device, q_len=q_len))
            for head, size in enumerate(sizes):
                inputs.q[:, :, head::2] *= size
            inputs.softmax_scale = 0.1 / max(sizes) if max(sizes) > 0 else None
            check(inputs)

    @pytest.mark.parametrize("q_len", [1, 4])
    @pytest.mark.parametrize(
        "exponents", [(-100, -100), (-60, -20), (-40, 40), (-3, 3), (12, 30), (80, 80), (-90, 90)]
    )
    def test_scales_of_values_of_any_size(
        self, device: torch.device, exponents: tuple[int, int], q_len: int
    ) -> None:
        """Products with weights that no float16 is, of neighbouring tokens too."""
        inputs = in_int8(make_inputs(RAGGED, device=device, q_len=q_len))
        spread_scales(inputs, "v_scale", exponents)
        check(inputs)

    def test_a_large_value_of_little_weight(self, device: torch.device) -> None:
        """Products of about the same size, though neither scales nor weights are."""
        inputs = in_int8(make_inputs((700, 90), device=device))
        inputs.options["k_scale"].zero_()
        inputs.options["k_scale"][:, ::2] = 1.0
        inputs.k_cache.zero_()[..., 0] = 20
        inputs.q.zero_()[..., 0] = 1.0
        inputs.softmax_scale = 1.0
        inputs.options["v_scale"][:, 1::2] *= 20.0**20  # of tokens with a weight of e^-20
        check(inputs)

    @pytest.mark.parametrize("exponents", [(-40, -40), (-12, 3)])
    def test_scales_of_keys_of_any_size(self, device: torch.device, exponents: tuple[int, int]) -> None:
        inputs = in_int8(make_inputs(RAGGED, device=device, q_len=2))
        spread_scales(inputs, "k_scale", exponents)
        check(inputs)

    def test_rows_leave_each_other_alone(self, device: torch.device) -> None:
        """Whatever one token's scales are, rows of other sequences and KV heads are what they are without."""
        for name in ("k_scale", "v_scale"):
            inputs = in_int8(make_inputs((700, 70, 9), device=device, q_len=4))
            expected, _ = decode(inputs)
            for size in (torch.nan, torch.inf, 3e38, 1e-38, 0.0):
                inputs.options[name][0, 300, 1] = size
                out, _ = decode(inputs)
                assert torch.equal(out[1:], expected[1:])
                assert torch.equal(out[0, :, :4], expected[0, :, :4])
                assert out[0, :, 4:].isnan().all() == (size != size)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, device: torch.device, layout: str) -> None:
        inputs = make_inputs(RAGGED, device=device, layout=layout, head_dim=64, q_len=3)
        if layout == "padded":  # 8 elements of padding are 16 bytes no longer
            inputs.k_cache, inputs.v_cache = inputs.k_cache.contiguous(), inputs.v_cache.contiguous()
        check(in_int8(inputs))

    @pytest.mark.parametrize("page_size", [0, 16])
    @pytest.mark.parametrize("layout", SCALE_LAYOUTS)
    def test_layouts_of_scales(self, device: torch.device, layout: str, page_size: int) -> None:
        """Bit for bit, and what lies between them is not read."""
        inputs = make_whole_pages(RAGGED, 16, device=device, q_len=2)
        inputs, table = paged(inputs, page_size) if page_size else (inputs, None)
        inputs = in_int8(inputs)
        expected = decode(inputs, block_table=table)
        inputs.options = {name: laid_out_scales(scale, layout) for name, scale in inputs.options.items()}
        assert all(map(torch.equal, decode(inputs, block_table=table), expected))

    def test_one_scale_for_all(self, device: torch.device) -> None:
        inputs = in_int8(make_inputs(RAGGED, device=device))
        shape = inputs.k_cache.shape[:3]
        for name in ("k_scale", "v_scale"):
            inputs.options[name] = torch.full((1, 1, 1), 0.03, device=device).expand(shape)
        check(inputs)

    @pytest.mark.parametrize("page_size", [1, 16, 24, 128])
    def test_pages(self, device: torch.device, page_size: int) -> None:
        for head_dim in (64, 256):
            lengths = (700, 1, 0, 64, 2500, 129)
            inputs = make_whole_pages(lengths, page_size, device=device, head_dim=head_dim)
            pages, table = paged(inputs, page_size)
            Reference(in_int8(inputs)).check(*decode(in_int8(pages), block_table=table))

    @pytest.mark.parametrize("workers", [1, 3, 17])
    def test_plans_and_workers(self, device: torch.device, workers: int) -> None:
        inputs = in_int8(make_inputs(RAGGED, device=device, q_len=2))
        reference, plan = Reference(inputs), plan_of(inputs, workers)
        for more in ({}, {"plan": plan}, {"plan": plan, "fresh_tokens": 2}):
            got = torch.ops.leanattn.decode_lse(
                *inputs.tensors(), num_workers=workers, **inputs.options, **more
            )
            reference.check(*got)
        made = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens)
        assert made.shape == plan.shape
        inputs.cache_seqlens = torch.zeros_like(inputs.cache_seqlens)
        out, _ = torch.ops.leanattn.decode_lse(
            *inputs.tensors(), num_workers=workers, plan=plan, **inputs.options
        )
        reference.check(out)  # so the plan is one that is followed

    @pytest.mark.parametrize("page_size", [0, 16])
    def test_packed_queries(self, device: torch.device, page_size: int) -> None:
        plain = make_whole_pages((700, 40, 0, 129, 9), 16, device=device)
        plain = pack_queries(plain, (1, 35, 0, 17, 4))
        call, table = paged(plain, page_size) if page_size else (plain, None)
        Reference(in_int8(plain)).check(*decode(in_int8(call), block_table=table))

    @pytest.mark.parametrize("page_size", [0, 16])
    def test_with_score_options(self, device: torch.device, page_size: int) -> None:
        """Scales of tokens ahead of every window, and of padding, may be anything."""
        plain = make_whole_pages(RAGGED, 16, device=device, q_len=3)
        options = {
            "window_size": (150, -1),
            "softcap": 20.0,
            "sinks": torch.linspace(-1, 2, 8, device=device),
            "alibi_slopes": torch.linspace(0, 0.3, 8, device=device),
            "cache_leftpad": torch.full((len(RAGGED),), 7, dtype=torch.int32, device=device),
        }
        reference = Reference(in_int8(replace(plain, options=options)))
        for seq, length in enumerate(RAGGED):
            first = min(max(7, length - 3 - 150), length)
            plain.k_cache[seq, :first], plain.v_cache[seq, :first] = torch.nan, torch.nan
        call, table = paged(plain, page_size) if page_size else (plain, None)
        reference.check(*decode(in_int8(replace(call, options=options)), block_table=table))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"k_scale": None}, ValueError, r"k_scale: None, expected the scales \[2, 75, 2\]"),
            ({"v_scale": None}, ValueError, r"v_scale: None, expected the scales \[2, 75, 2\]"),
            ({"k_scale": 1.0}, TypeError, "k_scale: float, expected torch.Tensor"),
            ({"k_scale": torch.ones(2)}, ValueError, r"k_scale: shape \[2\], expected \[2, 75, 2\]"),
            ({"v_scale": torch.ones(2, 74, 2)}, ValueError, r"v_scale: shape \[2, 74, 2\], expected"),
            ({"v_scale": torch.ones(2, 75, 2).half()}, TypeError, "v_scale: dtype torch.float16, expected"),
            ({"k_scale": torch.ones(2, 75, 2, device="meta")}, ValueError, "k_scale: device meta"),
            (
                {"v_scale": torch.ones(2, 75, 2, requires_grad=True)},
                NotImplementedError,
                "v_scale: requires grad",
            ),
        ],
    )
    def test_refusals(
        self, device: torch.device, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        inputs = in_int8(make_inputs((70, 9), device=device))
        expected = decode(inputs)
        there = {name: like(value, device) for name, value in change.items()}
        with pytest.raises(error, match=message) as refusal:
            decode(inputs, **there)
        assert type(refusal.value) is error
        if error is not NotImplementedError:
            with pytest.raises((ValueError, TypeError, NotImplementedError, RuntimeError)):
                torch.ops.leanattn.decode(*inputs.tensors(), **{**inputs.options, **there})
        assert all(map(torch.equal, decode(inputs), expected))

    def test_what_does_not_fit(self, device: torch.device) -> None:
        inputs = in_int8(make_inputs((70, 9), device=device))
        with pytest.raises(TypeError, match="v_cache: dtype torch.bfloat16, expected that of k_cache"):
            decode(replace(inputs, v_cache=inputs.v_cache.bfloat16()))
        with pytest.raises(TypeError, match="k_cache: dtype torch.uint8, expected the dtype of q"):
            decode(replace(inputs, k_cache=inputs.k_cache.view(torch.uint8)))
        narrow = [t[..., :40] for t in (inputs.q, inputs.k_cache, inputs.v_cache)]
        with pytest.raises(NotImplementedError, match="q: head_dim 40, expected a multiple of 16"):
            decode(replace(inputs, q=narrow[0], k_cache=narrow[1], v_cache=narrow[2]))
        new = torch.zeros(2, 2, 64, dtype=torch.bfloat16, device=device)
        at = (inputs.k_cache, inputs.v_cache, inputs.cache_seqlens)
        before = inputs.k_cache.clone()
        with pytest.raises(
            NotImplementedError, match="k_cache: dtype torch.int8, .* has to choose its scale"
        ):
            leanattn.append_kv(new, new, *at, **inputs.options)
        assert torch.equal(inputs.k_cache, before)
        assert leanattn.is_supported(device, torch.bfloat16, 64, cache_dtype=torch.int8) == (True, [])

    def test_opcheck_and_compile(self, device: torch.device) -> None:
        inputs = in_int8(make_inputs((70, 0, 9), device=device, q_len=2))
        torch.library.opcheck(torch.ops.leanattn.decode_lse.default, inputs.tensors(), inputs.options)

        def step() -> tuple[Tensor, Tensor]:
            return decode(inputs)

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(), decode(inputs)))
