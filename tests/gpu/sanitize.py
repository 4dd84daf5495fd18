"""Small decode calls for compute-sanitizer, which pytest's own imports would slow down:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/gpu/sanitize.py
    compute-sanitizer --tool racecheck python tests/gpu/sanitize.py
    compute-sanitizer --tool synccheck python tests/gpu/sanitize.py

Without torch's caching allocator every tensor is an allocation of its own, so that memcheck sees a read
beyond its end.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from decode_cases import check_against_reference, make_inputs  # noqa: E402

import leanattn  # noqa: E402

# Empty and one-token sequences, both sides of a tile's border, and one long enough to be cut by many workers.
LENGTHS = (0, 1, 63, 64, 65, 129, 700)


def main() -> int:
    device = torch.device("cuda")
    calls = 0
    for dtype in (torch.bfloat16, torch.float16):
        for head_dim in (64, 128):
            # The last: all KV heads are one item when workers are few.
            for heads in ((2, 2), (8, 2), (32, 2), (40, 2), (12, 4)):
                inputs = make_inputs(
                    LENGTHS, device=device, dtype=dtype, heads=heads, head_dim=head_dim, seed=calls
                )
                for workers in (0, 5, 1):
                    shapes = {"num_q_heads": heads[0], "num_kv_heads": heads[1], "head_dim": head_dim}
                    plan = torch.ops.leanattn.plan(
                        inputs.cache_seqlens,
                        max_tokens=inputs.k_cache.shape[1],
                        num_workers=workers,
                        **shapes,
                    )
                    out, lse = torch.ops.leanattn.decode_lse(*inputs.tensors(), num_workers=workers)
                    check_against_reference(inputs, out, lse)
                    promised = torch.ops.leanattn.decode(
                        *inputs.tensors(), num_workers=workers, plan=plan, fresh_tokens=1
                    )
                    check_against_reference(inputs, promised)
                    calls += 2
    torch.cuda.synchronize()
    print(f"{calls} calls of leanattn {leanattn.__version__} are right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
