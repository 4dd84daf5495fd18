"""The plots, from a small made-up record: what they show, and that they come out the same again."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plots
from benchmarks.peers import FA3, LEANATTN, NO_SPLIT, READ_LIMIT
from benchmarks.plot_data import (
    BEST_PEER,
    Range,
    best_peer_points,
    context_curve,
    goal_curve,
    share_points,
    speed_up_ranges,
)
from benchmarks.shapes import HEADS

LLAMA = HEADS["llama8b"]


def shape(set_name: str, batch: int, tokens: int, microseconds: dict[str, float]) -> dict[str, Any]:
    return {
        "set": set_name,
        "name": f"B{batch} {tokens}",
        "batch": batch,
        "query_heads": LLAMA.query,
        "kv_heads": LLAMA.kv,
        "head_dim": LLAMA.dim,
        "lengths": tokens,
        "kv_bytes": 4096 * batch * tokens,
        "results": {name: {"status": "ok", "median_us": us} for name, us in microseconds.items()},
    }


SHAPES = [
    shape("uniform", 1, 4096, {READ_LIMIT: 8.5, LEANATTN: 10.0, FA3: 20.0, NO_SPLIT: 90.0, "xqa": 16.0}),
    shape("context", 1, 1024, {READ_LIMIT: 2.5, LEANATTN: 5.0, FA3: 15.0}),
    shape("uniform", 8, 1024, {READ_LIMIT: 17.0, LEANATTN: 20.0, FA3: 10.0}),
    shape("uniform", 2, 512, {}),  # nothing measured
]


def test_speed_ups_have_mean_and_range_by_set() -> None:
    ranges = speed_up_ranges(SHAPES, [BEST_PEER, FA3, "xqa", "fi_tc"])
    assert ranges["context"] == {name: pytest.approx(Range(3.0, 3.0, 3.0)) for name in (BEST_PEER, FA3)}
    assert ranges["uniform"][FA3] == pytest.approx(Range(0.5, 1.0, 2.0))
    assert ranges["uniform"]["xqa"] == pytest.approx(Range(1.6, 1.6, 1.6))
    assert "fi_tc" not in ranges["uniform"]


def test_shares_are_in_the_order_of_the_bytes() -> None:
    megabytes, shares = share_points(SHAPES)
    assert megabytes == pytest.approx([4.194304, 16.777216, 33.554432])
    assert shares == pytest.approx([0.5, 0.85, 0.85])
    assert best_peer_points(SHAPES)[1] == pytest.approx([2.5 / 15, 8.5 / 16, 1.7])
    assert goal_curve(SHAPES)[1] == pytest.approx([2.5 / 4.05, 8.5 / 10.17, 17.0 / 18.84])


def test_context_curve_takes_single_sequences_of_any_set() -> None:
    assert context_curve(SHAPES, LLAMA, LEANATTN) == ([1024.0, 4096.0], [5.0, 10.0])
    assert context_curve(SHAPES, HEADS["70b/tp8"], LEANATTN) == ([], [])


def test_figures_are_the_same_when_made_again(tmp_path: Path) -> None:
    record = tmp_path / "run.json"
    record.write_text(json.dumps({"shapes": SHAPES}))
    drawn = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        plots.main([str(record), "--out", str(folder)])
        drawn.append({path.name: path.read_text() for path in sorted(folder.iterdir())})
    assert drawn[0] == drawn[1]
    assert list(drawn[0]) == sorted(f"{name}.svg" for name in plots.FIGURES)
    assert all(text in drawn[0]["speed_up.svg"] for text in ("uniform", "context", "xqa", "best peer"))
    assert "4k" in drawn[0]["context.svg"]
