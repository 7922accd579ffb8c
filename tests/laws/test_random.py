"""Laws of draws: a function of place and index, and of nothing else; and of the right distribution."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.random import Key

# (place, rows, start) -> a draw of that many rows.
Draw = Callable[[Key, int, int], Tensor]
DRAWS: dict[str, Draw] = {
    "normal-1": lambda key, rows, start: key.normal("p", (rows,), start),
    "normal-3": lambda key, rows, start: key.normal("p", (rows, 3), start),
    "normal-image": lambda key, rows, start: key.normal("p", (rows, 2, 5, 5), start),
    "uniform": lambda key, rows, start: key.uniform("p", rows, start),
    "integers": lambda key, rows, start: key.integers("p", rows, 1000, start),
}
PINNED_UNIFORM = [0.9549824082498384, 0.7389890390840671]
PINNED_NORMAL = [
    1.4175409078598022,
    1.0694659948349,
    2.0474328994750977,
    1.6384543180465698,
    0.22029627859592438,
    -0.04305069521069527,
]
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())


@every_draw
@pytest.mark.parametrize("parts", [(32, 32), (1, 63), (16, 16, 16, 16), (5, 7, 52)])
def test_rows_are_functions_of_the_samples_index(draw: Draw, parts: tuple[int, ...]) -> None:
    key = Key(11, "stage", 4)
    starts = [sum(parts[:i]) for i in range(len(parts))]
    pieces = [draw(key, rows, start) for rows, start in zip(parts, starts, strict=True)]
    assert torch.equal(torch.cat(pieces), draw(key, 64, 0))
    assert torch.equal(draw(key, 64, 10**9)[10:20], draw(key, 10, 10**9 + 10))


@every_draw
def test_draws_do_not_depend_on_history_and_leave_no_trace(draw: Draw) -> None:
    key = Key(11, "stage", 4)
    first = draw(key, 8, 0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for other in DRAWS.values():
        other(key, 5, 3)
        other(Key(99, "x", 1), 5, 3)
    assert torch.equal(draw(Key(11, "stage", 0).at(4), 8, 0), first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


@pytest.mark.parametrize(
    "other",
    [Key(12, "stage", 4), Key(11, "stages", 4), Key(11, "stage", 5), Key(11, "", 4), Key(-11, "stage", 4)],
    ids=repr,
)
@every_draw
def test_seed_stage_and_step_all_matter(draw: Draw, other: Key) -> None:
    assert not bool((draw(Key(11, "stage", 4), 64, 0) == draw(other, 64, 0)).float().mean() > 0.1)


def test_purposes_matter_and_are_uncorrelated() -> None:
    key = Key(0)
    purposes = [key.normal(purpose, (20_000,)).double() for purpose in ("a", "b", "time", "noise", "")]
    correlations = torch.corrcoef(torch.stack(purposes)) - torch.eye(5, dtype=torch.float64)
    assert float(correlations.abs().max()) < 4 / 20_000**0.5


def test_neighbouring_steps_and_samples_are_uncorrelated() -> None:
    rows = torch.stack([Key(0, "s", step).normal("x", (20_000,)).double() for step in range(4)])
    correlations = torch.corrcoef(torch.cat([rows[:, :-1], rows[:, 1:]]))
    assert float((correlations - torch.eye(8, dtype=torch.float64)).abs().max()) < 4.5 / 20_000**0.5
    wide = Key(0, "wide").normal("x", (20_000, 8)).double()
    assert float((torch.corrcoef(wide.T) - torch.eye(8, dtype=torch.float64)).abs().max()) < 4.5 / 20_000**0.5


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_normals_are_normal(size: int) -> None:
    from scipy.stats import kstest

    values = Key(5, "normal").normal("x", (60_000 // size, size))
    assert values.dtype == torch.float32
    assert kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
    values = values.double()
    count = values.numel()
    assert float(values.mean()) == pytest.approx(0.0, abs=4 / count**0.5)
    assert float(values.square().mean()) == pytest.approx(1.0, abs=4 * (2 / count) ** 0.5)
    assert float((values**4).mean()) == pytest.approx(3.0, abs=4 * (96 / count) ** 0.5)
    for column in values.T:
        assert kstest(column.numpy(), "norm").pvalue > 1e-4


def test_uniforms_are_uniform() -> None:
    from scipy.stats import kstest

    u = Key(5).uniform("x", 60_000)
    assert u.dtype == torch.float64
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert float(u.min()) >= 0
    assert float(u.max()) < 1


@pytest.mark.parametrize("high", [1, 2, 10, 1797])
def test_integers_are_uniform_below_high(high: int) -> None:
    from scipy.stats import chisquare

    values = Key(5).integers("x", 60_000, high)
    assert values.dtype == torch.int64
    counts = torch.bincount(values, minlength=high)
    assert len(counts) == high
    if high > 1:
        assert chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 2, 100])
def test_permutations_are_permutations(size: int) -> None:
    permutations = [Key(0, "s", step).permutation("order", size) for step in range(3)]
    for permutation in permutations:
        assert sorted(permutation.tolist()) == list(range(size))
    assert torch.equal(permutations[0], Key(0, "s", 0).permutation("order", size))
    if size == 100:
        assert not torch.equal(permutations[0], permutations[1])


def test_permutations_of_three_are_equally_likely() -> None:
    from scipy.stats import chisquare

    seen = [tuple(Key(0, "s", step).permutation("order", 3).tolist()) for step in range(3000)]
    assert chisquare([seen.count(order) for order in sorted(set(seen))]).pvalue > 1e-3
    assert len(set(seen)) == 6


def test_draws_are_what_they_were() -> None:
    """A resumed run must draw what it drew before an upgrade of anything: these values are the definition."""
    key = Key(0, "stage", 1)
    assert key.uniform("x", 2).tolist() == pytest.approx(PINNED_UNIFORM, abs=0)
    assert key.normal("x", (2, 3)).flatten().tolist() == pytest.approx(PINNED_NORMAL, abs=1e-6)
