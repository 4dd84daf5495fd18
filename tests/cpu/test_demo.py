"""The demo runs, says what it found, and fails when the result is wrong."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import leanattn
from leanattn import demo
from leanattn.lengths import decode_batch
from leanattn.reference import decode_reference

SMALL = ["--device", "cpu", "--batch", "3", "--steps", "2", "--heads", "4/2", "--head-dim", "64"]
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "2023-11-16 18:15:46.6805900,74,44\n2023-11-16 18:15:50.9951690,396,9\n")
    return path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_fitted_lengths(capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    assert demo.main([*SMALL, "--dtype", dtype]) == 0
    output = capsys.readouterr().out
    assert "fitted to real conversations" in output
    assert dtype in output
    assert "Schedule of step 1" in output
    assert "SDPA" in output
    assert output.splitlines()[-1].startswith("OK")
    assert max(map(len, output.splitlines())) <= 100


def test_trace(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    assert demo.main([*SMALL, "--trace", str(trace)]) == 0
    assert f"2 requests of {trace}" in capsys.readouterr().out


def test_same_seed_same_batch(trace: Path) -> None:
    first, again = (decode_batch(50, 7, str(trace))[0] for _ in range(2))
    assert first == again != decode_batch(50, 8, str(trace))[0]


@pytest.mark.parametrize("wrong", [lambda out: out + 1, lambda out: out * torch.nan], ids=["shifted", "nan"])
def test_wrong_result_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: Callable[[Tensor], Tensor]
) -> None:
    right = leanattn.decode
    monkeypatch.setattr(leanattn, "decode", lambda *arguments: wrong(right(*arguments)))
    assert demo.main(SMALL) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED: error at most 2 times")


def test_sdpa_out_of_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def too_large(batch: demo.RaggedBatch) -> Tensor:
        raise torch.OutOfMemoryError("no memory for the padded batch")

    monkeypatch.setattr(demo.RaggedBatch, "sdpa_padded", too_large)
    assert demo.main(SMALL) == 0
    assert re.search("SDPA, one padded batch.* out of memory", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trace", "no/such/file.csv"], "--trace: .*no/such/file.csv"),
        (["--heads", "6/4"], "multiple of the KV heads"),
        (["--heads", "6"], "1 or more"),
        (["--batch", "0"], "1 or more"),
        (["--head-dim", "100"], "head_dim 100"),
    ],
)
def test_bad_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo.main([*SMALL, *arguments])
    output = capsys.readouterr()
    assert output.out == ""
    assert re.search(message, output.err)


def test_batch_as_reported() -> None:
    """SDPA and leanattn.decode compute the same thing, and every step adds a token and its bytes."""
    batch = demo.RaggedBatch([65, 1, 130], steps=2, heads=(4, 2), head_dim=16, like=torch.empty(0))
    for tokens in ([65, 1, 130], [66, 2, 131]):
        assert batch.tokens == batch.seqlens.tolist() == tokens
        assert batch.kv_bytes() == sum(tokens) * 2 * 2 * 16 * 4
        expected, _ = decode_reference(batch.q, batch.k_cache, batch.v_cache, batch.seqlens)
        for out in (batch.decode(), batch.sdpa_padded(), batch.sdpa_by_sequence()):
            torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
        batch.append_token()
