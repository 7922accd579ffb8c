"""The tokenizers of a text-to-image pipeline: read from its folder, and what they are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.zoo.diffusers_weights import CORRECT, read_configuration

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
"""What of a tokenizer's folder is read."""
_SPECIAL = ("unk_token", "bos_token", "eos_token", "pad_token")


def read_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer from ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``.

    Raises ``UserError`` for files that are missing or malformed, and when transformers is missing.
    """
    try:
        from transformers import CLIPTokenizerFast
    except ImportError as error:
        raise UserError(f"{folder}: needs transformers: pip install 'fewstep[diffusers]'.") from error
    # What is wrong here transformers would say by an exception of no type of its own.
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        model = read_configuration(whole).get("model")
        if not isinstance(model, dict):
            raise UserError(f"{whole}: has no 'model' with a vocabulary; {CORRECT}.")
        _check(model.get("vocab"), model.get("merges"), whole, whole)
    if vocabulary.is_file() and merges.is_file():
        _check(read_configuration(vocabulary), _lines(merges), vocabulary, merges)
    elif not whole.is_file():
        raise UserError(
            f"{folder}: has neither tokenizer.json nor vocab.json with merges.txt; get the tokenizer from its source "
            "again."
        )
    try:
        return CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise UserError(f"{folder}: is no tokenizer that can be read ({reason}); {CORRECT}.") from error


def contents_of(tokenizer: Any, where: object) -> dict[str, Any]:
    """Plain values that decide what a tokenizer makes of a text, whatever files it came from.

    Raises ``UserError`` for one of another class.
    """
    from transformers import CLIPTokenizerFast

    if not isinstance(tokenizer, CLIPTokenizerFast):
        raise UserError(
            f"{where}: is a {type(tokenizer).__name__}, and only CLIPTokenizerFast is read; load the pipeline with it, "
            "or give the pipeline's folder."
        )
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return {
        "vocabulary": tokenizer.get_vocab(),
        "merges": [_pair(each) for each in model["merges"]],
        "special": {name: str(getattr(tokenizer, name)) for name in _SPECIAL},
        "side": tokenizer.padding_side,
    }


def _check(vocabulary: Any, merges: Any, where: Path, merges_are_in: Path) -> None:
    """Raises ``UserError`` unless tokens have numbers and each merge is of two tokens into one."""
    if (
        not isinstance(vocabulary, Mapping)
        or not vocabulary
        or not all(type(number) is int and 0 <= number < 2**31 for number in vocabulary.values())
    ):
        raise UserError(f"{where}: has no vocabulary from tokens to numbers; {CORRECT}.")
    for merge in merges if isinstance(merges, list) else [None]:
        pair = _pair(merge)
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise UserError(f"{merges_are_in}: has a merge that is not of two tokens into one; {CORRECT}.")


def _pair(merge: Any) -> list[str]:
    if isinstance(merge, str):
        return merge.split(" ")
    return list(merge) if isinstance(merge, list) and all(isinstance(each, str) for each in merge) else []


def _lines(path: Path) -> list[str]:
    """The merges in a file, whose first line may say its version."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not readable as text; get the tokenizer from its source again.") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#version")]
