"""A data set is known by its content: by what samples and labels it gives, and not by where it
lies.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch

from fewstep.data import Dataset, InMemory, digit_images, open_images, random_mixture
from fewstep.data.scenes import Scenes
from fewstep.data.synthetic import sampled, waves
from fewstep.schedule import KarrasVE
from image_kit import picture, png, zipped


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def _folder(path: Path) -> Path:
    for seed, name in enumerate(["cat/a.png", "dog/b.png"]):
        (path / name).parent.mkdir(parents=True)
        (path / name).write_bytes(png(picture(seed)))
    return path


def _made() -> list[Dataset]:
    mixture = random_mixture(KarrasVE(), 3)
    made = [digit_images(), waves((1, 4, 4), 2, 6), sampled(mixture, 20), digit_images().subset(torch.arange(5))]
    scenes = [
        Scenes(9),
        Scenes(8),
        Scenes(9, 2),
        Scenes(9, part="test"),
        Scenes(9, combinations="all"),
        Scenes(9, seed=1),
    ]
    return [*made, *scenes]


def test_an_identity_is_a_digest_and_the_same_when_made_again():
    first, again = ([each.identity for each in _made()] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(first)
    assert all(len(identity) == 64 and int(identity, 16) >= 0 for identity in first)


def test_what_decides_samples_and_labels_decides_the_identity():
    data = InMemory(torch.arange(8.0).reshape(4, 2), torch.tensor([0, 1, 0, 1]), 2)
    samples = data.samples.clone()
    samples[3, 1] = 9.0
    others = [
        dataclasses.replace(data, samples=samples),
        dataclasses.replace(data, labels=torch.tensor([0, 1, 1, 1])),
        dataclasses.replace(data, labels=None),
        dataclasses.replace(data, classes=3),
        dataclasses.replace(data, names=("a", "b")),
        dataclasses.replace(data, high=2.0),
        data.subset(torch.arange(4)),
        data.subset(torch.arange(3)),
    ]
    assert len({data.identity, *(other.identity for other in others)}) == 1 + len(others)
    assert (
        sampled(random_mixture(KarrasVE(), 3), 20).identity
        != sampled(random_mixture(KarrasVE(), 3, seed=1), 20).identity
    )
    assert (
        len(
            {
                waves((1, 4, 4), classes, count, seed).identity
                for classes, count, seed in ((0, 6, 0), (2, 6, 0), (2, 7, 0), (2, 6, 1))
            }
        )
        == 4
    )


def test_samples_that_are_computed_are_known_by_what_they_are_made_of():
    made = waves((1, 4, 4), 2, 6)
    assert dataclasses.replace(made, samples=made.samples * (1 + 1e-7)).identity == made.identity


def test_a_folder_is_the_same_set_elsewhere_and_another_when_a_file_was_exchanged(tmp_path):
    folder = _folder(tmp_path / "one")
    first = open_images(folder).identity
    (folder / "notes.txt").write_text("beside the images")
    shutil.copytree(folder, tmp_path / "two")
    assert open_images(tmp_path / "two").identity == first
    (folder / "cat" / "a.png").write_bytes(png(picture(7)))
    assert open_images(folder).identity != first
    assert open_images(tmp_path / "two").identity == first


def test_a_zip_is_another_set_by_content_and_by_how_it_is_read(tmp_path):
    path = zipped(
        tmp_path / "a.zip",
        {"a.png": png(picture(0, 6, 6)), "b.png": png(picture(1, 6, 6))},
        {"labels": [["a.png", 0], ["b.png", 1]]},
    )
    ways = [
        open_images(path),
        open_images(path, size=4),
        open_images(path, labels=False),
        open_images(path, channels=1),
    ]
    assert open_images(path, cached_bytes=0).identity == ways[0].identity
    os.replace(
        zipped(
            tmp_path / "b.zip",
            {"a.png": png(picture(0, 6, 6)), "b.png": png(picture(2, 6, 6))},
            {"labels": [["a.png", 0], ["b.png", 1]]},
        ),
        path,
    )
    assert len({each.identity for each in [*ways, open_images(path)]}) == 5
