"""Laws of the families of transformers: derivatives, recomputation, features, and that nothing is
dropped at random. What they emit is compared with diffusers in ``tests/zoo``.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from family_kit import CASES, FamilyCase
from fewstep.condition import Condition
from fewstep.denoisers.denoiser import frozen
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.networks.adapters import AdaptedBase, AdaptedNetwork, Form
from fewstep.networks.families import DiffusersTransformer
from fewstep.networks.families.transformer import pack, unpack

LABELS = torch.tensor([300.0, 700.0], dtype=torch.float64)
every_family = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def ours(case: FamilyCase, **settings: Any) -> DiffusersTransformer:
    """Our network with the weights of diffusers', in double precision."""
    network = build({"kind": case.kind, "config": dict(case.config), **settings})
    assert isinstance(network, DiffusersTransformer)
    network.transformer.load_state_dict(case.network().state_dict())
    return network.double()


def given(case: FamilyCase) -> tuple[Tensor, Tensor, Condition]:
    made = case.condition()
    return case.noise().double(), LABELS, Condition(made.labels, {k: v.double() for k, v in made.context.items()})


@every_family
def test_a_forward_derivative_is_a_central_difference(case: FamilyCase) -> None:
    network, (x, label, condition) = ours(case), given(case)
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype)
    with torch.no_grad():
        value, slope = torch.func.jvp(lambda each: network(each, label, condition), (x,), (along,))
        assert torch.allclose(value, network(x, label, condition), rtol=1e-9, atol=1e-9)
        # Some layers compute in float32 whatever they are given.
        step = 2e-4
        there, back = (network(x + sign * step * along, label, condition) for sign in (1, -1))
    error = (slope - (there - back) / (2 * step)).norm() / slope.norm()
    assert float(error) < 1e-2


@every_family
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "computed again"])
def test_features_have_second_derivatives(case: FamilyCase, recomputed: bool) -> None:
    """R1 through a critic: the gradient of the gradient's size, by central differences."""
    network, (x, label, condition) = ours(case), given(case)
    network.requires_grad_(True)
    network.recompute = recomputed
    weights = torch.randn(network.bottleneck, generator=torch.Generator().manual_seed(3), dtype=x.dtype)

    def size(at: Tensor) -> Tensor:
        at = at.requires_grad_()
        found = network.features(at, label, condition)
        logits = (found.mean(2).tanh() * weights).sum()
        return torch.autograd.grad(logits, at, create_graph=True)[0].square().sum()

    parameter = next(value for name, value in network.named_parameters() if "block" in name or "layers" in name)
    wanted = torch.autograd.grad(size(x.clone()), parameter)[0]
    along = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4), dtype=x.dtype)
    step, sizes = 1e-4, []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(sign * step * along)
        sizes.append(size(x.clone()).detach())
        with torch.no_grad():
            parameter.sub_(sign * step * along)
    torch.testing.assert_close((wanted * along).sum(), (sizes[0] - sizes[1]) / (2 * step), rtol=1e-2, atol=1e-6)


@every_family
def test_recomputation_changes_no_bit(case: FamilyCase) -> None:
    network, (x, label, condition) = ours(case), given(case)
    network.requires_grad_(True)
    found = []
    for on in (False, True):
        network.recompute = on
        assert network.recompute == on
        output = network(x, label, condition)
        found.append(
            [
                output.detach(),
                *torch.autograd.grad(output.square().mean(), list(network.parameters()), allow_unused=True),
            ]
        )
    for plain, again in zip(*found, strict=True):
        assert (plain is None) == (again is None)
        assert plain is None or torch.equal(plain, again)


@every_family
def test_a_block_is_computed_again_under_its_own_adapter(case: FamilyCase) -> None:
    """Another role has had its turn before the backward pass."""
    base, (x, label, condition) = AdaptedBase(ours(case)), given(case)
    student, other = (AdaptedNetwork.fresh(base, Form(2, 4.0)).double() for _ in range(2))
    with torch.no_grad():
        for seed, role in enumerate((student, other)):
            for value in role.parameters():
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=value.dtype))
    found = []
    for on in (False, True):
        student.recompute = on
        output = student(x, label, condition)
        with torch.no_grad():
            other(x, label, condition)
        found.append(torch.autograd.grad(output.square().mean(), list(student.parameters()), allow_unused=True))
    assert any(value is not None and bool(value.abs().max() > 0) for value in found[0])
    for plain, again in zip(*found, strict=True):
        # Of Qwen-Image's last block the text's stream goes nowhere.
        assert (plain is None) == (again is None)
        if plain is None:
            continue
        torch.testing.assert_close(plain, again, rtol=1e-12, atol=1e-14)


@every_family
@pytest.mark.parametrize("held", [False, True], ids=["trained", "held still"])
def test_recomputation_changes_no_bit_of_what_features_give(case: FamilyCase, held: bool) -> None:
    """As a critic on them asks: twice before the backward pass, of a network that may be held still
    until then.
    """
    network, (x, label, condition) = ours(case), given(case)
    network.requires_grad_(True)
    found = []
    for on in (False, True):
        network.recompute = on
        at = x.clone().requires_grad_()
        with frozen(network) if held else nullcontext():
            features = [network.features(part, label, condition) for part in (at, at * 0.5)]
            emitted = network(at, label, condition)
        total = emitted.square().mean() + sum(each.square().mean() for each in features)
        wanted = [at] if held else [at, *network.parameters()]
        found.append(torch.autograd.grad(total, wanted, allow_unused=True))
        assert network.recompute == on
    for plain, again in zip(*found, strict=True):
        assert (plain is None) == (again is None)
        assert plain is None or torch.equal(plain, again)


@every_family
def test_features_stop_half_way_and_are_the_images(case: FamilyCase) -> None:
    network, (x, label, condition) = ours(case), given(case)
    calls: list[int] = []
    handles = [
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, block in enumerate(network.blocks)
    ]
    with torch.no_grad():
        found = network.features(x, label, condition)
    assert calls == list(range((len(network.blocks) - 1) // 2 + 1))
    for handle in handles:
        handle.remove()
    tokens = network.tokens_in(case.config, case.shape)
    assert found.shape == (len(x), network.bottleneck, tokens)
    # Where blocks add little, a change in the last corner is largest in the last token.
    moved = x.clone()
    moved[:, :, -1, -1] += 1e-3
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(0.3)
        found = network.features(x, label, condition)
        change = (network.features(moved, label, condition) - found).abs().sum(1)
    assert change.argmax(1).tolist() == [tokens - 1] * len(x)


@every_family
def test_training_drops_nothing(case: FamilyCase) -> None:
    network, (x, label, condition) = ours(case), given(case)
    with torch.no_grad():
        expected = network.eval()(x, label, condition)
        network.train()
        assert network.training
        for _ in range(3):
            assert torch.equal(network(x, label, condition), expected)


@every_family
def test_a_sample_is_its_own(case: FamilyCase) -> None:
    """A batch is its samples, one at a time; conditions, times and masks are each sample's own."""
    network, (x, label, condition) = ours(case), given(case)
    with torch.no_grad():
        whole = network(x, label, condition)
        for row in range(len(x)):
            rows = slice(row, row + 1)
            torch.testing.assert_close(
                network(x[rows], label[rows], condition[rows]), whole[rows], rtol=1e-9, atol=1e-9
            )
        assert float((whole[0] - whole[1]).abs().max()) > 1e-3
        if condition.context:
            changed = {name: value.clone() for name, value in condition.context.items()}
            changed["text"][0, -2:] += 1.0
            other = network(x, label, Condition(context=changed))
            assert torch.equal(other[1], whole[1])
            # Of the first sample's text the last two tokens count only where nothing masks them.
            assert bool((other[0] - whole[0]).abs().max() < 1e-9) == case.masked


@every_family
def test_what_a_network_lacks_is_one_sentence(case: FamilyCase) -> None:
    network, (x, label, condition) = ours(case), given(case)
    with pytest.raises(UserError, match="takes no end label"):
        network(x, label, condition, label)
    if case.context:
        with pytest.raises(UserError, match="conditioned on 'text' and the condition has none"):
            network(x, label, Condition())
        narrow = {**condition.context, "text": condition.context["text"][..., :3]}
        with pytest.raises(UserError, match="takes 'text' of shape"):
            network(x, label, Condition(context=narrow))
    else:
        with pytest.raises(UserError, match="is told one of 10 classes a sample, or -1 for none"):
            network(x, label, Condition(labels=torch.full((2, 10), 0.1)))


def test_packing_has_an_inverse_and_an_order() -> None:
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = pack(x)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(unpack(tokens, x.shape), x)
    # The second patch of the first row: channel, row, column.
    assert torch.equal(tokens[0, 1], x[0, :, :2, 2:4].reshape(-1))


def test_dit_knows_no_class() -> None:
    network = ours(CASES["dit"])
    x, label = CASES["dit"].noise().double(), LABELS
    with torch.no_grad():
        none = network(x, label, Condition(labels=torch.tensor([-1, -1])))
        assert torch.equal(network(x, label, Condition()), none)
        table = network.transformer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
        assert table.num_embeddings == 11
        assert not torch.equal(network(x, label, Condition(labels=torch.tensor([0, 0]))), none)


def test_flux_is_told_a_scale() -> None:
    case = CASES["flux"]
    network, (x, label, condition) = ours(case, told=2.0), given(case)
    with torch.no_grad():
        usual = network(x, label, condition)
        same = Condition(context=condition.context, guidance=torch.full((2,), 2.0, dtype=x.dtype))
        assert torch.equal(network(x, label, same), usual)
        other = Condition(context=condition.context, guidance=torch.full((2,), 4.0, dtype=x.dtype))
        assert not torch.allclose(network(x, label, other), usual)


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("sana", {"guidance_embeds": True}, "whose times are angles"),
        ("qwen-image", {"zero_cond_t": True}, "true for zero_cond_t"),
        ("z-image", {"siglip_feat_dim": 8}, "sees pictures beside texts"),
        ("sd3", {"colour": 3}, "takes no 'colour'"),
        ("flux", {"num_layers": 0, "num_single_layers": 0}, "has no blocks"),
    ],
)
def test_a_network_of_another_kind_is_refused(family: str, change: dict[str, Any], said: str) -> None:
    case = CASES[family]
    with pytest.raises(UserError, match=said):
        build({"kind": case.kind, "config": {**case.config, **change}})
