"""Laws of statistics over more samples than fit in memory: merging is exact, whatever the split;
stored statistics are refused unless whole.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from law_kit import normals
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics import FeatureStatistics, Moments, Reference, frechet_distance, load_reference, save_reference
from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.gathered import Gathered, Gatherer, spaced
from fewstep.system.files import write_tensors

# Moments


def _off_centre(count: int, dim: int, seed: int = 0) -> Tensor:
    """Correlated vectors whose mean is a thousand times their spread."""
    return normals(count, dim, seed=seed) @ normals(dim, dim, seed=seed + 1) + 1000.0


@pytest.mark.parametrize("sizes", [[300], [1, 299], [299, 1], [150, 150], [7] * 42 + [6], [1] * 300])
def test_the_split_does_not_matter(sizes: list[int]) -> None:
    features = _off_centre(300, 9)
    whole, found = FeatureStatistics.of(features), Moments.of_batches(features.split(sizes)).statistics()
    scale = float(whole.covariance.abs().max())
    assert found.count == 300
    torch.testing.assert_close(found.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.covariance, whole.covariance, rtol=0, atol=1e-12 * scale)


def test_merging_is_as_good_as_it_gets_where_raw_sums_fail() -> None:
    """In float64 a mean of 1e8 leaves nothing of a spread of 1 in sums of squares."""
    features = normals(1000, 3)
    moved = features + 1e8
    found = Moments.of_batches(moved.split(10)).statistics()
    torch.testing.assert_close(found.covariance, torch.cov(features.T), rtol=0, atol=1e-7)
    raw = (moved.T @ moved - 1000 * torch.outer(moved.mean(0), moved.mean(0))) / 999
    assert float((raw - torch.cov(features.T)).abs().max()) > 0.1


def test_merging_is_symmetric_and_associative_to_rounding() -> None:
    a, b, c = (Moments.of(_off_centre(count, 5, seed)) for count, seed in ((40, 0), (3, 7), (500, 11)))
    for one, other in ((a.merged(b), b.merged(a)), (a.merged(b).merged(c), a.merged(b.merged(c)))):
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(one.scatter, other.scatter, rtol=1e-11, atol=0)


def test_two_points_by_hand() -> None:
    statistics = Moments.of(torch.tensor([[0.0, 0.0]])).merged(Moments.of(torch.tensor([[2.0, 4.0]]))).statistics()
    assert statistics.mean.tolist() == [1.0, 2.0]
    assert statistics.covariance.tolist() == [[2.0, 4.0], [4.0, 8.0]]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Moments.of(torch.zeros(0, 3)), "vectors"),
        (lambda: Moments.of(torch.zeros(3)), "vectors"),
        (lambda: Moments.of(torch.tensor([[1.0, float("nan")]])), "diverged"),
        (lambda: Moments.of_batches([]), "at least one batch"),
        (lambda: Moments.of(torch.zeros(2, 3)).merged(Moments.of(torch.zeros(2, 4))), "3 and of 4 dimensions"),
        (lambda: Moments.of(torch.zeros(1, 3)).statistics(), "at least 2 vectors"),
        (
            lambda: frechet_distance(FeatureStatistics.of(normals(5, 2)), FeatureStatistics.of(normals(5, 3))),
            "2 and of 3 features",
        ),
    ],
)
def test_what_has_no_moments_is_refused(make, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


# What is gathered


def _space() -> FeatureSpace:
    turn = normals(4, 3, dtype=torch.float32)
    return FeatureSpace("test", lambda x: x.flatten(1), lambda f: f @ turn, labelled=True)


def _merged(parts: list[Gathered]) -> Gathered:
    total = parts[0]
    for part in parts[1:]:
        total = total.merged(part)
    return total


@pytest.mark.parametrize("size", [1, 7, 50, 120])
def test_gathered_blocks_are_the_whole(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.metrics.gathered.KEPT", 31)
    samples, labels = normals(120, 1, 2, 2, dtype=torch.float32), torch.arange(120) % 3
    gatherer = Gatherer(_space(), 120, splits=4)
    whole = gatherer(0, samples, labels)
    found = _merged(
        [gatherer(start, samples[start : start + size], labels[start : start + size]) for start in range(0, 120, size)]
    )
    kept = spaced(120, 31)
    assert torch.equal(found.kept, samples.flatten(1)[kept])
    assert torch.equal(found.labels, labels[kept])
    assert (
        found.hits
        == whole.hits
        == int(((samples.flatten(1) @ normals(4, 3, dtype=torch.float32)).argmax(1) == labels).sum())
    )
    assert found.scores is not None
    assert whole.scores is not None
    assert found.scores.counts.tolist() == [30.0] * 4
    assert found.scores.score().mean == pytest.approx(whole.scores.score().mean, rel=1e-12)
    torch.testing.assert_close(found.moments.scatter, whole.moments.scatter, rtol=1e-12, atol=1e-12)


def test_without_labels_or_classifier_there_is_neither_accuracy_nor_score() -> None:
    found = Gatherer(FeatureSpace("plain", lambda x: x), 5)(0, normals(5, 2), None)
    assert found.hits is None
    assert found.scores is None
    assert found.kept_labels is None
    other_classes = FeatureSpace("other", lambda x: x, lambda f: f, labelled=False)
    assert Gatherer(other_classes, 5, splits=1)(0, normals(5, 2), torch.zeros(5, dtype=torch.int64)).hits is None


@pytest.mark.parametrize(("count", "most"), [(10, 10), (10, 20), (10, 3), (50_000, 10_000), (7, 5)])
def test_spaced_indices_are_ascending_in_range_and_even(count: int, most: int) -> None:
    found = spaced(count, most)
    assert len(found) == min(count, most)
    gaps = found.diff()
    assert bool((gaps >= 1).all())
    assert int(found[0]) == 0
    assert int(found[-1]) < count
    assert int(gaps.max() - gaps.min()) <= 1


# Statistics on disk


def test_stored_statistics_come_back_bit_for_bit(tmp_path: Path) -> None:
    statistics = FeatureStatistics.of(normals(40, 6))
    save_reference(tmp_path / "a.safetensors", Reference(statistics, "space"))
    found = load_reference(tmp_path / "a.safetensors")
    assert torch.equal(found.statistics.mean, statistics.mean)
    assert torch.equal(found.statistics.covariance, (statistics.covariance + statistics.covariance.T) / 2)
    assert (found.statistics.count, found.space) == (40, "space")
    save_reference(tmp_path / "b.safetensors", Reference(statistics, "space"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_published_statistics_are_read(tmp_path: Path, dtype: type, save) -> None:
    statistics = FeatureStatistics.of(normals(40, 6))
    save(
        tmp_path / "ref.npz",
        mu=statistics.mean.numpy().astype(dtype),
        sigma=statistics.covariance.numpy().astype(dtype),
    )
    found = load_reference(tmp_path / "ref.npz")
    assert found.space is None
    assert found.statistics.count is None
    assert found.statistics.mean.dtype == torch.float64
    assert abs(frechet_distance(found.statistics, statistics)) < 1e-5


def _npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def _lying(path: Path) -> Path:
    """An archive whose header claims 8 GB where there are 48 bytes."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (2**30,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", stream.getvalue() + bytes(48))
        archive.writestr("sigma.npy", stream.getvalue() + bytes(48))
    return path


def _cut(path: Path) -> Path:
    _npz(path, mu=np.zeros(3), sigma=np.eye(3))
    path.write_bytes(path.read_bytes()[:200])
    return path


SKEW = np.array([[1.0, 0.5], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path, "no such file"),
        (lambda path: _npz(path, mu=np.zeros(2)), "'mu' and 'sigma'"),
        (lambda path: _npz(path, mu=np.zeros(2), sigma=np.eye(3)), r"\(2,\) and a covariance of shape \(3, 3\)"),
        (lambda path: _npz(path, mu=np.zeros((2, 1)), sigma=np.eye(2)), "do not belong together"),
        (lambda path: _npz(path, mu=np.zeros(0), sigma=np.zeros((0, 0))), "do not belong together"),
        (lambda path: _npz(path, mu=np.array([0.0, np.nan]), sigma=np.eye(2)), "not finite"),
        (lambda path: _npz(path, mu=np.zeros(2), sigma=np.full((2, 2), np.inf)), "not finite"),
        (lambda path: _npz(path, mu=np.zeros(2), sigma=SKEW), "not symmetric"),
        (lambda path: _npz(path, mu=np.zeros(2), sigma=-np.eye(2)), "not symmetric"),
        (lambda path: _npz(path, mu=np.array([{}, {}], dtype=object), sigma=np.eye(2)), "does not hold"),
        (lambda path: _npz(path, mu=np.array(["a", "b"]), sigma=np.eye(2)), "arrays of numbers"),
        (_lying, "its header claims"),
        (_cut, "is not an .npz"),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path: Path, make, sentence: str) -> None:
    path = make(tmp_path / "ref.npz")
    with pytest.raises(UserError, match=sentence) as caught:
        load_reference(path)
    assert "ref.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"mean": torch.zeros(2)}, {"format": 1, "kind": "feature-statistics", "count": 3, "space": None}),
        (
            {"mean": torch.zeros(2), "covariance": torch.eye(2)},
            {"format": 2, "kind": "feature-statistics", "count": 3, "space": None},
        ),
        (
            {"mean": torch.zeros(2), "covariance": torch.eye(2)},
            {"format": 1, "kind": "network", "count": 3, "space": None},
        ),
        (
            {"mean": torch.zeros(2), "covariance": torch.eye(2)},
            {"format": 1, "kind": "feature-statistics", "count": "3", "space": None},
        ),
    ],
)
def test_another_file_of_ours_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, object]
) -> None:
    write_tensors(tmp_path / "other.safetensors", tensors, metadata)
    with pytest.raises(UserError, match=r"other.safetensors: holds no feature statistics.*--write-reference"):
        load_reference(tmp_path / "other.safetensors")
