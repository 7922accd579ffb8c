"""Text-to-image models with one base and many adapters: distilled from prompts, resumed, and the
adapter used by plain diffusers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_methods import contents
from test_text_recipes import Leaves, values, written

from fewstep.condition import Condition
from fewstep.denoisers import NetworkDenoiser, adapter_of, in_network
from fewstep.errors import UserError
from fewstep.networks import AdaptedBase, AdaptedNetwork, DiffusersTextUNet, Form
from fewstep.networks.adapters import fitting_layers
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.checksums import origins_of
from fewstep.recipes.reading.places import anchored
from fewstep.runs import distill, load
from fewstep.runs.export import export_adapter
from fewstep.zoo.pipelines import load_pipeline, time_ids
from pipeline_kit import FACTOR, NAMES, PROMPTS, SIDE, condition, noise, pipeline

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

# Its runs take twice as long, and go through the same code.
one_or_both = pytest.mark.parametrize("name", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
LORA = {"kind": "lora", "rank": 3, "scale": None, "alpha": 6.0}
SPREAD = {"lr": 0.02}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    for name in NAMES:
        pipeline(name, root / f"{name}-tokenizers").save_pretrained(root / name)
    return {name: root / name for name in NAMES}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def adapted(teacher: Path) -> dict[str, Any]:
    """The sections of a run all of whose roles are adapters."""
    plain = values(teacher)
    fake = {**plain["method"]["fake"], **LORA}
    return {
        "student": {**LORA, "first_timestep": 399},
        "method": {**plain["method"], "fake": fake, "optimizer": SPREAD},
        "target": {**plain["target"], "recorded_as": "lora"},
    }


class Ended(dict[str, Path]):
    """Runs that have ended, by the name of their teacher, each made when it is asked for."""

    def __init__(self, folders: dict[str, Path], root: Path):
        super().__init__()
        self.folders, self.root = folders, root

    def __missing__(self, name: str) -> Path:
        teacher = self.folders[name]
        self[name] = distill(written(self.root / f"{name}.yaml", teacher, **adapted(teacher)), out=self.root / name)
        return self[name]


@pytest.fixture(scope="module")
def ended(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return Ended(folders, tmp_path_factory.mktemp("ended"))


@pytest.mark.parametrize("name", NAMES)
def test_the_published_layers_are_adapted_and_each_kind_of_them_is_there(name: str, folders: dict[str, Path]) -> None:
    network = load_pipeline(folders[name]).denoiser.network
    assert isinstance(network, DiffusersTextUNet)
    paths = list(fitting_layers(network))
    targets = DiffusersTextUNet.adapted_by_default
    assert len(targets) == 14
    assert all(any(path.endswith(f".{target}") for target in targets) for path in paths)
    # A small network has no block that changes its width beside those that it has.
    assert {target for target in targets for path in paths if path.endswith(f".{target}")} >= set(targets) - {
        "conv_shortcut",
        "downsamplers.0.conv",
        "upsamplers.0.conv",
    }
    assert not any(path.startswith(("unet.conv_in", "unet.conv_out", "unet.time_embedding")) for path in paths)


@pytest.mark.parametrize("name", NAMES)
def test_recomputed_blocks_of_diffusers_run_under_their_own_adapter(name: str, folders: dict[str, Path]) -> None:
    found = {}
    for recompute in (False, True):
        ours = load_pipeline(folders[name])
        sizes = time_ids(SIDE * FACTOR, SIDE * FACTOR) if name == "sdxl" else None
        told = condition(ours.encoder(PROMPTS), 2, sizes)
        base = AdaptedBase(ours.denoiser.network)
        roles = [drawn(in_network(ours.denoiser, AdaptedNetwork.fresh(base, Form(2, 2.0), seed))) for seed in (1, 2)]
        roles[0].network.recompute = recompute
        losses = [role(noise(), torch.full((2,), 0.5), told).square().sum() for role in roles]
        with torch.no_grad():
            ours.denoiser(noise(), torch.full((2,), 0.5), told)
        for loss in losses:
            loss.backward()
        found[recompute] = [value.grad for role in roles for value in role.parameters()]
    for plain, again in zip(found[False], found[True], strict=True):
        assert torch.equal(plain, again)


def drawn(role: NetworkDenoiser) -> NetworkDenoiser:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in role.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=draws))
    return role.requires_grad_(True)


def test_a_run_of_adapters_that_was_left_is_the_whole_run(folders: dict[str, Path], tmp_path: Path) -> None:
    file = written(tmp_path / "r.yaml", folders["sd15"], **adapted(folders["sd15"]))
    distill(file, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        distill(file, out=tmp_path / "cut", listeners=[Leaves(7)])
    distill(file, out=tmp_path / "cut", resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@one_or_both
def test_plain_diffusers_samples_with_the_exported_adapter_as_the_student_does(
    name: str, folders: dict[str, Path], ended: dict[str, Path], tmp_path: Path
) -> None:
    """alpha is twice the rank, so that a reader that takes one for the other is found."""
    file = export_adapter(ended[name], tmp_path / "lora.safetensors", "peft")
    cls = diffusers.StableDiffusionXLPipeline if name == "sdxl" else diffusers.StableDiffusionPipeline
    pipe = cls.from_pretrained(folders[name])
    plain = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(str(file))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    student = load(ended[name]).model
    assert isinstance(student, NetworkDenoiser)
    moved = 0
    for key, value in pipe.unet.state_dict().items():
        own = student.network.state_dict()[f"unet.{key}"]
        torch.testing.assert_close(value, own, rtol=1e-5, atol=1e-6)
        moved += not torch.allclose(value, plain[key], atol=1e-5)
    teacher = load_pipeline(folders[name]).denoiser
    assert moved == len(fitting_layers(teacher.network))


def test_a_condition_without_text_is_refused_by_the_base(folders: dict[str, Path]) -> None:
    """A role is called as its base is, sentences included."""
    teacher = load_pipeline(folders["sd15"]).denoiser
    role = in_network(teacher, AdaptedNetwork.fresh(AdaptedBase(teacher.network), Form(1, 1.0)))
    assert len(adapter_of(role).layers) == len(fitting_layers(teacher.network))
    with pytest.raises(UserError, match="conditioned on 'text'"):
        role(noise(), torch.full((2,), 0.5), Condition())


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@one_or_both
def test_a_teacher_takes_adapters_as_diffusers_fuses_them(
    name: str, folders: dict[str, Path], ended: dict[str, Path], tmp_path: Path
) -> None:
    """Two at weights of their own: a run's own adapter, and the same as another program's file."""
    file = export_adapter(ended[name], tmp_path / "lora.safetensors", "kohya")
    theirs = export_adapter(ended[name], tmp_path / "peft.safetensors", "peft")
    cls = diffusers.StableDiffusionXLPipeline if name == "sdxl" else diffusers.StableDiffusionPipeline
    pipe = cls.from_pretrained(folders[name])
    for adapter in ("one", "two"):
        pipe.load_lora_weights(str(theirs), adapter_name=adapter)
    pipe.set_adapters(["one", "two"], [0.7, -0.3])
    pipe.fuse_lora(adapter_names=["one", "two"])
    pipe.unload_lora_weights()
    loras = [{"path": str(ended[name]), "weight": 0.7}, {"path": str(file), "weight": -0.3}]
    recipe = written_with(tmp_path / "r.yaml", folders[name], loras)
    teacher = recipe.teacher.load(None)
    own = teacher.network.state_dict()
    for key, value in pipe.unet.state_dict().items():
        torch.testing.assert_close(own[f"unet.{key}"], value, rtol=1e-6, atol=1e-6)
    plain = load_pipeline(folders[name]).denoiser.network.state_dict()
    assert any(not torch.allclose(own[key], value, atol=1e-5) for key, value in plain.items())
    assert not recipe.teacher.remarks()
    # What is left out of a file is said.
    tensors = {**load_file(file), "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(())}
    save_file(tensors, tmp_path / "more.safetensors")
    loras = [{"path": str(tmp_path / "more.safetensors")}]
    (remark,) = written_with(tmp_path / "more.yaml", folders[name], loras).teacher.remarks()
    assert "1 entries of text encoders are left out" in remark


def written_with(path: Path, folder: Path, loras: list[dict[str, Any]]) -> DistillRecipe:
    section = {"kind": "pipeline", "path": str(folder), "loras": loras}
    path.write_text("# test\n" + json.dumps({**values(folder), "teacher": section}))
    made = load_recipe(path)
    assert isinstance(made, DistillRecipe)
    return made


def test_a_teachers_adapters_decide_what_the_run_is_made_from(
    folders: dict[str, Path], ended: dict[str, Path], tmp_path: Path
) -> None:
    """By content: an adapter that was exchanged, or has another weight, is another teacher."""
    file = export_adapter(ended["sd15"], tmp_path / "lora.safetensors", "peft")
    digests = set()
    for loras in ([], [{"path": "lora.safetensors"}], [{"path": "lora.safetensors", "weight": 0.5}]):
        with contextlib.chdir(tmp_path):
            recipe = anchored(written_with(tmp_path / "r.yaml", folders["sd15"], loras))
        assert [each.path for each in recipe.teacher.loras] == [str(file)] * len(loras)
        digests.add(origins_of(recipe, ["teacher"])["teacher.path"])
    assert len(digests) == 3
    before = origins_of(recipe, ["teacher"])
    file.unlink()
    other = export_adapter(ended["sd15"], tmp_path / "lora.safetensors", "kohya")
    assert other == file
    assert origins_of(recipe, ["teacher"]) != before
