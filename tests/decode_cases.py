"""Inputs for decode on any device, and the rule by which its results are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from leanattn.checks import q_len_of
from leanattn.reference import decode_reference

# Where tiles may end on any backend.
TILE_SIZES = (16, 32, 64, 128)

LAYOUTS = ("tokens_first", "heads_first", "interleaved", "padded", "expanded")


@dataclass
class Inputs:
    """Arguments: q [batch, num_q_heads, head_dim] or [batch, q_len, num_q_heads, head_dim], caches
    [batch, max_tokens, num_kv_heads, head_dim], V's its own.
    """

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    cache_seqlens: Tensor
    softmax_scale: float | None = None
    causal: bool = True
    options: dict[str, Any] = field(default_factory=dict)  # of ScoreOptions

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.k_cache, self.v_cache, self.cache_seqlens


def make_inputs(
    lengths: Sequence[int],
    *,
    device: torch.device,
    q_len: int | None = None,
    heads: tuple[int, int] = (8, 2),
    head_dim: int = 64,
    v_head_dim: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    layout: str = "tokens_first",
    max_tokens: int | None = None,
    seed: int = 0,
) -> Inputs:
    """Normal random inputs; ``heads`` is query and KV heads. Memory that must not matter holds NaN. Without
    ``q_len``, q has three dimensions; without ``v_head_dim``, V has that of K.
    """
    num_q_heads, num_kv_heads = heads
    if max_tokens is None:
        max_tokens = max(lengths, default=0) + 5
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    dims = (head_dim, v_head_dim or head_dim)
    k_cache, v_cache = make_caches(normal, len(lengths), max_tokens, num_kv_heads, dims, layout)
    seqlens = torch.tensor(lengths, dtype=torch.int32, device=device)
    unread = torch.arange(max_tokens, device=device) >= seqlens[:, None]  # [batch, max_tokens]
    for cache in (k_cache, v_cache):
        if layout == "expanded":  # one memory for all: only what no sequence reads can be poisoned
            cache[:1].masked_fill_(unread.all(0)[:, None, None], torch.nan)
        else:
            cache.masked_fill_(unread[:, :, None, None], torch.nan)
    query_tokens = () if q_len is None else (q_len,)
    q = normal(len(lengths), *query_tokens, num_q_heads, head_dim)
    return Inputs(q, k_cache, v_cache, seqlens)


def make_caches(
    normal: Callable[..., Tensor],
    batch: int,
    tokens: int,
    heads: int,
    dims: tuple[int, int],
    layout: str,
) -> tuple[Tensor, Tensor]:
    """K and V [batch, tokens, heads, of dims], laid out as said; ``normal(*shape)`` makes the numbers."""
    k_dim, v_dim = dims
    if layout == "tokens_first":
        return normal(batch, tokens, heads, k_dim), normal(batch, tokens, heads, v_dim)
    if layout == "heads_first":
        k, v = (normal(batch, heads, tokens, dim).transpose(1, 2) for dim in dims)
        return k, v
    if layout == "interleaved" and k_dim == v_dim:
        both = normal(batch, tokens, 2, heads, k_dim)
        return both[:, :, 0], both[:, :, 1]
    if layout == "interleaved":
        both = normal(batch, tokens, heads, k_dim + v_dim)
        return both[..., :k_dim], both[..., k_dim:]
    if layout == "padded":
        k = normal(batch, tokens + 3, heads + 1, k_dim + 8)
        v = normal(batch, tokens, heads, v_dim + 16)
        k_view, v_view = k[:, 3:, 1:, 8:], v[..., :v_dim]
        k[:, :3], k[:, :, :1], k[..., :8], v[..., v_dim:] = (torch.nan,) * 4
        return k_view, v_view
    if layout == "expanded":
        k, v = (normal(1, tokens, heads, dim).expand(batch, -1, -1, -1) for dim in dims)
        return k, v
    raise ValueError(layout)


def parts_of_larger_tensors(fill: float, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Tensors of ``fill``, and a part of each with the shape of ``like`` [batch, 4, 8, 64]."""
    batch = like.shape[0]

    def full(*shape: int) -> Tensor:
        return like.new_full(shape, fill)

    tokens, heads, dims = full(batch, 7, 8, 64), full(batch, 4, 12, 64), full(batch, 4, 8, 80)
    apart, heads_first, tokens_first = full(batch, 8, 16, 64), full(batch, 9, 5, 64), full(4, batch, 8, 64)
    return [
        (tokens, tokens[:, 2:6]),
        (heads, heads[:, :, 1:9]),
        (dims, dims[..., 8:72]),
        (apart, apart[:, 1::2, ::2]),
        (heads_first, heads_first[:, 1:, 1:].transpose(1, 2)),
        (tokens_first, tokens_first.transpose(0, 1)),
    ]


class Reference:
    """Results of some inputs: in float64, and the same computation in the input dtype, its yardstick."""

    def __init__(self, inputs: Inputs) -> None:
        def compute(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            scale, causal = inputs.softmax_scale, inputs.causal
            return decode_reference(
                *inputs.tensors(), softmax_scale=scale, causal=causal, dtype=dtype, **inputs.options
            )

        self.head_dim = inputs.q.shape[-1]
        self.out, self.lse = compute(torch.float64)
        self.same_out, _ = compute(inputs.q.dtype)
        # The log-sum-exp is float32 whatever the inputs are, and a missing token shows in it first.
        _, self.same_lse = compute(torch.float32)

    def check(self, out: Tensor, lse: Tensor | None = None) -> None:
        """Fails if a sequence has more than twice the error of the same computation in the input dtype."""
        check_error("out", out, self.out, self.same_out, roundings=1)
        if lse is not None:
            empty = self.lse == -torch.inf
            assert lse.shape == empty.shape
            assert torch.equal(lse == -torch.inf, empty), "lse is -inf where nothing is seen, not elsewhere"
            finite, exact, same = (x.masked_fill(empty, 0.0) for x in (lse, self.lse, self.same_lse))
            # exp and log are approximations on a GPU; a small lse is a difference of numbers of 1 and more.
            # Tensor cores cut off what does not fit into a sum, and a long row has many.
            roundings = max(4, self.head_dim // 64)
            check_error("lse", finite, exact, same, roundings=roundings, least_size=1.0)


def check_against_reference(inputs: Inputs, out: Tensor, lse: Tensor | None = None) -> None:
    Reference(inputs).check(out, lse)


def check_error(
    name: str, got: Tensor, exact: Tensor, same: Tensor, *, roundings: float, least_size: float = 0.0
) -> None:
    """Compares [batch, ...] tensors: result, float64 reference, and the same computation in a lower dtype."""
    assert got.shape == exact.shape
    assert got.dtype == same.dtype
    assert not got.isnan().any(), f"{name} has NaN"
    if got.numel() == 0:
        return
    error, same_error, size = (
        x.double().abs().flatten(1).amax(1) for x in (got - exact, same - exact, exact)
    )  # [batch] each
    # Where the yardstick happens to be exact, some roundings of the result are allowed all the same.
    allowed = 2 * same_error + roundings * torch.finfo(same.dtype).eps * size.clamp_min(least_size)
    seq = int((error - allowed).argmax())
    if error[seq] > allowed[seq]:
        raise AssertionError(
            f"{name} of sequence {seq}: error {error[seq]:.3e}, allowed {allowed[seq]:.3e} "
            f"(same computation in {same.dtype}: {same_error[seq]:.3e})"
        )


def query_rows_of(inputs: Inputs, sequences: Sequence[int]) -> list[int]:
    """Where in q the queries of some sequences are."""
    cu_seqlens_q = inputs.options.get("cu_seqlens_q")
    if cu_seqlens_q is None:
        return list(sequences)
    begins = cu_seqlens_q.tolist()
    return [row for seq in sequences for row in range(begins[seq], begins[seq + 1])]


def of_sequences(inputs: Inputs, sequences: Sequence[int]) -> Inputs:
    """The call with some of its sequences, in this order."""
    rows, options = query_rows_of(inputs, sequences), dict(inputs.options)

    def some(tensor: Tensor) -> Tensor:
        return tensor[list(sequences)]

    for name, dims in (("cache_leftpad", 1), ("alibi_slopes", 2), ("k_scale", 3), ("v_scale", 3)):
        tensor = options.get(name)
        if tensor is not None and tensor.dim() == dims:
            options[name] = some(tensor)
    if options.get("tree_mask") is not None:
        options["tree_mask"] = options["tree_mask"][rows]
    if "cu_seqlens_q" in options:
        counts = some(options["cu_seqlens_q"].diff())
        options["cu_seqlens_q"] = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    q, (k, v, lengths) = inputs.q[rows], map(some, inputs.tensors()[1:])
    return replace(inputs, options=options, q=q, k_cache=k, v_cache=v, cache_seqlens=lengths)


def plan_of(inputs: Inputs, workers: int = 0, *, batch_invariant: bool = False) -> Tensor:
    """By the op: leanattn.plan knows no number of workers."""
    cu_seqlens_q = inputs.options.get("cu_seqlens_q")
    made: Tensor = torch.ops.leanattn.plan(
        inputs.cache_seqlens,
        max_tokens=inputs.k_cache.shape[1],
        num_q_heads=inputs.q.shape[-2],
        num_kv_heads=inputs.k_cache.shape[2],
        head_dim=inputs.q.shape[-1],
        q_len=q_len_of(inputs.q) if cu_seqlens_q is None else inputs.q.shape[0],
        num_workers=workers,
        window_left=inputs.options.get("window_size", (-1, -1))[0],
        score_options=any(
            inputs.options.get(name) is not None for name in ("sinks", "alibi_slopes", "tree_mask")
        )
        or inputs.options.get("softcap", 0) != 0,
        itemsize=inputs.k_cache.element_size(),
        window_right=0 if inputs.causal else inputs.options.get("window_size", (-1, -1))[1],
        cu_seqlens_q=cu_seqlens_q,
        cache_leftpad=inputs.options.get("cache_leftpad"),
        batch_invariant=batch_invariant,
        v_head_dim=inputs.v_cache.shape[3],
    )
    return made
