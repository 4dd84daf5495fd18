"""Plots from the JSON of benchmarks.decode, as SVG files: `python -m benchmarks.plots PATH --out FOLDER`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, StrMethodFormatter

from benchmarks.peers import (
    COMPARED_NAMES,
    FA3,
    FIXED_SPLIT,
    LEANATTN,
    NO_SPLIT,
    OWN_NO_SPLIT,
    PROMISE,
    READ_LIMIT,
)
from benchmarks.plot_data import (
    BEST_PEER,
    CONTEXT_HEADS,
    best_peer_points,
    context_curve,
    goal_curve,
    share_points,
    speed_up_ranges,
)
from benchmarks.results import Document
from benchmarks.shapes import tokens_text

STYLE: Any = {  # newer stubs name every key
    "svg.hashsalt": "leanattn",  # else the ids differ from run to run
    "svg.fonttype": "none",  # text, not outlines: smaller
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
}
PANELS_A_ROW = 3
SPEED_UP_TICKS = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)
NO_SPLITS = (NO_SPLIT, OWN_NO_SPLIT)  # so much slower that they would squeeze the others
SPLITS = (BEST_PEER, *(name for name in COMPARED_NAMES if name not in NO_SPLITS))
OURS_COLOR, PROMISE_COLOR, PEER_COLOR = "tab:red", "tab:orange", "tab:blue"

# What is drawn against the context length, and how.
CONTEXT_LINES = (
    (LEANATTN, {"color": OURS_COLOR, "linewidth": 2.0}),
    (PROMISE, {"color": PROMISE_COLOR, "linewidth": 2.0}),
    (FIXED_SPLIT, {"color": "tab:purple", "linestyle": "--"}),
    (OWN_NO_SPLIT, {"color": "tab:brown", "linestyle": "--"}),
    (FA3, {"color": PEER_COLOR}),
    ("sdpa_cudnn", {"color": "tab:green"}),
    (READ_LIMIT, {"color": "0.3", "linestyle": ":"}),
)


def speed_up_figure(document: Document, names: Sequence[str]) -> Figure:
    """A panel a set: geometric mean, and the range over its shapes, for each of what is compared."""
    ranges = speed_up_ranges(document["shapes"], names)
    rows = -(-len(ranges) // PANELS_A_ROW)
    figure = Figure(figsize=(10.0, 0.5 + rows * (0.5 + 0.2 * len(names))), layout="constrained")
    panels = figure.subplots(rows, PANELS_A_ROW, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, (set_name, of_set) in zip(panels, ranges.items(), strict=False):
        places = [names.index(name) for name in of_set]
        least, mean, most = zip(*of_set.values(), strict=True)
        panel.hlines(places, least, most, color="0.6")
        panel.scatter(mean, places, color=OURS_COLOR, s=16.0)
        panel.axvline(1.0, color="0.3", linewidth=0.8)
        panel.set_title(set_name)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(FixedLocator(SPEED_UP_TICKS))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
    for unused in panels[len(ranges) :]:
        unused.set_axis_off()
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.supxlabel("time / time of leanattn, back to back: geometric mean and range over a set")
    return figure


def share_figure(document: Document) -> Figure:
    """Share of the read limit against the bytes that a call reads."""
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.subplots()
    shapes = document["shapes"]
    axes.plot(*goal_curve(shapes), color="0.3", linewidth=0.8, label="goal: 1.02 x read limit + 1.5 us")
    axes.plot(*best_peer_points(shapes), "x", color=PEER_COLOR, label="best peer")
    axes.plot(*share_points(shapes, PROMISE), "o", color=PROMISE_COLOR, label=PROMISE, markersize=4.0)
    axes.plot(*share_points(shapes, LEANATTN), "o", color=OURS_COLOR, label=LEANATTN, markersize=4.0)
    axes.set_xscale("log")
    axes.set_ylim(0.0, 1.05)
    axes.set_xlabel("K and V that a call reads, MB")
    axes.set_ylabel("read limit / time, back to back")
    axes.legend(loc="lower right")
    return figure


def context_figure(document: Document) -> Figure:
    """Time of a single sequence against its length, with eight KV heads and with one."""
    figure = Figure(figsize=(10.0, 4.5), layout="constrained")
    panels = figure.subplots(1, len(CONTEXT_HEADS), sharey=True)
    for panel, (title, heads) in zip(panels, CONTEXT_HEADS.items(), strict=True):
        for name, style in CONTEXT_LINES:
            tokens, us = context_curve(document["shapes"], heads, name)
            panel.plot(tokens, us, label=name, marker=".", **style)
        panel.set_title(f"{title}, one sequence")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: tokens_text(int(tokens))))
        panel.set_xlabel("tokens in the cache")
    panels[0].set_ylabel("us a call, back to back")
    panels[0].legend()
    return figure


FIGURES: dict[str, Callable[[Document], Figure]] = {
    "speed_up": partial(speed_up_figure, names=SPLITS),
    "no_split": partial(speed_up_figure, names=NO_SPLITS),
    "read_limit": share_figure,
    "context": context_figure,
}


def draw(document: Document, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, figure_of in FIGURES.items():
            figure_of(document).savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("path", type=Path, help="JSON written by benchmarks.decode")
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="for the SVG files")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    draw(json.loads(args.path.read_text()), args.out)


if __name__ == "__main__":
    main()
