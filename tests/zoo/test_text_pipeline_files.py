"""Which files of a text-to-image pipeline are read, in which forms, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.zoo.pipelines import TextPipeline, from_pipeline, load_pipeline, time_ids
from pipeline_kit import LENGTH, PROMPTS, condition, noise, pipeline, write_tokenizer

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

NETWORKS = ("unet", "vae", "text_encoder")
INDEX, UNET, VAE, TEXT = "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(scope="module")
def pipes(tmp_path_factory) -> dict[str, Any]:
    return {name: pipeline(name, tmp_path_factory.mktemp(name)) for name in ("sd15", "sdxl")}


@pytest.fixture(scope="module")
def saved(pipes, tmp_path_factory) -> dict[str, Path]:
    """The pipelines' folders, to be copied."""
    folders = {name: tmp_path_factory.mktemp("saved") / name for name in pipes}
    for name, pipe in pipes.items():
        pipe.save_pretrained(folders[name])
    return folders


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved["sd15"], tmp_path / "pipeline"))


def rewritten(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in {**content, **changes}.items() if value != "gone"}))


def estimate(ours: TextPipeline) -> Tensor:
    sizes = time_ids(16, 16) if "time_ids" in ours.denoiser.network.context_shapes else None
    with torch.no_grad():
        return ours.denoiser(noise(), torch.tensor(0.4), condition(ours.encoder(PROMPTS), 2, sizes))


def same(one: TextPipeline, other: TextPipeline) -> bool:
    return (one.encoder.identity, one.codec.identity) == (other.encoder.identity, other.codec.identity) and torch.equal(
        estimate(one), estimate(other)
    )


# Forms


def test_the_files_that_are_read_are_named_and_no_others_are_read(saved, folder) -> None:
    found = load_pipeline(folder)
    assert set(found.files) == {
        INDEX,
        "scheduler/scheduler_config.json",
        *(f"{part}/config.json" for part in NETWORKS),
        *(f"{part}/{STEMS[part]}.safetensors" for part in NETWORKS),
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }
    assert all(path.is_file() for path in found.files.values())
    assert found.remarks == ()
    for stray in ("unet/other.safetensors", "text_encoder/pytorch_model.bin", "config.json"):
        (folder / stray).write_bytes(b"")
    assert same(load_pipeline(folder), found)
    assert {"text_encoder_2/model.safetensors", "tokenizer_2/tokenizer.json"} <= set(load_pipeline(saved["sdxl"]).files)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_text_encoders_and_tokenizers_of_older_versions_are_the_same(name: str, saved, tmp_path) -> None:
    """``text_model.`` before each name, positions that are no weights; ``vocab.json`` and
    ``merges.txt``.
    """
    from safetensors.torch import load_file, save_file

    older = Path(shutil.copytree(saved[name], tmp_path / "older"))
    for encoder in older.glob("text_encoder*"):
        tensors = load_file(encoder / "model.safetensors")
        bare = {key.removeprefix("text_model."): value for key, value in tensors.items()}
        named = {key if key.startswith("text_proj") else f"text_model.{key}": value for key, value in bare.items()}
        named["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
        save_file(named, encoder / "model.safetensors")
    for tokenizer in older.glob("tokenizer*"):
        shutil.rmtree(tokenizer)
        write_tokenizer(tokenizer, pad="!" if tokenizer.name == "tokenizer_2" else "<|endoftext|>")
    assert same(load_pipeline(older), load_pipeline(saved[name]))


def test_the_first_releases_names_of_attention_are_read(folder) -> None:
    from safetensors.torch import load_file, save_file

    before, weights = load_pipeline(folder), folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        tensors = {key.replace(f".{new}.", f".{old}."): value for key, value in tensors.items()}
    assert any(".query." in key for key in tensors)
    save_file(tensors, weights)
    assert same(load_pipeline(folder), before)


def test_shards_are_read_by_their_index_and_a_missing_one_is_named(pipes, folder) -> None:
    before = load_pipeline(folder)
    for part in NETWORKS:
        for path in (folder / part).glob("*.safetensors"):
            path.unlink()
        getattr(pipes["sd15"], part).save_pretrained(folder / part, max_shard_size="20KB")
        assert (folder / part / f"{STEMS[part]}.safetensors.index.json").is_file()
    found = load_pipeline(folder)
    assert same(found, before)
    assert "text_encoder/model.safetensors.index.json" in found.files
    shard = sorted((folder / "text_encoder").glob("*-of-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: there is no such file, which model\.safetensors\.index\.json"):
        load_pipeline(folder)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_the_only_variant_is_taken_said_and_computed_in_float32(kind: torch.dtype, tmp_path) -> None:
    pipe = pipeline("sd15", tmp_path / "tokenizers")
    pipe.to(dtype=kind)
    pipe.save_pretrained(tmp_path / "pipeline", variant="fp16")
    assert not list((tmp_path / "pipeline").glob("*/*model.safetensors"))
    found = load_pipeline(tmp_path / "pipeline")
    assert len([said for said in found.remarks if "in the variant 'fp16' only, which is taken" in said]) == 3
    assert {value.dtype for value in found.denoiser.parameters()} == {torch.float32}
    assert {value.dtype for value in (*found.codec.parameters(), *found.encoder.parameters())} == {torch.float32}
    assert load_pipeline(tmp_path / "pipeline", variant="fp16").remarks == ()
    assert same(found, load_pipeline(tmp_path / "pipeline", variant="fp16"))
    assert same(found, from_pipeline(pipe))
    with pytest.raises(UserError, match=r"no safetensors weights of the variant 'ema' \(variants there: fp16\); set"):
        load_pipeline(tmp_path / "pipeline", variant="ema")


def test_a_part_without_the_variant_is_read_from_its_usual_weights(pipes, folder) -> None:
    usual = load_pipeline(folder)
    changed = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    changed.conv_out.bias.data += 1
    changed.save_pretrained(folder / "unet", variant="ema")
    found = load_pipeline(folder, variant="ema")
    assert not torch.allclose(estimate(found), estimate(usual), atol=0.1)
    said = [said for said in found.remarks if "has no weights of the variant 'ema'; its usual ones are taken" in said]
    assert len(said) == 2
    assert same(load_pipeline(folder), usual)


def test_what_is_left_out_is_said(folder) -> None:
    rewritten(folder / INDEX, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert load_pipeline(folder).remarks == (f"{folder}: its safety_checker is left out.",)
    rewritten(folder / "scheduler" / "scheduler_config.json", clip_sample=True)
    assert "clip_sample of its sampler is left out" in load_pipeline(folder).remarks[-1]


def test_the_hub_is_asked_for_what_is_read_alone(folder, monkeypatch) -> None:
    import huggingface_hub

    path = folder.rename(folder.parent / ("0" * 40))
    asked: list[Any] = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, *allow_patterns))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    usual = [
        f"{part}/{STEMS[part]}{end}" for part in NETWORKS for end in (".safetensors", "-?????-of-?????.safetensors")
    ]
    found = load_pipeline("owner/name")
    assert asked == [
        ("owner/name", None, "*.json", "*/merges.txt", "*/*.model", "*/*.jinja"),
        ("owner/name", "0" * 40, *usual),
    ]
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    asked.clear()
    assert same(load_pipeline("owner/name", "main"), found)
    assert asked[2:] == [("owner/name", "0" * 40, "unet/diffusion_pytorch_model*.safetensors")]
    asked.clear()
    load_pipeline("owner/name", "main", variant="fp16")
    assert asked[1] == ("owner/name", "0" * 40, *(f"{part}/{STEMS[part]}*.fp16*.safetensors" for part in NETWORKS))
    assert asked[2] == ("owner/name", "0" * 40, *usual[2:])


# Refusals


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        (
            INDEX,
            {"_class_name": "StableCascadePipeline"},
            "of the class 'StableCascadePipeline', and only StableDiffusionPipeline",
        ),
        (INDEX, {"_class_name": "StableDiffusionInpaintPipeline"}, "of the class 'StableDiffusionInpaintPipeline'"),
        (INDEX, {"_class_name": ["os", "system"]}, "of the class list"),
        (INDEX, {"_class_name": "gone"}, "of the class NoneType"),
        (INDEX, {"text_encoder": [None, None]}, "has no 'text_encoder', which a text-to-image model needs"),
        (INDEX, {"tokenizer": None}, "has no 'tokenizer', which a text-to-image model needs"),
        (INDEX, {"unet": "gone"}, "has no 'unet', which"),
        (
            INDEX,
            {"text_encoder": ["transformers", "T5EncoderModel"]},
            "has a 'T5EncoderModel' for 'text_encoder'",
        ),
        (INDEX, {"vae": ["my_module", "MyCodec"]}, "has a 'MyCodec' for 'vae', and only AutoencoderKL is read"),
        (INDEX, {"tokenizer": "CLIPTokenizer"}, "has a 'CLIPTokenizer' for 'tokenizer'"),
        (UNET, {"in_channels": 9}, "has 4 for out_channels and 9 for in_channels, which must be equal"),
        (UNET, {"in_channels": "4"}, "has '4' for in_channels"),
        (UNET, {"sample_size": None}, "has nothing for sample_size"),
        (UNET, {"sample_size": 9}, "has 9 x 9 for sample_size"),
        (UNET, {"novel": 1}, "takes no 'novel'"),
        (UNET, {"attention_head_dim": "2"}, "has '2' for attention_head_dim"),
        (UNET, {"attention_head_dim": [2, "2"]}, "has '2' for attention_head_dim"),
        (UNET, {"transformer_layers_per_block": [1, [1, [1]]]}, "has list for transformer_layers_per_block"),
        (UNET, {"cross_attention_dim": 10**9}, "has 1000000000 for cross_attention_dim"),
        (UNET, {"cross_attention_dim": 13}, "the network needs"),
        (UNET, {"class_embed_type": "timestep"}, "has 'timestep' for class_embed_type, and only None is read here"),
        (UNET, {"addition_embed_type": "image"}, "has 'image' for addition_embed_type"),
        (UNET, {"use_linear_projection": "no"}, "has 'no' for use_linear_projection, which must be true or false"),
        (UNET, {"time_embedding_type": None}, "has nothing for time_embedding_type"),
        (UNET, {"layers_per_block": 2}, "lacks tensor"),
        (UNET, {"block_out_channels": [8, 100_000]}, "parameters, for which the file has no room"),
        (UNET, {"down_block_types": ["DownBlock2D", "Novel2D"]}, "cannot be built"),
        (VAE, {"latent_channels": "4"}, "has '4' for latent_channels"),
        (VAE, {"latents_std": [0.0] * 4}, "has 0.0 for latents_std"),
        (VAE, {"latents_mean": 0.0}, "has 0.0 for latents_mean, which must be a list"),
        (VAE, {"latents_mean": [0.0]}, "has 1 numbers for latents_mean and 4 channels"),
        (VAE, {"scaling_factor": None}, "has nothing for scaling_factor"),
        (VAE, {"scaling_factor": float("nan")}, "has nan for scaling_factor"),
        (VAE, {"act_fn": "novel"}, "is no network that can be built"),
        (VAE, {"in_channels": 1}, "takes pictures of 1 channels"),
        (TEXT, {"hidden_size": "12"}, "has '12' for hidden_size"),
        (TEXT, {"hidden_size": 16}, "the network needs"),
        (TEXT, {"num_attention_heads": 5}, "has 12 for hidden_size, which 5 num_attention_heads cannot share"),
        (TEXT, {"hidden_act": "novel"}, "is no network that can be built"),
        (TEXT, {"vocab_size": 100}, "the network needs"),
        (TEXT, {"use_attention_mask": True}, "has true for use_attention_mask, which is not read here"),
    ],
)
def test_what_is_not_known_is_refused(folder, file: str, changes: dict[str, Any], sentence: str) -> None:
    rewritten(folder / file, **changes)
    with pytest.raises(UserError, match=sentence) as caught:
        load_pipeline(folder)
    assert file.split("/", maxsplit=1)[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_zeros_for_the_empty_prompt_are_true_or_false(saved, tmp_path) -> None:
    path = Path(shutil.copytree(saved["sdxl"], tmp_path / "pipeline"))
    rewritten(path / INDEX, force_zeros_for_empty_prompt="no")
    with pytest.raises(UserError, match="has 'no' for force_zeros_for_empty_prompt, which must be true or false"):
        load_pipeline(path)
    rewritten(path / INDEX, force_zeros_for_empty_prompt="gone")
    assert load_pipeline(path).zeros_for_empty


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        (INDEX, r"model_index\.json: is missing; give the folder that diffusers' save_pretrained"),
        ("scheduler", r"scheduler_config\.json: is missing, and says what the network emits"),
        ("text_encoder", "text_encoder: is missing or has no config.json, and model_index.json names it"),
        (UNET, "unet: is missing or has no config.json"),
        ("tokenizer", "tokenizer: is missing"),
        ("tokenizer/tokenizer.json", r"tokenizer: has neither tokenizer\.json nor vocab\.json with merges\.txt"),
        ("vae/diffusion_pytorch_model.safetensors", r"diffusion_pytorch_model\.safetensors: there is no such file"),
        ("text_encoder/model.safetensors", r"text_encoder/model\.safetensors: there is no such file"),
    ],
)
def test_folders_that_are_not_whole_are_refused(folder, gone: str, sentence: str) -> None:
    path = folder / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(UserError, match=sentence):
        load_pipeline(folder)


def test_pickled_weights_are_not_read(folder) -> None:
    weights = folder / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(UserError, match=r"pickled weights \(\.bin\) are there and are not read"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("tokenizer.json", "[", "is missing or not JSON"),
        ("tokenizer.json", "{}", "has no 'model' with a vocabulary"),
        ("tokenizer.json", '{"model": {"vocab": {"a": "b"}}}', "has no vocabulary from tokens to numbers"),
        (
            "tokenizer.json",
            '{"model": {"vocab": {"a": 0}, "merges": [["a", "b"]]}}',
            "a merge that is not of two tokens",
        ),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": [[1, 2]]}}', "a merge that is not of two"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": 3}}', "a merge that is not of two"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": []}}', "is no tokenizer that can be read"),
        ("vocab.json", "[]", "is no JSON object"),
        ("vocab.json", "{}", "has no vocabulary from tokens to numbers"),
        ("merges.txt", "q zz\n", "merges.txt: has a merge that is not of two tokens"),
        ("merges.txt", "one\n", "merges.txt: has a merge that is not of two tokens"),
        ("tokenizer_config.json", "[", "is no tokenizer that can be read"),
        ("tokenizer_config.json", '{"model_max_length": 1}', "has 1 for model_max_length, which must be at least 2"),
        ("tokenizer_config.json", '{"model_max_length": "9"}', "has '9' for model_max_length"),
    ],
)
def test_tokenizers_that_are_none_are_refused(folder, file: str, content: str, sentence: str) -> None:
    if file in ("vocab.json", "merges.txt"):
        shutil.rmtree(folder / "tokenizer")
        write_tokenizer(folder / "tokenizer")
    (folder / "tokenizer" / file).write_text(content)
    with pytest.raises(UserError, match=sentence):
        load_pipeline(folder)


def test_parts_of_other_pipelines_are_refused(saved, folder) -> None:
    vocabulary = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"]["zz"] = 2000
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match=r"tokenizer has \d+ tokens and its text model \d+; take both from one"):
        load_pipeline(folder)
    for part, sentence in (
        ("text_encoder", "takes 'text' of 12 numbers and the text encoders make 20"),
        (
            "unet",
            "takes 'text' of 32 numbers and the text encoders make 12|takes '.*' of .* and the text encoders make none",
        ),
    ):
        mixed = Path(shutil.copytree(saved["sd15"], folder.parent / part))
        shutil.rmtree(mixed / part)
        source = "text_encoder_2" if part == "text_encoder" else part
        shutil.copytree(saved["sdxl"] / source, mixed / part)
        if part == "text_encoder":
            from safetensors.torch import load_file, save_file

            tensors = load_file(mixed / part / "model.safetensors")
            kept = {key: value for key, value in tensors.items() if not key.startswith("text_projection")}
            save_file(kept, mixed / part / "model.safetensors")
        with pytest.raises(UserError, match=sentence):
            load_pipeline(mixed)


def test_other_objects_are_no_pipelines(pipes) -> None:
    pipe = pipes["sd15"]
    for other in (3, diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)):
        with pytest.raises(UserError, match=r"what was given: is of a pipeline of the class .*, and only"):
            from_pipeline(other)
    components = {**pipe.components, "text_encoder": None}
    with pytest.raises(UserError, match="StableDiffusionPipeline: has no 'text_encoder', which"):
        from_pipeline(diffusers.StableDiffusionPipeline(**components, requires_safety_checker=False))
    with pytest.raises(UserError, match="neither a folder nor an id of the hub"):
        load_pipeline("./none")
