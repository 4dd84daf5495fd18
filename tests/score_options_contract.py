"""What decode must do with windows, padding, soft caps, sinks and ALiBi; tests/cpu runs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_cases import Inputs, Reference, check_against_reference, make_inputs
from decode_contract import RAGGED
from paged_cases import make_whole_pages, paged
from torch import Tensor

import leanattn

ops = torch.ops.leanattn

# Around a tile's length, and shorter and longer than any sequence.
WINDOWS = (0, 1, 15, 62, 63, 64, 65, 200, 5000, 2**31 - 1)


def decode(inputs: Inputs, **more: Any) -> tuple[Tensor, Tensor]:
    options: dict[str, Any] = {**inputs.options, **more, "softmax_scale": inputs.softmax_scale}
    result: tuple[Tensor, Tensor] = leanattn.decode(
        *inputs.tensors(), causal=inputs.causal, return_lse=True, **options
    )
    return result


def poison_unseen(inputs: Inputs) -> None:
    """NaN into all tokens ahead of every window, and into the padding."""
    q_len = 1 if inputs.q.dim() == 3 else inputs.q.shape[1]
    cu_seqlens_q = inputs.options.get("cu_seqlens_q")
    query_tokens = (
        [q_len] * len(inputs.cache_seqlens) if cu_seqlens_q is None else cu_seqlens_q.diff().tolist()
    )
    left = inputs.options.get("window_size", (-1, -1))[0]
    pads = inputs.options.get("cache_leftpad")
    for seq, length in enumerate(inputs.cache_seqlens.tolist()):
        pad = 0 if pads is None else max(int(pads[seq]), 0)
        first = max(pad, length - query_tokens[seq] - left if left >= 0 else 0)
        for cache in (inputs.k_cache, inputs.v_cache):
            cache[seq, : min(first, length)] = torch.nan


def check(inputs: Inputs, **more: Any) -> tuple[Tensor, Tensor]:
    reference = Reference(inputs)
    poison_unseen(inputs)
    got = decode(inputs, **more)
    reference.check(*got)
    return got


def like(value: Any, device: torch.device) -> Any:
    """A CPU tensor of zeros on the device, strides and all; anything else as it is."""
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return value
    there = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device).zero_()
    return there.requires_grad_(value.requires_grad)


class ScoreOptionsContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize("q_len", [None, 1, 3, 16])
    @pytest.mark.parametrize("left", WINDOWS)
    def test_a_window_of_the_past(self, device: torch.device, left: int, q_len: int | None) -> None:
        inputs = make_inputs(RAGGED, device=device, q_len=q_len)
        inputs.options = {"window_size": (left, -1)}
        check(inputs)

    @pytest.mark.parametrize("q_len", [None, 5, 16])
    @pytest.mark.parametrize("window", [(-1, 0), (-1, 2), (3, 0), (0, 0), (7, 4), (100, 15), (64, 40)])
    def test_a_window_of_past_and_future(
        self, device: torch.device, window: tuple[int, int], q_len: int | None
    ) -> None:
        inputs = make_inputs(RAGGED, device=device, q_len=q_len)
        inputs.causal, inputs.options = False, {"window_size": window}
        check(inputs)

    def test_no_future_is_the_causal_mask(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device, q_len=5)
        expected = decode(inputs)
        for window in ((-1, 0), (2**31 - 1, 0), (2**40, 0)):
            inputs.causal, inputs.options = False, {"window_size": window}
            assert all(map(torch.equal, decode(inputs), expected))
        inputs.causal, inputs.options = True, {"window_size": (-1, 3)}
        assert all(map(torch.equal, decode(inputs), expected))

    def test_a_window_is_the_end_of_the_cache(self, device: torch.device) -> None:
        """Bit for bit: what no query sees is neither read nor scheduled."""
        inputs = make_inputs((1000,) * 3, device=device, max_tokens=1000)
        inputs.options = {"window_size": (129, -1)}
        k, v = inputs.k_cache[:, 870:], inputs.v_cache[:, 870:]
        lengths = torch.full_like(inputs.cache_seqlens, 130)
        expected = leanattn.decode(inputs.q, k, v, lengths, return_lse=True)
        assert all(map(torch.equal, decode(inputs), expected))

    @pytest.mark.parametrize("q_len", [None, 4])
    def test_padding_on_the_left(self, device: torch.device, q_len: int | None) -> None:
        inputs = make_inputs(RAGGED, device=device, q_len=q_len)
        pads = torch.tensor((1, 0, 5, 63, 64, -3, 70, 129, 700, 2), dtype=torch.int32, device=device)
        inputs.options = {"cache_leftpad": pads}
        out, lse = check(inputs)
        for seq in (2, 5, 6, 7):  # no token is left
            assert (out[seq] == 0).all()
            assert (lse[seq] == -torch.inf).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("softcap", [0.5, 20.0, 50.0, 1e4])
    def test_soft_cap(self, device: torch.device, softcap: float, dtype: torch.dtype) -> None:
        for scale in (None, 3.0, -40.0):
            inputs = make_inputs(RAGGED, device=device, dtype=dtype, q_len=2)
            inputs.softmax_scale, inputs.options = scale, {"softcap": softcap}
            check(inputs)

    def test_sinks(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device, q_len=3)
        sinks = torch.tensor((0.0, 3.0, -5.0, 12.0, 300.0, -300.0, -torch.inf, 1.0), device=device)
        inputs.options = {"sinks": sinks}
        reference = Reference(inputs)
        out, lse = decode(inputs)
        reference.check(out, lse)
        for seq, length in enumerate(RAGGED):
            if length == 0:
                assert (out[seq] == 0).all()
                torch.testing.assert_close(lse[seq], sinks[:, None].expand(-1, 3))
        without, lse_without = decode(make_inputs(RAGGED, device=device, q_len=3))
        assert torch.equal(out[..., 6, :], without[..., 6, :]), "a sink of -inf is none"
        assert torch.equal(lse[:, 6], lse_without[:, 6])

    @pytest.mark.parametrize("of_batch", [False, True])
    @pytest.mark.parametrize("causal", [True, False])
    def test_alibi(self, device: torch.device, causal: bool, of_batch: bool) -> None:
        for q_len in (None, 6):
            inputs = make_inputs(RAGGED, device=device, heads=(12, 2), q_len=q_len)
            slopes = 2.0 ** -torch.arange(1, 13, device=device, dtype=torch.float32)
            if of_batch:
                slopes = slopes * torch.arange(len(RAGGED), device=device)[:, None]
            inputs.causal, inputs.options = causal, {"alibi_slopes": slopes}
            check(inputs)

    @pytest.mark.parametrize("page_size", [1, 16, 40])
    def test_pages(self, device: torch.device, page_size: int) -> None:
        """Entries of pages that no query sees are not read: they are none of a page."""
        lengths = (700, 1, 0, 64, 2500, 129)
        inputs = make_whole_pages(lengths, page_size, device=device, q_len=2)
        pads = torch.tensor((3, 0, 0, 40, 100, 0), dtype=torch.int32, device=device)
        inputs.options = {"window_size": (250, -1), "cache_leftpad": pads, "softcap": 30.0}
        expected = check(inputs)
        pages, table = paged(inputs, page_size)
        pages.options = inputs.options
        table = table.clone()
        for seq, (length, pad) in enumerate(zip(lengths, pads.tolist(), strict=True)):
            table[seq, : max(pad, length - 252, 0) // page_size] = -1
        assert all(map(torch.equal, decode(pages, block_table=table), expected))

    def test_a_plan_goes_with_what_leaves_the_lengths(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        plan = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens)
        inputs.options = {"softcap": 20.0, "sinks": torch.ones(8, device=device)}
        check_against_reference(inputs, *decode(inputs, plan=plan))
        inputs.causal, inputs.options = False, {"window_size": (-1, 2)}
        check_against_reference(inputs, *decode(inputs, plan=plan))
        compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(inputs, plan=plan), decode(inputs, plan=plan)))

    @pytest.mark.parametrize("window", [(-1, -1), (100, -1)])
    def test_a_plan_of_padding(self, device: torch.device, window: tuple[int, int]) -> None:
        """It is followed, its paddings included; one without paddings is not used."""
        inputs = make_inputs(RAGGED, device=device)
        pads = torch.tensor((1, 0, 5, 63, 64, -3, 70, 129, 700, 2), dtype=torch.int32, device=device)
        inputs.options = {"window_size": window, "cache_leftpad": pads}
        reference = Reference(inputs)
        at = (inputs.q, inputs.k_cache, inputs.cache_seqlens)
        plan = leanattn.plan(*at, **inputs.options)
        other = leanattn.plan(*at, window_size=window)
        without = decode(inputs)
        reference.check(*decode(inputs, plan=plan))
        assert all(map(torch.equal, decode(inputs, plan=other), without))
        inputs.options["cache_leftpad"] = torch.zeros_like(pads)
        reference.check(*decode(inputs, plan=plan))
        with pytest.raises(ValueError, match=r"cache_leftpad: shape \[3\], expected \[10\]"):
            leanattn.plan(*at, cache_leftpad=pads[:3])

    @pytest.mark.parametrize("max_tokens", [None, 60_000])
    def test_a_plan_for_queries_that_see_some_later_tokens(
        self, device: torch.device, max_tokens: int | None
    ) -> None:
        """It is followed, its lengths included: the queries make the call one of options, for both alike."""
        inputs = make_inputs(RAGGED, device=device, q_len=8, layout="expanded", max_tokens=max_tokens)
        inputs.causal, inputs.options = False, {"window_size": (-1, 3)}
        reference = Reference(inputs)
        at = (inputs.q, inputs.k_cache, inputs.cache_seqlens)
        plan = leanattn.plan(*at, causal=False, **inputs.options)
        inputs.cache_seqlens = torch.zeros_like(inputs.cache_seqlens)
        reference.check(*decode(inputs, plan=plan))

    @pytest.mark.parametrize("q_len", [None, 4])
    def test_a_plan_of_a_window(self, device: torch.device, q_len: int | None) -> None:
        """It is followed, its lengths included; one of another window is not used."""
        inputs = make_inputs(RAGGED, device=device, q_len=q_len)
        inputs.options = {"window_size": (100, -1)}
        reference = Reference(inputs)
        poison_unseen(inputs)
        at = (inputs.q, inputs.k_cache, inputs.cache_seqlens)
        plan = leanattn.plan(*at, window_size=(100, -1))
        others = [leanattn.plan(*at), leanattn.plan(*at, window_size=(99, -1))]
        reference.check(*decode(inputs, plan=plan))
        without = decode(inputs)
        assert all(map(torch.equal, decode(inputs, plan=others[0]), without))
        inputs.cache_seqlens = torch.zeros_like(inputs.cache_seqlens)
        reference.check(*decode(inputs, plan=plan))
        for other in others:
            assert not decode(inputs, plan=other)[0].any()
        with pytest.raises(ValueError, match="window_size: -2, expected -1"):
            leanattn.plan(*at, window_size=(-2, 0))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"window_size": 5}, TypeError, r"window_size: 5, expected \(left, right\)"),
            ({"window_size": (1, 2, 3)}, TypeError, r"window_size: \(1, 2, 3\)"),
            ({"window_size": (1.5, 0)}, TypeError, "window_size: float, expected two of int"),
            ({"window_size": (-2, 0)}, ValueError, "window_size: -2, expected -1"),
            ({"softcap": "1"}, TypeError, "softcap: str, expected float"),
            ({"softcap": -1.0}, ValueError, "softcap: -1.0, expected a finite number"),
            ({"softcap": torch.inf}, ValueError, "softcap: inf"),
            (
                {"softcap": 1e-50},
                ValueError,
                "softcap: .* nor is its inverse, got 1e-50",
            ),
            ({"sinks": torch.zeros(8, requires_grad=True)}, NotImplementedError, "sinks: requires grad"),
            (
                {"alibi_slopes": torch.zeros(8, requires_grad=True)},
                NotImplementedError,
                "alibi_slopes: requires grad",
            ),
            ({"sinks": [1.0] * 8}, TypeError, "sinks: list, expected torch.Tensor"),
            ({"sinks": torch.zeros(8, dtype=torch.float64)}, TypeError, "sinks: dtype torch.float64"),
            ({"sinks": torch.zeros(7)}, ValueError, r"sinks: shape \[7\], expected \[8\]"),
            ({"sinks": torch.zeros(8, 2)[:, 0]}, ValueError, "sinks: expected a contiguous tensor"),
            ({"alibi_slopes": torch.zeros(3, 8)}, ValueError, r"shape \[3, 8\], expected \[8\] or \[2, 8\]"),
            ({"cache_leftpad": torch.zeros(2)}, TypeError, "cache_leftpad: dtype torch.float32"),
            ({"cache_leftpad": torch.zeros(3, dtype=torch.int32)}, ValueError, r"cache_leftpad: shape \[3\]"),
            ({"sinks": torch.zeros(8, device="meta")}, ValueError, "sinks: device meta"),
        ],
    )
    def test_refusals(
        self, device: torch.device, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        inputs = make_inputs((70, 9), device=device)
        expected = decode(inputs)
        inputs.options = {name: like(value, device) for name, value in options.items()}
        with pytest.raises(error, match=message):
            decode(inputs)
        inputs.options = {}
        assert all(map(torch.equal, decode(inputs), expected))

    def test_opcheck_and_compile(self, device: torch.device) -> None:
        inputs = make_inputs((70, 0, 9), device=device, q_len=2)
        inputs.options = {
            "window_size": (20, -1),
            "softcap": 20.0,
            "sinks": torch.zeros(8, device=device),
            "alibi_slopes": torch.full((3, 8), 0.1, device=device),
            "cache_leftpad": torch.tensor((2, 0, 1), dtype=torch.int32, device=device),
        }
        left, right = inputs.options["window_size"]
        rest = {name: value for name, value in inputs.options.items() if name != "window_size"}
        options = {"window_left": left, "window_right": right, **rest}
        torch.library.opcheck(ops.decode.default, inputs.tensors(), options)
        torch.library.opcheck(ops.decode_lse.default, inputs.tensors(), options)
        out = torch.zeros_like(inputs.q)
        torch.library.opcheck(ops.decode_out.default, (*inputs.tensors(), out), options)

        def step() -> tuple[Tensor, Tensor]:
            return decode(inputs)

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(), decode(inputs)))
