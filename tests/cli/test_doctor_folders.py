"""``fewstep doctor`` on folders of few-step pipelines: scheduler, times and guidance are those of
the card and of ``fewstep.json``, or a finding says which are not.
"""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from family_folder_kit import family_pipeline, size_of
from fewstep.command.entry import run_command
from fewstep.denoisers import copy_of
from fewstep.doctor import examine, has_problem
from fewstep.doctor.findings import Finding
from fewstep.doctor.student_folders import tried_picture
from fewstep.doctor.student_folders.called_timesteps import USUAL
from fewstep.doctor.student_folders.card_call import card_call
from fewstep.doctor.student_folders.checked_folder import checked_folder
from fewstep.solvers.sampling import Sampling
from fewstep.system.ledger import file_digest
from fewstep.zoo.pipelines import ExportSource, PipelinePlace, export_pipeline, open_pipeline
from fewstep.zoo.pipelines.pipeline_kinds import KINDS
from pipeline_kit import pipeline, times_of

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

FOUR = (999, 749, 499, 249)
SCHEDULER = "scheduler/scheduler_config.json"
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Students that were exported."""
    root = tmp_path_factory.mktemp("folders")
    family_pipeline("sd3", root / "sd3-tokenizers").save_pretrained(root / "teacher-sd3")
    pipeline("sd15", root / "sd15-tokenizers").save_pretrained(root / "teacher-sd15")
    pipeline("sd15", root / "told-tokenizers", time_cond_proj_dim=16).save_pretrained(root / "teacher-told")
    made: Mapping[str, tuple[Sampling, list[float]]] = {
        "sd15": (Sampling(steps=4), times_of(FOUR, 0.0).tolist()),
        "sd3": (Sampling("ddim", "uniform", steps=4), [1.0, 0.75, 0.5, 0.25, 0.0]),
        "told": (Sampling(steps=1, guidance=6.0), times_of((399,), 0.0).tolist()),
    }
    for name, (sampling, times) in made.items():
        place = root / f"teacher-{name}"
        opened = open_pipeline(place)
        student = copy_of((replace(opened, size=size_of("sd3")) if name == "sd3" else opened).denoiser())
        export_pipeline(ExportSource(student, sampling, times, PipelinePlace(str(place)), "dmd"), root / name)
    return root


@pytest.fixture
def copied(folders: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(folders / name, tmp_path / name))

    return copy


def settings(**changes: Any) -> Change:
    """Changes the scheduler's file, and what ``fewstep.json`` says of its bytes."""

    def change(folder: Path) -> None:
        path = folder / SCHEDULER
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        facts = json.loads((folder / "fewstep.json").read_text())
        facts["files"][SCHEDULER] = file_digest(path)
        (folder / "fewstep.json").write_text(json.dumps(facts))

    return change


def facts(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "fewstep.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def call(*drop: str, **changes: Any) -> Change:
    """Changes the call of ``fewstep.json``."""

    def change(folder: Path) -> None:
        said = json.loads((folder / "fewstep.json").read_text())["call"]
        facts(call={**{name: value for name, value in said.items() if name not in drop}, **changes})(folder)

    return change


def card(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / "README.md").read_text()
        assert old in text
        (folder / "README.md").write_text(text.replace(old, new))

    return change


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def problems(found: list[Finding]) -> list[str]:
    return [f"{Path(each.place).name}: {each.sentence}" for each in found if each.level == "problem"]


@pytest.mark.parametrize("name", ["sd15", "sd3", "told"])
def test_a_folder_as_it_was_exported_has_no_problem(name: str, folders: Path) -> None:
    found = examine(folders / name)
    assert [(Path(each.place).name, each.level) for each in found] == [
        ("fewstep.json", "ok"),
        ("scheduler_config.json", "ok"),
        ("README.md", "ok"),
        (name, "ok"),
    ]
    assert "a picture of 16 x 16 pixels was drawn in" in found[-1].sentence


CHANGED: dict[str, tuple[str, Change, str]] = {
    "class": (
        "sd15",
        settings(_class_name="DDIMScheduler"),
        "scheduler_config.json: names 'DDIMScheduler' for the scheduler, and fewstep.json says 'LCMScheduler'",
    ),
    "scaling": (
        "sd15",
        settings(timestep_scaling=10.0),
        "scheduler_config.json: has 10.0 for timestep_scaling, and the student of fewstep.json needs 10000.0",
    ),
    "prediction": ("sd15", settings(prediction_type="v_prediction"), "has 'v_prediction' for prediction_type, and"),
    "betas": ("sd15", settings(beta_end=0.02), "has 0.02 for beta_end, and the student of fewstep.json needs 0.012"),
    "left out": (
        "sd15",
        both(settings(original_inference_steps=50), facts(settings={})),
        "has 50 for original_inference_steps, and the student of fewstep.json needs 1000",
    ),
    "own grid in the call": (
        "sd15",
        both(settings(original_inference_steps=50), call("timesteps", num_inference_steps=4)),
        "was trained at 999, 749, 499, 249, and by its call LCMScheduler calls the network at 999, 759, 499, 259, its",
    ),
    "own grid in the card": (
        "sd15",
        both(settings(original_inference_steps=50), card("timesteps=[999, 749, 499, 249]", "num_inference_steps=4")),
        "LCMScheduler calls the network at 999, 759, 499, 259, and the student was trained at 999, 749, 499, 249.",
    ),
    "no times": (
        "sd15",
        card("    timesteps=[999, 749, 499, 249],\n", ""),
        "its call gives no times, by which LCMScheduler calls the network at 999, 979, 959, 939, ..., 39, 19, and the",
    ),
    "other times": ("sd15", card("[999, 749, 499, 249]", "[999, 749]"), "gives timesteps=[999, 749], by which"),
    "guidance": (
        "sd15",
        card("guidance_scale=1.0", "guidance_scale=7.5"),
        "README.md: its call makes a second pass for guidance of 7.5, and the student makes none.",
    ),
    "usual guidance": (
        "sd15",
        card("    guidance_scale=1.0,\n", ""),
        "gives no guidance_scale, so that it makes a second pass for guidance of 7.5",
    ),
    "guidance in the call": (
        "sd15",
        call(guidance_scale=2.0),
        "fewstep.json: its call makes a second pass for guidance of 2, and the student was trained without.",
    ),
    "told": (
        "told",
        card("guidance_scale=6.0", "guidance_scale=3.0"),
        "README.md: its call tells the network a guidance of 3.0, and fewstep.json says 6.0",
    ),
    "size": ("sd15", card("height=16", "height=512"), "its call gives 512 for height, and fewstep.json says 16."),
    "a scheduler by an expression": (
        "sd15",
        card("picture = pipe", "pipe.scheduler = diffusers.DDIMScheduler\npicture = pipe"),
        "",
    ),
    "swapped scheduler": (
        "sd15",
        card("picture = pipe", "pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)\npicture = pipe"),
        "README.md: puts in a TCDScheduler, and fewstep.json says 'LCMScheduler'.",
    ),
    "not taken": (
        "sd15",
        card("timesteps=[999, 749, 499, 249]", "sigmas=[1.0, 0.5]"),
        "README.md: its call cannot be made: LCMScheduler takes no sigmas",
    ),
    "shift": ("sd3", settings(shift=1.0), "has 1.0 for shift, and the student of fewstep.json needs 3.0"),
    "shift by tokens": (
        "sd3",
        settings(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        "has True for use_dynamic_shifting, and the student of fewstep.json needs False",
    ),
    "noise": ("sd3", settings(stochastic_sampling=True), "has True for stochastic_sampling, and the student of"),
    "sigmas": (
        "sd3",
        card("sigmas=[1.0, 0.75, 0.5, 0.25]", "num_inference_steps=4"),
        "calls the network at 1000, 857.692, 602.151, 8.92857, and the student was trained at 1000, 900, 750, 500.",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_was_changed_is_said_in_one_sentence(
    name: str, copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewstep.doctor.student_folders.tried_picture.SMALL", 0)
    source, change, words = CHANGED[name]
    folder = copied(source)
    change(folder)
    found = examine(folder)
    assert any(words in each for each in problems(found)) == bool(words), problems(found)
    assert all(each.remedy for each in found if each.level == "problem")
    assert not any("\n" in each.sentence for each in found)


def test_the_index_names_the_class_that_diffusers_takes(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "DDIMScheduler"]}))
    found = problems(examine(folder))
    assert any(each.startswith("model_index.json: names 'DDIMScheduler' for the scheduler") for each in found)


def test_an_export_of_an_earlier_version_says_less(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    said = json.loads((folder / "fewstep.json").read_text())
    del said["settings"]
    (folder / "fewstep.json").write_text(json.dumps(said))
    found = examine(folder)
    assert not has_problem(found)
    assert any("does not say the scheduler's settings" in each.sentence for each in found)


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_the_timesteps_of_a_call_are_those_of_the_pipeline(name: str, folders: Path) -> None:
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folders / name)
    pipe.set_progress_bar_config(disable=True)
    checked = checked_folder(folders / name, None)
    size = {"height": 16, "width": 16, "output_type": "latent"}
    times = {"sd15": {"timesteps": [999, 399]}, "sd3": {"sigmas": [1.0, 0.4]}}[name]
    for given in (times, {"num_inference_steps": 3}):
        pipe("blue", **size, **given)
        assert list(checked.scheduler.timesteps(given)) == [float(each) for each in pipe.scheduler.timesteps]


def test_what_pipelines_take_where_a_call_does_not_say_is_diffusers_own() -> None:
    names = {name for each in USUAL.values() for name in each}
    for pipeline_name in KINDS:
        taken = inspect.signature(getattr(diffusers, pipeline_name).__call__).parameters
        assert USUAL[pipeline_name] == {name: each.default for name, each in taken.items() if name in names}


def test_a_second_pass_is_counted_as_each_pipeline_does(folders: Path) -> None:
    checked = checked_folder(folders / "sd15", None)
    told = checked_folder(folders / "told", None)
    assert (checked.second_pass({"guidance_scale": 1.0}), checked.second_pass({})) == (None, 7.5)
    assert (told.second_pass({"guidance_scale": 8.0}), told.told({"guidance_scale": 8.0})) == (None, 8.0)
    z_image, qwen = (replace(checked, pipeline=name) for name in ("ZImagePipeline", "QwenImagePipeline"))
    assert (z_image.second_pass({"guidance_scale": 0.5}), z_image.second_pass({"guidance_scale": 0.0})) == (0.5, None)
    assert (qwen.second_pass({}), qwen.second_pass({"negative_prompt": " "})) == (None, 4.0)


def test_a_scheduler_that_is_wrong_is_not_blamed_on_the_card(copied: Callable[[str], Path]) -> None:
    folder = copied("sd3")
    settings(shift=1.0)(folder)
    found = examine(folder)
    assert {Path(each.place).name: each.level for each in found if "README" in each.place} == {"README.md": "ok"}
    assert found[-1].sentence == "no picture was tried, since what is wrong above decides it."


def downloaded(folder: Path, code: str | None, scheduler: str = "LCMScheduler", **config: Any) -> Path:
    """The folder without ``fewstep.json``, with another card."""
    (folder / "fewstep.json").unlink(missing_ok=True)
    (folder / "README.md").write_text("# Mine\n" if code is None else f"# Mine\n\n```python\n{code}\n```\n")
    made = getattr(diffusers, scheduler).from_pretrained(folder, subfolder="scheduler", **config)
    made.save_config(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", scheduler]}))
    return folder


LOADED = "from diffusers import StableDiffusionPipeline\npipe = StableDiffusionPipeline.from_pretrained('x')\n"


def test_a_downloaded_folder_is_compared_with_its_scheduler_alone(copied: Callable[[str], Path]) -> None:
    code = f"{LOADED}steps = 4\npipe('a fox', num_inference_steps=steps, guidance_scale=1.5)"
    found = examine(downloaded(copied("sd15"), code, original_inference_steps=50))
    assert [each.level for each in found] == ["note", "note", "ok"]
    assert "has no fewstep.json: at which timesteps its student was trained" in found[0].sentence
    assert found[1].sentence == (
        "by its call the folder's LCMScheduler calls the network at 999, 759, 499, 259, with a second pass for "
        "guidance of 1.5."
    )
    assert "DMD2's 999, 749, 499, 249" in found[1].remedy
    assert "drawn in 4 steps" in found[2].sentence


@pytest.mark.parametrize(
    ("code", "scheduler", "level", "words"),
    [
        (
            f"{LOADED}pipe('a fox', timesteps=[999], guidance_scale=0)",
            "DDIMScheduler",
            "problem",
            "its call cannot be made: DDIMScheduler takes no timesteps, and diffusers refuses the call.",
        ),
        (
            f"{LOADED}pipe.scheduler = LCMScheduler.from_config(x)\npipe('a', timesteps=[999, 499], guidance_scale=0)",
            "DDIMScheduler",
            "note",
            "by its call the card's LCMScheduler calls the network at 999, 499.",
        ),
        (
            f"{LOADED}pipe('a fox', num_inference_steps=2, guidance_scale=0)",
            "DDIMScheduler",
            "note",
            "by its call the folder's DDIMScheduler calls the network at 501, 1.",
        ),
        (f"{LOADED}pipe('a fox', num_inference_steps=N)", "LCMScheduler", "note", "by an expression, which is not"),
        (f"{LOADED}pipe('a fox', num_inference_steps=10**9)", "LCMScheduler", "note", "by an expression, which is"),
        (f"{LOADED}pipe('a fox', num_inference_steps=True)", "LCMScheduler", "problem", "must be a whole number from"),
        (f"{LOADED}pipe.scheduler = Evil.from_config(1)\npipe('x', sigmas=[1])", "LCMScheduler", "note", "another"),
        (None, "LCMScheduler", "note", "has no Python that calls a pipeline"),
        ("(" * 5000, "LCMScheduler", "note", "has no Python that calls a pipeline"),
    ],
)
def test_what_the_card_of_a_downloaded_folder_says(
    code: str | None, scheduler: str, level: str, words: str, copied: Callable[[str], Path]
) -> None:
    folder = downloaded(copied("sd15"), code, scheduler)
    found = [each for each in examine(folder) if Path(each.place).name == "README.md"]
    assert [each.level for each in found] == [level]
    assert words in found[0].sentence


def test_a_card_is_parsed_and_never_run(copied: Callable[[str], Path], tmp_path: Path) -> None:
    code = f"import os\nos.system('touch {tmp_path}/ran')\n{LOADED}pipe('x', guidance_scale=open('y', 'w'))"
    examine(downloaded(copied("sd15"), code))
    assert not (tmp_path / "ran").exists()
    found = card_call(f"```py\n{code}\n```")
    assert found is not None
    assert (found.arguments, found.unknown) == ({}, {"guidance_scale"})
    assert card_call("```python\nn = 4\nn = 5\npipe(timesteps=(9, 1), num_inference_steps=n)\n```") is not None
    assert card_call("```python\nprint(1)\n```\n```\npipe(sigmas=[1])\n```") is None


def weights(change: Callable[[torch.Tensor], torch.Tensor], part: str, like: str) -> Change:
    def changed(folder: Path) -> None:
        path = folder / part / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        save_file({name: change(value) if like in name else value for name, value in tensors.items()}, path)
        facts_of = json.loads((folder / "fewstep.json").read_text())
        facts_of["files"][path.relative_to(folder).as_posix()] = file_digest(path)
        (folder / "fewstep.json").write_text(json.dumps(facts_of))

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (weights(lambda value: value * 1e30, "unet", ""), "unet: emits values that are not finite."),
        (weights(torch.zeros_like, "vae", "decoder.conv_out"), "drawn in 4 steps, is of one colour."),
        (weights(lambda value: value * torch.nan, "unet", "conv_in.bias"), "not finite"),
    ],
)
def test_a_picture_that_is_none_is_a_problem(change: Change, words: str, copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    change(folder)
    (found,) = problems(examine(folder))
    assert words in found


def test_a_large_folder_is_tried_when_it_is_asked_for(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("fewstep.doctor.student_folders.tried_picture.SMALL", 0)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    last = examine(folders / "sd15")[-1]
    assert (last.level, "--try" in last.remedy) == ("note", True)

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["fewstep", "doctor", *arguments])
        with pytest.raises(SystemExit) as stopped:
            run_command()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    code, printed, _ = run(str(folders / "sd15"), "--try")
    assert (code, "was drawn in 4 steps" in printed) == (0, True)
    # Nothing stays on disk.
    assert not (tmp_path / "cache").exists()
    code, _, complaint = run(str(tmp_path), "--try")
    assert (code, "fewstep: --try: draws a picture of the folder of a text-to-image pipeline" in complaint) == (2, True)

    def too_much(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(tried_picture, "_drawn", too_much)
    last = examine(folders / "sd15", attempt=True)[-1]
    assert (last.level, "there is not enough memory for files of" in last.sentence) == ("note", True)


@pytest.mark.parametrize("text", ["[]", "{", '{"_class_name": "os.system"}', '{"num_train_timesteps": 1e99}'])
def test_a_hostile_scheduler_is_a_problem_and_nothing_else(text: str, copied: Callable[[str], Path]) -> None:
    folder = downloaded(copied("sd15"), f"{LOADED}pipe('x', num_inference_steps=4)")
    (folder / SCHEDULER).write_text(text)
    found = examine(folder)
    assert [each.level for each in found] == ["note", "problem"]
