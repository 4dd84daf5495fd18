"""The step kernel of the timing in a model: its arguments, with a stand-in for the kernel itself."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import method, shapes, step_kernel
from benchmarks.case import Case, reference
from benchmarks.step_kernel import StepKernel, newest_tokens

LENGTHS = (70, 128, 3)


def launch(*arguments: int) -> int:
    """What step_kernel.cu does, in host memory."""
    q_source, q, k_source, k, v_source, v, seqlens, batch, max_tokens, new_tokens, *words, _ = arguments
    q_bytes, token_bytes = (step_kernel.WORD_BYTES * count for count in words)
    ctypes.memmove(q, q_source, q_bytes)
    for seq, tokens in enumerate((ctypes.c_int32 * batch).from_address(seqlens)):
        first_new, new_bytes = seq * max_tokens + tokens - new_tokens, new_tokens * token_bytes
        for to, source in ((k, k_source), (v, v_source)):
            ctypes.memmove(to + first_new * token_bytes, source + seq * new_bytes, new_bytes)
    return 0


@pytest.mark.parametrize("q_len", [1, 3])
def test_a_step_writes_all_queries_and_their_tokens(q_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "COLD_BYTES", 300_000)
    monkeypatch.setattr(step_kernel, "load", lambda source, folder: SimpleNamespace(step_launch=launch))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    shape = shapes.Shape("test", "small", shapes.Heads(query=8, kv=2, dim=64), LENGTHS, q_len=q_len)
    case = Case.random(shape, torch.bfloat16, "cpu")
    assert len(case.k) > 1
    before = [k.clone() for k in case.k]
    steps = StepKernel(Path()).bind(case)
    queries, expected = case.q.clone(), reference(case)
    for step, k, v in zip(steps, case.k, case.v, strict=True):
        for tensor, first in ((k, case.k[0]), (v, case.v[0])):
            assert torch.equal(newest_tokens(case, tensor), newest_tokens(case, first))
        for b, tokens in enumerate(LENGTHS):
            k[b, tokens - q_len : tokens] = v[b, tokens - q_len : tokens] = torch.nan
        case.q.fill_(torch.nan)
        step()
        assert torch.equal(case.q, queries)
    assert torch.equal(reference(case), expected)
    for k, earlier in zip(case.k, before, strict=True):
        for b, tokens in enumerate(LENGTHS):
            assert torch.equal(k[b, : tokens - q_len], earlier[b, : tokens - q_len])
            assert not k[b, :tokens].isnan().any()
