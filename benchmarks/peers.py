"""The implementations that are compared. Bound to a case, each is a list of calls, one per copy of the cache.

torch and the packages are imported inside the functions: the report needs the names only, and a package that
can't be imported fails alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.fa3_peers import bind_fa3
from benchmarks.flashinfer_peers import FLASHINFER_PEERS, ONE_QUERY_TOKEN
from benchmarks.ours import (
    bind_fixed_split,
    bind_leanattn,
    flash_decoding_splits,
    no_split,
    split_details,
)
from benchmarks.sdpa_peers import bind_sdpa
from benchmarks.shapes import Shape

if TYPE_CHECKING:
    from benchmarks.case import Case
    from benchmarks.timing import Call

# Not implementations, but measured on every shape: a kernel that only reads, and the one between two decode
# calls of a model.
READ_LIMIT = "read_limit"
STEP = "step"

LEANATTN = "leanattn"
PLAN = "leanattn_plan"
PROMISE = "leanattn_promise"
FIXED_SPLIT = "leanattn_fixed_split"
OWN_NO_SPLIT = "leanattn_no_split"
FA3 = "fa3"
NO_SPLIT = "fa3_no_split"


@dataclass(frozen=True)
class Implementation:
    name: str
    what: str
    bind: Callable[[Case], list[Call]]
    ragged: bool = True  # serves sequences of different lengths
    one_query_token: str | None = None  # why it serves no more of a sequence; None: it serves several
    kind: Literal["ours", "decomposition", "peer"] = "peer"  # decomposition: another one in our kernel
    details: Callable[[Case], dict[str, Any]] | None = None  # on a case, for the record

    def unsupported(self, shape: Shape) -> str | None:
        """Why it can't run `shape`, None if it can."""
        if shape.ragged and not self.ragged:
            return "uniform lengths only"
        return self.one_query_token if shape.q_len > 1 else None


IMPLEMENTATIONS = {
    implementation.name: implementation
    for implementation in (
        Implementation(LEANATTN, "torch.ops.leanattn.decode_out", bind_leanattn, kind="ours"),
        Implementation(
            PLAN, "the same with a plan made beforehand", partial(bind_leanattn, planned=True), kind="ours"
        ),
        Implementation(
            PROMISE,
            "plan and fresh_tokens=q_len: the kernel ahead writes no more of a sequence than its last q_len "
            "tokens",
            partial(bind_leanattn, planned=True, promised=True),
            kind="ours",
        ),
        Implementation(
            FIXED_SPLIT,
            "leanattn's kernel with FlashDecoding's decomposition: every item in equally many pieces",
            partial(bind_fixed_split, splits_of=flash_decoding_splits),
            kind="decomposition",
            details=partial(split_details, splits_of=flash_decoding_splits),
        ),
        Implementation(
            OWN_NO_SPLIT,
            "leanattn's kernel with FlashAttention-2's decomposition: a CTA for every item",
            partial(bind_fixed_split, splits_of=no_split),
            kind="decomposition",
        ),
        Implementation(
            "sdpa_cudnn",
            "torch scaled_dot_product_attention, cuDNN backend",
            partial(bind_sdpa, backend_name="CUDNN_ATTENTION"),
            ragged=False,
            one_query_token="a causal mask aligned to the top left only",
        ),
        Implementation(
            "sdpa_flash",
            "torch scaled_dot_product_attention, flash backend",
            partial(bind_sdpa, backend_name="FLASH_ATTENTION"),
            ragged=False,
        ),
        Implementation(
            FA3,
            "FlashAttention-3 flash_attn_with_kvcache, its choice of splits, precomputed scheduler metadata",
            partial(bind_fa3, num_splits=0),
        ),
        Implementation(
            NO_SPLIT,
            "FlashAttention-3 with num_splits=1: one CTA reads the whole context of a KV head",
            partial(bind_fa3, num_splits=1),
        ),
        *(
            Implementation(name, what, bind, one_query_token=ONE_QUERY_TOKEN.get(name))
            for name, (what, bind) in FLASHINFER_PEERS.items()
        ),
    )
}


def names_of(*kinds: str) -> tuple[str, ...]:
    return tuple(name for name, implementation in IMPLEMENTATIONS.items() if implementation.kind in kinds)


OUR_NAMES = names_of("ours")
PEER_NAMES = names_of("peer")
COMPARED_NAMES = names_of("decomposition", "peer")
