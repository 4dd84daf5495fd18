"""leanattn.decode: the documented, checked face of torch.ops.leanattn.decode, decode_lse and decode_out."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from leanattn import _ops  # noqa: F401  (registers the ops used below)
from leanattn.checks import check_bool, check_call, check_causal, check_grad, lse_shape
from leanattn.planning import ALL_WORKERS, num_workers
from leanattn.score_options import NO_WINDOW, ScoreOptions

# The overloads themselves: looking one up again costs about a microsecond a call.
_decode = torch.ops.leanattn.decode.default
_decode_lse = torch.ops.leanattn.decode_lse.default
_decode_out = torch.ops.leanattn.decode_out.default


@overload
def decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    out: Tensor | None = None,
    return_lse: Literal[False] = False,
    sm_margin: int = 0,
    fresh_tokens: int | None = None,
    plan: Tensor | None = None,
    block_table: Tensor | None = None,
    window_size: tuple[int, int] = NO_WINDOW,
    softcap: float = 0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    tree_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    batch_invariant: bool = False,
) -> Tensor: ...


@overload
def decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    out: Tensor | None = None,
    return_lse: Literal[True],
    sm_margin: int = 0,
    fresh_tokens: int | None = None,
    plan: Tensor | None = None,
    block_table: Tensor | None = None,
    window_size: tuple[int, int] = NO_WINDOW,
    softcap: float = 0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    tree_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]: ...


def decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    out: Tensor | None = None,
    return_lse: bool = False,
    sm_margin: int = 0,
    fresh_tokens: int | None = None,
    plan: Tensor | None = None,
    block_table: Tensor | None = None,
    window_size: tuple[int, int] = NO_WINDOW,
    softcap: float = 0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    tree_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    batch_invariant: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention of one or several new tokens per sequence against a KV cache of ragged lengths.

    For every sequence ``b``, query token ``i`` of ``q_len`` and query head ``h``, with
    ``n = cache_seqlens[b]`` and ``g = h // group``, where ``group = num_q_heads // num_kv_heads``::

        s = n - q_len + 1 + i if causal else n                          # tokens that it sees
        p = softmax(softmax_scale * k_cache[b, :s, g] @ q[b, i, h])     # [s]
        out[b, i, h] = p @ v_cache[b, :s, g]                            # [v_head_dim]

    So the queries are those of the last ``q_len`` tokens in the cache, and each sees its own token and all
    before it. A ``q`` of three dimensions is one query token a sequence, which sees all n tokens.

    ``window_size``, ``cache_leftpad``, ``softcap``, ``alibi_slopes`` and ``sinks`` change which tokens are
    seen, the scores, or the softmax's denominator, in this order; they may be combined. ``tree_mask`` hides
    new tokens from each other, as branches of a tree of guesses do.

    With ``cu_seqlens_q`` the query tokens of all sequences follow each other in ``q``, of each sequence as
    many as it has: sequences that decode share a call with chunks of prompts, in equal shares of work.

    With a ``block_table`` the caches are paged: token ``t`` of sequence ``b`` is not ``k_cache[b, t]`` but
    ``k_cache[block_table[b, t // page_size], t % page_size]``.

    The whole batch is cut into equal shares, one for each SM or thread, whatever the lengths are, and what
    was cut is put together by re-scaling the softmax (LeanAttention, arXiv 2405.10480), in one kernel launch.

    Args:
        q: queries [batch, num_q_heads, head_dim], or [batch, q_len, num_q_heads, head_dim] with q_len 1 to
            16, or with ``cu_seqlens_q`` [tokens, num_q_heads, head_dim]; float16 or bfloat16, on the CPU also
            float32. head_dim a multiple of 8 up to 512; with a cache of 8 bits a multiple of 16, on a GPU up
            to 256. Strides under the rule for those of ``k_cache``.
        k_cache: keys [batch, max_tokens, num_kv_heads, head_dim], dtype and device of ``q``, or of dtype
            float8_e4m3fn, float8_e5m2 or int8 (see ``k_scale``). num_q_heads must be a multiple of
            num_kv_heads: 1 is MQA, num_q_heads is MHA. Any strides that are multiples of 16 bytes, 0
            included, as long as head_dim is contiguous; so a cache [batch, num_kv_heads, max_tokens,
            head_dim] is passed as ``cache.transpose(1, 2)``, uncopied. With a ``block_table``: pages
            [num_pages, page_size, num_kv_heads, head_dim] of any page_size, under the same rule for strides.
        v_cache: values, like ``k_cache`` but for the last dimension, v_head_dim, which may be another under
            the rules for head_dim (DeepSeek's 128 beside 192).
        cache_seqlens: [batch] int32, contiguous, on the device of ``q``: tokens of each sequence that the
            call reads, from the start of its cache, the newest included: all ``q_len`` that the queries are
            of. A length below 0 counts as 0, one above max_tokens as max_tokens. What the caches hold beyond
            it does not matter, NaN included.
        softmax_scale: factor of the scores, any finite number; ``head_dim ** -0.5`` if None.
        causal: whether a query token sees none of the tokens after its own (the mask is aligned to the last
            query and the last token; NaN or an infinity among those after it may reach its output all the
            same); False: all see all n tokens. With one query token both are the same.
        out: where to write the result; dtype and device of ``q``, its shape with v_head_dim for head_dim,
            and strides under the rule above.
        return_lse: also return the logarithm of the softmax's denominator, with which
            :func:`leanattn.merge_states` joins attention over several caches.
        sm_margin: SMs of the GPU (threads of a CPU) to leave free for kernels that run at the same time.
        fresh_tokens: a promise that makes the call faster; None promises nothing. Where the GPU allows it
            (compute capability 9.0 and up), a call begins while the kernel ahead of it in the stream still
            finishes. Then ``fresh_tokens=n`` says: what may still run writes of the caches at most the last n
            tokens of each sequence, and neither ``cache_seqlens`` nor ``plan``. So a kernel that appends the
            new tokens of a step directly ahead of the call is covered by their number, in most cases
            ``q_len``; what writes the lengths or the plan must not stand directly ahead. (A kernel ahead that
            lets its successor start before it has waited itself brings in those ahead of it; and under
            torch.compile, what is ahead is the compiler's choice.) All other tokens are read at once; ``q``
            and the n tokens are waited for. (A call of so many query rows that ``wgmma`` computes them waits
            for everything.) A broken promise about tokens gives wrong results of this call; one about
            lengths or plan is undefined: memory errors, a hang, wrong results later.
        plan: what :func:`leanattn.plan` made from the same lengths, for calls of these shapes (v_head_dim
            too, if it is another), ``q_len``, window, options and ``sm_margin`` (on a CPU: number of threads)
            included. The call then follows the lengths and paddings in the plan; its result is the same up to
            rounding, since the plan may cut elsewhere, and with ``batch_invariant`` bit for bit. A plan of
            other shapes is not used, and the call is as without one.
        block_table: [batch, max_pages] int32 on the device of ``q``, its last dimension contiguous: the pages
            of each sequence in the order of its tokens (PagedAttention, arXiv 2309.06180). max_tokens is then
            max_pages * page_size. What it holds beyond a sequence's last page does not matter. A page may
            belong to several sequences. A number in use that is none of a page, which cannot be checked on
            the host, gives a wrong result for its own sequence, and never an access outside the caches. Like
            ``cache_seqlens``, it is not covered by ``fresh_tokens``: what may still run must not write it.
        window_size: ``(left, right)``, a sliding window: the query of the token at position p sees the tokens
            from p - left to p + right; -1 is no bound. With ``causal``, right counts as 0. What is ahead of
            the windows of all queries is not read, and may be anything; NaN or an infinity that only some
            query tokens of a sequence see may reach the output of the others.
        softcap: scores become ``softcap * tanh(score / softcap)``, after ``softmax_scale`` (Gemma 2, arXiv
            2408.00118); 0 leaves them.
        sinks: [num_q_heads] float32, contiguous: for each query head a score of a token without a value,
            which takes part in the softmax and adds nothing to the output (attention sinks, arXiv 2309.17453,
            as learnt logits); ``lse`` includes it. Neither ``softmax_scale`` nor ``softcap`` applies to it.
        alibi_slopes: [num_q_heads] or [batch, num_q_heads] float32, contiguous: ``slope * abs(p - t)`` is
            subtracted from the score of the query at position p and the token t (ALiBi, arXiv 2108.12409).
        cache_leftpad: [batch] int32, contiguous: the tokens of each sequence ahead of this one are not seen,
            and not read. Counts as 0 if it is less, and as the sequence's length if it is more. Like
            ``cache_seqlens``, it is not covered by ``fresh_tokens``.
        k_scale: only for a cache of 8 bits: the keys are ``k_cache`` times this. Keys and values are widened
            in registers: what the cache holds is what memory has to move.
            Of a float8 cache [1] or [num_kv_heads] float32, contiguous; 1 if None. Where a GPU runs code that
            was built for less than compute capability 8.9 (all but 9.0, in a default build), NaN in a
            float8_e4m3fn cache counts as 480.
            Of an int8 cache float32 in the shape of ``k_cache`` but for head_dim, so of each token and KV
            head; paged if the caches are. It must be given. Any strides, though a GPU reads less where the
            scales of a head's tokens are neighbours, as in ``scales.transpose(1, 2)`` of some [batch,
            num_kv_heads, max_tokens]. They are part of the cache: those of tokens that are not read may be
            anything, and ``fresh_tokens`` covers those of the last n.
        v_scale: the same of ``v_cache``.
        tree_mask: [batch, q_len, words], or with ``cu_seqlens_q`` [tokens, words], int32, contiguous, for
            each query token which of its sequence's new tokens (those of its queries) it sees, beside all
            older ones: bit j % 32 of word j // 32 is that of the j-th. New tokens that there is no bit for
            are not hidden. With ``causal`` a query sees nothing after its own token all the same, which of a
            tree that lists parents ahead of their children takes nothing away. For trees of guesses that
            speculative decoding verifies at once (arXiv 2305.09781). Positions, of ``window_size`` and
            ``alibi_slopes``, are places in the cache.
        cu_seqlens_q: [batch + 1] int32, contiguous, on the device of ``q``: the queries of sequence b are
            rows ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1] - 1`` of ``q``, and those of its last tokens in
            the cache; any number of them, none included. Like lengths it is read on the device, so it may
            change between replays of a graph. It must rise from 0 on to at most tokens; other numbers give
            wrong results of this call, and never an access outside the tensors. Rows that no sequence has
            are not written. ``fresh_tokens`` has no effect then. Two kernels are launched: a small one cuts
            the queries into blocks.
        batch_invariant: give each sequence the same bits whatever else is in the batch: see Numerics. A batch
            of one or a few sequences takes longer then, most of all with few KV heads, and a call needs up to
            some tens of MB for partials.

    Returns:
        ``out``, like ``q`` with v_head_dim for head_dim; with ``return_lse``, ``(out, lse)``: lse float32,
        natural logarithm, [batch, num_q_heads], or [batch, num_q_heads, q_len] for a ``q`` of four
        dimensions, or [num_q_heads, tokens] with ``cu_seqlens_q``. A query that sees no token gives out 0 and
        lse -inf, or with ``sinks`` its sink: any of a sequence of length 0, and with ``causal`` the first
        ``q_len - n`` of a sequence of n.

    Raises:
        TypeError: a dtype, or something that is no tensor, number or bool.
        ValueError: a shape, stride, alignment or device; ``softmax_scale`` not finite; ``sm_margin`` too
            large; ``fresh_tokens`` negative; a ``plan`` for another batch size; a window or ``softcap`` out
            of range; 2^31 tokens or more.
        NotImplementedError: a head_dim, q_len, device or option that is not supported (see
            :func:`leanattn.is_supported`), or a tensor that requires grad while grad mode is on.

        The message names the argument, what came and what was expected.

    Numerics: scores, softmax and both sums are float32, whatever the dtype; for the tensor cores of a GPU,
    the weights ``p`` are rounded to the dtype of ``v_cache``, with a cache of 8 bits to float16, of int8
    after they have been multiplied with ``v_scale`` (in a unit that follows the largest product of the row,
    so that any scales will do).
    The same inputs on the same device give the same bits in every call with the same ``sm_margin`` (on a
    CPU: and the same number of threads), ``plan`` or not, and ``batch_invariant``. With ``batch_invariant``
    that holds for each sequence by itself: its ``out`` and ``lse`` depend on its own queries, keys, values,
    length and options, and neither on the other sequences, their number and order, nor on max_tokens,
    strides, pages, ``plan`` or ``fresh_tokens``. (``q_len``, heads, head_dim and dtypes must be the same
    too.)

    CUDA graphs: lengths are read on the device and never on the host, so nothing synchronises, and a graph
    captured at any lengths and pages computes the right result at all others that are written into
    ``cache_seqlens`` and ``block_table`` before a replay.
    """
    arguments = (q, k_cache, v_cache, cache_seqlens)
    # Made a ScoreOptions where one is needed, which few calls do.
    options = (window_size, softcap, sinks, alibi_slopes, cache_leftpad, tree_mask)
    # The ops check all that they need themselves, faster; the checks here know the right type of each error.
    # A call that is being compiled has no memory to look at yet, so it gets the checks first.
    if torch.compiler.is_compiling():
        check_call(
            *(*arguments, out, softmax_scale, causal, fresh_tokens, plan, block_table),
            *(ScoreOptions(*options), k_scale, v_scale, cu_seqlens_q, batch_invariant),
        )
    else:
        check_grad(q, k_cache, v_cache, out, sinks, alibi_slopes, k_scale, v_scale)
    try:
        no_tensors = sinks is None and alibi_slopes is None and cache_leftpad is None and tree_mask is None
        as_they_are = no_tensors and softcap == 0.0 and window_size == NO_WINDOW  # the scores
        no_more = k_scale is None and v_scale is None and cu_seqlens_q is None
        usual = causal is True and softmax_scale is None and as_they_are and no_more
        usual = usual and batch_invariant is False
        if usual and out is None and not return_lse and sm_margin == 0:
            plain: Tensor = _decode(*arguments, fresh_tokens=fresh_tokens, plan=plan, block_table=block_table)
            return plain
        check_causal(causal)
        changes = {} if as_they_are else ScoreOptions(*options).as_op_arguments()
        if not no_more:
            changes |= {"k_scale": k_scale, "v_scale": v_scale, "cu_seqlens_q": cu_seqlens_q}
        if batch_invariant is not False:
            check_bool("batch_invariant", batch_invariant)
            changes |= {"batch_invariant": True}
        workers = ALL_WORKERS if sm_margin == 0 else num_workers(q.device, sm_margin)
        if out is None:
            op = _decode_lse if return_lse else _decode
            result: Tensor | tuple[Tensor, Tensor] = op(
                *arguments,
                softmax_scale=softmax_scale,
                causal=causal,
                num_workers=workers,
                fresh_tokens=fresh_tokens,
                plan=plan,
                block_table=block_table,
                **changes,
            )
            return result
        packed = cu_seqlens_q is not None
        lse = q.new_empty(lse_shape(q, packed), dtype=torch.float32) if return_lse else None
        _decode_out(
            *arguments,
            out,
            lse=lse,
            softmax_scale=softmax_scale,
            causal=causal,
            num_workers=workers,
            fresh_tokens=fresh_tokens,
            plan=plan,
            block_table=block_table,
            **changes,
        )
    except Exception:
        check_call(
            *(*arguments, out, softmax_scale, causal, fresh_tokens, plan, block_table),
            *(ScoreOptions(*options), k_scale, v_scale, cu_seqlens_q, batch_invariant),
        )
        raise
    return out if lse is None else (out, lse)
