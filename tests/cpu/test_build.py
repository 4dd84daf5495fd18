"""The logic of the build: what it decides, and how it fails. Nothing is compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_support import resources, toolchain
from build_support.ninja_file import NinjaFile
from build_support.settings import (
    DEFAULT_ARCHS,
    Arch,
    BuildError,
    Settings,
    choose_jobs,
    free_memory_gib,
    parse_archs,
)
from build_support.sources import ninja_text
from build_support.toolchain import Cuda, Toolchain, Torch

ROOT = Path(__file__).parents[2]


def test_default_archs_are_ampere_with_ptx_and_hopper() -> None:
    assert [arch.gencode for arch in parse_archs(DEFAULT_ARCHS)] == [
        "-gencode=arch=compute_80,code=[sm_80,compute_80]",
        "-gencode=arch=compute_90a,code=[sm_90a]",
    ]


@pytest.mark.parametrize("text", ["8.0;9.0a+PTX;10.0f", " 8.0, 9.0A+ptx , 10.0f ", "8.0 9.0a+PTX 10.0f"])
def test_archs_are_separated_by_semicolon_comma_or_space(text: str) -> None:
    assert parse_archs(text) == (Arch(8, 0), Arch(9, 0, "a", True), Arch(10, 0, "f"))


@pytest.mark.parametrize("text", ["90", "sm_90", "8.0;;x", "9.0b", "8.0+SASS"])
def test_an_arch_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BuildError, match="LEANATTN_CUDA_ARCHS=.* is not an architecture"):
        parse_archs(text)


def test_an_arch_before_ampere_is_refused() -> None:
    with pytest.raises(BuildError, match=r"needs 8.0 or newer, not 7.5"):
        parse_archs("7.5;8.0")


def test_settings_come_from_the_environment() -> None:
    assert Settings.from_environment({}) == Settings("auto", parse_archs(DEFAULT_ARCHS), None, False, None)
    env = {"LEANATTN_CUDA": "1", "LEANATTN_CUDA_ARCHS": "8.6", "LEANATTN_CUTLASS_DIR": "/c"}
    env |= {"LEANATTN_LINEINFO": "1", "MAX_JOBS": "3"}
    assert Settings.from_environment(env) == Settings("1", (Arch(8, 6),), "/c", True, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("LEANATTN_CUDA", "yes"), ("LEANATTN_LINEINFO", "on"), ("MAX_JOBS", "0"), ("MAX_JOBS", "many")],
)
def test_a_bad_setting_is_refused(name: str, value: str) -> None:
    with pytest.raises(BuildError, match=f"{name}='{value}'"):
        Settings.from_environment({name: value})


@pytest.mark.parametrize(
    ("max_jobs", "cores", "free_gib", "expected"),
    [(None, 16, 128.0, 16), (None, 16, 13.0, 4), (None, 2, 1.0, 1), (7, 2, 1.0, 7)],
)
def test_jobs_are_limited_by_cores_and_memory(
    max_jobs: int | None, cores: int, free_gib: float, expected: int
) -> None:
    assert choose_jobs(max_jobs, cores, free_gib, gib_per_job=3).count == expected


def test_memory_is_measured_in_gib() -> None:
    assert 0.01 < free_memory_gib() < 100_000


def no_tool(name: str, path: str | None = None) -> None:
    return None


def settings(cuda: str = "auto", cutlass_dir: str | None = None) -> Settings:
    return Settings(cuda, parse_archs(DEFAULT_ARCHS), cutlass_dir, False, None)


def make_nvcc(folder: Path, release: str) -> str:
    script = folder / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    script.chmod(0o755)
    return str(script)


def make_cutlass(folder: Path) -> Path:
    (folder / "include" / "cute").mkdir(parents=True)
    (folder / "include" / "cute" / "tensor.hpp").touch()
    (folder / "include" / "cutlass").mkdir()
    (folder / "include" / "cutlass" / "version.h").write_text(
        "#define CUTLASS_MAJOR 4\n#define CUTLASS_MINOR 2\n#define CUTLASS_PATCH 0\n"
    )
    return folder / "include"


def test_without_nvcc_the_cpu_backend_alone_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", no_tool)
    cuda, reason = toolchain.find_cuda(settings("auto"), ROOT, {})
    assert cuda is None
    assert "nvcc was found neither" in reason


def test_cuda_asked_for_without_nvcc_fails_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", no_tool)
    with pytest.raises(BuildError, match="Install the CUDA toolkit or set CUDA_HOME"):
        toolchain.find_cuda(settings("1"), ROOT, {})


def test_cuda_home_comes_before_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = make_nvcc(tmp_path / "a", "13.0"), make_nvcc(tmp_path / "b", "13.0")
    on_path = {"PATH": str(Path(second).parent)}
    assert toolchain.find_nvcc({"CUDA_HOME": str(tmp_path / "a"), **on_path}) == first
    assert toolchain.find_nvcc(on_path) == second


def test_an_old_nvcc_is_refused(tmp_path: Path) -> None:
    make_nvcc(tmp_path, "11.8")
    with pytest.raises(BuildError, match=r"CUDA 11\.8, and leanattn needs 12\.0 or newer"):
        toolchain.find_cuda(settings(), ROOT, {"CUDA_HOME": str(tmp_path)})


def test_cutlass_is_taken_from_the_first_place_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def package_dir(name: str) -> Path | None:
        return tmp_path / "package"

    monkeypatch.setattr(toolchain, "package_dir", package_dir)
    root, named = tmp_path / "root", tmp_path / "named"
    asked = settings(cutlass_dir=str(named))
    with pytest.raises(BuildError, match=r"not found in .*pip install --no-deps nvidia-cutlass"):
        toolchain.find_cutlass(asked, root)
    for place in (tmp_path / "package" / "source", named, root / "third_party" / "cutlass"):
        include = make_cutlass(place)
        assert toolchain.find_cutlass(asked, root) == include
    assert toolchain.cutlass_version((include / "cutlass" / "version.h").read_text()) == "4.2.0"


def test_nvcc_tells_its_directories() -> None:
    dryrun = '#$ TOP=/x\n#$ INCLUDES="-I/x/include"  \n#$ LIBRARIES=  "-L/x/lib/stubs" "-L/x/lib"\n'
    assert toolchain.nvcc_dirs(dryrun, "INCLUDES", "-I") == ("/x/include",)
    assert toolchain.nvcc_dirs(dryrun, "LIBRARIES", "-L") == ("/x/lib/stubs", "/x/lib")


@pytest.mark.parametrize("version", ["2.9.1", "2.9.1+cu128", "1.13.0a0"])
def test_an_old_torch_is_refused(version: str) -> None:
    with pytest.raises(BuildError, match="too old: .* torch 2.10 and newer"):
        toolchain.check_torch_version(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0.dev20270101"])
def test_a_newer_torch_is_taken(version: str) -> None:
    toolchain.check_torch_version(version)


def test_a_missing_package_fails_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def package_dir(name: str) -> None:
        return None

    monkeypatch.setattr(toolchain, "package_dir", package_dir)
    with pytest.raises(BuildError, match="torch is not installed.*'pip install torch'"):
        toolchain.find_torch()
    with pytest.raises(BuildError, match="pybind11 is not installed.*'pip install pybind11'"):
        toolchain.find_pybind11()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LEANATTN_CUDA", "maybe", "expected 0, 1 or auto"),
        ("CXX", "no-such-c++", "or name another compiler in CXX"),
    ],
)
def test_setup_fails_with_a_paragraph_and_no_stack_trace(variable: str, value: str, message: str) -> None:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {variable: value}, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert "leanattn cannot be built: " in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def tools(cuda: Cuda | None) -> Toolchain:
    torch = Torch("2.13.0", Path("/torch/include"), Path("/torch/lib"))
    return Toolchain("/bin/g++", "g++ 12", torch, Path("/py"), Path("/pybind11"), cuda, 'said "no"')


def make_sources(root: Path) -> None:
    bindings = [f"bindings/{name}.cpp" for name in ("ops", "cuda_backend", "build_info", "schedule_py")]
    cpu = [f"cpu/{name}.cpp" for name in ("tile", "tile_avx2", "tile_avx512")]
    for name in (*bindings, *cpu, "instantiations/f16.cu"):
        path = root / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def flags_of(ninja: str, source: str) -> str:
    """The line of flags that follows the step which compiles a source."""
    lines = ninja.splitlines()
    return next(lines[i + 1] for i, line in enumerate(lines) if line.endswith(f" csrc/{source}"))


def test_only_the_files_named_so_use_newer_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sources(tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    ninja = ninja_text(settings(), tools(None), tmp_path, "0.1.0")
    assert "-mavx" not in flags_of(ninja, "cpu/tile.cpp") + flags_of(ninja, "bindings/ops.cpp")
    assert "-mavx2" in flags_of(ninja, "cpu/tile_avx2.cpp")
    assert "-mavx512" not in flags_of(ninja, "cpu/tile_avx2.cpp")
    assert "-mavx512vl" in flags_of(ninja, "cpu/tile_avx512.cpp")
    assert "-march" not in ninja

    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "-mavx" not in ninja_text(settings(), tools(None), tmp_path, "0.1.0")


def test_cuda_files_are_built_with_cuda_only(tmp_path: Path) -> None:
    make_sources(tmp_path)
    without = ninja_text(settings(), tools(None), tmp_path, "0.1.0")
    assert "cuda_backend" not in without
    assert ".cu" not in without
    assert "LEANATTN_WITH_CUDA" not in without

    cuda = Cuda("/bin/nvcc", "13.0", ("/cuda/include",), ("/cuda/lib",), Path("/cutlass"), "4.2.0")
    with_cuda = ninja_text(settings(), tools(cuda), tmp_path, "0.1.0")
    assert "LEANATTN_WITH_CUDA" in flags_of(with_cuda, "bindings/cuda_backend.cpp")
    assert "arch=compute_90a,code=[sm_90a]" in flags_of(with_cuda, "instantiations/f16.cu")
    assert "-lcudart_static" in with_cuda
    assert "csrc/bindings/schedule_py.cpp.o" not in next(
        line for line in with_cuda.splitlines() if line.startswith("build build/native/_C.so")
    )


def test_ninja_does_again_what_changed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("text")

    def run(flag: str) -> str:
        ninja = NinjaFile()
        ninja.rule("copy", command="(cat $in; echo $flags) >$out")
        ninja.build("out dir/a b", "copy", ["a b.txt"], flags=[flag])
        (tmp_path / "build.ninja").write_text(ninja.text())
        command = [sys.executable, "-m", "ninja"]
        return subprocess.run(command, cwd=tmp_path, check=True, text=True, capture_output=True).stdout

    assert "1/1" in run("say \"$HOME\" 'so'")
    assert (tmp_path / "out dir" / "a b").read_text() == "textsay \"$HOME\" 'so'\n"
    assert "no work to do" in run("say \"$HOME\" 'so'")
    assert "1/1" in run("another flag")


PTXAS_OUTPUT = """\
ptxas info    : 11 bytes gmem, 88 bytes cmem[4]
ptxas info    : Compiling entry function '_Z4goodv' for 'sm_80'
ptxas info    : Function properties for _Z4goodv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 564 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3badv' for 'sm_90a'
ptxas info    : Function properties for _Z3badv
    24 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers
"""


@pytest.mark.parametrize(
    ("report", "code", "summary"),
    [
        (PTXAS_OUTPUT, 1, "2 kernels, 1 spill registers"),
        (
            PTXAS_OUTPUT.partition("ptxas info    : Compiling entry function '_Z3badv'")[0],
            0,
            "1 kernels, 0 spill",
        ),
        ("", 1, "0 kernels"),
    ],
)
def test_a_kernel_that_spills_is_found(
    report: str,
    code: int,
    summary: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "resources.txt").write_text(report)
    monkeypatch.setattr(resources, "RESOURCES", str(tmp_path / "resources.txt"))
    assert resources.main() == code
    assert summary in capsys.readouterr().out
