"""Captured CUDA graphs: right at other lengths, and when several are replayed at once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from decode_cases import Inputs, check_against_reference, make_inputs
from paged_cases import make_whole_pages, paged
from torch import Tensor

import leanattn

pytestmark = pytest.mark.gpu

ops = torch.ops.leanattn


class Captured:
    """A graph of one decode call, captured on a stream of its own."""

    def __init__(self, inputs: Inputs, workers: int = 0) -> None:
        self.inputs = inputs  # the graph holds their addresses, not them
        self.stream = torch.cuda.Stream()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.out, self.lse = ops.decode_lse(*inputs.tensors(), num_workers=workers)


def set_lengths(inputs: Inputs, lengths: list[int]) -> None:
    """In place, as a graph wants it. The caches must be filled as far as any lengths reach."""
    inputs.cache_seqlens.copy_(torch.tensor(lengths, dtype=torch.int32))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_captured_at_one_token_and_replayed_at_any_length(gpu: torch.device, head_dim: int) -> None:
    longest = 131_072
    inputs = make_inputs([longest] * 4, device=gpu, head_dim=head_dim)
    set_lengths(inputs, [1, 1, 1, 1])
    captured = Captured(inputs)
    for lengths in ([1] * 4, [longest, 1, 2000, 0], [0] * 4, [65, 64, 63, 1], [longest] * 4, [9, 0, 0, 5000]):
        set_lengths(inputs, lengths)
        captured.out.fill_(torch.nan)
        captured.graph.replay()
        out, lse = leanattn.decode(*inputs.tensors(), return_lse=True)
        assert torch.equal(captured.out, out)
        assert torch.equal(captured.lse, lse)
        check_against_reference(inputs, out, lse)


def test_lengths_that_grow_inside_the_graph(gpu: torch.device) -> None:
    inputs = make_inputs([300, 300], device=gpu)
    set_lengths(inputs, [1, 60])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inputs.cache_seqlens.add_(1)
        out = leanattn.decode(*inputs.tensors())
    for step in range(1, 100):
        graph.replay()
        assert inputs.cache_seqlens.tolist() == [1 + step, 60 + step]
        assert torch.equal(out, leanattn.decode(*inputs.tensors()))


@pytest.mark.parametrize("workers", [8, 60, 0])
def test_two_graphs_at_once(gpu: torch.device, workers: int) -> None:
    graphs = [
        Captured(make_inputs((5000, 70, 900), device=gpu, seed=1), workers),
        Captured(make_inputs((64, 9000, 0, 333), device=gpu, seed=2), workers),
    ]
    serial = []
    for captured in graphs:
        captured.graph.replay()
        torch.cuda.synchronize()
        serial.append(captured.out.clone())
    differences = torch.zeros(2, dtype=torch.int64, device=gpu)
    torch.cuda.synchronize()
    for _ in range(500):
        for i, captured in enumerate(graphs):
            with torch.cuda.stream(captured.stream):
                captured.graph.replay()
                differences[i] += (captured.out != serial[i]).sum()
                captured.out.fill_(torch.nan)
    torch.cuda.synchronize()
    assert differences.tolist() == [0, 0]


def test_two_branches_of_one_graph(gpu: torch.device) -> None:
    both = [make_inputs((5000, 70, 900), device=gpu, seed=seed) for seed in (1, 2)]
    expected = [ops.decode(*inputs.tensors(), num_workers=50) for inputs in both]
    outs = [torch.empty_like(out) for out in expected]
    side = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        side.wait_stream(torch.cuda.current_stream())
        for _ in range(20):
            ops.decode_out(*both[0].tensors(), outs[0], num_workers=50)
        with torch.cuda.stream(side):
            for _ in range(20):
                ops.decode_out(*both[1].tensors(), outs[1], num_workers=50)
        torch.cuda.current_stream().wait_stream(side)
    for _ in range(50):
        for out in outs:
            out.fill_(torch.nan)
        graph.replay()
        assert all(map(torch.equal, outs, expected))


def test_a_graph_beside_calls_without_one(gpu: torch.device) -> None:
    captured = Captured(make_inputs((5000, 70, 900), device=gpu, seed=1), workers=60)
    inputs = make_inputs((64, 9000, 0, 333), device=gpu, seed=2)
    expected = ops.decode(*inputs.tensors(), num_workers=60)
    captured.graph.replay()
    torch.cuda.synchronize()
    serial = captured.out.clone()
    out = torch.empty_like(expected)
    differences = torch.zeros(2, dtype=torch.int64, device=gpu)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(500):
        # Calls on the very stream that was captured, too: the graph does not own what the stream owns.
        with torch.cuda.stream(captured.stream):
            ops.decode_out(*inputs.tensors(), out, num_workers=60)
            differences[0] += (out != expected).sum()
            out.fill_(torch.nan)
        with torch.cuda.stream(side):
            captured.graph.replay()
            differences[1] += (captured.out != serial).sum()
            captured.out.fill_(torch.nan)
    torch.cuda.synchronize()
    assert differences.tolist() == [0, 0]


def test_many_graphs(gpu: torch.device) -> None:
    inputs = make_inputs((700, 70), device=gpu)
    expected = leanattn.decode(*inputs.tensors())
    graphs: list[tuple[torch.cuda.CUDAGraph, Tensor]] = []
    for _ in range(70):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = leanattn.decode(*inputs.tensors())
        graphs.append((graph, out))
    for graph, out in graphs:
        graph.replay()
        assert torch.equal(out, expected)


def test_batch_sizes_of_a_server(gpu: torch.device) -> None:
    """Graphs for many batch sizes over the first rows of the same tensors, with one memory pool, replayed in
    any order; rows that pad a batch have length 0, and pages and lengths change in place.
    """
    inputs = make_whole_pages((700, 40, 1, 333, 64, 65, 500, 16), 16, device=gpu)
    pages, table = paged(inputs, 16)
    lengths, static_table = inputs.cache_seqlens.clone(), torch.zeros_like(table)
    pool = torch.cuda.graph_pool_handle()
    graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
    for batch in (8, 4, 2, 1):
        graph = torch.cuda.CUDAGraph()
        q, seqlens = pages.q[:batch], inputs.cache_seqlens[:batch]
        with torch.cuda.graph(graph, pool=pool):
            plan = leanattn.plan(q, pages.k_cache, seqlens, block_table=static_table[:batch])
            out = leanattn.decode(
                q, pages.k_cache, pages.v_cache, seqlens, block_table=static_table[:batch], plan=plan
            )
        graphs[batch] = graph, out
    for used, batch in ((8, 8), (1, 1), (3, 4), (2, 2), (5, 8), (1, 2)):
        inputs.cache_seqlens.copy_(lengths)
        inputs.cache_seqlens[used:] = 0
        static_table.copy_(table)
        graph, out = graphs[batch]
        graph.replay()
        q, k, v, seqlens = (tensor[:batch] for tensor in inputs.tensors())
        check_against_reference(Inputs(q, k, v, seqlens), out)
        assert not out[used:].any()


FIRST_CALL = """
import torch, leanattn
torch.manual_seed(0)
q = torch.randn(2, 8, 64, device="cuda", dtype=torch.bfloat16)
k, v = torch.randn(2, 2, 900, 2, 64, device="cuda", dtype=torch.bfloat16)
lengths = torch.tensor([900, 5], device="cuda", dtype=torch.int32)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    out = leanattn.decode(q, k, v, lengths)
graph.replay()
assert torch.equal(out, leanattn.decode(q, k, v, lengths))
"""


def test_the_first_call_of_a_process_inside_a_capture(gpu: torch.device) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [sys.executable, "-c", FIRST_CALL], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
