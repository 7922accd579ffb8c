"""Every script in ``benchmarks/`` that a user may start, with a setting so small that it ends in seconds: none may rot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_kit import started

FEW = ("--set", "evaluation.samples=60", "--set", "training.batch=8", "--set", "evaluation.draws=1", "--seeds", "1")
# By name, what is before a comma is the script: arguments, and the JSON file that must be there afterwards.
SCRIPTS: dict[str, tuple[tuple[str, ...], str]] = {
    "convergence": (("--study", "toy", "--budget", "9000", *FEW), "convergence-toy.json"),
    "ddil": (("--only", "pd4", "--budget", "2000", *FEW), "ddil.json"),
    "ddil, overhead": (("--study", "overhead", "--only", "lcm4", "--budget", "2000", *FEW), "ddil-overhead.json"),
    "family": (("--only", "diff-instruct", "--budget", "2000", *FEW), "family.json"),
    "fastgan": (("--budget", "2000", "--gan", "500", *FEW), "fastgan.json"),
    "field": ((), "field.json"),
    "inversion": (("--steps", "3", *FEW), "inversion.json"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_to_its_end(name: str, tmp_path: Path) -> None:
    arguments, result = SCRIPTS[name]
    where = ("--results", str(tmp_path / "results"), *(("--out", str(tmp_path / "runs")) if "--seeds" in arguments else ()))
    assert started(name.partition(",")[0], *arguments, *where).strip()
    assert json.loads((tmp_path / "results" / result).read_text(encoding="utf-8"))
