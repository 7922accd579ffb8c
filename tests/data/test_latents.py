"""Latents are the codec's own, a function of picture and index, made once and kept."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filling_kit import cut, filled_by_a_group, filled_by_two, flipped, killed_while_it_fills, packs_in
from latent_kit import (
    CHANNELS,
    FACTOR,
    SIDE,
    CountedCodec,
    content,
    fill,
    fill_and_hang,
    fill_as_a_group,
    made,
    pictures_of,
)
from torch import Tensor

from fewstep.data import InMemory, latents, open_images
from fewstep.data.latents import Latents, bounds_of, latents_of, posterior_noise
from fewstep.errors import UserError
from fewstep.resumable import check_open, find_resumable
from fewstep.system.files import read_metadata
from image_kit import picture, png, zipped

SHAPE = (CHANNELS, SIDE // FACTOR, SIDE // FACTOR)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def all_of(found: Latents) -> Tensor:
    return found.take(torch.arange(len(found)))


class Never(CountedCodec):
    """The codec's weights, which are not used."""

    def _posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("the codec is called")


def test_latents_are_samples_of_the_codecs_posterior(cache: Path) -> None:
    data, codec = pictures_of(20), CountedCodec()
    found = made(cache, 20, codec)
    assert found.shape == SHAPE
    index = torch.tensor([17, 0, 9, 0])
    with torch.no_grad():
        # A pack's pictures, in the batches in which the codec works: bit for bit.
        pack = torch.arange(8, 16)
        assert torch.equal(found.take(pack), codec.encode_sample(data.take(pack), posterior_noise(pack, SHAPE)))
        other = codec.encode_sample(data.take(index), posterior_noise(index, SHAPE))
        mean = codec.encode(data.take(index))
    torch.testing.assert_close(found.take(index), other, rtol=0, atol=1e-6)
    assert float((found.take(index) - mean).abs().max()) > 0.01
    assert found.take(index).dtype == torch.float32


def test_noise_is_a_function_of_the_index_and_standard_normal() -> None:
    index = torch.tensor([5, 2, 1000, 5])
    noise = posterior_noise(index, SHAPE)
    for row, each in enumerate(index):
        assert torch.equal(noise[row : row + 1], posterior_noise(each[None], SHAPE))
    assert not torch.equal(noise[0], noise[1])
    many = posterior_noise(torch.arange(500), SHAPE).double()
    # Five standard deviations of each moment.
    assert abs(float(many.mean())) < 5 / many.numel() ** 0.5
    assert abs(float(many.square().mean()) - 1) < 5 * (2 / many.numel()) ** 0.5


def test_the_size_of_packs_and_the_order_of_filling_do_not_matter(tmp_path: Path) -> None:
    one = all_of(made(tmp_path / "one", 21, CountedCodec(), rows=21))
    two = made(tmp_path / "two", 21, CountedCodec(), rows=5)
    torch.testing.assert_close(all_of(two), one, rtol=0, atol=1e-6)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    assert torch.equal(two.take(order), all_of(two)[order])


def test_it_is_a_data_set_like_the_pictures_but_for_range_and_shape(cache: Path) -> None:
    data, found = pictures_of(20), made(cache, 20, CountedCodec())
    assert (len(found), found.classes, found.names) == (20, 3, ("a", "b", "c"))
    assert found.labels is not None
    assert torch.equal(found.labels, data.labels)
    assert torch.equal(found.numbers, data.labels)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.where(7) == data.where(7) == "sample 7"
    assert found.captions(torch.arange(3)) is None
    part = found.subset(torch.tensor([4, 19]))
    assert torch.equal(part.take(torch.tensor([1])), found.take(torch.tensor([19])))
    assert part.identity != found.subset(torch.tensor([4, 18])).identity
    assert part.space.low == -math.inf
    halves = found.stratified_halves()
    assert {len(half) for half in halves} == {10}
    assert torch.equal(torch.bincount(found.proportional_labels(100)), torch.bincount(data.proportional_labels(100)))


def test_the_identity_is_of_pictures_and_codec(cache: Path) -> None:
    identities = {
        made(cache, 10, CountedCodec()).identity,
        made(cache, 11, CountedCodec()).identity,
        made(cache, 10, CountedCodec(seed=1)).identity,
        latents_of(pictures_of(10, seed=1), CountedCodec(), cache, say=lambda _: None).identity,
    }
    assert len(identities) == 4
    assert made(cache, 10, CountedCodec(), rows=3).identity in identities


def test_what_is_kept_is_not_made_again(cache: Path) -> None:
    said: list[str] = []
    before = content(made(cache, 20, CountedCodec(), say=said.append))
    assert len(said) == 1
    assert "20 of 20 samples of the data are not in the cache" in said[0]
    stamps = [(path, path.stat().st_mtime_ns) for path in packs_in(cache)]
    assert len(stamps) == 3
    assert content(made(cache, 20, Never(), say=said.append, rows=5)) == before
    assert len(said) == 1
    other = CountedCodec(seed=1)
    made(cache, 20, other)
    assert sum(other.called) == 20
    assert [
        (path, path.stat().st_mtime_ns) for path in packs_in(cache) if (path, path.stat().st_mtime_ns) in stamps
    ] == (stamps)


def test_the_machines_cache_is_the_usual_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "elsewhere"))
    latents_of(pictures_of(3), CountedCodec(), say=lambda _: None)
    assert len(packs_in(tmp_path / "elsewhere" / "latents")) == 1


def test_a_pack_has_16_mib_and_no_more_unless_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "_PACK_BYTES", 7 * 4 * math.prod(SHAPE) + 3)
    made(cache, 20, CountedCodec(), rows=None)
    assert [len(read_metadata(path)["keys"]) for path in packs_in(cache)] == [7, 7, 6]


@pytest.mark.parametrize("damage", [flipped, cut])
def test_a_damaged_pack_is_passed_over_and_said_and_stays_and_is_made_again(cache: Path, damage: Any) -> None:
    before = content(made(cache, 20, CountedCodec()))
    path = packs_in(cache)[1]
    damage(path)
    kept, said, codec = path.read_bytes(), list[str](), CountedCodec()
    assert content(made(cache, 20, codec, say=said.append)) == before
    assert sum(codec.called) == 8
    assert said[0].startswith(str(path))
    assert said[0].endswith("It is passed over.")
    assert "8 of 20 samples" in said[1]
    assert path.read_bytes() == kept


def test_a_pack_of_another_codec_is_no_pack_of_this_one(cache: Path) -> None:
    made(cache, 8, CountedCodec())
    made(cache, 8, CountedCodec(seed=1))
    one, other = packs_in(cache)
    one.write_bytes(other.read_bytes())
    said: list[str] = []
    seeds = [0, 1] if packs_in(cache)[0].parent == one.parent else [1, 0]
    codecs = [CountedCodec(seed=seed) for seed in seeds]
    for codec in codecs:
        made(cache, 8, codec, say=said.append)
    assert sorted(sum(codec.called) for codec in codecs) == [0, 8]
    assert "holds no latents of this data and codec; move it elsewhere. It is passed over." in said[0]


def test_copies_read_and_remember_nothing(cache: Path) -> None:
    found = made(cache, 20, CountedCodec())
    copy = pickle.loads(pickle.dumps(found))  # noqa: S301 (made here)
    assert content(copy) == content(found)
    assert copy.identity == found.identity
    check_open({"latents": found}, "a phase")
    assert find_resumable(found) == {}


def test_two_processes_that_fill_one_cache_read_the_same_bits(cache: Path, tmp_path: Path) -> None:
    """Each computes other bits, as batches and machines do; yet both read what was written
    first.
    """
    count = 60
    read = filled_by_two(fill, cache, tmp_path, count)
    assert read == content(made(cache, count, Never()))
    listed = [key for path in packs_in(cache) for key in read_metadata(path)["keys"]]
    assert len(listed) == len(set(listed)) == count


def test_a_process_that_is_killed_while_it_writes_loses_one_pack(cache: Path, tmp_path: Path) -> None:
    # A file is synced, and its folder: two packs are whole, the third has its bytes and no name.
    aside = killed_while_it_fills(fill_and_hang, cache, tmp_path, 30, 4)
    assert len(packs_in(cache)) == 2
    after = CountedCodec()
    found = made(cache, 30, after)
    assert sum(after.called) == 30 - 16
    assert aside.exists()
    undisturbed = tmp_path / "undisturbed"
    assert content(found) == content(made(undisturbed, 30, CountedCodec()))
    assert [path.read_bytes() for path in packs_in(cache)] == [path.read_bytes() for path in packs_in(undisturbed)]


def test_of_several_processes_of_a_run_the_first_makes_them_for_all(cache: Path, tmp_path: Path) -> None:
    assert filled_by_a_group(fill_as_a_group, cache, tmp_path)


# What is refused


class Overflowing(CountedCodec):
    """White pictures have no finite latents: their ``part`` is infinite."""

    part = 0

    def _posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        found = super()._posterior(pictures)
        found[self.part][(pictures == 1).flatten(1).all(1)] = math.inf
        return found


@pytest.mark.parametrize("part", [0, 1])
def test_latents_that_are_not_finite_are_refused_with_the_pictures_file(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(Overflowing, "part", part)
    files = {f"{number:02d}.png": png(picture(number, SIDE, SIDE)) for number in range(10)}
    files["08.png"] = png(np.full((SIDE, SIDE, 3), 255, dtype=np.uint8))
    images = open_images(zipped(tmp_path / "set.zip", files))
    with pytest.raises(UserError, match=r"latents .* are not finite numbers in .*set\.zip: '08\.png';"):
        latents_of(images, Overflowing(), cache, rows=3, say=lambda _: None)
    # What was made before stays.
    assert len(packs_in(cache)) == 2
    part_of_it = images.subset(torch.arange(9, 5, -1))
    with pytest.raises(UserError, match=r"'08\.png'"):
        latents_of(part_of_it, Overflowing(), cache, say=lambda _: None)


def test_a_picture_that_is_not_finite_is_named(cache: Path) -> None:
    data = pictures_of(10)
    data.samples[7, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match="the pictures are not finite numbers in sample 7"):
        latents_of(data, CountedCodec(), cache, say=lambda _: None)


def test_what_the_codec_does_not_take_is_said(cache: Path) -> None:
    codec = Never()
    with pytest.raises(UserError, match=r"pictures of 8 x 7 pixels have no latents; .* multiples of 2"):
        latents_of(pictures_of(2, 8, 7), codec, cache)
    grey = InMemory(torch.zeros(2, 1, 8, 8), None, 0)
    bright = InMemory(torch.zeros(2, 3, 8, 8), None, 0, low=0.0)
    points = InMemory(torch.zeros(2, 2), None, 0)
    for data in (grey, bright, points):
        with pytest.raises(UserError, match=r"a codec takes pictures of shape \(3, height, width\) in \[-1, 1\]"):
            latents_of(data, codec, cache)
    for rows in (0, 2**16 + 1):
        with pytest.raises(UserError, match="in packs of 1 to 65,536"):
            made(cache, 2, codec, rows=rows)
    assert packs_in(cache) == []


def test_pictures_need_not_be_square(cache: Path) -> None:
    found = latents_of(pictures_of(3, 8, 12), CountedCodec(), cache, say=lambda _: None)
    assert found.shape == (CHANNELS, 4, 6)
    assert all_of(found).shape == (3, CHANNELS, 4, 6)


def test_the_codec_is_where_it_was(cache: Path) -> None:
    codec = CountedCodec()
    made(cache, 3, codec, device="cpu")
    assert {value.device.type for value in codec.parameters()} == {"cpu"}


# Bounds


def test_bounds_are_quantiles_of_the_values() -> None:
    samples = torch.arange(1000.0).reshape(250, 4)[torch.randperm(250, generator=torch.Generator().manual_seed(0))]
    data = InMemory(samples, None, 0, -math.inf, math.inf)
    assert bounds_of(data, 1.0) == (0.0, 999.0)
    low, high = bounds_of(data, 0.5)
    assert (low, high) == (pytest.approx(999 / 4), pytest.approx(999 * 3 / 4))
    normal = InMemory(posterior_noise(torch.arange(4000), (4, 4, 4)), None, 0)
    # 0.9995 of a standard normal's values are below 3.2905, where its density is 0.001778; five
    # standard deviations of the quantile.
    low, high = bounds_of(normal)
    spread = (0.0005 * 0.9995 / 256_000) ** 0.5 / 0.001778
    assert abs(high - 3.2905) < 5 * spread
    assert abs(low + 3.2905) < 5 * spread
    assert bounds_of(normal) == (low, high)


def test_bounds_are_of_a_bounded_number_of_samples_from_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "_MOST_VALUES", 40)
    taken: list[int] = []

    class Counted(InMemory):
        def take(self, index: Tensor) -> Tensor:
            taken.extend(index.tolist())
            return super().take(index)

    bounds_of(Counted(torch.zeros(100, 4), None, 0))
    assert taken == list(range(0, 100, 10))
    for share in (0.0, -1.0, 1.1, math.nan):
        with pytest.raises(UserError, match=r"in \(0, 1\]"):
            bounds_of(pictures_of(2), share)
