"""Laws of diffusers' text-conditional U-Net as a network: it computes what diffusers computes, with
attention by ours, and reads what its configuration says of a condition.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from law_kit import normals, randomised
from torch import Tensor

from fewstep import cost
from fewstep.condition import Condition
from fewstep.denoisers import NetworkDenoiser, TimestepInputs, copy_of, load_model, model_files, save_model
from fewstep.denoisers.denoiser import frozen
from fewstep.errors import UserError
from fewstep.networks import DiffusersTextUNet, build, grown
from fewstep.networks.diffusers.text_unet import guidance_waves
from fewstep.networks.kinds.network_files import load_network, save_network
from fewstep.prediction import Epsilon
from fewstep.schedule import DiscreteVP

diffusers = pytest.importorskip("diffusers")

SD = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
XL = {
    **SD,
    "attention_head_dim": [2, 4],
    "transformer_layers_per_block": [1, 2],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 10 + 6 * 4,
}
POOLED = {
    **SD,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 3,
    "resnet_time_scale_shift": "scale_shift",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd": SD,
    "xl": XL,
    "pooled": POOLED,
    "distilled": {**SD, "time_cond_proj_dim": 9},
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def network_of(name: str, **changes: Any) -> DiffusersTextUNet:
    network = build({"kind": "diffusers-text-unet", "config": CONFIGS[name], **changes})
    assert isinstance(network, DiffusersTextUNet)
    randomised(network, scale=0.2)
    return network


def condition_of(rows: int = 2, dtype: torch.dtype = torch.float32, **more: Tensor) -> Condition:
    """Everything that any of the networks reads, but for a mask."""
    sizes = torch.tensor([64.0, 48.0, 3.0, 0.0, 64.0, 64.0], dtype=dtype)
    context = {
        "text": normals(rows, 7, 12, seed=4, dtype=dtype),
        "pooled": normals(rows, 10, seed=5, dtype=dtype),
        "time_ids": sizes.expand(rows, 6),
        **more,
    }
    return Condition(context=context, guidance=torch.linspace(1, 8, rows, dtype=dtype))


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return normals(2, 4, 8, 8, dtype=dtype), torch.tensor([3.0, 700.5], dtype=dtype)


def as_diffusers(network: DiffusersTextUNet, x: Tensor, label: Tensor, condition: Condition) -> Tensor:
    """The same weights in diffusers' own class, called as its pipelines call it."""
    theirs = diffusers.UNet2DConditionModel(**network.unet.config)
    theirs.load_state_dict(network.unet.state_dict())
    more: dict[str, Any] = {}
    if network.waves is not None:
        more["timestep_cond"] = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding(
            None, condition.guidance - 1, embedding_dim=network.waves
        )
    pooled, sizes = condition.context["pooled"], condition.context["time_ids"]
    return theirs(
        x,
        label,
        condition.context["text"],
        encoder_attention_mask=condition.context.get("mask"),
        added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
        **more,
    ).sample


@every_config
@pytest.mark.parametrize("masked", [False, True])
def test_it_computes_what_diffusers_computes(name: str, masked: bool) -> None:
    network, (x, label) = network_of(name), inputs()
    mask = {"mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1] * 7])} if masked else {}
    condition = condition_of(**mask)
    found = network(x, label, condition)
    torch.testing.assert_close(found, as_diffusers(network, x, label, condition), rtol=1e-5, atol=1e-6)
    if masked and name != "pooled":
        # What is masked has no say, but in the embedding of the whole text.
        other = condition.context["text"].clone()
        other[0, 3:] += 5
        changed = Condition(context={**condition.context, "text": other}, guidance=condition.guidance)
        assert torch.equal(network(x, label, changed), found)
        assert not torch.allclose(network(x, label, condition_of()), found, atol=1e-3)


@pytest.mark.parametrize("channels", [9, 256])
def test_the_guidance_scale_is_embedded_as_diffusers_embeds_it(channels: int) -> None:
    scale = torch.tensor([0.0, 0.25, 6.5])
    expected = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding(None, scale, embedding_dim=channels)
    # A sine of thousands in float32 has that many ulps of a thousand.
    torch.testing.assert_close(guidance_waves(scale, channels), expected, rtol=0, atol=2e-3)
    exact = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding(
        None, scale.double(), embedding_dim=channels, dtype=torch.float64
    )
    torch.testing.assert_close(guidance_waves(scale.double(), channels), exact, rtol=0, atol=5e-3)


@every_config
def test_all_that_it_reads_has_a_say(name: str) -> None:
    network, (x, label), condition = network_of(name), inputs(), condition_of()
    found = network(x, label, condition)
    read = {"text", *(("pooled", "time_ids") if name == "xl" else ())}
    assert set(network.context_shapes) == read
    for key, value in condition.context.items():
        changed = Condition(context={**condition.context, key: value + 1}, guidance=condition.guidance)
        assert torch.equal(network(x, label, changed), found) == (key not in read)
    other = Condition(context=condition.context, guidance=torch.full((2,), 3.0))
    assert torch.equal(network(x, label, other), found) == (name != "distilled")


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_a_place_for_the_guidance_scale_is_silent_at_first(name: str) -> None:
    network, (x, label), condition = network_of(name), inputs(), condition_of()
    taught = grown(network, guidance=True)
    assert torch.equal(taught(x, label, condition), network(x, label, condition))
    assert taught.unet.config.time_cond_proj_dim == 256
    with pytest.raises(UserError, match="conditioned on a guidance scale and the condition has none"):
        taught(x, label, Condition(context=condition.context))
    again = build({"kind": "diffusers-text-unet", "config": CONFIGS["distilled"]})
    assert not again.unet.time_embedding.cond_proj.weight.any()


@every_config
def test_features_are_the_middle_blocks_and_cost_no_decoder(name: str) -> None:
    network, (x, _), condition = network_of(name).requires_grad_(False), inputs(), condition_of()
    seen: list[Tensor] = []
    decoded: list[Tensor] = []
    network.unet.mid_block.register_forward_hook(lambda *given: seen.append(given[2]))
    network.unet.up_blocks[0].register_forward_hook(lambda *given: decoded.append(given[2]))
    denoiser = NetworkDenoiser(network, DiscreteVP(), Epsilon(), TimestepInputs(), (4, 8, 8))
    with cost.metered() as meter:
        found = denoiser.features(x, torch.full((2,), 0.5), condition)
    assert torch.equal(found, seen[0])
    assert (tuple(found.shape), network.bottleneck, meter.evaluations, decoded) == ((2, 16, 4, 4), 16, 2, [])
    assert network.leave is network.unet.conv_out


@every_config
def test_recomputation_changes_no_bit(name: str) -> None:
    network, (x, label), condition = network_of(name), inputs(), condition_of()
    x.requires_grad_()

    def gradients() -> list[Tensor]:
        value = network(x, label, condition)
        return [value, *torch.autograd.grad(value.sin().sum(), [x, *network.parameters()])]

    assert not network.recompute
    kept = gradients()
    network.recompute = True
    assert copy_of(network).recompute
    calls: list[int] = []
    network.unet.up_blocks[0].resnets[0].conv1.register_forward_hook(lambda *given: calls.append(1))
    again = gradients()
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert len(calls) == 2
    network.recompute = False
    gradients()
    assert len(calls) == 3


@every_config
def test_recomputation_remembers_what_was_held_still(name: str) -> None:
    """As a generator's term asks a critic, whose backward pass comes when the critic is let go."""
    network, (x, label), condition = network_of(name).requires_grad_(True), inputs(), condition_of()
    found = []
    for on in (False, True):
        network.recompute = on
        at = x.clone().requires_grad_()
        with frozen(network):
            total = network.features(at, label, condition).sin().sum() + network(at, label, condition).sin().sum()
        total.backward()
        assert at.grad is not None
        found.append(at.grad)
        assert all(value.requires_grad and value.grad is None for value in network.parameters())
    assert torch.equal(*found)


def test_copies_forget_one_another() -> None:
    """Recomputation runs the copy's own blocks."""
    network, (x, label), condition = network_of("sd"), inputs(), condition_of()
    network.recompute = True
    other = copy_of(network)
    with torch.no_grad():
        network.unet.conv_in.weight.zero_()
        network.unet.up_blocks[0].resnets[0].conv1.weight.zero_()
    kept = copy_of(other)
    kept.recompute = False
    weight = other.unet.up_blocks[0].resnets[0].conv1.weight
    found = torch.autograd.grad(other(x, label, condition).sum(), weight)[0]
    expected = torch.autograd.grad(kept(x, label, condition).sum(), kept.unet.up_blocks[0].resnets[0].conv1.weight)[0]
    assert torch.equal(found, expected)


@every_config
def test_the_gradient_has_a_gradient(name: str) -> None:
    """As R1 on features asks for, also with a mask."""
    network, (x, label) = network_of(name).double().requires_grad_(False), inputs(torch.float64)
    condition = condition_of(dtype=torch.float64, mask=torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1] * 7]))
    x.requires_grad_()

    def slope(x: Tensor) -> Tensor:
        return torch.autograd.grad(network(x, label, condition).sin().sum(), x, create_graph=True)[0]

    direction, h = normals(*x.shape, seed=3), 1e-5
    (found,) = torch.autograd.grad((slope(x) * direction).sum(), x)
    expected = (slope(x + h * direction) - slope(x - h * direction)).detach() / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


PUBLISHED: dict[str, tuple[dict[str, Any], int, dict[str, tuple[int, ...]]]] = {
    "Stable Diffusion 1.5": (
        {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
        859_520_964,
        {"text": (1, 768)},
    ),
    "Stable Diffusion 2.1": (
        {
            "sample_size": 96,
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        865_910_724,
        {"text": (1, 1024)},
    ),
    "SDXL": (
        {
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "upcast_attention": None,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        2_567_463_684,
        {"text": (1, 2048), "pooled": (1280,), "time_ids": (6,)},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_numbers_of_parameters(name: str) -> None:
    config, parameters, shapes = PUBLISHED[name]
    with torch.device("meta"):
        network = build({"kind": "diffusers-text-unet", "config": config})
    assert sum(value.numel() for value in network.parameters()) == parameters
    assert isinstance(network, DiffusersTextUNet)
    assert network.context_shapes == shapes


# Files


@every_config
def test_a_stored_denoiser_is_read_again_bit_for_bit(tmp_path, name: str) -> None:
    denoiser = NetworkDenoiser(network_of(name), DiscreteVP(), Epsilon(), TimestepInputs(), (4, 8, 8))
    save_model(tmp_path / "model.safetensors", denoiser)
    again, _ = load_model(tmp_path / "model.safetensors")
    (x, _), t, condition = inputs(), torch.tensor([0.3, 0.9]), condition_of()
    assert torch.equal(again(x, t, condition), denoiser(x, t, condition))
    save_network(tmp_path / "network.safetensors", denoiser.network)
    network = load_network(tmp_path / "network.safetensors")
    assert torch.equal(network(x, t, condition), denoiser.network(x, t, condition))


def test_a_large_one_is_tried_on_the_meta_device(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(model_files, "_SMALL", 10)
    denoiser = NetworkDenoiser(network_of("xl"), DiscreteVP(), Epsilon(), TimestepInputs(), (4, 8, 8))
    save_model(tmp_path / "model.safetensors", denoiser)
    load_model(tmp_path / "model.safetensors")
    wrong = NetworkDenoiser(network_of("xl"), DiscreteVP(), Epsilon(), TimestepInputs(), (3, 8, 8))
    save_model(tmp_path / "wrong.safetensors", wrong)
    with pytest.raises(UserError, match="does not take samples of the shape"):
        load_model(tmp_path / "wrong.safetensors")


# Refusals


@pytest.mark.parametrize(
    ("lacking", "sentence"),
    [
        ("text", r"conditioned on 'text' and the condition has none: .* of shape \(rows, tokens, 12\)"),
        ("pooled", r"conditioned on 'pooled' and the condition has none: .* of shape \(rows, 10\)"),
        ("time_ids", r"conditioned on 'time_ids' and the condition has none: .* of shape \(rows, 6\)"),
    ],
)
def test_what_a_condition_lacks_is_named(lacking: str, sentence: str) -> None:
    network, (x, label), condition = network_of("xl"), inputs(), condition_of()
    context = {name: value for name, value in condition.context.items() if name != lacking}
    with pytest.raises(UserError, match=sentence):
        network(x, label, Condition(context=context))
    for wrong in (condition.context[lacking][:1], condition.context[lacking][..., :-1], torch.zeros(2)):
        with pytest.raises(UserError, match=f"takes '{lacking}' of shape .* for a batch of 2"):
            network(x, label, Condition(context={**condition.context, lacking: wrong}))


def test_masks_and_ends_that_it_has_no_place_for_are_refused() -> None:
    network, (x, label) = network_of("sd"), inputs()
    with pytest.raises(UserError, match=r"has \(2, 7\) tokens and its mask is of shape \(2, 6\)"):
        network(x, label, condition_of(mask=torch.ones(2, 6)))
    with pytest.raises(UserError, match="takes no end label"):
        network(x, label, condition_of(), label)
    with pytest.raises(UserError, match="the condition has none"):
        network_of("distilled")(x, label, Condition(context=condition_of().context))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"class_embed_type": "timestep"}, "has 'timestep' for class_embed_type, and only None is read here"),
        ({"num_class_embeds": 3}, "has 3 for num_class_embeds"),
        ({"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 3}, "has 3 for encoder_hid_dim"),
        ({"addition_embed_type": "image"}, "has 'image' for addition_embed_type, and only None or text or text_time"),
        ({"attention_type": "gated"}, "has 'gated' for attention_type"),
        ({"dual_cross_attention": True}, "has True for dual_cross_attention"),
        ({"cross_attention_norm": "layer_norm"}, "has 'layer_norm' for cross_attention_norm"),
        ({"time_embedding_type": "fourier"}, "has 'fourier' for time_embedding_type"),
        ({"mid_block_type": None}, "has no middle block"),
        ({"cross_attention_dim": [12, 13]}, "texts of 2 widths"),
        ({"novel": 1}, "takes no 'novel'"),
        (
            {"down_block_types": ["DownBlock2D", "SimpleCrossAttnDownBlock2D"]},
            "it attends by AttnAddedKVProcessor2_0, which cannot be differentiated",
        ),
        (
            {**XL, "projection_class_embeddings_input_dim": 24},
            "projection_class_embeddings_input_dim leaves 0 numbers",
        ),
    ],
)
def test_networks_with_other_conditions_are_refused_by_name(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build({"kind": "diffusers-text-unet", "config": {**SD, **changes}})
