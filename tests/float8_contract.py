"""What decode must do with a cache of 8-bit floats; tests/cpu and tests/gpu run it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from decode_cases import LAYOUTS, Inputs, Reference, make_inputs, plan_of
from decode_contract import RAGGED
from paged_cases import make_whole_pages, paged
from score_options_contract import decode, like
from torch import Tensor

import leanattn
from leanattn.support import FLOAT8

DTYPES = pytest.mark.parametrize("cache_dtype", FLOAT8)


def in_float8(inputs: Inputs, dtype: torch.dtype, scales: int | None = None) -> Inputs:
    """The call with its caches rounded to ``dtype``; what must not matter stays NaN. With so many scales."""

    def rounded(cache: Tensor) -> Tensor:
        if cache.stride(0) == 0:  # one memory for all
            return rounded(cache[0].clone()).expand(cache.shape)
        # An empty tensor of the same strides, since `to` keeps only those of dense ones.
        there = torch.empty_strided(cache.shape, cache.stride(), dtype=dtype, device=cache.device)
        return there.copy_(cache)

    options = dict(inputs.options)
    if scales is not None:
        for seed, name in enumerate(("k_scale", "v_scale")):
            random = torch.rand(scales, generator=torch.Generator().manual_seed(seed)) * 2 + 0.1
            options[name] = random.to(inputs.q.device)
    k, v = rounded(inputs.k_cache), rounded(inputs.v_cache)
    return replace(inputs, options=options, k_cache=k, v_cache=v)


def check(inputs: Inputs, **more: Any) -> tuple[Tensor, Tensor]:
    """The yardstick is the same computation in 16 bits, of the same cache de-quantised beforehand."""
    got = decode(inputs, **more)
    Reference(inputs).check(*got)
    return got


def every_number(dtype: torch.dtype, device: torch.device) -> Tensor:
    """All finite ones, both zeros included, and zeros up to 256."""
    numbers = torch.arange(256, dtype=torch.uint8, device=device).view(dtype).float()
    return numbers.nan_to_num(0.0, 0.0, 0.0).to(dtype)


class Float8Contract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @DTYPES
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("head_dim", [64, 128])
    @pytest.mark.parametrize("heads", [(8, 2), (3, 3), (40, 2), (16, 16), (71, 1)])
    def test_shapes(
        self,
        device: torch.device,
        heads: tuple[int, int],
        head_dim: int,
        dtype: torch.dtype,
        cache_dtype: torch.dtype,
    ) -> None:
        inputs = make_inputs(RAGGED, device=device, heads=heads, head_dim=head_dim, dtype=dtype)
        check(in_float8(inputs, cache_dtype))

    @DTYPES
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("head_dim", [64, 128])
    def test_every_number(
        self, device: torch.device, head_dim: int, dtype: torch.dtype, cache_dtype: torch.dtype
    ) -> None:
        """A query that picks one column of K, and a token whose V is all that is seen: exact."""
        numbers = every_number(cache_dtype, device)
        inputs = make_inputs((1,) * 256, device=device, heads=(head_dim, 1), head_dim=head_dim, dtype=dtype)
        columns = torch.arange(256, device=device)[:, None] + torch.arange(head_dim, device=device)
        row = numbers.view(torch.uint8)[columns % 256].view(cache_dtype)  # [256, head_dim]
        inputs.q = torch.eye(head_dim, dtype=dtype, device=device).expand(256, -1, -1).contiguous()
        k, v = row[:, None, None].contiguous(), row[:, None, None].contiguous()
        inputs = replace(inputs, k_cache=k, v_cache=v)
        out, lse = leanattn.decode(*inputs.tensors(), softmax_scale=1.0, return_lse=True)
        values = row.float()
        assert torch.equal(out.float(), values[:, None].expand(-1, head_dim, -1).to(dtype).float())
        torch.testing.assert_close(lse, values, rtol=3e-7, atol=0)

    @DTYPES
    @pytest.mark.parametrize("sizes", [(1e6, 1e6), (1e-20, 1e-20), (1e4, 1e-4), (0.0, 1.0), (0.0, 0.0)])
    def test_queries_of_any_size(
        self, device: torch.device, sizes: tuple[float, float], cache_dtype: torch.dtype
    ) -> None:
        """Also of those that no float16 is; different in the heads of a group."""
        for q_len in (1, 4):
            inputs = in_float8(make_inputs(RAGGED, device=device, q_len=q_len), cache_dtype)
            for head, size in enumerate(sizes):
                inputs.q[:, :, head::2] *= size
            inputs.softmax_scale = 0.1 / max(sizes) if max(sizes) > 0 else None
            check(inputs)

    @DTYPES
    @pytest.mark.parametrize("size", [torch.nan, torch.inf, 3e38, 1e-38])
    def test_queries_leave_each_other_alone(
        self, device: torch.device, size: float, cache_dtype: torch.dtype
    ) -> None:
        """Whatever one is, those of other heads, tokens and sequences give what they give without it."""
        inputs = in_float8(make_inputs((700, 70, 9), device=device, q_len=4), cache_dtype)
        expected, _ = decode(inputs)
        inputs.q[0, 1, 2] = size
        out, _ = decode(inputs)
        others = torch.ones(inputs.q.shape[:-1], dtype=torch.bool, device=device)
        others[0, 1, 2] = False
        assert torch.equal(out[others], expected[others])

    @DTYPES
    def test_nan_and_infinity_are_kept(self, device: torch.device, cache_dtype: torch.dtype) -> None:
        if device.type == "cuda" and torch.cuda.get_device_capability(device) != (9, 0):
            pytest.skip("a default build has the instruction that widens E4M3 for 9.0 only")
        inputs = in_float8(make_inputs((70, 5), device=device), cache_dtype)
        inputs.v_cache.view(torch.uint8)[1, 3, 0, 5] = 0x7F
        out, _ = decode(inputs)
        assert out[1, :4, 5].isnan().all()
        assert out.isnan().sum() == 4
        if cache_dtype == torch.float8_e5m2:
            inputs.v_cache.view(torch.uint8)[1, 3, 0, 5] = 0xFC
            assert (decode(inputs)[0][1, :4, 5] == -torch.inf).all()

    @DTYPES
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, device: torch.device, layout: str, cache_dtype: torch.dtype) -> None:
        inputs = make_inputs(RAGGED, device=device, layout=layout, head_dim=64, q_len=3)
        if layout == "padded":  # 8 elements of padding are 16 bytes no longer
            inputs.k_cache, inputs.v_cache = inputs.k_cache.contiguous(), inputs.v_cache.contiguous()
        check(in_float8(inputs, cache_dtype))

    @DTYPES
    @pytest.mark.parametrize("scales", [1, 2])
    @pytest.mark.parametrize("q_len", [None, 1, 4, 8, 16])
    def test_scales(
        self, device: torch.device, q_len: int | None, scales: int, cache_dtype: torch.dtype
    ) -> None:
        inputs = in_float8(make_inputs(RAGGED, device=device, q_len=q_len), cache_dtype, scales)
        expected = check(inputs)
        both = {name: inputs.options[name] for name in ("k_scale", "v_scale")}
        for name in both:
            inputs.options = {name: both[name]}
            check(inputs)
        inputs.options = both
        assert all(map(torch.equal, decode(inputs), expected))

    @DTYPES
    @pytest.mark.parametrize("page_size", [1, 16, 24, 128])
    def test_pages(self, device: torch.device, page_size: int, cache_dtype: torch.dtype) -> None:
        inputs = make_whole_pages((700, 1, 0, 64, 2500, 129), page_size, device=device, head_dim=128)
        pages, table = paged(inputs, page_size)
        check(in_float8(inputs, cache_dtype, 2))
        of_pages = in_float8(pages, cache_dtype, 2)
        Reference(in_float8(inputs, cache_dtype, 2)).check(*decode(of_pages, block_table=table))

    @pytest.mark.parametrize("workers", [1, 3, 17])
    def test_plans_and_workers(self, device: torch.device, workers: int) -> None:
        inputs = in_float8(make_inputs(RAGGED, device=device, q_len=2), FLOAT8[0], 2)
        reference, plan = Reference(inputs), plan_of(inputs, workers)
        for more in ({}, {"plan": plan}, {"plan": plan, "fresh_tokens": 2}):
            got = torch.ops.leanattn.decode_lse(
                *inputs.tensors(), num_workers=workers, **inputs.options, **more
            )
            reference.check(*got)
        inputs.cache_seqlens = torch.zeros_like(inputs.cache_seqlens)
        out, _ = torch.ops.leanattn.decode_lse(
            *inputs.tensors(), num_workers=workers, plan=plan, **inputs.options
        )
        reference.check(out)  # so the plan is one that is followed

    def test_with_score_options(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device, q_len=3)
        inputs.options = {
            "window_size": (150, -1),
            "softcap": 20.0,
            "sinks": torch.linspace(-1, 2, 8, device=device),
            "alibi_slopes": torch.linspace(0, 0.3, 8, device=device),
            "cache_leftpad": torch.full((len(RAGGED),), 7, dtype=torch.int32, device=device),
        }
        check(in_float8(inputs, FLOAT8[0], 2))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"k_scale": 1.0}, TypeError, "k_scale: float, expected torch.Tensor"),
            ({"k_scale": torch.ones(3)}, ValueError, r"k_scale: shape \[3\], expected \[1\] or \[2\]"),
            ({"v_scale": torch.ones(2, dtype=torch.float64)}, TypeError, "v_scale: dtype torch.float64"),
            ({"v_scale": torch.ones(1, requires_grad=True)}, NotImplementedError, "v_scale: requires grad"),
        ],
    )
    def test_refusals(
        self, device: torch.device, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        inputs = in_float8(make_inputs((70, 9), device=device), FLOAT8[0])
        expected = decode(inputs)
        there = {name: like(value, device) for name, value in change.items()}
        with pytest.raises(error, match=message):
            decode(inputs, **there)
        assert all(map(torch.equal, decode(inputs), expected))

    def test_dtypes_that_do_not_fit(self, device: torch.device) -> None:
        plain = make_inputs((70, 9), device=device)
        with pytest.raises(
            ValueError, match="k_scale: a tensor, expected None for a cache of torch.bfloat16"
        ):
            decode(plain, k_scale=torch.ones(1, device=device))
        inputs = in_float8(plain, FLOAT8[0])
        with pytest.raises(TypeError, match="v_cache: dtype torch.float8_e5m2, expected that of k_cache"):
            decode(replace(inputs, v_cache=inputs.v_cache.to(FLOAT8[1])))
        with pytest.raises(TypeError, match="k_cache: dtype torch.uint8, expected the dtype of q"):
            decode(replace(inputs, k_cache=inputs.k_cache.view(torch.uint8)))
        with pytest.raises(TypeError, match="q: dtype torch.float8_e4m3fn, expected one of"):
            decode(replace(inputs, q=inputs.q.to(FLOAT8[0])))
        assert leanattn.is_supported(device, torch.bfloat16, 64, cache_dtype=FLOAT8[1]) == (True, [])
        ok, reasons = leanattn.is_supported(device, torch.bfloat16, 64, cache_dtype=torch.uint8)
        assert not ok
        assert "k_cache: dtype torch.uint8, expected one of bfloat16, float8_e4m3fn" in reasons[0]

    def test_opcheck_and_compile(self, device: torch.device) -> None:
        inputs = in_float8(make_inputs((70, 0, 9), device=device, q_len=2), FLOAT8[0], 2)
        # Not test_schema: it multiplies tensors, which torch can't do with these.
        tests = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        op = torch.ops.leanattn.decode_lse.default
        torch.library.opcheck(op, inputs.tensors(), inputs.options, test_utils=tests)

        def step() -> tuple[Tensor, Tensor]:
            return decode(inputs)

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(), decode(inputs)))
