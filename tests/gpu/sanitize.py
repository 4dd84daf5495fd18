"""Small calls for compute-sanitizer, which pytest's own imports would slow down:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/gpu/sanitize.py
    compute-sanitizer --tool synccheck python tests/gpu/sanitize.py
    compute-sanitizer --tool racecheck python tests/gpu/sanitize.py --part 1/16

Without torch's caching allocator every tensor is an allocation of its own, so that memcheck sees a read
beyond its end. Inputs are made and results are judged on the CPU, so that nearly all kernels that a tool
watches are ours. racecheck takes many minutes for all calls, so it may be asked for a part of them: up to 48.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from append_cases import check_append, make_append  # noqa: E402
from decode_cases import Inputs, Reference, plan_of  # noqa: E402
from float8_contract import in_float8  # noqa: E402
from int8_cases import in_int8  # noqa: E402
from packed_cases import pack_queries, random_bits  # noqa: E402
from paged_cases import make_whole_pages, paged  # noqa: E402

import leanattn  # noqa: E402
from leanattn.support import BACKENDS, EIGHT_BITS, FLOAT8  # noqa: E402

# Empty and one-token sequences, both sides of a tile's border, and one long enough to be cut by many workers.
LENGTHS = (0, 1, 63, 64, 65, 129, 700)
# Four KV heads are one item, of tiles of 16 or 32 tokens, where sequences are short and workers few.
SHORT_LENGTHS = (0, 1, 15, 16, 17, 33, 120)

# Query and KV heads, query tokens of a sequence.
SHAPES = (
    *((2, 2, 1), (8, 2, 1), (32, 2, 1), (40, 2, 1), (12, 4, 1)),
    *((8, 2, 5), (8, 4, 4), (71, 1, 2)),
)
WORKERS = (0, 5, 1)
CALLS = ("plain", "general", "append", "packed", "invariant")
PAGE_SIZE = 8  # a tile has several


def on_gpu(inputs: Inputs) -> Inputs:
    q, k_cache, v_cache, cache_seqlens = (t.cuda() for t in inputs.tensors())
    return replace(inputs, q=q, k_cache=k_cache, v_cache=v_cache, cache_seqlens=cache_seqlens)


def check_calls(inputs: Inputs, workers: int) -> int:
    """Returns how many."""
    reference, there = Reference(inputs), on_gpu(inputs)
    plan = plan_of(there, workers)
    out, lse = torch.ops.leanattn.decode_lse(*there.tensors(), num_workers=workers)
    reference.check(out.cpu(), lse.cpu())
    promised = torch.ops.leanattn.decode(
        *there.tensors(), num_workers=workers, plan=plan, fresh_tokens=inputs.q.shape[1]
    )
    reference.check(promised.cpu())
    pages, block_table = paged(inputs, PAGE_SIZE)
    of_pages = torch.ops.leanattn.decode(
        *on_gpu(pages).tensors(), num_workers=workers, block_table=block_table.cuda()
    )
    reference.check(of_pages.cpu())
    return 3


def in_cache_of(dtype: torch.dtype | None, inputs: Inputs) -> Inputs:
    """Of the dtype of q if None."""
    if dtype is None:
        return inputs
    return in_int8(inputs) if dtype == torch.int8 else in_float8(inputs, dtype, inputs.k_cache.shape[2])


def check_general_calls(inputs: Inputs, workers: int) -> int:
    """With options, of both kinds of cache, and of 8 bits. Returns how many."""
    num_q_heads = inputs.q.shape[-2]
    inputs.options = {
        "window_size": (90, -1),
        "softcap": 30.0,
        "sinks": torch.linspace(-1, 2, num_q_heads),
        "alibi_slopes": torch.linspace(0, 0.3, num_q_heads),
        "cache_leftpad": torch.arange(len(inputs.cache_seqlens), dtype=torch.int32),
    }
    calls = 0
    pages, block_table = paged(inputs, PAGE_SIZE)
    wide = max(inputs.q.shape[-1], inputs.v_cache.shape[-1]) > BACKENDS["cuda"].most_head_dim_of_8_bits
    for dtype in (None,) if wide else (None, *EIGHT_BITS):
        kind = in_cache_of(dtype, inputs)
        reference = Reference(kind)
        for call, table in ((kind, None), (in_cache_of(dtype, pages), block_table.cuda())):
            there = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in call.options.items()}
            left, right = there.pop("window_size")
            out, lse = torch.ops.leanattn.decode_lse(
                *on_gpu(call).tensors(),
                num_workers=workers,
                block_table=table,
                window_left=left,
                window_right=right,
                **there,
            )
            reference.check(out.cpu(), lse.cpu())
            calls += 1
    return calls


def check_packed_calls(inputs: Inputs, workers: int) -> int:
    """A few query tokens of each sequence, and a chunk of one; over pages too. Returns how many."""
    tokens = inputs.cache_seqlens.tolist()
    counts = [min(length, 3 + 40 * (length == max(tokens))) for length in tokens]
    reference_inputs = pack_queries(replace(inputs, options={}), counts)
    bits = random_bits((sum(counts),), 2, torch.device("cpu"))
    reference_inputs.options["tree_mask"] = bits
    reference, (pages, block_table) = Reference(reference_inputs), paged(reference_inputs, PAGE_SIZE)
    options = {name: value.cuda() for name, value in reference_inputs.options.items()}
    for call, table in ((reference_inputs, None), (pages, block_table.cuda())):
        plan = plan_of(replace(on_gpu(call), options=options), workers) if table is None else None
        out, lse = torch.ops.leanattn.decode_lse(
            *on_gpu(call).tensors(), num_workers=workers, block_table=table, plan=plan, **options
        )
        reference.check(out.cpu(), lse.cpu())
    return 2


def check_invariant_calls(inputs: Inputs, workers: int) -> int:
    """With a plan, and without one. Returns how many."""
    reference, there = Reference(replace(inputs, options={})), on_gpu(inputs)
    plan = plan_of(replace(there, options={}), workers, batch_invariant=True)
    for more in ({}, {"plan": plan}):
        out, lse = torch.ops.leanattn.decode_lse(
            *there.tensors(), num_workers=workers, batch_invariant=True, **more
        )
        reference.check(out.cpu(), lse.cpu())
    return 2


def check_appends(
    dtype: torch.dtype, heads: tuple[int, int], dims: tuple[int, int | None], q_len: int
) -> int:
    """Returns how many."""
    kinds = list(product((None, PAGE_SIZE), (0, 32, 64), (False, True), (None, *FLOAT8)))
    for page_size, rotary_dim, interleaved, cache_dtype in kinds:
        call = make_append(
            LENGTHS,
            q_len,
            device=torch.device("cuda"),
            heads=heads,
            head_dim=dims[0],
            v_head_dim=dims[1],
            dtype=dtype,
            page_size=page_size,
            rotary_dim=rotary_dim,
            interleaved=interleaved,
            cache_dtype=cache_dtype,
        )
        check_append(call)
    return len(kinds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", default="1/1", help="i/n: the i-th of n parts of the calls")
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=CALLS, help="only such calls")
    options = parser.parse_args()
    torch.set_num_threads(1)  # parts run side by side
    part, parts = map(int, options.part.split("/"))
    # Of a dtype only the instructions that compute depend: no address, no barrier.
    # head_dim of K, and of V if it is another.
    kernels = (
        *((torch.bfloat16, (128, None)), (torch.float16, (64, None))),
        *((torch.bfloat16, (192, 128)), (torch.float16, (320, 512))),
    )
    cases = list(product(WORKERS, kernels, SHAPES))[part - 1 :: parts]
    calls = 0
    for workers, (dtype, dims), (num_q_heads, num_kv_heads, q_len) in cases:
        inputs = make_whole_pages(
            SHORT_LENGTHS if num_kv_heads == 4 else LENGTHS,
            PAGE_SIZE,
            device=torch.device("cpu"),
            q_len=q_len,
            dtype=dtype,
            heads=(num_q_heads, num_kv_heads),
            head_dim=dims[0],
            v_head_dim=dims[1],
        )
        if "plain" in options.calls:
            calls += check_calls(inputs, workers)
        if "append" in options.calls and workers == WORKERS[0]:  # which append_kv does not know
            calls += check_appends(dtype, (num_q_heads, num_kv_heads), dims, q_len)
        if "packed" in options.calls:
            calls += check_packed_calls(inputs, workers)
        if "invariant" in options.calls:
            calls += check_invariant_calls(inputs, workers)
        if "general" in options.calls:
            calls += check_general_calls(inputs, workers)
    torch.cuda.synchronize()
    print(f"{calls} calls of leanattn {leanattn.__version__} are right")


if __name__ == "__main__":
    main()
