"""How a run says how far it is, and what it runs on."""

import io
import os

import pytest

from benchmarks import environment
from benchmarks.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock: its first element."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_on_a_terminal_one_line_is_written_over(seconds: list[float]) -> None:
    terminal = Terminal()
    progress = Progress(4, terminal)
    seconds[0] = 70.0
    progress.finish("llama8b B1 1k", "leanattn 7.4")
    seconds[0] = 140.0
    progress.finish("llama8b B1 4k", "leanattn 10.5")
    progress.close()
    lines = terminal.getvalue().split("\r")[1:]
    assert len(lines) == 2
    assert lines[0] == "[#######.......................] 1/4, 1:10, 3:30 left: llama8b B1 1k\033[K"
    assert lines[1] == "[###############...............] 2/4, 2:20, 2:20 left: llama8b B1 4k\033[K\n"


def test_elsewhere_every_shape_has_its_line(seconds: list[float]) -> None:
    log = io.StringIO()
    progress = Progress(2, log)
    seconds[0] = 9.0
    progress.note("worker ready")
    seconds[0] = 10.0
    progress.finish("llama8b B1 1k", "leanattn 7.4")
    progress.close()
    assert log.getvalue() == "[0:09] worker ready\n[1/2, 0:10, 0:10 left] llama8b B1 1k: leanattn 7.4\n"


def test_gpu_state_is_the_first_gpus_or_unknown() -> None:
    line = "580.159.04, 345, 1980, 2619, 3201, 700.00, Enabled"
    state = environment.gpu_state(f"{line}\n{line.replace('1980', '1')}\n")
    assert (state["driver"], state["max_sm_clock"], state["ecc"]) == ("580.159.04", "1980", "Enabled")
    assert set(environment.gpu_state("").values()) == {environment.UNKNOWN}


def test_nvcc_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"CUDA_HOME": "/nowhere", "PATH": ""})
    assert environment.nvcc_version() == environment.UNKNOWN
