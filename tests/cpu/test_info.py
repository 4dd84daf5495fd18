"""`python -m leanattn info`, and that it tells what the library itself says."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import leanattn
from leanattn import info
from leanattn.__main__ import main
from leanattn._ops import build_info


def test_json_agrees_with_the_library() -> None:
    command = [sys.executable, "-m", "leanattn", "info", "--json"]
    report = json.loads(subprocess.run(command, check=True, text=True, capture_output=True).stdout)

    library = ctypes.CDLL(str(Path(leanattn.__file__).with_name("_C.so")))
    library.leanattn_build_info.restype = ctypes.c_char_p
    build = json.loads(library.leanattn_build_info())
    assert report["build"] == build
    assert build["version"] == leanattn.__version__ == report["versions"]["leanattn"]
    assert f'version = "{build["version"]}"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert build["torch_target"] == "2.10"
    assert (build["cuda_version"] is None) == (build["cuda_archs"] == [])
    assert report["versions"]["torch"] == torch.__version__
    assert len(report["gpus"]) == torch.cuda.device_count()


def test_what_is_said_to_work_works() -> None:
    for name, backend in info.report()["backends"].items():
        for dtype in backend["dtypes"]:
            ok, reasons = leanattn.is_supported(
                name, getattr(torch, dtype), backend["head_dims"][0], q_len=backend["q_lens"][-1]
            )
            assert ok == backend["works"], reasons
        assert backend["works"] == (not backend["reasons"])


def test_text_says_what_works_and_why_the_rest_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"leanattn  {leanattn.__version__}" in text
    assert "  cpu     float16, bfloat16, float32; head_dim 8 to 512 in steps of 8; q_len 1 to 16\n" in text
    for reason in info.report()["backends"]["cuda"]["reasons"]:
        assert reason in text


OLD_GPU = info.Gpu(name="old", capability="7.5", sms=40, problems=["cuda:0 is too old"])
GOOD_GPU = info.Gpu(name="good", capability="9.0", sms=132, problems=[])


@pytest.mark.parametrize(
    ("cuda_of_build", "cuda_of_torch", "gpus", "expected"),
    [
        ("13.0", "13.0", [OLD_GPU, GOOD_GPU], []),
        ("13.0", "13.0", [OLD_GPU], ["cuda:0 is too old"]),
        ("13.0", "13.0", [], ["torch sees no GPU"]),
        ("13.0", None, [], [f"torch {torch.__version__} was built without CUDA"]),
        (None, "13.0", [OLD_GPU], ["leanattn was built without CUDA: no nvcc"]),
    ],
)
def test_why_cuda_does_not_work(
    cuda_of_build: str | None,
    cuda_of_torch: str | None,
    gpus: list[info.Gpu],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = build_info().copy()
    build["cuda_version"], build["cuda_reason"] = cuda_of_build, "no nvcc"
    monkeypatch.setattr(torch.version, "cuda", cuda_of_torch)
    assert info.cuda_reasons(build, gpus) == expected


@pytest.mark.parametrize("arguments", [["info", "--yaml"], ["inform"], []])
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: python -m leanattn" in capsys.readouterr().err
