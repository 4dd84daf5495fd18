"""Small decode calls for compute-sanitizer, which pytest's own imports would slow down:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/gpu/sanitize.py
    compute-sanitizer --tool racecheck python tests/gpu/sanitize.py
    compute-sanitizer --tool synccheck python tests/gpu/sanitize.py

Without torch's caching allocator every tensor is an allocation of its own, so that memcheck sees a read
beyond its end.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from decode_cases import Inputs, check_against_reference, make_inputs  # noqa: E402

import leanattn  # noqa: E402

# Empty and one-token sequences, both sides of a tile's border, and one long enough to be cut by many workers.
LENGTHS = (0, 1, 63, 64, 65, 129, 700)


# Query and KV heads, query tokens of a sequence. Four KV heads are one item when workers are few.
SHAPES = (
    *((2, 2, 1), (8, 2, 1), (32, 2, 1), (40, 2, 1), (12, 4, 1)),
    *((8, 2, 5), (8, 4, 4), (71, 1, 2)),
)


def check_calls(inputs: Inputs, workers: int) -> None:
    q, k_cache, _, cache_seqlens = inputs.tensors()
    plan = torch.ops.leanattn.plan(
        cache_seqlens,
        max_tokens=k_cache.shape[1],
        num_q_heads=q.shape[2],
        num_kv_heads=k_cache.shape[2],
        head_dim=q.shape[3],
        q_len=q.shape[1],
        num_workers=workers,
    )
    out, lse = torch.ops.leanattn.decode_lse(*inputs.tensors(), num_workers=workers)
    check_against_reference(inputs, out, lse)
    promised = torch.ops.leanattn.decode(
        *inputs.tensors(), num_workers=workers, plan=plan, fresh_tokens=q.shape[1]
    )
    check_against_reference(inputs, promised)


def main() -> int:
    device = torch.device("cuda")
    calls = 0
    for dtype, head_dim in product((torch.bfloat16, torch.float16), (64, 128)):
        for num_q_heads, num_kv_heads, q_len in SHAPES:
            inputs = make_inputs(
                LENGTHS,
                device=device,
                q_len=q_len,
                dtype=dtype,
                heads=(num_q_heads, num_kv_heads),
                head_dim=head_dim,
                seed=calls,
            )
            for workers in (0, 5, 1):
                check_calls(inputs, workers)
                calls += 2
    torch.cuda.synchronize()
    print(f"{calls} calls of leanattn {leanattn.__version__} are right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
