"""What a caller hands over in the place of what a recipe names: a teacher, data, a feature space.

The teacher is written into the run's folder, as a model file, and is the recipe's teacher from then
on: every command finds it there. Data and feature spaces stay the caller's (``recipes.given``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fewstep.data import Dataset
from fewstep.data.prompts import read_prompts
from fewstep.denoisers import NetworkDenoiser, load_model, save_model
from fewstep.denoisers.model_files import describe_model
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.metrics.features import FeatureSpace
from fewstep.recipes.config.section import first_difference
from fewstep.recipes.given import give_data, give_features
from fewstep.system.locations import absolute


@dataclass(frozen=True, eq=False)
class Objects:
    """What a call was given; None for what the recipe names itself."""

    teacher: nn.Module | None = None
    data: Dataset | None = None
    features: FeatureSpace | None = None
    prompts: Sequence[str] | None = None

    def overrides(self, folder: RunFolder) -> list[str]:
        """What the recipe of a run in ``folder`` says of them, as overrides.

        Raises ``UserError`` for a teacher that no file could hold.
        """
        said: dict[str, dict[str, Any]] = {}
        if self.teacher is not None:
            if not isinstance(self.teacher, NetworkDenoiser):
                raise UserError(
                    f"teacher: is a {type(self.teacher).__name__}; wrap your network as "
                    "fewstep.denoisers.NetworkDenoiser(network, schedule, prediction, inputs, shape, "
                    "classes)."
                )
            describe_model(self.teacher)
            said["teacher"] = {"kind": "file", "path": absolute(str(folder.teacher))}
        if self.data is not None:
            said["data"] = {"kind": "given", "name": give_data(self.data)}
        if self.features is not None:
            said["evaluation.features"] = {"kind": "given", "name": give_features(self.features)}
        if self.prompts is not None:
            said["prompts"] = {"kind": "list", "texts": list(read_prompts(list(self.prompts)).texts)}
        return [f"{key}={json.dumps(value)}" for key, value in said.items()]

    def keep_teacher(self, folder: RunFolder) -> None:
        """Writes the teacher into the folder; raises ``UserError`` where another one is there
        already.
        """
        if self.teacher is None:
            return
        if not folder.teacher.is_file():
            space = {} if self.data is None else {"range": [self.data.low, self.data.high]}
            save_model(folder.teacher, self.teacher, space)
            return
        kept, _ = load_model(folder.teacher)
        weights = self.teacher.state_dict()
        same = first_difference(describe_model(kept), describe_model(self.teacher)) is None
        if not same or not all(
            bool((value == weights[name].to(value)).all()) for name, value in kept.state_dict().items()
        ):
            raise UserError(
                f"teacher: is another one than the run in {folder.path} began with, which is kept in "
                f"{folder.teacher.name}; give that one, or use another folder."
            )


NOTHING = Objects()
