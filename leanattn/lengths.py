"""Realistic KV lengths of a decode batch: from a trace of requests, or from a distribution fitted to one.

A trace is a CSV file with the columns TIMESTAMP,ContextTokens,GeneratedTokens, one request a row, as in the
public Azure LLM inference traces (https://github.com/Azure/AzurePublicDataset).
`python -m leanattn.lengths FILE` fits the distribution to such a file and prints it as it stands below.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Request(NamedTuple):
    """Tokens of a request's prompt, and tokens that it generates: one decode step each."""

    context: int
    generated: int


class Kind(NamedTuple):
    """A kind of request: log-normal prompts and answers (median in tokens, spread of the logarithm)."""

    weight: float
    context_median: float
    context_spread: float
    generated_median: float
    generated_spread: float


class Mixture(NamedTuple):
    """The kinds of requests, and the longest prompt and answer seen, where the tails are cut off."""

    kinds: tuple[Kind, ...]
    longest: Request


# Fitted to the 19,366 requests of AzureLLMInferenceTrace_conv.csv (2023, CC-BY 4.0; Patel et al.,
# "Splitwise", ISCA 2024). Requests come in kinds: a prompt of about 1,070 tokens goes with an answer of
# about 410. So one log-normal does not fit, and prompt and answer are fitted together. Four kinds are where
# more of them stop paying. The largest gap between the fitted and the real distribution of prompts, which
# the command `python -m leanattn.lengths FILE KINDS` prints: 0.16 with one kind, 0.12 with three, 0.04 with
# four or six.
CONVERSATIONS = Mixture(
    kinds=(
        Kind(0.3044, 1072.5, 0.0664, 410.3, 0.0667),
        Kind(0.2788, 392.4, 1.1878, 122.9, 0.8755),
        Kind(0.2291, 398.8, 0.0386, 93.9, 0.2320),
        Kind(0.1877, 2548.8, 0.5024, 73.0, 0.4837),
    ),
    longest=Request(14050, 1000),
)


def read_trace(path: str) -> list[Request]:
    """Requests of a trace file, in its order; those that generate nothing never decode and are left out.

    Raises ValueError, with the place in the file, if a column is missing, a value is not a count of tokens,
    or no request is left; OSError if the file can't be read.
    """
    requests = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for column in ("ContextTokens", "GeneratedTokens"):
            if column not in (rows.fieldnames or ()):
                expected = "TIMESTAMP,ContextTokens,GeneratedTokens"
                raise ValueError(f"{path}: no column {column} in its first line; expected {expected}")
        for row in rows:
            place = f"{path}, line {rows.line_num}"
            context = _tokens(row["ContextTokens"], 1, f"{place}: ContextTokens")
            generated = _tokens(row["GeneratedTokens"], 0, f"{place}: GeneratedTokens")
            if generated > 0:
                requests.append(Request(context, generated))
    if not requests:
        raise ValueError(f"{path}: no request that generates a token")
    return requests


def _tokens(text: str | None, least: int, what: str) -> int:
    if text is None or not text.strip().isdecimal() or int(text) < least:
        raise ValueError(f"{what}: expected a whole number >= {least}, got {text!r}")
    return int(text)


def sample_requests(mixture: Mixture, count: int, rng: random.Random) -> list[Request]:
    """`count` independent requests of a fitted distribution."""

    def tokens(median: float, spread: float, longest: int) -> int:
        return min(max(round(rng.lognormvariate(math.log(median), spread)), 1), longest)

    longest = mixture.longest
    return [
        Request(
            tokens(kind.context_median, kind.context_spread, longest.context),
            tokens(kind.generated_median, kind.generated_spread, longest.generated),
        )
        for kind in rng.choices(mixture.kinds, [kind.weight for kind in mixture.kinds], k=count)
    ]


def in_flight(requests: Sequence[Request], batch: int, rng: random.Random) -> list[int]:
    """KV lengths [batch] at a moment of a server that always decodes `batch` such requests.

    A request stays for as many steps as it generates tokens. So it is found in proportion to them, and at
    any of its steps alike: the stationary state of continuous batching whose places are filled
    independently.
    """
    found = rng.choices(requests, [request.generated for request in requests], k=batch)
    return [request.context + rng.randint(1, request.generated) for request in found]


def decode_batch(batch: int, seed: int, trace: str | None = None) -> tuple[list[int], str]:
    """KV lengths [batch] of a batch in flight, and words for their source: a trace file, or CONVERSATIONS.

    Raises what :func:`read_trace` raises.
    """
    rng = random.Random(seed)
    if trace is not None:
        requests = read_trace(trace)
        source = f"in flight among the {len(requests):,} requests of {trace}"
    else:
        requests = sample_requests(CONVERSATIONS, 10_000, rng)
        source = "in flight among requests of a distribution fitted to real conversations"
    return in_flight(requests, batch, rng), source


def fit(requests: Sequence[Request], num_kinds: int) -> Mixture:
    """Maximum-likelihood mixture of log-normal kinds, prompt and answer independent within a kind.

    Expectation maximisation (Dempster, Laird and Rubin, 1977) on the logarithms. Deterministic: it starts
    with `num_kinds` equal groups of the requests, in order of their total length, and takes 500 steps,
    after which the parameters above stand still in the digits printed. Raises ValueError for too few
    requests.
    """
    if num_kinds < 1 or len(requests) < 2 * num_kinds:
        raise ValueError(f"expected at least 2 requests a kind, got {len(requests)} for {num_kinds} kinds")
    tokens = torch.tensor(requests, dtype=torch.float64)  # [requests, 2]
    logs = tokens.log()
    share = torch.zeros(len(requests), num_kinds, dtype=torch.float64)  # of each kind in each request
    share[tokens.sum(1).argsort(stable=True), torch.arange(len(requests)) * num_kinds // len(requests)] = 1.0
    for _ in range(500):
        weight = share.mean(0)  # [kinds]
        mean = share.T @ logs / share.sum(0)[:, None]  # [kinds, 2]
        variance = share.T @ logs**2 / share.sum(0)[:, None] - mean**2
        # Not below 2%: on a length that many requests share exactly, the likelihood has no maximum.
        spread = variance.clamp_min(0.02**2).sqrt()
        density = -0.5 * ((logs[:, None] - mean) / spread) ** 2 - spread.log()  # [requests, kinds, 2]
        share = (weight.log() + density.sum(2)).softmax(1)
    median = mean.exp()
    columns = (weight, median[:, 0], spread[:, 0], median[:, 1], spread[:, 1])
    kinds = sorted((Kind(*row) for row in torch.stack(columns, 1).tolist()), reverse=True)
    return Mixture(tuple(kinds), Request(*tokens.long().amax(0).tolist()))


def largest_gap(lengths: Sequence[int], kinds: Sequence[tuple[float, float, float]]) -> float:
    """Largest distance between the distributions of `lengths` and of log-normals (weight, median, spread)."""
    values = torch.tensor(lengths, dtype=torch.float64).sort().values  # [lengths]
    weight, median, spread = torch.tensor(kinds, dtype=torch.float64).T
    fitted = torch.special.ndtr((values[:, None].log() - median.log()) / spread) @ weight
    real = torch.searchsorted(values, values, right=True) / len(values)
    return float((real - fitted).abs().max())


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the distribution of request lengths to a trace and print it."""
    parser = argparse.ArgumentParser(prog="python -m leanattn.lengths", description=main.__doc__)
    parser.add_argument("file", metavar="FILE", help="CSV: TIMESTAMP,ContextTokens,GeneratedTokens")
    parser.add_argument("kinds", metavar="KINDS", type=int, nargs="?", default=len(CONVERSATIONS.kinds))
    options = parser.parse_args(argv)
    try:
        requests = read_trace(options.file)
        mixture = fit(requests, options.kinds)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for kind in mixture.kinds:
        print("Kind({:.4f}, {:.1f}, {:.4f}, {:.1f}, {:.4f}),".format(*kind))
    print(f"longest={mixture.longest}")
    prompts = largest_gap([r.context for r in requests], [kind[:3] for kind in mixture.kinds])
    answers = largest_gap([r.generated for r in requests], [(k[0], k[3], k[4]) for k in mixture.kinds])
    print(f"largest gap to the trace: prompts {prompts:.3f}, answers {answers:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
