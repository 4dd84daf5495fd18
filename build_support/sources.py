"""Which files are compiled, with which flags, into what."""

from __future__ import annotations

import json
import platform
from pathlib import Path

from .ninja_file import NinjaFile, shell
from .settings import Settings
from .toolchain import Cuda, Toolchain

BUILD_DIR = "build/native"
RESOURCES = f"{BUILD_DIR}/resources.txt"  # what ptxas says of every kernel

SCHEDULE = "csrc/bindings/schedule_py.cpp"
BUILD_INFO = "csrc/bindings/build_info.cpp"

# Chosen at run time by csrc/cpu/dispatch.cpp; every other file is compiled for the oldest x86-64.
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2_FLAGS]
# GCC's own AVX-512 header warns when it is inlined (GCC bug 105593).
X86_FLAGS = {
    "_avx2.cpp": AVX2_FLAGS,
    "_avx512.cpp": [*AVX512_FLAGS, "-Wno-uninitialized", "-Wno-maybe-uninitialized"],
}

# torch 2.10: nothing newer of the stable ABI is used, and the library loads into every later torch.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"

COMMON = ["-std=c++20", "-O3", "-DNDEBUG", "-Icsrc"]
CXX_FLAGS = [*COMMON, "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]
NVCC_FLAGS = [*COMMON, "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v"]


def ninja_text(settings: Settings, tools: Toolchain, root: Path, version: str) -> str:
    """The whole build. Paths are relative to `root`, where ninja runs."""
    ninja = NinjaFile([f"builddir = {BUILD_DIR}", ""])
    write_rules(ninja, tools)
    write_ops_library(ninja, settings, tools, root, version)
    write_schedule_module(ninja, tools)
    return ninja.text()


def write_rules(ninja: NinjaFile, tools: Toolchain) -> None:
    cxx = shell([tools.cxx])
    depfile = {"depfile": "$out.d", "deps": "gcc"}
    compile_cxx = f"{cxx} -MD -MF $out.d $flags -c $in -o $out"
    ninja.rule("cxx", command=compile_cxx, description="C++ $in", **depfile)
    ninja.rule("link", command=f"{cxx} -shared -o $out $in $flags", description="link $out")
    if tools.cuda is not None:
        # What ptxas reports goes into a file; warnings and errors are shown.
        nvcc = shell([tools.cuda.nvcc, "-ccbin", tools.cxx])
        command = (
            f"{nvcc} -MD -MF $out.d $flags -c $in -o $out >$out.ptxas 2>&1; code=$$?; "
            "grep -Ev '^ptxas info|bytes stack frame' $out.ptxas; exit $$code"
        )
        ninja.rule("nvcc", command=command, description="CUDA $in", **depfile)
        ninja.rule("concatenate", command="cat $in >$out", description="collect $out")


def write_ops_library(
    ninja: NinjaFile, settings: Settings, tools: Toolchain, root: Path, version: str
) -> None:
    """leanattn/_C.so: everything but the Python module of the schedule."""
    flags = ops_flags(tools)
    objects = []
    for source in cpp_sources(root, with_cuda=tools.cuda is not None):
        extra = build_info_flags(settings, tools, version) if source == BUILD_INFO else isa_flags(source)
        ninja.build(object_of(source), "cxx", [source], flags=[*flags, *extra])
        objects.append(object_of(source))
    if tools.cuda is not None:
        reports = []
        for source in cuda_sources(root):
            report = f"{object_of(source)}.ptxas"
            ninja.build(
                object_of(source), "nvcc", [source], also=report, flags=nvcc_flags(settings, tools.cuda)
            )
            objects.append(object_of(source))
            reports.append(report)
        ninja.build(RESOURCES, "concatenate", reports)
    ninja.build(f"{BUILD_DIR}/_C.so", "link", objects, flags=ops_link_flags(tools))


def write_schedule_module(ninja: NinjaFile, tools: Toolchain) -> None:
    """leanattn/_schedule: the schedule for Python; no torch in it."""
    includes = ["-isystem", str(tools.pybind11_include), "-isystem", str(tools.python_include)]
    ninja.build(object_of(SCHEDULE), "cxx", [SCHEDULE], flags=[*CXX_FLAGS, *includes])
    ninja.build(f"{BUILD_DIR}/_schedule.so", "link", [object_of(SCHEDULE)])


def cpp_sources(root: Path, with_cuda: bool) -> list[str]:
    names = found(root, "csrc/bindings/*.cpp") + found(root, "csrc/cpu/*.cpp")
    return [name for name in names if name != SCHEDULE and (with_cuda or "cuda" not in Path(name).name)]


def cuda_sources(root: Path) -> list[str]:
    return found(root, "csrc/kernels/*.cu") + found(root, "csrc/instantiations/*.cu")


def ops_flags(tools: Toolchain) -> list[str]:
    flags = [*CXX_FLAGS, TORCH_TARGET, "-isystem", str(tools.torch.include)]
    if tools.cuda is not None:
        flags.append("-DLEANATTN_WITH_CUDA")
        for directory in tools.cuda.include_dirs:
            flags += ["-isystem", directory]
    return flags


def ops_link_flags(tools: Toolchain) -> list[str]:
    flags = [f"-L{tools.torch.lib}", "-pthread", "-Wl,--no-undefined"]
    # No symbol comes from libtorch.so itself, but it is what pulls in the CUDA half of a torch that has one.
    flags += ["-Wl,--push-state,--no-as-needed,-ltorch,--pop-state", "-ltorch_cpu"]
    if tools.cuda is not None:
        # Static, and hidden, so that it goes with any runtime that torch brings.
        flags += [f"-L{directory}" for directory in tools.cuda.lib_dirs]
        flags += ["-lcudart_static", "-ldl", "-lrt", "-Wl,--exclude-libs,libcudart_static.a"]
    return flags


def found(root: Path, pattern: str) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.glob(pattern))


def object_of(source: str) -> str:
    return f"{BUILD_DIR}/{source}.o"


def isa_flags(source: str) -> list[str]:
    if platform.machine() != "x86_64":
        return []
    return next((flags for ending, flags in X86_FLAGS.items() if source.endswith(ending)), [])


def nvcc_flags(settings: Settings, cuda: Cuda) -> list[str]:
    archs = [arch.gencode for arch in settings.archs]
    lineinfo = ["-lineinfo"] if settings.lineinfo else []
    return [*NVCC_FLAGS, "-isystem", str(cuda.cutlass_include), *archs, *lineinfo]


def build_info_flags(settings: Settings, tools: Toolchain, version: str) -> list[str]:
    """What the compiler cannot know: C string literals that hold JSON values."""
    archs = [str(arch) for arch in settings.archs] if tools.cuda else []
    facts = {"VERSION": version, "CUDA_ARCHS": archs, "CUDA_REASON": tools.cuda_reason}
    return [f"-DLEANATTN_{name}={json.dumps(json.dumps(value))}" for name, value in facts.items()]
