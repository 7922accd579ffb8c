"""Gains and their intervals, against scipy's."""

from __future__ import annotations

import math
import statistics

import pytest
from bench_kit import imported

paired = imported("paired")


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 19])
def test_students_quantile_is_scipys(freedom: int) -> None:
    from scipy.stats import t

    assert paired.t_quantile(freedom, 0.95) == pytest.approx(t.ppf(0.975, freedom), rel=1e-6)


def test_a_gain_is_one_minus_the_geometric_mean_of_the_ratios() -> None:
    from scipy.stats import t

    ours, theirs = [1.0, 3.0, 2.0], [2.0, 3.0, 8.0]
    found = paired.gain(ours, theirs)
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    mean, width = statistics.fmean(logs), t.ppf(0.975, 2) * statistics.stdev(logs) / math.sqrt(3)
    ends = [100 * (1 - math.exp(log)) for log in (mean, mean + width, mean - width)]
    assert [found["mean"], found["low"], found["high"]] == pytest.approx(ends, rel=1e-5)
    assert (found["wins"], found["pairs"]) == (2, 3)


def test_a_ratio_is_the_gains_other_name() -> None:
    ours, theirs = [1.0, 3.0, 2.0], [2.0, 3.0, 8.0]
    found, gain = paired.ratio(ours, theirs), paired.gain(ours, theirs)
    assert found["mean"] == pytest.approx(0.5)
    ends = [1 - gain[end] / 100 for end in ("mean", "high", "low")]
    assert [found[end] for end in ("mean", "low", "high")] == pytest.approx(ends)
    assert found["pairs"] == 3
    assert paired.ratio([1.0], [2.0]) == {"mean": 0.5, "low": None, "high": None, "pairs": 1}


def test_a_single_pair_has_no_interval() -> None:
    assert paired.gain([1.0], [2.0]) == {"mean": 50.0, "low": None, "high": None, "wins": 1, "pairs": 1}
