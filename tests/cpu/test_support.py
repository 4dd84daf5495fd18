"""leanattn.is_supported, and that the table behind it is what the ops do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decode_cases import make_inputs

import leanattn
from leanattn import support, support_table
from leanattn.__main__ import main
from leanattn._ops import build_info

CPU = torch.device("cpu")


@pytest.mark.parametrize("head_dim", [*range(4, 280, 4), 496, 508, 512, 516, 520, 640])
def test_cpu_head_dims_are_those_of_the_op(head_dim: int) -> None:
    inputs = make_inputs((5,), device=CPU, head_dim=head_dim)
    ok, _ = leanattn.is_supported("cpu", torch.bfloat16, head_dim)
    if ok:
        torch.ops.leanattn.decode(*inputs.tensors())
    else:
        with pytest.raises(ValueError, match="q: "):
            torch.ops.leanattn.decode(*inputs.tensors())


def test_reasons() -> None:
    assert leanattn.is_supported("cpu", torch.float32, 64, group=7) == (True, [])
    assert leanattn.is_supported("cpu", torch.float32, 64, q_len=16) == (True, [])
    ok, reasons = leanattn.is_supported("cpu", torch.float64, 60, group=0, q_len=17)
    assert not ok
    assert reasons == [
        "q: dtype torch.float64, expected one of float16, bfloat16, float32 on cpu",
        "q: head_dim 60, expected one of 8, 16, ..., 512 on cpu",
        "q: q_len 17, expected 1..16",
        "q: group 0, expected 1 or more query heads for a KV head",
    ]
    assert leanattn.is_supported("xpu", torch.float32, 64) == (
        False,
        ["q: device xpu, expected one of cpu, cuda"],
    )


def test_reasons_of_v() -> None:
    assert leanattn.is_supported("cpu", torch.float32, 192, v_head_dim=128) == (True, [])
    assert leanattn.is_supported("cpu", torch.float32, 192, v_head_dim=520) == (
        False,
        ["v_cache: head_dim 520, expected one of 8, 16, ..., 512 on cpu"],
    )
    ok, reasons = leanattn.is_supported(
        "cpu", torch.float32, 192, v_head_dim=40, cache_dtype=torch.float8_e4m3fn
    )
    assert not ok
    assert reasons == ["v_cache: head_dim 40, expected a multiple of 16 with a cache of torch.float8_e4m3fn"]


@pytest.mark.parametrize("cache_dtype", support.EIGHT_BITS)
def test_most_of_a_cache_of_8_bits(cache_dtype: torch.dtype) -> None:
    for device, most in (("cuda", 256), ("cpu", 512)):
        for dims in ((most, None), (64, most)):
            assert not support.backend_refusals(device, torch.bfloat16, dims[0], 1, (), cache_dtype, dims[1])
    expected = f"expected at most 256 with a cache of {cache_dtype} on cuda"
    found = support.backend_refusals("cuda", torch.bfloat16, 272, 1, (), cache_dtype, 512)
    messages = [f"q: head_dim 272, {expected}", f"v_cache: head_dim 512, {expected}"]
    assert [refusal.message for refusal in found] == messages


def test_the_table_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["support"]) == 0
    table = capsys.readouterr().out
    assert f"\n\n{table}\n" in (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("option", support.OPTIONS)
def test_the_table_says_what_is_supported(option: str) -> None:
    row = next(line for line in support_table.markdown().splitlines() if line.startswith(f"| `{option}` |"))
    _, _, of_cuda, of_cpu, _ = (cell.strip() for cell in row.split("|"))
    for said, device in ((of_cuda, "cuda"), (of_cpu, "cpu")):
        _, reasons = leanattn.is_supported(device, torch.bfloat16, 64, options=[option])
        assert said == ("no" if any(reason.startswith(f"{option}:") for reason in reasons) else "yes")


def test_an_option_must_be_known() -> None:
    with pytest.raises(ValueError, match="options: 'window', expected some of window_size, softcap"):
        leanattn.is_supported("cpu", torch.bfloat16, 64, options=["window"])


def test_cuda_is_refused_where_it_cannot_run() -> None:
    ok, reasons = leanattn.is_supported("cuda", torch.bfloat16, 128)
    assert ok == (torch.cuda.is_available() and build_info()["cuda_version"] is not None)
    assert ok or "cuda" in reasons[0].lower()


@pytest.mark.parametrize(
    ("arch", "runs_on", "not_on"),
    [
        ("8.0", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (12, 0)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("8.0+PTX", [(8, 0), (9, 0), (10, 0), (12, 0)], [(7, 5)]),
        ("9.0a", [(9, 0)], [(8, 0), (10, 0)]),
        ("9.0a+PTX", [(9, 0)], [(10, 0)]),
        ("10.0f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
    ],
)
def test_gpus_that_a_build_runs_on(
    arch: str, runs_on: list[tuple[int, int]], not_on: list[tuple[int, int]]
) -> None:
    assert all(support._runs_on(arch, capability) for capability in runs_on)
    assert not any(support._runs_on(arch, capability) for capability in not_on)


@pytest.mark.parametrize(
    ("cuda_version", "available", "capability", "archs", "reason"),
    [
        (None, True, (9, 0), [], "without CUDA: nvcc was not found"),
        ("13.0", False, (9, 0), ["8.0+PTX"], "torch.cuda.is_available() is False"),
        ("13.0", True, (7, 5), ["8.0+PTX"], "compute capability 7.5, expected 8.0 or newer"),
        ("13.0", True, (8, 0), ["9.0a"], "built for 9.0a; rebuild with LEANATTN_CUDA_ARCHS=8.0"),
        ("13.0", True, (12, 0), ["8.0+PTX", "9.0a"], None),
    ],
)
def test_problems_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    cuda_version: str | None,
    available: bool,
    capability: tuple[int, int],
    archs: list[str],
    reason: str | None,
) -> None:
    info = {"cuda_version": cuda_version, "cuda_archs": archs, "cuda_reason": "nvcc was not found"}
    monkeypatch.setattr(support, "build_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    problems = support._find_gpu_problems.__wrapped__(torch.device("cuda", 0))
    assert (reason is None) == (problems == ())
    assert reason is None or reason in problems[0]
    if reason is None:
        (problem,) = support._find_gpu_problems.__wrapped__(torch.device("cuda", 1))
        assert "cuda:1, but torch sees 1 GPUs" in problem
