"""Laws of the codec of patches: its encoder is a table of principal components, whatever the
number of halvings, and only its decoder learns.
"""

from __future__ import annotations

import pytest
import torch
from law_kit import normals
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.data.scenes import Scenes
from fewstep.errors import UserError
from fewstep.networks import PatchAutoencoder, build
from fewstep.networks.kinds.network_files import load_network, save_network
from fewstep.objectives import Reconstruction
from fewstep.random import Key
from fewstep.states import State, Step

pytest.importorskip("diffusers")

SIZES = [(16, (32, 48, 48), 4), (4, (12, 12), 2), (8, (12, 48, 64, 64), 4)]
every_size = pytest.mark.parametrize("sizes", SIZES, ids=["4x4", "2x2", "8x8"])


def fitted(sizes: tuple[int, tuple[int, ...], int] = SIZES[0]) -> PatchAutoencoder:
    channels, widths, groups = sizes
    network = build({"kind": "patch-autoencoder", "channels": channels, "widths": list(widths), "groups": groups})
    assert isinstance(network, PatchAutoencoder)
    network.fit(pictures())
    return network


def pictures() -> Tensor:
    return Scenes(200).take(torch.arange(200))


@every_size
def test_its_latents_are_the_principal_components_of_patches(sizes: tuple[int, tuple[int, ...], int]) -> None:
    network, x = fitted(sizes), pictures()
    rows = nn.functional.pixel_unshuffle(x.double(), network.patch).movedim(1, -1)
    flat = rows.flatten(0, 2)
    _, deviations, vectors = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    deviations = deviations[: sizes[0]] / len(flat) ** 0.5
    expected = (rows - flat.mean(0)) @ vectors[: sizes[0]].T * deviations**-0.6
    expected = expected / expected.square().mean().sqrt()
    found = network.encode(x).movedim(1, -1).double()
    # A component has no sign.
    signs = (found * expected).sum((0, 1, 2)).sign()
    torch.testing.assert_close(found * signs, expected, rtol=0, atol=0.05)
    assert float((found * signs - expected).square().mean().sqrt()) < 0.01
    assert abs(float(network.encode(x).square().mean()) - 1) < 0.03


def test_it_knows_no_other_sample_of_its_batch_and_has_no_deviation() -> None:
    network, x = fitted(), pictures()
    torch.testing.assert_close(network.encode(x[3:4]), network.encode(x[:8])[3:4], rtol=1e-4, atol=1e-5)
    noise = normals(2, 16, 8, 8, dtype=torch.float32)
    torch.testing.assert_close(
        network.codec.encode_sample(x[:2], noise), network.codec.encode(x[:2]), rtol=0, atol=1e-5
    )


def test_only_the_decoder_learns_to_reconstruct() -> None:
    network, x = fitted((4, (12, 12), 2)), pictures()[:16]
    objective = Reconstruction(network, 0.1)
    state, step = State(x, torch.zeros(16, dtype=torch.float64), Condition(), x), Step(Key(0), 16)
    noise = step.noise_like("latent-noise", network.encode(x))
    loss = objective(step, state)
    expected = (network.decode(network.encode(x) + 0.1 * noise) - x).square().mean()
    torch.testing.assert_close(loss.total, expected)
    loss.total.backward()
    learns = {name.split(".")[2] for name, value in network.named_parameters() if value.grad is not None}
    assert learns == {"decoder"}
    optimizer = torch.optim.Adam([value for value in network.parameters() if value.requires_grad], 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        again = Reconstruction(network)(step, state).total
        again.backward()
        optimizer.step()
    assert float(again.detach()) < 0.3 * float(loss.total.detach())


def test_a_file_keeps_it(tmp_path) -> None:
    network = fitted((4, (12, 12), 2))
    save_network(tmp_path / "codec", network)
    again, x = load_network(tmp_path / "codec"), pictures()[:2]
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize(
    "changes",
    [
        {"widths": [32]},
        {"widths": [32, 48, 64]},
        {"widths": [8, 48, 48]},
        {"widths": [32, 32, 32]},
        {"channels": 15},
        {"channels": 24},
    ],
    ids=str,
)
def test_widths_that_hold_no_patch_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match="do not hold patches"):
        build({"kind": "patch-autoencoder", **changes})


def test_pictures_of_too_few_components_are_refused() -> None:
    with pytest.raises(UserError, match="fewer than 16 components"):
        PatchAutoencoder().fit(torch.zeros(4, 3, 8, 8))
