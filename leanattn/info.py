"""What is installed, what it was built for, and what works on this machine: `python -m leanattn info`."""

from __future__ import annotations

import ctypes
import json
import platform
from collections.abc import Sequence
from typing import TypedDict

import torch

import leanattn
from leanattn._ops import BuildInfo, build_info
from leanattn.support import BACKENDS, gpu_problems


class Gpu(TypedDict):
    name: str
    capability: str
    sms: int
    problems: list[str]
    """Why leanattn does not run on it; empty if it does."""


class BackendReport(TypedDict):
    works: bool
    reasons: list[str]
    """Why it does not work; empty if it does."""
    dtypes: list[str]
    head_dims: list[int]
    q_lens: list[int]


class Report(TypedDict):
    versions: dict[str, str | None]
    build: BuildInfo
    cpu: dict[str, str | int]
    gpus: list[Gpu]
    backends: dict[str, BackendReport]


def report() -> Report:
    """All that the command prints, as JSON has it."""
    gpus = [_gpu(index) for index in range(torch.cuda.device_count())]
    build = build_info()
    reasons = {"cpu": [], "cuda": cuda_reasons(build, gpus)}
    return {
        "versions": {
            "leanattn": leanattn.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cuda_of_torch": torch.version.cuda,
            "cuda_of_build": build["cuda_version"],
            "cuda_of_driver": _driver_cuda(),
        },
        "build": build,
        "cpu": {
            "machine": platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "gpus": gpus,
        "backends": {
            name: {
                "works": not reasons[name],
                "reasons": reasons[name],
                "dtypes": [str(dtype).removeprefix("torch.") for dtype in backend.dtypes],
                "head_dims": list(backend.head_dims),
                "q_lens": list(backend.q_lens),
            }
            for name, backend in BACKENDS.items()
        },
    }


def _gpu(index: int) -> Gpu:
    device = torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "sms": properties.multi_processor_count,
        "problems": [problem.removeprefix("q: ") for problem in gpu_problems(device)],
    }


def cuda_reasons(build: BuildInfo, gpus: Sequence[Gpu]) -> list[str]:
    """Why no GPU can be used, or nothing if one can."""
    if any(not gpu["problems"] for gpu in gpus):
        return []
    reasons = []
    if build["cuda_version"] is None:
        reasons.append(f"leanattn was built without CUDA: {build['cuda_reason']}")
    if torch.version.cuda is None:
        reasons.append(f"torch {torch.__version__} was built without CUDA")
    elif not gpus:
        reasons.append("torch sees no GPU")
    elif build["cuda_version"] is not None:
        reasons += [problem for gpu in gpus for problem in gpu["problems"]]
    return reasons


def _driver_cuda() -> str | None:
    """The newest CUDA version that the driver runs; None if there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def as_json() -> str:
    return json.dumps(report(), indent=2)


def as_text() -> str:
    facts = report()
    versions, build, cpu = facts["versions"], facts["build"], facts["cpu"]
    archs = f" for {' '.join(build['cuda_archs'])}" if build["cuda_archs"] else ""
    lines = [
        f"leanattn  {versions['leanattn']} for torch {build['torch_target']} and newer, {build['compiler']}",
        f"torch     {versions['torch']}, Python {versions['python']}",
        f"CUDA      leanattn {versions['cuda_of_build'] or 'none'}{archs}, "
        f"torch {versions['cuda_of_torch'] or 'none'}, driver {versions['cuda_of_driver'] or 'none'}",
        f"CPU       {cpu['machine']}, {cpu['capability']}, {cpu['threads']} threads",
    ]
    for index, gpu in enumerate(facts["gpus"]):
        what = f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['sms']} SMs"
        lines.append(f"GPU {index:<6}{what}")
        lines += [f"          not used: {problem}" for problem in gpu["problems"]]
    lines += ["", "Works here:"]
    lines += [
        f"  {name:8}{', '.join(backend['dtypes'])}; head_dim {listed(BACKENDS[name].head_dims)}; "
        f"q_len {listed(BACKENDS[name].q_lens)}"
        for name, backend in facts["backends"].items()
        if backend["works"]
    ]
    for name, backend in facts["backends"].items():
        if not backend["works"]:
            lines += ["Does not work here:", *(f"  {name:8}{reason}" for reason in backend["reasons"])]
    return "\n".join(lines)


def listed(numbers: Sequence[int]) -> str:
    """``64 and 128``, or of a range ``8 to 256 in steps of 8``."""
    if isinstance(numbers, range):
        steps = f" in steps of {numbers.step}" if numbers.step > 1 else ""
        return f"{numbers[0]} to {numbers[-1]}{steps}"
    return " and ".join(map(str, numbers))
