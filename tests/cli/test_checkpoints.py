"""``fewstep checkpoints``: what is listed is what a resumed run takes, and what is pruned changes
nothing about how it goes on.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_kit import small_recipe

from fewstep.command.entry import run_command
from fewstep.errors import UserError
from fewstep.runs import distill, list_checkpoints, prune_checkpoints
from fewstep.system.files import read_metadata, read_tensors, verify_tensors, write_tensors
from fewstep.system.locks import in_use, locked
from fewstep.training.saving.run_checkpoints import Checkpoints, set_aside_in

STEPS = [40, 36, 32, 28, 24, 20, 18, 16, 12, 8, 4]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """(recipe, run) of a run that keeps all of its checkpoints: one every 4 steps, and one at step
    18, where recording ends.
    """
    base = tmp_path_factory.mktemp("kept")
    recipe = small_recipe(base / "small.yaml", keep=20)
    return recipe, distill(recipe, ["evaluation.samples=50"], base / "run")


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy to do with as one likes."""
    return Path(shutil.copytree(made[1], tmp_path / "run"))


def file_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}.safetensors"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(bytes(content))


def all_files(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}


def held(path: Path):
    """The lock of another process: of another opening of the file, which is the same to the
    kernel.
    """
    stream = open(path / "lock", "ab")  # noqa: SIM115 (the caller closes it)
    fcntl.flock(stream, fcntl.LOCK_EX)
    return stream


def test_the_list_is_newest_first_with_stage_and_size(made):
    found = list_checkpoints(made[1], verify=True)
    assert [each.step for each in found.checkpoints] == STEPS
    assert found.resumes == "checkpoints/step-00000040.safetensors"
    assert (found.leftovers, found.removed, found.verified) == ([], [], True)
    for each in found.checkpoints:
        assert each.bytes == (made[1] / each.file).stat().st_size
        assert (each.state, each.why) == ("whole", "")
        assert each.step is not None
        assert (each.stage, each.stage_step) == ((0, each.step) if each.step < 18 else (1, each.step - 18))
        # At its very beginning a stage has written no line that says its name.
        assert each.name == ("record" if each.step < 18 else "distill" if each.step > 18 else None)


def test_headers_alone_find_a_cut_and_checksums_a_flipped_byte(run):
    flip(file_of(run, 40))
    cut(file_of(run, 36))
    states = {
        verify: [each.state for each in list_checkpoints(run, verify).checkpoints][:3] for verify in (False, True)
    }
    assert states == {False: ["whole", "damaged", "whole"], True: ["damaged", "damaged", "whole"]}
    assert list_checkpoints(run, verify=True).resumes == "checkpoints/step-00000032.safetensors"


def test_what_is_starred_is_what_a_resumed_run_takes(run):
    """However the newest ones are spoilt: cut, flipped, replaced by text, by another file of ours,
    by another step's checkpoint.
    """
    spoilt = {
        40: lambda path: shutil.copy(run / "student.safetensors", path),
        36: lambda path: shutil.copy(file_of(run, 4), path),
        32: lambda path: path.write_text("a note"),
        28: flip,
        24: cut,
    }
    why = {
        40: "is not a checkpoint but another file",
        36: "is the checkpoint of step 4",
        32: "is not a readable",
        28: "does not match its checksum",
        24: "is not a readable",
    }
    for step, spoil in spoilt.items():
        spoil(file_of(run, step))
        found = list_checkpoints(run, verify=True)
        warnings: list[str] = []
        taken = Checkpoints(run / "checkpoints").newest(warnings.append)
        assert taken is not None
        assert found.resumes == file_of(Path(), taken.state["progress"]["step"]).as_posix()
        first = next(each for each in found.checkpoints if each.file == f"checkpoints/step-{step:08d}.safetensors")
        assert why[step] in first.why
        assert any(first.why in warning for warning in warnings)
        # What a run goes past keeps its content under another name.
        assert (
            sorted(each.name for each in set_aside_in(run / "checkpoints"))[0]
            == f"step-{step:08d}.unreadable.safetensors"
        )
    assert {each.state for each in list_checkpoints(run, True).checkpoints} == {"whole"}
    assert len(set_aside_in(run / "checkpoints")) == 5


def test_pruning_keeps_the_newest_whole_ones_and_says_what_it_removed(run):
    """What crashed writers of the run left goes as well; a damaged or foreign file, and what
    reports write without the run's lock, stay.
    """
    flip(file_of(run, 40))
    shutil.copy(run / "student.safetensors", file_of(run, 36))
    stay = [
        run / ".report.html.7-7.aside",
        run / "samples" / ".final.png.7-7.aside",
        run / "checkpoints" / "mine.aside",
        run / "checkpoints" / ".mine.aside",
    ]
    go = [
        run / "checkpoints" / ".step-00000044.safetensors.7-7.aside",
        run / ".student.safetensors.7-7.aside",
        run / "path" / ".node-1.safetensors.7-7.aside",
    ]
    for each in (*stay, *go):
        each.write_bytes(b"half")
    before = all_files(run)
    found = prune_checkpoints(run, 2)
    assert [(each.state, each.file[-14:-12]) for each in found.checkpoints] == [
        ("damaged", "40"),
        ("foreign", "36"),
        ("whole", "32"),
        ("whole", "28"),
    ]
    assert set(found.removed) == before - all_files(run)
    assert len(found.removed) == 7 + 3
    assert all(each.exists() for each in stay)
    assert not any(each.exists() for each in go)
    assert found.resumes == list_checkpoints(run, verify=True).resumes == "checkpoints/step-00000032.safetensors"
    assert prune_checkpoints(run, 2).removed == []


def test_a_pruned_run_goes_on_to_the_same_end(made, run):
    """Its last checkpoints gone and all but one pruned, it ends byte-equal to the run that nothing
    was done to.
    """
    recipe, reference = made
    for step in (40, 36, 32):
        file_of(run, step).unlink()
    (run / "student.safetensors").unlink()
    assert [each.step for each in prune_checkpoints(run, 1).checkpoints] == [28]
    distill(recipe, ["evaluation.samples=50"], run, resume=True)
    assert (run / "student.safetensors").read_bytes() == (reference / "student.safetensors").read_bytes()
    ours, theirs = (read_tensors(file_of(folder, 40)) for folder in (run, reference))
    assert all(torch.equal(ours[0][name], value) for name, value in theirs[0].items())
    assert ours[1] == theirs[1]


def test_nothing_is_removed_where_that_could_lose_something(run, tmp_path):
    before = all_files(run)
    with pytest.raises(UserError, match="--prune 0: at least 1 checkpoint must be kept"):
        prune_checkpoints(run, 0)
    with held(run):
        assert in_use(run)
        with pytest.raises(UserError, match="another fewstep process is working in this folder"):
            prune_checkpoints(run, 1)
    assert not in_use(run)
    (run / "checkpoints" / "step-00000044.safetensors").mkdir()
    with pytest.raises(UserError, match=r"step-00000044\.safetensors: cannot be read, and nothing was removed"):
        prune_checkpoints(run, 1)
    (run / "checkpoints" / "step-00000044.safetensors").rmdir()
    for step in STEPS:
        flip(file_of(run, step))
    with pytest.raises(UserError, match="none of its 11 checkpoints is whole, and nothing was removed"):
        prune_checkpoints(run, 1)
    assert all_files(run) == before
    with pytest.raises(UserError, match="is not a run folder"):
        prune_checkpoints(tmp_path / "nowhere", 1)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_that_the_disk_does_not_give_stops_pruning(run, monkeypatch):
    def fails(path: Path) -> dict:
        raise UserError(f"{path}: is not a readable safetensors file (input/output error).") from OSError(
            5, "Input/output error"
        )

    monkeypatch.setattr("fewstep.training.saving.checkpoint_files.verify_tensors", fails)
    before = all_files(run)
    with pytest.raises(UserError, match="cannot be read, and nothing was removed"):
        prune_checkpoints(run, 1)
    assert all_files(run) == before


def test_verifying_is_reading_without_keeping(tmp_path):
    """The same metadata, and the same refusal of a flip anywhere; a header is read without the
    tensors.
    """
    path = tmp_path / "a.safetensors"
    tensors = {
        "b": torch.arange(6).reshape(2, 3),
        "a": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }
    write_tensors(path, tensors, {"progress": {"step": 1}})
    assert verify_tensors(path) == read_tensors(path)[1] == read_metadata(path) == {"progress": {"step": 1}}
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        refusals = []
        for read in (read_tensors, verify_tensors):
            with pytest.raises(UserError) as refused:
                read(path)
            refusals.append(str(refused.value))
        assert refusals[0] == refusals[1]


def test_whether_a_folder_is_held_can_be_asked_without_a_trace(tmp_path):
    assert not in_use(tmp_path)
    assert not (tmp_path / "lock").exists()
    with locked(tmp_path):
        assert in_use(tmp_path)
    assert not in_use(tmp_path)


def test_the_command_prints_what_it_does(run, monkeypatch, capsys):
    def printed(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["fewstep", "checkpoints", str(run), *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command()
        assert not ended.value.code
        return capsys.readouterr().out

    cut(file_of(run, 40))
    lines = printed().splitlines()
    assert lines[0].split()[:2] == ["-", "damaged"]
    assert lines[1].split()[:6] == ["*", "36", "step", "18", "of", "distill"]
    assert "step 0 of stage 2" in lines[6]
    assert "--verify" in lines[-1]
    assert "--verify" not in printed("--verify")
    found = json.loads(printed("--prune", "1", "--json"))
    assert len(found["removed"]) == 9
    assert [(each["state"], each["step"]) for each in found["checkpoints"]] == [("damaged", None), ("whole", 36)]


def test_another_runs_checkpoint_is_not_resumed_from(made, run, tmp_path):
    """Whole, of the right step, in the right place, but of a run with another seed; more steps or
    another spread do not make another run.
    """
    recipe, _ = made
    other = distill(recipe, ["evaluation.samples=50", "training.seed=7"], tmp_path / "other")
    shutil.copy(file_of(other, 40), file_of(run, 40))
    found = list_checkpoints(run, verify=True)
    assert (found.checkpoints[0].state, found.resumes) == ("foreign", "checkpoints/step-00000036.safetensors")
    assert "of another run" in found.checkpoints[0].why
    alone = tmp_path / "alone"
    shutil.copytree(other / "checkpoints", alone / "checkpoints")
    shutil.copy(run / "recipe.yaml", alone / "recipe.yaml")
    before = all_files(alone)
    with pytest.raises(UserError, match="holds no checkpoint of this run, but some of another"):
        distill(recipe, ["evaluation.samples=50"], alone, resume=True)
    assert before <= all_files(alone)
    (run / "student.safetensors").unlink()
    distill(
        recipe,
        ["evaluation.samples=50", "training.accumulate=1", "distributed.mode=fsdp", "training.device=cpu"],
        run,
        resume=True,
    )
    assert (run / "student.safetensors").read_bytes() == (made[1] / "student.safetensors").read_bytes()
    assert list_checkpoints(run, verify=True).resumes == "checkpoints/step-00000040.safetensors"
