"""Laws of FastGAN's generator and of the critic of images: the paper's excitation by hand, an image
is a function of its latent and class, the critic projects on the class, and its view.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from law_kit import normals, randomised
from torch import nn

from fewstep.condition import Condition
from fewstep.denoisers import Averaged, Generator, HalfLife, copy_of, load_model, save_model
from fewstep.errors import UserError
from fewstep.networks import FastGAN, ImageCritic, SkipExcitation, build
from fewstep.networks.fastgan import excitations
from fewstep.networks.kinds.network_files import load_network, save_network
from fewstep.objectives import Clean, CleanCritic, NonSaturating, Shifted
from fewstep.objectives.games.adversarial import AdversarialCritic, gradient_penalty
from fewstep.random import Key
from fewstep.schedule import KarrasVE
from fewstep.states import Prior, State, States, Step


def generator_of(resolution: int = 8, classes: int = 3, **changes: int) -> FastGAN:
    network = build(
        {
            "kind": "fastgan",
            "latent": 5,
            "resolution": resolution,
            "channels": 2,
            "width": 4,
            "classes": classes,
            **changes,
        }
    )
    assert isinstance(network, FastGAN)
    return network


def critic_of(resolution: int = 16, classes: int = 3) -> ImageCritic:
    network = randomised(
        build({"kind": "image-critic", "resolution": resolution, "channels": 2, "width": 4, "classes": classes}),
        scale=0.2,
    )
    assert isinstance(network, ImageCritic)
    return network


# Skip-layer excitation


def test_an_excitation_by_hand() -> None:
    """One channel of 8x8 on two: the 4x4 means m, h = leaky(sum w m), gates sigmoid(v h)."""
    layer = SkipExcitation(1, 2).double()
    low, high = normals(3, 1, 8, 8), normals(3, 2, 5, 7)
    squeeze, excite = normals(2, 1, 4, 4, seed=1), normals(2, 2, seed=2)
    with torch.no_grad():
        layer.squeeze.weight.copy_(squeeze)
        layer.squeeze.bias.copy_(torch.tensor([0.3, -0.4], dtype=torch.float64))
        layer.excite.weight.copy_(excite[:, :, None, None])
        layer.excite.bias.copy_(torch.tensor([0.1, 0.2], dtype=torch.float64))
    for row in range(3):
        means = torch.stack(
            [
                torch.stack([low[row, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(4)])
                for i in range(4)
            ]
        )
        hidden = [float((squeeze[c, 0] * means).sum()) + (0.3, -0.4)[c] for c in range(2)]
        hidden = [value if value > 0 else 0.1 * value for value in hidden]
        for c in range(2):
            gate = 1 / (1 + torch.exp(-(excite[c, 0] * hidden[0] + excite[c, 1] * hidden[1] + (0.1, 0.2)[c])))
            torch.testing.assert_close(layer(low, high)[row, c], gate * high[row, c], rtol=1e-12, atol=0)


def test_an_excitation_only_scales_channels_down() -> None:
    layer = randomised(SkipExcitation(3, 4))
    low, high = normals(2, 3, 4, 4, dtype=torch.float32), normals(2, 4, 8, 8, dtype=torch.float32)
    factors = layer(low, high) / high
    torch.testing.assert_close(factors, factors[:, :, :1, :1].expand_as(factors), rtol=1e-4, atol=0)
    assert bool(((factors > 0) & (factors < 1)).all())


def test_who_excites_whom_is_the_papers_from_64_pixels_on() -> None:
    assert excitations(256) == {64: 4, 128: 8, 256: 16}
    assert excitations(64) == {64: 4}
    assert [excitations(side) for side in (8, 16, 32)] == [{8: 4}, {16: 4}, {32: 4}]


@pytest.mark.parametrize("resolution", [8, 64])
def test_the_last_map_is_excited_by_the_first(resolution: int) -> None:
    """A gate that is shut leaves only the bias of the last convolution: the image is tanh of it,
    everywhere.
    """
    network = generator_of(resolution)
    gate = network.excitations[str(resolution)]
    with torch.no_grad():
        gate.excite.bias.fill_(-1e4)
        image = network(normals(2, 5, dtype=torch.float32), Condition())
        flat = network.leave(torch.zeros(2, network.leave.in_channels, resolution, resolution)).tanh()
    assert torch.equal(image, flat)


# The generator


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128, 256])
def test_images_have_the_side_asked_for_and_every_weight_matters(resolution: int) -> None:
    network = generator_of(resolution, latent=3)
    image = network(normals(2, 3, dtype=torch.float32), Condition(torch.tensor([0, 2])))
    assert image.shape == (2, 2, resolution, resolution)
    assert float(image.detach().abs().max()) < 1
    image.square().sum().backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in network.parameters())


def test_the_channels_are_the_papers_multiples_of_the_width() -> None:
    network = generator_of(256, classes=0, width=8)
    found = [
        int(network.start.norm.num_channels / 2),
        *(block.layers[-1].norm.num_channels // 2 for block in network.blocks.values()),
    ]
    assert found == [128, 64, 32, 16, 16, 8, 4]
    assert [len(block.layers) for block in network.blocks.values()] == [2, 1, 2, 1, 2, 1]
    assert network.leave.in_channels == 4


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_image_is_a_function_of_its_own_latent_and_class(training: bool) -> None:
    """Not of the batch, not of the calls before, not of chance; and not different at sampling."""
    network = randomised(generator_of(16), scale=0.2).train(training)
    z, labels = normals(6, 5, dtype=torch.float32), torch.tensor([0, 1, 2, -1, 0, 1])
    together = network(z, Condition(labels))
    assert torch.equal(network(z, Condition(labels)), together)
    assert torch.equal(network.train(not training)(z, Condition(labels)), together)
    alone = torch.cat([network(z[i : i + 1], Condition(labels[i : i + 1])) for i in range(6)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)
    others = network(torch.cat([z[:1], 50 * normals(5, 5, seed=3, dtype=torch.float32)]), Condition(labels))
    torch.testing.assert_close(others[0], together[0], rtol=1e-5, atol=1e-6)
    assert not dict(network.named_buffers())


def test_a_class_is_a_vector_of_a_latents_norm_and_no_class_is_none() -> None:
    network = generator_of(latent=9)
    seen: list[torch.Tensor] = []
    network.start.convolution.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, :, 0, 0]))
    z = normals(3, 9, dtype=torch.float32)
    network(z, Condition(torch.tensor([0, 2, -1])))
    network(z, Condition())
    expected = torch.cat([z, 3 * torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0]])], dim=1)
    assert torch.equal(seen[0], expected)
    assert torch.equal(seen[1], torch.cat([z, torch.zeros(3, 3)], dim=1))
    plain = generator_of(classes=0)
    assert torch.equal(plain(z[:, :5], Condition(torch.tensor([0, 1, 2]))), plain(z[:, :5], Condition()))


def test_the_parameters_names_stay() -> None:
    """Files of generators hold them."""
    names = set(generator_of(16).state_dict())
    gated = {
        f"{layer}.{part}"
        for layer in ("start", "blocks.8.layers.0", "blocks.8.layers.1", "blocks.16.layers.0")
        for part in ("convolution.weight", "norm.weight", "norm.bias")
    }
    excited = {f"excitations.16.{layer}.{part}" for layer in ("squeeze", "excite") for part in ("weight", "bias")}
    assert names == gated | excited | {"leave.weight", "leave.bias"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"resolution": 4}, "not of 4"),
        ({"resolution": 24}, "not of 24"),
        ({"resolution": 512}, "not of 512"),
        ({"width": 6}, "a multiple of 4"),
        ({"width": 0}, "at least 4"),
    ],
)
def test_sizes_that_it_has_not_are_refused(changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        generator_of(**changes)
    with pytest.raises(UserError, match="not 12"):
        critic_of(12)


def test_copies_averages_and_files_make_the_same_images(tmp_path: Path) -> None:
    model = Generator(randomised(generator_of(), scale=0.2), (5,), (2, 8, 8), 3)
    z, labels = normals(4, 5, dtype=torch.float32), torch.tensor([0, 1, 2, -1])
    image, average = model(z, None, labels), Averaged(model, HalfLife(1.0, ramp=0.0))
    save_model(tmp_path / "model.safetensors", model)
    loaded, _ = load_model(tmp_path / "model.safetensors")
    for other in (copy_of(model), loaded, average.average):
        assert torch.equal(other(z, None, labels), image)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    average.update(model)
    # After one half-life the average is half way.
    for name, value in average.average.named_parameters():
        torch.testing.assert_close(value, 2 * before[name])
    by_hand = copy_of(model)
    by_hand.load_state_dict({name: 2 * value for name, value in before.items()})
    torch.testing.assert_close(average(z, torch.zeros(()), labels), by_hand(z, None, labels), rtol=1e-5, atol=1e-6)


# The critic of images


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_a_critic_projects_on_the_class_and_looks_at_each_image_alone(resolution: int, tmp_path: Path) -> None:
    critic = critic_of(resolution)
    x = normals(4, 2, resolution, resolution, dtype=torch.float32)
    hidden: list[torch.Tensor] = []
    critic.psi.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    plain = critic(x)
    assert plain.shape == (4,)
    torch.testing.assert_close(plain, hidden[0] @ critic.psi.weight[0] + critic.psi.bias)
    for label in range(3):
        torch.testing.assert_close(
            critic(x, torch.full((4,), label)) - plain, hidden[0] @ critic.embed.weight[:, label], rtol=1e-4, atol=1e-5
        )
    assert torch.equal(critic(x, torch.full((4,), -1)), plain)
    torch.testing.assert_close(torch.cat([critic(x[i : i + 1]) for i in range(4)]), plain, rtol=1e-4, atol=1e-5)
    save_network(tmp_path / "critic.safetensors", critic)
    assert torch.equal(load_network(tmp_path / "critic.safetensors")(x), plain)


def test_a_critics_weights_all_matter_and_its_slope_has_a_slope() -> None:
    """R1 differentiates the slope again: the penalty's gradient agrees with finite differences
    along a direction in the weights.
    """
    critic = critic_of(8).double()
    x, labels = normals(3, 2, 8, 8).requires_grad_(), torch.tensor([0, 1, 2])

    def penalty() -> torch.Tensor:
        return gradient_penalty(critic(x, labels), x)

    weights = [parameter for name, parameter in critic.named_parameters() if "bias" not in name]
    slopes = torch.autograd.grad(penalty(), weights)
    directions = [normals(*weight.shape, seed=i) for i, weight in enumerate(weights)]
    expected = sum((slope * direction).sum() for slope, direction in zip(slopes, directions, strict=True))
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight.add_(direction, alpha=sign * 1e-6)
        values.append(penalty().detach())
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight.sub_(direction, alpha=sign * 1e-6)
    torch.testing.assert_close((values[0] - values[1]) / 2e-6, expected.detach(), rtol=1e-5, atol=1e-6)
    assert all(float(slope.abs().sum()) > 0 for slope in slopes)


# What it is shown


class _Images(States):
    def draw(self, step: Step) -> State:
        x0 = step.key.normal("law-data", (step.rows, 2, 8, 8), step.start)
        return State(x0, torch.zeros(step.rows, dtype=torch.float64), Condition(), x0)


def test_an_image_is_moved_by_whole_pixels_and_the_fill_comes_in() -> None:
    """Each of the 25 moves occurs, is the image at another place, and each sample has its own."""
    step, view = Step(Key(3), 400), Shifted(2, fill=-7.0)
    image = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8)
    moved, t = view.see(step, "critic", "real", image.expand(400, -1, -1, -1))
    assert moved.shape == (400, 1, 8, 8)
    assert not t.any()
    found = set()
    for sample in moved[:, 0]:
        fits = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                expected = torch.full((8, 8), -7.0)
                rows, columns = (slice(max(0, by), min(8, 8 + by)) for by in (down, right))
                from_rows, from_columns = (slice(max(0, -by), min(8, 8 - by)) for by in (down, right))
                expected[rows, columns] = image[0, 0, from_rows, from_columns]
                if torch.equal(sample, expected):
                    fits.append((down, right))
        assert len(fits) == 1
        found.update(fits)
    assert len(found) == 25


def test_moves_are_functions_of_the_place_and_differ_by_side_and_role() -> None:
    x, view = normals(8, 2, 8, 8), Shifted(1)

    def seen(rows: slice, side: str = "critic", role: str = "real", number: int = 0) -> torch.Tensor:
        return view.see(Step(Key(0, "s", number), len(x[rows]), rows.start), side, role, x[rows])[0]

    whole = seen(slice(0, 8))
    assert torch.equal(torch.cat([seen(slice(0, 3)), seen(slice(3, 8))]), whole)
    for other in (seen(slice(0, 8), "adversarial"), seen(slice(0, 8), role="fake"), seen(slice(0, 8), number=1)):
        assert not torch.equal(other, whole)
    assert torch.equal(Shifted(0).see(Step(Key(0), 8), "critic", "real", x)[0], x)


def test_no_move_is_clean_bit_for_bit_and_gradients_come_back_from_where_the_pixels_went() -> None:
    critic, student = CleanCritic(critic_of(8)), nn.Identity()
    student.forward = lambda z, t=None, condition=None: z  # type: ignore[method-assign, assignment]
    prior, step = Prior(KarrasVE(), (2, 8, 8), 1.0, 1.0), Step(Key(0), 4)
    losses = [
        AdversarialCritic(critic, student, _Images(), NonSaturating(), view, 0.5)(step, step.state(prior)).total
        for view in (Clean(), Shifted(0), Shifted(1))
    ]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    x = normals(4, 1, 8, 8).requires_grad_()
    moved, _ = Shifted(1).see(Step(Key(0), 4), "adversarial", "fake", x)
    (slope,) = torch.autograd.grad((moved * 5).sum(), x)
    kept = torch.stack([torch.isin(sample, seen) for sample, seen in zip(x.detach(), moved.detach(), strict=True)])
    assert torch.equal(slope, 5.0 * kept)
