"""What decode must refuse on every device, and how; tests/cpu and tests/gpu run it, each on its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from decode_cases import make_inputs
from torch import Tensor

import leanattn

ops = torch.ops.leanattn

Arguments = dict[str, Any]
Change = Callable[[Arguments], Arguments]


def good_arguments(device: torch.device) -> Arguments:
    inputs = make_inputs((70, 0, 9), device=device)  # q [3, 8, 64], caches [3, 75, 2, 64]
    return dict(zip(("q", "k_cache", "v_cache", "cache_seqlens"), inputs.tensors(), strict=True))


def replaced(name: str, change: Callable[[Tensor], object]) -> Change:
    return lambda arguments: {name: change(arguments[name])}


def in_all(change: Callable[[Tensor], Tensor]) -> Change:
    """Of q and both caches, so that they still fit each other."""
    return lambda arguments: {name: change(arguments[name]) for name in ("q", "k_cache", "v_cache")}


def in_caches(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda arguments: {name: change(arguments[name]) for name in ("k_cache", "v_cache")}


def given(**options: object) -> Change:
    return lambda arguments: options


def strided(t: Tensor) -> Tensor:
    return t.repeat(2)[::2]


def strided_last(t: Tensor) -> Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def shifted(t: Tensor) -> Tensor:
    """Starts one element after a multiple of 16 bytes."""
    return t.new_empty(t.numel() + 1)[1:].view(t.shape)


def odd_stride(t: Tensor) -> Tensor:
    return t.new_empty(*t.shape[:-1], t.shape[-1] + 1)[..., :-1]


def overlapping(t: Tensor) -> Tensor:
    """Rows that begin 8 elements after each other."""
    return t.as_strided(t.shape, (t.stride(0), 8, 1))


def ten_times_as_deep(t: Tensor) -> Tensor:
    return torch.cat([t] * 10, dim=-1)


def query_tokens(count: int) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.stack([t] * count, 1) if count else t[:, None][:, :0]


def expanded_to(tokens: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t[:, :1].expand(-1, tokens, -1, -1)


def no_sequence_of_heads(heads: int) -> Change:
    """A batch of 0, whose output takes no memory however many heads there are."""
    return lambda arguments: {
        **{name: arguments[name][:0] for name in ("k_cache", "v_cache", "cache_seqlens")},
        "q": arguments["q"][:0, :1].expand(-1, heads, -1),
    }


def elsewhere(t: Tensor) -> Tensor:
    return t.cpu() if t.is_cuda else t.to("meta")


def out(change: Callable[[Tensor], object]) -> Change:
    return lambda arguments: {"out": change(torch.empty_like(arguments["q"]))}


def tokens_and_out(change: Callable[[Tensor], object]) -> Change:
    """Two query tokens a sequence, and an output made from one that would be right."""
    two = query_tokens(2)
    return lambda arguments: {"q": two(arguments["q"]), "out": change(two(torch.empty_like(arguments["q"])))}


NEGATIVE_PROMISE = "fresh_tokens: expected None, or 0 and more, got -1"

# (what is wrong, the change, the exception, what its message must say)
REFUSED: list[tuple[str, Change, type[Exception], str]] = [
    ("q is no tensor", replaced("q", Tensor.tolist), TypeError, "q: list, expected torch.Tensor"),
    ("q dtype", replaced("q", Tensor.double), TypeError, "k_cache: dtype .*bfloat16, .* q, torch.float64"),
    ("dtype of all", in_all(Tensor.double), TypeError, "q: dtype torch.float64, expected one of float16"),
    ("integers", in_all(Tensor.int), TypeError, "q: dtype torch.int32, expected one of float16"),
    ("q of 2 dimensions", replaced("q", lambda t: t[0]), ValueError, r"q: shape \[8, 64\], expected \[b"),
    ("q of 5 dimensions", replaced("q", lambda t: t[None, None]), ValueError, r"q: shape \[1, 1, 3, 8, 64\]"),
    ("q_len 17", replaced("q", query_tokens(17)), NotImplementedError, "q: q_len 17, expected 1..16"),
    ("q_len 0", replaced("q", query_tokens(0)), NotImplementedError, "q: q_len 0, expected 1..16"),
    ("q batch", replaced("q", lambda t: t[:2]), ValueError, r"k_cache: shape \[3, 75, .*expected \[2, max"),
    ("q heads", replaced("q", lambda t: t[:, :7]), ValueError, "q: 7 heads, expected a multiple of the 2 KV"),
    ("no q heads", replaced("q", lambda t: t[:, :0]), ValueError, "q: 0 heads, expected"),
    ("head_dim 12", in_all(lambda t: t[..., :12]), NotImplementedError, "q: head_dim 12, expected one of"),
    ("head_dim 640", in_all(ten_times_as_deep), NotImplementedError, "q: head_dim 640, expected one of"),
    (
        "q tokens",
        replaced("q", lambda t: odd_stride(query_tokens(3)(t))),
        ValueError,
        "q: stride .* 16 bytes",
    ),
    ("q stride", replaced("q", strided_last), ValueError, "q: the last dimension must be contiguous, .* 8"),
    ("q alignment", replaced("q", shifted), ValueError, "q: .* multiple of 16 bytes"),
    ("q row alignment", replaced("q", odd_stride), ValueError, "q: stride .* multiple of 16 bytes"),
    ("k_cache is no tensor", replaced("k_cache", lambda t: None), TypeError, "k_cache: NoneType, expected"),
    ("k_cache dtype", replaced("k_cache", Tensor.half), TypeError, "k_cache: dtype torch.float16, expected"),
    ("k_cache device", replaced("k_cache", elsewhere), ValueError, "k_cache: device .*, expected the device"),
    ("k_cache dimensions", replaced("k_cache", lambda t: t[0]), ValueError, r"k_cache: shape \[75, 2, 64\]"),
    ("k_cache batch", replaced("k_cache", lambda t: t[:1]), ValueError, r"k_cache: shape \[1, 75, 2, 64\]"),
    ("k_cache head_dim", replaced("k_cache", lambda t: t[..., :56]), ValueError, r"k_cache: .*56\], .*64\]"),
    ("no KV heads", in_caches(lambda t: t[:, :, :0]), ValueError, "q: 8 heads, expected .* the 0 KV heads"),
    ("k_cache stride", replaced("k_cache", strided_last), ValueError, "k_cache: the last dimension"),
    ("k_cache alignment", replaced("k_cache", shifted), ValueError, "k_cache: .* multiple of 16 bytes"),
    ("k_cache row alignment", replaced("k_cache", odd_stride), ValueError, "k_cache: stride .* 16 bytes"),
    ("v_cache is no tensor", replaced("v_cache", lambda t: 1), TypeError, "v_cache: int, expected torch.T"),
    ("v_cache dtype", replaced("v_cache", Tensor.float), TypeError, "v_cache: dtype torch.float32, expected"),
    ("v_cache device", replaced("v_cache", elsewhere), ValueError, "v_cache: device .*, expected the device"),
    ("v_cache shape", replaced("v_cache", lambda t: t[:, :9]), ValueError, r"v_cache: shape \[3, 9, 2, 64\]"),
    ("v_cache stride", replaced("v_cache", strided_last), ValueError, "v_cache: the last dimension"),
    ("v_cache alignment", replaced("v_cache", shifted), ValueError, "v_cache: .* multiple of 16 bytes"),
    ("lengths no tensor", replaced("cache_seqlens", Tensor.tolist), TypeError, "cache_seqlens: list, exp"),
    ("lengths dtype", replaced("cache_seqlens", Tensor.long), TypeError, "cache_seqlens: dtype torch.int64"),
    ("lengths device", replaced("cache_seqlens", elsewhere), ValueError, "cache_seqlens: device .*, exp"),
    ("lengths batch", replaced("cache_seqlens", lambda t: t[:2]), ValueError, r"cache_seqlens: .*2\], .*3\]"),
    ("one length", replaced("cache_seqlens", lambda t: t[0]), ValueError, r"cache_seqlens: .* \[\], .*3\]"),
    ("lengths stride", replaced("cache_seqlens", strided), ValueError, "cache_seqlens: .*contiguous"),
    ("out is no tensor", out(Tensor.tolist), TypeError, "out: list, expected torch.Tensor"),
    ("out dtype", out(Tensor.float), TypeError, "out: dtype torch.float32, expected torch.bfloat16"),
    ("out device", out(elsewhere), ValueError, "out: device .*, expected the device of q"),
    ("out shape", out(lambda t: t[:, None]), ValueError, r"out: shape \[3, 1, 8, 64\], .*\[3, 8, 64\]"),
    ("out of one token", tokens_and_out(lambda t: t[:, 0]), ValueError, r"out: shape .*\[3, 2, 8, 64\]"),
    ("out token twice", tokens_and_out(lambda t: t[:, :1].expand_as(t)), ValueError, "out: .*not overlap"),
    ("out stride", out(strided_last), ValueError, "out: the last dimension"),
    ("out expanded", out(lambda t: t[:1, :1].expand_as(t)), ValueError, "out: stride 0 .*not overlap"),
    ("out overlap", out(overlapping), ValueError, "out: stride .* do not overlap"),
    ("out alignment", out(shifted), ValueError, "out: .* multiple of 16 bytes"),
    ("scale nan", given(softmax_scale=float("nan")), ValueError, "softmax_scale: .*finite number, got nan"),
    ("scale inf", given(softmax_scale=float("inf")), ValueError, "softmax_scale: .*finite number, got inf"),
    ("scale 3e38", given(softmax_scale=3e38), ValueError, r"softmax_scale: .*finite number, got 3e\+38"),
    ("scale text", given(softmax_scale="1"), TypeError, "softmax_scale: str, expected float or None"),
    ("causal text", given(causal="yes"), TypeError, "causal: str, expected bool"),
    ("causal None", given(causal=None), TypeError, "causal: NoneType, expected bool"),
    ("causal 1", given(causal=1, return_lse=True), TypeError, "causal: int, expected bool"),
    ("margin below 0", given(sm_margin=-1), ValueError, r"sm_margin: -1, expected 0\.\."),
    ("margin of all", given(sm_margin=10**6), ValueError, r"sm_margin: 1000000, expected 0\.\."),
    ("margin 1.5", given(sm_margin=1.5), TypeError, "sm_margin: float, expected int"),
    ("promise below 0", given(fresh_tokens=-1), ValueError, NEGATIVE_PROMISE),
    ("promise and lse", given(fresh_tokens=-1, return_lse=True), ValueError, NEGATIVE_PROMISE),
    ("promise and scale", given(fresh_tokens=-(2**63), softmax_scale=1), ValueError, "fresh_tokens: .* -922"),
    ("promise and out", lambda a: {**out(Tensor.clone)(a), "fresh_tokens": -1}, ValueError, NEGATIVE_PROMISE),
    ("promise 1.5", given(fresh_tokens=1.5), TypeError, "fresh_tokens: float, expected int or None"),
    ("promise text", given(fresh_tokens="1"), TypeError, "fresh_tokens: str, expected int or None"),
    ("q grad", replaced("q", Tensor.requires_grad_), NotImplementedError, "q: requires grad, expected"),
    ("k_cache grad", replaced("k_cache", Tensor.requires_grad_), NotImplementedError, "k_cache: requires"),
    ("v_cache grad", replaced("v_cache", Tensor.requires_grad_), NotImplementedError, "v_cache: requires"),
    ("out grad", out(Tensor.requires_grad_), NotImplementedError, "out: requires grad"),
]

# Callers of the ops themselves skip the checks in Python: those in C++ must do.
BAD_FOR_OPS: list[tuple[str, Change, str]] = [
    *(
        (name, change, "(q|k_cache|v_cache|cache_seqlens): ")
        for name, change, error, _ in REFUSED
        if error is ValueError and not re.match("out|scale|margin|promise|.*device", name)
    ),
    ("q_len 17", replaced("q", query_tokens(17)), "q: q_len 17, expected 1..16"),
    ("q_len 0", replaced("q", query_tokens(0)), "q: q_len 0, expected 1..16"),
    ("dtype of all", in_all(Tensor.double), "q: .*dtype"),
    ("k_cache dtype", replaced("k_cache", Tensor.half), "k_cache: dtype Half, expected BFloat16"),
    ("lengths dtype", replaced("cache_seqlens", Tensor.long), "cache_seqlens: dtype Long, expected Int"),
    ("head_dim 640", in_all(ten_times_as_deep), "q: .*head_dim"),
    (
        "2^31 - 1 tokens",
        in_caches(expanded_to(2**31 - 1)),
        "k_cache: max_tokens 2147483647, expected at most",
    ),
    ("2^31 tokens", in_caches(expanded_to(2**31)), "k_cache: max_tokens: 2147483648 is out of range"),
    ("head_dim 0", in_all(lambda t: t[..., :0]), "q: head_dim 0, expected 1 or more"),
    (
        "2^31 q elements",
        no_sequence_of_heads(2**26),
        "q: q_len 1 x num_q_heads 67108864 x head_dim 64, expected a product of at most",
    ),
    ("workers 1025", given(num_workers=1025), "num_workers: .*1024, got 1025"),
    ("workers -1", given(num_workers=-1), "num_workers: .*1024, got -1"),
    ("promise below 0", given(fresh_tokens=-1), NEGATIVE_PROMISE),
]

# Options of the op for tests; 3 sequences of 2 KV heads.
BAD_FOR_DEBUG: list[tuple[dict[str, int], str]] = [
    ({"fresh_tokens": -1}, NEGATIVE_PROMISE),
    ({"fixed_splits": -1}, "fixed_splits: expected 0..1024, got -1"),
    ({"fixed_splits": 1025}, "fixed_splits: expected 0..1024, got 1025"),
    ({"fixed_splits": 2**32 + 2}, "fixed_splits: expected 0..1024, got 4294967298"),
    ({"fixed_splits": 171}, "fixed_splits: 171 make 1026 pieces of items, expected at most 1024"),
    ({"max_stages": 1}, "max_stages: expected 0, or 2 and more, got 1"),
    ({"max_stages": -1}, "max_stages: expected 0, or 2 and more, got -1"),
]


class RefusalsContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.fixture(autouse=True)
    def nothing_else_changes(self, device: torch.device) -> Iterator[None]:
        """After a refusal the next call works as ever, and the device reports no error."""
        arguments = good_arguments(device)
        expected = leanattn.decode(**arguments)
        yield
        assert torch.equal(leanattn.decode(**arguments), expected)
        if device.type == "cuda":
            torch.cuda.synchronize()

    @pytest.mark.parametrize(
        ("change", "error", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
    )
    def test_decode_refuses(
        self, device: torch.device, change: Change, error: type[Exception], message: str
    ) -> None:
        arguments = good_arguments(device)
        arguments.update(change(arguments))
        with pytest.raises(error, match=message) as refusal:
            leanattn.decode(**arguments)
        assert type(refusal.value) is error

    @pytest.mark.parametrize(
        ("change", "message"), [case[1:] for case in BAD_FOR_OPS], ids=[case[0] for case in BAD_FOR_OPS]
    )
    def test_ops_refuse(self, device: torch.device, change: Change, message: str) -> None:
        arguments = good_arguments(device)
        arguments.update(change(arguments))
        for op in (ops.decode, ops.decode_lse):
            with pytest.raises(ValueError, match=message):
                op(**arguments)

    def test_decode_out_refuses_a_bad_lse(self, device: torch.device) -> None:
        arguments = good_arguments(device)
        q = arguments.pop("q")
        for query, shape in ((q, (3, 8)), (query_tokens(2)(q), (3, 8, 2))):
            good = torch.empty(shape, device=device)
            for lse in (good[:2], good.double(), good.repeat_interleave(2, 1)[:, ::2], elsewhere(good)):
                with pytest.raises((ValueError, NotImplementedError), match="lse|leanattn::decode_out"):
                    ops.decode_out(query, **arguments, out=torch.empty_like(query), lse=lse)

    @pytest.mark.parametrize(("options", "message"), BAD_FOR_DEBUG)
    def test_decode_debug_refuses(self, device: torch.device, options: dict[str, int], message: str) -> None:
        arguments = good_arguments(device)
        arguments |= {"out": torch.empty_like(arguments["q"]), "lse": None}
        # Enough for the largest number of pieces, so that it is not the workspace that is refused.
        workspace = torch.empty(3 * 1026 * 4 * 68, device=device)
        ops._decode_debug(**arguments, workspace=workspace, fixed_splits=170)
        with pytest.raises(ValueError, match=message):
            ops._decode_debug(**arguments, workspace=workspace, **options)

    @pytest.mark.parametrize(("options", "workers"), [({"num_workers": 5}, 5), ({"fixed_splits": 3}, 18)])
    def test_a_workspace_too_small_is_refused(
        self, device: torch.device, options: dict[str, int], workers: int
    ) -> None:
        arguments = good_arguments(device)
        result = torch.empty_like(arguments["q"])
        nothing = torch.empty(0, device=device)
        with pytest.raises(ValueError, match="workspace: ") as refusal:
            ops._decode_debug(**arguments, out=result, lse=None, workspace=nothing, **options)
        needed = re.search(r"(?:expected|at least) (\d+)", str(refusal.value))
        assert needed is not None
        assert int(needed[1]) == 3 * workers * 4 * 68  # partials of 4 rows: head_dim 64, and 4 numbers more
        good = torch.empty(int(needed[1]), device=device)
        for workspace in (good[1:], good.double(), good.repeat(2)[::2]):
            with pytest.raises(ValueError, match="workspace: .*float32"):
                ops._decode_debug(**arguments, out=result, lse=None, workspace=workspace, **options)
        ops._decode_debug(**arguments, out=result, lse=None, workspace=good, **options)

    def test_grad_is_no_matter_without_grad_mode(self, device: torch.device) -> None:
        arguments = good_arguments(device)
        arguments["q"].requires_grad_()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert not leanattn.decode(**arguments).requires_grad
