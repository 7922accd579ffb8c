"""The shipped text-to-image model of scenes: a folder that plain diffusers opens, as good as its
card says, and the recipes by which its parts are made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import fewstep as fs
from fewstep.condition import Condition
from fewstep.data.prompts import PromptConditions, embed, read_prompts
from fewstep.data.scenes import Scenes, scene_prompts
from fewstep.data.scenes.scene_latents import SceneLatents
from fewstep.denoisers import Guided, NetworkDenoiser, TimestepInputs, save_model
from fewstep.errors import UserError
from fewstep.metrics.prompted import prompt_accuracy
from fewstep.networks import CaptionReader, CaptionUNet, PatchAutoencoder, build
from fewstep.networks.kinds.network_files import save_network
from fewstep.prediction import V
from fewstep.recipes import load_recipe
from fewstep.recipes.building.parts import build_settings
from fewstep.recipes.building.pretrain import Pretraining, build_pretraining
from fewstep.solvers import EULER, solve
from fewstep.system.files import read_tensors
from fewstep.training import Trainer
from fewstep.zoo import scenes_pipeline as scenes
from fewstep.zoo.pipelines import TextPipeline, load_pipeline
from fewstep.zoo.shipped import shipped_pipeline
from interrupt_kit import Interrupted, Interrupter

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

FOLDER = shipped_pipeline("scenes")
PROMPTS = ["a red seven at the left", "a large blue three in the middle"]
FEW = ["training.steps=6", "training.batch=4", "training.checkpoint_every=2", "training.log_every=2", "data.count=30"]
TINY = {
    "scenes-codec": ["model.pictures=30", *FEW],
    "scenes-words": FEW,
    "scenes-teacher": ["model.network.widths=[16, 16]", *FEW],
}


@pytest.fixture(scope="module")
def model() -> TextPipeline:
    return load_pipeline(FOLDER)


@pytest.fixture(scope="module")
def pipe() -> Any:
    found = diffusers.StableDiffusionPipeline.from_pretrained(str(FOLDER))
    found.set_progress_bar_config(disable=True)
    return found


def guided(model: TextPipeline, prompts: list[str], noise: Tensor, times: Tensor) -> Tensor:
    """Latents at guidance 3."""
    encoder = model.encoder
    embedded = embed(read_prompts(prompts), lambda: encoder, encoder.identity, say=lambda _: None)
    conditions = PromptConditions(embedded)
    given = conditions.of(torch.arange(len(prompts)))
    with torch.no_grad():
        return solve(EULER, Guided(model.denoiser, 3.0, conditions), noise, times, given)


def times_of(pipe: Any, steps: int) -> Tensor:
    pipe.scheduler.set_timesteps(steps)
    return torch.tensor([*((int(index) + 1) / 1000 for index in pipe.scheduler.timesteps), 0.0], dtype=torch.float64)


def noise_of(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 16, 8, 8, generator=torch.Generator().manual_seed(seed))


# What ships


def test_it_is_small_and_of_halves() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 3
    for path in weights:
        assert {value.dtype for value in load_file(path).values()} == {torch.float16}


def test_a_guided_sample_is_the_pipelines(model: TextPipeline, pipe: Any) -> None:
    noise = noise_of(2)
    theirs = pipe(PROMPTS, num_inference_steps=6, guidance_scale=3.0, latents=noise, output_type="latent").images
    found = guided(model, PROMPTS, noise, times_of(pipe, 6))
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)
    pictures = pipe(PROMPTS, num_inference_steps=6, guidance_scale=3.0, latents=noise, output_type="pt").images
    torch.testing.assert_close((model.codec.decode(found) + 1) / 2, pictures, rtol=0, atol=1e-3)
    assert pictures.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(("held_out", "least"), [(False, 0.85), (True, 0.8)])
def test_its_pictures_show_what_they_are_asked_for(
    model: TextPipeline, pipe: Any, held_out: bool, least: float
) -> None:
    prompts = scene_prompts(1, held_out)
    prompts = [prompts[index * len(prompts) // 60] for index in range(60)]
    found = model.codec.decode(guided(model, prompts, noise_of(60, 1), times_of(pipe, 25)))
    assert prompt_accuracy(fs.zoo.scenes_reader(), found, prompts)["all"] >= least
    others = [*prompts[7:], *prompts[:7]]
    assert prompt_accuracy(fs.zoo.scenes_reader(), found, others)["all"] < 0.3


def test_its_codec_keeps_what_the_reader_sees() -> None:
    data, index = Scenes(400, part="test", combinations="all"), torch.arange(400)
    codec, reader = scenes.scene_codec(), fs.zoo.scenes_reader()

    @torch.no_grad()
    def accuracy(pictures: Tensor) -> float:
        told = reader(pictures)
        right = [told[name].argmax(1) == value for name, value in data.attributes(index).items()]
        return float(torch.stack(right).all(0).double().mean())

    pictures = data.take(index)
    assert accuracy(codec.decode(codec.encode(pictures))) >= 0.97 * accuracy(pictures) > 0.93
    assert not any(value.requires_grad for value in codec.parameters())


def test_its_encoder_keeps_captions_apart() -> None:
    """Each of the prompts that no training caption has is nearest to itself."""
    found = scenes.scene_encoder()(scene_prompts(1, True))["text"].mean(1)
    distances = torch.cdist(found, found) + torch.diag(torch.full((len(found),), torch.inf))
    assert float(distances.min()) > 0.1 * float(distances[distances.isfinite()].mean())


def test_its_card_says_what_it_is_and_what_it_is_not() -> None:
    card = (FOLDER / "README.md").read_text()
    for part in ("scenes-codec", "scenes-words", "scenes-teacher", "benchmarks/scenes_teacher.py", "Not for"):
        assert part in card
    measured = json.loads((Path(__file__).parents[2] / "benchmarks/results/scenes-teacher.json").read_text())
    for row in measured["rows"]:
        if (row["steps"], row["guidance"]) == (25, 3.0):
            assert row["accuracy"]["all"] >= (0.8 if row["held_out"] else 0.9)
            assert f"{row['accuracy']['all']:.1%}".replace("%", " %") in card


# How it is made


def trainer(name: str, folder: Path, *listeners: Any) -> tuple[Trainer, Pretraining]:
    recipe = load_recipe(name, TINY[name])
    parts = build_pretraining(recipe)
    settings = build_settings(recipe.training)
    return Trainer(folder, parts.stages, parts.model, settings, recipe.training.average, (), listeners), parts


@pytest.mark.parametrize("name", TINY)
def test_each_recipe_trains_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole, parts = trainer(name, tmp_path / "whole")
    before = {key: value.clone() for key, value in parts.model.state_dict().items()}
    whole.fit()
    with pytest.raises(Interrupted):
        trainer(name, tmp_path / "cut", Interrupter(3))[0].fit()
    trainer(name, tmp_path / "cut")[0].fit(resume=True)
    assert any(not torch.equal(before[key], value) for key, value in parts.model.state_dict().items())
    last = [read_tensors(max((tmp_path / each / "checkpoints").iterdir())) for each in ("whole", "cut")]
    assert last[0][1] == last[1][1]
    assert last[0][0].keys() == last[1][0].keys()
    assert all(torch.equal(value, last[1][0][key]) for key, value in last[0][0].items())


def test_the_recipes_make_what_ships(model: TextPipeline) -> None:
    codec, words, teacher = (build_pretraining(load_recipe(name, ["data.count=30"])).model for name in TINY)
    assert isinstance(codec, PatchAutoencoder)
    assert isinstance(words, CaptionReader)
    assert isinstance(teacher, NetworkDenoiser)
    assert isinstance(teacher.network, CaptionUNet)
    for made, ships in (
        (codec.codec.vae, model.codec.vae),
        (words.model, model.encoder.models[0]),
        (teacher.network.unet, model.denoiser.network.unet),
    ):
        bare = {name.removeprefix("text_model."): value.shape for name, value in made.state_dict().items()}
        assert bare == {name.removeprefix("text_model."): value.shape for name, value in ships.state_dict().items()}
    assert teacher.schedule == model.denoiser.schedule == scenes.SCHEDULE
    assert teacher.prediction == model.denoiser.prediction
    assert teacher.inputs == model.denoiser.inputs
    assert teacher.shape == model.denoiser.shape


def test_latents_are_those_of_the_parts_that_ship(model: TextPipeline) -> None:
    data = load_recipe("scenes-teacher", ["data.count=30"]).data
    assert data is not None
    found, plain, index = data.open(), Scenes(30), torch.tensor([4, 29])
    assert isinstance(found, SceneLatents)
    torch.testing.assert_close(found.take(index), model.codec.encode(plain.take(index)), rtol=1e-4, atol=1e-4)
    text = found.conditions.of(found.labels[index]).context["text"]
    torch.testing.assert_close(text, model.encoder(plain.captions(index))["text"], rtol=1e-4, atol=1e-5)


def test_a_folder_is_put_together_of_what_was_trained(tmp_path: Path) -> None:
    codec = build({"kind": "patch-autoencoder", "channels": 4, "widths": [12, 12], "groups": 2})
    words = build({"kind": "caption-reader", "attributes": {"digit_1": 11}, "width": 8, "layers": 1, "heads": 2})
    unet = build({"kind": "caption-unet", "channels": 4, "side": 16, "widths": [8, 8], "text_width": 8, "heads": 2})
    assert isinstance(codec, PatchAutoencoder)
    assert isinstance(words, CaptionReader)
    codec.fit(Scenes(20).take(torch.arange(20)))
    teacher = NetworkDenoiser(unet, scenes.SCHEDULE, V(), TimestepInputs(), (4, 16, 16))
    save_network(tmp_path / "codec", codec)
    save_network(tmp_path / "words", words)
    save_model(tmp_path / "teacher", teacher)
    scenes.write_parts(tmp_path / "codec", tmp_path / "words", tmp_path / "made")
    scenes.write_denoiser(tmp_path / "teacher", tmp_path / "made")
    made = load_pipeline(tmp_path / "made")
    x, text = noise_of(2)[:, :4].repeat(1, 1, 2, 2), made.encoder(PROMPTS)["text"]
    with torch.no_grad():
        states = words.model.half().float()(
            torch.tensor(made.encoder.tokenizers[0](PROMPTS, padding="max_length").input_ids)
        )
        torch.testing.assert_close(text, states.last_hidden_state, rtol=1e-5, atol=1e-5)
        found = made.denoiser(x, torch.tensor([0.3, 0.9]), Condition(context={"text": text}))
        expected = teacher.float()(x, torch.tensor([0.3, 0.9]), Condition(context={"text": text}))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    save_network(tmp_path / "words", build({"kind": "caption-reader", "attributes": {"digit_1": 11}}))
    with pytest.raises(UserError, match="is no codec of patches"):
        scenes.write_parts(tmp_path / "words", tmp_path / "words", tmp_path / "made")
    save_model(tmp_path / "teacher", fs.zoo.digits())
    with pytest.raises(UserError, match="is no U-Net with captions"):
        scenes.write_denoiser(tmp_path / "teacher", tmp_path / "made")
    assert not (tmp_path / "made").exists()
    with pytest.raises(UserError, match="there is no shipped pipeline 'other'; it must be one of scenes"):
        shipped_pipeline("other")
