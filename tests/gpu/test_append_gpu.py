"""append_kv on a GPU: the contract of every device, graphs, the promise to decode, and pages far apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from append_cases import Append, check_append, make_append
from append_contract import AppendContract
from append_refusals_contract import AppendRefusalsContract
from torch import Tensor

import leanattn

pytestmark = pytest.mark.gpu

LENGTHS = (5000, 70, 0, 1, 2, 2049)

paged_or_not = pytest.mark.parametrize("page_size", [None, 16])
any_number_of_new_tokens = pytest.mark.parametrize("new_tokens", [None, 1, 4])


class TestAppend(AppendContract):
    pass


class TestRefusals(AppendRefusalsContract):
    def test_float32_is_for_the_cpu(self, device: torch.device) -> None:
        call = make_append((70, 9), device=device, dtype=torch.float32)
        with pytest.raises(
            TypeError, match="k: dtype torch.float32, expected one of float16, bfloat16 on cuda"
        ):
            call.run()
        with pytest.raises(ValueError, match="k: dtype Float has no CUDA kernel"):
            torch.ops.leanattn.append_kv(*call.tensors())


def make_step(device: torch.device, new_tokens: int | None, page_size: int | None) -> Append:
    options: dict[str, Any] = {"page_size": page_size, "whole_table": True, "rotary_dim": 64}
    return make_append(LENGTHS, new_tokens, device=device, **options)


def decode(call: Append, **options: Any) -> Tensor:
    assert call.q is not None
    rest = (call.k_cache, call.v_cache, call.cache_seqlens)
    out: Tensor = leanattn.decode(call.q, *rest, block_table=call.block_table, **options)
    return out


def state_of(call: Append) -> list[Tensor]:
    """What a step changes; q and k are parts of one tensor."""
    assert call.q is not None
    return [call.q, call.k_cache, call.v_cache, call.cache_seqlens]


@paged_or_not
@any_number_of_new_tokens
def test_decode_that_begins_early(gpu: torch.device, new_tokens: int | None, page_size: int | None) -> None:
    """Ahead of append_kv, the older tokens, the lengths and q are still being written. Were decode allowed to
    begin before append_kv has waited for that, it would read what was there before: NaN, and no lengths.
    """
    call = make_step(gpu, new_tokens, page_size)
    state = state_of(call)
    before = [tensor.clone() for tensor in state]
    call.run()
    expected = decode(call)
    for _ in range(20):
        for tensor in state[:3]:
            tensor.fill_(torch.nan)
        state[3].zero_()
        torch.cuda._sleep(300_000)  # clock cycles, until all is queued
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        call.run()
        assert torch.equal(decode(call, fresh_tokens=new_tokens or 1), expected)


@paged_or_not
@any_number_of_new_tokens
def test_steps_in_a_graph(gpu: torch.device, new_tokens: int | None, page_size: int | None) -> None:
    """Lengths, table and new tokens change between replays; decode follows with its promise."""
    call, plain = (make_step(gpu, new_tokens, page_size) for _ in range(2))
    call.run()  # loads the kernels
    decode(call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run()
        out = decode(call, fresh_tokens=new_tokens or 1)
    longest = max(LENGTHS)
    for lengths in (
        LENGTHS,
        LENGTHS[::-1],
        (longest,) * 6,
        (0,) * 6,
        (1, 2, 3, 4, 5, 6),
        (-1, longest + 99, 9, 9, 9, 9),
    ):
        for each in (call, plain):
            generator = torch.Generator(gpu).manual_seed(len(lengths) + max(lengths))
            for tensor in (each.k, each.v, each.q, each.k_cache, each.v_cache):
                assert tensor is not None
                tensor.copy_(torch.randn(tensor.shape, generator=generator, device=gpu))
            each.cache_seqlens.copy_(torch.tensor(lengths, dtype=torch.int32))
            if each.block_table is not None:
                pages = torch.randperm(each.k_cache.shape[0], generator=generator, device=gpu)
                each.block_table.copy_(pages[: each.block_table.numel()].view_as(each.block_table))
        torch.cuda.synchronize()
        graph.replay()
        check_append(plain)
        assert all(map(torch.equal, state_of(call), state_of(plain)))
        assert torch.equal(out, decode(plain))


def test_pages_beyond_32_bits(gpu: torch.device) -> None:
    """Pages 2^24 elements apart: those from 128 on begin at element 2^31 or later."""
    needed = 150 * 2**24 * 2
    copies = 4  # check_append makes two, and compares them with half of one
    if torch.cuda.mem_get_info(gpu)[0] < copies * needed + 2**30:
        pytest.skip(f"needs {copies * needed / 1e9:.1f} GB of free GPU memory")
    memory = torch.zeros((150, 2**24), dtype=torch.bfloat16, device=gpu)
    call = make_append((2000, 333, 0, 16), 4, device=gpu, rotary_dim=64)
    call.k_cache, call.v_cache = (
        memory[:, start : start + 16 * 2 * 64].view(150, 16, 2, 64) for start in (0, 2**20)
    )
    call.block_table = torch.arange(149, -1, -1, device=gpu).int()[:126].repeat(4, 1)
    call.block_table[1:] -= torch.arange(1, 4, device=gpu, dtype=torch.int32)[:, None]
    check_append(call)
