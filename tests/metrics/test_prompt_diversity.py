"""Diversity a prompt: closed forms, and what does not matter to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fewstep.data.scenes import Scenes
from fewstep.errors import UserError
from fewstep.metrics import class_diversity
from fewstep.metrics.prompted import PromptDiversity, PromptedMeasures, prompt_accuracy, prompt_diversity, protocol
from fewstep.networks import ImageReader
from fewstep.random import Key

NAMES = [f"prompt {number}" for number in range(50)]


def plain(pictures: Tensor) -> Tensor:
    return pictures.flatten(1)


def asked(numbers: Tensor) -> list[str]:
    return [NAMES[number] for number in numbers.tolist()]


@pytest.mark.parametrize("d", [1, 2, 7, 64])
@pytest.mark.parametrize("s", [0.3, 2.0])
def test_of_gaussian_features_it_has_a_closed_form(d, s):
    """Also around a mean of each prompt's own, which plays no part."""
    seeds, prompts = 40, 50
    noise = Key(0, "diversity").normal("features", (prompts * seeds, d)).double()
    numbers = protocol(prompts, prompts, seeds)
    means = 10 * Key(1, "diversity").normal("means", (prompts, d)).double()
    found = prompt_diversity(plain, means[numbers] + s * noise, asked(numbers))
    expected = 2 * s * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    # The distance of a pair has the variance 2 d s^2 - expected^2; the mean over the pairs of n
    # has at most twice 2 / n of it (half for pairs that share a picture).
    deviation = math.sqrt((2 * d * s**2 - expected**2) * 2 / seeds / prompts)
    assert abs(found.mean - expected) < 5 * deviation
    assert expected <= math.sqrt(2 * d) * s


def test_the_mean_square_of_the_distances_is_twice_the_variance():
    """E |x - y|^2 = 2 d s^2: what the distance itself is bounded by (Jensen)."""
    d, s, seeds = 5, 0.7, 400
    features = s * Key(0, "diversity").normal("features", (seeds, d)).double()
    squares = torch.cdist(features, features).square().sum() / (seeds * (seeds - 1))
    assert float(squares) == pytest.approx(2 * d * s**2, rel=5 * math.sqrt(4 / seeds / d))
    assert prompt_diversity(plain, features, ["a"] * seeds).mean < math.sqrt(float(squares))


def test_identical_pictures_have_none():
    pictures = Key(0, "diversity").normal("features", (5, 3, 4, 4)).repeat_interleave(10, 0)
    found = prompt_diversity(plain, pictures, asked(torch.arange(5).repeat_interleave(10)))
    assert set(found.by_prompt.values()) == {0.0}
    with pytest.raises(UserError, match="are all equal in feature space"):
        found.over(found)


def test_the_order_of_the_pictures_does_not_matter():
    pictures, numbers = Key(0, "diversity").normal("features", (120, 6)), torch.arange(120) % 7
    found = prompt_diversity(plain, pictures, asked(numbers))
    order = Key(3, "diversity").permutation("order", 120)
    again = prompt_diversity(plain, pictures[order], asked(numbers[order]))
    assert again.by_prompt == pytest.approx(dict(found.by_prompt), rel=1e-12)


def test_neither_blocks_of_pictures_nor_of_pairs_change_it(monkeypatch):
    pictures, numbers = Key(0, "diversity").normal("features", (2300, 4)), torch.arange(2300) % 2
    sizes: list[int] = []

    def extract(block: Tensor) -> Tensor:
        sizes.append(len(block))
        return block.double().cumsum(1)

    whole = prompt_diversity(extract, pictures, asked(numbers))
    assert len(sizes) > 1
    monkeypatch.setattr("fewstep.metrics.diversity.BLOCK", 100_000)
    assert prompt_diversity(extract, pictures, asked(numbers)).by_prompt == pytest.approx(
        dict(whole.by_prompt), rel=1e-12
    )
    apart = [pictures[number::2] for number in (0, 1)]
    each = [prompt_diversity(extract, part, [NAMES[number]] * 1150) for number, part in enumerate(apart)]
    assert {**each[0].by_prompt, **each[1].by_prompt} == pytest.approx(dict(whole.by_prompt), rel=1e-12)


def test_a_class_is_a_prompt_bit_for_bit():
    features, numbers = Key(0, "diversity").normal("features", (90, 6)), torch.arange(90) % 7
    assert prompt_diversity(plain, features, asked(numbers)).mean == class_diversity(features, numbers)


def test_prompts_count_alike_and_a_prompt_of_one_picture_not_at_all():
    pictures = torch.tensor([[0.0], [1.0], [0.0], [3.0], [3.0], [0.0], [9.0]])
    found = prompt_diversity(plain, pictures, ["a", "a", "b", "b", "b", "b", "c"])
    assert found.by_prompt == {"a": 1.0, "b": pytest.approx(3.0 * 4 / 6)}
    assert found.mean == pytest.approx(1.5)


def test_a_ratio_is_over_the_prompts_that_both_have():
    ours, theirs = PromptDiversity({"a": 1.0, "b": 5.0}), PromptDiversity({"a": 2.0, "c": 7.0})
    assert ours.over(theirs) == 0.5
    assert ours.over(ours) == 1.0
    with pytest.raises(UserError, match="share no prompt"):
        ours.over(PromptDiversity({"d": 1.0}))


def test_the_protocol_takes_ten_seeds_of_fifty_prompts_evenly_spaced():
    numbers = protocol(1000)
    assert numbers.tolist() == [20 * prompt for prompt in range(50) for _ in range(10)]
    assert protocol(3).tolist() == [0] * 10 + [1] * 10 + [2] * 10


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="3 pictures and 1 prompts"):
        prompt_diversity(plain, torch.zeros(3, 2), ["a"])
    with pytest.raises(UserError, match="no prompt has two pictures"):
        prompt_diversity(plain, torch.zeros(2, 2), ["a", "b"])
    with pytest.raises(UserError, match="not finite"):
        prompt_diversity(plain, torch.full((2, 2), torch.nan), ["a", "a"])


def test_one_call_gives_accuracy_and_diversity_and_says_what_is_left_out():
    data = Scenes(30, 1, "test", "all")
    torch.manual_seed(0)
    reader = ImageReader(dict(data.values), width=8, features=12)
    pictures, prompts = data.take(torch.arange(30)), ["a red seven", "a blue three", "a green one"] * 10
    found = PromptedMeasures(reader.features, reader)(pictures, prompts)
    with torch.no_grad():
        assert found.accuracy == prompt_accuracy(reader, pictures, prompts)
        assert found.diversity == prompt_diversity(reader.features, pictures, prompts)
    assert not found.left_out
    assert found.beside() == {"prompt_accuracy": found.accuracy, "prompt_diversity": found.diversity.mean}
    assert found.beside(found)["prompt_diversity_ratio"] == 1.0
    unread = PromptedMeasures(reader.features)(pictures, prompts)
    assert (unread.accuracy, unread.diversity) == (None, found.diversity)
    assert unread.left_out == {"prompt_accuracy": "the feature space has no reader"}
    strange = PromptedMeasures(reader.features, reader)(pictures, [f"{number}" for number in range(30)])
    assert (strange.accuracy, strange.diversity) == (None, None)
    assert set(strange.left_out) == {"prompt_accuracy", "prompt_diversity"}
    assert strange.beside(found) == {}
    alike = PromptedMeasures(plain)(pictures[:1].expand(30, -1, -1, -1), prompts)
    assert alike.beside(alike)["prompt_diversity"] == 0.0
    assert "prompt_diversity_ratio" not in alike.beside(alike)
