"""The page tables of the FlashInfer peers, and what they say without FlashInfer."""

import sys

import pytest
import torch

from benchmarks.case import Case
from benchmarks.flashinfer_peers import FLASHINFER_PEERS, call_per_copy
from benchmarks.measure import ShapeBench
from benchmarks.packages import Missing
from benchmarks.pages import PAGE_TOKENS, page_step, page_table, pages_of, table_of
from benchmarks.peers import Implementation
from benchmarks.shapes import SHAPES, Heads, Shape

HEADS = Heads(query=4, kv=2, dim=8)

BATCHES = [
    (PAGE_TOKENS,),
    (3 * PAGE_TOKENS,) * 3,  # whole pages
    (4 * PAGE_TOKENS, 1, PAGE_TOKENS, PAGE_TOKENS + 1),
    (300, 17, 300, 64),  # a page at every 4th token
    (131, 131, 1, 65),  # a page at every token
    (32, 31),  # a single page
]


def small_case(lengths: tuple[int, ...]) -> Case:
    shape = Shape("test", "small", HEADS, lengths)
    cache = (shape.batch, shape.max_tokens, HEADS.kv, HEADS.dim)
    return Case(
        shape,
        q=torch.zeros(shape.batch, HEADS.query, HEADS.dim),
        seqlens=torch.tensor(lengths, dtype=torch.int32),
        k=[torch.randn(cache)],
        v=[torch.randn(cache)],
    )


@pytest.mark.parametrize(
    ("max_tokens", "step"), [(8192, PAGE_TOKENS), (64, 64), (41332, 4), (65553, 1), (510, 2), (96, 32)]
)
def test_pages_overlap_only_where_they_do_not_divide_the_cache(max_tokens: int, step: int) -> None:
    assert page_step(max_tokens) == step


@pytest.mark.parametrize("lengths", [*BATCHES, *{shape.lengths for shape in SHAPES if shape.ragged}])
def test_tables_hold_every_token_of_a_sequence_once_in_order(lengths: tuple[int, ...]) -> None:
    max_tokens = max(lengths)
    table = page_table(lengths, max_tokens)
    assert len(table.indptr) == len(table.last_page_tokens) + 1 == len(lengths) + 1
    for sequence, tokens in enumerate(lengths):
        pages = table.indices[table.indptr[sequence] : table.indptr[sequence + 1]]
        sizes = [PAGE_TOKENS] * (len(pages) - 1) + [table.last_page_tokens[sequence]]
        assert 1 <= sizes[-1] <= PAGE_TOKENS
        starts = [page * page_step(max_tokens) for page in pages]
        held = [start + i for start, size in zip(starts, sizes, strict=True) for i in range(size)]
        assert held == list(range(sequence * max_tokens, sequence * max_tokens + tokens))


@pytest.mark.parametrize("lengths", BATCHES)
def test_pages_are_a_view_with_the_tokens_of_the_table(lengths: tuple[int, ...]) -> None:
    case = small_case(lengths)
    (cache,) = case.k
    pages, table = pages_of(cache), table_of(case)
    assert pages.data_ptr() == cache.data_ptr()
    assert pages.shape[1:] == (PAGE_TOKENS, HEADS.kv, HEADS.dim)
    for sequence, tokens in enumerate(lengths):
        whole_pages = table.indices[table.indptr[sequence] :][: tokens // PAGE_TOKENS]
        assert torch.equal(
            pages[whole_pages].flatten(0, 1), cache[sequence, : len(whole_pages) * PAGE_TOKENS]
        )
        # A kernel adds up strides, also for a page that ends beyond the view.
        page, size = table.indices[table.indptr[sequence + 1] - 1], table.last_page_tokens[sequence]
        last = cache.as_strided((size, *pages.shape[2:]), pages.stride()[1:], page * pages.stride(0))
        assert torch.equal(last, cache[sequence, tokens - size : tokens])


@pytest.mark.parametrize("lengths", [(PAGE_TOKENS - 1,), (21, 21, 1)])
def test_a_cache_without_room_for_a_page_is_unsupported(lengths: tuple[int, ...]) -> None:
    case = small_case(lengths)
    bench = ShapeBench(case, tolerance=1e-3)
    peer = Implementation("", "", lambda case: call_per_copy(case, lambda pages, out: None))
    reason = "only caches of a page and more, 64 tokens"
    assert bench.measure(peer) == {"status": "unsupported", "detail": reason}


def test_dense_table_is_filled_up() -> None:
    table = page_table((4 * PAGE_TOKENS, 1, 2 * PAGE_TOKENS), max_tokens=4 * PAGE_TOKENS)
    assert table.dense() == [[0, 1, 2, 3], [4, 0, 0, 0], [8, 9, 0, 0]]


@pytest.mark.parametrize("name", FLASHINFER_PEERS)
def test_without_flashinfer_they_are_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)  # an import of it fails
    _, bind = FLASHINFER_PEERS[name]
    with pytest.raises(Missing, match="flashinfer"):
        bind(small_case((64, 65)))
