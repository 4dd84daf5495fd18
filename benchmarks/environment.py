"""What a run depends on besides the code: GPU, host, versions."""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda_source import find_nvcc
from benchmarks.packages import Missing

PACKAGES = ("leanattn", "fa3-fwd", "flash-attn-3", "flashinfer-python", "flashinfer-jit-cache")

# Our names for what nvidia-smi is asked; clocks in MHz.
GPU_QUERIES = {
    "driver": "driver_version",
    "sm_clock": "clocks.sm",
    "max_sm_clock": "clocks.max.sm",
    "memory_clock": "clocks.mem",
    "max_memory_clock": "clocks.max.mem",
    "power_limit_watts": "power.limit",
    "ecc": "ecc.mode.current",
}
UNKNOWN = "unknown"


def output_of(command: list[str]) -> str:
    """What it prints; nothing if it can't run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def gpu_state(csv: str) -> dict[str, str]:
    """From what nvidia-smi prints, a line a GPU; torch's first GPU is its first."""
    values = csv.split("\n")[0].split(", ")
    if len(values) != len(GPU_QUERIES):
        values = [UNKNOWN] * len(GPU_QUERIES)
    return dict(zip(GPU_QUERIES, values, strict=True))


def nvcc_version() -> str:
    try:
        text = output_of([find_nvcc(), "--version"])
    except Missing:
        return UNKNOWN
    version = re.search(r"\bV(\d[\d.]*)", text)
    return version[1] if version else UNKNOWN


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """As the kernel calls it; platform.processor() is mostly empty on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def environment() -> dict[str, Any]:
    """Of a run on a GPU."""
    gpu = torch.cuda.get_device_properties()
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_QUERIES.values())}", "--format=csv,noheader,nounits"]
    return {
        "gpu": gpu.name,
        "sms": gpu.multi_processor_count,
        "memory_bytes": gpu.total_memory,
        "l2_bytes": gpu.L2_cache_size,
        **gpu_state(output_of(query)),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": nvcc_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
