"""Adapters that peft, diffusers and other programs wrote: we compute what they compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_kit import output, pairs_of, read_file, write_file
from test_lora_files import adapted_by, close, pipeline_of, with_weights
from torch import Tensor

from fewstep.networks import DiffusersTextUNet
from fewstep.zoo.lora import read_lora, write_lora

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("default")

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "conv_shortcut", "time_emb_proj", "ff.net.2"]


def adapted_pipeline(folder: Path, name: str = "sd15", **settings: Any) -> tuple[Any, DiffusersTextUNet]:
    """A pipeline whose U-Net peft adapts, with random weights on both sides; and ours without."""
    pipe, network = pipeline_of(name, folder)
    given = {"r": 4, "lora_alpha": 2, "target_modules": TARGETS, "init_lora_weights": False, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        pipe.unet.add_adapter(peft.LoraConfig(**given))
    return pipe, network


def state_of(pipe: Any) -> dict[str, Tensor]:
    return peft.get_peft_model_state_dict(pipe.unet)


def save_adapter(pipe: Any, folder: Path) -> None:
    pipe.unet.save_lora_adapter(folder, weight_name="a.safetensors")


def save_weights(pipe: Any, folder: Path) -> None:
    pipe.save_lora_weights(
        folder, state_of(pipe), weight_name="a.safetensors", unet_lora_adapter_metadata=_configuration(pipe)
    )


def save_mixture(pipe: Any, folder: Path) -> None:
    """Attention as old diffusers has it, convolutions as peft."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers

    converted = convert_state_dict_to_diffusers(state_of(pipe))
    forms = {form for form in ("lora.down", "lora_A") if any(f".{form}." in name for name in converted)}
    assert forms == {"lora.down", "lora_A"}
    pipe.save_lora_weights(
        folder, converted, weight_name="a.safetensors", unet_lora_adapter_metadata=_configuration(pipe)
    )


def save_kohya(pipe: Any, folder: Path) -> None:
    """By diffusers' converter, with the true alpha, for which it takes the rank."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    converted = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in state_of(pipe).items()})
    names = {f"lora_unet_{name.replace('.', '_')}.alpha": module for name, module in pipe.unet.named_modules()}
    for name in converted:
        if name.endswith(".alpha"):
            module = names[name]
            assert int(converted[name]) == module.r["default"]
            converted[name] = torch.tensor(module.scaling["default"] * module.r["default"])
    write_file(folder / "a.safetensors", converted)


def _configuration(pipe: Any) -> dict[str, Any]:
    said = pipe.unet.peft_config["default"].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in said.items()}


SETTINGS = {
    "one": {},
    "by layer": {
        "rank_pattern": {"to_q": 3, "^down_blocks.1.attentions.0.proj_in": 2, "conv1": 5},
        "alpha_pattern": {"to_k": 7, "mid_block.resnets.0.conv1": 0.5, "^proj_in": 100},
    },
    "stabilised": {"use_rslora": True},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("save", [save_adapter, save_weights, save_mixture, save_kohya])
def test_what_diffusers_saves_computes_the_same(
    save: Callable[[Any, Path], None], settings: str, tmp_path: Path
) -> None:
    pipe, network = adapted_pipeline(tmp_path, **SETTINGS[settings])
    save(pipe, tmp_path)
    found = read_lora(tmp_path / "a.safetensors", network)
    assert not found.notes
    assert set(found.pairs) == adapted_by(pipe)
    assert len({pair.rank for pair in found.pairs.values()}) == (4 if settings == "by layer" else 1)
    close(with_weights(network, found.pairs), output(pipe.unet.double()))


def test_what_peft_saves_computes_the_same(tmp_path: Path) -> None:
    """Its alpha is in a file beside the weights, and is taken from there alone."""
    pipe, network = pipeline_of("sd15", tmp_path)
    config = peft.LoraConfig(
        r=4, lora_alpha=2, alpha_pattern={"to_k": 7}, target_modules=TARGETS, init_lora_weights=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = peft.get_peft_model(pipe.unet, config)
    model.save_pretrained(str(tmp_path / "a"))
    found = read_lora(tmp_path / "a" / "adapter_model.safetensors", network)
    assert not found.notes
    assert {pair.alpha for pair in found.pairs.values()} == {2.0, 7.0}
    close(with_weights(network, found.pairs), output(pipe.unet.double()))
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "b.safetensors")
    without = read_lora(tmp_path / "b.safetensors", network)
    assert {pair.alpha for pair in without.pairs.values()} == {4.0}
    assert "no alpha" in without.notes[0]


def test_attention_processors_of_old_diffusers_compute_the_same(tmp_path: Path) -> None:
    """As diffusers loads them: without an alpha."""
    pipe, network = pipeline_of("sd15", tmp_path)
    old = {}
    for path, pair in pairs_of(network).items():
        block, _, part = path.rpartition(".attn1.")
        if block:
            stem = f"{block}.attn1.processor.{part.removesuffix('.0')}_lora"
            old |= {f"{stem}.down.weight": pair.down, f"{stem}.up.weight": pair.up}
    assert any("to_out_lora" in name for name in old)
    path = write_file(tmp_path / "a.safetensors", old)
    found = read_lora(path, network)
    assert len(found.pairs) == len(old) / 2
    pipe.load_lora_weights(str(path))
    assert set(found.pairs) == adapted_by(pipe)
    close(with_weights(network, found.pairs), output(pipe.unet.double()))


def test_kohyas_file_of_sdxl_computes_the_same(tmp_path: Path) -> None:
    """Original names, as diffusers renames them by the network's configuration."""
    pipe, network = pipeline_of("sdxl", tmp_path)
    write_lora(tmp_path / "a.safetensors", pairs_of(network, alpha=lambda index: 8.0), network, "kohya")
    tensors, _ = read_file(tmp_path / "a.safetensors")
    assert {name.split("_")[2] for name in tensors} == {"input", "middle", "output", "time", "label", "out"}
    found = read_lora(tmp_path / "a.safetensors", network)
    pipe.load_lora_weights(str(tmp_path / "a.safetensors"))
    assert set(found.pairs) == adapted_by(pipe)
    close(with_weights(network, found.pairs), output(pipe.unet.double()))


def test_a_text_encoders_entries_are_counted_and_said(tmp_path: Path) -> None:
    pipe, network = adapted_pipeline(tmp_path)
    # transformers' own call asks for a later peft.
    text = peft.LoraConfig(r=3, lora_alpha=9, target_modules=["q_proj", "v_proj"])
    peft.inject_adapter_in_model(text, pipe.text_encoder)
    theirs = peft.get_peft_model_state_dict(pipe.text_encoder)
    pipe.save_lora_weights(
        tmp_path,
        state_of(pipe),
        theirs,
        weight_name="a.safetensors",
        unet_lora_adapter_metadata=_configuration(pipe),
    )
    found = read_lora(tmp_path / "a.safetensors", network)
    (note,) = found.notes
    assert len(theirs) == 12
    assert f"{len(theirs)} entries of text encoders are left out" in note
    assert set(found.pairs) == adapted_by(pipe)
    assert {pair.alpha for pair in found.pairs.values()} == {2.0}
