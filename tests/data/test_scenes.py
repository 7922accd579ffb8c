"""Scenes: texts and pictures agree, parts share nothing, and a scene is a function of its index."""

from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from fewstep.data import digit_images
from fewstep.data.scenes import Scenes, SceneWords, caption, parse, scene_prompts
from fewstep.data.scenes.drawing import _enlarged, pictured
from fewstep.data.scenes.placing import (
    HALF,
    LARGEST,
    SAID_LARGE,
    SAID_SMALL,
    SIDE,
    SMALLEST,
    UNIFORMS,
    arranged,
    combinations,
    handwriting,
    is_held_out,
    places_of,
)
from fewstep.data.scenes.vocabulary import COLOURS, DIGITS, PHRASINGS, PLACES, RELATIONS, SIZES, said
from fewstep.errors import UserError
from fewstep.random import Key

both = pytest.mark.parametrize("number", [1, 2])

# Of the first three scenes of one digit and of two, seed 0: the rules that ``RULES`` numbers.
PINNED_CAPTIONS = {
    1: ["a two in blue", "a blue zero in the middle", "a pink seven"],
    2: [
        "a two in cyan above a three in orange",
        "a green one is right of a pink eight",
        "a cyan three above a cyan three",
    ],
}
PINNED_PICTURES = {1: "39790ab57cc7210e4e375a20dca5cf2f", 2: "4a2100b29dbac31a095477876754104d"}


def all_words(number: int) -> list[SceneWords]:
    """All that can be said of a scene."""
    if number == 1:
        spoken = itertools.product(range(10), range(8), (None, 0, 1), range(5))
        return [SceneWords((digit,), (colour,), size=size, place=place) for digit, colour, size, place in spoken]
    rows = combinations(2, "all").tolist()
    return [SceneWords((row[0], row[2]), (row[1], row[3]), relation=row[4]) for row in rows]


@both
def test_parsing_is_the_inverse_of_every_phrasing(number):
    for words in all_words(number):
        for phrasing in range(PHRASINGS[number]):
            text = caption(words, phrasing)
            assert parse(text) == said(words, phrasing), text


def test_phrasings_differ_and_say_what_they_say():
    large = SceneWords((3,), (5,), size=1, place=0)
    assert [caption(large, phrasing) for phrasing in range(PHRASINGS[1])] == [
        "a blue three",
        "a blue three at the left",
        "a large blue three",
        "a large blue three at the left",
        "at the left, a blue three",
        "a three in blue",
        "a three in blue at the left",
        "a picture of a large blue three at the left",
    ]
    two = SceneWords((7, 3), (0, 5), relation=1)
    assert [caption(two, phrasing) for phrasing in range(PHRASINGS[2])] == [
        "a red seven above a blue three",
        "a blue three below a red seven",
        "a red seven is above a blue three",
        "a blue three is below a red seven",
        "a red seven with a blue three below it",
        "a blue three with a red seven above it",
        "a seven in red above a three in blue",
        "a three in blue below a seven in red",
        "a picture of a red seven above a blue three",
        "a picture of a blue three below a red seven",
    ]


@both
def test_articles_are_right(number):
    texts = {caption(words, phrasing) for words in all_words(number) for phrasing in range(PHRASINGS[number])}
    pairs = {pair for text in texts for pair in re.findall(r"\b(an?) (\w+)", text)}
    assert ("an", "orange") in pairs
    assert ("an", "eight") in pairs
    assert ("a", "one") in pairs
    assert all(article == ("an" if word in ("orange", "eight") else "a") for article, word in pairs)


def test_capitals_spaces_and_a_full_stop_do_not_matter():
    assert parse("  A red seven above a Blue three. ") == SceneWords((7, 3), (0, 5), relation=1)


@pytest.mark.parametrize("text", ["", "a seven", "a red cat", "a red seven near a blue three", "red seven", "a red"])
def test_other_texts_ask_for_nothing(text):
    assert parse(text) is None


def test_words_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="two digits have one"):
        SceneWords((1, 2), (0, 0))
    with pytest.raises(UserError, match="two digits have one"):
        SceneWords((1,), (0,), relation=0)
    with pytest.raises(UserError, match="no phrasing 8"):
        caption(SceneWords((1,), (0,), place=0), 8)
    with pytest.raises(UserError, match="says a place, and the words have none"):
        caption(SceneWords((1,), (0,)), 1)


@both
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_caption_says_what_is_in_the_picture(number, part):
    data = Scenes(3000, number, part, "all")
    index = torch.arange(3000)
    attributes, sizes = data.attributes(index), data.arrangement(index).sizes[:, 0].tolist()
    for row, text in enumerate(data.captions(index)):
        words = parse(text)
        assert (words is None) == (text == "")
        for name, value in ({} if words is None else words.asked()).items():
            assert int(attributes[name][row]) == value
        if number == 1:
            assert ("small" not in text) or sizes[row] <= SAID_SMALL
            assert ("large" not in text) or sizes[row] >= SAID_LARGE


@both
def test_one_caption_in_ten_is_empty(number):
    texts = Scenes(6000, number).captions(torch.arange(6000))
    # Five standard deviations of a share of 6,000.
    assert abs(texts.count("") / 6000 - 0.1) < 5 * (0.09 / 6000) ** 0.5
    assert len({text for text in texts if text}) > 300 * number


@both
def test_a_scene_is_a_function_of_seed_and_index(number):
    data = Scenes(500, number)
    index = torch.tensor([3, 499, 3, 17])
    assert torch.equal(data.take(index), torch.cat([data.take(each[None]) for each in index]))
    assert torch.equal(data.take(index), data.take(torch.arange(500))[index])
    assert torch.equal(Scenes(10_000, number).take(index), data.take(index))
    assert data.captions(index)[0] == data.captions(index)[2]
    assert not torch.equal(Scenes(500, number, seed=1).take(index), data.take(index))
    assert data.take(index[:0]).shape == (0, 3, 32, 32)
    assert data.captions(index[:0]) == []


@both
def test_scenes_stay_what_they_were(number):
    """Another digest means other rules, which take another number (``RULES``)."""
    data, index = Scenes(500, number), torch.arange(3)
    assert data.captions(index) == PINNED_CAPTIONS[number]
    rounded = (data.take(torch.arange(50)) * 127.5 + 127.5).round().to(torch.uint8)
    assert hashlib.sha256(rounded.numpy().tobytes()).hexdigest()[:32] == PINNED_PICTURES[number]


def test_another_process_makes_the_same_scenes():
    code = (
        "import hashlib, torch; torch.set_num_threads(3); from fewstep.data.scenes import Scenes; "
        "data = Scenes(99, 2); print(hashlib.sha256(data.take(torch.arange(99)).numpy().tobytes()).hexdigest())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = hashlib.sha256(Scenes(99, 2).take(torch.arange(99)).numpy().tobytes()).hexdigest()
    assert told == here


def test_the_parts_share_no_handwriting():
    parts = {part: handwriting(part) for part in ("train", "test")}
    found = {part: set(indices[indices >= 0].tolist()) for part, (indices, _) in parts.items()}
    assert not found["train"] & found["test"]
    assert found["train"] | found["test"] == set(range(1797))
    assert 0.19 < len(found["test"]) / 1797 < 0.21
    for indices, counts in parts.values():
        for digit in range(10):
            own = indices[digit, : counts[digit]]
            assert bool((digit_images().labels[own] == digit).all())
            assert bool((indices[digit, counts[digit] :] == -1).all())
    # No digit is in the file twice, so that none is in both parts under two numbers.
    assert len(torch.unique(digit_images().samples.flatten(1), dim=0)) == 1797


@both
@pytest.mark.parametrize("part", ["train", "test"])
def test_scenes_are_written_by_their_parts_hand_and_show_their_digits(number, part):
    scenes = Scenes(2000, number, part).arrangement(torch.arange(2000))
    own = handwriting(part)[0]
    assert set(scenes.writings.flatten().tolist()) <= set(own.flatten().tolist()) - {-1}
    assert torch.equal(digit_images().labels[scenes.writings], scenes.digits)
    assert torch.equal(torch.unique(scenes.digits), torch.arange(10))
    assert torch.equal(torch.unique(scenes.colours), torch.arange(8))


def _triples(scenes, number: int) -> torch.Tensor:
    places = scenes.place[:, None] if number == 1 else places_of(scenes.relation)
    return is_held_out(scenes.digits, scenes.colours, places)


@both
def test_seen_scenes_never_hold_a_held_out_digit_and_held_out_ones_do(number):
    index = torch.arange(3000)
    assert not bool(_triples(Scenes(3000, number).arrangement(index), number).any())
    held_out = Scenes(3000, number, combinations="held-out").arrangement(index)
    assert bool(_triples(held_out, number).any(dim=1).all())
    share = float(
        _triples(Scenes(3000, number, combinations="all").arrangement(index), number).any(dim=1).double().mean()
    )
    assert abs(share - {1: 0.1, 2: 0.19}[number]) < 0.04


def test_a_tenth_is_held_out_evenly():
    rows = combinations(1, "held-out")
    assert len(rows) == 40
    assert [torch.bincount(column).tolist() for column in rows.unbind(1)] == [[4] * 10, [5] * 8, [8] * 5]


@both
def test_prompts_are_all_combinations_of_a_kind(number):
    held_out, seen = scene_prompts(number, True), scene_prompts(number, False)
    assert len({*held_out, *seen}) == len(held_out) + len(seen) == {1: 400, 2: 12_800}[number]
    for prompts, which in ((held_out, True), (seen, False)):
        for prompt in prompts:
            words = parse(prompt)
            places = [words.place] if number == 1 else places_of(torch.tensor([words.relation]))[0].tolist()
            tests = zip(words.digits, words.colours, places, strict=True)
            assert any(bool(is_held_out(*map(torch.tensor, test))) for test in tests) == which


@both
def test_digits_are_within_the_frame_and_large_enough(number):
    scenes = arranged(_uniforms(20_000), number, "train", "all")
    assert torch.equal(torch.unique(scenes.sizes), torch.arange(SMALLEST[number], LARGEST[number] + 1))
    assert SMALLEST[number] >= {1: 15, 2: 13}[number]
    for starts in (scenes.tops, scenes.lefts):
        assert int(starts.min()) >= 0
        assert bool((starts + scenes.sizes <= SIDE).all())


def _uniforms(count: int) -> torch.Tensor:
    """With both ends of the range of uniform numbers among them."""
    found = Key(5).uniform("scenes", count * UNIFORMS).reshape(count, UNIFORMS)
    found[:500] = torch.where(found[:500] < 0.5, 0.0, 1 - 2.0**-53)
    return found


def test_two_digits_never_overlap_and_stand_as_their_relation_says():
    scenes = arranged(_uniforms(20_000), 2, "train", "all")
    across = scenes.lefts[:, 1] - (scenes.lefts[:, 0] + scenes.sizes[:, 0])
    down = scenes.tops[:, 1] - (scenes.tops[:, 0] + scenes.sizes[:, 0])
    beside = scenes.relation == 0
    assert bool((across[beside] >= 1).all())
    assert bool((down[~beside] >= 1).all())
    # Across the line they are about level.
    assert int((scenes.tops[:, 1] - scenes.tops[:, 0])[beside].abs().max()) <= 6
    assert int((scenes.lefts[:, 1] - scenes.lefts[:, 0])[~beside].abs().max()) <= 6


def test_one_digit_stands_where_its_place_says():
    scenes = arranged(_uniforms(20_000), 1, "train", "all")
    free = SIDE - scenes.sizes[:, 0]
    left, top = scenes.lefts[:, 0] / free, scenes.tops[:, 0] / free
    for place, (near, sign) in enumerate(((left, 1), (left, -1), (top, 1), (top, -1))):
        here = near[scenes.place == place]
        assert bool(((here if sign > 0 else 1 - here) <= 1 / 6).all())
    middle = scenes.place == 4
    assert bool(((left[middle] - 0.5).abs() <= 0.21).all())
    assert bool(((top[middle] - 0.5).abs() <= 0.21).all())


def test_jitter_leaves_no_digit_in_the_mean_picture():
    """The mean picture of a prompt is far from each of its scenes: a student has a gap to close."""
    scenes = Scenes(30_000, 1, combinations="all")
    found = scenes.arrangement(torch.arange(30_000))
    chosen = (found.digits[:, 0] == 7) & (found.colours[:, 0] == 0) & (found.place == 4)
    pictures = pictured(found[chosen]) - found.tone[chosen][:, None, None, None]
    assert int(chosen.sum()) > 40
    assert float((pictures - pictures.mean(0)).square().mean() / pictures.square().mean()) > 0.3


def test_enlarging_is_torchs_bicubic():
    ink = (digit_images().samples[:20, 0] + 1) / 2
    for size in range(13, 25):
        ours = _enlarged(ink, torch.full((20,), size), torch.full((20,), 32 - size), torch.full((20,), 3))
        theirs = functional.interpolate(ink[:, None], size=(size, size), mode="bicubic")[:, 0].clamp(0, 1)
        assert torch.allclose(ours[:, 32 - size :, 3 : 3 + size], theirs, atol=2e-6)
        ours[:, 32 - size :, 3 : 3 + size] = 0
        assert not bool(ours.any())


@both
def test_pictures_are_a_tone_and_colours(number):
    data = Scenes(400, number)
    pictures, scenes = data.take(torch.arange(400)), data.arrangement(torch.arange(400))
    assert (pictures.shape, pictures.dtype) == ((400, 3, 32, 32), torch.float32)
    assert float(pictures.abs().max()) <= 1
    # Most of a picture is background, and the digit's full colour is somewhere.
    assert torch.equal(pictures.flatten(2).median(2).values, scenes.tone[:, None].expand(-1, 3))
    tints = torch.tensor(list(COLOURS.values())) / 127.5 - 1
    for which in range(number):
        wanted = tints[scenes.colours[:, which]][:, :, None, None]
        assert float((pictures - wanted).abs().amax(1).flatten(1).amin(1).max()) < 0.25


def test_colours_are_well_apart_from_one_another_and_from_every_grey():
    tints = torch.tensor(list(COLOURS.values())) / 127.5 - 1
    apart = torch.cdist(tints, tints) + 10 * torch.eye(8)
    assert len(COLOURS) == 8
    assert float(apart.min()) > 0.7
    assert float((tints - tints.mean(1, keepdim=True)).norm(dim=1).min()) > 0.7


@both
def test_attributes_have_their_values_and_names(number):
    data = Scenes(2000, number)
    attributes = data.attributes(torch.arange(2000))
    assert list(attributes) == list(data.values)
    expected = {"digit": DIGITS, "colour": COLOURS, "size": SIZES, "place": PLACES, "relation": RELATIONS}
    for name, values in attributes.items():
        assert values.dtype == torch.int64
        assert torch.equal(torch.unique(values), torch.arange(data.values[name]))
        assert data.values[name] == len(expected[name.partition("_")[0]])
    if number == 1:
        assert torch.equal(attributes["size"], (data.arrangement(torch.arange(2000)).sizes[:, 0] >= HALF).long())


def test_a_data_set_that_cannot_be_is_refused():
    for wrong in ({"digits": 3}, {"part": "all"}, {"combinations": "unseen"}):
        with pytest.raises(UserError, match=f"'{next(iter(wrong))}' is '.*', and must be one of"):
            Scenes(10, **wrong)
    with pytest.raises(UserError, match="'count' must be at least 1"):
        Scenes(0)
