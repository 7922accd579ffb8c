"""Samplers that are measured on their prompts, and the table in which the figures stand."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from prompt_kit import HashEncoder
from torch import Tensor

from fewstep.command.tables.evaluations import quality_table
from fewstep.condition import Classes, Conditions
from fewstep.data import read_prompts
from fewstep.data.prompts import PromptConditions, embed
from fewstep.data.scenes import Scenes, scene_prompts
from fewstep.metrics.prompted import prompt_accuracy, prompt_diversity, protocol
from fewstep.metrics.quality import Evaluator, labels_of
from fewstep.networks import ImageReader
from fewstep.random import Key
from fewstep.runs.measured_models import MeasuredModel, measured_prompts, work_off
from fewstep.runs.sampler import Sampler
from fewstep.training import Silent

TEXTS = scene_prompts(1, False)[:60]


@dataclass(frozen=True, eq=False)
class Painter(Sampler):
    """Pictures of real scenes, ``spread`` from grey: which, the noise and the prompt say."""

    conditions: Conditions = field(default_factory=Classes)
    spread: float = 1.0
    asked: list[Tensor] = field(default_factory=list)
    data = Scenes(300, 1, "test", "all")
    shape, usual_steps = (3, 32, 32), 1

    @property
    def owner(self) -> Conditions:
        return self.conditions

    def draw(self, key: Key, n: int, labels: Tensor | None, steps: int, start: int = 0) -> Tensor:
        assert labels is not None
        self.asked.append(labels)
        return self.spread * self.data.take((7 * labels + key.integers("scene", n, 300, start)) % 300)


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> PromptConditions:
    folder, encoder = tmp_path_factory.mktemp("prompts"), HashEncoder()
    texts = read_prompts(TEXTS)
    return PromptConditions(embed(texts, lambda: encoder, encoder.identity, folder, too_long="cut", say=lambda _: None))


@pytest.fixture(scope="module")
def reader() -> ImageReader:
    torch.manual_seed(0)
    return ImageReader(dict(Scenes(1, 1).values), width=8, features=12).requires_grad_(False)


def evaluator_of(reader: ImageReader, owner: Conditions) -> Evaluator:
    return Evaluator(None, reader.features, None, 120, 0, owner.count, readings=reader)


def test_prompts_own_their_texts_and_their_identity(owner):
    assert owner.texts == tuple(TEXTS)
    sized = PromptConditions(owner.prompts, {"time_ids": torch.zeros(1, 6)})
    other = PromptConditions(owner.prompts, {"time_ids": torch.ones(1, 6)})
    assert len({owner.identity, sized.identity, other.identity, Classes(3).identity, Classes(4).identity}) == 5
    assert PromptConditions(owner.prompts).identity == owner.identity
    assert Classes(3).texts == ()


def test_conditions_are_asked_for_in_equal_parts_where_the_data_has_no_labels(owner):
    data = Scenes(50, 1)
    assert data.labels is None
    numbers = labels_of(data, 120, owner.count)
    assert torch.bincount(numbers, minlength=60).tolist() == [2] * 60
    assert labels_of(data, 120, 0) is None


def test_accuracy_is_of_the_pictures_and_diversity_of_ten_seeds_of_fifty_prompts(owner, reader):
    sampler, evaluator = Painter(-1.0, 1.0, owner), evaluator_of(reader, owner)
    pictures = sampler.draw(Key(0, "evaluation", 0), 120, evaluator.labels, 1)
    found = measured_prompts(evaluator, sampler, 1, pictures, evaluator.labels)
    prompts = [TEXTS[number] for number in evaluator.labels.tolist()]
    assert found.accuracy == prompt_accuracy(reader, pictures, prompts)
    assert torch.equal(sampler.asked[-1], protocol(60))
    several = sampler.draw(Key(0, "prompt-diversity"), 500, protocol(60), 1)
    texts = [TEXTS[number] for number in protocol(60).tolist()]
    assert found.diversity == prompt_diversity(reader.features, several, texts)
    assert len(found.diversity.by_prompt) == 50
    assert not found.left_out
    assert measured_prompts(evaluator, Painter(-1.0, 1.0, Classes(3)), 1, pictures, evaluator.labels) is None
    assert measured_prompts(evaluator, sampler, 1, pictures, None) is None


def test_figures_stand_beside_the_teachers_at_its_most_steps(owner, reader):
    teacher, student = Painter(-1.0, 1.0, owner), Painter(-1.0, 1.0, owner, 0.5)
    result = {"teacher": {}, "student": {}, "reference": {"samples": 120, "draws": 1}, "left_out": {}}
    jobs = [
        MeasuredModel("teacher", student, 1, result["teacher"]),
        MeasuredModel("teacher", teacher, 25, result["teacher"]),
    ]
    jobs.append(MeasuredModel("student", student, 1, result["student"]))
    work_off(jobs, evaluator_of(reader, owner), 1, Silent())
    most, one, ours = result["teacher"]["25"], result["teacher"]["1"], result["student"]["1"]
    assert most["prompt_diversity_ratio"] == 1.0
    assert ours["prompt_diversity_ratio"] == ours["prompt_diversity"] / most["prompt_diversity"]
    assert ours["prompt_diversity_ratio"] == pytest.approx(one["prompt_diversity_ratio"])
    assert ours["prompt_diversity_ratio"] < 1
    # What was drawn for diversity is not counted.
    assert ours["nfe"] == 0.0
    table = quality_table(result).splitlines()
    assert all(name in table[0] for name in ("prompt accuracy", "diversity a prompt"))
    assert not any(name in table[0] for name in ("class accuracy", "recall"))
    (line,) = [each for each in table if each.startswith("student, 1 step")]
    assert f"{ours['prompt_accuracy']['all']:.1%}" in line
    assert f"{ours['prompt_diversity_ratio']:.3f}" in line
    assert any("over the teacher's at its most steps" in each for each in table)
