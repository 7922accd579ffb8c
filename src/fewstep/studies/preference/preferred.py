"""What raters preferred: shares with intervals, over answers and over raters, and agreement."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.studies.preference.answer_book import Preference, all_answers
from fewstep.studies.preference.intervals import (
    LEVEL,
    agreeing_share,
    krippendorff_alpha,
    student_interval,
    wilson_interval,
)
from fewstep.studies.preference.picture_pairs import MODELS, study_at
from fewstep.system.caches import output
from fewstep.system.files import write_text

PREFERRED = (*MODELS, "none")
TABLE = "preferred.json"


def preferred_shares(folder: Path) -> dict[str, Any]:
    """What the raters of a study preferred; also written to ``preferred.json`` in its folder.

    ``answers``: over all answers, the share that prefers A, B and none, ``decided``: A's share of
    those that prefer one, ``left``: the left picture's; each with Wilson's interval, in which each
    answer counts as an independent one. ``raters``: the mean over raters of their shares, with
    Student's interval over raters. ``by_rater``: as ``answers``. ``agreement``: of all pairs of
    answers to one pair the share that is equal, and Krippendorff's alpha.

    Raises ``UserError`` where nobody has answered yet.
    """
    study = study_at(folder)
    found = all_answers(study)
    if not found:
        raise UserError(f"{folder}: nobody has answered yet; start with 'fewstep prefer --out {folder} --rater NAME'.")
    by_rater = {rater: _shares(answers) for rater, answers in found.items()}
    units = defaultdict[int, list[str]](list)
    for answers in found.values():
        for each in answers:
            units[each.pair].append(each.prefers)
    result: dict[str, Any] = {
        "models": {name: dict(described) for name, described in study.models.items()},
        "seed": study.seed,
        "pairs": len(study),
        "level": LEVEL,
        "answers": _shares([each for answers in found.values() for each in answers]),
        "raters": {"count": len(found), **_over_raters(by_rater.values())},
        "by_rater": by_rater,
        "agreement": {
            "shared_pairs": sum(len(unit) > 1 for unit in units.values()),
            "equal": agreeing_share(list(units.values())),
            "alpha": krippendorff_alpha(list(units.values())),
        },
    }
    path = Path(folder) / TABLE
    with output(path):
        write_text(path, json.dumps(result, indent=1) + "\n")
    return result


def _shares(answers: Sequence[Preference]) -> dict[str, Any]:
    counts, sides = Counter(each.prefers for each in answers), Counter(each.side for each in answers)
    decided = counts["A"] + counts["B"]
    return {
        "count": len(answers),
        **{name: _share(counts[name], len(answers)) for name in PREFERRED},
        "decided": _share(counts["A"], decided),
        "left": _share(sides["left"], decided),
    }


def _share(count: int, total: int) -> dict[str, Any]:
    return {"count": count, "share": count / total if total else None, "wilson": wilson_interval(count, total)}


def _over_raters(by_rater: Collection[dict[str, Any]]) -> dict[str, Any]:
    """The mean of raters' shares, of those who have one, and Student's interval."""
    found = {}
    for name in (*PREFERRED, "decided"):
        shares = [each[name]["share"] for each in by_rater if each[name]["share"] is not None]
        found[name] = {"mean": statistics.fmean(shares) if shares else None, "student": student_interval(shares)}
    return found
