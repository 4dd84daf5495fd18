"""Which steps of a replay are measured, and what they tell of all: estimates with their standard errors."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Sample(NamedTuple):
    """A measured step, and the number of steps that it stands for."""

    step: int
    weight: int


class Estimate(NamedTuple):
    value: float
    standard_error: float  # of sampling: what other steps of the same replay might have given


# Fewer would lie on the line that `adjusted` puts through them, as if there were no scatter.
FEWEST_SAMPLES = 3


def midpoints(steps: int, count: int) -> list[Sample]:
    """The middle step of each of `count` equal parts of a replay (of every step if there are fewer).

    Raises ValueError if that is less than FEWEST_SAMPLES.
    """
    count = min(steps, count)
    if count < FEWEST_SAMPLES:
        raise ValueError(f"expected at least {FEWEST_SAMPLES} steps to measure, got {count} of {steps}")
    bounds = [part * steps // count for part in range(count + 1)]
    return [Sample((begin + end - 1) // 2, end - begin) for begin, end in pairwise(bounds)]


def adjusted(values: Sequence[float], known: Sequence[float], mean_known: float) -> list[float]:
    """`values` [samples] as if each sample had the mean of all steps in a quantity that is known of them all.

    Times follow the KV bytes of a step, whose mean over all steps is known exactly; the samples' mean is off
    by a percent or two. With that taken out along the line that fits the samples (the regression estimator,
    Cochran, "Sampling Techniques", chapter 7) a total is several times as precise.
    """
    if len(set(known)) == 1:
        return list(values)
    slope = statistics.linear_regression(known, values).slope
    return [value + slope * (mean_known - x) for value, x in zip(values, known, strict=True)]


def ratio(weights: Sequence[int], over: Sequence[float], under: Sequence[float]) -> Estimate:
    """Sum of `over` / sum of `under` over all steps of a replay, from their values [samples], in time order.

    The standard error is that of a ratio of totals, from the differences between one sample and the next
    (Wolter, "Introduction to Variance Estimation", chapter 8): slow changes along the trace, which evenly
    spaced steps follow, do not count as scatter.
    """
    steps, count = sum(weights), len(weights)
    total = math.fsum(w * value for w, value in zip(weights, under, strict=True))
    estimate = math.fsum(w * value for w, value in zip(weights, over, strict=True)) / total
    residuals = [a - estimate * b for a, b in zip(over, under, strict=True)]
    variance = math.fsum((b - a) ** 2 for a, b in pairwise(residuals)) / (2 * (count - 1))
    unmeasured = 1 - count / steps  # with every step measured there is no sampling error
    return Estimate(estimate, steps * math.sqrt(unmeasured * variance / count) / total)
