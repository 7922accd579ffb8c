"""What a caller hands over in the place of what a recipe names: a teacher, data, a feature space.

The teacher is written into the run's folder (``given_teachers``), and is the recipe's teacher
from then on: every command finds it there. Data and feature spaces stay the caller's
(``recipes.given``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fewstep.data import Dataset
from fewstep.data.prompts import read_prompts
from fewstep.keeping.given_teachers import check_teacher, keep_teacher
from fewstep.keeping.run_folder import RunFolder
from fewstep.metrics.features import FeatureSpace
from fewstep.recipes.given import give_data, give_features
from fewstep.system.locations import absolute


@dataclass(frozen=True, eq=False)
class Objects:
    """What a call was given; None for what the recipe names itself."""

    teacher: Any = None
    data: Dataset | None = None
    features: FeatureSpace | None = None
    prompts: Sequence[str] | None = None

    def overrides(self, folder: RunFolder) -> list[str]:
        """What the recipe of a run in ``folder`` says of them, as overrides.

        Raises ``UserError`` for a teacher that no file could hold, and for what is no prompt.
        """
        said: dict[str, dict[str, Any]] = {}
        if self.teacher is not None:
            check_teacher(self.teacher)
            kept = ("file", folder.teacher) if isinstance(self.teacher, nn.Module) else ("pipeline", folder.pipeline)
            said["teacher"] = {"kind": kept[0], "path": absolute(str(kept[1]))}
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
        if self.teacher is not None:
            keep_teacher(folder, self.teacher, {} if self.data is None else {"range": [self.data.low, self.data.high]})


NOTHING = Objects()
