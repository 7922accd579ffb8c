"""Nothing that a run did not write itself is removed or replaced; what is in its way keeps its content under another name."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from cli_kit import small_recipe

from fewstep.errors import UserError
from fewstep.files import read_tensors, write_tensors, write_text
from fewstep.ledger import NAME, keeping
from fewstep.runs import distill, evaluate, prune_checkpoints
from fewstep.training import Silent

QUICK = ("evaluation.samples=20",)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A recipe, and a finished run of it."""
    folder = tmp_path_factory.mktemp("made")
    recipe = small_recipe(folder / "small.yaml")
    return recipe, distill(recipe, QUICK, folder / "run")


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "run"))


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", ["student.safetensors", "samples/final.png", "path/manifest.json", "metrics.jsonl", "notes.txt", "recipe.yaml", ".hidden"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_somebodys_own_is_refused_before_the_first_byte(made, tmp_path, name, resume):
    mine = tmp_path / "mine"
    (mine / name).parent.mkdir(parents=True)
    (mine / name).write_text("task: distill\n")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"mine: holds '{name.partition('/')[0]}', and no run of fewstep's; nothing was written"):
        distill(made[0], QUICK, mine, resume=resume)
    assert contents(tmp_path) == before


def test_a_run_that_is_refused_leaves_nothing_that_refuses_the_next(made, tmp_path):
    for wrong in ("training.accumulate=7", "student.start=nowhere.safetensors"):
        with pytest.raises(UserError):
            distill(made[0], [*QUICK, wrong], tmp_path / "run")
    assert (distill(made[0], QUICK, tmp_path / "run") / "student.safetensors").is_file()
    with pytest.raises(UserError, match="holds a run already"):
        distill(made[0], QUICK, tmp_path / "run")


def test_a_finished_run_that_goes_on_changes_nothing(made, run):
    before = contents(run)
    distill(made[0], QUICK, run, resume=True)
    after = contents(run)
    assert {name: after[name] for name in before if name not in (NAME, "metrics.jsonl")} == {name: digest for name, digest in before.items() if name not in (NAME, "metrics.jsonl")}


@pytest.mark.parametrize("name", ["student.safetensors", "samples/final.png", "path/node-1.safetensors", "samples/directions.png"])
def test_what_somebody_put_where_a_run_writes_is_kept_under_another_name(made, run, name):
    path = run / name
    assert path.is_file()
    path.write_bytes(b"mine")
    if name.startswith("path/"):
        # The path is recorded again where the run begins anew.
        shutil.rmtree(run / "checkpoints")
    watcher = Silent()
    distill(made[0], QUICK, run, resume=True, watcher=watcher)
    aside = path.with_name(f"{path.stem}.set-aside{path.suffix}")
    assert aside.read_bytes() == b"mine"
    assert any(str(path) in said and aside.name in said for said in watcher.said)
    assert path.read_bytes() == (made[1] / name).read_bytes()


def test_a_link_in_the_way_is_kept_and_not_followed(made, run, tmp_path):
    (tmp_path / "thesis").write_bytes(b"mine")
    (run / "student.safetensors").unlink()
    (run / "student.safetensors").symlink_to(tmp_path / "thesis")
    distill(made[0], QUICK, run, resume=True, watcher=Silent())
    assert (tmp_path / "thesis").read_bytes() == b"mine"
    assert (run / "student.set-aside.safetensors").is_symlink()


def test_an_evaluation_of_somebodys_own_is_kept(run):
    (run / "evaluation.json").write_text("my notes")
    watcher = Silent()
    evaluate(run, draws=1, watcher=watcher)
    evaluate(run, draws=1, watcher=watcher)
    assert (run / "evaluation.set-aside.json").read_text() == "my notes"
    assert len([each for each in run.iterdir() if "set-aside" in each.name]) == 1
    assert sum("evaluation.set-aside.json" in said for said in watcher.said) == 1


def newest(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-????????.safetensors"), reverse=True)


def test_an_unreadable_checkpoint_is_set_aside_for_an_older_one(made, run):
    last, before = newest(run)[0], contents(run)
    last.write_bytes(b"damaged")
    watcher = Silent()
    distill(made[0], QUICK, run, resume=True, watcher=watcher)
    assert last.with_name(f"{last.stem}.unreadable.safetensors").read_bytes() == b"damaged"
    assert any("is kept as" in said and last.name in said for said in watcher.said)
    assert contents(run)["student.safetensors"] == before["student.safetensors"]


def test_a_run_without_a_readable_checkpoint_does_not_begin_anew(made, run):
    for path in newest(run):
        path.write_bytes(b"damaged")
    before = contents(run)
    for resume, sentence in ((True, "none of its 2 checkpoints can be gone on from .* nothing was changed"), (False, "holds a run already")):
        with pytest.raises(UserError, match=sentence):
            distill(made[0], QUICK, run, resume=resume)
    assert contents(run) == before


def test_another_runs_checkpoint_is_set_aside_and_not_written_over(made, run):
    last = newest(run)[0]
    tensors, state = read_tensors(last)
    write_tensors(last, tensors, {**state, "run": "f" * 16})
    theirs = last.read_bytes()
    distill(made[0], QUICK, run, resume=True, watcher=Silent())
    assert last.with_name(f"{last.stem}.another-run.safetensors").read_bytes() == theirs


def test_training_and_pruning_remove_only_their_own_checkpoints(made, run):
    checkpoints = run / "checkpoints"
    mine = [checkpoints / "step-00000001.safetensors", checkpoints / "step-00000002.safetensors.bak", checkpoints / "notes.txt", checkpoints / ".x.aside"]
    for path in mine:
        path.write_bytes(b"mine")
    (checkpoints / "step-00000003").mkdir()
    (checkpoints / "step-00000003" / "thesis.tex").write_bytes(b"mine")
    distill(made[0], [*QUICK, "training.steps=60"], run, resume=True)
    prune_checkpoints(run, 1)
    assert all(path.read_bytes() == b"mine" for path in (*mine, checkpoints / "step-00000003" / "thesis.tex"))


def test_a_file_that_was_begun_before_is_not_written_into(tmp_path, monkeypatch):
    """Were the name of the file aside foreseen, what stands there would stay as it is."""
    monkeypatch.setattr("fewstep.files.time.monotonic_ns", lambda: 7)
    monkeypatch.setattr("fewstep.files.threading.get_ident", lambda: 7)
    aside = tmp_path / f".a.{os.getpid()}-7-7.aside"
    aside.write_bytes(b"mine")
    with pytest.raises(UserError, match="could not be written"):
        write_text(tmp_path / "a", "ours")
    assert aside.read_bytes() == b"mine"


def test_a_ledger_whose_last_line_was_cut_short_goes_on(tmp_path):
    with keeping(tmp_path):
        write_text(tmp_path / "a", "one")
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-9])
    said: list[str] = []
    with keeping(tmp_path, said.append):
        write_text(tmp_path / "a", "two")
        write_text(tmp_path / "a", "three")
        write_text(tmp_path / "a", "two")
    assert said == [f"{tmp_path / 'a'}: was not written by this run; it is kept as a.set-aside."]
    assert (tmp_path / "a").read_text() == "two"
