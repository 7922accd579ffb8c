"""Laws of low-rank adapters: silent at first, of low rank, merged to the same function, one base
for many roles, and good for another network of the same shape.
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from law_kit import normals, randomised, tiny_denoiser
from torch import nn

import fewstep as fs
from fewstep.condition import Condition
from fewstep.denoisers import (
    Averaged,
    HalfLife,
    NetworkDenoiser,
    adapter_of,
    copy_of,
    freeze,
    in_network,
    load_adapter,
    load_model,
    merged,
    save_adapter,
    save_model,
)
from fewstep.errors import UserError
from fewstep.networks import AdaptedBase, AdaptedNetwork, LatentMLP, SongUNet, build
from fewstep.networks.adapters import Form, apart, bases_of, fitting_layers, merged_network
from fewstep.networks.adapters.low_rank_pair import LowRankPair
from fewstep.networks.precision import shorten
from fewstep.prediction import EDM
from fewstep.random import Key
from fewstep.schedule import KarrasVE
from fewstep.system.files import read_tensors, write_tensors
from fewstep.targets import DegradationPath

LAYERS = (nn.Linear, nn.Conv2d)


def image_denoiser(seed: int = 0) -> NetworkDenoiser:
    network = build({"kind": "small-unet", "width": 8, "depth": 2, "classes": 3, "embedding": 16})
    denoiser = NetworkDenoiser(network, KarrasVE(), EDM(0.5), fs.denoisers.EDMInputs(0.5), (1, 8, 8), 3)
    randomised(denoiser, seed)
    return freeze(denoiser)


def resampling_denoiser(seed: int = 0) -> NetworkDenoiser:
    """Of NCSN++'s layers, which resample within a convolution and after it."""
    network = SongUNet(
        8,
        1,
        1,
        classes=3,
        model_channels=8,
        channel_mult=[1, 2],
        num_blocks=1,
        attn_resolutions=[4],
        encoder_type="residual",
        resample_filter=[1, 3, 3, 1],
    )
    denoiser = NetworkDenoiser(network, KarrasVE(), EDM(0.5), fs.denoisers.EDMInputs(0.5), (1, 8, 8), 3)
    randomised(denoiser, seed)
    return freeze(denoiser)


MODELS = {
    "mlp": lambda seed=0: freeze(tiny_denoiser(classes=3, seed=seed)),
    "unet": image_denoiser,
    "resampling": resampling_denoiser,
}
every_model = pytest.mark.parametrize("kind", MODELS)


def call(denoiser: nn.Module) -> torch.Tensor:
    x = normals(6, *denoiser.shape, dtype=torch.float32)
    return denoiser(x, torch.linspace(0.01, 1, 6), torch.arange(6) % 3)


def role(
    like: NetworkDenoiser, base: AdaptedBase | None = None, rank: int = 2, alpha: float = 1.4, seed: int = 0
) -> NetworkDenoiser:
    """A role with a fresh adapter on a base, of its own unless given."""
    base = base or AdaptedBase(like.network)
    return in_network(like, AdaptedNetwork.fresh(base, Form(rank, alpha), seed))


def spread(model: NetworkDenoiser, seed: int = 5) -> NetworkDenoiser:
    """The model, its own parameters random."""
    randomised(model, seed)
    return model


@every_model
def test_a_fresh_adapter_is_silent_bit_for_bit_and_the_base_stays_itself(kind: str) -> None:
    teacher = MODELS[kind]()
    expected, names = call(teacher), list(teacher.state_dict())
    adapted = role(teacher)
    assert torch.equal(call(adapted), expected)
    assert list(adapter_of(adapted).layers) == [
        path for path, layer in teacher.network.named_modules() if isinstance(layer, LAYERS)
    ]
    spread(adapted)
    assert not torch.equal(call(adapted), expected)
    # The teacher is the base without an adapter, with the weights' names that it had.
    assert torch.equal(call(teacher), expected)
    assert list(teacher.state_dict()) == names
    assert bases_of(adapted) == [teacher.network]
    assert bases_of(teacher) == []


@every_model
def test_a_role_has_the_low_rank_parameters_under_the_names_of_peft_and_no_others(kind: str) -> None:
    teacher = MODELS[kind]()
    adapted = role(teacher)
    expected = {}
    for path, layer in teacher.network.named_modules():
        if isinstance(layer, LAYERS):
            out, *kernel = layer.weight.shape
            ones = [1] * (len(kernel) - 1)
            expected[f"network.adapter.{path}.lora_A.weight"] = (2, *kernel)
            expected[f"network.adapter.{path}.lora_B.weight"] = (out, 2, *ones)
    assert {name: tuple(value.shape) for name, value in adapted.state_dict().items()} == expected
    assert [name for name, _ in adapted.named_parameters()] == list(expected)


@every_model
def test_the_layers_weights_gain_a_scaled_product_of_low_rank(kind: str) -> None:
    teacher = MODELS[kind]()
    adapted = spread(role(teacher))
    state, plain = adapted.state_dict(), merged(adapted)
    for path, layer in teacher.network.named_modules():
        if isinstance(layer, LAYERS):
            down, up = (state[f"network.adapter.{path}.lora_{part}.weight"].flatten(1) for part in "AB")
            gained = plain.network.get_parameter(f"{path}.weight") - layer.weight
            expected = 0.7 * torch.einsum("or,ri->oi", up, down).reshape(layer.weight.shape)
            torch.testing.assert_close(gained, expected, rtol=1e-4, atol=1e-5)
            assert int(torch.linalg.matrix_rank(gained.flatten(1), rtol=1e-4)) <= 2


def test_the_draws_are_a_function_of_seed_and_layer_with_the_papers_variance() -> None:
    states = [
        role(image_denoiser(seed), rank=64, seed=adapter_seed).state_dict()
        for seed, adapter_seed in ((0, 1), (9, 1), (0, 2))
    ]
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name])
        assert torch.equal(states[0][name], states[2][name]) == ("lora_B" in name)
    down = states[0]["network.adapter.middle.0.conv1.lora_A.weight"].flatten(1)  # 64 x 144
    assert down.shape == (64, 144)
    assert float(down.var()) * 3 * 144 == pytest.approx(1, abs=0.06)
    assert torch.equal(down, Key(1, "lora").normal("lora network.middle.0.conv1", (64, 144)) / (3 * 144) ** 0.5)


@every_model
def test_merged_computes_the_same_is_plain_and_can_be_stored(kind: str, tmp_path: Path) -> None:
    teacher = MODELS[kind]()
    adapted = spread(role(teacher))
    plain = merged(adapted)
    torch.testing.assert_close(call(plain), call(adapted), rtol=1e-4, atol=1e-5)
    assert float((call(plain) - call(teacher)).abs().max()) > 1e-3
    assert list(plain.state_dict()) == list(teacher.state_dict())
    assert [type(m) for m in plain.modules()] == [type(m) for m in teacher.modules()]
    assert not any(module._forward_hooks for module in plain.modules())
    save_model(tmp_path / "student.safetensors", plain)
    assert torch.equal(call(load_model(tmp_path / "student.safetensors")[0]), call(plain))
    before = call(plain)
    spread(adapted, seed=6)  # the copy does not follow
    assert torch.equal(call(plain), before)
    with pytest.raises(UserError, match="carries an adapter"):
        save_model(tmp_path / "no.safetensors", adapted)
    with pytest.raises(UserError, match="has no adapter"):
        merged(plain)


@every_model
def test_roles_on_one_base_take_turns_and_do_not_see_one_another(kind: str) -> None:
    teacher = MODELS[kind]()
    base = AdaptedBase(teacher.network)
    roles = [spread(role(teacher, base, rank, seed=rank), seed=rank) for rank in (1, 2, 3)]
    alone = [call(merged(each)) for each in roles]
    plain = call(MODELS[kind]())
    for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0)):
        for index in order:
            torch.testing.assert_close(call(roles[index]), alone[index], rtol=1e-4, atol=1e-5)
            assert torch.equal(call(teacher), plain)
    # A role's gradient reaches its own parameters, though another has run since.
    for each in roles:
        each.requires_grad_(True)
    mine = call(roles[0]).square().sum()
    call(roles[1])
    call(teacher)
    mine.backward()
    assert all(p.grad is not None for p in roles[0].parameters())
    assert all(p.grad is None for p in (*roles[1].parameters(), *teacher.parameters()))


@every_model
def test_gradients_are_those_of_the_merged_weights(kind: str) -> None:
    """d loss / d B = scale dW A^T and d loss / d A = scale B^T dW, dW the merged weight's
    gradient.
    """
    adapted = spread(role(MODELS[kind]())).requires_grad_(True)
    plain = merged(adapted).requires_grad_(True)
    for model in (adapted, plain):
        call(model).square().sum().backward()
    for path, low in adapter_of(adapted).layers.items():
        whole = plain.network.get_parameter(f"{path}.weight").grad.flatten(1)
        down, up = low.lora_A.weight.detach(), low.lora_B.weight.detach()
        scale = float(whole.abs().max()) + 1e-6
        for own, expected in (
            (low.lora_B.weight.grad, 0.7 * whole @ down.flatten(1).T),
            (low.lora_A.weight.grad, 0.7 * up.flatten(1).T @ whole),
        ):
            assert float((own.flatten(1) - expected).abs().max()) < 1e-3 * scale * down.flatten(1).shape[1] ** 0.5


def test_recomputed_blocks_run_under_the_adapter_of_their_own_forward() -> None:
    """Between a forward and its backward other roles have their turn; the gradients are bit for bit
    those without recomputation.
    """
    found = {}
    for recompute in (False, True):
        teacher = resampling_denoiser()
        base = AdaptedBase(teacher.network)
        student, fake = (spread(role(teacher, base, seed=seed), seed=seed).requires_grad_(True) for seed in (1, 2))
        student.network.recompute = recompute
        assert teacher.network.recompute == fake.network.recompute == recompute
        loss = call(student).square().sum()
        other = call(fake).square().sum()
        with torch.no_grad():
            call(teacher)
        loss.backward()
        other.backward()
        found[recompute] = [p.grad for model in (student, fake) for p in model.parameters()]
    for plain, again in zip(found[False], found[True], strict=True):
        assert torch.equal(plain, again)


@every_model
def test_an_adapter_goes_through_a_file_onto_another_network(kind: str, tmp_path: Path) -> None:
    adapted, other = spread(role(MODELS[kind](0))), MODELS[kind](1)
    digest = save_adapter(tmp_path / "a.safetensors", adapter_of(adapted), {"note": "x"})
    assert save_adapter(tmp_path / "b.safetensors", adapter_of(adapted), {"note": "x"}) == digest
    stored = load_adapter(tmp_path / "a.safetensors")
    assert (stored.ranks, stored.extra) == ("2", {"note": "x"})
    assert {pair.alpha for pair in stored.pairs.values()} == {1.4}
    base = AdaptedBase(other.network)
    moved = in_network(other, AdaptedNetwork.holding(base, stored.on(other.network)))
    for path, low in adapter_of(adapted).layers.items():
        torch.testing.assert_close(
            merged(moved).network.get_parameter(f"{path}.weight") - other.network.get_parameter(f"{path}.weight"),
            low.pair().product(),
            rtol=1e-4,
            atol=1e-5,
        )
    same = MODELS[kind](0)
    again = in_network(same, AdaptedNetwork.holding(AdaptedBase(same.network), stored.on(same.network)))
    assert torch.equal(call(again), call(adapted))


@every_model
def test_files_of_one_rank_and_scale_for_all_layers_are_read_as_before(kind: str, tmp_path: Path) -> None:
    """As versions wrote them whose adapted layer computed with W + scale B A, A (rank, inputs k k),
    under ``to:network:enter.down``.
    """
    adapted = spread(role(MODELS[kind]()))
    tensors = {}
    for path, low in adapter_of(adapted).layers.items():
        name = "to:network:" + path.replace(".", ":")
        tensors |= {
            f"{name}.down": low.lora_A.weight.detach().flatten(1),
            f"{name}.up": low.lora_B.weight.detach().flatten(1),
        }
    write_tensors(tmp_path / "old", tensors, {"format": 1, "kind": "lora", "rank": 2, "scale": 0.7})
    stored, same = load_adapter(tmp_path / "old"), MODELS[kind]()
    again = in_network(same, AdaptedNetwork.holding(AdaptedBase(same.network), stored.on(same.network)))
    assert torch.equal(call(again), call(adapted))


def test_ranks_and_alphas_may_differ_by_layer() -> None:
    teacher = image_denoiser()
    pairs = {
        "enter": LowRankPair(normals(3, 1, 3, 3, dtype=torch.float32), normals(8, 3, 1, 1, dtype=torch.float32), 6.0),
        "embed.0": LowRankPair(normals(1, 32, dtype=torch.float32), normals(16, 1, dtype=torch.float32), 0.5),
    }
    adapted = in_network(teacher, AdaptedNetwork.holding(AdaptedBase(teacher.network), pairs))
    plain = merged(adapted).network
    for path, scale in (("enter", 2.0), ("embed.0", 0.5)):
        delta = plain.get_parameter(f"{path}.weight") - teacher.network.get_parameter(f"{path}.weight")
        expected = scale * pairs[path].up.flatten(1) @ pairs[path].down.flatten(1)
        torch.testing.assert_close(delta.flatten(1), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(call(merged(adapted)), call(adapted), rtol=1e-4, atol=1e-5)


def test_an_adapter_that_does_not_fit_names_the_layer_and_changes_nothing() -> None:
    teacher = image_denoiser()
    pairs = adapter_of(role(teacher)).pairs()
    target = image_denoiser()
    wider = build({"kind": "small-unet", "width": 16, "depth": 2, "classes": 3, "embedding": 16})
    with pytest.raises(UserError, match=r"layer 'embed\.2': it has \(99, 2\) for 'lora_B' .* needs"):
        AdaptedNetwork.holding(AdaptedBase(wider), {"embed.2": LowRankPair(torch.ones(2, 16), torch.ones(99, 2), 1.0)})
    with pytest.raises(UserError, match=r"layer 'extra': this network has no such layer"):
        AdaptedNetwork.holding(AdaptedBase(target.network), {**pairs, "extra": pairs["embed.0"]})
    with pytest.raises(UserError, match="alpha must be finite and not 0, got inf"):
        AdaptedNetwork.holding(
            AdaptedBase(target.network), {"embed.0": LowRankPair(torch.ones(2, 32), torch.ones(16, 2), float("inf"))}
        )
    with pytest.raises(UserError, match="is empty"):
        AdaptedNetwork.holding(AdaptedBase(target.network), {})
    assert torch.equal(call(target), call(image_denoiser()))


class _Own(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).square()


def test_targets_choose_layers_and_what_cannot_be_adapted_is_refused(tmp_path: Path) -> None:
    network = image_denoiser().network
    assert list(fitting_layers(network, ("embed.0", "conv1"))) == [
        path
        for path, layer in network.named_modules()
        if isinstance(layer, LAYERS) and (path == "embed.0" or path.endswith(".conv1"))
    ]
    with pytest.raises(UserError, match=r"no linear or convolutional layer called 'to_q'.*its layers end in .*conv1"):
        fitting_layers(network, ("conv1", "to_q"))
    for build_form, words in ((lambda: Form(0, 1.0), "at least 1, got 0"), (lambda: Form(2, 0.0), "not 0, got 0.0")):
        with pytest.raises(UserError, match=words):
            build_form()
    with pytest.raises(UserError, match="no linear or convolutional layers"):
        AdaptedNetwork.fresh(AdaptedBase(nn.Sequential(nn.SiLU())), Form(1, 1.0))
    with pytest.raises(UserError, match="layer '0' is a _Own, which computes by a rule of its own"):
        AdaptedNetwork.fresh(AdaptedBase(nn.Sequential(_Own(2, 2))), Form(1, 1.0))
    with pytest.raises(UserError, match="layer '0' is a convolution in groups"):
        AdaptedNetwork.fresh(AdaptedBase(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))), Form(1, 1.0))
    save_model(tmp_path / "model", tiny_denoiser())
    with pytest.raises(UserError, match="is not an adapter's file"):
        load_adapter(tmp_path / "model")
    save_adapter(tmp_path / "adapter", adapter_of(role(MODELS["mlp"]())))
    with pytest.raises(UserError, match="not a model file"):
        load_model(tmp_path / "adapter")
    tensors, metadata = read_tensors(tmp_path / "adapter")
    first = min(metadata["alphas"])
    for changed, words in (
        ({"alphas": "two"}, "says no alpha"),
        ({"alphas": {**metadata["alphas"], first: 0.0}}, "alpha of 0.0"),
        ({"alphas": {key: 1.0 for key in metadata["alphas"] if key != first}}, f"layer '{first}' has no two matrices"),
    ):
        write_tensors(tmp_path / "odd", tensors, {**json.loads(json.dumps(metadata)), **changed})
        with pytest.raises(UserError, match=f"odd: .*{words}"):
            load_adapter(tmp_path / "odd")


@every_model
def test_training_a_role_moves_its_adapter_and_leaves_the_base(kind: str) -> None:
    teacher = MODELS[kind]()
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    adapted = role(teacher).requires_grad_(True).train()
    optimizer = torch.optim.Adam(adapted.parameters(), 1e-2)
    losses = []
    for _ in range(4):
        loss = (call(adapted) - 1).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in adapted.parameters())
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@every_model
def test_copies_and_averages_have_adapters_of_their_own_on_the_same_base(kind: str) -> None:
    teacher = MODELS[kind]()
    adapted = spread(role(teacher))
    twin = copy_of(adapted)
    assert torch.equal(call(twin), call(adapted))
    assert bases_of(twin)[0] is teacher.network
    spread(adapted, seed=6)
    assert not torch.equal(call(twin), call(adapted))
    twin.load_state_dict(adapted.state_dict())
    assert torch.equal(call(twin), call(adapted))
    average = Averaged(adapted, HalfLife(1, ramp=0))
    old = {name: value.clone() for name, value in adapted.state_dict().items()}
    spread(adapted, seed=7)
    average.update(adapted)
    for name, value in average.average.state_dict().items():
        torch.testing.assert_close(value, (old[name] + adapted.state_dict()[name]) / 2)
    assert not any(p.requires_grad for p in average.parameters())


@every_model
def test_a_copy_of_the_base_is_a_network_of_its_own(kind: str) -> None:
    teacher = MODELS[kind]()
    adapted = spread(role(teacher))
    whole = copy_of(teacher)
    randomised(whole, 9)
    expected = call(whole)
    call(adapted)
    assert torch.equal(call(whole), expected)
    assert torch.equal(call(teacher), call(MODELS[kind]()))
    alone = apart(adapted)
    assert torch.equal(call(alone), call(adapted))
    assert bases_of(alone)[0] is not teacher.network
    with torch.no_grad():
        next(bases_of(alone)[0].parameters()).add_(1.0)
    assert torch.equal(call(teacher), call(MODELS[kind]()))
    assert not torch.equal(call(alone), call(adapted))


class _Attends(nn.Module):
    """Torch's attention multiplies with the weights of its last layer, which it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1)
        self.leave = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(self.attention(x, x, x)[0])


def test_an_adapter_on_a_layer_that_is_not_called_is_refused_and_not_silent() -> None:
    adapted = AdaptedNetwork.fresh(AdaptedBase(_Attends()), Form(1, 1.0))
    with pytest.raises(UserError, match=r"_Attends does not call its layer 'attention\.out_proj'.* name 'targets'"):
        adapted(torch.ones(2, 3, 4))
    AdaptedNetwork.fresh(AdaptedBase(_Attends()), Form(1, 1.0, ("leave",)))(torch.ones(2, 3, 4))


def test_a_files_layer_is_told_from_another_that_ends_alike() -> None:
    network = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 1), block=nn.Sequential()))
    network.block.add_module("conv", nn.Conv2d(4, 4, 1, groups=2))
    pair = LowRankPair(torch.ones(1, 4, 1, 1), torch.ones(4, 1, 1, 1), 1.0)
    adapted = AdaptedNetwork.holding(AdaptedBase(network), {"conv": pair})
    torch.testing.assert_close(
        merged_network(adapted).get_parameter("conv.weight"), network.conv.weight + torch.ones(4, 4, 1, 1)
    )
    with pytest.raises(UserError, match=r"layer 'block\.conv' is a convolution in groups"):
        AdaptedNetwork.holding(AdaptedBase(network), {"block.conv": pair})


def test_a_failing_forward_leaves_the_base_as_it_was() -> None:
    teacher = image_denoiser()
    adapted, expected = spread(role(teacher)), call(teacher)
    with pytest.raises(RuntimeError):
        adapted.network(torch.zeros(1, 9, 8, 8), torch.zeros(1), Condition())
    assert torch.equal(call(teacher), expected)


def test_a_frozen_first_forward_under_autocast_leaves_the_gradients_of_the_next() -> None:
    """A forward without gradients must not leave shortened weights behind that have none."""
    adapted = spread(role(image_denoiser())).requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            call(adapted)
        loss = call(adapted).square().sum()
    loss.backward()
    grads = [p.grad for p in adapted.parameters()]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)


def test_a_base_of_short_weights_has_adapters_of_long_ones() -> None:
    network = nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16)
    adapted = AdaptedNetwork.fresh(AdaptedBase(network), Form(2, 1.0))
    assert {p.dtype for p in adapted.parameters()} == {torch.float32}
    assert adapted(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_layer_may_have_any_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rank, self.scale, self.keys = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rank(x) + self.scale(x) + self.keys(x)

    adapted = AdaptedNetwork.fresh(AdaptedBase(Odd()), Form(1, 1.0))
    assert set(adapted.adapter.layers) == {"rank", "scale", "keys"}
    twin = copy.deepcopy(adapted)
    assert torch.equal(twin(torch.ones(1, 2)), adapted(torch.ones(1, 2)))
    assert len(AdaptedNetwork.fresh(AdaptedBase(LatentMLP()), Form(1, 1.0)).adapter.layers) == 4


@every_model
def test_a_short_base_computes_nearly_the_same_and_its_copies_are_long(kind: str) -> None:
    plain, short = MODELS[kind](), MODELS[kind]()
    shorten(short.network)
    layers = [layer for layer in short.modules() if isinstance(layer, LAYERS)]
    others = [p for m in short.modules() if not isinstance(m, LAYERS) for p in m.parameters(recurse=False)]
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    assert {p.dtype for p in others} <= {torch.float32}
    expected, found = call(plain), call(short)
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.02
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(call(short), call(plain), rtol=0.05, atol=0.05)
    # A copy to be trained, and the merged student, have the short weights' values in long.
    long = copy_of(short)
    assert {p.dtype for p in long.parameters()} == {torch.float32}
    for name, value in long.state_dict().items():
        assert torch.equal(value, short.state_dict()[name].to(value.dtype))
    adapted = spread(role(short))
    assert {p.dtype for p in merged(adapted).parameters()} == {torch.float32}
    gained = merged(adapted).network.state_dict()
    for path, low in adapter_of(adapted).layers.items():
        own = short.network.get_parameter(f"{path}.weight").to(torch.float32)
        torch.testing.assert_close(gained[f"{path}.weight"], own + low.pair().product(), rtol=1e-5, atol=1e-6)


def test_a_frozen_node_on_a_short_base_is_short_and_the_student_long(tmp_path: Path) -> None:
    teacher = image_denoiser()
    shorten(teacher.network)
    student = spread(role(teacher))
    freeze(student)
    path = DegradationPath(tmp_path, teacher, like=student)
    path.record(student, 3)
    # On disk too: what takes a node keeps no more of it.
    assert {value.dtype for value in path.read(1).values()} == {torch.bfloat16}
    blank = path.blank()
    assert {p.dtype for p in blank.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    path.load(1, blank)
    assert float((call(blank) - call(student)).norm() / call(student).norm()) < 0.02
    path.load(0, blank)
    assert all(
        torch.equal(value, student.state_dict()[name].to(value.dtype)) for name, value in blank.state_dict().items()
    )
