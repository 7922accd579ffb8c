"""Measures folders of pictures as papers do: what ``fewstep measure --pictures`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.prompts import read_prompts
from fewstep.errors import UserError
from fewstep.metrics.averages import Average
from fewstep.metrics.diversity import diversities
from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.frechet import FeatureStatistics, frechet_distance
from fewstep.metrics.stored.moments import Moments
from fewstep.runs.protocols.clip_figures import ClipChoice, clip_score
from fewstep.runs.protocols.compared_moments import fitting_reference, moments_of_set
from fewstep.runs.protocols.picture_sets import PictureSet, PictureView, digest_of_texts
from fewstep.runs.protocols.said_features import SaidFeatures
from fewstep.runs.protocols.score_files import read_scores
from fewstep.system.caches import content_digest
from fewstep.training import Listener


@dataclass(frozen=True)
class PictureProtocol:
    """What is measured of sets of pictures.

    ``size`` and ``patch``: of what a Frechet and a patch distance see (``PictureView``). ``real``:
    the pictures that both are to, or ``reference``, a file of statistics, for the first.
    ``features``: as ``SaidFeatures`` reads them. ``prompts``: a file of captions in the order of
    the pictures, their own unless given. ``diversity``: whether pictures of one prompt are
    compared. ``targets``: a set with the picture that each prompt is meant to make.
    """

    size: int | None = None
    patch: int | None = None
    real: Path | None = None
    reference: Path | None = None
    features: str | None = None
    clip: ClipChoice | None = None
    prompts: Path | None = None
    diversity: bool = False
    targets: Path | None = None

    def check(self) -> None:
        """Raises ``UserError`` for options that do not go together, and where nothing is asked."""
        if self.real is not None and self.reference is not None:
            raise UserError("--real and --reference: both say what distances are to; leave one of them out.")
        if self.patch is not None and self.real is None:
            raise UserError("--patch: is a distance to patches of real pictures; give them by --real FOLDER.")

    @property
    def compares_features(self) -> bool:
        """Whether a figure needs a feature space."""
        asked = (self.real, self.reference, self.targets)
        return self.diversity or any(each is not None for each in asked)

    @property
    def as_json(self) -> dict[str, Any]:
        """What of it decides the figures, besides files."""
        clip = {} if self.clip is None else {"clip_size": self.clip.view.size, "clip_prefix": self.clip.prefix}
        return {"size": self.size, "patch": self.patch, **clip}


@dataclass(frozen=True, eq=False)
class SetsMeasurer:
    """Measures sets one after another by one ``protocol``; ``listener`` is told how it goes."""

    protocol: PictureProtocol
    listener: Listener

    def __call__(self, folders: Sequence[Path], scores: Sequence[Path] = ()) -> dict[str, Any]:
        """The result as JSON has it: ``protocol``, ``origins``, and for each folder its figures.

        ``scores``: a file for each folder, or none. Raises ``UserError`` for what cannot be had.
        """
        self.protocol.check()
        if len({str(folder) for folder in folders}) < len(folders):
            raise UserError("--pictures: names a folder twice; give each once.")
        if scores and len(scores) != len(folders):
            raise UserError(
                f"--scores: names {len(scores)} files for {len(folders)} folders; give one for each folder, in their "
                "order."
            )
        sets = [PictureSet.open(folder) for folder in folders]
        for sentence in (remark for each in sets for remark in each.remarks):
            self.listener.say(sentence)
        rows: list[dict[str, Any]] = [
            {"folder": str(folder), "pictures": len(each), "sha256": each.digest}
            for folder, each in zip(folders, sets, strict=True)
        ]
        origins: dict[str, Any] = {}
        space = self._compared(sets, rows, origins) if self.protocol.compares_features else None
        self._clip(sets, rows, origins)
        for row, folder, each, file in zip(rows, folders, sets, scores, strict=bool(scores)):
            joined = read_scores(file, folder, each.names)
            for sentence in joined.remarks(file):
                self.listener.say(sentence)
            row["scores"] = {**joined.as_json(), "sha256": content_digest(file)}
        if not any(row.keys() & set(FIGURES) for row in rows):
            raise UserError(
                "--pictures: nothing was asked for; give --real, --reference, --clip, --diversity, --targets or "
                "--scores."
            )
        return {"protocol": {**self.protocol.as_json, "space": space}, "origins": origins, "sets": rows}

    def _compared(self, sets: Sequence[PictureSet], rows: list[dict[str, Any]], origins: dict[str, Any]) -> str:
        """Puts the figures that compare features into the rows; gives the space's name."""
        protocol, said = self.protocol, SaidFeatures.of(self.protocol.features)
        view = PictureView(protocol.size)
        space = said.space(view.sides(sets[0].picture(0)))
        origins["features"] = said.origins
        real = None if protocol.real is None else PictureSet.open(protocol.real)
        if real is not None:
            origins["real"] = real.digest
        target = None
        if protocol.targets is not None:
            targets = PictureSet.open(protocol.targets)
            target, origins["targets"] = torch.cat(list(targets.features(view, space))), targets.digest
        against = None if real is None else moments_of_set(real, view, space, said.described, self.listener.say)
        for each, row in zip(sets, rows, strict=True):
            # One in memory at a time, unless they are to be compared with one another.
            found = self._told(each, view, space, "features")
            if protocol.diversity or target is not None:
                blocks = list(found)
                row |= self._of_prompts(each, torch.cat(blocks), target)
                found = blocks
            if against is None and protocol.reference is not None:
                against = self._stored(protocol.reference, space, each, view, said.origins, origins)
            if against is not None:
                row["fd"] = frechet_distance(Moments.of_batches(found).statistics(), against)
        if real is not None and protocol.patch is not None:
            self._patches(sets, rows, real, said)
        return space.name

    def _patches(
        self, sets: Sequence[PictureSet], rows: list[dict[str, Any]], real: PictureSet, said: SaidFeatures
    ) -> None:
        view = PictureView(patch=self.protocol.patch)
        space = said.space(view.sides(sets[0].picture(0)))
        against = moments_of_set(real, view, space, said.described, self.listener.say)
        for each, row in zip(sets, rows, strict=True):
            moments = Moments.of_batches(self._told(each, view, space, "patches"))
            row["patch_fd"] = frechet_distance(moments.statistics(), against)

    def _stored(
        self,
        path: Path,
        space: FeatureSpace,
        pictures: PictureSet,
        view: PictureView,
        features: dict[str, str],
        origins: dict[str, Any],
    ) -> FeatureStatistics:
        dimensions = next(iter(pictures.features(view, space))).shape[1]
        origins["reference"] = content_digest(path)
        return fitting_reference(path, space, dimensions, features).statistics

    def _of_prompts(self, pictures: PictureSet, features: Tensor, targets: Tensor | None) -> dict[str, Any]:
        """What is asked of pictures of one prompt: how far they are from one another, and from the
        picture that it is meant to make.
        """
        found: dict[str, Any] = {}
        if self.protocol.diversity:
            captions = self._captions(pictures, "--diversity")
            numbers: dict[str, int] = {}
            labels = torch.tensor([numbers.setdefault(text, len(numbers)) if text else -1 for text in captions])
            known = labels >= 0
            by_prompt = diversities(features[known], labels[known])
            if not by_prompt:
                raise UserError(
                    f"--diversity: no prompt of {pictures.source.path} has two pictures; draw several of each."
                )
            found["diversity"] = Average.of([by_prompt[label] for label in sorted(by_prompt)]).as_json()
        if targets is not None:
            each = len(features) // len(targets)
            if each * len(targets) != len(features):
                raise UserError(
                    f"--targets: has {len(targets)} pictures and {pictures.source.path} {len(features)}; each target "
                    "needs as many."
                )
            apart = (features.double() - targets.double().repeat_interleave(each, 0)).norm(dim=1)
            found["target_distance"] = Average.of(apart.tolist()).as_json()
        return found

    def _clip(self, sets: Sequence[PictureSet], rows: list[dict[str, Any]], origins: dict[str, Any]) -> None:
        choice = self.protocol.clip
        if choice is None:
            return
        for remark in choice.folder.remarks:
            self.listener.say(remark)
        captions = [self._captions(each, "--clip") for each in sets]
        towers, origins["clip"] = choice.open(), choice.folder.digest
        for each, row, texts in zip(sets, rows, captions, strict=True):
            with self.listener:
                report = self._counter(f"CLIP of {each.source.path.name}", len(each))
                row["clip"] = {
                    **clip_score(choice, towers, each, texts, report),
                    "captions_sha256": digest_of_texts(tuple(texts)),
                }

    def _captions(self, pictures: PictureSet, option: str) -> Sequence[str]:
        """A caption for each picture, "" for one without."""
        if self.protocol.prompts is not None:
            prompts = read_prompts(self.protocol.prompts)
            if len(prompts) != len(pictures):
                raise UserError(
                    f"--prompts: has {len(prompts)} prompts and {pictures.source.path} {len(pictures)} pictures; give "
                    "a prompt for each, in the order of the pictures' names."
                )
            return prompts.texts
        if pictures.captions is None:
            raise UserError(
                f"{option}: {pictures.source.path} has no captions; write metadata.jsonl or NAME.txt beside NAME.png, "
                "or give --prompts FILE."
            )
        return pictures.captions

    def _told(self, pictures: PictureSet, view: PictureView, space: FeatureSpace, what: str) -> Any:
        """The blocks of features of a set, while the listener is told how many there are."""
        with self.listener:
            report = self._counter(f"{what} of {pictures.source.path.name}", len(pictures))
            for block in pictures.features(view, space):
                report(len(block))
                yield block

    def _counter(self, name: str, total: int) -> Callable[[int], None]:
        done = 0
        self.listener.stage(name, total, 0)

        def report(rows: int) -> None:
            nonlocal done
            done += rows
            self.listener.step(done, f"{done:,} pictures")

        return report


FIGURES = ("fd", "patch_fd", "clip", "diversity", "target_distance", "scores")
"""What may be measured of a set, in the order of a table's columns."""
