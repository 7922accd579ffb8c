"""Text encoders and tokenizers of the newer pipelines, as transformers reads them: classes that are
named here, safetensors alone, sizes that the files cover.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.networks.kinds.bounds import at_most
from fewstep.system.finite import first_not_finite
from fewstep.zoo.diffusers_weights import CORRECT, WeightFiles, read_configuration

_FORMS = {"CLIPTokenizer": "CLIPTokenizerFast", "T5Tokenizer": "T5TokenizerFast"}
_BYTES_AT_LEAST = 1
"""Of a value in a file: nothing that is read has fewer."""


def text_model_named(name: str, folder: Path, weights: WeightFiles) -> nn.Module:
    """The text encoder in a folder, of transformers' class ``name``, frozen, in float32.

    Raises ``UserError`` naming the folder for a configuration that its weights do not cover, and
    for weights that are missing, too many or not finite.
    """
    transformers = _transformers(folder)
    cls = getattr(transformers, name, None)
    if cls is None:
        raise UserError(f"{folder}: the installed transformers has no {name}; install a newer one.")
    config = folder / "config.json"
    read_configuration(config)
    if weights.files[0].parent != folder:
        raise UserError(f"{folder}: its weights lie elsewhere; {CORRECT}.")
    try:
        settings = cls.config_class.from_json_file(str(config))
        # What it says is built without memory first, and only as large as its files.
        with torch.device("meta"), at_most(_values_in(weights), "its file"):
            cls(settings)
        with quietly():
            model, loading = cls.from_pretrained(
                str(folder),
                config=settings,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                variant=_variant_of(weights),
                output_loading_info=True,
            )
    except (
        *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, UserError),
    ) as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise UserError(f"{folder}: is no {name} that can be read ({reason:.300}); {CORRECT}.") from error
    for what, names in (
        ("lacks", loading["missing_keys"]),
        ("has, and its class has not,", loading["unexpected_keys"]),
    ):
        if names:
            raise UserError(f"{folder}: {what} '{sorted(names)[0]}'; {CORRECT}.")
    wrong = first_not_finite(model.state_dict().items())
    if wrong:
        raise UserError(f"{folder}: '{wrong}' holds values that are not finite; {CORRECT}.")
    found: nn.Module = model
    return found.requires_grad_(False).eval()


def tokenizer_named(name: str, folder: Path) -> Any:
    """The tokenizer in a folder, of transformers' class ``name`` in its fast form.

    Raises ``UserError`` for one that cannot be read.
    """
    transformers = _transformers(folder)
    fast = _FORMS.get(name, name)
    cls = getattr(transformers, fast, None) or getattr(transformers, name, None)
    if cls is None:
        raise UserError(f"{folder}: the installed transformers has no {name}; install a newer one.")
    try:
        return cls.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError) as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise UserError(f"{folder}: is no {name} that can be read ({reason:.300}); {CORRECT}.") from error


def _transformers(folder: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"{folder}: needs transformers: pip install 'fewstep[diffusers]'.") from error
    return transformers


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, transformers draws no progress on the terminal, and says nothing but errors."""
    from transformers.utils import logging

    shown, said = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(said)
        if shown:
            logging.enable_progress_bar()


def _values_in(weights: WeightFiles) -> int:
    """How many values the files can hold at most."""
    return sum(path.stat().st_size for path in weights.files) // _BYTES_AT_LEAST


def _variant_of(weights: WeightFiles) -> str | None:
    """The variant in the name of the files: what is between the stem and the end."""
    parts = weights.files[0].name.removesuffix(".safetensors").split(".")
    found = parts[1].partition("-")[0] if len(parts) > 1 else ""
    return found or None
