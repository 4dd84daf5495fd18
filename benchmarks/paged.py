"""Times decode over pages of several sizes beside a contiguous cache: `python -m benchmarks.paged`.

The pages of all sequences lie in random order. The method is that of benchmarks.decode, back to back: cold
caches, a CUDA graph, medians; a plan is made beforehand. FlashAttention-3, where it is installed, gets the
same pages.
"""

import sys
from functools import partial

import torch
from torch import Tensor

from benchmarks import method
from benchmarks.case import Case
from benchmarks.measure import ShapeBench
from benchmarks.ours import bind_leanattn
from benchmarks.packages import Missing, import_first
from benchmarks.shape_command import Record, ShapeCommand, time
from benchmarks.shapes import Shape
from benchmarks.tables import microseconds, number
from benchmarks.timing import Call

PAGE_SIZES = (1, 8, 16, 64, 256)


def paged(cache: Tensor, page_size: int, order: Tensor) -> Tensor:
    """[batch, tokens, heads, dim] as pages [num_pages, page_size, heads, dim], the n-th at place order[n]."""
    pages = cache.view(-1, page_size, *cache.shape[2:])
    result = torch.empty_like(pages)
    result[order] = pages
    return result


def whole_pages(case: Case) -> None:
    """Makes the caches long enough for whole pages of every size."""
    more = -case.shape.max_tokens % max(PAGE_SIZES)
    padding = (0, 0, 0, 0, 0, more)
    for caches in (case.k, case.v):
        caches[:] = [torch.nn.functional.pad(cache, padding, value=torch.nan) for cache in caches]


def bind_fa3(pages: Case, block_table: Tensor) -> list[Call]:
    fa3 = import_first("fa3_fwd_interface", "flash_attn_interface")
    call = partial(
        fa3.flash_attn_with_kvcache,
        pages.q[:, None],
        cache_seqlens=pages.seqlens,
        page_table=block_table,
    )
    return [partial(call, k_cache=k, v_cache=v) for k, v in zip(pages.k, pages.v, strict=True)]


def measure_pages(bench: ShapeBench, page_size: int) -> Record:
    """Microseconds by implementation."""
    case = bench.case
    order = torch.randperm(case.shape.batch * case.k[0].shape[1] // page_size, device="cuda")
    block_table = order.view(case.shape.batch, -1).int()
    k, v = ([paged(cache, page_size, order) for cache in caches] for caches in (case.k, case.v))
    pages = Case(case.shape, case.q, case.seqlens, k, v)
    times = {"leanattn": time(bench, bind_leanattn(pages, planned=True, block_table=block_table))}
    try:
        times["fa3"] = time(bench, bind_fa3(pages, block_table))
    except (Missing, RuntimeError) as error:  # not installed, or no such pages
        print(f"fa3, pages of {page_size}: {error}", file=sys.stderr)
    return times


def measure(shape: Shape) -> Record:
    case = Case.random(shape, torch.bfloat16, "cuda")
    bench = ShapeBench(case, method.TOLERANCE["bf16"])
    whole_pages(case)
    return {
        "name": shape.name,
        "contiguous": time(bench, bind_leanattn(case, planned=True)),
        "pages": {str(size): measure_pages(bench, size) for size in PAGE_SIZES},
    }


def row(shape: Record) -> list[str]:
    contiguous, pages = shape["contiguous"], [shape["pages"][str(size)] for size in PAGE_SIZES]
    ratios = (number(p["leanattn"] and p["leanattn"] / contiguous, 3) for p in pages)
    fa3 = (microseconds(p.get("fa3")) for p in pages)
    return [shape["name"], microseconds(contiguous), *ratios, *fa3]


def command() -> ShapeCommand:
    names = [f"{what} page {size}" for what in ("x", "fa3 us,") for size in PAGE_SIZES]
    columns = ("shape", "contiguous us", *names)
    return ShapeCommand("benchmarks.paged", __doc__ or "", columns, measure, row)


if __name__ == "__main__":
    command().run()
