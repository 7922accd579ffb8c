"""The model card of a student's folder: what it is, and the one call that samples it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewstep import __version__
from fewstep.errors import one_line

_CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
tags:
- fewstep
- distillation
{base}---

# {name}

A student of {steps}, distilled from {teacher} by fewstep {version} (method `{method}`{run}). A picture takes
{evaluations} of its {network} of {parameters:,} parameters, and no second pass for guidance{guidance}.

One call samples it. Start Python beside this folder, or give `from_pretrained` the folder's path:

```python
{code}
```

- The network is called at {timesteps}, for which it was trained; other times, numbers of steps and schedulers are
  others than it knows. What diffusers says of a first timestep that is not the last one of all can be passed over.
- The {network}'s weights are {dtype}. Text encoders, tokenizers and VAE are the teacher's files, byte for byte; what
  licence the teacher has holds for them, and may hold for the student.
- `fewstep.json` has the same facts for programs, and the SHA-256 of each file; `fewstep doctor` compares them.
"""

_CODE = """\
import torch
{imports}

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = {pipeline}.from_pretrained({folder}).to(device, torch.{dtype})
picture = pipe(
    {prompt},
{arguments}
    generator=torch.Generator().manual_seed(0),
).images[0]
picture.save("sample.png")"""


@dataclass(frozen=True)
class Card:
    """What a card says. ``name``: of the folder. ``pipeline``: the class of diffusers'.
    ``network``: what the part is called that denoises. ``teacher``: its name; ``on_hub``: whether
    that is an id of the hub. ``arguments``: of the call. ``guidance``: the scale on which the
    student is conditioned, None for none. ``dtype``: torch's name of the weights' type. ``run``:
    the hash of the run, None where it is not known.
    """

    name: str
    pipeline: str
    teacher: str
    on_hub: bool
    method: str
    run: str | None
    timesteps: Sequence[float]
    network: str
    guidance: float | None
    arguments: dict[str, Any]
    dtype: str
    parameters: int
    prompt: str

    @property
    def text(self) -> str:
        """The card, Markdown with the front matter that the hub reads."""
        steps = len(self.timesteps)
        listed = ", ".join(f"{each:.6g}" for each in self.timesteps)
        return _CARD.format(
            base=f"base_model: {self.teacher}\n" if self.on_hub else "",
            name=_plain(self.name),
            steps=_counted(steps, "step"),
            evaluations=_counted(steps, "evaluation"),
            teacher=f"`{_plain(self.teacher)}`",
            version=__version__,
            method=self.method,
            run="" if self.run is None else f", run `{self.run}`",
            parameters=self.parameters,
            network=self.network,
            guidance=""
            if self.guidance is None
            else ": the guidance scale is one of its inputs, for which it was trained",
            timesteps=f"timestep{'s' if steps > 1 else ''} {listed}",
            dtype=self.dtype,
            code=self.code,
        )

    @property
    def code(self) -> str:
        """The call, in Python that needs diffusers alone."""
        return _CODE.format(
            imports=f"from diffusers import {self.pipeline}",
            pipeline=self.pipeline,
            folder=ascii(f"./{self.name}"),
            dtype=self.dtype,
            prompt=ascii(self.prompt),
            arguments="\n".join(f"    {name}={value!r}," for name, value in self.arguments.items()),
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _plain(text: str) -> str:
    """A name in a line of Markdown."""
    return one_line(text).replace("`", "'")
