"""My own network, my own data, from Python and from the command line: registered, distilled, saved,
loaded, resumed, planned.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import annotated_types as at
import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.condition import Condition
from fewstep.data import InMemory
from fewstep.denoisers import EDMInputs, NetworkDenoiser, load_model, save_model
from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace
from fewstep.networks import DenoisingNetwork, build, describe_network
from fewstep.networks.kinds.registry import register
from fewstep.prediction import EDM
from fewstep.recipes import load_recipe
from fewstep.recipes.given import register_data
from fewstep.schedule import KarrasVE
from fewstep.system.files import read_tensors
from fewstep.training import Silent

SMALL = [
    "training.steps=6",
    "training.batch=4",
    "training.checkpoint_every=3",
    "training.log_every=2",
    "training.health_every=3",
    "evaluation.samples=16",
    "evaluation.every=3",
    "target={kind: fixed}",
]


@register("tests-convolutions")
class Convolutions(DenoisingNetwork):
    """A network of one's own, with features for a critic."""

    def __init__(self, width: Annotated[int, at.Interval(ge=4, le=64)] = 8, classes: int = 0):
        super().__init__()
        self.bottleneck = width
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.level = nn.Linear(1 + classes, width)
        self.leave = nn.Conv2d(width, 1, 3, padding=1)
        self.classes = classes

    def features(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        labels = (
            torch.zeros(len(x), self.classes)
            if condition.labels is None
            else nn.functional.one_hot(condition.labels.clamp(min=0), self.classes).float()
        )
        known = torch.cat([noise_label[:, None].float(), labels], dim=1)
        return torch.tanh(self.enter(x) + self.level(known)[:, :, None, None])

    def forward(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        return self.leave(self.features(x, noise_label, condition))


def teacher() -> NetworkDenoiser:
    torch.manual_seed(3)
    return NetworkDenoiser(Convolutions(width=12, classes=2), KarrasVE(), EDM(), EDMInputs(), (1, 8, 8), 2)


def shapes() -> InMemory:
    key = fs.random.Key(0, "shapes")
    return InMemory(key.normal("samples", (40, 1, 8, 8)).clamp(-1, 1), torch.arange(40) % 2, 2)


def means(x: Tensor) -> Tensor:
    return torch.cat([x.flatten(1).mean(1, keepdim=True), x.flatten(1).std(1, keepdim=True)], dim=1)


SPACE = FeatureSpace("tests-means", means)


def run(folder: Path, *more: str, resume: bool = False) -> Path:
    return fs.distill(
        "digits-disback", [*SMALL, *more], folder, resume, teacher=teacher(), data=shapes(), features=SPACE
    )


class Interrupted(Exception):
    """What ends a run in its fourth step."""


class Interrupting(Silent):
    def step(self, done: int, note: str) -> None:
        if done == 4:
            raise Interrupted


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return run(
        tmp_path_factory.mktemp("own") / "run",
        "method.adversarial={kind: teacher-trunk, weight: 0.1}",
        "student={kind: copy}",
    )


def test_a_network_of_ones_own_is_distilled_saved_and_loaded(made) -> None:
    samples = fs.load(made)(6, seed=1)
    assert samples.shape == (6, 1, 8, 8)
    assert bool(torch.isfinite(samples).all())
    model, _ = load_model(made / "student.safetensors")
    assert isinstance(model, NetworkDenoiser)
    assert isinstance(model.network, Convolutions)
    assert describe_network(model.network) == {"kind": "tests-convolutions", "width": 12, "classes": 2}


def test_the_teacher_that_was_handed_over_is_kept_in_the_folder(made) -> None:
    kept, extra = load_model(made / "teacher.safetensors")
    assert all(torch.equal(value, teacher().state_dict()[name]) for name, value in kept.state_dict().items())
    assert extra["range"] == [-1.0, 1.0]
    assert load_recipe(made / "recipe.yaml").teacher.path == str(made / "teacher.safetensors")


def test_it_is_measured_with_the_data_and_features_that_were_given(made) -> None:
    found = fs.evaluate(made, teacher_steps=[2], draws=1, data=shapes(), features=SPACE)
    assert found["student"]["1"]["fd"] >= 0


def test_a_resumed_run_ends_byte_equal(tmp_path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        fs.distill(
            "digits-disback",
            SMALL,
            tmp_path / "cut",
            listeners=[Interrupting()],
            teacher=teacher(),
            data=shapes(),
            features=SPACE,
        )
    cut = run(tmp_path / "cut", resume=True)
    assert (whole / "student.safetensors").read_bytes() == (cut / "student.safetensors").read_bytes()


def test_another_teacher_is_refused_where_a_run_goes_on(tmp_path) -> None:
    run(tmp_path / "run", "training.steps=3")
    other = teacher()
    with torch.no_grad():
        other.network.leave.bias.add_(1.0)
    with pytest.raises(UserError, match=r"is another one than the run in .* began with"):
        fs.distill("digits-disback", SMALL, tmp_path / "run", True, teacher=other, data=shapes(), features=SPACE)


def test_what_no_file_could_hold_is_refused_before_the_first_byte(tmp_path) -> None:
    class Unregistered(Convolutions):
        pass

    bare = NetworkDenoiser(Unregistered(classes=2), KarrasVE(), EDM(), EDMInputs(), (1, 8, 8), 2)
    with pytest.raises(UserError, match=r"Unregistered is not registered.*networks.register"):
        fs.distill("digits-disback", SMALL, tmp_path / "run", teacher=bare)
    with pytest.raises(UserError, match="wrap your network as"):
        fs.distill("digits-disback", SMALL, tmp_path / "run", teacher=nn.Linear(2, 2))
    assert not (tmp_path / "run" / "teacher.safetensors").exists()


def test_a_bound_of_the_constructor_is_the_recipes_the_files_and_pythons() -> None:
    with pytest.raises(UserError, match="network 'tests-convolutions': 'width' is 65, and must be at most 64"):
        Convolutions(width=65)
    with pytest.raises(UserError, match="network 'tests-convolutions': 'width' is 65, and must be at most 64"):
        build({"kind": "tests-convolutions", "width": 65})
    network = "student={kind: network, network: {kind: tests-convolutions, width: 65}}"
    with pytest.raises(UserError, match=r"'student.network.width' is 65: input should be less than or equal to 64"):
        load_recipe("digits-dmd2", [network])


def test_a_recipe_names_it() -> None:
    recipe = load_recipe("digits-dmd2", ["student={kind: network, network: {kind: tests-convolutions, width: 4}}"])
    assert recipe.student.network.description(classes=10) == {"kind": "tests-convolutions", "width": 4, "classes": 10}
    with pytest.raises(
        UserError,
        match=r"'student.network.kind' is 'nothing'; it must be one of .*'small-unet'.* or your own, whose module "
        r"must be imported first \(--import MODULE\)",
    ):
        load_recipe("digits-dmd2", ["student={kind: network, network: {kind: nothing}}"])


def test_a_name_that_another_class_has_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"network 'small-unet': is the name of fewstep\.networks\.small_unet\.SmallUNet already"
    ):
        register("small-unet")(Convolutions)
    with pytest.raises(UserError, match=r"takes '\*\*more', which a recipe cannot name"):

        @register("tests-more")
        class More(nn.Module):
            def __init__(self, **more: int):
                super().__init__()


def test_data_is_known_by_a_registered_name() -> None:
    register_data("tests-shapes")(shapes)
    recipe = load_recipe("digits-dmd2", ["data={kind: given, name: tests-shapes}"])
    assert recipe.data.open().identity == shapes().identity
    with pytest.raises(
        UserError,
        match=r"'data.name' is 'nothing', and no data set of that name .* was given to this process: hand it over "
        r"again",
    ):
        load_recipe("digits-dmd2", ["data={kind: given, name: nothing}"]).data.open()


MINE = """
import torch
import fewstep as fs

@fs.register_network("mine")
class Mine(fs.networks.DenoisingNetwork):
    def __init__(self, width: int = 8, classes: int = 0):
        super().__init__()
        self.bottleneck = width
        self.enter, self.leave = torch.nn.Linear(3, width), torch.nn.Linear(width, 2)

    def features(self, x, noise_label, condition, end_label=None):
        return torch.tanh(self.enter(torch.cat([x, noise_label[:, None]], dim=1)))

    def forward(self, x, noise_label, condition, end_label=None):
        return self.leave(self.features(x, noise_label, condition))
"""


def called(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fewstep", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_module_is_imported_by_the_command_line_alone(tmp_path) -> None:
    """It makes a teacher by ``pretrain``, whose file says by which module it can be read."""
    (tmp_path / "my_module.py").write_text(MINE, encoding="utf-8")
    settings = [
        f"--set={each}"
        for each in (
            "model.network={kind: mine}",
            "training.steps=2",
            "training.batch=4",
            "evaluation.samples=16",
            "evaluation.every=2",
        )
    ]
    refused = called(tmp_path, "pretrain", "mixture2d-teacher", "--out", "run", *settings)
    assert refused.returncode == 2
    assert "'model.network.kind' is 'mine'" in refused.stderr
    assert "--import MODULE" in refused.stderr
    made = called(tmp_path, "pretrain", "mixture2d-teacher", "--out", "run", *settings, "--import", "my_module")
    assert made.returncode == 0, made.stderr
    unread = called(tmp_path, "inspect", "run/model.safetensors")
    assert unread.returncode == 2
    assert "unknown kind 'mine'" in unread.stderr
    assert "import 'my_module' first" in unread.stderr
    read = called(tmp_path, "--import=my_module", "inspect", "run/model.safetensors")
    assert read.returncode == 0, read.stderr
    teacher = [
        "--set=teacher={kind: file, path: run/model.safetensors}",
        "--set=training.steps=4",
        "--set=training.batch=4",
        "--set=evaluation.samples=16",
    ]
    student = called(
        tmp_path,
        "distill",
        "mixture2d-diff-instruct",
        "--out",
        "student",
        *teacher,
        "--set=student={kind: copy}",
        "--import=my_module",
    )
    assert student.returncode == 0, student.stderr
    several = called(tmp_path, "measure", "student", "--import=my_module", "--samples", "16", "--processes", "2")
    assert several.returncode == 0, several.stderr
    missing = called(tmp_path, "recipes", "--import", "no_such_module")
    assert missing.returncode == 2
    assert "there is no such module" in missing.stderr


def test_a_file_names_a_module_and_imports_none(tmp_path) -> None:
    """The name in a file is for a sentence."""
    network = Convolutions(classes=2)
    path = tmp_path / "model.safetensors"
    save_model(path, NetworkDenoiser(network, KarrasVE(), EDM(), EDMInputs(), (1, 8, 8), 2))
    assert read_tensors(path)[1]["network_module"] == __name__
