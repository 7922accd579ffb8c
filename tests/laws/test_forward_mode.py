"""Laws of the derivative forwards (``torch.func.jvp``) of whole networks: for each kind it is the
limit of differences, the transpose of the derivative backwards, and can itself be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from law_kit import normals, randomised
from torch import Tensor, nn

from family_kit import CASES
from fewstep.condition import Condition
from fewstep.networks import build
from fewstep.networks.families import DiffusersTransformer
from fewstep.networks.kinds.registry import kinds

EDM: dict[str, Any] = {"img_resolution": 8, "channel_mult": [1, 2], "num_blocks": 1}
SONG = {**EDM, "kind": "song-unet", "model_channels": 8, "channel_mult_emb": 2, "attn_resolutions": [4], "classes": 3}
NCSNPP = {
    **SONG,
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
SKIP = {**NCSNPP, "encoder_type": "skip", "decoder_type": "skip"}
ADM = {**EDM, "kind": "dhariwal-unet", "model_channels": 64, "channel_mult_emb": 1, "attn_resolutions": [8, 4]}
SMALL = {"kind": "small-unet", "width": 8, "embedding": 16}
DIFFUSERS = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
TEXT = {
    **DIFFUSERS,
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}

# Name -> (description, the shape of a sample, what besides the sample it takes). A "fixed level" is
# not differentiated: diffusers rounds it to float32, which differences of 1e-4 see. What is
# "joined" gives several outputs by name.
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[str, ...]]] = {
    "ddpm++": (SONG, (3, 8, 8), ("level", "condition")),
    "ncsn++": (NCSNPP, (3, 8, 8), ("level", "condition")),
    "song, skip": (SKIP, (3, 8, 8), ("level", "condition")),
    "adm": (ADM, (3, 8, 8), ("level", "condition")),
    "adm, additive": ({**ADM, "adaptive_scale": False}, (3, 8, 8), ("level", "condition")),
    "small-unet": ({**SMALL, "classes": 3}, (1, 8, 8), ("level", "condition")),
    "small-unet, patches": ({**SMALL, "channels": 3, "patch": 2}, (3, 8, 8), ("level", "condition")),
    "residual-mlp": ({"kind": "residual-mlp", "width": 16, "depth": 2, "classes": 3}, (2,), ("level", "condition")),
    "diffusers": ({"kind": "diffusers-unet2d", "config": DIFFUSERS}, (3, 8, 8), ("fixed level", "condition")),
    "text": ({"kind": "diffusers-text-unet", "config": TEXT}, (4, 8, 8), ("fixed level", "text")),
    "caption-unet": (
        {"kind": "caption-unet", "channels": 4, "widths": [8, 16], "text_width": 6, "heads": 2, "groups": 4},
        (4, 8, 8),
        ("fixed level", "text"),
    ),
    "patch-autoencoder": ({"kind": "patch-autoencoder", "channels": 4, "widths": [12, 12], "groups": 2}, (3, 8, 8), ()),
    "latent-mlp": ({"kind": "latent-mlp", "width": 16}, (2,), ("condition",)),
    "fastgan": ({"kind": "fastgan", "latent": 8, "resolution": 8, "width": 4}, (8,), ("condition",)),
    "digit-classifier": ({"kind": "digit-classifier", "width": 4, "features": 8}, (1, 8, 8), ()),
    "image-classifier": ({"kind": "image-classifier", "classes": 3, "size": 8, "width": 8}, (3, 8, 8), ()),
    "image-reader": (
        {"kind": "image-reader", "attributes": {"digit": 3, "place": 2}, "size": 8, "width": 8},
        (3, 8, 8),
        ("joined",),
    ),
    "feature-head": ({"kind": "feature-head", "channels": 8, "classes": 3}, (8, 4, 4), ("condition",)),
    "image-critic": ({"kind": "image-critic", "resolution": 8, "width": 4, "classes": 3}, (3, 8, 8), ("condition",)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def case(name: str) -> tuple[nn.Module, Callable[..., Tensor], tuple[Tensor, ...]]:
    """A network in float64, it as a function of sample and noise label, and these two."""
    if name in ("diffusers", "text", "caption-unet", "patch-autoencoder"):
        pytest.importorskip("diffusers")
    description, shape, takes = NETWORKS[name]
    network = randomised(build(description)).double().requires_grad_(False)
    level = torch.tensor([0.3, -1.2], dtype=torch.float64)
    fixed: list[Any] = [level] if "fixed level" in takes else []
    if "condition" in takes:
        fixed.append(Condition(torch.tensor([1, -1]) if description.get("classes") else None))
    if "text" in takes:
        mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
        fixed.append(Condition(context={"text": normals(2, 5, 6, seed=7), "mask": mask}))
    inputs = (normals(2, *shape, seed=1), level) if "level" in takes else (normals(2, *shape, seed=1),)
    if "joined" in takes:
        return network, lambda *inputs: torch.cat(list(network(*inputs).values()), dim=1), inputs
    return network, lambda *inputs: network(*inputs, *fixed), inputs


def test_every_kind_of_network_is_here() -> None:
    # Numbers of tokens have no direction; families of transformers have laws of their own.
    families = set(kinds(DiffusersTransformer))
    assert {description["kind"] for description, _, _ in NETWORKS.values()} | {"caption-reader"} == {
        name for name in kinds() if not name.startswith("tests-") and name not in families
    }
    assert {case.kind for case in CASES.values()} == families


@every_network
def test_forwards_is_the_limit_of_differences_and_the_transpose_of_backwards(name: str) -> None:
    _, function, inputs = case(name)
    tangents = tuple(normals(*value.shape, seed=2 + index) for index, value in enumerate(inputs))
    value, forward = torch.func.jvp(function, inputs, tangents)
    torch.testing.assert_close(value, function(*inputs), rtol=1e-10, atol=1e-10)
    size = float(forward.square().mean().sqrt())
    assert size > 1e-4

    def difference(h: float) -> Tensor:
        steps = [(value, h * tangent) for value, tangent in zip(inputs, tangents, strict=True)]
        ahead, behind = ([value + sign * step for value, step in steps] for sign in (1, -1))
        return (function(*ahead) - function(*behind)) / (2 * h)

    expected = (4 * difference(5e-5) - difference(1e-4)) / 3
    torch.testing.assert_close(forward / size, expected / size, rtol=0, atol=1e-6)

    cotangent = normals(*value.shape, seed=9)
    backward = torch.func.vjp(function, *inputs)[1](cotangent)
    product = sum((slope * tangent).sum() for slope, tangent in zip(backward, tangents, strict=True))
    torch.testing.assert_close((cotangent * forward).sum(), product, rtol=1e-9, atol=1e-9 * size)


# FastGAN's gated linear unit has none in torch, and a generator without noise levels no loss that
# asks for it.
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "fastgan"])
def test_the_derivative_forwards_has_a_gradient_at_the_weights(name: str) -> None:
    """As a loss on it asks for (sCM): along any direction of the weights, the slope of
    differences.
    """
    network, function, inputs = case(name)
    tangents = tuple(normals(*value.shape, seed=2 + index) for index, value in enumerate(inputs))
    weights = list(network.requires_grad_(True).parameters())

    def loss() -> Tensor:
        return torch.func.jvp(function, inputs, tangents)[1].square().sum()

    slopes = torch.autograd.grad(loss(), weights, allow_unused=True)
    direction = [1e-5 * normals(*weight.shape, seed=20 + index) for index, weight in enumerate(weights)]
    found = sum((slope * step).sum() for slope, step in zip(slopes, direction, strict=True) if slope is not None)
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for weight, step in zip(weights, direction, strict=True):
                weight += sign * step
            values.append(loss())
    # diffusers' pooling of a text takes its softmax in float32.
    rtol = 1e-4 if name == "caption-unet" else 1e-5
    torch.testing.assert_close(found, (values[0] - values[1]) / 2, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("name", ["ncsn++", "adm", "small-unet", "diffusers", "text", "image-classifier"])
def test_images_may_have_their_channels_last(name: str) -> None:
    _, function, (x, *level) = case(name)
    tangent = normals(*x.shape, seed=2)
    last = [value.contiguous(memory_format=torch.channels_last) for value in (x, tangent)]
    assert not last[0].is_contiguous() or x.shape[1] == 1
    expected = torch.func.jvp(lambda x: function(x, *level), (x,), (tangent,))[1]
    found = torch.func.jvp(lambda x: function(x, *level), (last[0],), (last[1],))[1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ncsn++", "adm", "small-unet", "diffusers", "text"])
def test_the_gradient_has_a_gradient(name: str) -> None:
    """As R1 on a network's features asks for."""
    _, function, (x, *level) = case(name)

    def slope(x: Tensor) -> Tensor:
        return torch.autograd.grad(function(x, *level).sin().sum(), x, create_graph=True)[0]

    x.requires_grad_()
    direction = normals(*x.shape, seed=3)
    (found,) = torch.autograd.grad((slope(x) * direction).sum(), x)
    h = 1e-5
    expected = (slope(x + h * direction) - slope(x - h * direction)).detach() / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
