"""Several query tokens a sequence in the GPU benchmark: the reference, what peers and ours are asked for.

Packages that need a GPU are replaced by what their arguments mean, written down plainly.
"""

import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import method, ours, shapes
from benchmarks.case import Case, reference, row_error
from benchmarks.pages import PAGE_TOKENS
from benchmarks.peers import IMPLEMENTATIONS, PROMISE
from benchmarks.replay.cases import Pool

HEADS = shapes.Heads(query=8, kv=2, dim=64)
LENGTHS = (70, 2 * PAGE_TOKENS, 3)


def shape_of(q_len: int, lengths: tuple[int, ...] = LENGTHS) -> shapes.Shape:
    return shapes.Shape("test", f"q{q_len}", HEADS, lengths, q_len=q_len)


def case_of(q_len: int, lengths: tuple[int, ...] = LENGTHS) -> Case:
    return Case.random(shape_of(q_len, lengths), torch.bfloat16, "cpu")


@pytest.fixture(autouse=True)
def small_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "COLD_BYTES", 300_000)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """One sequence, query by query. q [queries, heads, head_dim], k and v [tokens, kv heads, head_dim]."""
    out = torch.empty(q.shape, dtype=torch.float64)
    for i, h in torch.cartesian_prod(torch.arange(q.shape[0]), torch.arange(q.shape[1])).tolist():
        seen = len(k) - (q.shape[0] - 1 - i) if causal else len(k)
        of_kv_head = h * k.shape[1] // q.shape[1]
        scores = k[:seen, of_kv_head].double() @ q[i, h].double() / q.shape[2] ** 0.5
        out[i, h] = torch.softmax(scores, 0) @ v[:seen, of_kv_head].double()
    return out


# --- shapes and reference ----------------------------------------------------------------------------------


@pytest.mark.parametrize("q_len", [1, 2, 3])
def test_the_reference_masks_what_comes_after_a_query(q_len: int) -> None:
    case = case_of(q_len)
    expected = reference(case)
    assert case.q.shape == expected.shape == case.shape.q_shape
    assert len(case.q.shape) == (3 if q_len == 1 else 4)
    for b, tokens in enumerate(LENGTHS):
        q = case.q[b].view(q_len, HEADS.query, HEADS.dim)
        right = attend(q, case.k[0][b, :tokens], case.v[0][b, :tokens], causal=True)
        torch.testing.assert_close(expected[b].view(right.shape), right, rtol=1e-12, atol=1e-12)


def test_a_replay_has_the_queries_of_its_shape() -> None:
    shape = shape_of(3)
    assert Pool([shape], torch.bfloat16, "cpu").case(shape).q.shape == shape.q_shape


# --- peers -------------------------------------------------------------------------------------------------


def test_who_serves_several_query_tokens() -> None:
    one, several, ragged = shape_of(1, (80, 80)), shape_of(2, (80, 80)), shape_of(2)
    top_left = "a causal mask aligned to the top left only"
    reasons = {
        "sdpa_cudnn": top_left,
        "fi_cudacore": "several query tokens only with tensor cores",
        "xqa": "one query token only: its kernel for several is not bound here",
    }
    for name, implementation in IMPLEMENTATIONS.items():
        assert implementation.unsupported(one) is None
        assert implementation.unsupported(several) == reasons.get(name)
    assert IMPLEMENTATIONS["sdpa_cudnn"].unsupported(ragged) == "uniform lengths only"


class FakeFa3:
    """flash_attn_with_kvcache and its metadata."""

    def get_scheduler_metadata(
        self, batch: int, q_len: int, max_tokens: int, *heads: Any, causal: bool, num_splits: int, **_: Any
    ) -> Any:
        return batch, q_len, max_tokens, causal, num_splits

    def flash_attn_with_kvcache(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        cache_seqlens: Tensor,
        causal: bool,
        scheduler_metadata: Any,
        num_splits: int,
    ) -> Tensor:
        assert scheduler_metadata == (*q.shape[:2], k_cache.shape[1], causal, num_splits)
        parts = zip(q, k_cache, v_cache, cache_seqlens.tolist(), strict=True)
        return torch.stack([attend(q, k[:n], v[:n], causal) for q, k, v, n in parts])


class PagedAttention:
    """Attention over pages, once planned."""

    def attend_pages(self, q: Tensor, pages: tuple[Tensor, Tensor], out: Tensor) -> None:
        assert out.shape == q.shape
        begins = zip(pairwise(self.qo_indptr), pairwise(self.kv_indptr), self.lengths, strict=True)
        for (q_begin, q_end), (begin, end), tokens in begins:
            k, v = (of[self.kv_indices[begin:end]].flatten(0, 1)[:tokens] for of in pages)
            out[q_begin:q_end] = attend(q[q_begin:q_end], k, v, self.causal).to(out.dtype)

    def keep(self, qo_indptr: Any, kv_indptr: Any, kv_indices: Any, lengths: Any, causal: bool) -> None:
        self.qo_indptr, self.kv_indptr = list(qo_indptr), list(kv_indptr)
        self.kv_indices, self.lengths, self.causal = kv_indices, list(lengths), causal


class FakeBatchAttention(PagedAttention):
    def __init__(self, layout: str, device: str) -> None:
        self.float_workspace_buffer = torch.empty(2**30, dtype=torch.uint8, device="meta")

    def plan(
        self,
        qo_indptr: Any,
        kv_indptr: Any,
        kv_indices: Any,
        lengths: Any,
        *sizes: int,
        causal: bool,
        **_: Any,
    ) -> None:
        self.keep(qo_indptr.tolist(), kv_indptr.tolist(), kv_indices, lengths.tolist(), causal)

    def run(self, q: Tensor, pages: tuple[Tensor, Tensor], out: Tensor, lse: Tensor) -> None:
        assert (lse.shape, lse.dtype) == (q.shape[:2], torch.float32)
        self.attend_pages(q, pages, out)


class FakeBatchDecode(PagedAttention):
    def __init__(self, workspace: Tensor, layout: str, **options: Any) -> None:
        self.tensor_cores = options["use_tensor_cores"]

    def plan(
        self, indptr: Any, indices: Any, last_tokens: Any, *sizes: int, q_len_per_req: int, **_: Any
    ) -> None:
        assert self.tensor_cores or q_len_per_req == 1
        pages = [end - begin - 1 for begin, end in pairwise(indptr.tolist())]
        lengths = [n * PAGE_TOKENS + last for n, last in zip(pages, last_tokens.tolist(), strict=True)]
        qo_indptr = range(0, len(lengths) * q_len_per_req + 1, q_len_per_req)
        self.keep(qo_indptr, indptr.tolist(), indices, lengths, causal=q_len_per_req > 1)

    def run(self, q: Tensor, pages: tuple[Tensor, Tensor], out: Tensor) -> None:
        self.attend_pages(q, pages, out)


FAKES = {
    "fa3_fwd_interface": FakeFa3(),
    "flashinfer": SimpleNamespace(
        BatchAttention=FakeBatchAttention, BatchDecodeWithPagedKVCacheWrapper=FakeBatchDecode
    ),
}


@pytest.mark.parametrize("q_len", [1, 3])
@pytest.mark.parametrize("name", ["fa3", "fa3_no_split", "fi_tc", "fi_persist", "sdpa_flash"])
def test_peers_are_asked_for_what_the_reference_computes(
    name: str, q_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every copy of the cache, with the Q that is there when they are called."""
    for module, fake in FAKES.items():
        monkeypatch.setitem(sys.modules, module, fake)
    case = case_of(q_len, (2 * PAGE_TOKENS,) * 3 if name == "sdpa_flash" else LENGTHS)
    calls = IMPLEMENTATIONS[name].bind(case)
    case.q.normal_()
    for copy, call in enumerate(calls):
        of_copy = Case(case.shape, case.q, case.seqlens, case.k[copy:], case.v[copy:])
        assert row_error(call(), reference(of_copy)) <= method.TOLERANCE["bf16"]


# --- ours --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q_len", [1, 3])
def test_the_promise_is_what_the_step_kernel_keeps(q_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def decode_out(q: Tensor, *tensors: Tensor, **options: Any) -> None:
        asked.update(options, q=q)

    case = case_of(q_len)
    plan = SimpleNamespace(plan=lambda q, k, seqlens: (q.shape, k.shape))
    monkeypatch.setattr(ours, "import_first", lambda module: plan)
    monkeypatch.setattr(torch.ops.leanattn, "decode_out", decode_out)
    IMPLEMENTATIONS[PROMISE].bind(case)[0]()
    assert asked.pop("q") is case.q
    assert asked == {"plan": (case.q.shape, case.k[0].shape), "fresh_tokens": q_len}


def test_items_and_partials_have_the_rows_of_all_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 query tokens of a group of 4 are 40 rows: two blocks of 20."""
    monkeypatch.setattr(ours, "sms_of", lambda case: 132)
    one, several = case_of(1, (100, 100)), case_of(10, (100, 100))
    assert [ours.tiling_of(case)[2] for case in (one, several)] == [2 * 2, 2 * 2 * 2]
    schedule, sizes, items = ours.tiling_of(several)
    assert (sizes.row_blocks, sizes.block_rows) == (2, 20)
    floats = sizes.heads * sizes.block_rows * (HEADS.dim + 4)
    assert ours.workspace_floats(several, 3) == schedule.partial_slots(3 * items) * floats
