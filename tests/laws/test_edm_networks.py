"""Laws of EDM's networks: they are NVIDIA's by name, by number and by value, and their blocks can
be read, differentiated both ways and computed twice.

``golden/edm.npz`` holds what the release's own code gave for the weights and inputs made here; see
``golden/README.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from law_kit import normals
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from fewstep.condition import Classes, Condition
from fewstep.denoisers import copy_of
from fewstep.errors import UserError
from fewstep.networks import AdaptedBase, AdaptedNetwork, Form, build, describe_network, grown
from fewstep.networks.edm import SETTINGS
from fewstep.networks.edm.layers import Conv, DownConv, DrawnLinear, Init, Resample, group_norm
from fewstep.networks.edm.noise_label import FourierEmbedding, PositionalEmbedding
from fewstep.networks.edm.unet import UNet
from fewstep.networks.kinds.network_files import load_network, load_strictly, save_network

GOLDEN = Path(__file__).parent / "golden"
ROWS = 2
SONG = {
    "kind": "song-unet",
    "img_resolution": 8,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "channel_mult_emb": 2,
    "num_blocks": 1,
    "attn_resolutions": [4],
}
NCSNPP = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
ADM = {
    "kind": "dhariwal-unet",
    "img_resolution": 8,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "channel_mult_emb": 1,
    "num_blocks": 1,
    "attn_resolutions": [4],
}

# Small networks that have everything the release's have: name -> (description, noise labels). The
# labels of VP and iDDPM go up to 999, those of VE and EDM are logarithms.
CASES: dict[str, tuple[dict, tuple[float, float]]] = {
    "ddpmpp": (SONG, (-1.5, 1.1)),
    "ddpmpp-conditional": (
        {**SONG, "classes": 3, "augment_dim": 9, "num_blocks": 2, "attn_resolutions": [8]},
        (-0.3, 0.7),
    ),
    "ddpmpp-vp": ({**SONG, "model_channels": 32, "channel_mult": [1], "attn_resolutions": []}, (999.0, 417.3)),
    "ncsnpp": ({**SONG, **NCSNPP, "channel_mult": [1, 2, 2], "classes": 3, "augment_dim": 9}, (-6.2, 3.2)),
    "song-skip": (
        {**SONG, **NCSNPP, "encoder_type": "skip", "decoder_type": "skip", "channel_mult": [1, 2, 2]},
        (-0.8, 0.9),
    ),
    "song-mixed": (
        {
            **SONG,
            "encoder_type": "residual",
            "decoder_type": "skip",
            "channel_mult": [2, 1],
            "out_channels": 2,
            "in_channels": 1,
        },
        (0.1, -2.0),
    ),
    "adm": ({**ADM, "classes": 3, "augment_dim": 4}, (-0.6, 0.4)),
    "adm-iddpm": (
        {**ADM, "channel_mult": [1, 1], "num_blocks": 2, "attn_resolutions": [8, 4], "out_channels": 6},
        (998.0, 3.0),
    ),
    "adm-additive": ({**ADM, "channel_mult": [1, 1], "adaptive_scale": False}, (-240.0, 1095.5)),
}
# The two of everything, for laws that hold for all.
BOTH = ("ncsnpp", "adm")
every_case = pytest.mark.parametrize("case", CASES)
both = pytest.mark.parametrize("case", BOTH)


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """sin(0.7 i^2 + phase of the name), (float64): as good as random, the same everywhere, of mean
    0 and variance 1/2.
    """
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.7 * index**2 + zlib.crc32(name.encode()) % 1000).reshape(shape)


def filled(network: nn.Module) -> nn.Module:
    """All weights by ``formula``, of a size at which every layer matters; the fixed filters as they
    are.
    """
    for name, value in network.state_dict().items():
        wave = formula(name, tuple(value.shape))
        if name.endswith("resample_filter"):
            continue
        if value.dim() > 1:
            wave = wave * math.sqrt(2 / value[0].numel())
        elif name.endswith("freqs"):
            wave = 4 * wave
        else:
            wave = 0.3 * wave + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        value.copy_(wave)
    return network


def inputs(case: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, noise labels, labels with one that is dropped (one-hot rows in the reference),
    augmentation labels.
    """
    description, levels = CASES[case]
    size = description["img_resolution"]
    x = formula("x", (ROWS, description.get("in_channels", 3), size, size)).float() * 1.4
    return (
        x,
        torch.tensor(levels),
        torch.tensor([1, -1]),
        formula("augment", (ROWS, description.get("augment_dim", 0))).float(),
    )


def network_of(case: str, **changes: bool) -> UNet:
    network = filled(build({**CASES[case][0], **changes}))
    assert isinstance(network, UNet)
    return network


def arguments_of(case: str) -> tuple[Tensor, Tensor, Condition]:
    x, level, labels, augment = inputs(case)
    return x, level, Condition(labels, {"augment": augment} if augment.numel() else {})


def golden(name: str) -> Tensor:
    with np.load(GOLDEN / "edm.npz") as archive:
        return torch.from_numpy(archive[name])


# The release


@every_case
def test_the_output_is_the_releases(case: str) -> None:
    expected = golden(case)
    network = network_of(case)
    found = network(*arguments_of(case))
    assert 0.3 < float(expected.square().mean().sqrt()) < 30
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(network.train()(*arguments_of(case)), network.eval()(*arguments_of(case)))


@both
def test_gradients_are_the_releases(case: str) -> None:
    network = network_of(case)
    x, level, condition = arguments_of(case)
    (network(x.requires_grad_(), level, condition) * formula("cotangent", (ROWS, 3, 8, 8)).float()).sum().backward()
    torch.testing.assert_close(x.grad, golden(f"{case}-gradient"), rtol=1e-4, atol=2e-5)
    # One number a parameter, which a wrong gradient anywhere would change.
    found = torch.stack(
        [(p.grad * formula(name, tuple(p.shape)).float()).sum() for name, p in sorted(network.named_parameters())]
    )
    torch.testing.assert_close(found, golden(f"{case}-parameters"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("cifar10-ddpmpp", 0, 55_733_891),
        ("cifar10-ddpmpp", 10, 55_735_299),
        ("cifar10-ncsnpp", 0, 56_397_827),
        ("ffhq64-ddpmpp", 0, 61_805_571),
        ("ffhq64-ncsnpp", 0, 62_761_091),
        ("afhqv2-64-ddpmpp", 0, 61_805_571),
        ("afhqv2-64-ncsnpp", 0, 62_761_091),
        ("imagenet64-adm", 1000, 295_899_267),
        ("lsun256-adm", 0, 526_304_771),
    ],
)
def test_parameters_are_the_releases_by_number_and_name(name: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        network = build({**SETTINGS[name], "classes": classes})
    assert sum(p.numel() for p in network.parameters()) == count
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in network.state_dict().items())
    expected = json.loads((GOLDEN / "edm-names.json").read_text())[f"{name}-{classes}"]
    assert len(lines) == expected["tensors"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == expected["sha256"]


def test_settings_are_plain_values_without_what_belongs_to_the_data() -> None:
    assert json.loads(json.dumps(dict(SETTINGS))) == SETTINGS
    assert not [name for name, setting in SETTINGS.items() if "classes" in setting]


# Layers


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (96, 24), (160, 32)])
def test_groups_are_at_most_32_of_at_least_4_channels(channels: int, groups: int) -> None:
    norm = group_norm(channels, 1e-6)
    assert (norm.num_groups, norm.num_channels, norm.eps) == (groups, channels, 1e-6)


def test_attention_is_torchs() -> None:
    block = network_of("adm").dec["4x4_in0"].double()
    x = normals(2, 128, 4, 4)
    assert block.heads == 2
    # The release stores a head's channels together, and for each channel its query, its key and its
    # value.
    q, k, v = block.qkv(block.norm2(x)).reshape(2, 2, 64, 3, 16).permute(3, 0, 1, 4, 2)
    expected = block.proj(scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(2, 128, 4, 4))
    torch.testing.assert_close(block._attended(x), expected, rtol=1e-10, atol=1e-10)


def test_attention_of_shorter_types_is_weighed_in_float32() -> None:
    block = network_of("adm").dec["4x4_in0"]
    with torch.no_grad():
        block.qkv.weight *= 300  # so that a query's product with a key is beyond float16's 65504
        block.proj.weight /= 300
    x = normals(2, 128, 4, 4, dtype=torch.float32)
    expected = block._attended(x)
    assert float(expected.detach().std()) > 0.1
    torch.testing.assert_close(block.half()._attended(x.half()).float(), expected, rtol=0.1, atol=0.1)


def test_resampling_by_two_taps_is_the_mean_and_its_repetition() -> None:
    x = normals(2, 3, 4, 6)
    down, up = Resample("down", (1, 1)).double(), Resample("up", (1, 1)).double()
    torch.testing.assert_close(down(x), x.reshape(2, 3, 2, 2, 3, 2).mean((3, 5)))
    torch.testing.assert_close(up(x), interpolate(x, scale_factor=2, mode="nearest"))


def test_resampling_by_four_taps_keeps_lines_and_is_its_own_transpose() -> None:
    down, up = Resample("down", (1, 3, 3, 1)).double(), Resample("up", (1, 3, 3, 1)).double()
    line = torch.arange(12.0, dtype=torch.float64).expand(1, 1, 12, 12)
    # Pixel centres: i of the half resolution lies at 2 i + 1/2, i of the double one at i / 2 - 1/4.
    torch.testing.assert_close(down(line)[0, 0, 2, 1:-1], 2 * torch.arange(1.0, 5.0, dtype=torch.float64) + 0.5)
    torch.testing.assert_close(up(line)[0, 0, 5, 1:-1], torch.arange(1.0, 23.0, dtype=torch.float64) / 2 - 0.25)
    coarse, fine = normals(1, 2, 3, 3), normals(1, 2, 6, 6, seed=1)
    torch.testing.assert_close((up(coarse) * fine).sum(), 4 * (coarse * down(fine)).sum())


def test_a_resampled_convolution_resamples_before_it_and_a_fused_one_after() -> None:
    init, x = Init("xavier-uniform", bias=1.0), normals(2, 3, 8, 8)
    for direction in ("up", "down"):
        conv = Conv(3, 5, 3, init, direction, (1, 3, 3, 1)).double()
        expected = nn.functional.conv2d(
            Resample(direction, (1, 3, 3, 1)).double()(x), conv.weight, conv.bias, padding=1
        )
        torch.testing.assert_close(conv(x), expected)
    fused = DownConv(3, 5, 3, init, (1, 3, 3, 1)).double()
    expected = (
        Resample("down", (1, 3, 3, 1)).double()(nn.functional.conv2d(x, fused.weight, padding=1))
        + fused.bias[:, None, None]
    )
    torch.testing.assert_close(fused(x)[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])
    assert not torch.allclose(fused(x), expected)  # only the border is padded otherwise


def test_layers_are_drawn_by_the_releases_rules() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = Conv(64, 32, 3, Init("xavier-uniform", 2.0))
        linear = DrawnLinear(400, 300, Init("kaiming-uniform", math.sqrt(1 / 3), math.sqrt(1 / 3)))
        normal = DrawnLinear(100, 4000, Init("kaiming-normal", math.sqrt(100)), bias=False)
    bound = 2 * math.sqrt(6 / (9 * (64 + 32)))
    assert 0.999 * bound < float(conv.weight.detach().abs().max()) <= bound
    assert float(conv.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not bool(conv.bias.any())
    for values in (linear.weight, linear.bias):
        assert 0.97 / math.sqrt(400) < float(values.detach().abs().max()) <= 1 / math.sqrt(400)
    assert normal.bias is None
    assert float(normal.weight.detach().std()) == pytest.approx(1.0, rel=0.01)


@both
def test_a_fresh_networks_blocks_end_silently(case: str) -> None:
    network = build(CASES[case][0])
    ends = [
        value
        for name, value in network.named_parameters()
        if name.endswith(("conv1.weight", "proj.weight", "aux_conv.weight", "out_conv.weight"))
    ]
    assert len(ends) > 5
    assert all(float(value.detach().abs().max()) <= (1e-5 if case == "ncsnpp" else 0.0) for value in ends)


def test_waves_of_a_noise_level() -> None:
    level = torch.tensor([0.0, 0.3, 999.0])
    powers = 10000 ** -(torch.arange(4, dtype=torch.float64) / 4)
    found = PositionalEmbedding(8)(level)
    torch.testing.assert_close(found[:, :4].double(), torch.cos(level[:, None] * powers), rtol=0, atol=1e-4)
    torch.testing.assert_close(found[:, 4:].double(), torch.sin(level[:, None] * powers), rtol=0, atol=1e-4)
    last = PositionalEmbedding(8, endpoint=True)(torch.ones(1))[0, 7]
    assert float(last) == pytest.approx(math.sin(1e-4), rel=1e-4)
    fourier = FourierEmbedding(4000)
    assert float(fourier.freqs.std()) == pytest.approx(16, rel=0.1)
    torch.testing.assert_close(
        fourier(level[:2])[:, 2000:], torch.sin(2 * math.pi * level[:2, None] * fourier.freqs), rtol=0, atol=1e-4
    )


# Conditions


@pytest.mark.parametrize("case", ["ddpmpp-conditional", "adm"])
def test_labels_and_augmentations_are_heard_and_none_is_zero(case: str) -> None:
    network = network_of(case)
    x, level, condition = arguments_of(case)
    nothing = network(x, level, Condition())
    silent = Classes(3).null(Condition(condition.labels))
    zeros = {name: torch.zeros_like(value) for name, value in condition.context.items()}
    assert torch.equal(nothing, network(x, level, replace(silent, context=zeros)))
    for other in (Condition(condition.labels), Condition(context=condition.context)):
        moved = (network(x, level, other) - nothing).detach().abs().flatten(1).amax(1)
        assert float(moved[0]) > 1e-2
        assert (float(moved[1]) > 1e-2) == bool(other.context)  # the second label is "no class"
    soft = Condition(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), condition.context)
    assert torch.equal(network(x, level, soft), network(x, level, condition))


@both
def test_grown_networks_are_silent_at_first_and_then_listen(case: str) -> None:
    old = network_of(case)
    new = grown(old, guidance=True, end=True)
    x, level, condition = arguments_of(case)
    condition, end = Condition(condition.labels, condition.context, torch.tensor([1.0, 5.0])), torch.tensor([-2.0, 0.5])
    assert torch.equal(new(x, level, condition, end), old(x, level, condition))
    assert torch.equal(new.features(x, level, condition, end), old.features(x, level, condition))
    assert {key for key in new.state_dict() if key not in old.state_dict()} == {
        f"side.{part}.{kind}" for part in ("guidance", "end") for kind in ("weight", "bias")
    }
    # A branch enters where the noise level does: its bias is as good as one on the last layer of
    # the embedding.
    shift = normals(*new.map_layer1.bias.shape, dtype=torch.float32)
    with torch.no_grad():
        new.side.end.bias += shift
        old.map_layer1.bias += shift
    torch.testing.assert_close(new(x, level, condition, end), old(x, level, condition), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="takes no end label"):
        old(x, level, condition, end)


@both
def test_networks_come_back_from_their_files_and_carry_adapters(case: str, tmp_path: Path) -> None:
    network, arguments = network_of(case), arguments_of(case)
    save_network(tmp_path / "network.safetensors", network)
    loaded = load_network(tmp_path / "network.safetensors")
    assert describe_network(loaded) == describe_network(network)
    assert torch.equal(loaded(*arguments), network(*arguments))
    adapted = AdaptedNetwork.fresh(AdaptedBase(loaded), Form(1, 1.0), seed=1)
    layers = [path for path, layer in network.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    assert list(adapted.adapter.layers) == layers
    assert torch.equal(adapted(*arguments), network(*arguments))
    with torch.no_grad():
        adapted.adapter.layers[layers[-2]].lora_B.weight += 1.0
    assert not torch.allclose(adapted(*arguments), network(*arguments), atol=1e-3)
    assert sum(p.numel() for p in adapted.leave.parameters()) > 0


def test_loading_is_strict() -> None:
    state = dict(network_of("adm").state_dict())
    missing = "dec.4x4_in0.qkv.weight"
    with pytest.raises(UserError, match=f"lacks tensor '{missing}'"):
        load_strictly(network_of("adm"), {key: value for key, value in state.items() if key != missing}, "file.pkl")


# Activations


def hooked(network: UNet, names: list[str], call: object) -> dict[str, Tensor]:
    """What the blocks of these names gave while ``call()`` ran; only those that ran."""
    seen: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.setdefault(name, out)
        )
        for name in names
    ]
    call()
    for handle in handles:
        handle.remove()
    return seen


@every_case
def test_activations_are_those_of_the_blocks(case: str) -> None:
    network, arguments = network_of(case), arguments_of(case)
    names = list(network.blocks)
    assert names == [
        name
        for name, _ in network.named_modules()
        if name.count(".") == 1 and name[:4] in ("enc.", "dec.") and "_aux_" not in name
    ]
    seen = hooked(network, names, lambda: network(*arguments))
    found = network.features_at(*arguments, range(len(names)))
    for name, value in zip(names, found, strict=True):
        # The image's branch is added after a "down" block.
        if not name.endswith("_down") or CASES[case][0].get("encoder_type", "standard") == "standard":
            assert torch.equal(value, seen[name]), name
        else:
            assert not torch.equal(value, seen[name])
    assert torch.equal(
        found[len(network.enc) - sum("_aux_" in name for name in network.enc) - 1], network.features(*arguments)
    )


@both
def test_activations_after_the_image_has_entered_go_on_to_the_next_block(case: str) -> None:
    network, arguments = network_of(case), arguments_of(case)
    names, fed = list(network.blocks), []
    position = names.index("enc.4x4_down")
    handle = network.get_submodule(names[position + 1]).register_forward_pre_hook(
        lambda module, args: fed.append(args[0])
    )
    network(*arguments)
    handle.remove()
    assert torch.equal(network.features_at(*arguments, [position])[0], fed[0])


@both
def test_nothing_after_the_last_activation_that_is_asked_for_is_computed(case: str) -> None:
    network, arguments = network_of(case), arguments_of(case)
    names = list(network.blocks)
    everything = network.features_at(*arguments, range(len(names)))
    for positions in ([3], [4, 0, 4], [len(names) - 1, 2]):
        found: list[Tensor] = []
        seen = hooked(network, names, lambda p=positions, f=found: f.extend(network.features_at(*arguments, p)))
        assert list(seen) == names[: max(positions) + 1]
        assert len(found) == len(positions)
        assert all(torch.equal(value, everything[position]) for value, position in zip(found, positions, strict=True))
    assert network.features_at(*arguments, []) == []
    seen = hooked(network, names, lambda: network.features(*arguments))
    assert list(seen) == [name for name in names if name.startswith("enc.")]
    assert network.features(*arguments).shape[1] == network.bottleneck
    for position in (len(names), -1):
        with pytest.raises(
            UserError, match=f"no block at position {position}; this network's blocks are at 0 to {len(names) - 1}"
        ):
            network.features_at(*arguments, [0, position])


def test_the_last_layer_makes_the_output() -> None:
    for case in CASES:
        network = network_of(case)
        with torch.no_grad():
            network.leave.weight.zero_()
            network.leave.bias.fill_(2.0)
        found = network(*arguments_of(case))
        assert found.shape[1] == CASES[case][0].get("out_channels", 3)
        if CASES[case][0].get("decoder_type") != "skip":  # there, other levels write to the image too
            assert torch.equal(found, torch.full_like(found, 2.0))


# Derivatives


@both
def test_forward_mode_equals_reverse_mode_twice_and_differences(case: str) -> None:
    network = network_of(case).double().requires_grad_(False)
    x, level, condition = arguments_of(case)
    x, level = x.double(), level.double()
    tangent, slope = normals(*x.shape, seed=5), normals(*level.shape, seed=6)

    def function(x: Tensor, level: Tensor) -> Tensor:
        return network(x, level, condition)

    value, forward = torch.func.jvp(function, (x, level), (tangent, slope))
    _, reverse = torch.autograd.functional.jvp(function, (x, level), (tangent, slope))
    h = 1e-6
    difference = (function(x + h * tangent, level + h * slope) - function(x - h * tangent, level - h * slope)) / (2 * h)
    torch.testing.assert_close(value, function(x, level))
    torch.testing.assert_close(forward, reverse, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(forward, difference, rtol=1e-5, atol=1e-5)
    # And the derivative has a derivative, which sCM-like losses with a trained tangent need.
    network.requires_grad_(True)
    torch.func.jvp(function, (x, level), (tangent, slope))[1].square().sum().backward()
    assert float(network.map_layer0.weight.grad.abs().max()) > 0


@both
def test_recomputing_changes_no_bit(case: str) -> None:
    plain = network_of(case, guidance=True)
    again = copy_of(plain)
    again.recompute = True
    assert not plain.recompute
    results, runs = [], []
    x, level, condition = arguments_of(case)
    condition = Condition(condition.labels, condition.context, torch.tensor([1.0, 3.0]))
    for network in (plain, again):
        count: list[int] = []
        network.get_submodule(network.blocks[-1]).register_forward_pre_hook(
            lambda module, args, count=count: count.append(1)
        )
        x = x.detach().clone().requires_grad_()
        out = network(x, level, condition)
        kept = network.features_at(x, level, condition, [1, 4])
        (
            out.square().sum() + sum(k.sin().sum() for k in kept) + network.features(x, level, condition).cos().sum()
        ).backward()
        results.append([out, *kept, x.grad, *(p.grad for p in network.parameters())])
        with torch.no_grad():
            network(x, level, condition)
        runs.append(len(count))
        assert copy_of(network).recompute is network.recompute
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    # The last block ran forward, once more for the backward pass, and once without a gradient.
    assert runs == [2, 3]


@both
def test_recomputing_keeps_fewer_activations(case: str) -> None:
    held = []
    for recompute in (False, True):
        network, total = network_of(case), 0
        network.recompute = recompute
        pointers: set[int] = {p.data_ptr() for p in network.parameters()}

        def keep(value: Tensor, pointers: set[int] = pointers) -> Tensor:
            nonlocal total
            if value.data_ptr() not in pointers:
                pointers.add(value.data_ptr())
                total += value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            out = network(*arguments_of(case))
        held.append(total)
        out.sum().backward()
    assert held[1] < held[0] / 3


# Refusals


@pytest.mark.parametrize(
    ("case", "changes", "sentence"),
    [
        ("ddpmpp", {"img_resolution": 9}, "img_resolution 9 cannot be halved 1 times"),
        ("adm", {"img_resolution": 12, "channel_mult": [1, 1, 1, 1]}, "it must be a multiple of 8"),
        (
            "ddpmpp",
            {"attn_resolutions": [4, 16]},
            "attn_resolutions names 16, which does not occur: the levels have resolutions 8, 4",
        ),
        (
            "ddpmpp",
            {"embedding_type": "learned"},
            "'embedding_type' is 'learned', and must be one of positional, fourier",
        ),
        ("ddpmpp", {"encoder_type": "both"}, "'encoder_type' is 'both', and must be one of standard, skip, residual"),
        ("ddpmpp", {"decoder_type": "residual"}, "'decoder_type' is 'residual', and must be one of standard, skip"),
        ("ddpmpp", {"resample_filter": [1, 2, 1]}, r"an even number of taps whose sum is not 0.* got \[1, 2, 1\]"),
        ("adm", {"channel_mult": []}, "'channel_mult' is .*a list of at least 1"),
        ("adm", {"num_blocks": 0}, "'num_blocks' is 0, and must be at least 1"),
        ("adm", {"model_channels": 130}, "130 channels cannot be normalised in 32 groups"),
        ("ddpmpp", {"model_channels": 2}, "2 channels cannot be normalised in 0 groups"),
        ("adm", {"model_channels": 112}, "224 channels cannot be split between 3 attention heads"),
        ("adm", {"heads": 2}, "unknown argument 'heads'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(case: str, changes: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence), torch.device("meta"):
        build({**CASES[case][0], **changes})


def test_augmentations_of_another_number_are_refused() -> None:
    network = network_of("adm")
    x, level, condition = arguments_of("adm")
    with pytest.raises(UserError, match=r"'augment' has shape \(2, 9\); this network takes 4 augmentation labels"):
        network(x, level, Condition(condition.labels, {"augment": torch.zeros(2, 9)}))
