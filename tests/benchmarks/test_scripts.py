"""Every script in ``benchmarks/`` and ``stress/`` that a user may start, with a setting so small
that it ends in seconds: none may rot.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bench_kit import FOLDERS, imported, started

# A distance to the teacher's own samples, few as they are.
REFERENCE = ("--set", 'evaluation.reference={"kind": "teacher", "samples": 60, "steps": 2}')
FEW = ("--set", "evaluation.samples=60", "--set", "training.batch=8", "--set", "evaluation.draws=1", "--seeds", "1")
# By name, what is before a comma is the script: arguments, and the JSON file that must be there
# afterwards.
SCRIPTS: dict[str, tuple[tuple[str, ...], str]] = {
    "alarms": (("--runs", "1", "--steps", "20", "--places", "plane", "--ways", "rate times 30"), "alarms.json"),
    "adapters": (
        (
            *("--only", "copies", "all 16", "--pictures", "20"),
            *("--set", "training.steps=6", *REFERENCE, *FEW),
        ),
        "adapters.json",
    ),
    "convergence": (("--study", "toy", "--budget", "110000", *FEW), "convergence-toy.json"),
    "ddil": (("--only", "pd4", "--budget", "2000", *FEW), "ddil.json"),
    "ddil, overhead": (("--study", "overhead", "--only", "lcm4", "--budget", "2000", *FEW), "ddil-overhead.json"),
    "ddil_text": (
        ("--only", "pd4", "--budget", "1000", "--pictures", "20", "--shared-samples", "12", *REFERENCE, *FEW),
        "ddil-text.json",
    ),
    "draws": (("--pairs", "2", "--shapes", "3x1x5x5", "2x3x8x8"), "draws.json"),
    "family": (
        # Milliseconds a step are those between two lines of the log.
        ("--only", "diff-instruct", "--budget", "2000", "--set", "training.log_every=1", *FEW),
        "family.json",
    ),
    "fastgan": (("--budget", "2000", "--gan", "500", *FEW), "fastgan.json"),
    "field": ((), "field.json"),
    "guided_target": (("--budget", "2000", *FEW), "guided-target-digits-disback-guided.json"),
    "house": ((), "house.json"),
    "step": (("--pairs", "1", "--block", "1"), "step.json"),
    "overlap": (("--pairs", "1", "--block", "1", "--width", "8"), "overlap.json"),
    "mismatch": ((), "mismatch.json"),
    "fuzz_pickles": (("--minutes", "0.02"), "fuzz_pickles.json"),
    "hostile": (("--count", "3"), "hostile.json"),
    "networks": (("--only", "ddpm++-32", "ncsn++-32", "adm-32", "--batch", "1", "--pairs", "2"), "networks.json"),
    "passes": (("--batches", "1", "--pairs", "2"), "passes.json"),
    "scenes": (("--count", "40", "--set", "training.steps=2", *FEW), "scenes-1.json"),
    "scenes_students": (("--budget", "2000", "--pictures", "20", *REFERENCE, *FEW), "scenes-students.json"),
    "scenes_teacher": (("--count", "4", "--steps", "2"), "scenes-teacher.json"),
    "scaling_model": ((), "scaling_model.json"),
    "throughput": (("--rounds", "1", "--only", "digits"), "throughput-cpu.json"),
    "faults": (("--kills", "1", "--processes", "1", "--faults", "SIGTERM"), "faults.json"),
    "inversion": (("--steps", "3", *FEW), "inversion.json"),
    "which_card": (("--recipes", "pixart-sigma-disback", "--cards", "8", "80"), "which-card.json"),
}
WITH_OUT = ("faults",)
# More than 40 seconds of an idle core, or whole processes that are started and ended.
SLOW = (
    "adapters",
    "convergence",
    "ddil",
    "ddil, overhead",
    "ddil_text",
    "family",
    "fastgan",
    "faults",
    "guided_target",
    "hostile",
    "inversion",
    "overlap",
    "scaling_model",
    "scenes_students",
    "throughput",
    "which_card",
)
# Its set is drawn from a font of emoji, which a machine need not have: ``--help`` alone.
NEEDS_MORE = ("emoji",)
# Not for users: ``faults_run`` starts the first, with its task in the environment, ``ddil --study
# overhead`` the second, ``scenes_students`` and ``ddil_text`` the third.
INNER = ("faults_entry", "collecting", "scenes_measured")
FILES = [path for folder in FOLDERS for path in folder.glob("*.py")]
PROGRAMS = sorted(
    path.stem
    for path in FILES
    if re.search(r"^def main\(", path.read_text(encoding="utf-8"), re.MULTILINE) and path.stem not in INNER
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_script_says_what_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        imported(name).main()
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_every_script_is_run_by_a_test() -> None:
    """Here, or by a test that starts it by name."""
    others = "".join(
        path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)
    )
    unrun = [name for name in PROGRAMS if name not in (*SCRIPTS, *NEEDS_MORE) and f'started("{name}"' not in others]
    assert not unrun, "these have no tiny settings in SCRIPTS"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SCRIPTS]
)
def test_a_script_runs_to_its_end(name: str, tmp_path: Path) -> None:
    arguments, result = SCRIPTS[name]
    where = (
        "--results",
        str(tmp_path / "results"),
        *(("--out", str(tmp_path / "runs")) if "--seeds" in arguments or name in WITH_OUT else ()),
    )
    assert started(name.partition(",")[0], *arguments, *where).strip()
    assert json.loads((tmp_path / "results" / result).read_text(encoding="utf-8"))
