"""Laws of the kernel distance: the definition, its expectation in closed form, and an independent
implementation.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings

import pytest
import torch
from law_kit import normals
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.metrics import kernel_distance, squared_discrepancy
from fewstep.random import Key


def _by_definition(first: Tensor, second: Tensor) -> float:
    """Binkowski et al.'s Eq. 4, pair by pair."""

    def k(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    m, n = len(first), len(second)
    among = [
        sum(k(x, y) for x, y in itertools.permutations(list(part), 2)) / (len(part) * (len(part) - 1))
        for part in (first, second)
    ]
    return sum(among) - 2 / (m * n) * sum(k(x, y) for x, y in itertools.product(list(first), list(second)))


@pytest.mark.parametrize(("m", "n", "dim"), [(2, 2, 1), (5, 9, 3), (12, 4, 7)])
def test_it_is_the_definition(m: int, n: int, dim: int) -> None:
    first, second = normals(m, dim), normals(n, dim, seed=1) + 0.5
    assert squared_discrepancy(first, second) == pytest.approx(_by_definition(first, second), rel=1e-12)
    assert squared_discrepancy(second, first) == pytest.approx(squared_discrepancy(first, second), rel=1e-12)


def test_two_points_each_by_hand() -> None:
    """x = 1, -1 and y = 0, 0 in one dimension: k(1, -1) = 0, k(y, y) = 1, k(x, y) = 1."""
    assert squared_discrepancy(torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 1)) == 0 + 1 - 2


def _moments(mean: float, std: float) -> tuple[float, ...]:
    """The first, second, third, fourth and sixth of N(mean, std^2)."""
    a, v = mean, std**2
    return (
        a,
        a**2 + v,
        a**3 + 3 * a * v,
        a**4 + 6 * a**2 * v + 3 * v**2,
        a**6 + 15 * a**4 * v + 45 * a**2 * v**2 + 15 * v**3,
    )


def _expected(mean: float, std: float) -> float:
    """Of N(mean, std^2) from N(0, 1) in one dimension: 3 (M_1)^2 + 3 (M_2 - 1)^2 + (M_3)^2."""
    second, third = mean**2 + std**2, mean**3 + 3 * mean * std**2
    return 3 * mean**2 + 3 * (second - 1) ** 2 + third**2


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 1.0), (0.0, 1.5), (-0.4, 0.6)])
def test_gaussians_have_the_closed_form_in_expectation(mean: float, std: float) -> None:
    """Without bias, even from ten samples: the mean over 1,000 draws is within four standard
    errors, where the biased estimate is not.
    """
    values = [
        squared_discrepancy(normals(10, 1, seed=2 * draw), mean + std * normals(10, 1, seed=2 * draw + 1))
        for draw in range(1000)
    ]
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert statistics.fmean(values) == pytest.approx(_expected(mean, std), abs=4 * error)
    # What the diagonals add to a biased estimate: a tenth of E k(x, x) - E k(x, y) in each set.
    diagonal = [
        1 + 3 * m2 + 3 * m4 + m6 - (1 + 3 * m1**2 + 3 * m2**2 + m3**2)
        for m1, m2, m3, m4, m6 in (_moments(mean, std), _moments(0.0, 1.0))
    ]
    assert sum(diagonal) / 10 > 8 * error


def test_many_dimensions_have_the_closed_form() -> None:
    """The moments' tensors of large samples, from the module's docstring, on a biased estimate's
    feature map.
    """
    first, second = normals(400, 3), 0.8 * normals(300, 3, seed=1) + 0.3

    def moment(x: Tensor, order: int) -> Tensor:
        return torch.einsum({1: "na->a", 2: "na,nb->ab", 3: "na,nb,nc->abc"}[order], *[x] * order) / len(x)

    biased = sum(
        math.comb(3, p) / 3**p * float((moment(first, p) - moment(second, p)).square().sum()) for p in (1, 2, 3)
    )
    # The diagonal is what the biased estimate has besides.
    for part in (first, second):
        kernel = (part @ part.T / 3 + 1) ** 3
        biased += float((kernel.sum() - kernel.diagonal().sum()) / (len(part) * (len(part) - 1)) - kernel.mean())
    assert squared_discrepancy(first, second) == pytest.approx(biased, rel=1e-9)


class _Features(nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1)[:, :12].double() + 0.3 * images.flatten(1)[:, 12:24].double())


def test_it_agrees_with_torchmetrics() -> None:
    """One subset of all vectors is the whole, whose order does not matter; several are drawn by
    each at random.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    features = _Features()
    real, fake = normals(300, 1, 5, 5), 0.7 * normals(300, 1, 5, 5, seed=1) + 0.2
    with warnings.catch_warnings():
        # It says that it keeps all features.
        warnings.simplefilter("ignore")
        theirs = KernelInceptionDistance(feature=features, subsets=1, subset_size=300)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = kernel_distance(features(real), features(fake), subsets=1, size=300)
    assert ours.mean == pytest.approx(float(theirs.compute()[0]), rel=1e-5)
    assert ours.spread == 0
    assert ours.mean > 0.1


def test_subsets_are_functions_of_the_place_and_without_bias() -> None:
    real, fake = normals(60, 2), normals(80, 2, seed=1) + 0.5
    found = kernel_distance(real, fake, subsets=200, size=20)
    assert found == kernel_distance(real, fake, subsets=200, size=20)
    assert found != kernel_distance(real, fake, subsets=200, size=20, key=Key(1, "kernel-distance"))
    assert found.mean == pytest.approx(squared_discrepancy(real, fake), abs=4 * found.spread / math.sqrt(200))
    first = [
        squared_discrepancy(
            *(
                part[Key(0, "kernel-distance", step).permutation(name, len(part))[:20]]
                for part, name in ((real, "real"), (fake, "generated"))
            )
        )
        for step in (0, 1)
    ]
    assert kernel_distance(real, fake, subsets=2, size=20).mean == pytest.approx(statistics.fmean(first), rel=1e-12)
    assert kernel_distance(real, fake, subsets=2, size=20).spread == pytest.approx(
        abs(first[0] - first[1]) / 2, rel=1e-9
    )


@pytest.mark.parametrize(("subsets", "size"), [(0, 5), (3, 1), (3, 11)])
def test_impossible_subsets_are_refused(subsets: int, size: int) -> None:
    with pytest.raises(UserError, match=f"{subsets} subsets of {size}"):
        kernel_distance(normals(10, 2), normals(20, 2), subsets, size)


@pytest.mark.parametrize(("first", "second"), [((1, 2), (5, 2)), ((5, 2), (5, 3)), ((5,), (5,))])
def test_other_shapes_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="at least 2 vectors of the same dimension"):
        squared_discrepancy(torch.zeros(first), torch.zeros(second))
