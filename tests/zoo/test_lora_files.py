"""Adapters in files: each form reads back, and diffusers and peft read ours and are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_kit import NETWORKS, XL, added, layers_of, network_of, output, pairs_of, read_file, write_file
from torch import Tensor, nn

import pipeline_kit as kit
from fewstep.errors import UserError
from fewstep.networks import DiffusersTextUNet
from fewstep.networks.adapters.low_rank_pair import LowRankPair
from fewstep.zoo.lora import fused, read_lora, write_lora
from fewstep.zoo.lora.lora_layers import LoraLayers

diffusers = pytest.importorskip("diffusers")

FORMS = ("peft", "kohya", "comfyui")
# With all of their layers in the original code.
ORIGINAL = ("sd", "xl")


def close(a: Tensor, b: Tensor) -> None:
    assert torch.allclose(a, b, rtol=0, atol=1e-6 * float(b.abs().max())), float((a - b).abs().max())


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(("name", "form"), [(n, f) for n in NETWORKS for f in FORMS if f != "comfyui" or n in ORIGINAL])
def test_each_form_reads_back_what_was_written(name: str, form: Any, every: int, tmp_path: Path) -> None:
    """Ranks and alphas differ by layer."""
    network = network_of(name)
    pairs = pairs_of(network, every)
    write_lora(tmp_path / "a.safetensors", pairs, network, form)
    found = read_lora(tmp_path / "a.safetensors", network)
    assert list(found.pairs) == list(pairs)
    assert not found.notes
    for path, pair in found.pairs.items():
        assert pair.down.equal(pairs[path].down)
        assert pair.rank == pairs[path].rank
        close(pair.product(), pairs[path].product())
        if form != "kohya":
            assert pair.up.equal(pairs[path].up)
            assert pair.alpha == pairs[path].alpha


def test_kohyas_form_is_written_as_it_is_where_alphas_agree(tmp_path: Path) -> None:
    network = network_of("sd")
    pairs = pairs_of(network, alpha=lambda index: 8.0)
    write_lora(tmp_path / "a.safetensors", pairs, network, "kohya")
    for path, pair in read_lora(tmp_path / "a.safetensors", network).pairs.items():
        assert pair.up.equal(pairs[path].up)
        assert pair.alpha == 8.0


@pytest.mark.parametrize("form", FORMS)
def test_equal_adapters_are_equal_bytes(form: Any, tmp_path: Path) -> None:
    network = network_of("sd")
    pairs = pairs_of(network)
    digests = [
        write_lora(tmp_path / name, dict(given), network, form)
        for name, given in (("a", pairs.items()), ("b", reversed(pairs.items())))
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 64
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    another = {**pairs, next(iter(pairs)): LowRankPair(*2 * [torch.ones(1)], 1.0)}
    with pytest.raises(UserError):
        write_lora(tmp_path / "a", another, network, form)
    changed = {path: LowRankPair(pair.down, pair.up, 2 * pair.alpha) for path, pair in pairs.items()}
    assert write_lora(tmp_path / "c", changed, network, form) != digests[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_weights_are_the_definition(name: str) -> None:
    network = network_of(name)
    before = {path: layer.weight.detach().clone() for path, layer in layers_of(network).items()}
    pairs = pairs_of(network, every=2)
    wanted = added(network, pairs)
    for path, layer in layers_of(fused(network, pairs)).items():
        close(layer.weight.detach(), wanted[path])
        assert path in pairs or layer.weight.equal(before[path])
    half = layers_of(fused(network, pairs, 0.5))
    for path, layer in layers_of(network).items():
        assert layer.weight.equal(before[path])
        close(half[path].weight.detach(), (before[path] + wanted[path]) / 2)


LAYOUTS = {
    # The blocks of Stable Diffusion 1 and 2, and of SDXL, with few channels.
    "sd": {
        "block_out_channels": [8, 8, 16, 16],
        "layers_per_block": 2,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    },
    "xl": {
        **XL,
        "block_out_channels": [8, 16, 16],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 3],
        "attention_head_dim": [2, 4, 4],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "tiny": {},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_comfyuis_names_are_those_that_diffusers_converts(name: str, tmp_path: Path) -> None:
    """All layers have one, and diffusers' conversion of checkpoints maps it to the layer."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = {**dict(NETWORKS["sd"]["config"]), **LAYOUTS[name]}
    network = DiffusersTextUNet(config)
    pairs = pairs_of(network)
    assert len(pairs) > 80
    write_lora(tmp_path / "a.safetensors", pairs, network, "comfyui")
    tensors, header = read_file(tmp_path / "a.safetensors")
    assert "lora_adapter_metadata" not in header
    assert len(tensors) == 3 * len(pairs)
    for part in ("lora_A.weight", "lora_B.weight", "alpha"):
        theirs = {}
        for key, value in tensors.items():
            if key.endswith(part):
                # It asks for some layers' biases.
                theirs |= {f"model.{key.removesuffix(part)}{each}": value for each in ("weight", "bias")}
        converted = convert_ldm_unet_checkpoint(theirs, network.unet.config)
        for path, pair in pairs.items():
            value, _ = (converted.pop(f"{path.removeprefix('unet.')}.{each}") for each in ("weight", "bias"))
            wanted = {"lora_A.weight": pair.down, "lora_B.weight": pair.up, "alpha": torch.tensor(pair.alpha)}[part]
            assert value.equal(wanted), path
        assert not converted


def test_the_original_code_numbers_its_modules_so() -> None:
    """What diffusers' conversion cannot tell: a doubling comes behind the attention where its block
    has any, and a decoder's block has the layers of the encoder's at its size, and one more.
    """
    sd = {**dict(NETWORKS["sd"]["config"]), **LAYOUTS["sd"]}
    uneven = {**dict(NETWORKS["sd"]["config"]), "layers_per_block": [1, 3]}
    known = {
        "up_blocks.0.upsamplers.0.conv": ("output_blocks.2.1.conv", "output_blocks.3.2.conv"),
        "up_blocks.1.resnets.1.conv2": ("output_blocks.4.0.out_layers.3", "output_blocks.5.0.out_layers.3"),
        "down_blocks.0.downsamplers.0.conv": ("input_blocks.3.0.op", "input_blocks.2.0.op"),
        "down_blocks.1.resnets.1.conv1": ("input_blocks.5.0.in_layers.2", "input_blocks.4.0.in_layers.2"),
        "down_blocks.1.attentions.0.proj_in": ("input_blocks.4.1.proj_in", "input_blocks.3.1.proj_in"),
    }
    for index, config in enumerate((sd, uneven)):
        originals = LoraLayers.of(DiffusersTextUNet(config)).originals
        for layer, names in known.items():
            assert originals[f"unet.{layer}"] == names[index]
    assert LoraLayers.of(DiffusersTextUNet(sd)).originals["unet.up_blocks.1.upsamplers.0.conv"] == (
        "output_blocks.5.2.conv"
    )


def test_kohyas_names_are_the_original_ones_of_sdxl_alone(tmp_path: Path) -> None:
    for name, some in (("sd", "down_blocks_0_resnets_0_conv1"), ("xl", "input_blocks_1_0_in_layers_2")):
        network = network_of(name)
        write_lora(tmp_path / "a.safetensors", pairs_of(network), network, "kohya")
        assert f"lora_unet_{some}.lora_down.weight" in read_file(tmp_path / "a.safetensors")[0]


@pytest.mark.parametrize("name", ORIGINAL)
@pytest.mark.parametrize("original", [False, True])
def test_kohyas_files_are_read_with_either_names(name: str, original: bool, tmp_path: Path) -> None:
    network = network_of(name)
    pairs = pairs_of(network)
    write_lora(tmp_path / "a.safetensors", pairs, network, "comfyui")
    tensors, _ = read_file(tmp_path / "a.safetensors")
    others = {
        f"lora_unet_{layer.removeprefix('diffusion_model.').replace('.', '_')}.{part}": value
        for key, value in tensors.items()
        for layer, part in [_kohya(key)]
    }
    if not original:
        others = {
            f"lora_unet_{path.removeprefix('unet.').replace('.', '_')}.{part}": value
            for path, pair in pairs.items()
            for part, value in (
                ("lora_down.weight", pair.down),
                ("lora_up.weight", pair.up),
                ("alpha", torch.tensor(pair.alpha)),
            )
        }
    found = read_lora(write_file(tmp_path / "b.safetensors", others), network)
    assert not found.notes
    assert list(found.pairs) == list(pairs)
    for path, pair in found.pairs.items():
        assert pair.alpha == pairs[path].alpha
        assert pair.down.equal(pairs[path].down)
        assert pair.up.equal(pairs[path].up)


def _kohya(key: str) -> tuple[str, str]:
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    layer, _, side = key.removesuffix(".weight").rpartition(".lora_")
    return layer, {"A": "lora_down.weight", "B": "lora_up.weight"}[side]


@pytest.mark.parametrize("prefix", ["unet.", "base_model.model.", "base_model.model.unet.", "diffusion_model.", ""])
@pytest.mark.parametrize("inside", ["", ".default"])
def test_prefixes_of_pefts_form_are_taken(prefix: str, inside: str, tmp_path: Path) -> None:
    network = network_of("sd")
    pairs = pairs_of(network)
    tensors = {}
    for path, pair in pairs.items():
        layer = prefix + path.removeprefix("unet.")
        tensors |= {f"{layer}.lora_A{inside}.weight": pair.down, f"{layer}.lora_B{inside}.weight": pair.up}
    found = read_lora(write_file(tmp_path / "a.safetensors", tensors), network)
    assert list(found.pairs) == list(pairs)
    # Without an alpha it is the rank, and that is said.
    assert all(pair.scale == 1 for pair in found.pairs.values())
    (note,) = found.notes
    assert f"no alpha for {len(pairs)} of {len(pairs)} layers" in note


def test_weights_of_half_precision_are_read_as_float32(tmp_path: Path) -> None:
    network = network_of("sd")
    pairs = pairs_of(network)
    halves = {path: LowRankPair(pair.down.half(), pair.up.half(), pair.alpha) for path, pair in pairs.items()}
    write_lora(tmp_path / "a.safetensors", halves, network, "comfyui")
    for path, pair in read_lora(tmp_path / "a.safetensors", network).pairs.items():
        assert pair.down.dtype == pair.up.dtype == torch.float32
        assert pair.down.half().equal(halves[path].down)


def test_matrices_and_convolutions_of_one_pixel_are_one(tmp_path: Path) -> None:
    """SD 1's ``proj_in`` is a convolution of one pixel and SD 2's a matrix."""
    network = network_of("sd")
    layers = layers_of(network)
    pairs = {path: pair for path, pair in pairs_of(network).items() if layers[path].weight[0, 0].numel() == 1}
    tensors = {}
    for path, pair in pairs.items():
        convolution = isinstance(layers[path], nn.Conv2d)
        for side, value in (("A", pair.down), ("B", pair.up)):
            tensors[f"{path}.lora_{side}.weight"] = value.flatten(1) if convolution else value[..., None, None]
    found = read_lora(write_file(tmp_path / "a.safetensors", tensors), network).pairs
    assert {type(layers[path]) for path in found} >= {nn.Conv2d}
    for path, pair in found.items():
        assert pair.down.equal(pairs[path].down)
        assert pair.up.equal(pairs[path].up)


def pipeline_of(name: str, folder: Path) -> tuple[Any, DiffusersTextUNet]:
    """diffusers' pipeline, and its U-Net as a network of ours, of the same weights."""
    pipe = kit.pipeline(name, folder)
    network = DiffusersTextUNet({key: value for key, value in pipe.unet.config.items() if not key.startswith("_")})
    network.unet.load_state_dict(pipe.unet.state_dict())
    return pipe, network.requires_grad_(False)


def with_weights(network: DiffusersTextUNet, pairs: Mapping[str, LowRankPair]) -> Tensor:
    """What the network computes with the pairs added to its weights; in float64, since float32
    rounds by 1e-6 from layer to layer.
    """
    wide = {path: LowRankPair(pair.down.double(), pair.up.double(), pair.alpha) for path, pair in pairs.items()}
    return output(fused(network.double(), wide).unet)


def adapted_by(pipe: Any) -> set[str]:
    """The layers of a pipeline's U-Net that have an adapter, as ours name them."""
    names = (name for name, _ in pipe.unet.named_modules() if name.endswith(".lora_A"))
    return {f"unet.{name.removesuffix('.lora_A')}" for name in names}


@pytest.mark.filterwarnings("default", "error:.*did not match")
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("form", ["peft", "kohya"])
@pytest.mark.parametrize("name", kit.NAMES)
def test_diffusers_computes_what_our_weights_compute(name: str, form: Any, every: int, tmp_path: Path) -> None:
    """Unfused and fused, of ranks and alphas that differ by layer."""
    pytest.importorskip("peft")
    pipe, network = pipeline_of(name, tmp_path)
    pairs = pairs_of(network, every)
    write_lora(tmp_path / "a.safetensors", pairs, network, form)
    pipe.load_lora_weights(str(tmp_path / "a.safetensors"))
    assert adapted_by(pipe) == set(pairs)
    wanted, unet = with_weights(network, pairs), pipe.unet.double()
    close(output(unet), wanted)
    pipe.fuse_lora(lora_scale=1.0)
    pipe.unload_lora_weights()
    assert not adapted_by(pipe)
    close(output(unet), wanted)
    assert float((output(network.unet) - wanted).abs().max()) > 0.1 * float(wanted.abs().max())


@pytest.mark.filterwarnings("default")
def test_a_network_of_diffusers_reads_ours_as_an_adapter(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    pipe, network = pipeline_of("sd15", tmp_path)
    pairs = pairs_of(network)
    write_lora(tmp_path / "a.safetensors", pairs, network, "peft")
    pipe.unet.load_lora_adapter(str(tmp_path), weight_name="a.safetensors", prefix="unet")
    close(output(pipe.unet.double()), with_weights(network, pairs))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["small", "mlp", "captions"])
def test_peft_computes_what_our_weights_compute(name: str, tmp_path: Path) -> None:
    """The configuration in the header is all that peft needs."""
    peft = pytest.importorskip("peft")
    network = network_of(name)
    pairs = pairs_of(network, every=2)
    wanted = added(network, pairs)
    write_lora(tmp_path / "a.safetensors", pairs, network, "peft")
    tensors, header = read_file(tmp_path / "a.safetensors")
    model, prefix = (network.unet, "unet.") if name == "captions" else (network, "")
    said = {key.removeprefix(prefix): value for key, value in json.loads(header["lora_adapter_metadata"]).items()}
    peft.inject_adapter_in_model(peft.LoraConfig(**said), model)
    kept = peft.set_peft_model_state_dict(model, {key.removeprefix(prefix): value for key, value in tensors.items()})
    assert not kept.unexpected_keys
    adapted = {path: each for path, each in network.named_modules() if isinstance(each, peft.tuners.lora.LoraLayer)}
    assert set(adapted) >= set(pairs)
    for path, layer in adapted.items():
        layer.merge()
        close(layer.get_base_layer().weight.detach(), wanted[path])


@pytest.mark.filterwarnings("default")
def test_a_name_at_the_end_of_another_is_a_layer_of_its_own(tmp_path: Path) -> None:
    """By peft's patterns "out" would be "block.out" as well."""
    peft = pytest.importorskip("peft")
    inner = nn.ModuleDict({"out": nn.Linear(5, 6), "next": nn.Linear(6, 5)})
    network = nn.ModuleDict({"out": nn.Linear(3, 4), "block": inner, "last": nn.Linear(5, 3)})
    pairs = pairs_of(network, alpha=lambda index: (8.0, 3.0, 3.0, 3.0)[index])
    assert {path: pair.rank for path, pair in pairs.items()} == {"out": 2, "block.out": 3, "block.next": 4, "last": 2}
    write_lora(tmp_path / "a.safetensors", pairs, network, "peft")
    found = read_lora(tmp_path / "a.safetensors", network).pairs
    assert {path: pair.alpha for path, pair in found.items()} == {path: pair.alpha for path, pair in pairs.items()}
    tensors, header = read_file(tmp_path / "a.safetensors")
    wanted = added(network, pairs)
    peft.inject_adapter_in_model(peft.LoraConfig(**json.loads(header["lora_adapter_metadata"])), network)
    assert not peft.set_peft_model_state_dict(network, tensors).unexpected_keys
    for path in pairs:
        layer = network.get_submodule(path)
        layer.merge()
        close(layer.get_base_layer().weight.detach(), wanted[path])
