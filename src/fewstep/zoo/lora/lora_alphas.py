"""The alpha that peft's configuration gives a layer.

diffusers keeps that configuration in the header of a safetensors file, as JSON under
``lora_adapter_metadata``, each of its settings with the prefix that the weights have; peft keeps it
in ``adapter_config.json`` beside ``adapter_model.safetensors``. A pattern of ranks or alphas is a
regular expression there, which could take forever; only names of layers are read here, in which a
dot is any character, as it is there, and one after a backslash is a dot.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fewstep.errors import UserError
from fewstep.zoo.nvidia.machine import shown_foreign

METADATA = "lora_adapter_metadata"

_PREFIXES = ("", "unet.", "transformer.")
_PATTERN = re.compile(r"\^?(?:[\w:.-]|\\\W)+\$?")
_LETTER = re.compile(r"\\\W|.")
_VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "alora_invocation_tokens",
    "layer_replication",
)
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base's weights as they are."""

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class PeftAlphas:
    """``where``: what sentences call the configuration. ``ranks`` and ``alphas``: those of the
    layers that a pattern matches, the first that does.
    """

    where: str
    rank: int
    alpha: float
    ranks: Sequence[tuple[re.Pattern[str], int]]
    alphas: Sequence[tuple[re.Pattern[str], float]]
    rank_stabilised: bool

    def of(self, names: Sequence[str], rank: int) -> float:
        """The alpha of a layer, which is called by any of ``names``, such that its weights count by
        alpha / rank.

        Raises ``UserError`` where its rank is another one than the configuration says.
        """
        said = _first(self.ranks, names, self.rank)
        if said != rank:
            raise UserError(
                f"{self.where}: says rank {said} for layer {shown_foreign(names[0])}, whose weights are of "
                f"rank {rank}; weights and configuration are of two adapters."
            )
        alpha = _first(self.alphas, names, self.alpha)
        # Kalajdzievski 2023: alpha / sqrt(rank).
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha


def peft_alphas(path: Path, header: Mapping[str, str]) -> PeftAlphas | None:
    """The configuration of an adapter's file with that header; None where there is none.

    Raises ``UserError`` for one that cannot be read.
    """
    if METADATA in header:
        where = f"{path}: its header's '{METADATA}'"
        return _read(where, header[METADATA])
    beside = path.parent / "adapter_config.json"
    if path.name == "adapter_model.safetensors" and beside.is_file():
        try:
            return _read(str(beside), beside.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{beside}: cannot be read ({error}); it says the alpha of {path.name}.") from error
    return None


def _read(where: str, text: str) -> PeftAlphas | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON; get the adapter from its source again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: is no JSON object; get the adapter from its source again.")
    prefix = next((each for each in _PREFIXES if f"{each}lora_alpha" in content or f"{each}r" in content), None)
    if prefix is None:
        return None
    settings = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
    _check_plain(where, settings)
    stabilised = settings.get("use_rslora", False)
    if not isinstance(stabilised, bool):
        raise UserError(f"{where}: has {shown_foreign(stabilised)} for 'use_rslora'; it must be true or false.")
    return PeftAlphas(
        where,
        _rank(where, "r", settings.get("r")),
        checked_alpha(settings.get("lora_alpha"), f"{where} has", "for 'lora_alpha'"),
        [(each, _rank(where, "rank_pattern", value)) for each, value in _patterns(where, settings, "rank_pattern")],
        [
            (each, checked_alpha(value, f"{where} has", "in 'alpha_pattern'"))
            for each, value in _patterns(where, settings, "alpha_pattern")
        ],
        stabilised,
    )


def _check_plain(where: str, settings: Mapping[str, Any]) -> None:
    """Raises ``UserError`` for what makes more of an adapter than low-rank products."""
    other = next((name for name in _VARIANTS if settings.get(name)), None)
    if other is not None:
        raise UserError(
            f"{where}: says '{other}', by which an adapter is more than low-rank products; only plain ones are read."
        )
    start = settings.get("init_lora_weights", True)
    if start not in _STARTS:
        raise UserError(
            f"{where}: says {shown_foreign(start)} for 'init_lora_weights', by which the base's weights are others as "
            "well; save it by peft with 'path_initial_model_for_weight_conversion'."
        )


def checked_alpha(value: object, begins: str, ends: str) -> float:
    """The value as an alpha. Raises ``UserError`` for one by which no weights can count."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # A whole number of hundreds of digits is too large for a float.
    if not number or not abs(value) <= 1e30 or value == 0:  # type: ignore[arg-type]
        raise UserError(f"{begins} alpha {shown_foreign(value)} {ends}; it must be a finite number other than 0.")
    return float(value)  # type: ignore[arg-type]


def _rank(where: str, key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: has {shown_foreign(value)} for '{key}'; a rank is a whole number from 1.")
    return value


def _patterns(where: str, settings: Mapping[str, Any], key: str) -> list[tuple[re.Pattern[str], Any]]:
    found = settings.get(key) or {}
    if not isinstance(found, dict):
        raise UserError(f"{where}: has {shown_foreign(found)} for '{key}'; it must be an object of layers.")
    for pattern in found:
        if _PATTERN.fullmatch(pattern) is None:
            raise UserError(
                f"{where}: has the pattern {shown_foreign(pattern)} in '{key}'; only names of layers are read, say "
                "each layer's own."
            )
    return [(_compiled(pattern), value) for pattern, value in found.items()]


def _compiled(pattern: str) -> re.Pattern[str]:
    """As peft's ``get_pattern_key``: the whole name, or what it ends with after a dot."""
    body = pattern.removeprefix("^").removesuffix("$")
    letters = (each if each == "." else re.escape(each[-1]) for each in _LETTER.findall(body))
    return re.compile(("" if pattern.startswith("^") else r"(?:.*\.)?") + "".join(letters))


def _first(patterns: Iterable[tuple[re.Pattern[str], N]], names: Sequence[str], usual: N) -> N:
    """The value of the first pattern that matches one of the names."""
    return next((value for pattern, value in patterns if any(pattern.fullmatch(name) for name in names)), usual)
