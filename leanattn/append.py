"""leanattn.append_kv: the documented, checked face of torch.ops.leanattn.append_kv."""

from __future__ import annotations

import torch
from torch import Tensor

from leanattn import _ops  # noqa: F401  (registers the op used below)
from leanattn.append_checks import check_append_call, check_append_grad
from leanattn.checks import check_bool

# The overload itself: looking it up again costs about a microsecond a call.
_append_kv = torch.ops.leanattn.append_kv.default


def append_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    block_table: Tensor | None = None,
    q: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    rotary_interleaved: bool = False,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Writes the keys and values of new tokens into a KV cache, contiguous or paged, in one kernel launch.

    For every sequence ``b`` and new token ``i`` of ``new_tokens``, with ``n = cache_seqlens[b]``::

        t = n - new_tokens + i                      # its position
        k_cache[b, t] = rotated(k[b, i], t)         # [num_kv_heads, head_dim]
        v_cache[b, t] = v[b, i]                     # [num_kv_heads, v_head_dim]
        q[b, i] = rotated(q[b, i], t)               # [num_q_heads, head_dim], if q is given

    So the lengths are those with the new tokens, and the same tensor goes to :func:`leanattn.decode`
    afterwards, which reads them. ``rotated`` is rotary position embedding (RoFormer, arXiv 2104.09864) of the
    first ``rotary_dim`` elements of each head, where ``rotary_cos`` and ``rotary_sin`` are given: pair ``j``
    of elements (x, y) becomes::

        (x * rotary_cos[t, j] - y * rotary_sin[t, j], y * rotary_cos[t, j] + x * rotary_sin[t, j])

    With a ``block_table`` the caches are paged: token ``t`` of sequence ``b`` is
    ``k_cache[block_table[b, t // page_size], t % page_size]``.

    Args:
        k: new keys [batch, num_kv_heads, head_dim], one token a sequence, or
            [batch, new_tokens, num_kv_heads, head_dim]; float16 or bfloat16, on the CPU also float32.
            head_dim a multiple of 8 up to 512; 32768 heads at most. Any strides that are multiples of 16
            bytes, 0 included, as long as head_dim is contiguous; so a part of a fused projection is passed as
            it is.
        v: new values, like ``k``, with a head_dim of their own under the same rule.
        k_cache: written in place: [batch, max_tokens, num_kv_heads, head_dim], dtype and device of ``k``, or
            of dtype float8_e4m3fn or float8_e5m2 (see ``k_scale``), strides under the same rule, but no two
            elements may share memory. With a ``block_table``: pages [num_pages, page_size, num_kv_heads,
            head_dim] of any page_size.
        v_cache: like ``k_cache``, with the head_dim of ``v``.
        cache_seqlens: [batch] int32, contiguous, on the device of ``k``: tokens of each sequence, the new
            ones included. Of a sequence shorter than ``new_tokens`` only the last tokens have a position, and
            the others are not written: with length 0, or below, none is.
        block_table: [batch, max_pages] int32 on the device of ``k``, its last dimension contiguous: the pages
            of each sequence in the order of its tokens. Only entries of pages that are written to are read.
            Two sequences must not write to the same place of a page.
        q: queries of the new tokens, to be rotated in place: ``k`` but for the number of heads, which may be
            any. No two elements may share memory, nor may it share any with ``k``, ``v`` or the caches. None
            without ``rotary_cos``.
        rotary_cos: [max_positions, rotary_dim / 2], float32 or the dtype of ``k``, strides under the rule
            above: cosines of the angle of each position and pair. rotary_dim is a multiple of 16, so that the
            second half of the pairs, too, begins at a multiple of 16 bytes; at most head_dim. None: nothing
            is rotated.
        rotary_sin: sines, like ``rotary_cos``.
        rotary_interleaved: which elements are pair ``j``: ``(j, j + rotary_dim / 2)`` if False, as in
            GPT-NeoX and Llama; ``(2j, 2j + 1)`` if True, as in GPT-J.
        k_scale: [1] or [num_kv_heads] float32, contiguous, only for a float8 cache: keys are divided by this
            before they are rounded, so that :func:`leanattn.decode` with the same ``k_scale`` reads them as
            they were; 1 if None.
        v_scale: the same of ``v_cache``.

    Raises:
        TypeError: a dtype, or something that is no tensor or bool.
        ValueError: a shape, stride, alignment or device; one of ``rotary_cos`` and ``rotary_sin`` without the
            other; ``q`` without both. On the CPU also a token with no place: its position is max_tokens
            (max_pages * page_size) or more, or max_positions or more, or its page is none of the cache's.
            Nothing has been written then.
        NotImplementedError: a head_dim or device that is not supported, or a tensor that requires grad while
            grad mode is on.

        The message names the argument, what came and what was expected.

    On a GPU, lengths and table are read on the device alone, and a token with no place cannot be refused: it
    is skipped. Neither K nor V of it is written, anywhere, and its ``q`` stays as it is, not rotated.

    Numerics: ``v``, and what of ``k`` is not rotated, is copied bit by bit. Rotation is in float32, and
    rounded once. Into a float8 cache go these numbers divided by the scale, rounded to the nearest, and to
    the largest finite one what is larger.

    Overlap on a GPU: the kernel waits for the one ahead of it in the stream, but lets the next one start at
    once. A call of :func:`leanattn.decode` directly behind, with ``fresh_tokens=new_tokens``, reads the older
    tokens while the new ones are still being written: the promise holds, since this call writes no other
    token, and neither lengths nor plan nor table.

    CUDA graphs: nothing synchronises with the host, and a graph captured at any lengths and pages writes to
    the right places for all others.
    """
    arguments = (k, v, k_cache, v_cache, cache_seqlens)
    check_bool("rotary_interleaved", rotary_interleaved)
    # As in decode: the op checks all that it needs, and the checks here know the right type of each error.
    if torch.compiler.is_compiling():
        check_append_call(
            *arguments, block_table, q, rotary_cos, rotary_sin, rotary_interleaved, k_scale, v_scale
        )
    else:
        check_append_grad(k, v, k_cache, v_cache, q, rotary_cos, rotary_sin, k_scale, v_scale)
    try:
        _append_kv(
            *arguments,
            block_table=block_table,
            q=q,
            rotary_cos=rotary_cos,
            rotary_sin=rotary_sin,
            rotary_interleaved=rotary_interleaved,
            k_scale=k_scale,
            v_scale=v_scale,
        )
    except Exception:
        check_append_call(
            *arguments, block_table, q, rotary_cos, rotary_sin, rotary_interleaved, k_scale, v_scale
        )
        raise
