"""The README's Python is run as it stands, on a few steps; its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import fewstep as fs

ROOT = Path(__file__).parents[1]


def test_the_api_example_runs_and_makes_digits(tmp_path, monkeypatch):
    """25 lines of constructors; only the numbers of steps are cut."""
    text = (ROOT / "README.md").read_text()
    match = re.search(r"<!-- api -->\n```python\n(.*?)```", text, re.DOTALL)
    assert match is not None
    code = match.group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 27
    short = code.replace("2_000", "3").replace("EverySteps(10)", "EverySteps(1)").replace("Every(20)", "Every(1)").replace("fs.training.Bar()", "fs.training.Silent()")
    assert short.count("(1)") >= 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(short, "README.md", "exec"), names)
    one_step, prior = names["one_step"], names["prior"]
    assert isinstance(one_step, fs.denoisers.NetworkDenoiser)
    assert isinstance(prior, fs.states.Prior)
    assert (tmp_path / "runs/api/path/node-4.safetensors").is_file()
    state = prior.at(fs.random.Place(0), "look", 4, torch.arange(4))
    samples = one_step(state.x, state.t, state.condition)
    assert samples.shape == (4, 1, 8, 8)


def test_every_command_of_the_readme_exists():
    from typer.main import get_command

    from fewstep.cli import app

    known = get_command(app).commands
    used = set(re.findall(r"^fewstep (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert used == {"recipes", "distill", "sample", "evaluate", "shift", "compare", "report", "plan", "data", "measure", "doctor", "checkpoints", "inspect"}
    assert used <= set(known)


def test_links_of_the_documents_lead_somewhere():
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
