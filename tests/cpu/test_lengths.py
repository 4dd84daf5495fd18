"""Request lengths: traces are read strictly, the fit finds what it was given."""

import random
from pathlib import Path

import pytest

from leanattn import lengths
from leanattn.lengths import CONVERSATIONS, Kind, Mixture, Request

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write(folder: Path, text: str) -> str:
    path = folder / "trace.csv"
    path.write_text(text)
    return str(path)


def test_trace_is_read_in_order(tmp_path: Path) -> None:
    trace = write(tmp_path, HEADER + "t0,374,44\nt1,5,0\nt2,396,109\n")  # the second never decodes
    assert lengths.read_trace(trace) == [Request(374, 44), Request(396, 109)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column ContextTokens"),
        ("TIMESTAMP,ContextTokens\nt0,374\n", "no column GeneratedTokens"),
        (HEADER + "t0,374,44\nt1,many,3\n", "line 3: ContextTokens: .* got 'many'"),
        (HEADER + "t0,374,-1\n", "line 2: GeneratedTokens: .* >= 0, got '-1'"),
        (HEADER + "t0,0,4\n", "line 2: ContextTokens: .* >= 1, got '0'"),
        (HEADER + "t0,374\n", "line 2: GeneratedTokens: .* got None"),
        (HEADER + "t0,374,0\n", "no request"),
        (HEADER, "no request"),
    ],
)
def test_bad_trace(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lengths.read_trace(write(tmp_path, text))


def test_in_flight_prefers_long_answers() -> None:
    requests = [Request(100, 1), Request(2000, 999)]
    found = lengths.in_flight(requests, 10_000, random.Random(0))
    long = [tokens for tokens in found if tokens != 101]
    assert 0.998 <= len(long) / len(found) < 1
    assert min(long) >= 2001
    assert max(long) <= 2999
    assert sum(long) / len(long) == pytest.approx(2500, rel=0.01)


def test_samples_stay_in_range() -> None:
    requests = lengths.sample_requests(CONVERSATIONS, 10_000, random.Random(0))
    for request in requests:
        assert 1 <= request.context <= CONVERSATIONS.longest.context
        assert 1 <= request.generated <= CONVERSATIONS.longest.generated


def test_fit_finds_the_kinds() -> None:
    kinds = (Kind(0.75, 1000.0, 0.1, 400.0, 0.1), Kind(0.25, 200.0, 0.3, 50.0, 0.5))
    requests = lengths.sample_requests(Mixture(kinds, Request(5000, 5000)), 4_000, random.Random(0))
    fitted = lengths.fit(requests, num_kinds=2)
    for expected, found in zip(kinds, fitted.kinds, strict=True):
        assert found == pytest.approx(expected, rel=0.1)
    assert fitted.longest == Request(*map(max, zip(*requests, strict=True)))
    gap = lengths.largest_gap([r.context for r in requests], [kind[:3] for kind in fitted.kinds])
    assert gap < 0.03


def test_fit_refuses_too_few_requests() -> None:
    with pytest.raises(ValueError, match="got 3 for 2 kinds"):
        lengths.fit([Request(1, 1)] * 3, num_kinds=2)


def test_command_prints_a_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = lengths.sample_requests(CONVERSATIONS, 100, random.Random(0))
    trace = write(tmp_path, HEADER + "".join(f"t,{r.context},{r.generated}\n" for r in requests))
    assert lengths.main([trace, "1"]) == 0
    first, longest, gap = capsys.readouterr().out.splitlines()
    assert first.startswith("Kind(1.0000, ")
    assert longest.startswith("longest=Request(")
    assert "prompts" in gap


def test_command_refuses_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        lengths.main([write(tmp_path, "a,b\n")])
    assert "no column ContextTokens" in capsys.readouterr().err
