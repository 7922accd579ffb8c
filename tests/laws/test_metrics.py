"""Laws of metrics: closed forms, an independent implementation, and what must happen as samples
grow.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from law_kit import SCHEDULES, normals, three_gaussians
from torch import Tensor, nn

from fewstep.data import InMemory
from fewstep.denoisers import StableTargetField
from fewstep.errors import UserError
from fewstep.metrics import (
    FeatureStatistics,
    MismatchDegree,
    assessed_mismatch,
    comparable_norms,
    frechet_distance,
    outside,
    spread,
    training_mismatch,
)
from fewstep.metrics.frechet import features_of
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule

# The Frechet distance


def _diagonal(mean: Tensor, variances: Tensor) -> FeatureStatistics:
    return FeatureStatistics(mean, torch.diag(variances), 100)


@pytest.mark.parametrize("dim", [1, 2, 16, 64])
def test_diagonal_gaussians_have_the_closed_form(dim: int) -> None:
    means, variances = normals(2, dim), normals(2, dim, seed=1).square()
    expected = (means[0] - means[1]).square().sum() + (variances[0].sqrt() - variances[1].sqrt()).square().sum()
    found = frechet_distance(_diagonal(means[0], variances[0]), _diagonal(means[1], variances[1]))
    assert found == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("dim", [2, 16])
def test_turning_both_changes_nothing_and_the_order_neither(dim: int) -> None:
    a, b = (FeatureStatistics.of(normals(300, dim, seed=seed) @ normals(dim, dim, seed=seed + 10)) for seed in (0, 1))
    turn = torch.linalg.qr(normals(dim, dim, seed=5))[0]
    turned = [FeatureStatistics(turn @ s.mean, turn @ s.covariance @ turn.T, s.count) for s in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@pytest.mark.parametrize("count", [5, 20, 500])
def test_it_is_zero_on_itself(count: int) -> None:
    """Also where the covariance is singular, as with fewer vectors than dimensions."""
    statistics = FeatureStatistics.of(normals(count, 12))
    assert abs(frechet_distance(statistics, statistics)) < 1e-6
    shifted = FeatureStatistics(statistics.mean + 0.5, statistics.covariance, count)
    assert frechet_distance(statistics, shifted) == pytest.approx(12 * 0.25, rel=1e-6)


def test_it_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(nn.Module):
        num_features = 12

        def forward(self, images: Tensor) -> Tensor:
            return torch.tanh(images.flatten(1)[:, :12].double() + 0.3 * images.flatten(1)[:, 12:24].double())

    features = Features()
    real, fake = normals(400, 1, 5, 5), 0.7 * normals(300, 1, 5, 5, seed=1) + 0.2
    theirs = FrechetInceptionDistance(feature=features)
    theirs.set_dtype(torch.float64)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = frechet_distance(*(FeatureStatistics.of(features_of(images, features, batch=64)) for images in (real, fake)))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-5)
    assert ours > 0.1


def test_statistics_are_the_unbiased_ones() -> None:
    features = normals(50, 3, dtype=torch.float32)
    statistics = FeatureStatistics.of(features)
    centred = features.double() - features.double().mean(0)
    torch.testing.assert_close(statistics.mean, features.double().mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(statistics.covariance, centred.T @ centred / 49, rtol=1e-12, atol=1e-14)
    assert statistics.count == 50
    single = FeatureStatistics.of(features[:, :1])
    assert single.covariance.shape == (1, 1)
    assert float(single.covariance) == pytest.approx(float(features[:, 0].double().var()), rel=1e-12)


@pytest.mark.parametrize("features", [torch.zeros(1, 3), torch.zeros(5), torch.zeros(2, 3, 4)])
def test_too_few_vectors_are_refused(features: Tensor) -> None:
    with pytest.raises(UserError, match="at least 2 vectors"):
        FeatureStatistics.of(features)


@pytest.mark.parametrize("batch", [1, 7, 40, 1000])
def test_features_do_not_depend_on_the_batches(batch: int) -> None:
    samples = normals(40, 2, 3)
    assert torch.equal(features_of(samples, lambda x: x.flatten(1).sin(), batch), samples.flatten(1).sin())


# The mismatch degree


def test_the_exact_teachers_own_mismatch_falls_with_the_batch() -> None:
    """At levels above the spacing of the data the field tends to the truth, so what is left falls
    as 1 / sqrt(n).
    """
    mixture, levels, sizes = three_gaussians(KarrasVE()), (0.8, 1.6, 3.2), (64, 512)
    degrees = []
    for size in sizes:
        found = [
            assessed_mismatch(mixture, mixture.sample(size, Key(seed, f"own-{size}"))[0], None, Key(seed), levels)
            for seed in range(16)
        ]
        assert all(all(mismatch.reliable) for mismatch in found)
        degrees.append(
            torch.tensor([mismatch.degrees for mismatch in found], dtype=torch.float64).square().mean(0).sqrt()
        )
    slopes = torch.log(degrees[1] / degrees[0]) / math.log(sizes[1] / sizes[0])
    torch.testing.assert_close(slopes, torch.full((3,), -0.5, dtype=torch.float64), rtol=0, atol=0.25)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "karras-ve"])
def test_the_mismatch_does_not_depend_on_the_schedule(name: str) -> None:
    degrees = []
    for schedule in (SCHEDULES["karras-ve"], SCHEDULES[name]):
        mixture = three_gaussians(schedule)
        degrees.append(assessed_mismatch(mixture, mixture.sample(100, Key(0, "own"))[0] + 0.3, None, Key(0)))
    assert degrees[1].degrees == pytest.approx(degrees[0].degrees, rel=1e-4)
    assert degrees[1].effective_sizes == pytest.approx(degrees[0].effective_sizes, rel=1e-4)


def test_a_student_elsewhere_is_seen_at_every_level_and_more_the_further_it_is() -> None:
    mixture = three_gaussians(KarrasVE())
    own = mixture.sample(800, Key(0, "own"))[0]
    levels = (0.8, 1.6, 3.2)
    degrees = [assessed_mismatch(mixture, own + shift, None, Key(0), levels) for shift in (0.0, 0.5, 1.5)]
    for less, more in itertools.pairwise(degrees):
        assert all(a < b for a, b in zip(less.degrees, more.degrees, strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_degrees_are_differences_of_scores_in_units_of_pure_noise(schedule: Schedule) -> None:
    """sigma (s_teacher - s_field), root mean square a dimension, from the definition of the
    score.
    """
    mixture, key, level = three_gaussians(schedule), Key(0), 0.8
    samples = mixture.sample(60, Key(0, "own"))[0] + 0.3
    found = assessed_mismatch(mixture, samples, None, key, (level,))
    t = schedule.time_at_sigma(level)
    x_t = schedule.add_noise(samples, t.expand(60), key.normal(f"mismatch-{level}", (60, 2)))
    field = StableTargetField(schedule, samples)
    scores = [
        (schedule.alpha(t) * denoiser(x_t, t).double() - x_t) / schedule.sigma(t) ** 2 for denoiser in (mixture, field)
    ]
    assert found.degrees[0] == pytest.approx(
        float((schedule.sigma(t) * (scores[0] - scores[1])).square().mean().sqrt()), rel=1e-5
    )
    assert found.effective_sizes[0] == pytest.approx(float(field.effective_size(x_t, t).mean()), rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_norms_are_equation_9_as_it_is_printed(schedule: Schedule) -> None:
    """The mean over samples of the norm of a difference of scores of x_t / alpha, and the deviation
    over the samples.
    """
    mixture, key, level = three_gaussians(schedule), Key(0), 0.8
    samples = mixture.sample(60, Key(0, "own"))[0] + 0.3
    found = assessed_mismatch(mixture, samples, None, key, (level,))
    t = schedule.time_at_sigma(level)
    x_t = schedule.add_noise(samples, t.expand(60), key.normal(f"mismatch-{level}", (60, 2)))
    y = x_t / float(schedule.alpha(t))
    scores = [
        (denoiser(x_t, t).double() - y) / level**2 for denoiser in (mixture, StableTargetField(schedule, samples))
    ]
    norms = (scores[0] - scores[1]).square().sum(1).sqrt()
    assert found.norms[0] == pytest.approx(float(norms.mean()), rel=1e-5)
    assert found.deviations[0] == pytest.approx(float(norms.std(correction=0)), rel=1e-5)
    # The other unit is the root mean square of the same a dimension, times sigma.
    assert found.degrees[0] == pytest.approx(level * float((norms.square().mean() / 2).sqrt()), rel=1e-5)


def test_norms_are_compared_over_levels_that_are_reliable_in_both() -> None:
    one = MismatchDegree((0.1, 1.0, 3.0), (5.0, 1.0, 2.0), (1.2, 2.0, 30.0), (9.0, 3.0, 1.0), (1.0, 0.3, 0.4))
    other = MismatchDegree((0.1, 1.0, 3.0), (5.0, 1.0, 2.0), (4.0, 2.0, 30.0), (8.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    first, second = comparable_norms(one, other)
    assert (first.mean, second.mean) == (2.0, 1.5)
    assert (first.deviation, second.deviation) == (pytest.approx(0.125**0.5), 0.0)


def test_two_isolated_samples_are_marked_unreliable() -> None:
    mixture = three_gaussians(KarrasVE())
    far = torch.tensor([[-50.0, 0.0], [50.0, 0.0]])
    found = assessed_mismatch(mixture, far, None, Key(0), (0.1, 1000.0))
    assert found.effective_sizes[0] == pytest.approx(1.0)
    assert found.effective_sizes[1] == pytest.approx(2.0, rel=0.02)
    assert not found.reliable[0]


def test_training_mismatch_is_the_assessed_one_of_the_data() -> None:
    mixture = three_gaussians(KarrasVE())
    samples, components = mixture.sample(200, Key(0, "own"))
    data = InMemory(samples, mixture.labels[components], 2)
    assert training_mismatch(mixture, data, Key(1)) == assessed_mismatch(mixture, samples, data.labels, Key(1))
    # With labels, each sample is asked against its class.
    assert training_mismatch(mixture, data, Key(1)) != assessed_mismatch(mixture, samples, None, Key(1))


def test_the_mean_is_over_reliable_levels_or_all() -> None:
    assert MismatchDegree((0.1, 1.0, 3.0), (5.0, 1.0, 2.0), (1.2, 2.0, 30.0)).mean == 1.5
    assert MismatchDegree((0.1, 1.0), (5.0, 1.0), (1.2, 1.9)).mean == 3.0


# Spread and saturation


def test_spread_of_two_points_is_half_their_distance_a_dimension() -> None:
    points = torch.tensor([[0.0, 0.0], [6.0, 8.0]])
    assert spread(points) == pytest.approx(5 / math.sqrt(2))
    assert spread(points[:1].expand(10, 2)) == 0.0


def test_spread_is_the_standard_deviation_within_classes() -> None:
    samples = 0.7 * normals(40_000, 1, 2, 2)
    assert spread(samples) == pytest.approx(0.7, rel=0.01)
    assert spread(samples) == pytest.approx(float((samples - samples.mean(0)).square().mean().sqrt()), rel=1e-12)
    labels = torch.arange(40_000) % 4
    moved = samples + 10.0 * labels[:, None, None, None]
    assert spread(moved, labels) == pytest.approx(spread(samples, labels), rel=1e-9)
    # Between four means 10 apart the variance is 125.
    assert spread(moved) == pytest.approx(math.sqrt(125 + 0.49), rel=0.01)


def test_spread_weighs_classes_by_their_size_and_skips_empty_ones() -> None:
    samples = torch.tensor([[0.0], [2.0], [10.0], [10.0], [10.0], [10.0]])
    assert spread(samples, torch.tensor([0, 0, 3, 3, 3, 3])) == pytest.approx(math.sqrt(2 / 6))


def test_outside_counts_what_lies_beyond_the_margin() -> None:
    samples = torch.tensor([[-1.3, -1.05, -1.0, 0.0], [1.0, 1.05, 1.2, 9.0]])
    assert outside(samples, -1.0, 1.0, 0.0) == 5 / 8
    assert outside(samples, -1.0, 1.0, 0.05) == 3 / 8
    assert outside(samples, -1.0, 1.0, 10.0) == 0.0
    assert outside(normals(200_000, 1), -1.0, 1.0, 0.0) == pytest.approx(0.3173, abs=0.004)
