"""What only the CPU backend has: instruction sets, threads as workers, heads read together."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from decode_cases import make_inputs
from decode_contract import decode_and_check
from torch import Tensor

import leanattn

CPU = torch.device("cpu")
ops = torch.ops.leanattn

ELEMENTS = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    runs_on = {"avx2": ("AVX2", "AVX512"), "avx512": ("AVX512",)}
    if capability not in runs_on.get(request.param, (capability,)):
        pytest.skip(f"this CPU has {capability}")
    monkeypatch.setenv("LEANATTN_CPU_ISA", request.param)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("isa")
class TestInstructionSets:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("head_dim", range(8, 257, 8))
    def test_head_dims(self, head_dim: int, dtype: torch.dtype) -> None:
        decode_and_check(make_inputs((67, 0, 130), device=CPU, dtype=dtype, head_dim=head_dim, heads=(5, 1)))

    @pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 31, 32, 33, 71])
    def test_groups(self, group: int) -> None:
        decode_and_check(make_inputs((150, 1, 64), device=CPU, dtype=torch.float32, heads=(3 * group, 3)))

    @pytest.mark.parametrize("q_len", [2, 5, 16])
    @pytest.mark.parametrize("heads", [(1, 1), (6, 2), (9, 9), (33, 1)])
    def test_query_tokens(self, heads: tuple[int, int], q_len: int) -> None:
        lengths = (0, 1, 7, 64, 65, 130)
        inputs = make_inputs(lengths, device=CPU, q_len=q_len, heads=heads, dtype=torch.float32)
        for causal in (True, False):
            inputs.causal = causal
            decode_and_check(inputs)

    def test_tokens_of_a_tile(self) -> None:
        decode_and_check(make_inputs(range(1, 130), device=CPU, dtype=torch.float32, head_dim=40))

    @ELEMENTS
    def test_every_16_bit_value_passes_through(self, dtype: torch.dtype) -> None:
        # Softmax over one token is 1, so the output is V.
        values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(-1, 1, 1, 256)
        out = attend_equally(values)
        torch.testing.assert_close(out, values[:, 0], rtol=0, atol=0, equal_nan=True)

    @ELEMENTS
    def test_output_is_rounded_to_nearest_even(self, dtype: torch.dtype) -> None:
        # The mean of two neighbours lies half-way between them.
        bits = torch.arange(0x7F00 if dtype == torch.bfloat16 else 0x7BFF, dtype=torch.int16)
        low, high = bits.view(dtype), (bits + 1).view(dtype)
        pairs = torch.nn.functional.pad(torch.stack([low, high]), (0, -len(bits) % 256))
        values = pairs.reshape(2, -1, 1, 256).transpose(0, 1)  # [batch, 2 tokens, 1, 256]
        exact = values.double().mean(1)
        assert torch.equal(attend_equally(values), exact.to(dtype))
        assert torch.equal(attend_equally(-values), -exact.to(dtype))

    def test_exponentials_are_accurate(self) -> None:
        # Scores 0 and x, values 0 and 1: the output is 2^x / (1 + 2^x).
        x = torch.cat([torch.linspace(-125, 0, 10_000), torch.arange(-200.0, 1.0)])
        q = torch.nn.functional.pad(x[:, None, None], (0, 7))  # [batch, 1, 8]
        k = torch.zeros(len(x), 2, 1, 8)
        k[:, 1, :, 0] = 1.0
        v = torch.zeros_like(k)
        v[:, 1] = 1.0
        lengths = torch.full((len(x),), 2, dtype=torch.int32)
        out = leanattn.decode(q, k, v, lengths, softmax_scale=math.log(2))[:, 0, 0]
        power = torch.exp2(x.double()).where(x >= -126, 0.0)  # what float32 has no normal number for is 0
        torch.testing.assert_close(out.double(), power / (1 + power), rtol=3e-7, atol=0)

    def test_scores_of_minus_infinity(self) -> None:
        inputs = make_inputs((200, 200, 64), device=CPU, dtype=torch.float32)
        inputs.q.fill_(1.0)
        inputs.k_cache[0, :130] = -torch.inf  # two tiles and a bit
        inputs.k_cache[1, 130:] = -torch.inf
        inputs.k_cache[2] = -torch.inf
        out, lse = leanattn.decode(*inputs.tensors(), return_lse=True)
        q, k, v, _ = inputs.tensors()
        tail = leanattn.decode(q[:1], k[:1, 130:], v[:1, 130:], torch.tensor([70], dtype=torch.int32))
        head = leanattn.decode(q[1:2], k[1:2], v[1:2], torch.tensor([130], dtype=torch.int32))
        torch.testing.assert_close(out[:2], torch.cat([tail, head]))
        assert (out[2] == 0).all(), "a row that attends to nothing"
        assert (lse[2] == -torch.inf).all()

    def test_reads_end_with_the_last_token(self) -> None:
        assert subprocess.run([sys.executable, "-c", READ_UP_TO_THE_END]).returncode == 0


# K and V end where readable memory does: one element further is a segmentation fault.
READ_UP_TO_THE_END = """
import ctypes, mmap
import torch
from leanattn import decode

def at_the_end(values):
    size, page = values.nbytes, mmap.PAGESIZE
    end = -(-size // page) * page
    memory = torch.frombuffer(mmap.mmap(-1, end + page), dtype=torch.uint8)
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(memory.data_ptr() + end), page, 0) == 0
    return memory[end - size : end].view(values.dtype).view(values.shape).copy_(values)

for dtype in torch.float32, torch.bfloat16, torch.float16:
    for head_dim in 8, 16, 24, 40, 64, 128, 136:
        for tokens in 1, 2, 5, 63, 64, 67:
            q, k, v = (torch.randn(1, n, 3, head_dim).to(dtype) for n in (1, tokens, tokens))
            lengths = torch.tensor([tokens], dtype=torch.int32)
            assert torch.equal(decode(q, at_the_end(k), at_the_end(v), lengths), decode(q, k, v, lengths))
"""


def attend_equally(values: Tensor) -> Tensor:
    """The mean of values [batch, tokens, kv_heads, head_dim] over the tokens, by decode with all scores 0."""
    batch, tokens, kv_heads, head_dim = values.shape
    q = values.new_zeros(batch, kv_heads, head_dim)
    lengths = torch.full((batch,), tokens, dtype=torch.int32)
    return leanattn.decode(q, torch.zeros_like(values), values, lengths)


def test_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs((5,), device=CPU)
    monkeypatch.setenv("LEANATTN_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match=r"LEANATTN_CPU_ISA: expected one of .*portable.*, got 'mmx'"):
        leanattn.decode(*inputs.tensors())
    monkeypatch.delenv("LEANATTN_CPU_ISA")
    decode_and_check(inputs)


@pytest.mark.parametrize("head_dim", [4, 12, 520])
def test_head_dim_that_is_not_supported(head_dim: int) -> None:
    cache = torch.zeros(1, 3, 1, head_dim)
    with pytest.raises(
        ValueError, match=f"head_dim.*multiple of 8, 8..512, got {head_dim}|multiple of 16 bytes"
    ):
        ops.decode(torch.zeros(1, 1, head_dim), cache, cache, torch.ones(1, dtype=torch.int32))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("workers", [2, 7, 64, 1024])
def test_one_thread_does_the_work_of_all(workers: int) -> None:
    # A worker that waited for another would wait for ever.
    inputs = make_inputs((3000, 5, 0, 64, 700), device=CPU)
    serial = ops.decode_lse(*inputs.tensors(), num_workers=workers)
    torch.set_num_threads(4)
    assert all(map(torch.equal, ops.decode_lse(*inputs.tensors(), num_workers=workers), serial))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_worker_for_every_thread(threads: int) -> None:
    inputs = make_inputs((3000, 700), device=CPU, heads=(6, 3), dtype=torch.float32)
    torch.set_num_threads(threads)
    default = ops.decode(*inputs.tensors())
    same = [torch.equal(default, ops.decode(*inputs.tensors(), num_workers=n)) for n in (1, 2, 3)]
    assert same == [n == threads for n in (1, 2, 3)], "where items are cut shows in the last bits"


def test_calls_at_the_same_time() -> None:
    batches = [make_inputs((2000, 3, 64), device=CPU, seed=seed) for seed in range(8)]
    alone = [ops.decode(*inputs.tensors(), num_workers=5) for inputs in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: ops.decode(*batches[i % 8].tensors(), num_workers=5), range(64)))
    assert all(torch.equal(out, alone[i % 8]) for i, out in enumerate(together))


@pytest.mark.parametrize("group", [1, 4, 8, 12, 32, 40])
def test_heads_that_are_read_together_keep_their_bits(group: int) -> None:
    inputs = make_inputs((200, 65, 1), device=CPU, heads=(9 * group, 9), dtype=torch.float32)
    together = ops.decode(*inputs.tensors(), num_workers=1)
    q, k, v, lengths = inputs.tensors()
    for head in range(9):
        rows = slice(head * group, (head + 1) * group)
        caches = k[:, :, head : head + 1], v[:, :, head : head + 1]
        alone = ops.decode(q[:, rows], *caches, lengths, num_workers=1)
        assert torch.equal(together[:, rows], alone)


def test_batch_of_10_000() -> None:
    lengths = [i % 7 for i in range(10_000)]
    decode_and_check(make_inputs(lengths, device=CPU, heads=(2, 1), head_dim=8))


def test_workspace_is_checked() -> None:
    inputs = make_inputs((300, 65), device=CPU)
    out = torch.empty_like(inputs.q)

    def run(workspace: Tensor) -> None:
        ops._decode_debug(*inputs.tensors(), out, None, workspace, num_workers=3)

    with pytest.raises(ValueError, match="workspace: expected .* at least [0-9]+ elements, got 0") as error:
        run(torch.empty(0))
    elements = int(re.findall("at least ([0-9]+)", str(error.value))[0])
    for refused in (
        torch.empty(elements - 1),
        torch.empty(elements, dtype=torch.float64),
        torch.empty(elements, 2)[:, 0],
    ):
        with pytest.raises(ValueError, match="workspace: expected"):
            run(refused)
    guarded = torch.full((elements + 16,), torch.nan)
    run(guarded[:elements])
    assert torch.equal(out, ops.decode(*inputs.tensors(), num_workers=3))
    assert guarded[elements:].isnan().all(), "nothing beyond the workspace was written"
