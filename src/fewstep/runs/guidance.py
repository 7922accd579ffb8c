"""Quality against the scale of classifier-free guidance: the teacher, and a student that was conditioned on the scale (Meng et al. 2023, Sec. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import UserError
from fewstep.runs.sampler import Sampler, StudentSampler, load, load_teacher


def guided_samplers(run: Path, student: StudentSampler, scales: Sequence[float]) -> dict[str, dict[str, Sampler]]:
    """``{str(scale): {"teacher": ..., "student": ...}}``, the student where it was conditioned on a scale; raises ``UserError`` for a negative scale, or a teacher without classes."""
    found: dict[str, dict[str, Sampler]] = {}
    for scale in scales:
        if not scale >= 0:
            raise UserError(f"--guidance: a guidance scale must be at least 0, got {scale}.")
        found[str(float(scale))] = {"teacher": load_teacher(run, scale), **({} if student.sampling.guidance is None else {"student": load(run, scale)})}
    return found


def load_guided(run: Path | str, guidance: float | None = None) -> StudentSampler:
    """A run's student at a guidance scale; raises ``UserError`` where it was not conditioned on one, unless the scale is 1, which asks for nothing."""
    student = load(run)
    if guidance is None or (guidance == 1.0 and student.sampling.guidance is None):
        return student
    if student.sampling.guidance is None:
        raise UserError("--guidance: only the teacher can be guided, since this student was not conditioned on a scale; add --teacher or leave it out.")
    return load(run, guidance)
