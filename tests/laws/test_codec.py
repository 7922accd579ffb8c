"""Laws of codecs: latents are diffusers' own, scaled as its pipelines scale them, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from law_kit import normals, randomised
from torch import Tensor

from fewstep.errors import UserError
from fewstep.networks import AutoencoderCodec, Codec

diffusers = pytest.importorskip("diffusers")

CONFIG: dict[str, Any] = {
    "block_out_channels": [8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 4,
    "latent_channels": 3,
    "scaling_factor": 0.3,
}
STATISTICS = {"latents_mean": [0.5, -1.0, 0.0], "latents_std": [2.0, 0.5, 1.0]}


def codec_of(tile: int = 1024, **changes: Any) -> AutoencoderCodec:
    codec = AutoencoderCodec({**CONFIG, **changes}, tile)
    randomised(codec, scale=0.2)
    return codec


def pictures(rows: int = 3, side: int = 16) -> Tensor:
    return normals(rows, 3, side, side, dtype=torch.float32).clamp(-1, 1)


def test_latents_are_scaled_means_of_the_posterior() -> None:
    codec, x = codec_of(), pictures()
    posterior = codec.vae.encode(x).latent_dist
    torch.testing.assert_close(codec.encode(x), posterior.mean * 0.3, rtol=1e-5, atol=1e-6)
    noise = normals(3, 3, 4, 4, seed=2, dtype=torch.float32)
    torch.testing.assert_close(
        codec.encode_sample(x, noise), (posterior.mean + posterior.std * noise) * 0.3, rtol=1e-5, atol=1e-6
    )
    assert torch.equal(codec.encode_sample(x, torch.zeros(3, 3, 4, 4)), codec.encode(x))
    assert (codec.factor, codec.channels, codec.latent_shape(64)) == (4, 3, (3, 16, 16))


def test_pictures_are_the_decoders_clamped() -> None:
    codec, latents = codec_of(), normals(3, 3, 4, 4, dtype=torch.float32) * 3
    plain = codec.vae.decode(latents / 0.3).sample
    assert float(plain.abs().max()) > 1
    torch.testing.assert_close(codec.decode(latents), plain.clamp(-1, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", [{"shift_factor": 0.4}, STATISTICS, {"shift_factor": 0.4, **STATISTICS}], ids=str)
def test_shifts_and_statistics_are_one_affine_map(changes: dict[str, Any]) -> None:
    """With statistics as SDXL's pipeline has them: latents std / scale + mean."""
    codec, x = codec_of(**changes), pictures()
    plain = codec_of()
    mean = torch.tensor(changes.get("latents_mean", [0.0] * 3)).reshape(1, 3, 1, 1) + changes.get("shift_factor", 0.0)
    std = torch.tensor(changes.get("latents_std", [1.0] * 3)).reshape(1, 3, 1, 1)
    latents = codec.encode(x)
    torch.testing.assert_close(latents * std / 0.3 + mean, plain.encode(x) / 0.3, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codec.decode(latents), plain.decode(plain.encode(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_blocks_of_rows_change_nothing_but_rounding(rows: int) -> None:
    codec, x = codec_of(), pictures(5)
    found = codec.encode(x), codec.decode(codec.encode(x))
    codec.rows = rows
    seen: list[int] = []
    codec.vae.decoder.register_forward_hook(lambda module, given, made: seen.append(len(made)))
    torch.testing.assert_close(codec.encode(x), found[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codec.decode(found[0]), found[1], rtol=1e-5, atol=1e-6)
    assert max(seen) == rows
    assert sum(seen) == 5


def test_large_pictures_are_decoded_in_tiles_and_encoded_whole() -> None:
    codec, whole = codec_of(tile=16), codec_of()
    small, large = normals(1, 3, 4, 4, dtype=torch.float32), normals(1, 3, 8, 4, dtype=torch.float32)
    assert torch.equal(codec.decode(small), whole.decode(small))
    seen: list[int] = []
    codec.vae.decoder.register_forward_hook(lambda module, given, made: seen.append(max(made.shape[2:])))
    codec.vae.tile_overlap_factor = 0.25
    tiled = codec.decode(large)
    assert max(seen) == 16
    assert tiled.shape == (1, 3, 32, 16)
    assert not torch.equal(tiled, whole.decode(large))
    x = pictures(1, 32)
    assert torch.equal(codec.encode(x), whole.encode(x))


def test_all_is_computed_in_float32_also_under_autocast() -> None:
    codec, x = codec_of(), pictures()
    latents = codec.encode(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.encode(x), latents)
        assert torch.equal(codec.decode(latents), codec_of().decode(latents))
    assert codec.encode(x.half()).dtype == torch.float32
    assert codec.decode(latents.bfloat16()).dtype == torch.float32
    with pytest.raises(UserError, match=r"its weights are torch\.float16, in which its activations overflow"):
        codec_of().half().decode(latents)


def test_it_is_frozen_and_passes_gradients_on() -> None:
    codec, x = codec_of(), pictures().requires_grad_()
    assert not any(value.requires_grad for value in codec.parameters())
    assert not codec.training
    (slope,) = torch.autograd.grad(codec.decode(codec.encode(x)).sum(), x)
    assert float(slope.abs().max()) > 0
    with torch.no_grad():
        assert not codec.encode(x).requires_grad


def test_its_identity_is_by_weights_and_by_what_else_counts() -> None:
    codec = codec_of()
    assert codec.identity == codec_of().identity
    assert len(codec.identity) == 64
    changes = ({"scaling_factor": 0.2}, {"shift_factor": 0.1}, STATISTICS, {"act_fn": "gelu"}, {"norm_num_groups": 2})
    others = {codec_of(**change).identity for change in changes} | {codec_of(tile=16).identity}
    randomised(changed := codec_of(), seed=3)
    assert len({codec.identity, changed.identity, *others}) == 8
    assert isinstance(codec, Codec)


# Refusals


def test_shapes_that_it_has_no_place_for_are_refused() -> None:
    codec = codec_of()
    for x in (torch.zeros(1, 4, 16, 16), torch.zeros(3, 16, 16)):
        with pytest.raises(UserError, match=r"takes pictures of shape \(rows, 3, height, width\)"):
            codec.encode(x)
    with pytest.raises(UserError, match=r"pictures of 16 x 18 pixels have no latents; .* multiples of 4"):
        codec.encode(torch.zeros(1, 3, 16, 18))
    with pytest.raises(UserError, match="pictures of 30 x 30 pixels"):
        codec.latent_shape(30)
    with pytest.raises(UserError, match=r"takes latents of shape \(rows, 3, height, width\)"):
        codec.decode(torch.zeros(1, 4, 4, 4))
    with pytest.raises(UserError, match="the noise is of shape"):
        codec.encode_sample(pictures(), torch.zeros(1, 3, 4, 4))


def test_what_is_not_finite_is_named() -> None:
    codec, x = codec_of(), pictures(6)
    x[4, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="the pictures are not finite numbers in sample 4"):
        codec.encode(x)
    latents = torch.zeros(6, 3, 4, 4)
    latents[5, 1] = float("inf")
    with pytest.raises(UserError, match="the latents are not finite numbers in sample 5"):
        codec.decode(latents)
    codec.vae.decoder.conv_out.weight.fill_(float("inf"))
    with pytest.raises(UserError, match=r"the pictures that the codec makes of latents are not finite .* sample 0"):
        codec.decode(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("changes", "tile", "sentence"),
    [
        ({"in_channels": 1, "out_channels": 1}, 1024, "takes pictures of 1 channels"),
        ({"novel": 1}, 1024, "AutoencoderKL of the installed diffusers takes no 'novel'"),
        ({"latents_mean": [0.0]}, 1024, "has 1 numbers for latents_mean and 3 channels"),
        ({}, 20, "'tile' must be a multiple of 16"),
    ],
)
def test_configurations_that_are_no_codec_are_refused(changes: dict[str, Any], tile: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        codec_of(tile, **changes)
