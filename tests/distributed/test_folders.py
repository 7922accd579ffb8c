"""A checkpoint in a folder of shards is complete or absent: what is listed, verified, pruned and
resumed from, and each way in which it can be spoilt.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fewstep.doctor.examine import examine
from fewstep.errors import UserError
from fewstep.runs import list_checkpoints, prune_checkpoints
from fewstep.training.saving.checkpoint_files import look_at
from fewstep.training.saving.run_checkpoints import Checkpoints, set_aside_in
from fewstep.training.saving.shard_folder import MANIFEST, FolderCheckpoint
from fewstep.training.saving.sharded import ShardWriter

TENSORS = {
    "network/a": torch.arange(6.0).reshape(2, 3),
    "network/b": torch.tensor(2.5),
    "other/c": torch.ones(3, dtype=torch.bfloat16),
    "other/count": torch.tensor(7),
}


def state(step: int) -> dict:
    return {"progress": {"stage": 0, "stage_step": step, "step": step, "evaluations": 0}, "log_lines": 0}


def written(folder: Path, step: int) -> Path:
    writer = ShardWriter()
    return writer.finish(writer.begin(folder / f"step-{step:08d}", TENSORS, state(step)))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("sharded") / "run"
    for step in (4, 8, 12):
        written(run / "checkpoints", step)
    (run / "metrics.jsonl").write_text("")
    return run


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step-00000012"


def shard(run: Path) -> Path:
    return next(newest(run).glob("shard-*"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


def test_what_is_read_is_what_was_written(made):
    found = FolderCheckpoint(newest(made))
    assert found.state == state(12)
    for prefix in ("network/", "other/", "nothing/"):
        read = found.read(prefix, {})
        expected = {name.removeprefix(prefix): value for name, value in TENSORS.items() if name.startswith(prefix)}
        assert {name: value.dtype for name, value in read.items()} == {
            name: value.dtype for name, value in expected.items()
        }
        assert all(torch.equal(read[name], value) for name, value in expected.items())


def test_what_is_written_in_the_background_is_what_there_was_when_it_began(tmp_path):
    """Though the run goes on and changes all of it: weights in place, its position, its sums."""
    writer, tensors, position = ShardWriter(), {name: value.clone() for name, value in TENSORS.items()}, state(4)
    writing = writer.begin(tmp_path / "step-00000004", tensors, position)
    for value in tensors.values():
        value.zero_()
    position["progress"]["step"] = 9
    found = FolderCheckpoint(writer.finish(writing))
    assert found.state == state(4)
    read = found.read("", {})
    assert all(torch.equal(read[name], value) for name, value in TENSORS.items())


def test_nothing_of_a_checkpoint_is_pickled_and_it_has_no_other_files(made):
    assert sorted(path.name for path in newest(made).iterdir()) == [
        MANIFEST,
        "shard-00001-model-00001-of-00001.safetensors",
    ]
    assert not [path for path in (made / "checkpoints").iterdir() if path.name.startswith(".")]


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit in a shard": (lambda run: flip(shard(run)), "is not the file that its checkpoint was written with"),
    "a shard cut short": (
        lambda run: shard(run).write_bytes(shard(run).read_bytes()[:-1]),
        "is not the file that its checkpoint was written with",
    ),
    "a shard that is gone": (lambda run: shard(run).unlink(), "there is no such file, and its checkpoint needs it"),
    "another checkpoint's shard": (
        lambda run: shard(run).write_bytes(b"x" * shard(run).stat().st_size),
        "is not the file that its checkpoint was written with",
    ),
    "no manifest": (lambda run: (newest(run) / MANIFEST).unlink(), "without it the folder is no checkpoint"),
    "half a manifest": (
        lambda run: (newest(run) / MANIFEST).write_text('{"digest": "1", "form'),
        "is not a readable manifest",
    ),
    "a manifest that was edited": (
        lambda run: _edited(run, "state", state(13)),
        "its content does not match its checksum",
    ),
    "a manifest of a list": (lambda run: (newest(run) / MANIFEST).write_text("[]"), "is not a readable manifest"),
    "a shard that nobody named": (
        lambda run: shutil.copy(shard(run), newest(run) / "shard-00002-model-00001-of-00001.safetensors"),
        "whose manifest does not name it",
    ),
    "another step's": (
        lambda run: (shutil.rmtree(newest(run)), shutil.copytree(run / "checkpoints" / "step-00000004", newest(run))),
        "is the checkpoint of step 4",
    ),
}


def _edited(run: Path, key: str, value: object) -> None:
    path = newest(run) / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


@pytest.mark.parametrize("spoil", SPOILT)
def test_what_is_not_whole_is_passed_over_for_the_one_before(run, spoil):
    action, sentence = SPOILT[spoil]
    action(run)
    listing = list_checkpoints(run, verify=True)
    warnings: list[str] = []
    taken = Checkpoints(run / "checkpoints").newest(warnings.append)
    assert taken is not None
    assert taken.state["progress"]["step"] == 8
    assert sentence in warnings[0]
    assert len(set_aside_in(run / "checkpoints", ("unreadable",))) == 1
    assert listing.resumes == "checkpoints/step-00000008"
    assert sentence in listing.checkpoints[0].why
    assert listing.checkpoints[0].state == ("foreign" if spoil == "another step's" else "damaged")


def test_a_flipped_bit_is_found_by_reading_only(run):
    flip(shard(run))
    assert list_checkpoints(run).resumes == "checkpoints/step-00000012"
    assert look_at(newest(run), verify=False) == state(12)
    with pytest.raises(UserError, match="was written with"):
        look_at(newest(run), verify=True)


def test_a_manifest_cannot_name_files_outside(run):
    from fewstep.training.saving.shard_folder import manifest_digest

    path = newest(run) / MANIFEST
    content = json.loads(path.read_text())
    content.pop("digest")
    content["files"] = {"../../recipe.yaml": {"bytes": 1, "sha256": "0"}}
    path.write_text(json.dumps({"digest": manifest_digest(content), **content}))
    with pytest.raises(UserError, match="does not match its checksum"):
        look_at(newest(run), verify=True)


def forged(run: Path, **changes: object) -> None:
    """A manifest that somebody made, its checksum right."""
    from fewstep.training.saving.shard_folder import manifest_digest

    path = newest(run) / MANIFEST
    content = {**json.loads(path.read_text()), **changes}
    content.pop("digest")
    path.write_text(json.dumps({"digest": manifest_digest(content), **content}))


def test_a_forged_checkpoint_is_a_sentence(run):
    """Of a right checksum, but without a state, or with shards that are no shards."""
    forged(run, state=None)
    with pytest.raises(UserError, match="its state is no object"):
        FolderCheckpoint(newest(run))
    shard(run).write_bytes(b"{}")
    forged(run, state=state(12), files={shard(run).name: {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}})
    with pytest.raises(UserError, match="its shards cannot be read"):
        FolderCheckpoint(newest(run)).read("network/", {})


def test_what_a_writer_left_half_is_no_checkpoint_and_the_next_one_writes_over_it(run):
    aside = run / "checkpoints" / ".step-00000016.aside"
    aside.mkdir()
    (aside / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    assert list_checkpoints(run, verify=True).leftovers == ["checkpoints/.step-00000016.aside"]
    assert Checkpoints(run / "checkpoints").paths()[0] == newest(run)
    written(run / "checkpoints", 16)
    assert list_checkpoints(run, verify=True).resumes == "checkpoints/step-00000016"
    assert not aside.exists()


def test_files_and_folders_of_one_run_are_listed_and_pruned_together(run):
    Checkpoints(run / "checkpoints", keep=9).save(10, TENSORS, state(10))
    (run / "checkpoints" / ".step-00000014.aside").mkdir()
    listing = prune_checkpoints(run, 2)
    assert [each.file.removeprefix("checkpoints/") for each in listing.checkpoints] == [
        "step-00000012",
        "step-00000010.safetensors",
    ]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-00000012", "step-00000010.safetensors"}
    assert listing.checkpoints[0].bytes == sum(path.stat().st_size for path in newest(run).iterdir())


def test_the_doctor_reads_a_folder(run):
    (finding,) = examine(newest(run))
    assert finding.level == "ok"
    assert "is the checkpoint of step 12" in finding.sentence
    flip(shard(run))
    (finding,) = examine(newest(run))
    assert finding.level == "problem"


def test_a_folder_that_cannot_be_written_is_a_sentence_and_leaves_the_old_ones(run, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.FileSystem.create_stream", full)
    with pytest.raises(UserError, match="could not be written: the disk is full"):
        written(run / "checkpoints", 16)
    assert Checkpoints(run / "checkpoints").paths()[0] == newest(run)
