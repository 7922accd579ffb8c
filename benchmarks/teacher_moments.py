"""The moments of a teacher's samples that ship, made, and checked against samples drawn again.

    python benchmarks/teacher_moments.py RECIPE --write   # what the recipe's reference asks for
    python benchmarks/teacher_moments.py RECIPE           # 500 of the samples drawn again

The recipe says what the samples are: its teacher, 'evaluation.reference' (how many, at how many
steps, guided how far), solver, features and seed. The file is named by the digest of all that, and
holds the command that made it. The samples that are drawn again are the first of them. Both moments
are printed, with the squared distance of their means and of their covariances, each beside the
bound that sampling error alone exceeds with a chance of 1e-4
(``fewstep.metrics.stored.agreement``). Where a bound is exceeded the script ends with 1: the file
is of another teacher, or this machine computes something else.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import UserError
from fewstep.metrics import FeatureStatistics, Reference, load_reference, save_reference
from fewstep.metrics.stored.agreement import agreement
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.parts import data_of
from fewstep.runs.loading import teacher_of
from fewstep.runs.teacher_reference import TeacherMoments, shipped_moments, teacher_moments
from fewstep.training import Listener


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a shipped recipe, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as fewstep's; repeatable")
    parser.add_argument("--write", action="store_true", help="compute the moments and write them first")
    parser.add_argument("--samples", type=int, default=500, help="how many are drawn again")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--moments", type=Path, default=shipped_moments(), help="the folder of the moments' files")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        content = checked(options)
    except UserError as error:
        sys.exit(f"teacher_moments: {error}")
    options.results.mkdir(parents=True, exist_ok=True)
    result = options.results / f"teacher-moments-{Path(options.recipe).stem}.json"
    result.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(0 if content["agree"] else 1)


def checked(options: argparse.Namespace) -> dict[str, Any]:
    """The check's figures, the moments having been made before where that is asked for."""
    moments = moments_of(options.recipe, options.set)
    file = options.moments / moments.kept.shipped_file.name
    if options.write:
        said = [*(f"--set {shlex.quote(each)}" for each in options.set), "--write"]
        command = " ".join(["python benchmarks/teacher_moments.py", shlex.quote(options.recipe), *said])
        reference = Reference(moments.compute(Listener()), moments.space.name, made=moments.made, command=command)
        print(f"{file}: checksum {save_reference(file, reference)}")
    stored = load_reference(file)
    if dict(stored.made) != dict(moments.made):
        raise UserError(f"{file}: holds the moments of other samples than its name says; make it again by --write.")
    print(f"{file.name}: made by {stored.command}")
    rows = min(options.samples, moments.count)
    drawn = moments.drawn(rows)
    found = agreement(drawn, stored.statistics)
    for name, statistics in (("stored", stored.statistics), ("drawn again", FeatureStatistics.of(drawn))):
        length, trace = float(statistics.mean.norm()), float(statistics.covariance.trace())
        print(f"{name:<12} {statistics.count:>6} samples, |mean| {length:.5g}, trace of the covariance {trace:.5g}")
    for name, gap in (("means", found.mean), ("covariances", found.covariance)):
        verdict = "agree" if gap.holds else "DIFFER"
        print(f"{name:<12} squared distance {gap.squared:.4g}, by chance at most {gap.bound:.4g}: {verdict}")
    return {
        "recipe": options.recipe,
        "set": options.set,
        "file": file.name,
        "command": stored.command,
        "samples": stored.statistics.count,
        "drawn": rows,
        **asdict(found),
        "agree": found.holds,
    }


def moments_of(recipe: str, overrides: Sequence[str]) -> TeacherMoments:
    """What a recipe's 'evaluation.reference' asks for."""
    read = load_recipe(recipe, overrides)
    if not isinstance(read, DistillRecipe) or read.evaluation.reference is None:
        raise UserError(f"{recipe}: has no 'evaluation.reference'; add --set 'evaluation.reference={{kind: teacher}}'.")
    data = data_of(read.data)
    teacher = teacher_of(read, data)
    space = read.evaluation.features.space(teacher.pictured.space if data is None else data)
    return teacher_moments(read, teacher, space, data)


if __name__ == "__main__":
    main()
