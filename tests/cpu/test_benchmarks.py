"""The GPU benchmark without a GPU: the command, its record, the tables and totals."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    append,
    cpu_decode,
    decode,
    features,
    head_dims,
    packed,
    paged,
    plots,
    query_tokens,
    report,
    sets,
    totals,
)
from benchmarks.method import IN_MODEL
from benchmarks.peers import (
    COMPARED_NAMES,
    FIXED_SPLIT,
    IMPLEMENTATIONS,
    LEANATTN,
    OWN_NO_SPLIT,
    PEER_NAMES,
    PLAN,
    PROMISE,
    READ_LIMIT,
    STEP,
)
from benchmarks.results import best_peer, twins
from benchmarks.supervisor import Step

ENVIRONMENT = {
    "gpu": "GPU",
    "sms": 4,
    "driver": "1",
    "torch": "2",
    "cuda": "13",
    "cudnn": 9,
    "max_sm_clock": "1980",
    "max_memory_clock": "3201",
    "ecc": "Enabled",
    "nvcc": "13.0",
    "cpu": "CPU",
    "packages": {"fa3-fwd": "0.0.3", "flashinfer-python": None},
}
# Back to back, and in a model.
MICROSECONDS = {
    READ_LIMIT: (60.0, None),
    STEP: (1.5, None),
    LEANATTN: (64.0, 65.0),
    PLAN: (63.0, 64.0),
    PROMISE: (62.0, 62.5),
    FIXED_SPLIT: (70.4, 71.5),
    OWN_NO_SPLIT: (576.0, 577.0),
    "sdpa_cudnn": (67.2, 78.0),
    "fa3": (76.8, 71.5),
    "fa3_no_split": (640.0, 641.0),
}


def measured(us: float) -> dict[str, float]:
    return {"median_us": us, "min_us": us - 1.0, "max_us": us + 2.0}


def fake_result(step: Step) -> dict[str, Any]:
    back_to_back, in_model = MICROSECONDS.get(step.implementation, (None, None))
    if back_to_back is None:
        return {"status": "missing", "detail": "not here"}
    result = {"status": "ok", "nan_reaches_output": step.implementation == "fa3", **measured(back_to_back)}
    if in_model is not None:
        result[IN_MODEL] = measured(in_model)
    return result | ({"splits": 16} if step.implementation == FIXED_SPLIT else {})


class FakeSupervisor:
    def __init__(self, worker: Any, on_result: Any, on_ready: Any) -> None:
        self.on_result, self.on_ready = on_result, on_ready

    def run(self, steps: Sequence[Step]) -> None:
        self.on_ready(ENVIRONMENT)
        for step in steps:
            self.on_result(step, fake_result(step))


def run_decode(monkeypatch: pytest.MonkeyPatch, path: Path, *arguments: str) -> tuple[int, Any]:
    monkeypatch.setattr("benchmarks.run.Supervisor", FakeSupervisor)
    code = decode.main([*arguments, "--json", str(path), "--commit", "abc"])
    return code, json.loads(path.read_text())


def test_the_record_holds_everything_the_table_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = run_decode(monkeypatch, tmp_path / "run.json", "--quick", "--set", "d64", "ragged")
    printed = capsys.readouterr().out
    assert code == 0
    assert document["command"] == "python -m benchmarks.decode --quick --set d64 ragged --dtype bf16"
    assert document["commit"] == "abc"
    assert document["environment"] == ENVIRONMENT
    assert [shape["name"] for shape in document["shapes"]] == [
        shape.name for shape in sets.select(["d64", "ragged"], quick=True)
    ]
    assert report.render(document) in printed
    assert list(tmp_path.iterdir()) == [tmp_path / "run.json"]


def test_the_tables_compare_with_limit_peers_and_decompositions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    _, document = run_decode(monkeypatch, path, "--quick", "--set", "d64")
    (shape,) = document["shapes"]
    assert report.back_to_back_row(shape)[2:] == (
        *("536.9", "60.0", "62.7", "64.0", "3.1", "1.3", "63.0", "62.0"),
        *("67.2", "sdpa_cudnn", "1.05", "1.07", "1.08", "1.20", "10.00"),
    )
    assert report.in_model_row(shape)[2:] == (
        *("1.50", "65.0", "64.0", "62.5", "71.5", "fa3"),
        *("1.10", "1.12", "1.14", "1.10"),
    )
    assert report.decomposition_row(shape)[2:] == ("63.0", "70.4", "16", "1.12", "576.0", "9.14")
    by_set = dict(zip(totals.SET_COLUMNS, totals.set_rows(document["shapes"])[-1], strict=True))
    assert (by_set["x best peer"], by_set["x fixed split"], by_set["shapes"]) == ("1.05", "1.12", "1")
    monkeypatch.setattr("sys.argv", ["report", str(path), "--markdown"])
    capsys.readouterr()
    report.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| d64 | mha32 d64 B1 64k |") for line in lines) == 3
    assert "### In a model" in lines
    assert "SM clock up to 1980 MHz" in lines[1]
    assert "fa3-fwd 0.0.3" in lines[1]
    for text in (
        "leanattn: 93.8% in geometric mean, at least 93.8% (mha32 d64 B1 64k)",
        "over fa3 without a split: 10.00 in geometric mean of 1 shapes, least 10.00; slower on none.",
        "- Goal, leanattn: reached on 0 of 1 shapes; furthest from it by 1.3 us (mha32 d64 B1 64k).",
        "- Goal, leanattn_promise: reached on 1 of 1 shapes",
        "sdpa_flash: missing on all: not here",
        "- fa3: note on all: measured with zeros",
    ):
        assert any(text in line for line in lines), text


def test_several_query_tokens_are_in_every_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, document = run_decode(monkeypatch, tmp_path / "run.json", "--quick", "--set", "uniform", "spec")
    shapes = document["shapes"]
    assert {(shape["set"], shape["q_len"]) for shape in shapes} == {("uniform", 1), ("spec", 4)}
    of_spec, of_all = totals.set_rows(shapes)[-2:]
    assert of_spec[:2] == ("spec", "1")
    assert of_all[1] == str(len(shapes))
    rows = [line.split()[:5] for line in report.render(document).splitlines() if line.startswith("spec  ")]
    name = ["spec", "llama8b", "B4", "16k", "q4"]
    assert rows == [["spec", "1", *of_spec[2:5]], name, name, name]
    plots.main([str(tmp_path / "run.json"), "--out", str(tmp_path)])
    assert ">spec<" in (tmp_path / "speed_up.svg").read_text()


def record(name: str, set_name: str = "s", **microseconds: float) -> dict[str, Any]:
    results = {key: {"status": "ok", **measured(us)} for key, us in microseconds.items()}
    return {"set": set_name, "name": name, "kv_bytes": 10**9, "results": results}


def test_slower_rows_and_unmeasured_rows_are_named() -> None:
    slow, alone = record("slow", leanattn=20.0, fa3_no_split=10.0), record("alone", leanattn=5.0)
    assert best_peer(alone) == (None, "-")
    assert report.back_to_back_row(alone)[-7:] == ("-",) * 7
    assert totals.share_totals([slow, alone]) == []
    lines = totals.speed_up_totals([slow, alone])
    assert any("without a split: 0.50" in line and "slower on slow (0.50)" in line for line in lines)


def test_the_best_peer_is_never_ours() -> None:
    shape = record("shape", fi_tc=8.0, xqa=10.0)
    assert best_peer(shape) == (8.0, "fi_tc")
    ours = {LEANATTN, PLAN, PROMISE, FIXED_SPLIT, OWN_NO_SPLIT}
    shape["results"] |= {name: {"status": "ok", **measured(1.0)} for name in ours}
    assert best_peer(shape) == (8.0, "fi_tc")
    assert set(PEER_NAMES) == set(COMPARED_NAMES) - ours


def test_averages_leave_out_what_is_measured_for_other_reasons() -> None:
    shapes = [
        record("a", leanattn=10.0, fa3=20.0),
        record("b", leanattn=10.0, fa3=5.0),
        record("c", set_name="context", leanattn=10.0, fa3=90.0),
    ]
    lines = totals.speed_up_totals(shapes)
    assert any("over fa3: 1.00 in geometric mean of 2 shapes, least 0.50" in line for line in lines)
    assert [row[:2] for row in totals.set_rows(shapes)] == [
        *(("s", "2"), ("context", "1")),
        ("all but context, twins", "2"),
    ]


def test_ragged_shapes_are_compared_with_their_twins() -> None:
    ragged, twin = record("ragged", leanattn=102.0, fa3=150.0), record("even", leanattn=100.0, fa3=100.0)
    twin |= {"twin_of": "ragged", "kv_bytes": 1_020_000_000}
    assert twins([twin]) == []
    assert twins([ragged, twin]) == [(ragged, twin)]
    assert report.twin_row(ragged, twin)[-4:] == ("102.0", "100.0", "1.040", "1.530")
    (line,) = totals.twin_totals([ragged, twin])
    assert "1.040 in geometric mean of 1 shapes, at most 1.040 (ragged); up to 1.03 on 0." in line


@pytest.mark.parametrize("name", [LEANATTN, PLAN, PROMISE])
def test_a_failure_of_ours_fails_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.delitem(MICROSECONDS, name)
    code, document = run_decode(monkeypatch, tmp_path / "run.json", "--quick", "--set", "d64", "--peers")
    assert code == 1
    assert set(document["shapes"][0]["results"]) == {READ_LIMIT, STEP, LEANATTN, PLAN, PROMISE}


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    args = decode.parser().parse_args(["--peers", "fa3", "sdpa_cudnn", "--dtype", "fp16"])
    assert (args.peers, args.dtype, args.set, args.quick) == (["fa3", "sdpa_cudnn"], "fp16", None, False)
    for wrong in (["--set", "nonsense"], ["--peers", LEANATTN], ["--dtype", "int8"]):
        with pytest.raises(SystemExit):
            decode.parser().parse_args(wrong)
    errors = capsys.readouterr().err
    assert all(name in errors for name in COMPARED_NAMES)


def test_a_trace_that_is_not_there_is_an_argument_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        decode.main(["--trace", "/nowhere/trace.csv"])
    assert "/nowhere/trace.csv" in capsys.readouterr().err


COMMANDS = {
    "benchmarks.decode": decode.parser,
    "benchmarks.report": report.parser,
    "benchmarks.plots": plots.parser,
    "benchmarks.cpu_decode": cpu_decode.parser,
    "benchmarks.paged": paged.command().parser,
    "benchmarks.packed": packed.command().parser,
    "benchmarks.features": features.command().parser,
    "benchmarks.head_dims": head_dims.command().parser,
    "benchmarks.query_tokens": query_tokens.command().parser,
    "benchmarks.append": append.command().parser,
    "benchmarks.host_overhead": argparse.ArgumentParser,  # takes no arguments
}
README = Path(decode.__file__).with_name("README.md").read_text()


def test_the_readme_names_every_set_and_implementation() -> None:
    for name in (*sets.SET_NAMES, *IMPLEMENTATIONS):
        assert f"`{name}`" in README


@pytest.mark.parametrize(
    "command", re.findall(r"python -m (benchmarks\.(?!replay).+?)(?:  +#.*|`.*)?\n", README)
)
def test_commands_of_the_readme_parse(command: str) -> None:
    module, *words = command.split()
    COMMANDS[module]().parse_args(words)
