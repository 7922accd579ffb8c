"""What an entry of an adapter's file is, by its key. The forms, of a layer ``X``:

- PEFT: ``X.lora_A.weight`` and ``X.lora_B.weight``, with ``.default`` or another name before
  ``.weight``.
- Old diffusers: ``X.lora.down.weight`` and ``X.lora.up.weight``; of its attention processors
  ``A.processor.to_q_lora.down.weight``, and so ``to_k``, ``to_v`` and ``to_out``.
- kohya: ``lora_unet_X.lora_down.weight`` and ``lora_up.weight``, X with underscores for dots.

Each may come with ``X.alpha``. A file may mix forms, as ``convert_state_dict_to_diffusers`` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fewstep.errors import UserError
from fewstep.zoo.nvidia.machine import shown_foreign

Part = Literal["down", "up", "alpha"]

_KOHYA = "lora_unet_"
_PARTS: dict[str, Part] = {"A": "down", "B": "up", "down": "down", "up": "up"}
_PROCESSOR = re.compile(r"(.+)\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
_USUAL = (
    re.compile(r"(.+)\.lora_(A|B)(?:\.[^.]+)?\.weight"),
    re.compile(r"(.+)\.lora[._](down|up)\.weight"),
)
_TEXT = re.compile(r"(lora_te\d*_|(base_model\.model\.)?(text_encoder(_\d+)?|text_encoders)\.)")
_OTHER = re.compile(r"\.(dora_scale|lora_magnitude_vector|hada_|lokr_|oft_|lora_mid|diff(?=$|_b$))")
_OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "lora_mid": "LoCon in Tucker's form",
    "diff": "whole differences of weights",
}
"""Adapters of other kinds, by what an entry of theirs is called."""


@dataclass(frozen=True)
class LoraKey:
    """``layer``: as the file calls it, dots as underscores where ``underscored``."""

    layer: str
    part: Part
    underscored: bool


def parsed_key(key: str) -> LoraKey | None:
    """What an entry is; None for one of a text encoder.

    Raises ``UserError``, without the file's name, for an entry of another kind of adapter and for
    one that is unknown.
    """
    if _TEXT.match(key):
        return None
    plain = key.replace(".processor.", ".")
    layer, _, last = plain.rpartition(".")
    if last == "alpha" and layer:
        return _named(layer, "alpha")
    processor = _PROCESSOR.fullmatch(plain)
    if processor is not None:
        within = "to_out.0" if processor[2] == "to_out" else processor[2]
        return LoraKey(f"{processor[1]}.{within}", _PARTS[processor[3]], False)
    for form in _USUAL:
        found = form.fullmatch(plain)
        if found is not None:
            return _named(found[1], _PARTS[found[2]])
    raise UserError(_why_not(key))


def _named(layer: str, part: Part) -> LoraKey:
    if layer.startswith(_KOHYA):
        return LoraKey(layer.removeprefix(_KOHYA), part, True)
    return LoraKey(layer, part, False)


def _why_not(key: str) -> str:
    other = _OTHER.search(key)
    if other is not None:
        return (
            f"entry {shown_foreign(key)} is of another kind of adapter, {_OTHERS[other[1]]}, and only plain low-rank "
            "ones are read; merge it into its base by the program that made it, and take that."
        )
    return (
        f"entry {shown_foreign(key)} is unknown; low-rank weights are 'lora_A' and 'lora_B', 'lora_down' and "
        "'lora_up', or 'lora.down' and 'lora.up', with 'alpha' beside them."
    )
