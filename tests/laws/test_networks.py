"""Laws of networks: what ships computes as it did, new branches are silent, features are what the
output is made of, and critics project on the class.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from law_kit import normals, randomised, time, tiny_denoiser
from torch import Tensor, nn

import fewstep as fs
from fewstep import cost
from fewstep.condition import Condition
from fewstep.denoisers import FrozenTrunk, Headed, copy_of, freeze, grown_denoiser
from fewstep.errors import UserError
from fewstep.networks import (
    DenoisingNetwork,
    FeatureHead,
    ProjectedCritic,
    ResidualMLP,
    SmallUNet,
    build,
    describe_network,
    grown,
)
from fewstep.networks.embedding import NoiseEmbedding, SideLabels, one_hot
from fewstep.networks.kinds.network_files import load_network, save_network
from fewstep.schedule import KarrasVE

DESCRIPTIONS = {
    "unet": {"kind": "small-unet", "width": 8, "depth": 2, "classes": 3, "embedding": 16},
    "mlp": {"kind": "residual-mlp", "width": 16, "depth": 2, "classes": 3},
}
SHAPES = {"unet": (1, 8, 8), "mlp": (2,)}
every_kind = pytest.mark.parametrize("kind", DESCRIPTIONS)
every_branch = pytest.mark.parametrize(
    "changes", [{"guidance": True}, {"end": True}, {"guidance": True, "end": True}], ids="+".join
)


def network_of(kind: str, **changes: bool) -> DenoisingNetwork:
    network = randomised(build({**DESCRIPTIONS[kind], **changes}))
    assert isinstance(network, DenoisingNetwork)
    return network


def inputs_of(kind: str, rows: int = 5) -> tuple[Tensor, Tensor, Condition]:
    x = normals(rows, *SHAPES[kind], dtype=torch.float32)
    return x, torch.linspace(-1, 1, rows), Condition(torch.arange(rows) % 4 - 1, guidance=torch.linspace(0, 8, rows))


def as_it_was(network: nn.Module, x: Tensor, noise_label: Tensor, condition: Condition) -> Tensor:
    """The networks' arithmetic before they had branches, line by line."""
    if isinstance(network, ResidualMLP):
        embedded = network.embed(noise_label)
        if network.classes:
            embedded = torch.cat([embedded, one_hot(condition, network.classes, len(x), embedded)], dim=1)
        shared = network.condition(embedded)
        hidden = network.enter(x)
        for shift, block in zip(network.shifts, network.blocks, strict=True):
            hidden = hidden + block(hidden + shift(shared))
        return network.leave(hidden)
    assert isinstance(network, SmallUNet)
    embedded = network.embed(network.noise(noise_label))
    if network.label is not None:
        embedded = embedded + network.label(one_hot(condition, network.classes, len(x), embedded))
    embedded = network.act(embedded)
    fine = network.fine_in(network.enter(x), embedded)
    coarse = network.middle[0](network.down(fine), embedded)
    coarse = network.attention(coarse)
    for block in network.middle[1:]:
        coarse = block(coarse, embedded)
    hidden = network.fine_out(torch.cat([network.up(coarse), fine], dim=1), embedded)
    return network.leave(network.act(network.norm(hidden)))


# Defaults and branches


@pytest.mark.parametrize("name", ["digits", "mixture2d"])
def test_a_shipped_teacher_computes_as_it_did_bit_for_bit(name: str) -> None:
    teacher = fs.zoo.shipped_denoiser(name)
    x = normals(12, *teacher.shape, dtype=torch.float32)
    label, condition = torch.linspace(-1.5, 1, 12), Condition(torch.arange(12) % 10 if teacher.classes else None)
    assert torch.equal(teacher.network(x, label, condition), as_it_was(teacher.network, x, label, condition))
    assert not [key for key in teacher.network.state_dict() if key.startswith("side")]


@every_kind
@every_branch
def test_a_grown_network_keeps_its_weights_and_is_silent(kind: str, changes: dict) -> None:
    old = network_of(kind)
    state = torch.get_rng_state()
    new = grown(old, **changes)
    assert torch.equal(torch.get_rng_state(), state)
    assert describe_network(new) == {**describe_network(old), **changes}
    fresh = set(new.state_dict()) - set(old.state_dict())
    assert len(fresh) == 2 * len(changes)
    assert all(key.startswith("side.") for key in fresh)
    for key, value in old.state_dict().items():
        assert torch.equal(new.state_dict()[key], value)
        assert new.state_dict()[key].data_ptr() != value.data_ptr()
    assert all(p.requires_grad for p in new.parameters())
    x, label, condition = inputs_of(kind)
    end = torch.linspace(-2, 0, 5) if "end" in changes else None
    assert torch.equal(new(x, label, condition, end), old(x, label, condition))


@every_kind
@pytest.mark.parametrize("branch", ["guidance", "end"])
def test_a_trained_branch_is_heard_and_gets_a_gradient_from_the_start(kind: str, branch: str) -> None:
    new = grown(network_of(kind), **{branch: True})
    x, label, condition = inputs_of(kind)
    end = torch.linspace(-2, 0, 5) if branch == "end" else None
    weight = getattr(new.side, branch).weight
    before = new(x, label, condition, end)
    before.square().sum().backward()
    assert float(weight.grad.abs().sum()) > 0
    with torch.no_grad():
        weight.copy_(normals(*weight.shape, dtype=torch.float32))
    after = new(x, label, condition, end)
    assert not bool(torch.isclose(after, before).flatten(1).all(1).any())
    other = Condition(condition.labels, guidance=condition.guidance + 0.5) if branch == "guidance" else condition
    moved = new(x, label, other, end + 0.5 if end is not None else None)
    assert not bool(torch.isclose(after, moved).flatten(1).all(1).any())


def test_side_labels_add_a_linear_map_of_waves() -> None:
    side = SideLabels(6, guidance=True, end=True)
    randomised(side)
    embedded, w, end = (
        normals(4, 6, dtype=torch.float32),
        torch.tensor([0.0, 1.0, 4.0, 7.5]),
        torch.tensor([-1.0, 0.0, 0.3, 2.0]),
    )
    angles = torch.exp(torch.linspace(0, torch.log(torch.tensor(64.0)).item(), 16))

    def waves(label: Tensor) -> Tensor:
        return torch.cat([torch.sin(label[:, None] * angles), torch.cos(label[:, None] * angles)], dim=1)

    expected = (
        embedded
        + waves(w / 4) @ side.guidance.weight.T
        + side.guidance.bias
        + waves(end) @ side.end.weight.T
        + side.end.bias
    )
    torch.testing.assert_close(side(embedded, Condition(guidance=w), end), expected, rtol=1e-5, atol=1e-5)
    assert SideLabels(6)(embedded, Condition(), None) is embedded
    assert torch.equal(NoiseEmbedding(32).frequencies, angles)


@every_kind
@pytest.mark.parametrize("branch", ["guidance", "end"])
def test_a_branch_enters_where_the_noise_level_does(kind: str, branch: str) -> None:
    # So a branch's bias is as good as one on the last layer of the noise level's embedding.
    new, shifted = (network_of(kind, **{branch: True}) for _ in range(2))
    side, shift = getattr(new.side, branch), normals(16, dtype=torch.float32)
    last = (shifted.embed if kind == "unet" else shifted.condition)[2]
    with torch.no_grad():
        side.bias += shift
        last.bias += shift
    x, label, condition = inputs_of(kind)
    end = torch.linspace(-2, 0, 5) if branch == "end" else None
    torch.testing.assert_close(new(x, label, condition, end), shifted(x, label, condition, end), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        new(x, label, condition, end),
        network_of(kind, **{branch: True})(x, label, condition, end),
        rtol=1e-3,
        atol=1e-3,
    )


@every_kind
def test_other_weights_are_drawn_alike_with_and_without_branches(kind: str) -> None:
    built = []
    for changes in ({}, {"guidance": True, "end": True}):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            built.append(build({**DESCRIPTIONS[kind], **changes}).state_dict())
    assert all(torch.equal(built[1][key], value) for key, value in built[0].items())


@every_kind
def test_what_a_branch_needs_is_asked_for(kind: str) -> None:
    x, label, condition = inputs_of(kind)
    end = torch.zeros(5)
    for call in ("__call__", "features"):
        with pytest.raises(UserError, match="has none: give Condition"):
            getattr(network_of(kind, guidance=True), call)(x, label, Condition(condition.labels))
        with pytest.raises(UserError, match="called without one"):
            getattr(network_of(kind, end=True), call)(x, label, condition)
        with pytest.raises(UserError, match="takes no end label"):
            getattr(network_of(kind), call)(x, label, condition, end)


def test_only_silent_branches_grow_and_none_is_lost() -> None:
    with pytest.raises(UserError, match="'depth' cannot be added"):
        grown(network_of("mlp"), depth=3)
    with pytest.raises(UserError, match=r"side\.end\.bias|side\.end\.weight"):
        grown(network_of("mlp", end=True), end=False)
    with pytest.raises(UserError, match="unknown argument 'end'"):
        grown(build({"kind": "latent-mlp"}), end=True)
    with pytest.raises(UserError, match="is not registered"):
        grown(torch.nn.Linear(2, 2), end=True)


def test_a_grown_denoiser_estimates_the_same() -> None:
    old = tiny_denoiser(classes=3)
    new = grown_denoiser(old, guidance=True)
    x, t, condition = (
        normals(6, 2, dtype=torch.float32),
        torch.linspace(0.01, 1, 6),
        Condition(torch.arange(6) % 3, guidance=torch.full((6,), 3.0)),
    )
    assert torch.equal(new(x, t, condition), old(x, t, condition))
    assert (new.schedule, new.prediction, new.inputs, new.shape, new.classes) == (
        old.schedule,
        old.prediction,
        old.inputs,
        old.shape,
        old.classes,
    )


# Features


@every_kind
@pytest.mark.parametrize("changes", [{}, {"guidance": True, "end": True}], ids=["plain", "branches"])
def test_features_are_what_the_output_is_computed_from(kind: str, changes: dict) -> None:
    network = network_of(kind, **changes)
    x, label, condition = inputs_of(kind)
    end = torch.linspace(-2, 0, 5) if changes else None
    after, seen = (network.up if kind == "unet" else network.leave), []
    handle = after.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    features = network.features(x, label, condition, end)
    assert seen == []  # nothing after them is computed
    network(x, label, condition, end)
    handle.remove()
    assert torch.equal(seen[0], features)
    assert features.shape == ((5, 16, 4, 4) if kind == "unet" else (5, 16))
    assert network.bottleneck == features.shape[1]


def test_a_denoisers_features_are_fed_and_counted_as_its_forward_is() -> None:
    denoiser = tiny_denoiser(classes=3)
    x, t, labels = normals(6, 2, dtype=torch.float32), torch.linspace(0.01, 1, 6), torch.arange(6) % 3
    seen: list[Tensor] = []
    denoiser.network.leave.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    denoiser(x, t, labels)
    with cost.metered() as meter:
        features = denoiser.features(x, t, labels)
    assert torch.equal(features, seen[0])
    assert meter.evaluations == 18
    with cost.metered() as meter, torch.no_grad():
        denoiser.features(x, time(0.5), labels)
    assert meter.evaluations == 6
    denoiser.network = nn.Identity()
    with pytest.raises(UserError, match="Identity has no features"):
        denoiser.features(x, t)


def test_the_classifiers_stages_lead_to_its_features() -> None:
    classifier = fs.zoo.digit_features()
    x = normals(4, 1, 8, 8, dtype=torch.float32)
    stages = classifier.stages(x)
    assert [tuple(s.shape[1:]) for s in stages] == [(32, 8, 8), (64, 4, 4), (64, 2, 2), (64,)]
    assert classifier.stage_channels == tuple(s.shape[1] for s in stages)
    assert torch.equal(stages[-1], classifier.features(x))
    for last, stage in zip((2, 4, 6, 9), stages, strict=True):
        assert torch.equal(classifier.body[:last](x), stage)


# Critics


def head_of(channels: int, classes: int = 3) -> FeatureHead:
    head = randomised(build({"kind": "feature-head", "channels": channels, "classes": classes, "width": 8}))
    assert isinstance(head, FeatureHead)
    return head


def test_a_heads_class_enters_by_projection() -> None:
    head, features = head_of(6).double(), normals(5, 6, 3, 3)
    hidden = head.body(features.flatten(2).transpose(1, 2)).mean(1)
    plain = head(features)
    assert plain.shape == (5,)
    torch.testing.assert_close(plain, hidden @ head.psi.weight[0] + head.psi.bias)
    for label in range(3):
        logits = head(features, torch.full((5,), label))
        torch.testing.assert_close(logits - plain, hidden @ head.embed.weight[:, label], rtol=1e-10, atol=1e-12)
    assert torch.equal(head(features, torch.full((5,), -1)), plain)


def test_a_head_pools_over_positions() -> None:
    head, features = head_of(6).double(), normals(5, 6, 3, 3)
    labels = torch.tensor([0, 1, 2, 0, -1])
    shuffled = features.flatten(2)[:, :, torch.tensor([4, 0, 8, 2, 6, 1, 7, 5, 3])]
    torch.testing.assert_close(head(shuffled, labels), head(features, labels))
    flat = features[:, :, 0, 0]
    torch.testing.assert_close(head(flat, labels), head(flat[:, :, None, None].expand(-1, -1, 2, 2), labels))


def test_a_head_comes_back_from_its_file(tmp_path: Path) -> None:
    head = head_of(6)
    save_network(tmp_path / "head.safetensors", head)
    loaded, features = load_network(tmp_path / "head.safetensors"), normals(5, 6, 2, dtype=torch.float32)
    assert torch.equal(loaded(features, torch.arange(5) % 3), head(features, torch.arange(5) % 3))


def test_a_projected_critic_is_its_heads_on_frozen_features() -> None:
    classifier = fs.zoo.digit_features()
    critic = ProjectedCritic(classifier.stages, classifier.stage_channels, classes=10, width=8)
    x, labels = normals(4, 1, 8, 8, dtype=torch.float32).requires_grad_(), torch.arange(4)
    logits = critic(x, labels)
    expected = [head(stage, labels) for head, stage in zip(critic.heads, classifier.stages(x), strict=True)]
    assert torch.equal(logits, torch.stack(expected, dim=1))
    assert all(key.startswith("heads.") for key in critic.state_dict())
    critic.requires_grad_(True)
    logits.sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is None and not p.requires_grad for p in classifier.parameters())
    assert not [
        key for key in ProjectedCritic(classifier, (3,)).state_dict() if not key.startswith("heads.")
    ]  # a module is not registered either
    with pytest.raises(UserError, match="built for 3 feature maps and is given 4"):
        ProjectedCritic(classifier.stages, classifier.stage_channels[:3])(x)
    with pytest.raises(UserError, match="at least one"):
        ProjectedCritic(classifier.stages, ())


def test_a_headed_denoiser_is_the_denoiser_and_trains_both() -> None:
    denoiser = tiny_denoiser(KarrasVE(), classes=3)
    headed = Headed(denoiser, head_of(denoiser.network.bottleneck))
    x, t, labels = normals(6, 2, dtype=torch.float32), torch.linspace(0.01, 1, 6), torch.arange(6) % 3
    assert torch.equal(headed(x, t, labels), denoiser(x, t, labels))
    assert (headed.schedule, headed.shape, headed.classes) == (denoiser.schedule, denoiser.shape, denoiser.classes)
    logits = headed.logits(x, t, labels)
    assert torch.equal(logits, headed.head(denoiser.features(x, t, labels), labels))
    logits.sum().backward()
    assert headed.head.psi.weight.grad is not None
    assert float(denoiser.network.enter.weight.grad.abs().sum()) > 0
    assert {id(p) for p in headed.parameters()} == {
        id(p) for part in (denoiser, headed.head) for p in part.parameters()
    }


def test_a_frozen_trunk_trains_its_head_only() -> None:
    teacher = freeze(tiny_denoiser(KarrasVE(), classes=3))
    critic = FrozenTrunk(teacher, head_of(teacher.network.bottleneck))
    x, t, labels = normals(6, 2, dtype=torch.float32).requires_grad_(), torch.linspace(0.01, 1, 6), torch.arange(6) % 3
    assert torch.equal(critic(x, t, labels), Headed(teacher, critic.head).logits(x, t, labels))
    assert critic.denoiser is teacher
    assert set(critic.state_dict()) == {f"head.{key}" for key in critic.head.state_dict()}
    critic.requires_grad_(True).train()
    critic.logits(x, t, labels).sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in critic.parameters())
    assert torch.equal(copy_of(critic)(x, t, labels), critic(x, t, labels))


@every_kind
def test_a_description_is_spelled_out_and_rebuilds_the_network(kind: str) -> None:
    """A file of a network says all of it, whether or not whoever made it did: files made before an
    argument existed describe the same network as new ones.
    """
    short = DESCRIPTIONS[kind]
    full = describe_network(build(short))
    assert full.items() >= short.items()
    assert set(full) > set(short)
    assert describe_network(build(full)) == full
    assert json.loads(json.dumps(full)) == full
