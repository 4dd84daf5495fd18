"""Finds compiler, torch, pybind11, nvcc and CUTLASS, or says how to get what is missing.

torch is found, not imported: its headers and libraries are all that is needed, and CUDA is built if nvcc is
there, whether or not this torch, or this machine, can run it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .settings import BuildError, Settings

OLDEST_TORCH = (2, 10)  # the first whose stable ABI can do what the bindings need
OLDEST_NVCC = (12, 0)  # the first with C++20 and sm_90a

# The end of messages.
INSTALL = "Run 'pip install {}', or build without --no-build-isolation and pip fetches it for the build."
WITHOUT_CUDA = "LEANATTN_CUDA=0 builds the CPU backend alone."


@dataclass(frozen=True)
class Torch:
    version: str
    include: Path
    lib: Path


@dataclass(frozen=True)
class Cuda:
    nvcc: str
    version: str
    include_dirs: tuple[str, ...]  # for host compilers; nvcc knows them
    lib_dirs: tuple[str, ...]
    cutlass_include: Path
    cutlass_version: str


@dataclass(frozen=True)
class Toolchain:
    cxx: str
    cxx_version: str
    torch: Torch
    python_include: Path
    pybind11_include: Path
    cuda: Cuda | None
    cuda_reason: str  # why CUDA is built or is not


def find_toolchain(settings: Settings, root: Path, env: Mapping[str, str] = os.environ) -> Toolchain:
    cxx = find_compiler(env)
    cxx_version = output_of(cxx, "--version").splitlines()[0]
    cuda, reason = find_cuda(settings, root, env)
    return Toolchain(cxx, cxx_version, find_torch(), find_python(), find_pybind11(), cuda, reason)


def output_of(*command: str) -> str:
    """What a command prints, to standard output or error."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise BuildError(f"'{' '.join(command)}' failed. It printed: {done.stdout}")
    return done.stdout


def package_dir(name: str) -> Path | None:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def find_compiler(env: Mapping[str, str]) -> str:
    name = env.get("CXX") or "g++"
    found = shutil.which(name, path=env.get("PATH"))
    if found is None:
        raise BuildError(
            f"The C++ compiler {name!r} was not found. Install g++ 11 or newer (Debian: apt install g++), "
            "or name another compiler in CXX."
        )
    return found


def find_torch() -> Torch:
    where = package_dir("torch")
    if where is None:
        raise BuildError(
            "torch is not installed, and leanattn is compiled against its headers. " + INSTALL.format("torch")
        )
    version = importlib.metadata.version("torch")
    check_torch_version(version)
    return Torch(version, where / "include", where / "lib")


def check_torch_version(version: str) -> None:
    if version_tuple(version) < OLDEST_TORCH:
        raise BuildError(
            f"torch {version} is too old: leanattn uses the stable C++ ABI of torch 2.10 and newer. "
            "Run 'pip install --upgrade torch'."
        )


def find_python() -> Path:
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").exists():
        raise BuildError(
            f"Python.h is not in {include}. Install Python's headers (Debian: apt install python3-dev)."
        )
    return include


def find_pybind11() -> Path:
    where = package_dir("pybind11")
    if where is None:
        raise BuildError("pybind11 is not installed. " + INSTALL.format("pybind11"))
    return where / "include"


def find_cuda(settings: Settings, root: Path, env: Mapping[str, str]) -> tuple[Cuda | None, str]:
    if settings.cuda == "0":
        return None, "LEANATTN_CUDA=0"
    nvcc = find_nvcc(env)
    if nvcc is None:
        looked = "nvcc was found neither in CUDA_HOME/bin nor on PATH nor in /usr/local/cuda/bin"
        if settings.cuda == "1":
            raise BuildError(
                f"LEANATTN_CUDA=1 asks for the CUDA kernels, but {looked}. Install the CUDA toolkit or set "
                f"CUDA_HOME; {WITHOUT_CUDA}"
            )
        return None, looked
    version = nvcc_version(output_of(nvcc, "--version"))
    if version_tuple(version) < OLDEST_NVCC:
        raise BuildError(
            f"{nvcc} is CUDA {version}, and leanattn needs {OLDEST_NVCC[0]}.{OLDEST_NVCC[1]} or newer. "
            f"Set CUDA_HOME to a newer toolkit; {WITHOUT_CUDA}"
        )
    cutlass = find_cutlass(settings, root)
    plan = output_of(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull)
    return Cuda(
        nvcc=nvcc,
        version=version,
        include_dirs=nvcc_dirs(plan, "INCLUDES", "-I"),
        lib_dirs=nvcc_dirs(plan, "LIBRARIES", "-L"),
        cutlass_include=cutlass,
        cutlass_version=cutlass_version((cutlass / "cutlass" / "version.h").read_text()),
    ), f"{nvcc}, CUDA {version}"


def find_nvcc(env: Mapping[str, str]) -> str | None:
    home = env.get("CUDA_HOME")
    for path in (f"{home}/bin" if home else None, env.get("PATH"), "/usr/local/cuda/bin"):
        found = shutil.which("nvcc", path=path) if path else None
        if found is not None:
            return found
    return None


def nvcc_version(text: str) -> str:
    match = re.search(r"release (\d+\.\d+)", text)
    if match is None:
        raise BuildError(f"'nvcc --version' names no release. It printed: {text}")
    return match[1]


def nvcc_dirs(dryrun: str, variable: str, option: str) -> tuple[str, ...]:
    """Directories that nvcc itself uses. Its path does not tell: it may be a link or a script."""
    match = re.search(rf"^#\$ {variable}=(.*)$", dryrun, re.MULTILINE)
    return tuple(re.findall(rf'"{option}([^"]+)"', match[1])) if match else ()


def find_cutlass(settings: Settings, root: Path) -> Path:
    """Include directory of CUTLASS: in third_party, where the environment says, or in nvidia-cutlass."""
    package = package_dir("cutlass_library")
    places = [
        root / "third_party" / "cutlass" / "include",
        Path(settings.cutlass_dir) / "include" if settings.cutlass_dir else None,
        package / "source" / "include" if package else None,
    ]
    for place in places:
        if place is not None and (place / "cute" / "tensor.hpp").exists():
            return place
    raise BuildError(
        "The CUTLASS headers were not found in third_party/cutlass, LEANATTN_CUTLASS_DIR "
        f"({settings.cutlass_dir or 'not set'}) or the package nvidia-cutlass. Run "
        f"'pip install --no-deps nvidia-cutlass==4.2.0.0'; {WITHOUT_CUDA}"
    )


def cutlass_version(header: str) -> str:
    return ".".join(re.findall(r"^#define CUTLASS_(?:MAJOR|MINOR|PATCH) (\d+)", header, re.MULTILINE))


def version_tuple(version: str) -> tuple[int, int]:
    """Major and minor number: "2.13.0+cpu" -> (2, 13)."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)
