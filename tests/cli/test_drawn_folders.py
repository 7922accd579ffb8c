"""``fewstep sample --folder``: a picture of each prompt and seed, the same in any set, for
``fewstep measure --pictures``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_kit import called
from PIL import Image

from fewstep.metrics.inception import as_bytes
from fewstep.runs.loading import load_teacher
from fewstep.runs.protocols.drawn_folders import RECORD
from fewstep.runs.protocols.picture_sets import PictureSet
from pipeline_kit import pipeline

PROMPTS = ["a red digit seven", "blue", "a green two", "red", "five"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.getbasetemp() / "drawn-cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    pipeline("sd15", root / "tokenizers").save_pretrained(root / "sd15")
    return root / "sd15"


@pytest.fixture
def asked(base: Path, tmp_path: Path) -> list[str | Path]:
    """Of five prompts, more than are drawn at a time."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return ["sample", "--base", base, "--timesteps", "999,499", "--prompts", tmp_path / "prompts.txt"]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_a_picture_of_each_prompt_with_its_caption(asked, tmp_path):
    drawn = called(*asked, "--folder", tmp_path / "set")
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.strip() == str(tmp_path / "set")
    found = PictureSet.open(tmp_path / "set")
    assert found.names == tuple(f"{number:06d}.png" for number in range(5))
    assert found.captions == tuple(PROMPTS)
    assert found.remarks == ()
    assert len(set(pictures(tmp_path / "set").values())) == 5
    # The pictures that are drawn without a folder.
    called(*asked, "--out", tmp_path / "grid.png", "--npz", tmp_path / "all.npz")
    import numpy as np

    levels = as_bytes(torch.from_numpy(np.load(tmp_path / "all.npz")["samples"]))
    ours = torch.stack([torch.from_numpy(np.array(found.picture(number))) for number in range(5)])
    apart = ours.permute(0, 3, 1, 2).int() - levels.int()
    assert int(apart.abs().max()) <= 1


def test_a_seed_is_a_function_of_the_prompts_number_and_its_turn(asked, base, tmp_path):
    """Not of how many prompts and seeds there are, as far as whole blocks go."""
    called(*asked, "--folder", tmp_path / "one")
    called(*asked, "-n", 3, "--folder", tmp_path / "three")
    one, three = pictures(tmp_path / "one"), pictures(tmp_path / "three")
    assert len(three) == 15 == len(set(three.values()))
    for number in range(5):
        assert three[f"{number:06d}-000.png"] == one[f"{number:06d}.png"]
    called(*asked, "--seed", 7, "--folder", tmp_path / "other")
    assert not set(pictures(tmp_path / "other").values()) & set(one.values())
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:4]))
    called(*asked, "--folder", tmp_path / "fewer")
    assert list(pictures(tmp_path / "fewer").values()) == list(one.values())[:4]
    assert PictureSet.open(tmp_path / "three").captions == tuple(text for text in PROMPTS for _ in range(3))


def test_what_was_stopped_goes_on_with_what_is_missing(asked, tmp_path):
    folder = tmp_path / "set"
    called(*asked, "--folder", folder)
    whole = pictures(folder)
    kept = (folder / "000000.png").stat().st_mtime_ns
    (folder / "000002.png").unlink()
    (folder / "000004.png").unlink()
    (folder / "metadata.jsonl").unlink()
    assert called(*asked, "--folder", folder).returncode == 0
    assert pictures(folder) == whole
    assert (folder / "000000.png").stat().st_mtime_ns == kept
    assert PictureSet.open(folder).captions == tuple(PROMPTS)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seed", 1], "holds pictures of other prompts, or that something else drew"),
        (["-n", 2], "holds pictures of other prompts"),
        (["--prompt", "x"], "give prompts themselves or a file of them, not both"),
        (["--out", "x.png"], "--out and --folder: a folder holds a picture of each prompt"),
    ],
    ids=str,
)
def test_another_set_does_not_go_into_the_folder(asked, tmp_path, more, said):
    folder = tmp_path / "set"
    called(*asked, "--folder", folder)
    before = pictures(folder)
    result = called(*asked, "--folder", folder, *more)
    assert (result.returncode, said in result.stderr) == (2, True), result.stderr
    assert pictures(folder) == before


def test_a_folder_of_ones_own_is_refused_and_stays(asked, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "000000.png").write_text("mine")
    result = called(*asked, "--folder", tmp_path / "mine")
    assert result.returncode == 2
    assert "mine: holds '000000.png' already, and no pictures of prompts; give a new folder." in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["000000.png"]
    assert (tmp_path / "mine" / "000000.png").read_text() == "mine"


def test_pictures_without_prompts_are_refused(tmp_path):
    from fewstep.runs import distill

    settings = ["training.steps=2", "training.batch=8", "evaluation.samples=60", "evaluation.draws=1"]
    run = distill("digits-diff-instruct", [*settings, "evaluation.teacher_steps=[1]"], tmp_path / "run")
    result = called("sample", run, "--folder", tmp_path / "set")
    assert result.returncode == 2
    assert "--folder: takes 1 to 1000 pictures of each prompt of a text-to-image model" in result.stderr
    assert not (tmp_path / "set").exists()
    assert load_teacher(run).classes == 10


@pytest.mark.slow
def test_a_run_is_drawn_and_measured(tmp_path):
    """The shipped scenes: the student's pictures and the teacher's, and their distance in the
    features of the shipped reader, to which the teacher's own moments belong as well.
    """
    from fewstep.runs import distill, write_reference

    settings = [
        *("training.steps=2", "training.batch=2", "target.record.steps=1", "target.switch.steps=1"),
        *("evaluation.samples=4", "evaluation.draws=1", "evaluation.teacher_steps=[1]", "evaluation.every=100"),
        *("evaluation.reference.samples=8", "evaluation.pictures=2"),
        "prompts={kind: list, texts: [a red seven, a blue two]}",
    ]
    run = distill("scenes-disback", settings, tmp_path / "run")
    for name, more in (("student", []), ("teacher", ["--teacher", "--steps", 1, "--guidance", 3])):
        drawn = called("sample", run, "-n", 3, *more, "--folder", tmp_path / name)
        assert drawn.returncode == 0, drawn.stderr
    record = json.loads((tmp_path / "student" / RECORD).read_text())
    assert set(record["drawn_by"]) == {"teacher", "student", "guidance", "adapters"}
    with Image.open(tmp_path / "student" / "000001-002.png") as shown:
        assert shown.size == (32, 32)
    write_reference(run, tmp_path / "teacher.safetensors")
    found = called(
        *("measure", "--pictures", tmp_path / "student", "--pictures", tmp_path / "teacher", "--json", "--diversity"),
        *("--features", "{kind: reader, name: scenes}", "--reference", tmp_path / "teacher.safetensors"),
    )
    assert found.returncode == 0, found.stderr
    student, teacher = json.loads(found.stdout)["sets"]
    assert student["diversity"]["count"] == teacher["diversity"]["count"] == 2
    assert student["fd"] != teacher["fd"]
