"""Calls of decode drawn at random, in all that can be combined, against the reference."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from decode_cases import (
    LAYOUTS,
    Inputs,
    check_error,
    make_inputs,
    of_sequences,
    plan_of,
    query_rows_of,
)
from float8_contract import in_float8
from hypothesis import strategies as st
from int8_cases import SCALE_LAYOUTS, in_int8
from packed_cases import pack_queries, random_bits
from paged_cases import PAGE_LAYOUTS, make_whole_pages, paged
from score_options_contract import poison_unseen
from torch import Tensor

from leanattn.reference import decode_reference
from leanattn.score_options import ScoreOptions
from leanattn.support import BACKENDS

# What is drawn follows from it: the same calls in every run, others with another number.
SEED = int(os.environ.get("LEANATTN_SEED", "0"))

# More than kLeastBytesWgmma of csrc/kernels/tile_table.h.
ROOMY_BYTES = 34_000_000


@dataclass(frozen=True)
class Call:
    q_len: int | None
    packed: bool  # queries, of each sequence a number of its own
    tree_words: int  # 0: no tree
    group: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int | None  # if it is another
    dtype: torch.dtype
    layout: str
    page_size: int  # 0: not paged
    page_layout: str
    wide_table: bool
    roomy: bool  # the cache could hold so much that many query rows go to wgmma, where there is that
    lengths: list[int]
    causal: bool
    window: tuple[int, int]
    softcap: float
    softmax_scale: float | None
    sinks: bool
    alibi: str
    leftpad: bool
    cache_dtype: torch.dtype | None
    most_in_8_bits: int  # of either head_dim
    scales: str
    with_plan: bool
    batch_invariant: bool
    promise: bool
    captured: bool  # in a CUDA graph
    workers: int
    seed: int

    @property
    def in_8_bits(self) -> bool:
        """Rows are multiples of 16 bytes, and there is a kernel."""
        dims = (self.head_dim, self.v_head_dim or 0)
        there = all(dim % 16 == 0 and dim <= self.most_in_8_bits for dim in dims)
        return self.cache_dtype is not None and there

    def token_bytes(self) -> int:
        """Of K and V of all sequences."""
        dims = self.head_dim + (self.v_head_dim or self.head_dim)
        return len(self.lengths) * self.num_kv_heads * dims * self.dtype.itemsize

    def possible(self, layout: str) -> str:
        """That layout, or another where it would be padded by 8 elements of 8 bits."""
        return "tokens_first" if self.in_8_bits and layout == "padded" else layout

    def in_pages(self, inputs: Inputs) -> tuple[Inputs, Tensor]:
        layout = self.possible(self.page_layout)
        return paged(inputs, self.page_size, layout=layout, wide=self.wide_table, seed=self.seed)

    def rounded(self, inputs: Inputs) -> Inputs:
        """With the cache that the call is to have."""
        if self.cache_dtype is None or not self.in_8_bits:
            return inputs
        if self.cache_dtype == torch.int8:
            return in_int8(inputs, SCALE_LAYOUTS[self.seed])
        scales = {"none": None, "one": 1, "heads": self.num_kv_heads}[self.scales]
        return in_float8(inputs, self.cache_dtype, scales)

    def inputs(self, device: torch.device) -> Inputs:
        heads = (self.group * self.num_kv_heads, self.num_kv_heads)
        q_len = None if self.packed else self.q_len
        shape: dict[str, Any] = {"device": device, "q_len": q_len, "heads": heads, "seed": self.seed}
        shape |= {"head_dim": self.head_dim, "v_head_dim": self.v_head_dim, "dtype": self.dtype}
        room = max(*self.lengths, 1, ROOMY_BYTES // self.token_bytes()) if self.roomy else None
        if self.page_size:
            inputs = make_whole_pages(self.lengths, self.page_size, tokens=room or 0, **shape)
        else:
            layout = self.possible(self.layout)
            inputs = make_inputs(self.lengths, layout=layout, max_tokens=room, **shape)
        random = torch.Generator().manual_seed(self.seed)
        inputs.causal = self.causal
        inputs.options = {"window_size": self.window, "softcap": self.softcap}
        if self.packed:
            counts = torch.randint(0, 40, (len(self.lengths),), generator=random).tolist()
            pack_queries(inputs, counts, self.seed)
        if self.tree_words and (self.packed or q_len is not None):
            of = tuple(inputs.q.shape[:-2])
            inputs.options["tree_mask"] = random_bits(of, self.tree_words, device, self.seed)
        if self.sinks:
            inputs.options["sinks"] = (3 * torch.randn(heads[0], generator=random)).to(device)
        if self.alibi != "none":
            of = heads[:1] if self.alibi == "heads" else (len(self.lengths), heads[0])
            inputs.options["alibi_slopes"] = torch.rand(of, generator=random).to(device)
        if self.leftpad:
            pads = torch.randint(-5, 90, (len(self.lengths),), generator=random)
            inputs.options["cache_leftpad"] = pads.int().to(device)
        return inputs


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int]:
    sides = st.one_of(st.just(-1), st.integers(0, 20), st.integers(0, 400))
    return draw(sides), draw(sides)


def calls(device_type: str) -> st.SearchStrategy[Call]:
    backend = BACKENDS[device_type]
    dims = [dim for dim in (8, 40, 48, 64, 128, 192, 256, 320, 512) if dim in tuple(backend.head_dims)]
    return st.builds(
        Call,
        q_len=st.one_of(st.none(), st.integers(1, 16)),
        packed=st.booleans(),
        tree_words=st.sampled_from([0, 0, 1, 2]),
        group=st.integers(1, 9),
        num_kv_heads=st.sampled_from([1, 2, 3, 4, 16]),
        head_dim=st.sampled_from(dims),
        v_head_dim=st.one_of(st.none(), st.sampled_from(dims)),
        dtype=st.sampled_from(backend.dtypes),
        layout=st.sampled_from([layout for layout in LAYOUTS if layout != "expanded"]),
        page_size=st.sampled_from([0, 0, 1, 4, 8, 16, 24, 64, 320]),
        page_layout=st.sampled_from(PAGE_LAYOUTS),
        wide_table=st.booleans(),
        roomy=st.booleans() if device_type == "cuda" else st.just(False),
        # A few with several pieces of a batch-invariant call: the reference takes long over them.
        lengths=st.lists(
            st.one_of(*[st.integers(0, 400)] * 5, st.integers(1000, 2300)), min_size=1, max_size=5
        ),
        causal=st.booleans(),
        window=st.one_of(st.just((-1, -1)), windows()),
        softcap=st.sampled_from([0.0, 2.0, 30.0]),
        softmax_scale=st.sampled_from([None, None, 0.0, 0.3, -0.05]),
        sinks=st.booleans(),
        alibi=st.sampled_from(["none", "heads", "batch"]),
        leftpad=st.booleans(),
        cache_dtype=st.sampled_from([None, *backend.cache_dtypes]),
        most_in_8_bits=st.just(backend.most_head_dim_of_8_bits),
        scales=st.sampled_from(["none", "one", "heads"]),
        with_plan=st.booleans(),
        batch_invariant=st.booleans(),
        promise=st.booleans(),
        captured=st.booleans() if device_type == "cuda" else st.just(False),
        workers=st.sampled_from([1, 2, 7, 40]),
        seed=st.integers(0, 3),
    )


def take_scales(inputs: Inputs) -> dict[str, Any]:
    """Out of its options."""
    return {name: inputs.options.pop(name, None) for name in ("k_scale", "v_scale")}


def check_call(call: Call, device: torch.device) -> None:
    plain = call.inputs(device)
    inputs = call.rounded(plain)

    def reference(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return decode_reference(
            *inputs.tensors(),
            softmax_scale=call.softmax_scale,
            causal=call.causal,
            dtype=dtype,
            **inputs.options,
        )

    exact, exact_lse = reference(torch.float64)
    same, _ = reference(call.dtype)
    poison_unseen(plain)
    inputs = call.rounded(plain)
    scales = take_scales(inputs)

    def arguments(of: Inputs) -> dict[str, Any]:
        cu_seqlens_q = of.options.get("cu_seqlens_q")
        rest = {name: value for name, value in of.options.items() if name != "cu_seqlens_q"}
        more: dict[str, Any] = ScoreOptions(**rest).as_op_arguments()
        more |= {"softmax_scale": call.softmax_scale, "causal": call.causal}
        more |= {"num_workers": call.workers, "batch_invariant": call.batch_invariant}
        more["cu_seqlens_q"] = cu_seqlens_q
        if call.promise:
            more["fresh_tokens"] = call.q_len or 1
        if call.with_plan:
            more["plan"] = plan_of(of, call.workers, batch_invariant=call.batch_invariant)
        return more

    more = arguments(inputs)

    def check(result: tuple[Tensor, Tensor]) -> None:
        # Of few numbers the yardstick is right by chance, so some roundings are allowed beside it.
        out, lse = result
        check_error("out", out, exact, same, roundings=8, least_size=0.25)
        nothing = exact_lse == -torch.inf
        assert torch.equal(lse == -torch.inf, nothing)
        torch.testing.assert_close(
            lse.masked_fill(nothing, 0.0).double(), exact_lse.masked_fill(nothing, 0.0), rtol=2e-5, atol=2e-5
        )

    decode_lse = torch.ops.leanattn.decode_lse
    got = decode_lse(*inputs.tensors(), **more, **scales)
    check(got)
    if call.captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = decode_lse(*inputs.tensors(), **more, **scales)
        graph.replay()
        check(replayed)
    if call.batch_invariant:
        some = [call.seed % len(call.lengths)]
        alone, rows = of_sequences(call.rounded(plain), some), query_rows_of(inputs, some)
        its_scales = take_scales(alone)
        out, lse = decode_lse(*alone.tensors(), **arguments(alone), **its_scales)
        assert torch.equal(got[0][rows], out)
        assert torch.equal(got[1][:, rows] if call.packed else got[1][rows], lse)
    if call.page_size:
        pages, table = call.in_pages(plain)
        pages = call.rounded(pages)
        of_pages = decode_lse(*pages.tensors(), block_table=table, **more, **take_scales(pages))
        check(of_pages)
        if device.type == "cpu" or call.batch_invariant:  # where pages change nothing of the tiling
            assert all(map(torch.equal, of_pages, got))
