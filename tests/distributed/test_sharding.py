"""Laws of laying networks out: sharded over one process, every network is itself, bit for bit; what
is sharded, and what is refused.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, distributed, nn

from fewstep.condition import Classes, Condition
from fewstep.denoisers import (
    Averaged,
    FrozenTrunk,
    HalfLife,
    Headed,
    NetworkDenoiser,
    Reflected,
    copy_of,
    freeze,
    in_network,
)
from fewstep.denoisers.inputs import EDMInputs
from fewstep.denoisers.threshold import StaticThreshold
from fewstep.errors import UserError
from fewstep.networks import AdaptedBase, AdaptedNetwork, FeatureHead, Form, build
from fewstep.networks.interfaces import DenoisingNetwork
from fewstep.networks.kinds.network_files import load_strictly
from fewstep.prediction import EDM
from fewstep.recipes import load_recipe
from fewstep.runs.pictures.gallery import write_path_picture
from fewstep.schedule import KarrasVE
from fewstep.system.distributed import like, whole
from fewstep.system.files import read_tensors, write_tensors
from fewstep.targets import DegradationPath
from fewstep.training.layout import Alone, Sharded, blocks, build_layout, units

_SONG = {
    "kind": "song-unet",
    "img_resolution": 8,
    "in_channels": 1,
    "out_channels": 1,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
DENOISING = {
    "small-unet": {"kind": "small-unet", "channels": 1, "width": 8, "depth": 1, "embedding": 8, "classes": 2},
    "song-unet": {**_SONG, "classes": 2},
    "ncsn": {
        **_SONG,
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "decoder_type": "skip",
        "resample_filter": [1, 3, 3, 1],
    },
    "dhariwal-unet": {**_SONG, "kind": "dhariwal-unet", "model_channels": 16, "channel_mult": [1, 4], "classes": 2},
}
OTHERS = {
    "fastgan": {"kind": "fastgan", "latent": 5, "resolution": 16, "channels": 1, "width": 4, "classes": 2},
    "latent-mlp": {"kind": "latent-mlp", "latent": 5, "classes": 2},
    "image-critic": {"kind": "image-critic", "resolution": 8, "channels": 1, "width": 4, "classes": 2},
    "digit-classifier": {"kind": "digit-classifier"},
}


@pytest.fixture(autouse=True)
def group(tmp_path) -> Iterator[None]:
    """A group of this process alone."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, timeout=datetime.timedelta(seconds=60)
    )
    yield
    distributed.destroy_process_group()


def made(description: dict) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(description)
        for value in network.parameters():
            nn.init.normal_(value, std=0.1)
    return network


def sharded(*modules: nn.Module) -> list[nn.Module]:
    Sharded().lay_out(modules)
    return units(modules)


def outcome(network: nn.Module, entry: str, *arguments: object) -> list[Tensor]:
    """What an entry gives, twice over, and the gradients of both together."""
    network.zero_grad()
    # Through the module's own call for "forward", which is where hooks are.
    run = network if entry == "forward" else getattr(network, entry)
    found = [run(*arguments) for _ in range(2)]
    sum(each.square().sum() for each in found).backward()
    return [found[0].detach(), *(whole(value.grad) for value in network.parameters() if value.grad is not None)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Equal bit for bit in what is computed; in gradients to the rounding of their sum, whose order
    is the engine's where a network runs twice.
    """
    assert torch.equal(found[0], expected[0])
    assert len(found) == len(expected)
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("entry", ["forward", "features"])
@pytest.mark.parametrize("name", DENOISING)
def test_a_sharded_denoising_network_is_itself(name, entry):
    arguments = (
        torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0.1, 0.4, 0.9]),
        Condition(torch.tensor([1, 0, -1])),
    )
    expected = outcome(made(DENOISING[name]), entry, *arguments)
    network = made(DENOISING[name])
    sharded(network)
    assert_same(outcome(network, entry, *arguments), expected)


def test_features_at_any_block_are_those_of_the_whole_network():
    x, label = torch.ones(2, 1, 8, 8), torch.tensor([0.1, 0.4])
    networks = [made(DENOISING["song-unet"]) for _ in range(2)]
    sharded(networks[1])
    found = [network.features_at(x, label, Condition(torch.tensor([0, 1])), [0, 2]) for network in networks]
    assert same(*found)


@pytest.mark.parametrize("name", OTHERS)
def test_other_sharded_networks_are_themselves(name):
    x = (
        torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
        if "latent" in OTHERS[name]
        else torch.ones(3, 1, 8, 8)
    )
    arguments = (x,) if name == "digit-classifier" else (x, Condition(torch.tensor([1, 0, -1])))
    expected = outcome(made(OTHERS[name]), "forward", *arguments)
    network = made(OTHERS[name])
    sharded(network)
    assert_same(outcome(network, "forward", *arguments), expected)


def denoiser(**changes: object) -> NetworkDenoiser:
    network = made({"kind": "residual-mlp", "dim": 2, "width": 8, "depth": 2, **changes})
    return NetworkDenoiser(network, KarrasVE(), EDM(0.5), EDMInputs(0.5), (2,))


def test_an_adapted_network_is_sharded_with_its_adapter():
    """The base is one unit and each adapter on it another; roles that take turns are as without."""
    arguments = (torch.ones(3, 2), torch.tensor(0.01))
    found = []
    for lays_out in (False, True):
        teacher = freeze(denoiser())
        base = AdaptedBase(teacher.network)
        roles = [in_network(teacher, AdaptedNetwork.fresh(base, Form(2, 1.0), seed)) for seed in (1, 2)]
        with torch.no_grad():
            for value in (value for each in roles for value in each.parameters()):
                value.add_(0.1)
        if lays_out:
            expected = [id(teacher.network), *(id(each.network) for each in roles)]
            assert sorted(id(unit) for unit in units([*roles, teacher])) == sorted(expected)
            sharded(*roles, teacher)
        both = [outcome(each, "forward", *arguments) for each in roles]
        assert all(type(value) is not nn.Parameter for each in roles for value in each.parameters()) == lays_out
        found.append([*both, outcome(roles[0], "forward", *arguments)])
    for here, there in zip(*found, strict=True):
        assert_same(there, here)


def test_units_are_raw_networks_once_each_and_blocks_are_their_lists():
    model = denoiser()
    average, head = Averaged(model, HalfLife(10)), FeatureHead(8)
    trunk = FrozenTrunk(denoiser(), head)
    found = units(
        [
            Headed(model, head),
            Reflected(model, StaticThreshold(1.0)),
            average,
            trunk,
            model.network.leave,
            nn.Identity(),
        ]
    )
    assert [id(unit) for unit in found] == [
        id(each) for each in (model.network, head, average.average.network, trunk.denoiser.network)
    ]
    assert [id(block) for block in blocks(model.network)] == [
        id(block) for block in (*model.network.shifts, *model.network.blocks)
    ]


def test_every_parameter_and_only_those_of_units_is_sharded():
    model, plain = denoiser(), denoiser()
    sharded(Averaged(plain, HalfLife(10)), model)
    assert all(
        type(value).__name__ == "DTensor" or type(value.data).__name__ == "DTensor" for value in model.parameters()
    )
    assert all(isinstance(value, nn.Parameter) and type(value.data) is Tensor for value in plain.parameters())


def test_loading_fills_a_sharded_network_from_whole_and_from_sharded_tensors():
    source, target, again = denoiser(), copy_of(denoiser()), copy_of(denoiser())
    for value in target.parameters():
        value.data.zero_()
    expected = {name: value.clone() for name, value in source.state_dict().items()}
    sharded(target, again)
    load_strictly(target, expected, "test")
    load_strictly(again, target.state_dict(), "test")
    for model in (target, again):
        assert all(torch.equal(whole(value), expected[name]) for name, value in model.state_dict().items())
    broken = {**expected, "network.leave.bias": torch.full_like(expected["network.leave.bias"], torch.nan)}
    with pytest.raises(UserError, match="not finite"):
        load_strictly(target, broken, "test")


def test_a_sharded_tensor_is_written_whole(tmp_path):
    model = denoiser()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    digest = write_tensors(tmp_path / "plain.safetensors", expected, {})
    sharded(model)
    assert write_tensors(tmp_path / "sharded.safetensors", model.state_dict(), {}) == digest
    read, _ = read_tensors(tmp_path / "sharded.safetensors")
    assert all(torch.equal(read[name], value) for name, value in expected.items())
    slot = model.state_dict()["network.leave.weight"]
    assert type(like(expected["network.leave.weight"], slot)) is type(slot)


@pytest.mark.parametrize("halved", [False, True])
def test_in_half_precision_weights_are_gathered_in_it_and_kept_in_single(halved):
    network = made(DENOISING["small-unet"])
    Sharded(halved=halved).lay_out([network])
    seen: set[torch.dtype] = set()
    (part,) = blocks(network)[:1]
    part.register_forward_pre_hook(lambda block, _: seen.update(value.dtype for value in block.parameters()))
    with torch.autocast("cpu", torch.bfloat16, enabled=halved):
        emitted = network(torch.zeros(2, 1, 8, 8), torch.zeros(2), Condition(labels=torch.tensor([0, 1])))
    emitted.float().sum().backward()
    assert seen == {torch.bfloat16 if halved else torch.float32}
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert {value.grad.dtype for value in network.parameters() if value.grad is not None} == {torch.float32}


def test_the_average_follows_on_shards():
    models = [denoiser() for _ in range(2)]
    averages = [Averaged(model, HalfLife(3, ramp=0)) for model in models]
    sharded(models[1], averages[1])
    for model, average in zip(models, averages, strict=True):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(1.0)
        average.update(model)
    expected = averages[0].state_dict()
    assert all(torch.equal(whole(value), expected[name]) for name, value in averages[1].state_dict().items())


def test_a_gradient_through_a_frozen_sharded_network_reaches_its_input():
    models = [freeze(denoiser()) for _ in range(2)]
    sharded(models[1])
    slopes = []
    for model in models:
        x = torch.ones(3, 2, requires_grad=True)
        model(x, torch.tensor(0.01)).square().sum().backward()
        slopes.append(x.grad)
    assert torch.equal(*slopes)
    assert isinstance(models[0].network, DenoisingNetwork)


@pytest.mark.parametrize("nodes", ["copy", "lora"])
def test_the_picture_of_a_path_is_the_same_from_a_sharded_teacher_which_is_left_as_it_was(nodes, tmp_path):
    pictures = []
    for over in (False, True):
        denoiser = freeze(
            NetworkDenoiser(made(DENOISING["small-unet"]), KarrasVE(), EDM(0.5), EDMInputs(0.5), (1, 8, 8))
        )
        like = None
        if nodes == "lora":
            like = in_network(denoiser, AdaptedNetwork.fresh(AdaptedBase(denoiser.network), Form(1, 1.0)))
        path = DegradationPath(tmp_path / str(over), denoiser, like=like)
        node = copy_of(path.carrier)
        with torch.no_grad():
            for value in node.parameters():
                value.mul_(0.9).add_(0.01 if like else 0.0)
        path.record(node, 1)
        if over:
            sharded(denoiser, *([] if like is None else [like]))
        before = {name: whole(value).clone() for name, value in path.carrier.state_dict().items()}
        write_path_picture(
            tmp_path / str(over),
            path,
            Classes(denoiser.classes),
            None,
            load_recipe("digits-disback").evaluation,
        )
        assert all(torch.equal(whole(value), before[name]) for name, value in path.carrier.state_dict().items())
        pictures.append((tmp_path / str(over) / "path.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_networks_that_share_weights_are_refused_and_so_is_an_odd_number_of_replicas():
    model, other = denoiser(), denoiser()
    other.network.leave = model.network.leave
    with pytest.raises(UserError, match="cannot shard two networks that share weights"):
        Sharded().lay_out([model, other])
    with pytest.raises(UserError, match=r"'distributed\.replicas' is 2, which does not divide the 1 processes"):
        Sharded(replicas=2)


def test_a_process_without_a_group_is_alone():
    distributed.destroy_process_group()
    try:
        assert isinstance(build_layout("fsdp", 1, "cpu", halved=False), Alone)
    finally:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
