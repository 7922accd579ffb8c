"""What samples are compared with, where that is not the data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fewstep.recipes.config.section import Section
from fewstep.values import Few, NotNegative


class TeacherReference(Section):
    """The teacher's own samples, for runs without data: how far a student is from its teacher.

    ``samples``: how many, of which mean and covariance are taken once and kept in the cache folder.
    ``steps``: of the teacher, the most of ``evaluation.teacher_steps`` unless given; ``guidance``:
    its scale, that of the evaluation unless given.
    """

    kind: Literal["teacher"]
    samples: int = Field(5000, ge=2, le=1_000_000)
    steps: Few | None = None
    guidance: NotNegative | None = None
