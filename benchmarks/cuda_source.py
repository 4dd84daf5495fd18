"""Compiles a CUDA file of this folder when it is needed, and loads it."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import torch

from benchmarks.packages import Missing


def find_nvcc() -> str:
    cuda_home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    nvcc = shutil.which("nvcc") or shutil.which(str(cuda_home / "bin" / "nvcc"))
    if nvcc is None:
        raise Missing("nvcc is neither on PATH nor in CUDA_HOME")
    return nvcc


def build(source: Path, folder: Path, arch: str) -> Path:
    """Compiles `source` for `arch` (such as "sm_90") into `folder`, unless it is there."""
    library = folder / f"{source.stem}_{arch}.so"
    if not library.exists():
        nvcc = [find_nvcc(), "-O3", "-std=c++17", f"-arch={arch}", "-shared", "-Xcompiler", "-fPIC"]
        command = [*nvcc, "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Missing(f"nvcc failed: {done.stderr.strip()}")
    return library


def load(source: Path, folder: Path) -> ctypes.CDLL:
    """`source` as a library for the current GPU."""
    major, minor = torch.cuda.get_device_capability()
    return ctypes.CDLL(str(build(source, folder, f"sm_{major}{minor}")))
