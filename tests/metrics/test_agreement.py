"""Moments that a few samples agree with: the bound is the sampling error's, from closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.errors import UserError
from fewstep.metrics import FeatureStatistics
from fewstep.metrics.stored.agreement import CHANCE, agreement
from fewstep.random import Key


def drawn(seed: int, rows: int, d: int) -> torch.Tensor:
    return Key(seed, "agreement").normal("features", (rows, d)).double()


@pytest.mark.parametrize("d", [1, 3, 8])
@pytest.mark.parametrize("s", [0.2, 1.0, 5.0])
def test_the_bounds_of_gaussian_features_are_those_of_the_closed_form(d, s):
    """For N(0, s^2 I): C has the eigenvalue s^2 d times; the covariance of its products has 2 s^4
    on the symmetric matrices, d (d + 1) / 2 times.
    """
    n, many, x = 900, 1000, -math.log(CHANCE)
    found = agreement(s * drawn(0, n, d), FeatureStatistics(torch.zeros(d), s**2 * torch.eye(d), many))
    shrinks, pairs = 1 / n + 1 / many, d * (d + 1) / 2
    assert found.mean.bound == pytest.approx(shrinks * s**2 * (d + 2 * math.sqrt(x * d) + 2 * x), rel=0.15)
    expected = shrinks * 2 * s**4 * (pairs + 2 * math.sqrt(x * pairs) + 2 * x)
    assert found.covariance.bound == pytest.approx(expected, rel=0.3)
    assert found.holds


@pytest.mark.parametrize("d", [2, 16])
def test_samples_of_one_distribution_agree_and_the_mean_gap_is_the_traces(d):
    n, many, trials = 60, 400, 150
    found = [
        agreement(drawn(2 * seed, n, d), FeatureStatistics.of(drawn(2 * seed + 1, many, d))) for seed in range(trials)
    ]
    assert all(each.holds for each in found)
    # E |m_n - m_N|^2 = f tr C, and E |C_n - C_N|^2 = f d (d + 1) to 1 / n.
    shrinks = 1 / n + 1 / many
    mean = sum(each.mean.squared for each in found) / trials
    assert mean == pytest.approx(shrinks * d, rel=5 * math.sqrt(2 / d / trials))
    covariance = sum(each.covariance.squared for each in found) / trials
    assert covariance == pytest.approx(shrinks * d * (d + 1), rel=0.25)
    # The bound is not out of reach: some gaps come to a good part of it.
    assert max(each.mean.squared / each.mean.bound for each in found) > 0.2


def test_skewed_features_that_are_no_gaussians_agree_as_well():
    """A reader's features are at least minus 0.28 and mostly near it: the theorem is of means."""
    found = [
        agreement(drawn(2 * seed, 300, 12).exp(), FeatureStatistics.of(drawn(2 * seed + 1, 3000, 12).exp()))
        for seed in range(60)
    ]
    assert all(each.mean.holds for each in found)
    assert all(each.covariance.holds for each in found)


def test_samples_of_another_mean_or_spread_do_not():
    reference = FeatureStatistics.of(drawn(1, 5000, 8))
    few = drawn(2, 500, 8)
    apart = torch.zeros(8)
    apart[3] = 2 * math.sqrt(agreement(few, reference).mean.bound)
    moved, wider = agreement(few + apart, reference), agreement(1.2 * few, reference)
    assert (moved.mean.holds, moved.covariance.holds) == (False, True)
    assert (wider.mean.holds, wider.covariance.holds) == (True, False)
    turned = few.clone()
    turned[:, 0] = turned[:, 1]
    assert not agreement(turned, reference).covariance.holds


def test_samples_that_are_among_the_reference_agree_and_gaps_vanish_for_all_of_them():
    whole = drawn(1, 800, 6)
    reference = FeatureStatistics.of(whole)
    assert agreement(whole[:100], reference).holds
    all_of_them = agreement(whole, reference)
    assert (all_of_them.mean.squared, all_of_them.covariance.squared) == (0.0, 0.0)


def test_what_cannot_be_checked_is_refused():
    few = drawn(0, 10, 3)
    with pytest.raises(UserError, match="4 features cannot be checked with samples of 3"):
        agreement(few, FeatureStatistics.of(drawn(1, 10, 4)))
    with pytest.raises(UserError, match="no known sampling error"):
        agreement(few, FeatureStatistics(torch.zeros(3), torch.eye(3), None))
    with pytest.raises(UserError, match="at least 2 vectors"):
        agreement(few[:1], FeatureStatistics.of(few))
