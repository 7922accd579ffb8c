"""The worst samples of a student: which they are, and that they are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fewstep.data import InMemory
from fewstep.errors import UserError
from fewstep.metrics.manifold import farthest
from fewstep.random import Key
from fewstep.report import write_run_report
from fewstep.runs import RunFolder, distill, evaluate
from fewstep.runs.pictures.gallery import ROWS, SHOWN, write_worst
from fewstep.runs.sampler import Sampler, StudentSampler
from fewstep.schedule import KarrasVE
from fewstep.states import Prior


def test_the_farthest_are_those_with_the_most_distant_nearest_neighbour() -> None:
    real = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    generated = torch.tensor([[0.0, 1.0], [5.0, 0.0], [10.0, 0.0], [5.0, 12.0], [0.0, -1.0]])
    found = farthest(real, generated, 4)
    assert found.indices.tolist() == [3, 1, 0, 4]
    assert found.distances.tolist() == [13.0, 5.0, 1.0, 1.0]
    assert found.usual == 1.0
    assert farthest(real, generated, 9).indices.tolist() == [3, 1, 0, 4, 2]


def test_it_does_not_depend_on_how_many_are_compared_at_a_time() -> None:
    real, generated = (torch.randn(count, 3, generator=torch.Generator().manual_seed(count)) for count in (50, 1300))
    found = farthest(real, generated, 5)
    nearest = (generated[:, None].double() - real.double()).norm(dim=2).min(dim=1).values
    assert found.indices.tolist() == torch.argsort(nearest, descending=True)[:5].tolist()


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(UserError, match="need at least one sample"):
        farthest(torch.zeros(0, 2), torch.zeros(3, 2), 1)
    with pytest.raises(UserError, match="not finite"):
        farthest(torch.zeros(1, 2), torch.tensor([[float("nan"), 0.0]]), 1)


class Spoilt(torch.nn.Module):
    """A generator of grey images, of which sample 7 is white."""

    def forward(self, z: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
        images = torch.zeros(len(z), 1, 8, 8)
        images[7] = 1.0
        return images


def test_a_spoilt_sample_is_shown_first(tmp_path: Path) -> None:
    student = StudentSampler(-1.0, 1.0, Spoilt(), Prior(KarrasVE(), (1, 8, 8), 1.0, 1.0))
    data = InMemory(torch.zeros(30, 1, 8, 8), None, 0)
    found = write_worst(RunFolder(tmp_path), student, data, lambda x: x.flatten(1), 0, lambda _: None)
    assert found["indices"][:2] == [7, 507]
    assert found["distances"][:3] == [8.0, 8.0, 0.0]
    assert (len(found["indices"]), found["samples"], found["median"]) == (SHOWN, ROWS, 0.0)
    from PIL import Image

    picture = Image.open(tmp_path / "samples" / "worst.png")
    assert picture.size == (10 * 34 + 2, 4 * 34 + 2)
    assert [picture.getpixel((18 + 34 * i, 18)) for i in (0, 1, 2)] == [255, 255, 128]


@pytest.mark.parametrize("recipe", ["digits-diff-instruct", "mixture2d-diff-instruct"])
def test_evaluate_writes_them_and_the_report_shows_them(recipe: str, tmp_path: Path) -> None:
    small = ["training.steps=2", "training.batch=8", "evaluation.samples=200", "training.health_every=1000"]
    folder = distill(recipe, small, tmp_path / "run")
    found = evaluate(folder, teacher_steps=[1], draws=1)["worst"]
    assert json.loads((folder / "evaluation.json").read_text())["worst"] == found
    assert found["distances"] == sorted(found["distances"], reverse=True)
    assert found["distances"][-1] > found["median"] > 0
    assert (found["classes"] is None) == (recipe == "mixture2d-diff-instruct")
    page = write_run_report(folder).read_text()
    assert "farthest from all data in feature space" in page


def test_they_are_the_samples_of_their_place(tmp_path: Path) -> None:
    folder = distill(
        "mixture2d-diff-instruct", ["training.steps=2", "training.batch=8", "evaluation.samples=200"], tmp_path / "run"
    )
    from fewstep.recipes.building.parts import build_evaluator
    from fewstep.runs import load

    recipe, student = RunFolder(folder).read_distill_recipe(), load(folder)
    evaluator = build_evaluator(recipe.evaluation, recipe.data.open())
    found = write_worst(RunFolder(folder), student, evaluator.data, evaluator.features, 5, lambda _: None)
    drawn: Sampler = student
    samples = drawn.draw(Key(5, "worst"), ROWS, None, 1).clamp(student.low, student.high)
    features = evaluator.features(samples[found["indices"][:1]])
    real = evaluator.features(recipe.data.open().take(torch.arange(0, 10_000, 2)))
    assert float((real.double() - features.double()).norm(dim=1).min()) == pytest.approx(
        found["distances"][0], rel=1e-6
    )
