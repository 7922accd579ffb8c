"""How many times sooner runs reach fixed levels, beside what the paper says of such a pair."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fewstep.command.cli import app
from fewstep.errors import UserError
from fewstep.recipes import load_recipe
from fewstep.recipes.reading.source import shipped_text
from fewstep.runs import compare
from fewstep.runs.speed import DISBACK_SPEED_UPS, MULTIPLES, published_speed_up, speed_ups


@dataclass(frozen=True)
class Line:
    """A run whose distance falls by 1 a step from ``first`` down to ``level``, each step of
    ``cost`` evaluations.
    """

    first: float
    level: float
    cost: int

    def reaches(self, level: float) -> tuple[int, int] | None:
        step = max(0, round(self.first - level))
        return (step, step * self.cost) if level >= self.level else None


def write_run(folder: Path, recipe: str, fd: list[float], cost: int) -> Path:
    """A folder as a run leaves it, measured every 1,000 steps."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(shipped_text(recipe))
    lines = [
        {"step": 1000 * i, "evaluations": 1000 * i * cost, "probe": "evaluation", "fd": value}
        for i, value in enumerate(fd)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_factor_is_of_steps_and_of_evaluations() -> None:
    slow, fast = Line(100, 20, 10), Line(60, 10, 20)
    (at,) = speed_ups(fast, slow, [50.0])
    assert (at.level, at.steps, at.evaluations) == (50.0, 5.0, 2.5)
    assert [each.level for each in speed_ups(fast, slow)] == pytest.approx([20 * multiple for multiple in MULTIPLES])
    # A level that one of them never reaches, or stands at from the start, has no factor.
    assert [(each.steps, each.evaluations) for each in speed_ups(fast, slow, [15.0, 200.0])] == [(None, None)] * 2
    assert speed_ups(slow, fast, [50.0])[0].steps == pytest.approx(0.2)


@pytest.mark.parametrize(("data", "factor"), [("ffhq64", 1.97), ("cifar10", 5.67), ("imagenet64", 1.79)])
def test_the_papers_factor_is_of_disback_over_the_same_without_its_path(data: str, factor: float) -> None:
    disback, alone = load_recipe(f"{data}-disback"), load_recipe(f"{data}-diff-instruct")
    assert published_speed_up(disback, alone) == factor == DISBACK_SPEED_UPS[data]
    assert published_speed_up(alone, disback) is None
    assert published_speed_up(disback, disback) is None


def test_the_paper_speaks_of_no_other_pairs() -> None:
    for one, other in (
        ("afhqv2-64-disback", "afhqv2-64-diff-instruct"),
        ("ffhq64-fastgan-disback", "ffhq64-fastgan-diff-instruct"),
        ("ffhq64-disback", "cifar10-diff-instruct"),
    ):
        assert published_speed_up(load_recipe(one), load_recipe(other)) is None
    assert published_speed_up(load_recipe("digits-disback"), load_recipe("digits-teacher")) is None


def test_recipes_of_the_paper_measure_often_enough_to_show_its_factors() -> None:
    """At the factor 1.97 a level that the slower run reaches at its end is reached by the faster at
    a step between two of some fifty measurements.
    """
    for data in DISBACK_SPEED_UPS:
        for arm in ("disback", "diff-instruct"):
            recipe = load_recipe(f"{data}-{arm}")
            assert recipe.training.steps // recipe.evaluation.every >= 50


def test_the_documentation_has_the_same_factors() -> None:
    page = (Path(__file__).parents[2] / "docs" / "published.md").read_text(encoding="utf-8")
    assert sorted(float(found) for found in re.findall(r"\| ([\d.]+) times \|", page)) == sorted(
        DISBACK_SPEED_UPS.values()
    )


def test_compare_prints_the_speed_up_beside_the_papers(tmp_path: Path) -> None:
    one = write_run(tmp_path / "disback", "ffhq64-disback", [100.0, 40.0, 20.0, 15.0, 12.0, 11.0, 11.0, 11.0, 11.0], 8)
    other = write_run(
        tmp_path / "alone", "ffhq64-diff-instruct", [100.0, 70.0, 50.0, 40.0, 20.0, 15.0, 13.0, 12.5, 12.5], 8
    )
    ended = CliRunner().invoke(
        app,
        [
            "compare",
            str(one),
            str(other),
            "--level",
            "40",
            "--level",
            "20",
            "--level",
            "1",
            "--out",
            str(tmp_path / "plot.png"),
        ],
    )
    assert ended.exit_code == 0, ended.output
    lines = ended.stdout.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith(f"{one} than {other}")]
    assert "the paper's Fig. 1: 1.97 times, in iterations" in lines[start]
    assert [line.split() for line in lines[start + 1 : start + 3]] == [
        ["40", "3.00", "x", "3.00", "x"],
        ["20", "2.00", "x", "2.00", "x"],
    ]
    assert not any(line.startswith(f"{other} than {one}") for line in lines)
    found = compare([one, other]).as_json()
    assert found[str(one)]["published"] == {str(other): 1.97}
    assert [each["level"] for each in found[str(one)]["speed_up"][str(other)]] == pytest.approx(
        [12.5 * multiple for multiple in MULTIPLES]
    )
    with pytest.raises(UserError, match="--level: a Frechet distance is above 0"):
        compare([one, other], [0.0])
