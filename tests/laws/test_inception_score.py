"""Laws of the inception score and of Inception as a feature space: bounds, closed forms, an
independent implementation, and bytes as an image file would hold them.
"""

from __future__ import annotations

import math
import pickle
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from law_kit import normals
from torch import Tensor, nn

from clip_kit import picture, write_pictures
from fewstep.data.pixels import centre_patch, pixels_of
from fewstep.errors import UserError
from fewstep.metrics import ClassScores, inception_score
from fewstep.metrics.inception import as_bytes, inception_space
from fewstep.metrics.inception_score import random_splits
from fewstep.random import Key
from fewstep.runs.protocols.picture_sets import PictureSet, PictureView

# The score


@pytest.mark.parametrize("classes", [2, 9, 1000])
def test_sure_and_even_classes_score_their_number(classes: int) -> None:
    assert inception_score(torch.eye(classes).repeat(3, 1), splits=1).mean == pytest.approx(classes, rel=1e-12)


def test_samples_that_are_all_alike_score_one() -> None:
    row = torch.softmax(normals(1, 7), 1)
    found = inception_score(row.expand(40, 7), splits=4)
    assert found.mean == pytest.approx(1.0, rel=1e-12)
    assert found.spread == pytest.approx(0.0, abs=1e-12)


def test_sure_but_uneven_classes_score_the_exponential_of_their_entropy() -> None:
    probabilities = torch.eye(3)[torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])]
    assert inception_score(probabilities, splits=1).mean == pytest.approx(2**1.5, rel=1e-12)


def test_it_is_the_mean_divergence_from_the_marginal() -> None:
    probabilities = torch.softmax(2 * normals(50, 6), 1)
    divergence = (probabilities * (probabilities.log() - probabilities.mean(0).log())).sum(1).mean()
    assert inception_score(probabilities, splits=1).mean == pytest.approx(math.exp(divergence), rel=1e-12)


@pytest.mark.parametrize("splits", [1, 4])
def test_it_agrees_with_torchmetrics(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same order, which both draw at random; its spread is the sample's, ours the
    population's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.inception import InceptionScore

        theirs = InceptionScore(feature=nn.Flatten(), splits=splits)
    logits = 2 * normals(200, 8)
    theirs.update(logits)
    order = Key(0, "inception-score").permutation("split", 200)
    monkeypatch.setattr(torch, "randperm", lambda count: order[:count])
    mean, spread = (float(value) for value in _quietly(theirs))
    found = inception_score(torch.softmax(logits, 1), splits)
    assert found.mean == pytest.approx(mean, rel=1e-5)
    if splits > 1:
        assert found.spread * math.sqrt(splits / (splits - 1)) == pytest.approx(spread, rel=1e-5)


def _quietly(metric) -> tuple[Tensor, Tensor]:
    with warnings.catch_warnings():
        # Its standard deviation of one split is not a number, of which it warns.
        warnings.simplefilter("ignore")
        return metric.compute()


@pytest.mark.parametrize("size", [1, 9, 60])
def test_it_streams(size: int) -> None:
    probabilities = torch.softmax(2 * normals(60, 5), 1)
    split = random_splits(60, 6, Key(0, "inception-score"))
    parts = [ClassScores.of(p, s, 6) for p, s in zip(probabilities.split(size), split.split(size), strict=True)]
    total = parts[0]
    for part in parts[1:]:
        total = total.merged(part)
    assert total.score().mean == pytest.approx(inception_score(probabilities, 6).mean, rel=1e-12)
    assert total.score().spread == pytest.approx(inception_score(probabilities, 6).spread, rel=1e-9)


@pytest.mark.parametrize(("count", "splits"), [(50, 10), (53, 10), (10, 10), (7, 1)])
def test_splits_are_even_and_blind_to_the_order(count: int, splits: int) -> None:
    found = random_splits(count, splits, Key(0, "inception-score"))
    sizes = torch.bincount(found, minlength=splits)
    assert len(sizes) == splits
    assert int(sizes.max() - sizes.min()) <= 1
    assert splits == 1 or not torch.equal(found, found.sort().values)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: inception_score(normals(20, 3), 2), "apply a softmax"),
        (lambda: inception_score(torch.full((20, 3), float("nan")), 2), "apply a softmax"),
        (lambda: inception_score(torch.eye(3)[0], 1), "probabilities"),
        (lambda: inception_score(torch.eye(3), 4), "a sample in each"),
        (
            lambda: ClassScores.of(torch.eye(3), torch.zeros(3, dtype=torch.int64), 1).merged(
                ClassScores.of(torch.eye(2), torch.zeros(2, dtype=torch.int64), 1)
            ),
            "cannot be merged",
        ),
    ],
)
def test_what_is_no_probability_is_refused(make, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


# Inception


def test_bytes_come_back_as_they_were() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(as_bytes(pixels.float() / 127.5 - 1), pixels.expand(1, 3, 16, 16))
    assert torch.equal(as_bytes(pixels.float() / 255, 0.0, 1.0), pixels.expand(1, 3, 16, 16))


def test_values_are_cut_off_as_edms_are_and_bounded() -> None:
    """trunc(127.5 x + 128): half a step above a byte's own value is still that byte."""
    values = torch.tensor([-9.0, -1.0, -1.0 + 0.49 / 127.5, -1.0 + 0.51 / 127.5, 0.0, 1.0, 9.0]).reshape(1, 1, 1, 7)
    assert as_bytes(values)[0, 0, 0].tolist() == [0, 0, 0, 1, 128, 255, 255]
    with pytest.raises(UserError, match="Inception reads images"):
        as_bytes(torch.zeros(3, 2))


class _Fake(nn.Module):
    """Stands for torch-fidelity's network: 2 features a channel, 5 classes."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048"])
        self.path = feature_extractor_weights_path
        self.fc = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8
        flat = images.float().flatten(2)
        return (torch.cat([flat.mean(2), flat.amax(2)], 1),)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = (
        types.ModuleType("torch_fidelity"),
        types.ModuleType("torch_fidelity.feature_extractor_inceptionv3"),
    )
    module.FeatureExtractorInceptionV3, module.URL_INCEPTION_V3 = _Fake, "file:///nowhere/weights-0.pth"
    package.feature_extractor_inceptionv3 = module
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


@pytest.mark.usefixtures("fidelity")
def test_the_wrapper_gives_features_and_logits_without_bias(tmp_path: Path) -> None:
    torch.save({"fc": torch.zeros(2)}, tmp_path / "weights.pth")
    space = inception_space(tmp_path / "weights.pth", 0.0, 1.0)
    images = normals(4, 3, 8, 8, dtype=torch.float32).abs().clamp(0, 1)
    features = space.extract(images)
    stored = as_bytes(images, 0.0, 1.0).float().flatten(2)
    assert torch.equal(features, torch.cat([stored.mean(2), stored.amax(2)], 1))
    assert space.head is not None
    assert torch.equal(space.head(torch.zeros(1, 6)), torch.zeros(1, 5))
    assert not space.labelled
    assert space.name == "inception"


@pytest.mark.usefixtures("fidelity")
def test_pictures_of_a_folder_are_given_as_their_own_bytes(tmp_path: Path) -> None:
    """Of any sizes, each as it is, and in the order of their names; or the patch in the centre."""
    torch.save({"fc": torch.zeros(2)}, tmp_path / "weights.pth")
    sizes = [(20, 30), (20, 30), (31, 9), (20, 30)]
    pictures = PictureSet.open(write_pictures(tmp_path / "set", sizes))
    space = inception_space(tmp_path / "weights.pth")
    for view, seen in (
        (PictureView(), lambda each: each),
        (PictureView(patch=20), lambda each: centre_patch(each, 20)),
    ):
        blocks = list(pictures.features(view, space))
        assert [len(block) for block in blocks] == [2, 1, 1]
        for found, each in zip(torch.cat(blocks), map(picture, *zip(*sizes, strict=True), range(4)), strict=True):
            levels = torch.from_numpy(pixels_of(seen(each))).float().flatten(1)
            assert torch.equal(found, torch.cat([levels.mean(1), levels.amax(1)]))


class _Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("hacked"),))


@pytest.mark.usefixtures("fidelity")
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_weights_that_hold_code_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save) -> None:
    monkeypatch.chdir(tmp_path)
    save({"fc": _Hostile()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="does not hold weights alone"):
        inception_space(tmp_path / "weights.pth")
    assert not (tmp_path / "hacked").exists()
    with pytest.raises(UserError, match="no such file"):
        inception_space(tmp_path / "none.pth")


@pytest.mark.usefixtures("fidelity")
def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"could not be downloaded.*evaluation.features.weights"):
        inception_space()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match=r"pip install 'fewstep\[metrics\]'"):
        inception_space()
