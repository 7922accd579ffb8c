"""CLIP scores, averages with their intervals, and what of a picture is seen: closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_kit import clip_folder, picture, write_pictures
from fewstep.data.pixels import centre_patch, squared
from fewstep.errors import UserError
from fewstep.metrics.averages import Average
from fewstep.metrics.prompted import similarities
from fewstep.runs.protocols.clip_figures import ClipChoice, clip_score
from fewstep.runs.protocols.picture_sets import PictureSet, PictureView
from fewstep.zoo.clip import ClipFolder


def test_a_picture_is_as_near_to_its_own_embedding_as_can_be():
    embeddings = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    found = similarities(embeddings, 3.0 * embeddings)
    torch.testing.assert_close(found, torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(similarities(embeddings, -embeddings), -found)
    assert float(similarities(torch.eye(3), torch.eye(3).roll(1, 0)).abs().max()) == 0.0
    assert float(similarities(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]]))) == pytest.approx(2**-0.5)


def test_exchanged_captions_lower_it():
    """Of embeddings that are near their own captions; others are at right angles by chance."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(64, 16, generator=generator)
    captions = pictures + 0.5 * torch.randn(64, 16, generator=generator)
    right = float(similarities(pictures, captions).mean())
    wrong = float(similarities(pictures, captions.roll(1, 0)).mean())
    assert right > 0.8
    assert wrong < 0.2


@pytest.mark.parametrize(
    ("pictures", "captions"),
    [
        (torch.ones(2, 3), torch.ones(3, 3)),
        (torch.ones(0, 3), torch.ones(0, 3)),
        (torch.ones(3), torch.ones(3)),
        (torch.ones(2, 3), torch.zeros(2, 3)),
        (torch.full((2, 3), math.nan), torch.ones(2, 3)),
    ],
)
def test_embeddings_that_do_not_belong_together_are_refused(pictures, captions):
    with pytest.raises(UserError, match="a CLIP score is taken of"):
        similarities(pictures, captions)


def test_an_interval_is_that_of_the_normal_distribution():
    found = Average.of([1.0, 2.0, 3.0, 4.0])
    half = 1.96 * math.sqrt(5 / 3) / 2
    assert found.mean == 2.5
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half))
    assert Average.of([7.0]).as_json() == {"mean": 7.0, "low": None, "high": None, "count": 1}
    # Their order does not matter, though these cannot be added by halves.
    values = [1e16, 1.0, -1e16, 1.0]
    assert Average.of(values) == Average.of(values[::-1])
    assert Average.of(values).mean == 0.5
    for wrong in ([], [1.0, math.inf], [math.nan]):
        with pytest.raises(UserError, match="an average needs"):
            Average.of(wrong)


def test_an_interval_holds_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = [
        found.low < 3.0 < found.high
        for found in (Average.of(random.normal(3.0, 2.0, 100).tolist()) for _ in range(1000))
    ]
    assert 0.93 < sum(held) / len(held) < 0.97


@pytest.mark.parametrize(
    ("width", "height", "left", "top"),
    [(1024, 1024, 362, 362), (299, 299, 0, 0), (640, 480, 170, 90), (302, 301, 2, 1), (301, 300, 1, 0)],
)
def test_a_patch_is_in_the_exact_centre(width, height, left, top):
    """A half is rounded to the even number, as torchvision's ``center_crop`` does."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns % 256, rows % 256, columns // 256 * 16 + rows // 256], axis=-1).astype(np.uint8)
    patch = np.asarray(centre_patch(Image.fromarray(pixels), 299))
    assert patch.shape == (299, 299, 3)
    assert (patch == pixels[top : top + 299, left : left + 299]).all()
    assert abs(2 * left + 299 - width) <= 1


def test_a_picture_smaller_than_a_patch_stays_whole():
    small = picture(400, 298)
    assert PictureView(patch=299)(small) is small


def test_a_view_is_the_square_that_data_sets_take():
    wide = picture(50, 30)
    assert PictureView(20)(wide).tobytes() == squared(wide, 20).tobytes()
    assert PictureView()(wide) is wide
    assert (PictureView(20).sides(wide), PictureView(patch=9).sides(wide), PictureView().sides(wide)) == (
        (20, 20),
        (9, 9),
        (30, 50),
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip") / "model")


def test_the_score_of_a_set_is_the_mean_of_its_cosines(clip, tmp_path):
    """More pictures than are embedded at a time, two of them without a caption, one caption too
    long, and pictures in the order of their numbers.
    """
    captions = ["red", "", "blue " * 30, *(f"a red {number}" for number in range(37)), ""]
    folder = write_pictures(tmp_path / "set", [(20 + number, 30) for number in range(len(captions))], captions)
    choice, pictures = ClipChoice(ClipFolder.find(clip), PictureView(16), "A "), PictureSet.open(folder)
    towers, read = choice.open(), list[int]()
    assert pictures.captions is not None
    found = clip_score(choice, towers, pictures, pictures.captions, read.append)
    apart = [
        float(
            similarities(
                towers.of_pictures([squared(picture(20 + number, 30, number), 16)]),
                towers.of_texts([f"A {text}".strip()]),
            )
        )
        for number, text in enumerate(captions)
        if text
    ]
    assert found["mean"] == pytest.approx(sum(apart) / len(apart), abs=1e-6)
    assert (found["count"], found["cut"], found["without_caption"]) == (39, 1, 2)
    assert sum(read) == 39
    assert len(read) == 2


def test_a_line_of_pixels_is_refused_by_name(clip, tmp_path):
    """Before it takes all memory: resized by its shorter side it would be 24 x 24,000,000."""
    folder = write_pictures(tmp_path / "set", [(20, 30)], ["red"])
    Image.new("RGB", (1, 1_000_000)).save(folder / "000001.png")
    pictures = PictureSet.open(folder)
    for view in (PictureView(), PictureView(16)):
        choice = ClipChoice(ClipFolder.find(clip), view, "")
        if view.size is None:
            with pytest.raises(UserError, match=r"'000001\.png': has 1 x 1000000 pixels, and 24,000,000 at its longer"):
                clip_score(choice, choice.open(), pictures, ["red", "blue"])
        else:
            assert clip_score(choice, choice.open(), pictures, ["red", "blue"])["count"] == 2


def test_clip_is_a_feature_space_of_pictures_of_any_size(clip):
    space = ClipFolder.find(clip).space(-1.0, 1.0)
    levels = np.asarray(picture(40, 30)).transpose(2, 0, 1).copy()
    samples = torch.from_numpy(levels).float()[None] / 127.5 - 1
    own = ClipFolder.find(clip).open().of_pictures([picture(40, 30)])
    assert torch.equal(space.extract(samples), own)
    assert space.resizes
    assert space.name == f"clip-{ClipFolder.find(clip).digest[:16]}"
    grey = space.extract(torch.zeros(2, 1, 20, 20))
    assert torch.equal(grey[0], grey[1])


def test_pictures_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1, 100):
        picture(8, 8, number).save(tmp_path / f"{number}.png")
    assert PictureSet.open(tmp_path).names == ("1.png", "9.png", "10.png", "100.png")
