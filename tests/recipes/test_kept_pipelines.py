"""A pipeline that is handed over is kept in the run's folder; a start that was killed meanwhile
leaves nothing that refuses the next one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_combinations import without_syncing
from test_text_recipes import Leaves, written

from fewstep.errors import UserError
from fewstep.runs import distill
from fewstep.system.ledger import noted_in
from fewstep.zoo.pipelines import load_pipeline
from pipeline_kit import pipeline

__all__ = ["without_syncing"]
pytestmark = pytest.mark.usefixtures("without_syncing")


class Killed(BaseException):
    """Stands for a kill: nothing is cleared away after it."""


def while_saving(patch: pytest.MonkeyPatch, pipe: Any) -> None:
    save = type(pipe).save_pretrained

    def saved(self: Any, folder: Any, **said: Any) -> None:
        save(self, folder, **said)
        raise Killed

    patch.setattr(type(pipe), "save_pretrained", saved)


def at_the_third_file(patch: pytest.MonkeyPatch, pipe: Any) -> None:
    replace, seen = os.replace, []

    def replaced(source: Any, target: Any) -> None:
        if "teacher" in Path(target).parts:
            seen.append(target)
            if len(seen) == 3:
                raise Killed
        replace(source, target)

    patch.setattr(os, "replace", replaced)


@pytest.mark.parametrize("kill", [while_saving, at_the_third_file])
def test_a_start_goes_on_after_one_that_was_killed_while_it_kept_the_teacher(
    kill: Callable[[pytest.MonkeyPatch, Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    pipe = pipeline("sd15", tmp_path / "tokenizers")
    file, run = written(tmp_path / "r.yaml", tmp_path / "none"), tmp_path / "run"
    # Nobody's that the ledger knows, by a name as ours are.
    foreign = run / ".teacher.1-2-3.aside"
    foreign.mkdir(parents=True)
    (foreign / "mine.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        kill(patch, pipe)
        with pytest.raises(Killed):
            distill(file, out=run, teacher=pipe)
    left = [path for path in run.glob(".teacher*") if path != foreign]
    assert [(path / "unet" / "config.json").is_file() for path in left] == [True]
    assert not (run / "recipe.yaml").exists()
    with pytest.raises(KeyboardInterrupt):
        distill(file, out=run, teacher=pipe, listeners=[Leaves(2)])
    assert list(run.glob(".teacher*")) == [foreign]
    assert (foreign / "mine.txt").read_text() == "mine"
    kept, whole = load_pipeline(run / "teacher"), tmp_path / "whole"
    pipe.save_pretrained(whole)
    assert kept.encoder.identity == load_pipeline(whole).encoder.identity
    for path in (each for each in whole.rglob("*") if each.is_file()):
        assert (run / "teacher" / path.relative_to(whole)).read_bytes() == path.read_bytes()


def test_a_pipeline_is_kept_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    pipe = pipeline("sd15", tmp_path / "tokenizers")
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        distill(written(tmp_path / "r.yaml", tmp_path / "none"), out=run, teacher=pipe, listeners=[Leaves(1)])
    assert not list(run.glob(".teacher*"))
    assert {name for name in noted_in(run) if "teacher" in name and not name.startswith(".")} == {"teacher"}
    assert "begun" not in {path.name for path in run.rglob("*")}


def test_a_teacher_that_cannot_be_kept_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("sd15", tmp_path / "tokenizers")

    def full(_self: Any, _folder: Any, **_said: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(pipe), "save_pretrained", full)
    with pytest.raises(UserError, match="teacher: could not be written: the disk is full"):
        distill(written(tmp_path / "r.yaml", tmp_path / "none"), out=tmp_path / "run", teacher=pipe)
    assert not list((tmp_path / "run").glob(".teacher*"))
