"""Adapters of the families' transformers: what we write, diffusers' pipelines load as the same
network, and what they save we read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from family_kit import CASES
from fewstep.errors import UserError
from fewstep.networks import AdaptedBase, AdaptedNetwork, Form, build
from fewstep.networks.adapters.low_rank_pair import LowRankPair
from fewstep.zoo.lora import read_lora, write_lora

pytest.importorskip("peft")

PIPELINES = {
    "sd3": diffusers.StableDiffusion3Pipeline,
    "flux": diffusers.FluxPipeline,
    "sana": diffusers.SanaPipeline,
    "qwen-image": diffusers.QwenImagePipeline,
    "z-image": diffusers.ZImagePipeline,
}
LABELS = torch.tensor([300.0, 700.0])
every_family = pytest.mark.parametrize("name", PIPELINES)


def ours(name: str) -> Any:
    network = build({"kind": CASES[name].kind, "config": dict(CASES[name].config)})
    network.transformer.load_state_dict(CASES[name].network().state_dict())  # type: ignore[union-attr, operator]
    return network


def drawn(network: Any) -> AdaptedNetwork:
    """An adapter whose alpha is not its rank."""
    role = AdaptedNetwork.fresh(AdaptedBase(network), Form(2, 6.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in role.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return role


def pairs_of(role: AdaptedNetwork) -> dict[str, LowRankPair]:
    return role.adapter.pairs()


@every_family
def test_diffusers_loads_what_is_written(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    network = ours(name)
    role = drawn(network)
    path = tmp_path / "adapter.safetensors"
    write_lora(path, pairs_of(role), network, "peft")
    pipe = _bare(name)
    pipe.load_lora_weights(str(path))
    other = ours(name)
    other.transformer = pipe.transformer
    with torch.no_grad():
        expected = role(case.noise(), LABELS, case.condition())
        found = other(case.noise(), LABELS, case.condition())
        plain = ours(name)(case.noise(), LABELS, case.condition())
    scale = float(expected.abs().max())
    assert float((expected - plain).abs().max()) > 1e-2 * scale
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * scale)


def _bare(name: str) -> Any:
    """A pipeline that has a transformer and nothing else."""
    import inspect

    cls: Any = PIPELINES[name]
    parts = [each for each in inspect.signature(cls.__init__).parameters if each != "self"]
    usual = {
        each: value.default
        for each, value in inspect.signature(cls.__init__).parameters.items()
        if each != "self" and value.default is not inspect.Parameter.empty
    }
    given = {each: usual.get(each) for each in parts}
    return cls(**{**given, "transformer": CASES[name].network(), "scheduler": CASES[name].scheduler()})


@every_family
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    network = ours(name)
    role = drawn(network)
    path = tmp_path / "adapter.safetensors"
    write_lora(path, pairs_of(role), network, "peft")
    found = read_lora(path, ours(name))
    assert found.notes == ()
    assert found.pairs.keys() == pairs_of(role).keys()
    for layer, pair in pairs_of(role).items():
        assert torch.equal(found.pairs[layer].down, pair.down)
        assert torch.equal(found.pairs[layer].up, pair.up)
        assert found.pairs[layer].alpha == pair.alpha == 6.0


def test_forms_that_have_no_names_for_transformers_are_refused(tmp_path: Path) -> None:
    network = ours("sd3")
    pairs = pairs_of(drawn(network))
    for form, said in (("kohya", "the names of each model's first release"), ("comfyui", "has no name for layer")):
        with pytest.raises(UserError, match=f"{said}.*write the form 'peft'"):
            write_lora(tmp_path / "a.safetensors", pairs, network, form)
    assert list(tmp_path.iterdir()) == []
