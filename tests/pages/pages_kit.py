"""Studies whose pictures say whose they are, small runs, and requests as a browser sends them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.runs import distill
from fewstep.runs.pictures.sample_files import picture_png
from fewstep.studies.preference import PairStudy, study_at

SECRETS = {"A": "runs/of-the-first", "B": "runs/of-the-second"}
SMALL = ["training.batch=4", "training.health_every=1000", "evaluation.samples=20", "evaluation.every=1000"]


def painted(model: str, pair: int) -> bytes:
    """The PNG of a model in a study of ``painted_study``: another grey for each model and pair."""
    grey = (-1.0 if model == "A" else 1.0) * (1 - pair / 100)
    return picture_png(torch.full((1, 4, 4), grey), -1.0, 1.0)


def painted_study(folder: Path, pairs: int = 6, swapped: bool = False) -> PairStudy:
    """A study as ``drawn_study`` writes it, without a model; ``swapped``: A is what B was."""
    for name in ("pictures", "answers"):
        (folder / name).mkdir(parents=True)
    for pair in range(pairs):
        for model, other in (("A", "B"), ("B", "A")):
            content = painted(other if swapped else model, pair)
            (folder / "pictures" / f"{pair:05d}-{model}.png").write_bytes(content)
    models = {name: {"run": run, "model": "student", "guidance": None} for name, run in SECRETS.items()}
    said = {"format": 1, "seed": 3, "models": models, "captions": [f"scene <{i}>" for i in range(pairs)]}
    (folder / "study.json").write_text(json.dumps(said))
    return study_at(folder)


def digits_run(folder: Path, seed: int) -> Path:
    """A one-step student of the digits, after two steps of training."""
    return distill("digits-diff-instruct", [*SMALL, "training.steps=2", f"training.seed={seed}"], folder)


@dataclass(frozen=True)
class Answered:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def sentence(self) -> str:
        """Of a refusal: one line, and nothing else."""
        (sentence,) = self.json.values()
        assert set(self.json) == {"error"}
        assert "\n" not in sentence
        assert "Traceback" not in sentence
        return sentence


def asked(address: str, said: Any = None, **headers: str) -> Answered:
    """GET, or POST of JSON or bytes where something is ``said``; a header ``Foo_Bar`` is Foo-Bar's
    value.
    """
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    content = said if said is None or isinstance(said, bytes) else json.dumps(said).encode()
    if content is not None:
        given.setdefault("Content-Type", "application/json")
    request = urllib.request.Request(address, content, given)
    # No proxy: a machine may have one for all else.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return Answered(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answered(error.code, dict(error.headers), error.read())
