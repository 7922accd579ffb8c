"""Nothing that a run did not write itself is removed or replaced; what is in its way keeps its
content under another name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from cli_kit import called, small_recipe
from PIL import Image

from fewstep.data import random_mixture
from fewstep.doctor.examine import examine, has_problem
from fewstep.errors import UserError
from fewstep.report import write_run_report
from fewstep.runs import distill, evaluate, prune_checkpoints
from fewstep.schedule import KarrasVE
from fewstep.states import write_pairs
from fewstep.system.files import read_tensors, write_tensors, write_text
from fewstep.system.ledger import NAME, keeping
from fewstep.targets import DegradationPath
from fewstep.training import Silent
from fewstep.training.saving.run_checkpoints import Checkpoints

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


def cut_log(run: Path, lines: int) -> None:
    log = run / "metrics.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:lines]))


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    "name",
    [
        "student.safetensors",
        "samples/final.png",
        "path/manifest.json",
        "metrics.jsonl",
        "notes.txt",
        "recipe.yaml",
        ".hidden",
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_somebodys_own_is_refused_before_the_first_byte(made, tmp_path, name, resume):
    mine = tmp_path / "mine"
    (mine / name).parent.mkdir(parents=True)
    (mine / name).write_text("task: distill\n")
    before = contents(tmp_path)
    with pytest.raises(
        UserError, match=rf"mine: holds '{name.partition('/')[0]}', and no run of fewstep's; nothing was written"
    ):
        distill(made[0], QUICK, mine, resume=resume)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_looks_like_a_run_and_is_none_is_refused(made, tmp_path, resume):
    """Of another tool: the names are ours, and what is in the files is not."""
    mine = tmp_path / "mine"
    (mine / "checkpoints").mkdir(parents=True)
    shutil.copy(made[0], mine / "recipe.yaml")
    (mine / "metrics.jsonl").write_text('{"epoch": 1, "loss": 0.5}\n')
    for name in ("student.safetensors", NAME, "checkpoints/last.ckpt", "checkpoints/step-00000010.safetensors"):
        (mine / name).write_text(f"mine: {name}")
    before = contents(tmp_path)
    with pytest.raises(
        UserError,
        match=r"mine: holds 'checkpoints', 'metrics\.jsonl', 'recipe\.yaml' and 2 more, and no run of fewstep's",
    ):
        distill(mine / "recipe.yaml", QUICK, mine, resume=resume)
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
    assert {name: after[name] for name in before if name not in (NAME, "metrics.jsonl")} == {
        name: digest for name, digest in before.items() if name not in (NAME, "metrics.jsonl")
    }


@pytest.mark.parametrize(
    "name", ["student.safetensors", "samples/final.png", "path/node-1.safetensors", "samples/directions.png"]
)
def test_what_somebody_put_where_a_run_writes_is_kept_under_another_name(made, run, name):
    path = run / name
    assert path.is_file()
    path.write_bytes(b"mine")
    if name.startswith("path/"):
        # The path is recorded again where the run begins anew: a run that was killed before its
        # first checkpoint.
        shutil.rmtree(run / "checkpoints")
        (run / "student.safetensors").unlink()
        cut_log(run, 3)
    watcher = Silent()
    distill(made[0], QUICK, run, resume=True, listeners=[watcher])
    aside = path.with_name(f"{path.stem}.set-aside{path.suffix}")
    assert aside.read_bytes() == b"mine"
    assert any(str(path) in said and aside.name in said for said in watcher.said)
    assert path.read_bytes() == (made[1] / name).read_bytes()


def test_a_finished_model_is_kept_when_another_takes_its_place(made, run):
    before = (run / "student.safetensors").read_bytes()
    watcher = Silent()
    distill(made[0], [*QUICK, "training.steps=44"], run, resume=True, listeners=[watcher])
    assert (run / "student.earlier.safetensors").read_bytes() == before
    assert (run / "student.safetensors").read_bytes() != before
    assert any("student.earlier.safetensors" in said for said in watcher.said)


@pytest.mark.parametrize("name", ["student.safetensors", "samples/final.png"])
def test_in_a_run_of_an_earlier_version_what_differs_is_kept(made, run, name):
    """It has no ledger by which to know its files."""
    (run / NAME).unlink()
    (run / name).write_bytes(b"mine")
    distill(made[0], QUICK, run, resume=True, listeners=[Silent()])
    path = run / name
    assert path.with_name(f"{path.stem}.set-aside{path.suffix}").read_bytes() == b"mine"
    assert [each.name for each in run.rglob("*set-aside*")] == [f"{path.stem}.set-aside{path.suffix}"]


@pytest.mark.parametrize("way", ["gone", "empty", "not mounted"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(made, run, way, finished):
    shutil.rmtree(run / "checkpoints")
    if not finished:
        (run / "student.safetensors").unlink()
    if way == "empty":
        (run / "checkpoints").mkdir()
    if way == "not mounted":
        (run / "checkpoints").symlink_to(run.parent / "nowhere")
    before = contents(run)
    with pytest.raises(
        UserError,
        match=r"checkpoints: cannot be listed|is finished, and .*/checkpoints holds no checkpoint|checkpoints: "
        r"holds no checkpoint, though the run made 40 steps",
    ):
        distill(made[0], QUICK, run, resume=True)
    assert contents(run) == before


def test_only_a_logs_own_lines_are_cut(made, run):
    """A run goes back to its newest checkpoint, and what was written into the log besides is
    kept.
    """
    newest(run)[0].unlink()
    log = run / "metrics.jsonl"
    mine = log.read_bytes() + b"my notes\n"
    log.write_bytes(mine)
    watcher = Silent()
    distill(made[0], QUICK, run, resume=True, listeners=[watcher])
    assert (run / "metrics.set-aside.jsonl").read_bytes() == mine
    assert any("is kept as metrics.set-aside.jsonl" in said for said in watcher.said)
    assert b"my notes" not in log.read_bytes()


def test_a_link_in_the_way_is_kept_and_not_followed(made, run, tmp_path):
    (tmp_path / "thesis").write_bytes(b"mine")
    (run / "student.safetensors").unlink()
    (run / "student.safetensors").symlink_to(tmp_path / "thesis")
    distill(made[0], QUICK, run, resume=True, listeners=[Silent()])
    assert (tmp_path / "thesis").read_bytes() == b"mine"
    assert (run / "student.set-aside.safetensors").is_symlink()


def test_an_evaluation_of_somebodys_own_is_kept(run):
    (run / "evaluation.json").write_text("my notes")
    watcher = Silent()
    evaluate(run, draws=1, listeners=[watcher])
    evaluate(run, draws=1, listeners=[watcher])
    assert (run / "evaluation.set-aside.json").read_text() == "my notes"
    assert len([each for each in run.iterdir() if "set-aside" in each.name]) == 1
    assert sum("evaluation.set-aside.json" in said for said in watcher.said) == 1


def newest(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-????????.safetensors"), reverse=True)


def test_an_unreadable_checkpoint_is_set_aside_for_an_older_one(made, run):
    last, before = newest(run)[0], contents(run)
    last.write_bytes(b"damaged")
    watcher = Silent()
    distill(made[0], QUICK, run, resume=True, listeners=[watcher])
    assert last.with_name(f"{last.stem}.unreadable.safetensors").read_bytes() == b"damaged"
    assert any("is kept as" in said and last.name in said for said in watcher.said)
    assert contents(run)["student.safetensors"] == before["student.safetensors"]


def test_a_run_without_a_readable_checkpoint_does_not_begin_anew(made, run):
    for path in newest(run):
        path.write_bytes(b"damaged")
    before = contents(run)
    for resume, sentence in (
        (True, "none of its 2 checkpoints can be gone on from .* nothing was changed"),
        (False, "holds a run already"),
    ):
        with pytest.raises(UserError, match=sentence):
            distill(made[0], QUICK, run, resume=resume)
    assert contents(run) == before


def test_another_runs_checkpoint_is_set_aside_and_not_written_over(made, run):
    last = newest(run)[0]
    tensors, state = read_tensors(last)
    write_tensors(last, tensors, {**state, "run": "f" * 16})
    theirs = last.read_bytes()
    distill(made[0], QUICK, run, resume=True, listeners=[Silent()])
    assert last.with_name(f"{last.stem}.another-run.safetensors").read_bytes() == theirs


def test_a_link_to_a_checkpoint_that_is_not_there_is_set_aside(made, run):
    last = newest(run)[0]
    last.unlink()
    last.symlink_to(run.parent / "nowhere")
    distill(made[0], QUICK, run, resume=True, listeners=[Silent()])
    assert last.with_name(f"{last.stem}.unreadable.safetensors").is_symlink()
    assert last.is_file()


def test_saving_neither_counts_nor_writes_over_what_is_not_the_runs(tmp_path):
    kept = Checkpoints(tmp_path, keep=1, run="ours")

    def state(step: int, run: str = "ours") -> dict[str, object]:
        return {"progress": {"stage": 0, "stage_step": step, "step": step}, "run": run}

    kept.save(1, {}, state(1))
    write_tensors(tmp_path / "step-00000002.safetensors", {}, state(2, "theirs"))
    (tmp_path / "step-00000004.safetensors").write_text("mine")
    (tmp_path / "step-00000005").mkdir()
    (tmp_path / "step-00000005" / "notes.txt").write_text("mine")
    kept.save(3, {}, state(3))
    assert [path.name[:13] for path in kept.paths()] == [
        "step-00000005",
        "step-00000004",
        "step-00000003",
        "step-00000002",
    ]
    kept.save(4, {}, state(4))
    assert (tmp_path / "step-00000004.set-aside.safetensors").read_text() == "mine"
    assert [path.name[:13] for path in kept.paths()] == ["step-00000005", "step-00000004", "step-00000002"]


def test_training_and_pruning_remove_only_their_own_checkpoints(made, run):
    checkpoints = run / "checkpoints"
    mine = [
        checkpoints / "step-00000001.safetensors",
        checkpoints / "step-00000002.safetensors.bak",
        checkpoints / "notes.txt",
        checkpoints / ".x.aside",
    ]
    mine += [
        run / ".mine.safetensors.7-7-7.aside",
        checkpoints / ".mine.7-7-7.aside",
        checkpoints / "step-5.safetensors",
        run / "path" / ".mine.7-7.aside",
    ]
    for path in mine:
        path.write_bytes(b"mine")
    (checkpoints / "step-00000003").mkdir()
    (checkpoints / "step-00000003" / "thesis.tex").write_bytes(b"mine")
    (checkpoints / ".step-00000007.aside").mkdir()
    mine.append(checkpoints / ".step-00000007.aside" / "thesis.tex")
    mine[-1].write_bytes(b"mine")
    distill(made[0], [*QUICK, "training.steps=60"], run, resume=True)
    prune_checkpoints(run, 1)
    assert all(path.read_bytes() == b"mine" for path in (*mine, checkpoints / "step-00000003" / "thesis.tex"))


def test_a_file_that_was_begun_before_is_not_written_into(tmp_path, monkeypatch):
    """Were the name of the file aside foreseen, what stands there would stay as it is."""
    monkeypatch.setattr("fewstep.system.files.time.monotonic_ns", lambda: 7)
    monkeypatch.setattr("fewstep.system.files.threading.get_ident", lambda: 7)
    aside = tmp_path / f".a.{os.getpid()}-7-7.aside"
    aside.write_bytes(b"mine")
    with pytest.raises(UserError, match="could not be written"):
        write_text(tmp_path / "a", "ours")
    assert aside.read_bytes() == b"mine"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_doctor_and_the_report_take_what_is_kept_for_nothing_of_the_runs(run):
    kept = [
        "samples/final.set-aside.png",
        "path/node-1.set-aside-2.safetensors",
        "pairs.set-aside.safetensors",
        "measured-student-1.set-aside.json",
    ]
    for name in (*kept, "student.earlier.safetensors"):
        (run / name).write_bytes(b"mine")
    findings = examine(run)
    assert not has_problem(findings)
    assert {each.place for each in findings if "was kept under this name" in each.sentence} == {
        str(run / name) for name in (*kept, "student.earlier.safetensors")
    }
    (run / kept[0]).unlink()
    before = write_run_report(run).read_bytes()
    (run / kept[0]).write_bytes(b"mine")
    assert write_run_report(run).read_bytes() == before


def test_what_a_command_is_told_to_write_takes_no_file_of_somebodys_own(made, run, tmp_path, cache):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    commands = {
        tmp_path / "a.png": lambda path: called("sample", run, "-n", "4", "--out", path),
        tmp_path / "b.npz": lambda path: called("sample", run, "-n", "4", "--out", tmp_path / "c.png", "--npz", path),
        tmp_path / "d.zip": lambda path: called("data", "zip", photos, path),
        tmp_path / "e.png": lambda path: called("data", "show", photos, "--out", path),
        tmp_path / "f.png": lambda path: called("compare", run, made[1], "--out", path),
        tmp_path / "g.safetensors": lambda path: called("measure", run, "--write-reference", path),
    }
    for path, command in commands.items():
        path.write_bytes(b"mine")
        aside = path.with_name(f"{path.stem}.set-aside{path.suffix}")
        for said in (True, False):
            # Its own file a command writes again.
            result = command(path)
            assert result.returncode == 0, result.stderr
            assert (f"is kept as {aside.name}" in result.stderr) == said
        assert aside.read_bytes() == b"mine"
        assert path.read_bytes() != b"mine"
    assert len(list(tmp_path.glob("*.set-aside*"))) == len(commands)


def test_a_cache_that_cannot_be_written_stops_no_command(run, tmp_path, cache):
    cache.write_text("in the way")
    for _ in range(2):
        assert called("sample", run, "-n", "4", "--out", tmp_path / "a.png").returncode == 0


def test_a_path_keeps_what_it_did_not_record(tmp_path, capsys):
    def recorded(*steps: int) -> None:
        path = DegradationPath(tmp_path, random_mixture(KarrasVE(), 1))
        for step in steps:
            path.record(path.teacher, step)

    (tmp_path / "node-1.safetensors").write_bytes(b"mine")
    (tmp_path / "manifest.json").write_bytes(b"mine")
    recorded(1, 2)
    recorded(3)
    assert {path.name for path in tmp_path.iterdir()} == {
        NAME,
        "manifest.json",
        "manifest.set-aside.json",
        "node-1.safetensors",
        "node-1.set-aside.safetensors",
        "node-2.safetensors",
    }
    assert capsys.readouterr().err.count("it is kept as") == 2
    assert (
        (tmp_path / "manifest.set-aside.json").read_bytes()
        == (tmp_path / "node-1.set-aside.safetensors").read_bytes()
        == b"mine"
    )


def test_pairs_take_no_file_of_somebodys_own(tmp_path, cache, capsys):
    (tmp_path / "pairs.safetensors").write_bytes(b"mine")
    for value in (0.0, 1.0):
        write_pairs(tmp_path / "pairs.safetensors", torch.full((2, 2), value), torch.zeros(2, 2), None, {})
    assert (tmp_path / "pairs.set-aside.safetensors").read_bytes() == b"mine"
    assert capsys.readouterr().err.count("it is kept as") == 1


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
