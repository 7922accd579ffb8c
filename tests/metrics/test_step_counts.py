"""More steps that are worse are said, and noise is not."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.metrics.step_counts import worse_with_more


def test_a_rise_beyond_the_noise_is_told_beside_the_smaller_number_that_shows_it_best():
    found = worse_with_more({1: (5.0, 0.1), 2: (4.0, 0.1), 4: (4.1, 0.1), 8: (4.9, 0.3)}, 4)
    assert [(each.more, each.fewer) for each in found] == [(8, 2)]
    (worse,) = found
    assert worse.bound == pytest.approx(3 * (0.1**2 + 0.3**2) ** 0.5 / 2)
    assert (
        "8 steps have a Frechet distance of 4.90, and 2 steps have 4.00, though noise explains 0.47" in worse.sentence
    )
    (worse,) = worse_with_more({4: (3.0, 0.0), 1: (2.0, 0.0)}, 2)
    assert "4 steps have a Frechet distance of 3.00, and 1 step has 2.00" in worse.sentence


@pytest.mark.parametrize(
    "distances",
    [{}, {1: (5.0, 0.1)}, {1: (5.0, 0.0), 2: (5.0, 0.0)}, {1: (5.0, 0.1), 2: (4.0, 0.1), 4: (3.0, 0.1)}],
)
def test_what_falls_or_stays_is_not_told(distances):
    assert worse_with_more(distances, 3) == []


def test_one_draw_says_nothing_of_its_noise():
    assert worse_with_more({1: (1.0, 0.0), 2: (9.0, 0.0)}, 1) == []


def test_equal_students_are_seldom_called_worse_also_where_their_noise_is_their_own():
    """Of three independent draws of unit noise each; draws that share their noise are called so
    more seldom still.
    """
    noise = np.random.default_rng(0).standard_normal((4000, 2, 3))
    means, spreads = noise.mean(2), noise.std(2, ddof=1)
    called = sum(
        bool(worse_with_more({1: (a, s), 2: (b, t)}, 3)) for (a, b), (s, t) in zip(means, spreads, strict=True)
    )
    assert called / 4000 < 0.04
