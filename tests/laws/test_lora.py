"""Laws of low-rank adapters: silent at first, of low rank, small to store, merged to the same
function, and good for another teacher of the same shape.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from law_kit import normals, randomised, tiny_denoiser
from torch import nn

import fewstep as fs
from fewstep.denoisers import (
    Averaged,
    HalfLife,
    NetworkDenoiser,
    copy_of,
    freeze,
    load_adapter,
    load_model,
    merged,
    save_adapter,
    save_model,
)
from fewstep.errors import UserError
from fewstep.networks import LatentMLP, add_adapter, apply_adapter, build
from fewstep.networks.lora import Adapter, adapter_of
from fewstep.prediction import EDM
from fewstep.random import Key
from fewstep.schedule import KarrasVE
from fewstep.system.files import read_tensors, write_tensors

LAYERS = (nn.Linear, nn.Conv2d)


def image_denoiser(seed: int = 0) -> NetworkDenoiser:
    network = build({"kind": "small-unet", "width": 8, "depth": 2, "classes": 3, "embedding": 16})
    denoiser = NetworkDenoiser(network, KarrasVE(), EDM(0.5), fs.denoisers.EDMInputs(0.5), (1, 8, 8), 3)
    randomised(denoiser, seed)
    return denoiser


MODELS = {"mlp": lambda seed=0: tiny_denoiser(classes=3, seed=seed), "unet": image_denoiser}
every_model = pytest.mark.parametrize("kind", MODELS)


def call(denoiser: nn.Module) -> torch.Tensor:
    x = normals(6, *denoiser.shape, dtype=torch.float32)
    return denoiser(x, torch.linspace(0.01, 1, 6), torch.arange(6) % 3)


def trained(adapter: Adapter, seed: int = 5) -> Adapter:
    randomised(adapter, seed)
    return adapter


@every_model
def test_a_fresh_adapter_is_silent_bit_for_bit_and_keeps_the_weights(kind: str) -> None:
    denoiser = MODELS[kind]()
    expected, weights = call(denoiser), [p.detach().clone() for p in denoiser.parameters()]
    layers = [path for path, layer in denoiser.named_modules() if isinstance(layer, LAYERS)]
    adapter = add_adapter(denoiser, rank=2, scale=0.7)
    assert torch.equal(call(denoiser), expected)
    assert list(adapter.paths) == layers
    low_rank = {id(p) for p in adapter.parameters()}
    kept = [p for p in denoiser.parameters() if id(p) not in low_rank]
    assert not any(p.requires_grad for p in kept)
    assert {id(p) for p in denoiser.parameters() if p.requires_grad} == low_rank
    assert sorted(float(p.sum()) for p in kept) == sorted(float(p.sum()) for p in weights)


@every_model
def test_the_adapter_holds_the_low_rank_parameters_and_nothing_else(kind: str) -> None:
    denoiser = MODELS[kind]()
    shapes = {path: layer.weight.shape for path, layer in denoiser.named_modules() if isinstance(layer, LAYERS)}
    adapter = add_adapter(denoiser, rank=2)
    expected = {}
    for path, shape in shapes.items():
        name = "to:" + path.replace(".", ":")
        expected |= {f"{name}.down": (2, shape[1:].numel()), f"{name}.up": (shape[0], 2)}
    assert {name: tuple(value.shape) for name, value in adapter.state_dict().items()} == expected


@every_model
def test_the_layers_weights_gain_a_scaled_product_of_low_rank(kind: str) -> None:
    denoiser = MODELS[kind]()
    before = {path: layer.weight.clone() for path, layer in denoiser.named_modules() if isinstance(layer, LAYERS)}
    adapter = trained(add_adapter(denoiser, rank=2, scale=0.7))
    state = adapter.state_dict()
    plain = merged(denoiser)
    for path, weight in before.items():
        name = "to:" + path.replace(".", ":")
        up, down = state[f"{name}.up"], state[f"{name}.down"]
        gained = plain.get_submodule(path).weight - weight
        torch.testing.assert_close(
            gained, 0.7 * torch.einsum("or,ri->oi", up, down).reshape(weight.shape), rtol=1e-4, atol=1e-6
        )
        assert int(torch.linalg.matrix_rank(gained.flatten(1), rtol=1e-4)) <= 2


def test_the_draws_are_a_function_of_seed_and_layer_with_the_papers_variance() -> None:
    states = [
        add_adapter(image_denoiser(seed), rank=64, seed=adapter_seed).state_dict()
        for seed, adapter_seed in ((0, 1), (9, 1), (0, 2))
    ]
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name])
        assert torch.equal(states[0][name], states[2][name]) == name.endswith(".up")
    down = states[0]["to:network:middle:0:conv1.down"]  # 64 x 144
    assert down.shape == (64, 144)
    assert float(down.var()) * 3 * 144 == pytest.approx(1, abs=0.06)
    assert torch.equal(down, Key(1, "lora").normal("lora network.middle.0.conv1", (64, 144)) / (3 * 144) ** 0.5)


@every_model
def test_merged_computes_the_same_is_plain_and_can_be_stored(kind: str, tmp_path: Path) -> None:
    denoiser = MODELS[kind]()
    keys, original = set(denoiser.state_dict()), copy.deepcopy(denoiser)
    adapter = trained(add_adapter(denoiser, rank=2, scale=0.7))
    plain = merged(denoiser)
    assert torch.equal(call(plain), call(denoiser))
    assert float((call(plain) - call(original)).detach().abs().max()) > 1e-3
    assert set(plain.state_dict()) == keys
    assert [type(m) for m in plain.modules()] == [type(m) for m in original.modules()]
    save_model(tmp_path / "student.safetensors", plain)
    assert torch.equal(call(load_model(tmp_path / "student.safetensors")[0]), call(denoiser))
    before = call(plain)
    trained(adapter, seed=6)  # the copy does not follow
    assert torch.equal(call(plain), before)
    with pytest.raises(UserError, match="carries an adapter"):
        save_model(tmp_path / "no.safetensors", denoiser)
    with pytest.raises(UserError, match="has no adapter"):
        merged(plain)


@every_model
def test_an_adapter_goes_through_a_file_onto_another_teacher(kind: str, tmp_path: Path) -> None:
    denoiser, other = MODELS[kind](0), MODELS[kind](1)
    weights = {path: layer.weight.clone() for path, layer in other.named_modules() if isinstance(layer, LAYERS)}
    adapter = trained(add_adapter(denoiser, rank=2, scale=0.7))
    digest = save_adapter(tmp_path / "a.safetensors", adapter, {"note": "x"})
    assert save_adapter(tmp_path / "b.safetensors", adapter, {"note": "x"}) == digest
    stored = load_adapter(tmp_path / "a.safetensors")
    assert (stored.rank, stored.scale, stored.extra) == (2, 0.7, {"note": "x"})
    stored.apply_to(other)
    own = {path: layer.weight for path, layer in merged(denoiser).named_modules() if isinstance(layer, LAYERS)}
    base = {path: layer.weight for path, layer in MODELS[kind](0).named_modules() if isinstance(layer, LAYERS)}
    for path, layer in merged(other).named_modules():
        if path in weights:
            torch.testing.assert_close(layer.weight - weights[path], own[path] - base[path], rtol=1e-4, atol=1e-5)
    same = MODELS[kind](0)
    apply_adapter(same, adapter.state_dict(), 2, 0.7)
    assert torch.equal(call(same), call(denoiser))


def test_an_adapter_that_does_not_fit_names_the_layer_and_changes_nothing() -> None:
    state = add_adapter(image_denoiser(), rank=2).state_dict()
    wider = tiny_denoiser(classes=3)
    target = image_denoiser()
    keys = set(target.state_dict())
    with pytest.raises(UserError, match=r"layer 'network\.condition\.0': it has nothing"):
        apply_adapter(wider, state, 2, 1.0)
    with pytest.raises(UserError, match=r"layer 'network\.embed\.0': it has \(2, 32\).*needs \(3, 32\)"):
        apply_adapter(target, state, 3, 1.0)
    with pytest.raises(UserError, match=r"layer 'network\.extra': this network has no such layer"):
        apply_adapter(target, {**state, "to:network:extra.up": torch.zeros(2)}, 2, 1.0)
    assert set(target.state_dict()) == keys


def test_what_cannot_be_adapted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1, got 0"):
        add_adapter(tiny_denoiser(), rank=0)
    with pytest.raises(UserError, match="no linear or convolutional layers"):
        add_adapter(nn.Sequential(nn.SiLU()), rank=1)
    denoiser = tiny_denoiser()
    adapter = add_adapter(denoiser, rank=1)
    with pytest.raises(UserError, match="has an adapter already"):
        add_adapter(denoiser, rank=1)
    save_model(tmp_path / "model", tiny_denoiser())
    with pytest.raises(UserError, match="is not an adapter's file"):
        load_adapter(tmp_path / "model")
    save_adapter(tmp_path / "adapter", adapter)
    with pytest.raises(UserError, match="not a model file"):
        load_model(tmp_path / "adapter")
    tensors, metadata = read_tensors(tmp_path / "adapter")
    write_tensors(tmp_path / "odd", tensors, {**metadata, "rank": "two"})
    with pytest.raises(UserError, match=r"odd: says no rank"):
        load_adapter(tmp_path / "odd")


@every_model
def test_training_the_adapter_moves_it_and_leaves_the_weights(kind: str) -> None:
    denoiser = freeze(MODELS[kind]())
    base = {name: value.clone() for name, value in denoiser.state_dict().items()}
    adapter = add_adapter(denoiser, rank=2)
    adapter.requires_grad_(True).train()  # as the trainer does with a phase's network
    optimizer = torch.optim.Adam(adapter.parameters(), 1e-2)
    losses = []
    for _ in range(4):
        loss = (call(denoiser) - 1).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in adapter.parameters())
    for name, value in denoiser.state_dict().items():
        if "low_rank" not in name:
            assert torch.equal(value, base[name.replace(".layer.", ".")])
    assert all(p.grad is None for name, p in denoiser.named_parameters() if "low_rank" not in name)


@every_model
def test_adapted_denoisers_are_copied_and_averaged_with_their_adapters(kind: str) -> None:
    denoiser = MODELS[kind]()
    adapter = trained(add_adapter(denoiser, rank=2))
    twin = copy_of(denoiser)
    assert torch.equal(call(twin), call(denoiser))
    trained(adapter, seed=6)
    assert not torch.equal(call(twin), call(denoiser))
    again = adapter_of(twin)
    assert (again.rank, again.scale, again.paths) == (adapter.rank, adapter.scale, adapter.paths)
    assert list(again.state_dict()) == list(adapter.state_dict())
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(call(twin), call(denoiser))
    average = Averaged(denoiser, HalfLife(1, ramp=0))
    old = {name: value.clone() for name, value in adapter.state_dict().items()}
    trained(adapter, seed=7)
    average.update(denoiser)
    for name, value in adapter_of(average.average).state_dict().items():
        torch.testing.assert_close(value, (old[name] + adapter.state_dict()[name]) / 2)
    assert not any(p.requires_grad for p in average.parameters())
    pair, other = copy.deepcopy((denoiser, adapter))
    trained(other, seed=8)
    assert torch.equal(call(merged(pair)), call(pair))
    assert not torch.equal(call(pair), call(denoiser))


def test_a_layer_may_have_any_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rank, self.scale, self.keys = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)

    assert set(add_adapter(Odd(), rank=1).paths) == {"rank", "scale", "keys"}
    assert len(add_adapter(LatentMLP(), rank=1).paths) == 4
