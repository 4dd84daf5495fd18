"""Refuses bad arguments with the right type of error. A message names the argument, what came and what was
expected.

The ops check all that keeps a kernel inside its memory themselves (csrc/bindings/checks.cpp), strides and
alignment included, but C++ can only raise a ValueError, and a fake tensor never gets there. So these checks
run when an op has refused a call, and on fake tensors; a call that is right does not pay for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from leanattn.score_options import ScoreOptions
from leanattn.support import BATCH_INVARIANT, EIGHT_BITS, FLOAT8, PACKED, PAGED, refusals


def check_fit(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    block_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
) -> None:
    """Types, dtypes, devices and shapes: do the tensors fit each other? Works on fake tensors too."""
    if not (
        isinstance(q, Tensor)
        and isinstance(k_cache, Tensor)
        and isinstance(v_cache, Tensor)
        and isinstance(cache_seqlens, Tensor)
    ):
        raise no_tensor(q=q, k_cache=k_cache, v_cache=v_cache, cache_seqlens=cache_seqlens)
    shape, packed = q.shape, cu_seqlens_q is not None
    if len(shape) not in ((3,) if packed else (3, 4)):
        unpacked = "[batch, num_q_heads, head_dim] or [batch, q_len, num_q_heads, head_dim]"
        expected = "[tokens, num_q_heads, head_dim] with cu_seqlens_q" if packed else unpacked
        raise ValueError(f"q: shape {list(shape)}, expected {expected}")
    if cu_seqlens_q is not None:
        check_offsets(cu_seqlens_q, cache_seqlens, q.device)
    batch = cache_seqlens.shape[0] if packed else shape[0]
    check_caches("q", q, k_cache, v_cache, cache_seqlens, block_table, EIGHT_BITS, batch)
    num_q_heads, num_kv_heads = shape[-2], k_cache.shape[2]
    if num_q_heads == 0 or num_kv_heads == 0 or num_q_heads % num_kv_heads != 0:
        expected = f"a multiple of the {num_kv_heads} KV heads of k_cache"
        raise ValueError(f"q: {num_q_heads} heads, expected {expected}, one at least")
    if out is not None:
        check_tensor("out", out, q.dtype, q.device, [out_shape(q, v_cache)])
    if lse is not None:
        check_tensor("lse", lse, torch.float32, q.device, [lse_shape(q, packed)])


def check_offsets(cu_seqlens_q: Tensor, cache_seqlens: Tensor, device: torch.device) -> None:
    """Where the packed queries of each sequence begin."""
    if cache_seqlens.dim() != 1:
        raise ValueError(f"cache_seqlens: shape {list(cache_seqlens.shape)}, expected [batch]")
    check_tensor("cu_seqlens_q", cu_seqlens_q, torch.int32, device, [(cache_seqlens.shape[0] + 1,)])


def check_caches(
    name: str,
    like: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    block_table: Tensor | None,
    more_dtypes: tuple[torch.dtype, ...] = (),
    sequences: int | None = None,
) -> None:
    """Do the caches fit ``like``, which is argument ``name``, [batch, ..., head_dim], or has as many
    ``sequences``? Their dtype is that of ``like``, or one of ``more_dtypes``.
    """
    dtype, device, cache_shape = like.dtype, like.device, k_cache.shape
    batch, head_dim = like.shape[0] if sequences is None else sequences, like.shape[-1]
    if k_cache.dtype != dtype and k_cache.dtype not in more_dtypes:
        or_others = "".join(f" or {other}" for other in more_dtypes)
        raise TypeError(f"k_cache: dtype {k_cache.dtype}, expected the dtype of {name}, {dtype}{or_others}")
    if v_cache.dtype != k_cache.dtype:
        expected = (
            f"the dtype of {name}, {dtype}" if k_cache.dtype == dtype else f"that of k_cache, {k_cache.dtype}"
        )
        raise TypeError(f"v_cache: dtype {v_cache.dtype}, expected {expected}")
    if cache_seqlens.dtype != torch.int32:
        raise TypeError(f"cache_seqlens: dtype {cache_seqlens.dtype}, expected torch.int32")

    check_device("k_cache", k_cache, name, device)
    check_device("v_cache", v_cache, name, device)
    check_device("cache_seqlens", cache_seqlens, name, device)

    if block_table is not None:
        check_block_table(block_table, batch, device, name)
        if len(cache_shape) != 4 or cache_shape[1] == 0 or cache_shape[3] != head_dim:
            expected = f"[num_pages, page_size, num_kv_heads, {head_dim}], head_dim as in {name}"
            raise ValueError(f"k_cache: shape {list(cache_shape)}, expected {expected}")
    elif len(cache_shape) != 4 or cache_shape[0] != batch or cache_shape[3] != head_dim:
        expected = f"[{batch}, max_tokens, num_kv_heads, {head_dim}], batch and head_dim as in {name}"
        raise ValueError(f"k_cache: shape {list(cache_shape)}, expected {expected}")
    if len(v_cache.shape) != 4 or v_cache.shape[:3] != cache_shape[:3] or v_cache.shape[3] == 0:
        expected = f"the shape of k_cache, {list(cache_shape)}, but for head_dim"
        raise ValueError(f"v_cache: shape {list(v_cache.shape)}, expected {expected}")
    if cache_seqlens.shape != (batch,):
        raise ValueError(f"cache_seqlens: shape {list(cache_seqlens.shape)}, expected [{batch}] as in {name}")


def check_device(name: str, tensor: Tensor, like: str, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name}: device {tensor.device}, expected the device of {like}, {device}")


def check_call(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    out: Tensor | None,
    softmax_scale: float | None,
    causal: bool,
    fresh_tokens: int | None,
    plan: Tensor | None,
    block_table: Tensor | None,
    options: ScoreOptions,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    cu_seqlens_q: Tensor | None,
    batch_invariant: bool,
) -> None:
    """All that can be wrong with a call of decode, but for strides and alignment."""
    check_fit(*(q, k_cache, v_cache, cache_seqlens, out), block_table=block_table, cu_seqlens_q=cu_seqlens_q)
    check_options(options, q, cache_seqlens.shape[0], packed=cu_seqlens_q is not None)
    check_scales(k_cache, k_scale, v_scale)
    check_bool("batch_invariant", batch_invariant)
    others = {
        BATCH_INVARIANT: batch_invariant,
        PAGED: block_table is not None,
        PACKED: cu_seqlens_q is not None,
    }
    used = options.used() + [name for name, is_used in others.items() if is_used]
    check_can_run(q, k_cache.dtype, v_cache.shape[-1], used)
    check_grad(q, k_cache, v_cache, out, options.sinks, options.alibi_slopes, k_scale, v_scale)
    check_scale(softmax_scale)
    check_causal(causal)
    check_promise(fresh_tokens)
    check_plan(plan, q.device)


def check_can_run(q: Tensor, cache_dtype: torch.dtype, v_head_dim: int, options: list[str]) -> None:
    """Can the backend do such a call? Only for tensors that fit each other."""
    found = refusals(
        q.device, q.dtype, q.shape[-1], q_len_of(q), options, cache_dtype=cache_dtype, v_head_dim=v_head_dim
    )
    if found:
        raise found[0].error(found[0].message)


def check_grad(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    """The only check that every call needs: an op would drop the gradient in silence."""
    if torch.is_grad_enabled():
        for tensor in (q, k_cache, v_cache, out, sinks, alibi_slopes, k_scale, v_scale):
            if getattr(tensor, "requires_grad", False):  # what is no tensor is refused by the op
                learnt = {"sinks": sinks, "alibi_slopes": alibi_slopes}
                learnt |= {"k_scale": k_scale, "v_scale": v_scale}
                raise needs_grad("decode", q=q, k_cache=k_cache, v_cache=v_cache, out=out, **learnt)


def q_len_of(q: Tensor) -> int:
    """Query tokens of a sequence, of a ``q`` of three or four dimensions."""
    shape = q.shape
    return 1 if len(shape) == 3 else shape[1]


def max_tokens_of(k_cache: Tensor, block_table: Tensor | None) -> int:
    """Tokens that a sequence can have in a cache, paged or not."""
    return k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])


def out_shape(q: Tensor, v_cache: Tensor) -> tuple[int, ...]:
    """That of q, with the head_dim of ``v_cache``."""
    return (*q.shape[:-1], v_cache.shape[-1])


def lse_shape(q: Tensor, packed: bool = False) -> tuple[int, ...]:
    """[batch, num_q_heads], with the q_len of a ``q`` of four dimensions last; if packed [num_q_heads,
    tokens].
    """
    shape = q.shape
    if packed:
        return (shape[1], shape[0])
    return (shape[0], shape[1]) if len(shape) == 3 else (shape[0], shape[2], shape[1])


def check_scale(softmax_scale: float | None) -> None:
    if softmax_scale is not None and not isinstance(softmax_scale, (float, int)):
        raise TypeError(f"softmax_scale: {type(softmax_scale).__name__}, expected float or None")


def check_causal(causal: bool) -> None:
    """Every call that sets it needs this check: an op takes a number, or None, for a bool."""
    check_bool("causal", causal)


def check_bool(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: {type(value).__name__}, expected bool")


def check_promise(fresh_tokens: int | None) -> None:
    if fresh_tokens is not None and not isinstance(fresh_tokens, int):
        raise TypeError(f"fresh_tokens: {type(fresh_tokens).__name__}, expected int or None")


def check_block_table(block_table: Tensor, batch: int, device: torch.device, like: str = "q") -> None:
    if not isinstance(block_table, Tensor):
        raise no_tensor(block_table=block_table)
    if block_table.dtype != torch.int32:
        raise TypeError(f"block_table: dtype {block_table.dtype}, expected torch.int32")
    check_device("block_table", block_table, like, device)
    if block_table.dim() != 2 or block_table.shape[0] != batch:
        raise ValueError(
            f"block_table: shape {list(block_table.shape)}, expected [{batch}, max_pages] as in {like}"
        )


def check_options(options: ScoreOptions, q: Tensor, batch: int, *, packed: bool = False) -> None:
    """Types, dtypes, devices and shapes. Works on fake tensors too."""
    check_window(options.window_size)
    if not isinstance(options.softcap, (float, int)):
        raise TypeError(f"softcap: {type(options.softcap).__name__}, expected float")
    if not 0 <= options.softcap < math.inf:  # math.isfinite is not for torch.compile
        raise ValueError(f"softcap: {options.softcap}, expected a finite number, 0 (none) or more")
    num_q_heads, device = q.shape[-2], q.device
    if options.sinks is not None:
        check_tensor("sinks", options.sinks, torch.float32, device, [(num_q_heads,)])
    if options.alibi_slopes is not None:
        shapes = [(num_q_heads,), (batch, num_q_heads)]
        check_tensor("alibi_slopes", options.alibi_slopes, torch.float32, device, shapes)
    if options.cache_leftpad is not None:
        check_tensor("cache_leftpad", options.cache_leftpad, torch.int32, device, [(batch,)])
    if options.tree_mask is not None:
        check_tree_mask(options.tree_mask, q, packed=packed)


def check_tree_mask(tree_mask: Tensor, q: Tensor, *, packed: bool) -> None:
    if not isinstance(tree_mask, Tensor):
        raise no_tensor(tree_mask=tree_mask)
    if q.dim() == 3 and not packed:
        raise ValueError("tree_mask: a tensor, expected None for a q of one query token a sequence")
    words = tree_mask.shape[-1] if tree_mask.dim() > 0 else 0
    check_tensor("tree_mask", tree_mask, torch.int32, q.device, [(*q.shape[:-2], max(words, 1))])


def check_scales(k_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, like: str = "q") -> None:
    """Factors of a cache of 8 bits: of float8 there may be some, of int8 there must."""
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if k_cache.dtype == torch.int8:
            shape = tuple(k_cache.shape[:3])
            if scale is None:
                raise ValueError(f"{name}: None, expected the scales {list(shape)} of a cache of torch.int8")
            check_tensor(name, scale, torch.float32, k_cache.device, [shape], like)
            continue
        if scale is None:
            continue
        if k_cache.dtype not in FLOAT8:
            raise ValueError(f"{name}: a tensor, expected None for a cache of {k_cache.dtype}")
        check_tensor(name, scale, torch.float32, k_cache.device, [(1,), (k_cache.shape[2],)], like)


def check_window(window_size: object) -> None:
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(f"window_size: {window_size!r}, expected (left, right)")
    for tokens in window_size:
        if not isinstance(tokens, int):
            raise TypeError(f"window_size: {type(tokens).__name__}, expected two of int")
        if tokens < -1:
            raise ValueError(f"window_size: {tokens}, expected -1 (no bound) or more")


def check_plan(plan: Tensor | None, device: torch.device, name: str = "plan") -> None:
    if plan is None:
        return
    if not isinstance(plan, Tensor):
        raise no_tensor(**{name: plan})
    if plan.dtype != torch.int32:
        raise TypeError(f"{name}: dtype {plan.dtype}, expected torch.int32, what leanattn.plan makes")
    if plan.device != device:
        raise ValueError(f"{name}: device {plan.device}, expected {device}")


def check_plan_arguments(
    q: Tensor,
    k_cache: Tensor,
    cache_seqlens: Tensor,
    out: Tensor | None,
    block_table: Tensor | None,
    cu_seqlens_q: Tensor | None,
) -> None:
    """What leanattn.plan takes; the op checks the numbers that come from the shapes."""
    q_dims = (3, 4) if cu_seqlens_q is None else (3,)
    expected_dims = {"q": (q, q_dims), "k_cache": (k_cache, (4,)), "cache_seqlens": (cache_seqlens, (1,))}
    for name, (tensor, dims) in expected_dims.items():
        if not isinstance(tensor, Tensor):
            raise no_tensor(**{name: tensor})
        if tensor.dim() not in dims:
            raise ValueError(f"{name}: {tensor.dim()} dimensions, expected {' or '.join(map(str, dims))}")
    if cache_seqlens.dtype != torch.int32:
        raise TypeError(f"cache_seqlens: dtype {cache_seqlens.dtype}, expected torch.int32")
    device, batch = cache_seqlens.device, k_cache.shape[0] if block_table is None else q.shape[0]
    if cu_seqlens_q is not None:
        check_offsets(cu_seqlens_q, cache_seqlens, device)
        batch = cache_seqlens.shape[0] if block_table is not None else batch
    if cache_seqlens.shape[0] != batch:
        raise ValueError(f"cache_seqlens: shape {list(cache_seqlens.shape)}, expected [{batch}]")
    if block_table is not None:
        check_block_table(block_table, batch, device)
    for name, tensor in (("q", q), ("k_cache", k_cache)):
        if tensor.device != device:
            raise ValueError(f"{name}: device {tensor.device}, expected that of cache_seqlens, {device}")
    check_plan(out, device, "out")


def no_tensor(**arguments: object) -> TypeError:
    name, value = next((n, v) for n, v in arguments.items() if not isinstance(v, Tensor))
    return TypeError(f"{name}: {type(value).__name__}, expected torch.Tensor")


def needs_grad(call: str, **arguments: Tensor | None) -> NotImplementedError:
    name = next(n for n, v in arguments.items() if getattr(v, "requires_grad", False))
    remedy = f"{call} has no backward; call it under torch.no_grad(), or detach the tensor"
    return NotImplementedError(f"{name}: requires grad, expected a tensor that does not: {remedy}")


def check_tensor(
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    shapes: Sequence[tuple[int, ...]],
    like: str = "q",
) -> None:
    """One that must have the device of ``like``, and one of some shapes."""
    if not isinstance(tensor, Tensor):
        raise no_tensor(**{name: tensor})
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: dtype {tensor.dtype}, expected {dtype}")
    check_device(name, tensor, like, device)
    if tensor.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name}: shape {list(tensor.shape)}, expected {expected}")
