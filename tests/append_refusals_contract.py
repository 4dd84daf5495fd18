"""What append_kv must refuse on every device, and how; tests/cpu and tests/gpu run it, each on its own."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from append_cases import bits, make_append, memory_of
from refusals_contract import (
    Arguments,
    Change,
    elsewhere,
    given,
    in_caches,
    odd_stride,
    replaced,
    shifted,
    strided,
    strided_last,
)
from torch import Tensor

import leanattn

ops = torch.ops.leanattn

CONTIGUOUS, PAGED = "contiguous", "paged"


def good_arguments(device: torch.device, *, paged: bool = False) -> Arguments:
    """k, v [3, 2, 2, 64], q [3, 2, 8, 64]; caches [3, 75, 2, 64] or [18, 16, 2, 64]; rotary_dim 32."""
    page_size = 16 if paged else None
    call = make_append((70, 0, 9), 2, device=device, rotary_dim=32, page_size=page_size)
    tensors = dict(zip(("k", "v", "k_cache", "v_cache", "cache_seqlens"), call.tensors(), strict=True))
    return {**tensors, **call.options()}


def in_all(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda arguments: {name: change(arguments[name]) for name in ("k", "v", "q", "k_cache", "v_cache")}


def in_new(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda arguments: {name: change(arguments[name]) for name in ("k", "v", "q")}


def in_factors(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda arguments: {name: change(arguments[name]) for name in ("rotary_cos", "rotary_sin")}


def overlapping(t: Tensor) -> Tensor:
    return t[:, :1].expand_as(t)


def of_dim(pairs: int) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.cat([t] * 3, -1)[:, :pairs].contiguous()


def nine_times_as_deep(t: Tensor) -> Tensor:
    return torch.cat([t] * 9, dim=-1)


def of_12_elements(arguments: Arguments) -> Arguments:
    return {**in_all(lambda t: t[..., :12])(arguments), **NO_FACTORS(arguments), "q": None}


NO_FACTORS = given(rotary_cos=None, rotary_sin=None)

# (what is wrong, the change, the exception, what its message must say)
REFUSED: list[tuple[str, Change, type[Exception], str]] = [
    ("k is no tensor", replaced("k", Tensor.tolist), TypeError, "k: list, expected torch.Tensor"),
    ("k dtype", replaced("k", Tensor.double), TypeError, "v: dtype .*bfloat16, expected the dtype of k"),
    ("dtype of all", in_all(Tensor.double), TypeError, "k: dtype torch.float64, expected one of float16"),
    ("k of 2 dimensions", replaced("k", lambda t: t[0, 0]), ValueError, r"k: shape \[2, 64\], expected \[b"),
    ("k of 5 dimensions", in_new(lambda t: t[None]), ValueError, r"k: shape \[1, 3, 2, 2, 64\], expected \["),
    ("no new tokens", in_new(lambda t: t[:, :0]), ValueError, r"k: shape \[3, 0, 2, 64\], expected one new"),
    ("no KV heads", in_new(lambda t: t[:, :, :0]), ValueError, r"k: shape \[3, 2, 0, 64\], expected one new"),
    ("batch", in_new(lambda t: t[:2]), ValueError, r"k_cache: shape \[3, 75, .*expected \[2, max_tokens"),
    (
        "head_dim 12",
        of_12_elements,
        NotImplementedError,
        "k: head_dim 12, expected one of 8, ",
    ),
    (
        "head_dim 576",
        in_all(nine_times_as_deep),
        NotImplementedError,
        "k: head_dim 576, expected one of .*512",
    ),
    ("k stride", replaced("k", strided_last), ValueError, "k: the last dimension must be contiguous"),
    ("k alignment", replaced("k", shifted), ValueError, "k: .* multiple of 16 bytes"),
    ("k row alignment", replaced("k", odd_stride), ValueError, "k: stride .* multiple of 16 bytes"),
    ("v is no tensor", replaced("v", lambda t: None), TypeError, "v: NoneType, expected torch.Tensor"),
    ("v dtype", replaced("v", Tensor.half), TypeError, "v: dtype torch.float16, expected the dtype of k"),
    ("v device", replaced("v", elsewhere), ValueError, "v: device .*, expected the device of k"),
    (
        "v shape",
        replaced("v", lambda t: t[:, :1]),
        ValueError,
        r"v: shape \[3, 1, 2, 64\], expected the shape",
    ),
    ("v alignment", replaced("v", shifted), ValueError, "v: .* multiple of 16 bytes"),
    ("k_cache dtype", replaced("k_cache", Tensor.half), TypeError, "k_cache: dtype .*float16, .*dtype of k,"),
    ("k_cache device", replaced("k_cache", elsewhere), ValueError, "k_cache: device .*, .*device of k,"),
    ("k_cache batch", replaced("k_cache", lambda t: t[:1]), ValueError, r"k_cache: shape \[1, 75, 2, 64\]"),
    ("cache heads", in_caches(lambda t: t[:, :, :1]), ValueError, "k_cache: 1 KV heads, expected the 2 of k"),
    ("k_cache head_dim", in_caches(lambda t: t[..., :56]), ValueError, r"k_cache: .*56\], .*64\]"),
    ("k_cache stride", replaced("k_cache", strided_last), ValueError, "k_cache: the last dimension"),
    ("k_cache alignment", replaced("k_cache", shifted), ValueError, "k_cache: .* multiple of 16 bytes"),
    ("k_cache overlap", replaced("k_cache", overlapping), ValueError, "k_cache: stride 0 .* do not overlap"),
    ("v_cache is no tensor", replaced("v_cache", lambda t: 1), TypeError, "v_cache: int, expected torch.T"),
    ("v_cache shape", replaced("v_cache", lambda t: t[:, :9]), ValueError, r"v_cache: shape \[3, 9, 2, 64\]"),
    ("v_cache overlap", replaced("v_cache", overlapping), ValueError, "v_cache: stride 0 .* do not overlap"),
    ("lengths no tensor", replaced("cache_seqlens", Tensor.tolist), TypeError, "cache_seqlens: list, exp"),
    ("lengths dtype", replaced("cache_seqlens", Tensor.long), TypeError, "cache_seqlens: dtype torch.int64"),
    ("lengths device", replaced("cache_seqlens", elsewhere), ValueError, "cache_seqlens: device .*, exp"),
    ("lengths batch", replaced("cache_seqlens", lambda t: t[:2]), ValueError, r"cache_seqlens: .*2\], .*3\]"),
    ("lengths stride", replaced("cache_seqlens", strided), ValueError, "cache_seqlens: .*contiguous"),
    ("q is no tensor", replaced("q", Tensor.tolist), TypeError, "q: list, expected torch.Tensor"),
    ("q dtype", replaced("q", Tensor.float), TypeError, "q: dtype torch.float32, expected the dtype of k"),
    ("q device", replaced("q", elsewhere), ValueError, "q: device .*, expected the device of k"),
    (
        "q tokens",
        replaced("q", lambda t: t[:, :1]),
        ValueError,
        r"q: shape \[3, 1, 8, 64\], .*but for the heads",
    ),
    ("q head_dim", replaced("q", lambda t: t[..., :32]), ValueError, "q: shape .*, expected the shape of k"),
    ("q dimensions", replaced("q", lambda t: t[:, 0]), ValueError, r"q: shape \[3, 8, 64\], expected the sh"),
    ("q overlap", replaced("q", overlapping), ValueError, "q: stride 0 .* do not overlap"),
    ("q alignment", replaced("q", shifted), ValueError, "q: .* multiple of 16 bytes"),
    ("q alone", NO_FACTORS, ValueError, "q: .*expected None without rotary_cos and rotary_sin"),
    ("no sin", given(rotary_sin=None), ValueError, "rotary_sin: None, expected"),
    ("no cos", given(rotary_cos=None), ValueError, "rotary_cos: None, expected"),
    ("cos no tensor", replaced("rotary_cos", Tensor.tolist), TypeError, "rotary_cos: list, expected torch.T"),
    (
        "factors of float16",
        in_factors(Tensor.half),
        TypeError,
        "rotary_cos: dtype torch.float16, .*float32 or",
    ),
    (
        "sin dtype",
        replaced("rotary_sin", Tensor.bfloat16),
        TypeError,
        "rotary_sin: dtype torch.bfloat16, exp",
    ),
    (
        "cos device",
        replaced("rotary_cos", elsewhere),
        ValueError,
        "rotary_cos: device .*, expected the device",
    ),
    (
        "cos dimensions",
        in_factors(lambda t: t[None]),
        ValueError,
        r"rotary_cos: shape .*, expected \[max_pos",
    ),
    (
        "sin shape",
        replaced("rotary_sin", lambda t: t[1:]),
        ValueError,
        "rotary_sin: shape .*, expected the sh",
    ),
    ("rotary_dim 24", in_factors(of_dim(12)), ValueError, "rotary_cos: rotary_dim 24, .* multiple of 16, at"),
    ("rotary_dim 80", in_factors(of_dim(40)), ValueError, "rotary_cos: rotary_dim 80, .* head_dim of k, 64"),
    (
        "rotary_dim 0",
        in_factors(of_dim(0)),
        ValueError,
        "rotary_cos: rotary_dim 0, expected a multiple of 16",
    ),
    ("cos stride", replaced("rotary_cos", strided_last), ValueError, "rotary_cos: the last dimension"),
    ("sin alignment", replaced("rotary_sin", shifted), ValueError, "rotary_sin: .* multiple of 16 bytes"),
    ("style None", given(rotary_interleaved=None), TypeError, "rotary_interleaved: NoneType, expected bool"),
    ("style 1", given(rotary_interleaved=1), TypeError, "rotary_interleaved: int, expected bool"),
    ("k grad", replaced("k", lambda t: t.clone().requires_grad_()), NotImplementedError, "k: requires grad"),
    (
        "cache grad",
        replaced("v_cache", Tensor.requires_grad_),
        NotImplementedError,
        "v_cache: requires .*append",
    ),
    ("cos grad", replaced("rotary_cos", Tensor.requires_grad_), NotImplementedError, "rotary_cos: requires"),
]

REFUSED_WITH_PAGES: list[tuple[str, Change, type[Exception], str]] = [
    ("table no tensor", replaced("block_table", Tensor.tolist), TypeError, "block_table: list, expected"),
    (
        "table dtype",
        replaced("block_table", Tensor.long),
        TypeError,
        "block_table: dtype torch.int64, expected",
    ),
    ("table device", replaced("block_table", elsewhere), ValueError, "block_table: device .* device of k"),
    ("table batch", replaced("block_table", lambda t: t[:2]), ValueError, r"block_table: .*\[3, max_pages\]"),
    ("table stride", replaced("block_table", strided_last), ValueError, "block_table: the last dimension"),
    ("pages of no token", in_caches(lambda t: t[:, :0]), ValueError, r"k_cache: shape .*\[num_pages, page_s"),
    ("pages that overlap", replaced("k_cache", overlapping), ValueError, "k_cache: stride 0 .*not overlap"),
]

ALL = [(CONTIGUOUS, *case) for case in REFUSED] + [(PAGED, *case) for case in REFUSED_WITH_PAGES]
# Callers of the op itself skip the checks in Python: those in C++ must do, with words of their own.
FOR_THE_OP = [case for case in ALL if not re.search("no tensor|grad|style|^k dtype", case[1])]


class AppendRefusalsContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize(
        ("cache", "change", "error", "message"),
        [(cache, *case) for cache, _, *case in ALL],
        ids=[case[1] for case in ALL],
    )
    def test_append_kv_refuses(
        self, device: torch.device, cache: str, change: Change, error: type[Exception], message: str
    ) -> None:
        arguments = good_arguments(device, paged=cache == PAGED)
        changed = {**arguments, **change(arguments)}
        check_refused(lambda: leanattn.append_kv(**changed), changed, error, message)
        with torch.no_grad():
            leanattn.append_kv(**arguments)

    @pytest.mark.parametrize(
        ("cache", "change", "message"),
        [(cache, change, message.partition(":")[0]) for cache, _, change, _, message in FOR_THE_OP],
        ids=[case[1] for case in FOR_THE_OP],
    )
    def test_the_op_refuses(self, device: torch.device, cache: str, change: Change, message: str) -> None:
        arguments = good_arguments(device, paged=cache == PAGED)
        arguments.update(change(arguments))
        # An argument on another device may be refused by torch, before the op is reached.
        errors = (ValueError, NotImplementedError)
        check_refused(
            lambda: ops.append_kv(**arguments), arguments, errors, f"{message}: |leanattn::append_kv"
        )

    def test_more_tokens_than_32_bits_count(self, device: torch.device) -> None:
        arguments = good_arguments(device)
        arguments |= {"q": None, "rotary_cos": None, "rotary_sin": None}
        arguments |= {name: arguments[name][:, :1].expand(-1, 2**30, -1, -1) for name in ("k", "v")}
        with pytest.raises(ValueError, match="k: 3 x 1073741824 new tokens, expected at most 2147483647"):
            leanattn.append_kv(**arguments)

    def test_more_heads_than_a_grid_has_places_for(self, device: torch.device) -> None:
        arguments = good_arguments(device)
        names = ("k", "v", "q", "k_cache", "v_cache", "cache_seqlens")
        arguments |= {name: arguments[name][:0] for name in names}  # no sequence, so that it takes no memory
        many = {name: arguments[name][:, :, :1].expand(-1, -1, 2**15 + 1, -1) for name in names[:-1]}
        with pytest.raises(ValueError, match="q: 32769 heads, expected at most 32768"):
            leanattn.append_kv(**{**arguments, "q": many["q"]})
        with pytest.raises(ValueError, match="k: 32769 KV heads, expected at most 32768"):
            leanattn.append_kv(**{**arguments, **many})

    def test_grad_is_no_matter_without_grad_mode(self, device: torch.device) -> None:
        arguments = good_arguments(device)
        arguments["k"] = arguments["k"].clone().requires_grad_()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                leanattn.append_kv(**arguments)

    def test_shapes_that_do_not_fit_are_refused_while_tracing(self, device: torch.device) -> None:
        tensors = make_append((70, 0, 9), 2, device=device).tensors()
        k, v, k_cache, v_cache, lengths = (t.to("meta") for t in tensors)
        ops.append_kv(k, v, k_cache, v_cache, lengths)
        with pytest.raises(ValueError, match="v_cache: shape"):
            ops.append_kv(k, v, k_cache, v_cache[:, 1:], lengths)


def check_refused(
    call: Callable[[], None],
    arguments: Arguments,
    error: type[Exception] | tuple[type[Exception], ...],
    message: str,
) -> None:
    """Nothing has been written."""
    written = [t for t in (arguments[name] for name in ("q", "k_cache", "v_cache")) if isinstance(t, Tensor)]
    written = [t.detach() for t in written if t.device.type != "meta"]
    before = [memory_of(t).clone() for t in written]
    with pytest.raises(error, match=message) as refusal:
        call()
    assert isinstance(error, tuple) or type(refusal.value) is error
    for tensor, memory in zip(written, before, strict=True):
        assert torch.equal(bits(memory_of(tensor)), bits(memory))
