"""Results of CS2R that a kernel's machine code reads too soon; fails if there is one.

CS2R zeroes a pair of registers, and takes longer than other arithmetic. Where nothing stands between it and
its use, ptxas leaves enough cycles; but ptxas 13.0 forgets it when an instruction under a predicate stands
there, which writes the same registers. A kernel then compares what was there before, once in a thousand calls
(docs/tuning.md). Run `make hazards` after a build with CUDA: it needs cuobjdump and nvdisasm, which the extra
`sass` brings.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LIBRARY = "leanattn/_C.so"

# From CS2R to its use by arithmetic, and by a store, as ptxas leaves them where nothing stands between.
ARITHMETIC_CYCLES = 6
STORE_CYCLES = 5

STORES = ("ST", "RED", "ATOM")  # all their operands are read, or seldom written
# Each takes as long as CS2R.
ENDS = ("BRA", "BRX", "EXIT", "RET", "CALL", "BSYNC", "WARPSYNC", "BREAK", "JMP")


@dataclass(frozen=True)
class Instruction:
    kernel: str  # mangled
    address: str
    text: str  # with its predicate
    cycles: int  # until the next instruction is issued

    @property
    def opcode(self) -> str:
        return self._parts[0]

    @property
    def operands(self) -> list[str]:
        return self._parts[1].split(",")

    @property
    def predicated(self) -> bool:
        return self.text.startswith("@")

    @property
    def _parts(self) -> tuple[str, str]:
        opcode, _, operands = re.sub(r"^@!?U?P\w+ ", "", self.text).partition(" ")
        return opcode, operands

    def writes(self) -> set[int]:
        """The register of its destination; the first one, of several."""
        return set() if self.opcode.startswith(STORES) else _registers(self.operands[0])

    def reads(self) -> set[int]:
        store = self.opcode.startswith(STORES)
        operands = self.operands if store else self.operands[1:]
        found = set().union(*map(_registers, operands))
        if store or self.opcode.startswith("IMAD.WIDE"):  # what is stored, or added, may be several
            width = 4 if ".128" in self.opcode else 2 if ".64" in self.opcode or not store else 1
            found |= {register + i for register in _registers(operands[-1]) for i in range(width)}
        elif self.opcode.startswith("HMMA"):
            for operand, width in zip(operands, (4, 2, 4), strict=False):
                found |= {register + i for register in _registers(operand) for i in range(width)}
        return found

    def __str__(self) -> str:
        return f"{self.address} {self.text}"


@dataclass(frozen=True)
class Hazard:
    writer: Instruction
    reader: Instruction
    cycles: int

    def __str__(self) -> str:
        return f"{self.writer.kernel}: {self.cycles} cycles from '{self.writer}' to '{self.reader}'"


def _registers(operand: str) -> set[int]:
    found = {int(number) for number in re.findall(r"\bR(\d+)\b", operand)}
    return found | {int(number) + 1 for number in re.findall(r"\bR(\d+)\.64\b", operand)}


def parse(sass: Iterable[str]) -> Iterator[Instruction]:
    """Instructions in the output of `cuobjdump -sass`: two lines each, with the two words of its code."""
    kernel, first = "", None
    for line in sass:
        if function := re.search(r"Function : (\S+)", line):
            kernel = function[1]
        elif begins := re.match(r"\s*/\*([0-9a-f]+)\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]+ \*/", line):
            first = begins
        elif first and (code := re.match(r"\s*/\* (0x[0-9a-f]+) \*/", line)):
            # Bits 105 to 108 of the code.
            yield Instruction(kernel, first[1], " ".join(first[2].split()), int(code[1], 16) >> 41 & 15)
            first = None


def hazards(instructions: list[Instruction]) -> list[Hazard]:
    return [
        hazard
        for place, instruction in enumerate(instructions)
        if instruction.opcode.startswith("CS2R")
        if (hazard := _hazard_of(instruction, instructions[place + 1 : place + 1 + ARITHMETIC_CYCLES]))
    ]


def _hazard_of(writer: Instruction, following: list[Instruction]) -> Hazard | None:
    first = min(writer.writes())
    pending = {first} if ".32" in writer.opcode else {first, first + 1}
    cycles = writer.cycles
    for instruction in following:
        if instruction.kernel != writer.kernel or instruction.opcode.startswith(ENDS) or not pending:
            return None
        least = STORE_CYCLES if instruction.opcode.startswith(STORES) else ARITHMETIC_CYCLES
        if cycles < least and instruction.reads() & pending:
            return Hazard(writer, instruction, cycles)
        if not instruction.predicated:
            pending -= instruction.writes()
        cycles += instruction.cycles
    return None


def disassemble(library: Path) -> str:
    """Raises FileNotFoundError without cuobjdump, CalledProcessError if it can't read the library."""
    tools = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = ["cuobjdump", "-sass", str(library)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def main() -> int:
    instructions = list(parse(disassemble(Path(LIBRARY)).splitlines()))
    found = hazards(instructions)
    for hazard in found:
        print(hazard)
    kernels = len({instruction.kernel for instruction in instructions})
    zeroing = sum(instruction.opcode.startswith("CS2R") for instruction in instructions)
    print(f"{kernels} kernels, {len(instructions)} instructions, {zeroing} CS2R, {len(found)} read too soon")
    return 1 if found or not instructions else 0


if __name__ == "__main__":
    sys.exit(main())
