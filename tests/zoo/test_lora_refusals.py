"""Files that are no adapter of the network: each is one sentence that names file and entry."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_kit import NETWORKS, network_of, pairs_of, read_file, write_file
from safetensors.torch import save_file
from torch import Tensor

from fewstep.errors import NotFinite, UserError
from fewstep.networks.adapters.low_rank_pair import LowRankPair
from fewstep.zoo.lora import fused, read_lora, write_lora

pytest.importorskip("diffusers")

Tensors = dict[str, Tensor]

LAYER = "unet.mid_block.resnets.0.conv1"
KOHYA = "lora_unet_mid_block_resnets_0_conv1"


def dropped(*keys: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for key in keys:
            del tensors[key]

    return change


def put(key: str, value: Any) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({key: torch.as_tensor(value)})


def hostile_entries() -> dict[str, tuple[str, Callable[[Tensors], None], str]]:
    """By name: the form of the file that is changed, the change, and what its refusal says."""
    return {
        "a down without an up": ("peft", dropped(f"{LAYER}.lora_B.weight"), r"lora_A.*no 'up' weights"),
        "an up without a down": ("peft", dropped(f"{LAYER}.lora_A.weight"), r"lora_B.*no 'down' weights"),
        "an alpha without a layer": (
            "kohya",
            dropped(f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight"),
            rf"{KOHYA}\.alpha.*no 'down' weights",
        ),
        "an unknown entry": ("peft", put(f"{LAYER}.weight", torch.ones(2)), r"conv1\.weight' is unknown"),
        "a bias": ("peft", put(f"{LAYER}.lora_B.bias", torch.ones(2)), r"lora_B\.bias' is unknown"),
        "DoRA of kohya": ("kohya", put(f"{KOHYA}.dora_scale", torch.ones(2)), "another kind of adapter, DoRA"),
        "DoRA of peft": ("peft", put(f"{LAYER}.lora_magnitude_vector", torch.ones(2)), "adapter, DoRA"),
        "LoHa": ("kohya", put(f"{KOHYA}.hada_w1_a", torch.ones(2, 2)), "another kind of adapter, LoHa"),
        "LoKr": ("kohya", put(f"{KOHYA}.lokr_w1", torch.ones(2, 2)), "another kind of adapter, LoKr"),
        "LoCon in Tucker's form": ("kohya", put(f"{KOHYA}.lora_mid.weight", torch.ones(2, 2)), "Tucker"),
        "whole differences": ("kohya", put(f"{KOHYA}.diff", torch.ones(2, 2)), "whole differences of weights"),
        "alpha 0": ("kohya", put(f"{KOHYA}.alpha", 0.0), rf"{KOHYA}\.alpha' has alpha 0"),
        "alpha infinite": ("kohya", put(f"{KOHYA}.alpha", float("inf")), rf"{KOHYA}\.alpha' has alpha inf"),
        "alpha NaN": ("kohya", put(f"{KOHYA}.alpha", float("nan")), rf"{KOHYA}\.alpha' has alpha nan"),
        "alpha a vector": ("kohya", put(f"{KOHYA}.alpha", [1.0, 2.0]), r"of shape \(2,\); an alpha is one number"),
        "alpha a truth": ("kohya", put(f"{KOHYA}.alpha", True), "an alpha is one number"),
        "a layer that is not there": (
            "peft",
            put("unet.mid_block.resnets.7.conv1.lora_A.weight", torch.ones(2, 16, 3, 3)),
            r"resnets\.7\.conv1', which this network does not have",
        ),
        "a norm": (
            "peft",
            put("unet.conv_norm_out.lora_A.weight", torch.ones(2, 8)),
            "which this network does not have",
        ),
        "another width": (
            "peft",
            put(f"{LAYER}.lora_A.weight", torch.ones(3, 32, 3, 3)),
            rf"layer '{LAYER}' has weights of \(3, 32, 3, 3\).*another base",
        ),
        "another kernel": ("peft", put(f"{LAYER}.lora_A.weight", torch.ones(3, 16, 1, 1)), "another base"),
        "another rank on either side": ("peft", put(f"{LAYER}.lora_B.weight", torch.ones(16, 9, 1, 1)), "another base"),
        "rank 0": ("peft", put(f"{LAYER}.lora_A.weight", torch.ones(0, 16, 3, 3)), "another base"),
        "a number for weights": ("peft", put(f"{LAYER}.lora_A.weight", 1.0), "another base"),
        "weights that are NaN": (
            "peft",
            put(f"{LAYER}.lora_B.weight", torch.full((16, 3, 1, 1), float("nan"))),
            r"lora_B\.weight' holds values that are not finite",
        ),
        "weights that are infinite in half precision": (
            "peft",
            put(f"{LAYER}.lora_B.weight", torch.full((16, 3, 1, 1), float("inf"), dtype=torch.float16)),
            "not finite",
        ),
        "whole numbers for weights": (
            "peft",
            put(f"{LAYER}.lora_B.weight", torch.ones(16, 3, 1, 1, dtype=torch.int8)),
            "only weights of a floating type",
        ),
        "two entries for one layer": (
            "peft",
            put("mid_block.resnets.0.conv1.lora.down.weight", torch.ones(3, 16, 3, 3)),
            "are both 'down' of layer",
        ),
        "two adapters in one file": (
            "peft",
            put(f"{LAYER}.lora_A.second.weight", torch.ones(3, 16, 3, 3)),
            "are both 'down' of layer",
        ),
        "a name of two forms": ("kohya", put(f"{LAYER}.lora_A.weight", torch.ones(3, 16, 3, 3)), "are both 'down'"),
        "a name that is no name": ("peft", put("\x1b[2J\n.lora_A.weight", torch.ones(2)), r"'\\x1b\[2J\\n\.lora"),
        "a long name": ("peft", put("a" * 5000 + ".lora_A.weight", torch.ones(2)), r"a{40,80}\.\.\."),
        "nothing before the dot": ("peft", put(".alpha", 1.0), "is unknown"),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensors, dict[str, str]]]:
    """The entries and the header of a right file, by form."""
    folder, network = tmp_path_factory.mktemp("lora"), network_of("sd")
    for form in ("peft", "kohya"):
        write_lora(folder / form, pairs_of(network), network, form)  # type: ignore[arg-type]
    return {form: read_file(folder / form) for form in ("peft", "kohya")}


def refusal(path: Path, name: str = "sd") -> str:
    """The sentence."""
    with pytest.raises(UserError) as caught:
        read_lora(path, network_of(name))
    said = str(caught.value)
    assert said.startswith(str(path.parent))
    assert said.isprintable()
    assert len(said) < 600
    return said


@pytest.mark.parametrize("name", hostile_entries())
def test_a_wrong_entry_is_refused_by_name(name: str, made: Any, tmp_path: Path) -> None:
    form, change, says = hostile_entries()[name]
    tensors, header = dict(made[form][0]), made[form][1]
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "a.safetensors", header)
    said = refusal(tmp_path / "a.safetensors")
    assert re.search(says, said), said


@pytest.mark.parametrize("share", [0.5, 0.03])
def test_a_file_with_part_of_the_layers_is_read(share: float, made: Any, tmp_path: Path) -> None:
    tensors, header = made["peft"]
    kept = sorted({key.rpartition(".lora_")[0] for key in tensors})
    kept = kept[: int(share * len(kept))]
    part = {key: value for key, value in tensors.items() if key.rpartition(".lora_")[0] in kept}
    save_file(part, tmp_path / "a.safetensors", header)
    assert set(read_lora(tmp_path / "a.safetensors", network_of("sd")).pairs) == set(kept)


@pytest.mark.parametrize("keep", ["lora_A", "lora_B"])
def test_half_of_each_pair_is_refused(keep: str, made: Any, tmp_path: Path) -> None:
    part = {key: value for key, value in made["peft"][0].items() if keep in key}
    save_file(part, tmp_path / "a.safetensors", made["peft"][1])
    assert "the file is incomplete" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"sd"}))
def test_an_adapter_of_another_network_is_refused(name: str, made: Any, tmp_path: Path) -> None:
    save_file(made["peft"][0], tmp_path / "a.safetensors", made["peft"][1])
    says = {"small": "another family of networks", "mlp": "another family of networks"}
    assert says.get(name, "of another base") in refusal(tmp_path / "a.safetensors", name)


@pytest.mark.parametrize("tensors", [{}, {"text_encoder.x.lora_A.weight": torch.ones(2, 2)}])
def test_a_file_without_weights_of_a_denoiser_is_refused(tensors: Tensors, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    assert "no low-rank weights for a denoiser" in refusal(tmp_path / "a.safetensors")


class Program:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_executed(zipped: bool, tmp_path: Path) -> None:
    for name in ("a.bin", "a.safetensors"):
        torch.save({"x": Program()}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert "is a pickle" in refusal(tmp_path / name)


def test_a_header_whose_length_begins_as_a_pickle_is_read(tmp_path: Path) -> None:
    network = network_of("sd")
    path = next(iter(pairs_of(network)))
    pair = pairs_of(network)[path]
    tensors = {f"{path}.lora_A.weight": pair.down, f"{path}.lora_B.weight": pair.up}
    for pad in range(4000):
        save_file(tensors, tmp_path / "a.safetensors", metadata={"pad": " " * (8 * pad)})
        if (tmp_path / "a.safetensors").read_bytes()[0] == 0x80:
            break
    else:
        raise AssertionError
    assert list(read_lora(tmp_path / "a.safetensors", network).pairs) == [path]


@pytest.mark.parametrize("content", [b"", b"{", struct.pack("<Q", 2**60) + b"{}", b"\x80", b"PK\x03\x04"])
def test_what_is_no_file_of_tensors_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    refusal(tmp_path / "a.safetensors")


def test_a_file_cut_short_or_missing_is_refused(made: Any, tmp_path: Path) -> None:
    save_file(made["peft"][0], tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-9])
    assert "cut short" in refusal(tmp_path / "a.safetensors")
    assert "no such file" in refusal(tmp_path / "b.safetensors")
    assert "no such file" in refusal(tmp_path)


SAID: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "is not JSON"),
    "nested without end": ("[" * 100_000, "is not JSON"),
    "no object": ([1], "is no JSON object"),
    "no alpha": ({"r": 3}, "has alpha 'NoneType'|has alpha NoneType"),
    "no rank": ({"lora_alpha": 3}, "for 'r'; a rank is a whole number"),
    "alpha 0": ({"r": 3, "lora_alpha": 0}, "alpha 0 for 'lora_alpha'"),
    "alpha true": ({"r": 3, "lora_alpha": True}, "alpha True"),
    "alpha a text": ({"r": 3, "lora_alpha": "8"}, "alpha '8'"),
    "alpha infinite": ({"r": 3, "lora_alpha": float("inf")}, "alpha inf"),
    "alpha of many digits": ({"r": 3, "lora_alpha": 10**400}, "alpha 1000"),
    "rank 0": ({"r": 0, "lora_alpha": 1}, "0 for 'r'"),
    "another rank": ({"r": 99, "lora_alpha": 1}, "says rank 99 for layer"),
    "DoRA": ({"r": 3, "lora_alpha": 1, "use_dora": True}, "says 'use_dora'"),
    "a variant": ({"r": 3, "lora_alpha": 1, "alora_invocation_tokens": [1]}, "says 'alora_invocation_tokens'"),
    "PiSSA": ({"r": 3, "lora_alpha": 1, "init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' for 'init_lora"),
    "a start in a list": ({"r": 3, "lora_alpha": 1, "init_lora_weights": ["x"]}, "says list for 'init_lora"),
    "stabilised perhaps": ({"r": 3, "lora_alpha": 1, "use_rslora": "yes"}, "'yes' for 'use_rslora'"),
    "patterns in a list": ({"r": 3, "lora_alpha": 1, "alpha_pattern": ["x"]}, "for 'alpha_pattern'; it must be"),
    "a pattern without end": ({"r": 3, "lora_alpha": 1, "alpha_pattern": {"(a+)+$": 2}}, r"the pattern '\(a\+\)\+\$'"),
    "alpha 0 of one layer": ({"r": 3, "lora_alpha": 1, "alpha_pattern": {"conv1": 0}}, "alpha 0 in 'alpha_pattern'"),
    "rank of one layer": ({"r": 3, "lora_alpha": 1, "rank_pattern": {"conv1": -1}}, "-1 for 'rank_pattern'"),
}


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_wrong_configuration_is_refused(name: str, prefix: str, made: Any, tmp_path: Path) -> None:
    said, says = SAID[name]
    if isinstance(said, dict):
        said = {prefix + key: value for key, value in said.items()}
    text = said if isinstance(said, str) else json.dumps(said)
    save_file(made["peft"][0], tmp_path / "a.safetensors", {"lora_adapter_metadata": text})
    sentence = refusal(tmp_path / "a.safetensors")
    assert "lora_adapter_metadata" in sentence
    assert re.search(says, sentence), sentence


def test_two_alphas_that_disagree_are_refused(made: Any, tmp_path: Path) -> None:
    tensors = {**made["peft"][0], f"{LAYER}.alpha": torch.tensor(123.0)}
    save_file(tensors, tmp_path / "a.safetensors", made["peft"][1])
    assert re.search(r"conv1\.alpha' is 123, and .* says", refusal(tmp_path / "a.safetensors"))


def test_a_configuration_of_the_text_encoder_alone_says_no_alpha(made: Any, tmp_path: Path) -> None:
    path = write_file(
        tmp_path / "a.safetensors", made["peft"][0], **{"text_encoder.r": 4, "text_encoder.lora_alpha": 2}
    )
    found = read_lora(path, network_of("sd"))
    assert "no alpha" in found.notes[0]
    assert all(pair.alpha == pair.rank for pair in found.pairs.values())


def changed(pairs: Mapping[str, LowRankPair], path: str, **changes: Any) -> dict[str, LowRankPair]:
    pair = pairs[path]
    return {**pairs, path: LowRankPair(**{"down": pair.down, "up": pair.up, "alpha": pair.alpha, **changes})}


@pytest.mark.parametrize("form", ["peft", "kohya", "comfyui"])
def test_what_cannot_be_written_leaves_no_file(form: Any, tmp_path: Path) -> None:
    network = network_of("sd")
    pairs = pairs_of(network)
    out = tmp_path / "a.safetensors"
    wrong: list[tuple[Any, str]] = [
        ({}, "has no layers"),
        ({"unet.nothing": pairs[LAYER]}, r"unet\.nothing.*does not have"),
        (changed(pairs, LAYER, down=torch.ones(2, 4)), f"layer '{LAYER}'.*another base"),
        *(
            (changed(pairs, LAYER, alpha=alpha), f"layer '{LAYER}' has alpha")
            for alpha in (0.0, float("nan"), float("inf"))
        ),
    ]
    for given, says in wrong:
        with pytest.raises(UserError, match=says):
            write_lora(out, given, network, form)
    with pytest.raises(NotFinite):
        write_lora(out, changed(pairs, LAYER, up=pairs[LAYER].up * float("nan")), network, form)
    with pytest.raises(UserError, match="no form 'other'"):
        write_lora(out, pairs, network, "other")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="does not have"):
        fused(network, {"unet.nothing": pairs[LAYER]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["captions", "unet2d", "small", "mlp"])
def test_comfyui_has_no_names_of_other_networks(name: str, tmp_path: Path) -> None:
    network = network_of(name)
    with pytest.raises(UserError, match="ComfyUI has no name for layer"):
        write_lora(tmp_path / "a.safetensors", pairs_of(network), network, "comfyui")


def test_a_name_of_two_layers_is_refused(tmp_path: Path) -> None:
    """Kohya's form alone has such."""
    layers = torch.nn.ModuleDict({"a_b": torch.nn.Linear(2, 2), "a": torch.nn.ModuleDict({"b": torch.nn.Linear(2, 2)})})
    pairs = pairs_of(layers)
    assert set(pairs) == {"a_b", "a.b"}
    with pytest.raises(UserError, match="name of two layers"):
        write_lora(tmp_path / "a.safetensors", pairs, layers, "kohya")
    write_lora(tmp_path / "a.safetensors", pairs, layers, "peft")
    assert set(read_lora(tmp_path / "a.safetensors", layers).pairs) == set(pairs)
    write_file(tmp_path / "b.safetensors", {"lora_unet_a_b.lora_down.weight": torch.ones(1, 2)})
    with pytest.raises(UserError, match="name of two layers"):
        read_lora(tmp_path / "b.safetensors", layers)
