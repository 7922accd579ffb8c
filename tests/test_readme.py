"""The README's Python is run as it stands, on a few steps; its commands exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import fewstep as fs

ROOT = Path(__file__).parents[1]
DOCUMENTS = (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    """Each line that a document gives to the shell, with where it stands; without comments."""
    for document in DOCUMENTS:
        for block in re.findall(r"^```sh\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield f"{document.name}: {line}", words


def test_the_api_example_runs_and_makes_digits(tmp_path, monkeypatch):
    """25 lines of constructors; only the numbers of steps are cut."""
    text = (ROOT / "README.md").read_text()
    match = re.search(r"<!-- api -->\n```python\n(.*?)```", text, re.DOTALL)
    assert match is not None
    code = match.group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 27
    short = (
        code.replace("2_000", "3")
        .replace("EverySteps(10)", "EverySteps(1)")
        .replace("Every(20)", "Every(1)")
        .replace("fs.training.Bar()", "fs.training.Silent()")
    )
    assert short.count("(1)") >= 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(short, "README.md", "exec"), names)
    one_step, prior = names["one_step"], names["prior"]
    assert isinstance(one_step, fs.denoisers.NetworkDenoiser)
    assert isinstance(prior, fs.states.Prior)
    assert (tmp_path / "runs/api/path/node-4.safetensors").is_file()
    state = prior.at(fs.random.Key(0), "look", 4, torch.arange(4))
    samples = one_step(state.x, state.t, state.condition)
    assert samples.shape == (4, 1, 8, 8)


def test_a_network_of_ones_own_is_distilled_as_the_readme_shows(tmp_path, monkeypatch):
    """Some 20 lines; only the steps are cut."""
    match = re.search(r"<!-- own -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert match is not None
    assert len([line for line in match.group(1).splitlines() if line.strip()]) <= 21
    small = [
        "training.steps=6",
        "training.batch=4",
        "evaluation.samples=16",
        "evaluation.every=6",
        "target.record.steps=1",
        "target.switch.steps=1",
    ]
    short = match.group(1).replace('out="runs/mine"', f'out="runs/mine", overrides={small}')
    assert short != match.group(1)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(short, "README.md", "exec"), names)
    samples = names["samples"]
    assert isinstance(samples, torch.Tensor)
    assert samples.shape == (16, 1, 8, 8)


def test_a_pipeline_of_ones_own_is_distilled_and_sampled_as_the_readme_shows(tmp_path, monkeypatch):
    """A shipped pipeline in the place of Stable Diffusion; only names and steps are changed."""
    match = re.search(r"<!-- pipeline -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert match is not None
    assert len([line for line in match.group(1).splitlines() if line.strip()]) <= 12
    small = [
        "training.steps=4",
        "training.batch=2",
        "target.nodes=2",
        "target.record.steps=1",
        "target.switch.steps=1",
        "evaluation.samples=8",
        "evaluation.every=100",
        "evaluation.reference=null",
    ]
    changed = {
        '"models/mine"': repr(str(fs.zoo.shipped_pipeline("scenes"))),
        "sd15-disback-lora": "scenes-disback-lora",
        "timesteps=[399]": "timesteps=[699]",
        'out="runs/mine"': f'out="runs/mine", overrides={small}',
    }
    code = match.group(1)
    for before, after in changed.items():
        assert code.count(before) == 1
        code = code.replace(before, after)
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a red seven\na large blue three at the left\n", encoding="utf-8")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    with Image.open("fox.png") as picture:
        assert (picture.size, picture.mode) == ((32, 32), "RGB")

    def drawn(prompt: str, seed: int) -> bytes:
        asked = {"timesteps": [699], "guidance_scale": 1.0, "generator": torch.Generator().manual_seed(seed)}
        found: bytes = names["fast"](prompt, **asked).images[0].tobytes()
        return found

    # What diffusers draws is of the prompt and of the noise.
    pictures = [drawn(prompt, seed) for prompt in ("a red seven", "a blue three") for seed in (0, 1)]
    assert len(set(pictures)) == 4
    assert drawn("a red seven", 0) == pictures[0]


def test_every_command_of_the_readme_exists():
    from typer.main import get_command

    from fewstep.command.cli import app

    known = get_command(app).commands
    used = {words[1] for where, words in shown_commands() if where.startswith("README.md") and words[0] == "fewstep"}
    assert used >= {"recipes", "plan", "distill", "sample", "evaluate", "export", "report", "doctor"}
    assert used <= set(known)


def test_classes_that_the_pages_name_are_there():
    """In the pages that a newcomer reads first."""
    there = {name for module in sorted(vars(fs)["_MODULES"]) for name in dir(getattr(fs, module))}
    seen = 0
    for page in (page for room in ("start", "howto", "concepts") for page in (ROOT / "docs" / room).glob("*.md")):
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for name in re.findall(r"`([A-Z][A-Za-z]*[a-z][A-Za-z]*)`", prose):
            assert name in there, f"{page.name}: {name}"
            seen += 1
    assert seen > 10


def test_every_method_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [path.name for path in (ROOT / "docs" / "methods").glob("*.md") if path.name != "README.md"]
    assert [name for name in pages if f"](docs/methods/{name})" not in text] == []


def test_links_of_the_documents_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_command_of_the_documents_is_taken_as_it_stands():
    """Its options exist, and a shipped recipe that it names takes what it sets."""
    from typer.core import TyperGroup
    from typer.main import get_command

    from fewstep.command.cli import app
    from fewstep.recipes import load_recipe

    seen = 0
    for where, words in shown_commands():
        if "fewstep" not in words:
            continue
        command, name, rest = get_command(app), "fewstep", words[words.index("fewstep") + 1 :]
        while isinstance(command, TyperGroup):
            name, *rest = rest
            assert name in command.commands, where
            command = command.commands[name]
        given = command.make_context(name, rest).params
        if "settings" in given and not given["recipe"].endswith(".yaml"):
            load_recipe(given["recipe"], given["settings"])
        seen += 1
    assert seen > 50


def test_every_benchmark_of_the_documents_has_the_options_that_are_given():
    common = (ROOT / "benchmarks" / "runner.py").read_text(encoding="utf-8")
    seen = 0
    for where, words in shown_commands():
        for script in (word for word in words if word.startswith("benchmarks/") and word.endswith(".py")):
            source = (ROOT / script).read_text(encoding="utf-8")
            for option in (word for word in words if word.startswith("--")):
                assert f'"{option}"' in source + common, where
                seen += 1
    assert seen > 10


def classes_in(text: str) -> dict[str, str]:
    """Each class of a source text, by name, as a tree without docstrings and comments."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                if isinstance(inner, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(inner) is not None:
                    inner.body = inner.body[1:]
            found[node.name] = ast.dump(node)
    return found


def test_the_worked_example_of_a_method_is_the_code():
    """Every class that CONTRIBUTING.md shows stands so in the package."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    shown = {name: tree for block in blocks if "\nclass " in f"\n{block}" for name, tree in classes_in(block).items()}
    assert shown.keys() == {"ScoreIdentity", "FollowsIdentity", "IdentityMethod"}
    folder = ROOT / "src" / "fewstep"
    for path in ("objectives/scores/score_identity.py", "recipes/methods/following_scores/sid.py"):
        for name, tree in classes_in((folder / path).read_text(encoding="utf-8")).items():
            assert shown.pop(name) == tree
    assert not shown
