"""Moments that ship: made by the command that they name, and told from those of another teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_kit import imported, started

from fewstep.metrics import FeatureStatistics, Reference, load_reference, save_reference

SET = "evaluation={features: {kind: digits-features}, teacher_steps: [2], reference: {kind: teacher, samples: 300}}"
TAKES = ("digits-diff-instruct", "--set", SET, "--samples", "150")


def test_moments_are_made_and_samples_drawn_again_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("--moments", str(tmp_path / "moments"), "--results", str(tmp_path / "results"))
    out = started("teacher_moments", *TAKES, "--write", *where)
    (file,) = (tmp_path / "moments").iterdir()
    stored = load_reference(file)
    assert stored.statistics.count == 300
    assert "--write" in stored.command
    assert str(tmp_path) not in stored.command
    for said in (stored.command, "300 samples", "150 samples"):
        assert said in out
    result = tmp_path / "results" / "teacher-moments-digits-diff-instruct.json"
    assert json.loads(result.read_text(encoding="utf-8"))["agree"]

    # The same file of a teacher whose features are another's: a shift of a few sampling errors.
    mean = stored.statistics.mean + 2 * stored.statistics.covariance.diagonal().sqrt() / 150**0.5 * 4
    other = FeatureStatistics(mean, stored.statistics.covariance, 300)
    save_reference(file, Reference(other, stored.space, made=stored.made, command=stored.command))
    monkeypatch.setattr("sys.argv", ["teacher_moments.py", *TAKES, *where])
    with pytest.raises(SystemExit) as ended:
        imported("teacher_moments").main()
    assert ended.value.code == 1
    assert not json.loads(result.read_text(encoding="utf-8"))["agree"]

    for wrong, sentence in (
        (Reference(other, stored.space, made={"samples": 3}), "holds the moments of other samples"),
        (None, "there is no such file"),
    ):
        file.unlink()
        if wrong is not None:
            save_reference(file, wrong)
        with pytest.raises(SystemExit) as ended:
            imported("teacher_moments").main()
        assert sentence in str(ended.value.code)


def test_a_recipe_without_such_a_reference_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["teacher_moments.py", "digits-diff-instruct"])
    with pytest.raises(SystemExit) as ended:
        imported("teacher_moments").main()
    assert "has no 'evaluation.reference'; add --set" in str(ended.value.code)
