"""The shapes of the GPU benchmark, the rotation over copies of the cache, and the choice of splits."""

import math
from pathlib import Path

import pytest

from benchmarks import method, results, sets, shapes
from benchmarks.plot_data import CONTEXT_HEADS
from benchmarks.splits import split_count, wave_efficiency


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [
        ("llama8b B1 1k", 4.2),
        ("llama8b B8 32k", 1073.7),
        ("70b/tp8 B1 64k", 33.6),
        ("mha32 B1 256k", 4295.0),
        ("mha56 d64 B1 6k", 88.1),
        ("llama8b 1x128k+15x2k", 662.7),
        ("llama8b lognormal B32", 799.1),
        ("llama8b zipf B64", 1277.8),
        ("70b/tp8 lognormal B32", 99.9),
        ("llama8b short B256", 260.0),
        ("llama8b B4 16k q2", 268.4),
        ("llama8b B4 16k q8", 268.4),
    ],
)
def test_shapes_hold_as_much_as_their_names_say(name: str, megabytes: float) -> None:
    (shape,) = [shape for shape in shapes.SHAPES if shape.name == name]
    assert shape.kv_bytes(element_bytes=2) / 1e6 == pytest.approx(megabytes, abs=0.051)


def test_names_are_unique_and_selection_keeps_the_order() -> None:
    every = sets.all_shapes()
    assert len({shape.name for shape in every}) == len(every)
    assert sets.select() == every
    assert {shape.set_name for shape in sets.select(["ragged", "d64"])} == {"ragged", "d64"}
    assert {shape.set_name for shape in sets.select(quick=True)} == set(sets.SET_NAMES)


def test_awkward_batches_come_with_eight_heads_and_with_one() -> None:
    awkward = sets.select(["awkward"])
    found = {(shape.batch, shape.heads.kv) for shape in awkward}
    assert found == {(batch, heads) for batch in (3, 17, 20, 34) for heads in (8, 1)}


def test_several_query_tokens_are_a_set_of_its_own() -> None:
    every = sets.all_shapes()
    found = {shape.name: (shape.q_len, shape.q_shape) for shape in sets.select(["spec"])}
    assert found == {
        "llama8b B4 16k q2": (2, (4, 2, 32, 128)),
        "llama8b B4 16k q4": (4, (4, 4, 32, 128)),
        "llama8b B4 16k q8": (8, (4, 8, 32, 128)),
        "70b/tp8 B3 8k q5": (5, (3, 5, 8, 128)),
        "llama8b lognormal B32 q4": (4, (32, 4, 32, 128)),
    }
    assert [shape.name for shape in sets.select(["spec"], quick=True)] == ["llama8b B4 16k q4"]
    assert {shape.set_name for shape in every if shape.q_len > 1} == {"spec", "twins"}
    assert all(shape.q_len <= min(shape.lengths) for shape in every)
    assert sets.select(["uniform"])[0].q_shape == (1, 32, 128)
    assert "spec" not in results.UNCOUNTED_SETS


@pytest.mark.parametrize("shape", sets.all_shapes(), ids=lambda shape: shape.name)
def test_rotation_leaves_the_cache_cold_and_goes_round_whole(shape: shapes.Shape) -> None:
    kv_bytes = shape.kv_bytes(element_bytes=2)
    copies, calls = method.copies_for(kv_bytes), method.calls_per_graph(kv_bytes)
    assert copies * kv_bytes >= method.COLD_BYTES
    assert calls % copies == 0
    assert method.MIN_CALLS <= calls <= method.MAX_CALLS + copies / 2


def test_timing_is_per_call() -> None:
    timing = method.Timing.of([300.0, 100.0, 200.0], calls=10)
    assert (timing.median_us, timing.min_us, timing.max_us, timing.replays) == (20.0, 10.0, 30.0, 3)


def test_both_heads_of_the_context_plot_are_measured_at_every_power_of_two() -> None:
    for heads in CONTEXT_HEADS.values():
        alone = [shape for shape in sets.all_shapes() if shape.heads == heads and shape.batch == 1]
        assert {shape.max_tokens for shape in alone} >= {2**exponent for exponent in range(10, 19)}


def test_twins_hold_the_bytes_of_a_ragged_shape_in_equal_lengths() -> None:
    every = {shape.name: shape for shape in sets.all_shapes()}
    of_ragged = {shape.twin_of: shape for shape in every.values() if shape.twin_of is not None}
    large = [name for name, shape in every.items() if shape.ragged and shape.kv_bytes(2) >= sets.TWIN_BYTES]
    assert list(of_ragged) == large
    assert len(large) >= 5
    for name, twin in of_ragged.items():
        shape = every[name]
        assert not twin.ragged
        assert (twin.batch, twin.heads, twin.q_len) == (shape.batch, shape.heads, shape.q_len)
        assert twin.kv_bytes(2) == pytest.approx(shape.kv_bytes(2), rel=0.01)


def test_sets_that_do_not_count_exist() -> None:
    assert set(results.UNCOUNTED_SETS) < set(sets.SET_NAMES)


def test_trace_has_the_lengths_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,700,1\n1,900,1\n")
    of_file = sets.select(["trace"], trace=str(path))
    assert [(shape.batch, shape.heads.kv) for shape in of_file] == [
        (batch, kv) for kv in (8, 1) for batch in (16, 64, 256)
    ]
    assert {tokens for shape in of_file for tokens in shape.lengths} == {701, 901}
    assert [shape.name for shape in of_file] == [shape.name for shape in sets.select(["trace"])]


# --- splits -----------------------------------------------------------------------------------------------

MOST_CTAS = 1024


@pytest.mark.parametrize(
    ("items", "tiles", "splits"),
    [
        (106, 10_000, 1),  # 80% of the SMs
        (105, 10_000, 5),  # 525 CTAs in 4 waves, 99%; with 1 to 4 it is 80%, 80%, 80%, 80%
        (8, 1024, 14),  # 84.8% of the SMs; the best is 49 splits, 99.0%
        (1, 1024, 114),  # 109 would do, 85% of what 128 do; but as few tiles a piece come from 114
        (8, 16, 16),
        (8, 1, 1),
    ],
)
def test_splits_fill_the_sms(items: int, tiles: int, splits: int) -> None:
    assert split_count(items, tiles, sms=132, most_ctas=MOST_CTAS) == splits


@pytest.mark.parametrize("items", [*range(1, 140, 7), 1000, 5000])
@pytest.mark.parametrize("tiles", [1, 3, 64, 100, 4096])
def test_splits_stay_in_their_bounds(items: int, tiles: int) -> None:
    splits = split_count(items, tiles, sms=132, most_ctas=MOST_CTAS)
    assert 1 <= splits <= min(128, tiles)
    assert splits == 1 or splits * items <= MOST_CTAS
    assert math.ceil(tiles / splits) * (splits - 1) < tiles  # the last piece is not empty
    if items < 100:
        assert wave_efficiency(splits * items, 132) >= 0.85 * wave_efficiency(items, 132)
