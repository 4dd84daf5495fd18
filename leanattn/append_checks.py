"""Refuses bad arguments of append_kv with the right type of error, as checks.py does for decode."""

from __future__ import annotations

import torch
from torch import Tensor

from leanattn.checks import check_bool, check_caches, check_device, check_scales, needs_grad, no_tensor
from leanattn.support import FLOAT8, refusals

# Of a head, 8 elements are moved at once; csrc/kernels/append.h says the same.
HEAD_DIMS = range(8, 513, 8)
# Half of the rotated dimensions, where the second elements of pairs begin, is a multiple of 8 as well.
ROTARY_STEP = 16


def check_append_fit(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    block_table: Tensor | None,
    q: Tensor | None,
    rotary_cos: Tensor | None,
    rotary_sin: Tensor | None,
) -> None:
    """Types, dtypes, devices and shapes: do the tensors fit each other? Works on fake tensors too."""
    tensors = {"k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache, "cache_seqlens": cache_seqlens}
    optional = {"q": q, "rotary_cos": rotary_cos, "rotary_sin": rotary_sin}
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise no_tensor(**tensors)
    shape = k.shape
    if len(shape) not in (3, 4):
        expected = "[batch, num_kv_heads, head_dim] or [batch, new_tokens, num_kv_heads, head_dim]"
        raise ValueError(f"k: shape {list(shape)}, expected {expected}")
    if shape[-2] == 0 or shape[-3 if len(shape) == 4 else -2] == 0:
        raise ValueError(f"k: shape {list(shape)}, expected one new token and one KV head at least")
    _check_like_k("v", v, k)
    if len(v.shape) != len(shape) or v.shape[:-1] != shape[:-1]:
        expected = f"the shape of k, {list(shape)}, but for head_dim"
        raise ValueError(f"v: shape {list(v.shape)}, expected {expected}")
    if k_cache.dtype == torch.int8:
        reason = "what makes int8 of a row also has to choose its scale"
        raise NotImplementedError(
            f"k_cache: dtype torch.int8, expected the dtype of k, {k.dtype}, or one of float8: {reason}"
        )
    check_caches("k", k, k_cache, v_cache, cache_seqlens, block_table, FLOAT8)
    if k_cache.shape[2] != shape[-2]:
        raise ValueError(f"k_cache: {k_cache.shape[2]} KV heads, expected the {shape[-2]} of k")
    if v_cache.shape[3] != v.shape[-1]:
        raise ValueError(f"v_cache: head_dim {v_cache.shape[3]}, expected that of v, {v.shape[-1]}")
    if q is not None:
        _check_like_k("q", q, k)
        if len(q.shape) != len(shape) or q.shape[:-2] != shape[:-2] or q.shape[-1] != shape[-1]:
            expected = f"the shape of k, {list(shape)}, but for the heads"
            raise ValueError(f"q: shape {list(q.shape)}, expected {expected}")
    _check_rotary(k, q, rotary_cos, rotary_sin)


def check_append_call(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    block_table: Tensor | None,
    q: Tensor | None,
    rotary_cos: Tensor | None,
    rotary_sin: Tensor | None,
    rotary_interleaved: bool,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    """All that can be wrong with a call of append_kv, but for strides, alignment, lengths and pages."""
    check_append_fit(k, v, k_cache, v_cache, cache_seqlens, block_table, q, rotary_cos, rotary_sin)
    check_scales(k_cache, k_scale, v_scale, "k")
    dims, names = (k.shape[-1], v.shape[-1]), ("k", "v")
    found = refusals(k.device, k.dtype, dims[0], 1, v_head_dim=dims[1], names=names, head_dims=HEAD_DIMS)
    if found:
        raise found[0].error(found[0].message)
    check_append_grad(k, v, k_cache, v_cache, q, rotary_cos, rotary_sin, k_scale, v_scale)
    check_bool("rotary_interleaved", rotary_interleaved)


def check_append_grad(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q: Tensor | None,
    rotary_cos: Tensor | None,
    rotary_sin: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    """Every call needs this check: the op would drop the gradient in silence."""
    if torch.is_grad_enabled():
        for tensor in (k, v, k_cache, v_cache, q, rotary_cos, rotary_sin, k_scale, v_scale):
            if getattr(tensor, "requires_grad", False):  # what is no tensor is refused by the op
                caches = {"k_cache": k_cache, "v_cache": v_cache}
                factors = {"rotary_cos": rotary_cos, "rotary_sin": rotary_sin}
                factors |= {"k_scale": k_scale, "v_scale": v_scale}
                raise needs_grad("append_kv", k=k, v=v, **caches, q=q, **factors)


def _check_like_k(name: str, tensor: Tensor, k: Tensor) -> None:
    if tensor.dtype != k.dtype:
        raise TypeError(f"{name}: dtype {tensor.dtype}, expected the dtype of k, {k.dtype}")
    check_device(name, tensor, "k", k.device)


def _check_rotary(k: Tensor, q: Tensor | None, cos: Tensor | None, sin: Tensor | None) -> None:
    if cos is None or sin is None:
        for name, missing, other in (("rotary_cos", cos, sin), ("rotary_sin", sin, cos)):
            if missing is None and other is not None:
                raise ValueError(f"{name}: None, expected both of rotary_cos and rotary_sin, or neither")
        if q is not None:
            expected = "None without rotary_cos and rotary_sin: it is there to be rotated"
            raise ValueError(f"q: shape {list(q.shape)}, expected {expected}")
        return
    if cos.dtype not in (torch.float32, k.dtype):
        raise TypeError(f"rotary_cos: dtype {cos.dtype}, expected torch.float32 or that of k, {k.dtype}")
    if sin.dtype != cos.dtype:
        raise TypeError(f"rotary_sin: dtype {sin.dtype}, expected that of rotary_cos, {cos.dtype}")
    check_device("rotary_cos", cos, "k", k.device)
    check_device("rotary_sin", sin, "k", k.device)
    if len(cos.shape) != 2:
        raise ValueError(f"rotary_cos: shape {list(cos.shape)}, expected [max_positions, rotary_dim / 2]")
    dim, head_dim = 2 * cos.shape[1], k.shape[-1]
    if dim == 0 or dim % ROTARY_STEP != 0 or dim > head_dim:
        expected = f"a multiple of {ROTARY_STEP}, at most the head_dim of k, {head_dim}"
        raise ValueError(f"rotary_cos: rotary_dim {dim}, expected {expected}")
    if sin.shape != cos.shape:
        expected = f"the shape of rotary_cos, {list(cos.shape)}"
        raise ValueError(f"rotary_sin: shape {list(sin.shape)}, expected {expected}")
