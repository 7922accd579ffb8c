"""Laws of precision, recall, density, coverage and diversity: hand-computed cases, an independent
implementation, and expectations that hold for every distribution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from law_kit import normals
from torch import Tensor

from fewstep.data import InMemory
from fewstep.errors import UserError
from fewstep.metrics import ManifoldScores, class_diversity, expected_coverage, manifold_scores, relative_diversity
from fewstep.metrics.diversity import diversities
from fewstep.metrics.manifold import coverage, density, precision, recall
from fewstep.metrics.quality import BREADTH_ROWS, Evaluator
from fewstep.random import Key

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda z: z,
    "heavy-tailed": lambda z: z**5,
    "clustered": lambda z: 0.1 * z + 5.0 * z.sign(),
}


def _line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


# Precision, recall, density, coverage


@pytest.mark.parametrize(
    ("neighbours", "expected"),
    [(1, ManifoldScores(2 / 3, 4 / 5, 4 / 3, 3 / 5)), (2, ManifoldScores(2 / 3, 1.0, 1.0, 4 / 5))],
)
def test_a_small_case_by_hand(neighbours: int, expected: ManifoldScores) -> None:
    """Real balls for k = 1: [-18, 0], [-1, 1], [0, 2], [1, 5], [3, 11]; generated ones [-1.5, 4.5],
    [1.5, 7.5], [4.5, 35.5].
    """
    real, generated = _line(-9, 0, 1, 3, 7), _line(1.5, 4.5, 20)
    found = manifold_scores(real, generated, neighbours)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12), name


@pytest.mark.parametrize(
    ("real_rows", "rows", "dim", "neighbours"), [(40, 30, 1, 3), (700, 1100, 4, 5), (1100, 513, 16, 3)]
)
def test_it_agrees_with_an_implementation_by_nearest_neighbours(
    real_rows: int, rows: int, dim: int, neighbours: int
) -> None:
    """Over one block and over several."""
    from sklearn.neighbors import NearestNeighbors

    real, generated = normals(real_rows, dim), 0.8 * normals(rows, dim, seed=1) + 0.3
    a, b = real.numpy(), generated.numpy()

    def radii(features: np.ndarray) -> np.ndarray:
        # Asked without points, it leaves each point itself out.
        return NearestNeighbors(n_neighbors=neighbours).fit(features).kneighbors()[0][:, -1]

    between = np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))
    near_real, near_generated = between <= radii(a)[:, None], between <= radii(b)[None, :]
    expected = ManifoldScores(
        near_real.any(0).mean(),
        near_generated.any(1).mean(),
        near_real.sum() / (neighbours * rows),
        near_real.any(1).mean(),
    )
    found = manifold_scores(real, generated, neighbours)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-9), name
        assert getattr(found, name) > 0
    assert min(found.precision, found.recall, found.coverage) < 1


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_single_scores_are_the_same(neighbours: int) -> None:
    real, generated = normals(60, 3), normals(40, 3, seed=1) + 0.5
    found = manifold_scores(real, generated, neighbours)
    single = [score(real, generated, neighbours) for score in (precision, recall, density, coverage)]
    assert single == [found.precision, found.recall, found.density, found.coverage]
    assert precision(real, generated) == precision(real, generated, 3)
    assert recall(real, generated) == recall(real, generated, 3) != recall(real, generated, 5)
    assert manifold_scores(real, generated) == manifold_scores(real, generated, 5)
    assert density(real, generated) == density(real, generated, 5)
    assert coverage(real, generated) == coverage(real, generated, 5) != coverage(real, generated, 3)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_set_covers_itself(neighbours: int, dtype: torch.dtype) -> None:
    """Also far from the origin, where |a|^2 + |b|^2 - 2 a b would say nothing."""
    features = (normals(600, 8) + 1000.0).to(dtype)
    found = manifold_scores(features, features.flip(0), neighbours)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
    assert found.density == pytest.approx((neighbours + 1) / neighbours, rel=1e-12)


def test_far_apart_sets_share_nothing() -> None:
    assert manifold_scores(normals(50, 3), normals(40, 3, seed=1) + 100.0) == ManifoldScores(0.0, 0.0, 0.0, 0.0)


def test_a_collapsed_generator_is_precise_and_covers_one_neighbourhood() -> None:
    real = normals(300, 3)
    found = manifold_scores(real, real[:1].expand(200, 3))
    near = ((real - real[0]).norm(dim=1) <= (real[:, None] - real[None]).norm(dim=2).sort(1).values[:, 5]).sum().item()
    assert found.precision == 1.0
    # Its balls have no extent: they hold the one point that it repeats.
    assert found.recall == 1 / 300
    assert found.coverage == near / 300 < 0.1
    assert found.density == pytest.approx(near / 5)


def test_a_missing_mode_costs_recall_and_an_invented_one_precision() -> None:
    one, other = normals(400, 2), normals(400, 2, seed=1) + 50.0
    both = torch.cat([one, other])
    fresh = normals(400, 2, seed=2)
    missing, invented = manifold_scores(both, fresh), manifold_scores(fresh, both)
    assert missing.precision > 0.95
    assert missing.recall == pytest.approx(0.5, abs=0.03)
    assert missing.coverage == pytest.approx(0.5, abs=0.03)
    assert invented.precision == pytest.approx(0.5, abs=0.03)
    assert invented.recall > 0.95
    assert invented.density == pytest.approx(0.5, abs=0.1)
    # Without a mode density stays: it is a share of what is generated.
    assert missing.density == pytest.approx(1.0, abs=0.1)


def test_swapping_the_sets_swaps_precision_and_recall() -> None:
    real, generated = normals(70, 3), 0.5 * normals(50, 3, seed=1)
    there, back = manifold_scores(real, generated), manifold_scores(generated, real)
    assert (there.precision, there.recall) == (back.recall, back.precision)
    assert there.precision != there.recall


def test_motions_scales_and_orders_change_nothing() -> None:
    real, generated = normals(70, 4), normals(50, 4, seed=1) + 0.4
    turn = torch.linalg.qr(normals(4, 4, seed=2))[0]
    moved = [3.0 * features @ turn + 7.0 for features in (real, generated)]
    assert manifold_scores(*moved) == manifold_scores(real, generated)
    assert manifold_scores(real.flip(0), generated.roll(7, 0)) == manifold_scores(real, generated)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
@pytest.mark.parametrize(("real", "generated", "neighbours", "dim"), [(40, 40, 5, 2), (60, 15, 3, 6), (20, 60, 1, 1)])
def test_what_equal_distributions_give_in_expectation(
    draw: Callable[[Tensor], Tensor], real: int, generated: int, neighbours: int, dim: int
) -> None:
    """Naeem et al.'s Eq. 9, and a density of 1, for every distribution."""
    repeats = 150
    rows = draw(normals(repeats * (real + generated), dim)).reshape(repeats, real + generated, dim)
    found = [manifold_scores(part[:real], part[real:], neighbours) for part in rows]
    for values, expected in (
        ([s.coverage for s in found], expected_coverage(real, generated, neighbours)),
        ([s.density for s in found], 1.0),
    ):
        error = np.std(values, ddof=1) / math.sqrt(repeats)
        assert abs(np.mean(values) - expected) < 4 * error
        assert error < 0.03


@pytest.mark.parametrize(("real", "generated", "neighbours"), [(4, 3, 1), (5, 2, 2), (5, 3, 4)])
def test_expected_coverage_counts_the_orders_of_distances(real: int, generated: int, neighbours: int) -> None:
    """All ways to place the generated ranks among those of the others, seen from one real point."""
    ranks = range(real + generated - 1)
    ways = list(itertools.combinations(ranks, generated))
    covered = 0
    for own in ways:
        others = [rank for rank in ranks if rank not in own]
        covered += min(own) < others[neighbours - 1]
    assert expected_coverage(real, generated, neighbours) == pytest.approx(covered / len(ways), rel=1e-12)


@pytest.mark.parametrize(
    ("real", "generated", "neighbours", "message"),
    [
        (torch.zeros(5, 2), torch.zeros(9, 2), 5, "more vectors than that, got 5"),
        (torch.zeros(9, 2), torch.zeros(5, 2), 5, "more vectors than that, got 5"),
        (torch.zeros(9, 2), torch.zeros(9, 2), 0, "at least 1 neighbour"),
        (torch.zeros(9, 2), torch.zeros(9, 3), 5, "of 2 and of 3 dimensions"),
        (torch.zeros(9, 1, 2), torch.zeros(9, 2), 5, "got a tensor of shape"),
        (torch.zeros(9, 2), torch.full((9, 2), torch.nan), 5, "not a number"),
        (torch.full((9, 2), torch.inf), torch.zeros(9, 2), 5, "infinite"),
    ],
)
def test_what_has_no_neighbourhoods_is_refused(real: Tensor, generated: Tensor, neighbours: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        manifold_scores(real, generated, neighbours)


# Diversity


@pytest.mark.parametrize("dim", [1, 2, 8])
@pytest.mark.parametrize("std", [0.3, 2.0])
def test_diversity_of_gaussians_has_the_closed_form(dim: int, std: float) -> None:
    """E|a - b| = 2 s Gamma((d + 1) / 2) / Gamma(d / 2), which is 2 s / sqrt(pi) in one
    dimension.
    """
    found = class_diversity(std * normals(3000, dim) + 5.0, torch.arange(3000) % 2)
    expected = 2 * std * math.gamma((dim + 1) / 2) / math.gamma(dim / 2)
    if dim == 1:
        assert expected == pytest.approx(2 * std / math.sqrt(math.pi))
    assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("rows", [2, 30, 1100])
def test_diversity_is_the_mean_of_all_pairs(rows: int) -> None:
    from scipy.spatial.distance import pdist

    features = normals(rows, 5, dtype=torch.float32)
    assert class_diversity(features, None) == pytest.approx(float(pdist(features.double().numpy()).mean()), rel=1e-10)


def test_classes_count_alike_and_single_samples_not() -> None:
    features = _line(0, 3, 10, 10, 10, 10, 100)
    labels = torch.tensor([4, 4, 1, 1, 1, 1, 2])
    assert diversities(features, labels) == {1: 0.0, 4: 3.0}
    assert class_diversity(features, labels) == 1.5
    # Between classes, distance is not diversity.
    assert class_diversity(features + 50.0 * labels[:, None], labels) == 1.5


def test_relative_diversity_is_the_ratio_of_scales() -> None:
    features, labels = normals(300, 3), torch.arange(300) % 3
    assert relative_diversity(features, labels, features, labels) == 1.0
    assert relative_diversity(0.25 * features - 4.0, labels, features, labels) == pytest.approx(0.25, rel=1e-12)
    assert relative_diversity(features[labels], labels, features, labels) == 0.0


def test_relative_diversity_is_over_common_classes() -> None:
    features, labels = _line(0, 1, 0, 100), torch.tensor([0, 0, 1, 1])
    assert relative_diversity(_line(0, 3), torch.tensor([0, 0]), features, labels) == 3.0
    assert relative_diversity(_line(0, 3, 8), torch.tensor([0, 0, 1]), features, labels) == 3.0
    assert relative_diversity(features, labels, _line(0, 3), torch.tensor([0, 0])) == pytest.approx(1 / 3)


def test_what_has_no_diversity_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2 samples"):
        class_diversity(normals(3, 2), torch.tensor([0, 1, 2]))
    with pytest.raises(UserError, match="at least 2 samples"):
        relative_diversity(normals(2, 2), torch.tensor([0, 0]), normals(2, 2), torch.tensor([1, 1]))
    with pytest.raises(UserError, match="all equal"):
        relative_diversity(normals(2, 2), None, torch.zeros(2, 2), None)
    for features, labels in ((torch.zeros(3), None), (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))):
        with pytest.raises(UserError, match="features"):
            class_diversity(features, labels)


# An evaluator's breadth


def _data(rows: int, classes: int = 3) -> InMemory:
    """Unequal classes in mixed order: sample i's first value is its class."""
    labels = (torch.arange(rows) * 7 % 10).div(4, rounding_mode="floor").clamp(max=classes - 1)
    samples = normals(rows, 3, dtype=torch.float32)
    samples[:, 0] = labels.float()
    return InMemory(samples, labels, classes)


def _sample(key: Key, rows: int, labels: Tensor | None) -> Tensor:
    samples = 0.9 * key.normal("fake", (rows, 3)) + 0.1
    if labels is not None:
        samples[:, 0] = labels.float()
    return samples


def test_describing_is_measuring_and_breadth_from_the_same_draws() -> None:
    calls: list[int] = []

    def counted(key: Key, rows: int, labels: Tensor | None) -> Tensor:
        calls.append(key.step)
        return _sample(key, rows, labels)

    evaluator = Evaluator(_data(300), lambda x: x, samples=250, seed=4)
    found = evaluator.describe(counted, draws=3)
    assert calls == [0, 1, 2]
    assert found.quality == evaluator.measure(_sample, draws=3)
    assert found.breadth == evaluator.breadth(_sample)


def test_breadth_is_of_the_first_draw_against_the_data() -> None:
    data = _data(300)
    evaluator = Evaluator(data, lambda x: 2.0 * x, samples=250, seed=4)
    labels = data.proportional_labels(250)
    generated = 2.0 * _sample(Key(4, "evaluation", 0), 250, labels)
    scores, found = manifold_scores(2.0 * data.samples, generated), evaluator.breadth(_sample)
    assert (found.precision, found.recall, found.density, found.coverage) == (
        scores.precision,
        scores.recall,
        scores.density,
        scores.coverage,
    )
    assert found.diversity == pytest.approx(
        relative_diversity(generated, labels, 2.0 * data.samples, data.labels), rel=1e-12
    )
    # Two of three values are 0.9 times as wide, and the first does not vary within a class.
    assert found.diversity == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize(("rows", "samples"), [(5000, 2700), (1000, 3000), (4000, 900)])
def test_at_most_so_many_are_taken_in_the_proportions_of_classes(rows: int, samples: int) -> None:
    seen: list[Tensor] = []

    def features(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    data = _data(rows)
    Evaluator(data, features, samples=samples).breadth(_sample)
    taken = torch.cat(seen)
    generated, real = taken[: min(samples, BREADTH_ROWS)], taken[min(samples, BREADTH_ROWS) :]
    assert len(real) == min(rows, BREADTH_ROWS)
    assert data.labels is not None
    shares = torch.bincount(data.labels).double() / rows
    for part in (generated, real):
        counts = torch.bincount(part[:, 0].long()).double()
        torch.testing.assert_close(counts, shares * len(part), rtol=0, atol=1.0)
        # None is taken twice.
        assert len(part.unique(dim=0)) == len(part)


def test_breadth_needs_no_classes() -> None:
    data = InMemory(normals(2500, 2, dtype=torch.float32), None, 0)
    found = Evaluator(data, lambda x: x, samples=2500).breadth(lambda key, rows, _labels: key.normal("own", (rows, 2)))
    assert found.coverage == pytest.approx(expected_coverage(BREADTH_ROWS, BREADTH_ROWS), abs=0.02)
    assert found.density == pytest.approx(1.0, abs=0.05)
    assert found.diversity == pytest.approx(1.0, abs=0.05)
