"""The benchmark of paged caches, as far as it needs no GPU."""

from __future__ import annotations

import torch

from benchmarks import paged, shape_command
from benchmarks.shapes import SHAPES


def test_shapes_are_those_of_the_other_benchmark() -> None:
    assert set(shape_command.SHAPE_NAMES) <= {shape.name for shape in SHAPES}


def test_pages_hold_the_cache_in_the_order_of_the_table() -> None:
    cache = torch.randn(2, 24, 3, 8)
    for page_size in (1, 4, 8):
        order = torch.randperm(2 * 24 // page_size)
        pages = paged.paged(cache, page_size, order)
        assert pages.shape == (2 * 24 // page_size, page_size, 3, 8)
        assert torch.equal(pages[order.view(2, -1)].view(cache.shape), cache)


def test_the_table_names_what_is_missing() -> None:
    sizes: dict[str, dict[str, float | None]] = {
        str(size): {"leanattn": 10.5, "fa3": 21.0} for size in paged.PAGE_SIZES
    }
    sizes["1"] = {"leanattn": 12.0}
    sizes["8"] = {"leanattn": None, "fa3": 3.0}  # was wrong
    document = {
        "commit": "0123456789",
        "date": "2026-01-01",
        "environment": {"gpu": "a GPU", "torch": "2.13.0"},
        "shapes": [{"name": "some shape", "contiguous": 10.0, "pages": sizes}],
    }
    last = paged.command().render(document, markdown=True).splitlines()[-1]
    cells = [cell.strip() for cell in last.split("|")[1:-1]]
    assert cells == ["some shape", "10.0", "1.200", "-", *["1.050"] * 3, "-", "3.00", *["21.0"] * 3]
