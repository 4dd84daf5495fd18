"""build_support.hazards, on made-up output of cuobjdump."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_support import hazards

# What ptxas 13.0 made of `p = null; if (fits) p = ...; if (p)` in a merge: cycles, and instruction.
READ_TOO_SOON = [
    (2, "CS2R R26, SRZ "),
    (3, "@!P3 IMAD.WIDE R26, R2, 0x4, R64 "),
    (4, "ISETP.NE.U32.AND P0, PT, R26, RZ, PT "),
    (1, "ISETP.NE.AND.EX P6, PT, R27, RZ, PT, P0 "),
]


def sass(*kernels: list[tuple[int, str]]) -> str:
    lines = []
    for number, instructions in enumerate(kernels):
        lines.append(f"\t\tFunction : kernel{number}")
        for place, (cycles, text) in enumerate(instructions):
            code = 0x000FC00000000000 & ~(15 << 41) | cycles << 41
            lines.append(f"        /*{16 * place:04x}*/                   {text};   /* 0x0000000000007802 */")
            lines.append(f"                                               /* {code:#018x} */")
    return "\n".join(lines)


def found(*kernels: list[tuple[int, str]]) -> list[tuple[str, str, int]]:
    instructions = list(hazards.parse(sass(*kernels).splitlines()))
    return [(h.writer.kernel, h.reader.opcode, h.cycles) for h in hazards.hazards(instructions)]


def test_the_one_that_was_found() -> None:
    assert found([(1, "NOP ")], READ_TOO_SOON) == [("kernel1", "ISETP.NE.U32.AND", 5)]


@pytest.mark.parametrize(("cycles", "hazard"), [(5, True), (6, False), (15, False)])
@pytest.mark.parametrize(
    "reader",
    [
        "FADD R1, R7, R2 ",
        "@P1 FADD R1, -R8, R2 ",
        "LDG.E.128 R16, desc[UR8][R8.64+0x10] ",
        "LDS.128 R16, [R7] ",
        "IMAD.WIDE R26, R2, 0x4, R6 ",  # a pair: R6, R7
        "HMMA.16816.F32 R20, R16, R30, R4 ",  # four: R4 to R7
        "HMMA.16816.F32 R20, R5, R30, R40 ",
    ],
)
def test_arithmetic_and_addresses(reader: str, cycles: int, hazard: bool) -> None:
    assert bool(found([(cycles, "CS2R R7, SRZ "), (1, reader)])) == hazard


@pytest.mark.parametrize(("cycles", "hazard"), [(4, True), (5, False)])
@pytest.mark.parametrize(
    "store",
    [
        "STG.E.64 desc[UR4][R2.64], R6 ",
        "STS.128 [R2+0x10], R4 ",
        "STG.E desc[UR4][R6.64], R2 ",
        "ST.E [R2.64], R7 ",
    ],
)
def test_stores_read_later(store: str, cycles: int, hazard: bool) -> None:
    assert bool(found([(cycles, "CS2R R6, SRZ "), (1, store)])) == hazard


@pytest.mark.parametrize(
    "between",
    [
        [(1, "MOV R6, R1 "), (1, "MOV R7, R1 ")],  # both written anew
        [(1, "BRA 0x50 ")],
        [(1, "EXIT ")],
        [(2, "MOV R1, R2 "), (3, "MOV R1, R2 ")],  # time goes by
    ],
)
def test_no_hazard(between: list[tuple[int, str]]) -> None:
    assert not found([(1, "CS2R R6, SRZ "), *between, (1, "FADD R1, R6, R7 ")])


@pytest.mark.parametrize("between", ["@P0 MOV R6, R1 ", "MOV R7, R1 ", "LDG.E.64 R8, desc[UR8][R10.64] "])
def test_still_a_hazard(between: str) -> None:
    assert found([(1, "CS2R R6, SRZ "), (1, between), (1, "FADD R1, R6, R2 ")])


def test_a_register_and_not_a_pair() -> None:
    assert found([(1, "CS2R.32 R6, SR_CLOCKLO "), (1, "FADD R1, R6, R2 ")])
    assert not found([(1, "CS2R.32 R6, SR_CLOCKLO "), (1, "FADD R1, R7, R2 ")])


def test_another_kernel_is_another_matter() -> None:
    assert not found([(1, "CS2R R6, SRZ ")], [(1, "FADD R1, R6, R7 ")])


@pytest.mark.parametrize(("kernels", "code"), [([READ_TOO_SOON], 1), ([[(1, "NOP ")]], 0), ([], 1)])
def test_exit_status(
    kernels: list[list[tuple[int, str]]],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def disassemble(library: Path) -> str:
        assert library == Path(hazards.LIBRARY)
        return sass(*kernels)

    monkeypatch.setattr(hazards, "disassemble", disassemble)
    assert hazards.main() == code
    assert f"{code if kernels else 0} read too soon" in capsys.readouterr().out
