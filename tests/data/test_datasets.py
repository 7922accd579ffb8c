"""Laws of data sets: what is read by index is what is there, wherever it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from fewstep.data import Dataset, InMemory, digit_images, open_images
from fewstep.data.archive import write_archive
from fewstep.metrics.frechet import FeatureStatistics, features_of, frechet_distance
from fewstep.metrics.quality import Evaluator
from fewstep.random import Key
from fewstep.schedule import KarrasVE
from fewstep.states import ForwardDiffusion, Step
from fewstep.times import LogNormalTimes
from image_kit import picture

LABELS = [2, 0, 1, 2, 2, 0, 1, 2, 0, 2]


@pytest.fixture(params=["memory", "cached", "read", "subset"])
def data(request, tmp_path: Path) -> Dataset:
    """Ten images in three classes, kept in each way there is."""
    pixels = torch.stack([torch.from_numpy(picture(seed).transpose(2, 0, 1).copy()) for seed in range(10)])
    memory = InMemory(pixels.float() / 127.5 - 1.0, torch.tensor(LABELS), 3)
    if request.param == "memory":
        return memory
    if request.param == "subset":
        order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
        return memory.subset(order).subset(torch.argsort(order))
    write_archive(tmp_path / "set.zip", ((Image.fromarray(picture(seed)), label) for seed, label in enumerate(LABELS)))
    images = open_images(tmp_path / "set.zip", cached_bytes=480 if request.param == "cached" else 479)
    assert (images.pixels is None) is (request.param == "read")
    return images


def _reference() -> torch.Tensor:
    return (
        torch.stack([torch.from_numpy(picture(seed).transpose(2, 0, 1).copy()) for seed in range(10)]).float() / 127.5
        - 1.0
    )


def test_samples_come_by_index_bit_for_bit(data):
    index = torch.tensor([7, 0, 7, 9])
    assert torch.equal(data.take(index), _reference()[index])
    assert data.take(index).dtype == torch.float32
    assert (len(data), data.shape, data.classes, data.low, data.high) == (10, (3, 4, 4), 3, -1.0, 1.0)
    assert data.labels.tolist() == LABELS


def test_blocks_are_everything_once_in_order(data):
    for rows in (1, 3, 10, 1000):
        blocks = list(data.blocks(rows))
        assert max(map(len, blocks)) == min(rows, 10)
        assert torch.equal(torch.cat(blocks), _reference())


def test_a_subset_is_the_samples_and_labels_of_its_index(data):
    index = torch.tensor([4, 4, 1])
    subset = data.subset(index)
    assert len(subset) == 3
    assert subset.classes == 3
    assert torch.equal(subset.take(torch.tensor([2, 0])), _reference()[[1, 4]])
    assert subset.labels.tolist() == [2, 2, 0]


def test_stratified_halves_are_disjoint_and_hold_the_proportions(data):
    one, other = data.stratified_halves()
    assert [half.labels.bincount(minlength=3).tolist() for half in (one, other)] == [[2, 1, 2], [1, 1, 3]]
    both = torch.cat([next(one.blocks()), next(other.blocks())]).flatten(1)
    assert (torch.cdist(both, _reference().flatten(1)) == 0).any(0).all()
    assert [int(half.labels.bincount(minlength=3)[1]) for half in (one, other)] == [1, 1]


def test_states_and_distances_do_not_depend_on_where_samples_are_kept(data):
    memory = InMemory(_reference(), torch.tensor(LABELS), 3)
    step = Step(Key(3, "train", 5), 6, 12)
    ours, theirs = (ForwardDiffusion(each, KarrasVE(), LogNormalTimes(), 0.3).draw(step) for each in (data, memory))
    assert torch.equal(ours.x, theirs.x)
    assert torch.equal(ours.condition.labels, theirs.condition.labels)
    index = step.key.integers("data-index", 6, 10, 12)
    assert torch.equal(ours.x0, _reference()[index])
    assert ((ours.condition.labels == torch.tensor(LABELS)[index]) | (ours.condition.labels == -1)).all()

    def features(samples):
        return samples.flatten(1)[:, :3].double()

    def noise(key, rows, labels):
        return key.normal("noise", (rows, 3, 4, 4))

    found = Evaluator(data, features, samples=20).measure(noise, 1).fd
    statistics = [
        FeatureStatistics.of(features_of(x, features)) for x in (noise(Key(0, "evaluation", 0), 20, None), _reference())
    ]
    assert found == frechet_distance(*statistics)


def test_the_head_of_a_set_in_the_order_of_its_classes_has_all_of_them(tmp_path):
    write_archive(tmp_path / "sorted.zip", ((Image.fromarray(picture(seed)), seed // 10) for seed in range(40)))
    images = open_images(tmp_path / "sorted.zip")
    assert images.labels[images.head(8)].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert images.head(100).tolist() == list(range(40))
    assert digit_images().head(5).tolist() == [0, 1, 2, 3, 4]
