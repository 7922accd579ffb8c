"""Pictures are trained on with their captions, and real pictures with their sizes."""

from __future__ import annotations

import io
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from latent_kit import SIDE, CountedCodec, pictures_of
from PIL import Image
from prompt_kit import HashEncoder
from torch import Tensor

from fewstep.condition import LABELS, NO_CLASS, Condition
from fewstep.data import Captioned, Dataset, Images, InMemory, captioned, open_images
from fewstep.data.latents import latents_of
from fewstep.data.pixels import sizes_of
from fewstep.data.prompts import PromptConditions, Prompts, embed
from fewstep.data.scenes import Scenes
from fewstep.errors import UserError
from fewstep.metrics import spread
from fewstep.random import Key
from fewstep.resumable import check_open, find_resumable
from fewstep.schedule import DiscreteVP
from fewstep.states import ForwardDiffusion, State, States, Step
from fewstep.times import UniformTimes
from fewstep.training.monitors import Saturation, Spread
from image_kit import picture, png, zipped

CAPTIONS = {"a": "a fox", "b": "a box", "c": "a fox", "d": "", "f": "an ox"}
GENERATED = {"time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]])}


def image_set(path: Path, kind: str = "beside") -> Path:
    """Six pictures of which five have a caption and one an empty one, as a folder or a zip."""
    files = {f"{name}.png": png(picture(number, SIDE, SIDE)) for number, name in enumerate("abcdef")}
    if kind == "metadata":
        rows = [{"file_name": f"{name}.png", "text": text} for name, text in CAPTIONS.items()]
        files["metadata.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        files |= {f"{name}.txt": text.encode() for name, text in CAPTIONS.items()}
    if path.suffix == ".zip":
        return zipped(path, files)
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def conditions_of(prompts: Prompts, folder: Path, sized: bool = False) -> PromptConditions:
    encoder = HashEncoder()
    embedded = embed(prompts, lambda: encoder, encoder.identity, folder, say=lambda _: None)
    return PromptConditions(embedded, GENERATED if sized else {})


def drawn(data: Dataset, conditions: PromptConditions, rows: int = 40, dropout: float = 0.0) -> tuple[Tensor, State]:
    """Which samples are drawn, and their state."""
    step = Step(Key(0, "train", 3), rows)
    state = ForwardDiffusion(data, DiscreteVP(), UniformTimes(), dropout, conditions).draw(step)
    return step.key.integers("data-index", rows, len(data), 0), state


@pytest.mark.parametrize("name", ["set", "set.zip"])
@pytest.mark.parametrize("kind", ["beside", "metadata"])
def test_an_image_set_says_its_captions_by_index(tmp_path: Path, name: str, kind: str) -> None:
    images = open_images(image_set(tmp_path / name, kind), captions=True)
    assert images.captions(torch.tensor([5, 0, 3, 4, 0])) == ["an ox", "a fox", "", "", "a fox"]
    (remark,) = images.remarks
    assert "1 images without a caption (such as 'e.png')" in remark
    assert not images.passed_over
    plain = open_images(image_set(tmp_path / f"2{name}", kind))
    assert plain.captions(torch.arange(2)) is None
    assert plain.passed_over.kinds
    assert plain.identity == images.identity


def test_files_that_are_no_captions_are_still_said(tmp_path: Path) -> None:
    path = image_set(tmp_path / "set")
    (path / "notes.md").write_text("x")
    images = open_images(path, captions=True)
    assert [(count, example) for count, example in images.passed_over.kinds.values()] == [(1, "notes.md")]


def test_an_image_set_without_captions_is_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"a.png": png(picture(0)), "b.txt": b"x"})
    with pytest.raises(UserError, match=r"set\.zip: holds no captions; .* 1 text files without an image"):
        open_images(path, captions=True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(png(picture(0)))
    (tmp_path / "bad" / "a.txt").write_bytes(b"a\0")
    with pytest.raises(UserError, match=r"image 'a\.png' has the control character U\+0000"):
        open_images(tmp_path / "bad", captions=True)


@pytest.mark.parametrize("digits", [1, 2])
def test_the_captions_of_scenes_become_prompts_in_the_order_in_which_they_appear(digits: int) -> None:
    data = Scenes(3000, digits)
    texts = data.captions(torch.arange(3000))
    prompts, samples = captioned(data)
    assert prompts.texts == tuple(dict.fromkeys(text for text in texts if text))
    assert samples.numbers.dtype == torch.int64
    assert [prompts.texts[each] if each != NO_CLASS else "" for each in samples.numbers.tolist()] == texts
    index = torch.tensor([7, 2999, 7])
    assert torch.equal(samples.take(index), data.take(index))
    assert prompts.where(0) == f"sample {next(row for row, text in enumerate(texts) if text)}"
    assert (samples.low, samples.high, samples.shape, len(samples)) == (-1, 1, (3, 32, 32), 3000)


def test_a_million_scenes_are_captioned_without_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a picture is drawn")

    monkeypatch.setattr(Scenes, "take", refused)
    begin = time.process_time()
    _, samples = captioned(Scenes(1_000_000))
    assert time.process_time() - begin < 30
    assert abs(float((samples.numbers == NO_CLASS).double().mean()) - 0.1) < 0.002


def test_the_captions_of_images_are_named_by_their_files(tmp_path: Path) -> None:
    path = image_set(tmp_path / "set.zip")
    prompts, samples = captioned(open_images(path, captions=True))
    assert prompts.texts == ("a fox", "a box", "an ox")
    assert samples.numbers.tolist() == [0, 1, 0, -1, -1, 2]
    assert [prompts.where(each) for each in range(3)] == [f"{path}: '{name}.png'" for name in "abf"]
    assert [samples.where(each) for each in range(3)] == [f"{path}: '{name}.png'" for name in "abc"]
    encoder = HashEncoder(length=1)
    with pytest.raises(UserError, match=r"prompt 1 \(.*set\.zip: 'a\.png'\) has 2"):
        embed(prompts, lambda: encoder, encoder.identity, tmp_path, too_long="refuse")


def test_data_without_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data: has no captions"):
        captioned(pictures_of(3))

    class Silent(InMemory):
        def captions(self, index: Tensor) -> list[str]:
            return [""] * len(index)

    with pytest.raises(UserError, match="all 3 captions are empty"):
        captioned(Silent(torch.zeros(3, 2), None, 0))


def test_numbers_of_captions_are_no_classes(tmp_path: Path) -> None:
    files = {f"{top}/{number}.png": png(picture(number)) for top in "xyz" for number in range(4)}
    files |= {name.replace("png", "txt"): f"picture {name}".encode() for name in files}
    images = open_images(zipped(tmp_path / "set.zip", files), captions=True)
    assert images.classes == 3
    prompts, samples = captioned(images)
    assert len(prompts) == 12
    for data in (samples, samples.subset(torch.arange(8)), latents_in(samples, tmp_path)):
        assert (data.labels, data.classes, data.names) == (None, 0, ())
        assert data.space.classes == 0
        assert data.proportional_labels(10) is None
        assert torch.equal(data.numbers, torch.arange(len(data)))
        assert all(half.labels is None for half in data.stratified_halves())
    one, other = samples.stratified_halves()
    assert torch.equal(one.numbers, torch.arange(0, 12, 2))
    assert torch.equal(other.numbers, torch.arange(1, 12, 2))
    assert samples.identity != images.identity


def latents_in(data: Dataset, folder: Path) -> Dataset:
    return latents_of(data, CountedCodec(), folder / "latents", say=lambda _: None)


def test_the_identity_is_of_samples_and_captions(tmp_path: Path) -> None:
    path = image_set(tmp_path / "set")
    before = captioned(open_images(path, captions=True))[1]
    assert captioned(open_images(path, captions=True))[1].identity == before.identity
    (path / "b.txt").write_text("a cox")
    after = captioned(open_images(path, captions=True))[1]
    assert after.data.identity == before.data.identity
    assert after.identity != before.identity
    (path / "b.txt").write_text("a fox")
    assert captioned(open_images(path, captions=True))[1].identity not in (before.identity, after.identity)


@pytest.mark.parametrize("order", ["captions of latents", "latents of captions"])
def test_latents_are_trained_on_with_their_pictures_captions(tmp_path: Path, order: str) -> None:
    images = open_images(image_set(tmp_path / "set.zip"), captions=True)
    if order == "captions of latents":
        prompts, data = captioned(latents_in(images, tmp_path))
    else:
        prompts, pictures = captioned(images)
        data = latents_in(pictures, tmp_path)
    conditions = conditions_of(prompts, tmp_path)
    index, state = drawn(data, conditions)
    assert torch.equal(state.x0, data.take(index))
    assert torch.equal(state.condition.labels, data.numbers[index])
    encoder = HashEncoder()
    for row, each in enumerate(index.tolist()):
        text = images.texts[each]
        assert torch.equal(state.condition.context["text"][row], encoder_row(encoder, text))


def encoder_row(encoder: HashEncoder, text: str) -> Tensor:
    with torch.no_grad():
        return encoder([text])["text"][0]


def test_captions_are_dropped_at_their_rate(tmp_path: Path) -> None:
    prompts, data = captioned(Scenes(500))
    conditions = conditions_of(prompts, tmp_path)
    index, state = drawn(data, conditions, 400, dropout=0.5)
    kept = state.condition.labels != NO_CLASS
    assert torch.equal(state.condition.labels[kept], data.numbers[index][kept])
    assert 100 < int(kept.sum()) < 250
    null = conditions.prompts.null["text"]
    assert torch.equal(state.condition.context["text"][~kept], null.expand(int((~kept).sum()), 6, 3))


def test_it_remembers_nothing(tmp_path: Path) -> None:
    prompts, data = captioned(Scenes(20))
    states = ForwardDiffusion(data, DiscreteVP(), UniformTimes(), 0.1, conditions_of(prompts, tmp_path))
    check_open(states, "a phase")
    assert find_resumable(states) == {}
    assert isinstance(data, Captioned)


# Sizes


def test_sizes_are_what_sdxls_training_says() -> None:
    """diffusers' ``train_text_to_image_sdxl.py``: the shorter side is resized to the resolution,
    then the centre is cropped; the crop's corner is in the resized picture.
    """
    assert sizes_of(600, 800, None) == (600, 800, 0, 0, 600, 800)
    assert sizes_of(512, 512, 512) == (512, 512, 0, 0, 512, 512)
    assert sizes_of(600, 800, 300) == (600, 800, 0, 50, 300, 300)
    assert sizes_of(2000, 1000, 512) == (2000, 1000, 256, 0, 512, 512)
    for height, width in ((640, 427), (333, 500), (257, 4096)):
        # As torchvision's ``Resize`` and ``CenterCrop`` have it.
        resized = (int(256 * each / min(height, width)) for each in (height, width))
        top, left = (round((side - 256) / 2) for side in resized)
        found = sizes_of(height, width, 256)
        assert abs(found[2] - top) <= 1
        assert abs(found[3] - left) <= 1


def turned(pixels: object) -> bytes:
    """A JPEG that EXIF turns by a quarter."""
    image, stream = Image.fromarray(pixels), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(stream, format="JPEG", exif=exif)
    return stream.getvalue()


def sized_set(path: Path) -> Path:
    """Pictures of three sizes, height x width: 8 x 12, 20 x 8, and 16 x 10 as it is stored."""
    files = {
        "a.png": png(picture(0, 8, 12)),
        "b.png": png(picture(1, 20, 8)),
        "c.jpg": turned(picture(2, 16, 10)),
    }
    return zipped(path, files)


EXPECTED = torch.tensor([[8.0, 12, 0, 2, 8, 8], [20, 8, 6, 0, 8, 8], [10, 16, 0, 2, 8, 8]])


@pytest.mark.parametrize("cached", [0, 2**20])
def test_images_know_their_true_sizes(tmp_path: Path, cached: int) -> None:
    images = open_images(sized_set(tmp_path / "set.zip"), size=8, cached_bytes=cached)
    assert (images.pixels is None) == (cached == 0)
    index = torch.tensor([2, 0, 1, 1])
    found = images.sizes(index)
    assert found.dtype == torch.float32
    assert torch.equal(found, EXPECTED[index])
    assert images.sizes(index[:0]).shape == (0, 6)
    assert torch.equal(images.subset(torch.tensor([1, 2])).sizes(torch.tensor([0])), EXPECTED[1:2])


def test_what_was_neither_resized_nor_cropped_says_its_own_size(tmp_path: Path) -> None:
    expected = torch.tensor([[6.0, 5, 0, 0, 6, 5]] * 2)
    assert torch.equal(pictures_of(4, 6, 5).sizes(torch.tensor([0, 3])), expected)
    images = open_images(zipped(tmp_path / "set.zip", {"a.png": png(picture(0, 6, 5))}))
    assert torch.equal(images.sizes(torch.tensor([0, 0])), expected)
    with pytest.raises(UserError, match="are no pictures, and have no sizes"):
        InMemory(torch.zeros(3, 2), None, 0).sizes(torch.arange(2))


def test_latents_know_their_pictures_sizes_without_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(sized_set(tmp_path / "set.zip"), size=8, cached_bytes=0)
    found = latents_in(images, tmp_path)

    def refused(*_: object) -> None:
        raise AssertionError("a picture is read")

    monkeypatch.setattr(Images, "read", refused)
    assert torch.equal(found.sizes(torch.tensor([2, 0])), EXPECTED[[2, 0]])


def test_real_pictures_are_conditioned_on_their_own_sizes(tmp_path: Path) -> None:
    images = open_images(sized_set(tmp_path / "set.zip"), size=8)
    data = captioned(replace(images, texts=("a fox", "", "a box")))[1]
    conditions = conditions_of(data.prompts, tmp_path, sized=True)
    for dropout in (0.0, 1.0):
        index, state = drawn(data, conditions, dropout=dropout)
        assert torch.equal(state.condition.context["time_ids"], EXPECTED[index])
        assert len(set(index.tolist())) == 3
    # Generated ones keep the size that they are made in.
    assert torch.equal(conditions.draw(Key(0), 5).context["time_ids"], GENERATED["time_ids"].expand(5, 6))


def test_conditions_without_sizes_ask_for_none(tmp_path: Path) -> None:
    class Sizeless(InMemory):
        def sizes(self, index: Tensor) -> Tensor:
            raise AssertionError("sizes are asked for")

    data = Sizeless(torch.zeros(5, 3, 4, 4), torch.arange(5) % 2, 2)
    step = Step(Key(0, "train", 0), 4)
    assert not ForwardDiffusion(data, DiscreteVP(), UniformTimes(), 0.1, LABELS).draw(step).condition.context
    prompts, _ = captioned(Scenes(50))
    conditions = conditions_of(prompts, tmp_path)
    assert set(ForwardDiffusion(data, DiscreteVP(), UniformTimes(), 0.1, conditions).draw(step).condition.context) == {
        "text",
        "pooled",
        "mask",
    }


# What watches a run


@dataclass(frozen=True)
class Given(States):
    """The same samples at each step, whose labels are numbers of prompts."""

    x: Tensor

    def draw(self, step: Step) -> State:
        labels = torch.arange(len(self.x)) - 1
        return State(self.x, torch.zeros(len(self.x), dtype=torch.float64), Condition(labels), None)


def test_the_spread_of_samples_is_not_taken_within_captions() -> None:
    x = Key(0).normal("samples", (30, 3, 4, 4))

    class Named(InMemory):
        def captions(self, index: Tensor) -> list[str]:
            return [f"picture {each}" for each in index.tolist()]

    own = Key(0).normal("data", (40, 3, 4, 4))
    _, data = captioned(Named(own, torch.arange(40) % 2, 2))
    reading = Spread(Given(x), data).read(Step(Key(0), 30), {})
    assert reading is not None
    assert reading.value == pytest.approx(spread(x) / spread(own))


def test_what_has_no_range_has_that_of_the_datas_own_values() -> None:
    x = 100 * Key(0).normal("samples", (30, 4, 2, 2))
    unbounded = InMemory(x, None, 0, -math.inf, math.inf)
    for scale, saturates in ((1, False), (4, True)):
        reading = Saturation(Given(scale * x), unbounded).read(Step(Key(0), 30), {})
        assert reading is not None
        assert bool(reading.warning) is saturates
    reading = Saturation(Given(x), InMemory(x / 1000, None, 0)).read(Step(Key(0), 30), {})
    assert reading is not None
    assert reading.value > 0.9
