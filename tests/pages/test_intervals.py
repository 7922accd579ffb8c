"""Intervals and agreement against closed forms, published values and scipy."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from fewstep.studies.preference.intervals import (
    agreeing_share,
    krippendorff_alpha,
    student_interval,
    student_quantile,
    wilson_interval,
)

Z = 1.959963984540054
WILSON = {
    (0, 10): (0.0, 0.277533),
    (1, 10): (0.017876, 0.404150),
    (5, 10): (0.236593, 0.763407),
    (8, 10): (0.490162, 0.943318),
    (10, 10): (0.722467, 1.0),
    (50, 100): (0.403832, 0.596168),
    (613, 1000): (0.582434, 0.642701),
}


@pytest.mark.parametrize(("found", "ends"), WILSON.items())
def test_wilsons_interval_is_the_table(found: tuple[int, int], ends: tuple[float, float]) -> None:
    assert wilson_interval(*found) == pytest.approx(ends, abs=1e-6)


@pytest.mark.parametrize("total", [1, 2, 7, 100, 12345])
def test_wilsons_interval_is_symmetric_and_its_ends_are_z_errors_away(total: int) -> None:
    for count in {0, 1, total // 3, total // 2, total - 1, total}:
        low, high = wilson_interval(count, total) or (2.0, 2.0)
        other = wilson_interval(total - count, total) or (2.0, 2.0)
        assert (low, high) == pytest.approx((1 - other[1], 1 - other[0]), abs=1e-12)
        assert 0 <= low <= count / total <= high <= 1
        # The end p is where the share found is z standard errors of p away.
        for end in (low, high):
            if 0 < end < 1:
                assert abs(count / total - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / total), rel=1e-9)
        known = stats.binomtest(count, total).proportion_ci(0.95, "wilson")
        assert (low, high) == pytest.approx((known.low, known.high), abs=1e-12)


def test_wilsons_interval_has_a_width_where_all_agree_and_shrinks() -> None:
    for total in (1, 10, 1000):
        low, high = wilson_interval(0, total) or (2.0, 2.0)
        assert (low, high) == (0.0, pytest.approx(Z**2 / (total + Z**2)))
        assert wilson_interval(total, total) == (pytest.approx(1 - high), 1.0)
    assert wilson_interval(0, 0) is None


def test_students_quantile_is_the_tables_and_scipys() -> None:
    table = {
        1: 12.706205,
        2: 4.302653,
        3: 3.182446,
        4: 2.776445,
        9: 2.262157,
        10: 2.228139,
        30: 2.042272,
        1000: 1.962339,
    }
    for freedom, value in table.items():
        assert student_quantile(0.975, freedom) == pytest.approx(value, abs=1e-6)
    for freedom in (*range(1, 12), 77, 200):
        for probability in (0.6, 0.9, 0.975, 0.999):
            assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-8)


def test_students_interval_of_raters_shares() -> None:
    assert student_interval([]) is None
    assert student_interval([0.6]) is None
    assert student_interval([0.6, 0.6, 0.6]) == (pytest.approx(0.6), pytest.approx(0.6))
    values = [0.5, 0.6, 0.75, 0.7]
    low, high = student_interval(values) or (2.0, 2.0)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 3, sum(values) / 4, stats.sem(values)))
    assert student_interval([0.0, 1.0]) == (0.0, 1.0)


CODERS = (
    "*****34121133*3",
    "1*213343*******",
    "**21344*21133*4",
)
"""Krippendorff's example of three coders, with gaps, whose nominal alpha is 0.691."""


def test_agreement_over_chance_is_krippendorffs_example() -> None:
    units = [[value for value in column if value != "*"] for column in zip(*CODERS, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.691, abs=5e-4)
    equal = sum(a == b for unit in units for i, a in enumerate(unit) for b in unit[i + 1 :])
    pairs = sum(len(unit) * (len(unit) - 1) // 2 for unit in units)
    assert agreeing_share(units) == pytest.approx(equal / pairs)


def test_agreement_at_its_ends() -> None:
    assert agreeing_share([["A"], ["B"]]) is None
    assert krippendorff_alpha([["A"], ["B"]]) is None
    assert krippendorff_alpha([["A", "A"], ["A", "A"]]) is None
    assert (agreeing_share([["A", "A"], ["B", "B"]]), krippendorff_alpha([["A", "A"], ["B", "B"]])) == (1.0, 1.0)
    assert agreeing_share([["A", "B"], ["B", "A"]]) == 0.0
    # n = 4, two of each: chance disagrees in 8 of 12, they in all, so that it is 1 - 3 (4 / 8).
    assert krippendorff_alpha([["A", "B"], ["B", "A"]]) == pytest.approx(-0.5)
