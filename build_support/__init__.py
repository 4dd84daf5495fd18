"""How setup.py builds: settings -> tools found -> what to compile -> ninja.

settings.py   what the environment asks for: CUDA or not, architectures, number of jobs
toolchain.py  what the machine has: compiler, torch, pybind11, nvcc, CUTLASS
sources.py    which files are compiled with which flags
ninja_file.py writes that down for ninja
command.py    the setuptools command that does the four in turn

Two small programs stand beside them:

resources.py    reads what ptxas said of each kernel, and fails if one spills registers
requirements.py reads the requirements of pyproject.toml for the Makefile
"""
