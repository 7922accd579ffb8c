"""Files of other programs that are not what they should be: adapters, state dicts with code in
them, pipelines' configurations, captions (see ``hostile.py``).
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import pickle
import random
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from fewstep.zoo.shipped import shipped_pipeline
from hostile_files import damage
from hostile_values import Stock, mutate

RANK = 2
TRIPWIRE = "executed"
"""A file that is there when something in a file was run."""


class Runs:
    """Unpickled by whoever trusts it, it runs a command that leaves ``TRIPWIRE`` in a folder."""

    def __init__(self, folder: Path):
        self._command = f"touch {shlex.quote(str(folder / TRIPWIRE))}"

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.system, (self._command,)


@functools.cache
def network() -> dict[str, torch.Tensor]:
    """The weights of the shipped pipeline's U-Net, by diffusers' names."""
    return load_file(shipped_pipeline("scenes") / "unet" / "diffusion_pytorch_model.safetensors")


@functools.cache
def classes_pipeline(folder: Path) -> Path:
    """A tiny pipeline of classes, whose parts have no text encoder."""
    import diffusers

    path = folder / "dit"
    vae = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8], norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=4, num_attention_heads=2, in_channels=4, out_channels=8,
        num_embeds_ada_norm=10, norm_num_groups=2,
    )  # fmt: skip
    made: Any = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler(clip_sample=False))
    made.save_pretrained(path)
    return path


def foreign(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """One of the kinds of files, and a command that reads it."""
    return chance.choice((adapter, adapter, state_dict, configuration, configuration, captions))(stock, here, chance)


def _sampled(here: Path, *given: str, prompt: bool = True, base: Path | None = None) -> tuple[str, ...]:
    """The command that draws a picture by a pipeline, the shipped one unless given."""
    at = ("sample", "--base", str(base or shipped_pipeline("scenes")), "--timesteps", "399", "-n", "1")
    return (*at, "--out", str(here / "out.png"), *given, *(("--prompt", "a red seven") if prompt else ()))


def _shape(tensors: dict[str, Any], name: str, chance: random.Random) -> None:
    value = tensors[name]
    tensors[name] = chance.choice((torch.zeros(0), torch.zeros(()), torch.zeros(3, 7), value[None]))


def _filled(number: float) -> Callable[[dict[str, Any], str, random.Random], None]:
    def change(tensors: dict[str, Any], name: str, chance: random.Random) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] = number

    return change


def _type(tensors: dict[str, Any], name: str, chance: random.Random) -> None:
    tensors[name] = tensors[name].to(chance.choice((torch.int8, torch.bool, torch.float64, torch.int64)))


def _rank(tensors: dict[str, Any], name: str, chance: random.Random) -> None:
    value = tensors[name] if tensors[name].ndim else tensors[name][None]
    tensors[name] = torch.cat([value, value], chance.choice((0, -1)))


def _alpha(tensors: dict[str, Any], name: str, chance: random.Random) -> None:
    stem = name.rpartition(".lora")[0].removesuffix(".alpha") or name
    number = torch.tensor(chance.choice((0.0, math.inf, math.nan, -4.0, 1e30)))
    tensors[f"{stem}.alpha"] = chance.choice((number, torch.zeros(3), torch.ones(2, 2)))


CHANGES: dict[str, Callable[[dict[str, Any], str, random.Random], Any]] = {
    "whole": lambda tensors, name, chance: None,
    "nan": _filled(math.nan),
    "inf": _filled(math.inf),
    "shape": _shape,
    "type": _type,
    "lacks": lambda tensors, name, chance: tensors.pop(name),
    "more": lambda tensors, name, chance: tensors.update({"../../evil": torch.zeros(1)}),
}
OF_ADAPTERS = {
    **CHANGES,
    "rank": _rank,
    "alpha": _alpha,
    "unknown": lambda tensors, name, chance: tensors.update({"unet.nowhere.to_q.lora_A.weight": torch.zeros(RANK, 4)}),
    "twice": lambda tensors, name, chance: tensors.update({"unet.conv_in.lora.down.weight": torch.zeros(RANK, 4)}),
    "empty": lambda tensors, name, chance: tensors.clear(),
}


def adapter(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """An adapter of the shipped U-Net in PEFT's form or kohya's, changed."""
    layers = [name for name, value in network().items() if name.endswith(".weight") and value.ndim in (2, 4)]
    tensors: dict[str, Any] = {}
    kohya = chance.random() < 0.5
    for layer in chance.sample(layers, 3):
        weight, place = network()[layer], layer.removesuffix(".weight")
        down = torch.randn(RANK, *weight.shape[1:]) * 0.1
        up = torch.randn(len(weight), RANK, *(1 for _ in weight.shape[2:])) * 0.1
        if kohya:
            stem = f"lora_unet_{place.replace('.', '_')}"
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.ones(())}
        else:
            tensors |= {f"unet.{place}.lora_A.weight": down, f"unet.{place}.lora_B.weight": up}
    path, metadata = here / "style.safetensors", {"format": "pt"}
    what = chance.choice((*OF_ADAPTERS, "metadata", "raw"))
    if what == "metadata":
        said: Any = chance.choice(
            ({"r": RANK, "lora_alpha": math.inf}, {"r": -1}, [], "x", {"lora_alpha": "0"}, {"r": 10**9})
        )
        metadata["lora_adapter_metadata"] = chance.choice((json.dumps(said), "{", "[" * 10_000, "null"))
    elif what != "raw":
        OF_ADAPTERS[what](tensors, chance.choice(sorted(tensors)), chance)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    if what == "raw":
        what = f"raw {damage(path, chance)}"
    weight_text = chance.choice(("", "", "", "", "", ":0.5", ":0.5", ":nan", ":x", ":1e400"))
    return f"adapter: {what}{weight_text}", _sampled(here, "--lora", f"{path}{weight_text}")


def state_dict(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A state dict of torch's, changed, or a pickle that runs something."""
    runs, tensors = Runs(stock.folder), dict(network())
    name, path = chance.choice(sorted(tensors)), here / "student.bin"
    saved: dict[str, Any] = {
        "code": {"state": runs},
        "code inside": {**tensors, name: runs},
        "nested": {"state_dict": tensors, "epoch": 3},
        "list": list(tensors.values()),
        "raw": tensors,
    }
    what = chance.choice((*CHANGES, *saved, "old pickle", "zip", "text"))
    if what == "old pickle":
        path.write_bytes(pickle.dumps(chance.choice((runs, {"weight": runs}, [1, 2]))))
    elif what == "text":
        path.write_text("weights")
    elif what == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(runs))
    else:
        if what in CHANGES:
            CHANGES[what](tensors, name, chance)
        content = io.BytesIO()
        torch.save(saved.get(what, tensors), content)
        path.write_bytes(content.getvalue())
    if what == "raw":
        what = f"raw {damage(path, chance)}"
    return f"state dict: {what}", _sampled(here, "--model", str(path))


def configuration(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A pipeline's folder, one of its JSON files changed: any value, or a size that nobody has."""
    source = chance.choice((classes_pipeline(stock.folder), shipped_pipeline("scenes")))
    folder = here / "pipeline"
    shutil.copytree(source, folder)
    path = chance.choice(sorted(each for each in folder.rglob("*.json") if "tokenizer" not in each.parent.name))
    content = json.loads(path.read_text())
    what = chance.choice(("mutated", "mutated", "huge", "class", "raw"))
    if what == "mutated":
        what = f"mutated {mutate(content, chance)}"
    elif what == "huge":
        keys = [key for key, value in content.items() if type(value) is int] or ["num_layers"]
        content[chance.choice(keys)] = chance.choice((10**9, 10**6, 2**63, -1, 0))
    elif what == "class":
        content["_class_name"] = chance.choice(
            (
                "FluxPipeline",
                "StableDiffusion3Pipeline",
                "DiTPipeline",
                "os.system",
                "",
                "FlowMatchEulerDiscreteScheduler",
            )
        )
    path.write_text(json.dumps(content))
    if what == "raw":
        what = f"raw {damage(path, chance)}"
    recipe = json.loads(json.dumps(stock.recipes["mixture2d-disback"]))
    recipe |= {"teacher": {"kind": "pipeline", "path": str(folder)}, "data": None, "student": {"kind": "copy"}}
    recipe["evaluation"]["features"] = {"kind": "fourier"}
    recipe["target"] = {"kind": "fixed"}
    mine = here / "mine.yaml"
    mine.write_text(yaml.safe_dump(recipe, default_flow_style=True))
    what = f"configuration {path.relative_to(folder)}: {what}"[:100]
    if source.name != "dit":
        return what, _sampled(here, base=folder)
    return what, chance.choice((("plan", str(mine)), ("distill", str(mine), "--out", str(here / "out"))))


def captions(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A file of prompts in one of its forms."""
    contents: dict[str, bytes] = {
        "long": b"a red seven " * 90_000,
        "zeros": b"a red\0seven\n",
        "empty": b"",
        "blank": b"\n\n \n",
        "latin": "une pomme rôtie".encode("latin-1"),
        "noise": chance.randbytes(5000),
        "marks": "\u202e\ufeff\u0007 a red seven\n".encode(),
        "whole": b"a red seven\na blue three\n",
        "lines": b"a red seven\n" * 20_000,
        "json": b'{"prompt": ["a"]}\n{"prompt": 3}\n',
        "deep": b"[" * 100_000,
        "table": b'caption,size\n"a red seven,3\n',
    }
    what = chance.choice(sorted(contents))
    path = here / f"prompts{chance.choice(('.txt', '.csv', '.jsonl', '.parquet', '.json', ''))}"
    path.write_bytes(contents[what])
    if what == "lines":
        # So many are drawn by nobody here: they are read alone.
        recipe = {**stock.recipes["mixture2d-disback"], "teacher": {"kind": "shipped", "name": "scenes"}, "data": None}
        mine = here / "mine.yaml"
        mine.write_text(yaml.safe_dump({**recipe, "prompts": {"kind": "file", "path": str(path)}}))
        return f"captions: {what}{path.suffix}", ("plan", str(mine))
    return f"captions: {what}{path.suffix}", _sampled(here, "--prompts", str(path), prompt=False)
