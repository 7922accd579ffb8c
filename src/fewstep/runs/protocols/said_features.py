"""The feature space that a command line says, in the words of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fewstep.data import SampleSpace
from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace
from fewstep.recipes import config
from fewstep.recipes.building.checksums import digest_of_named
from fewstep.recipes.building.device import resolve_device
from fewstep.recipes.reading.places import named_in, with_names
from fewstep.recipes.reading.sentences import sentence_of
from fewstep.recipes.reading.yaml_text import parsed

USUAL = "inception"
"""Where published distances are."""
_KEY = "evaluation.features."


@dataclass(frozen=True)
class SaidFeatures:
    """A ``section`` of features, whose space is made when it is known what pictures are seen."""

    section: config.FeaturesChoice

    @classmethod
    def of(cls, text: str | None) -> SaidFeatures:
        """Of ``{kind: reader, name: scenes}`` or a kind alone, ``inception`` unless given.

        Raises ``UserError`` for what is no section of features.
        """
        try:
            said = parsed(USUAL if text is None else text)
        except ValueError as error:
            raise UserError(
                f"--features: '{text:.80}' is no valid YAML; give such as '{{kind: inception}}'."
            ) from error
        values = {"features": {"kind": said} if isinstance(said, str) else said}
        try:
            return cls(config.Evaluation.of(values).features)
        except ValidationError as error:
            raise UserError(sentence_of(error, config.Evaluation, "--features", {}, values)) from error

    def space(self, sides: tuple[int, int]) -> FeatureSpace:
        """The space for pictures of these sides; raises ``UserError`` where it reads others."""
        return self.section.space(SampleSpace((3, *sides), -1.0, 1.0, 0), resolve_device("auto"))

    @property
    def origins(self) -> dict[str, str]:
        """The checksums of what the section names, by a recipe's keys."""
        found = ((each.key, digest_of_named(each)) for each in named_in(self.section, _KEY))
        return {key: digest for key, digest in sorted(found) if digest is not None}

    @property
    def described(self) -> dict[str, Any]:
        """All that decides the features: the section, its files by content."""
        plain = with_names(self.section, lambda each: each.value if each.mark.what == "shipped" else None)
        return {**plain.model_dump(mode="json"), **self.origins}
