"""``fewstep doctor``: whatever is wrong with a file of a run, a finding names it and says what to
do; nothing is wrong with what is whole.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml
from cli_kit import small_recipe
from safetensors.torch import save

from fewstep.command.entry import run_command
from fewstep.data.archive import write_archive
from fewstep.doctor import examine, has_problem
from fewstep.doctor.environment import EXTRAS
from fewstep.doctor.findings import Finding
from fewstep.recipes import load_recipe, shipped_names, shipped_text
from fewstep.report import write_run_report
from fewstep.runs import distill, evaluate, pretrain
from fewstep.system.files import digest_of, read_tensors, write_tensors
from fewstep.zoo.download import cached_file

# One of each kind of file that a run has.
KINDS = (
    "recipe.yaml",
    "metrics.jsonl",
    "checkpoints/step-00000040.safetensors",
    "checkpoints/step-00000036.safetensors",
    "path/manifest.json",
    "path/node-2.safetensors",
    "pairs.safetensors",
    "student.safetensors",
    "adapter.safetensors",
    "student.best.safetensors",
    "adapter.best.safetensors",
    "evaluation.best.json",
    "evaluation.json",
    "samples/final.png",
    "samples/step-00000040.png",
    "report.html",
)


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(bytes(content))


def replaced(path: Path) -> None:
    path.write_text("shopping:\n- milk\n- eggs\n")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished and evaluated run that has a file of every kind: DisBack with an adapter and
    stored pairs.
    """
    base = tmp_path_factory.mktemp("whole")
    recipe = small_recipe(base / "small.yaml")
    values = yaml.safe_load(recipe.read_text())
    values["student"] = {"kind": "lora", "rank": 2, "first_sigma": 3.0}
    values["method"]["regression"] = {"pairs": 32, "steps": 2}
    values["evaluation"]["samples"] = 50
    values["training"]["keep_best"] = {"measure": "fd"}
    recipe.write_text(yaml.safe_dump(values))
    folder = distill(recipe, (), base / "run")
    evaluate(folder, [1], [1], 1)
    evaluate(folder, [1], [1], 1, which="best")
    write_run_report(folder)
    return folder


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def named(findings: list[Finding], key: Path | str) -> list[Finding]:
    return [finding for finding in findings if finding.place == str(key)]


def problems(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "problem"]


def test_a_whole_run_has_no_problem_and_each_of_its_files_was_looked_at(made):
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    findings = examine(made)
    assert problems(findings) == []
    for path in before:
        key = path.parent if path.suffix == ".png" else path
        assert path.name == "lock" or any(finding.level == "ok" for finding in named(findings, key)), path
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_to_every_file_is_found_by_its_name(made, tmp_path, kind):
    """Three ways a run can be spoilt, one after another in one copy: cut in half, a bit flipped,
    replaced by a text.
    """
    run = Path(shutil.copytree(made, tmp_path / "run"))
    for damage in (truncated, flipped, replaced):
        shutil.copy(made / kind, run / kind)
        damage(run / kind)
        findings = examine(run)
        about = [finding for finding in named(findings, run / kind) if finding.level == "problem"]
        assert len(about) >= 1, (damage.__name__, kind)
        assert all(finding.sentence.endswith(".") and finding.remedy for finding in about)
        # Nothing else is blamed for it: without its recipe a run is looked at all the same.
        assert {finding.place for finding in problems(findings)} == {str(run / kind)}


@pytest.mark.parametrize("damage", [emptied, Path.unlink], ids=["empty", "missing"])
def test_what_is_empty_or_missing_is_a_problem_unless_the_run_does_without(run, damage: Callable[[Path], None]):
    """All of them at once, but those by which the others are known."""
    known = {"recipe.yaml", "checkpoints/step-00000040.safetensors", "samples/final.png"}
    there = (
        {
            "evaluation.json",
            "evaluation.best.json",
            "samples/step-00000040.png",
            "report.html",
            "checkpoints/step-00000036.safetensors",
        }
        if damage is Path.unlink
        else set()
    )
    for kind in set(KINDS) - known:
        damage(run / kind)
    blamed = {finding.place for finding in problems(examine(run))}
    # Of a path without a manifest no node is known, and of one without nodes the manifest says so.
    expected = {str(run / kind) for kind in set(KINDS) - known - there - {"path/node-2.safetensors"}}
    assert blamed == expected


def test_an_unfinished_run_is_told_how_to_go_on(run):
    """Without its end, its checkpoints, or its teacher's file."""
    for name in ("student.safetensors", "evaluation.json", "samples/final.png"):
        (run / name).unlink()
    (ended,) = named(examine(run), run / "student.safetensors")
    assert (ended.level, ended.remedy) == (
        "note",
        f"Go on: 'fewstep distill {run / 'recipe.yaml'} --out {run} --resume'.",
    )
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(
        yaml.safe_dump({**values, "teacher": {"kind": "file", "path": "nowhere.safetensors"}})
    )
    stuck = [finding for finding in named(examine(run), run / "recipe.yaml") if finding.level == "problem"]
    assert [finding.sentence for finding in stuck] == [
        (
            f"the run cannot go on as it is: {Path('nowhere.safetensors').absolute()}: there is no such file; "
            "check the path."
        )
    ]
    shutil.rmtree(run / "checkpoints")
    (none,) = named(examine(run), run / "checkpoints")
    assert none.level == "note"
    assert none.remedy.endswith("begins anew, unless the log has steps from after one was written.")


def test_the_damaged_newest_checkpoint_names_the_one_that_is_taken_instead(run):
    truncated(run / "checkpoints" / "step-00000040.safetensors")
    (found,) = problems(examine(run))
    assert found.remedy.endswith(f"goes on from {run}/checkpoints/step-00000036.safetensors.")


def test_a_node_of_another_run_is_not_taken_for_this_ones(run):
    shutil.copy(run / "path" / "node-1.safetensors", run / "path" / "node-2.safetensors")
    (found,) = problems(examine(run))
    assert (found.place, found.sentence) == (str(run / "path" / "node-2.safetensors"), "is not node 2 of this path.")
    assert {finding.place for finding in problems(examine(run / "path"))} == {found.place}


def test_the_log_is_held_against_the_checkpoint(run):
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines) + '{"step": 41, "sta')
    (half,) = [finding for finding in named(examine(run), log) if "half a line" in finding.sentence]
    assert half.level == "note"
    assert problems(examine(run)) == []
    log.write_text("".join(lines[:10]))
    (short,) = problems(examine(run))
    assert short.sentence.startswith("has 10 lines, and ")
    assert short.sentence.endswith("were written before checkpoints/step-00000040.safetensors.")
    log.write_text("".join([*lines[5:], *lines[:5]]))
    assert [found.sentence for found in problems(examine(run))] == ["its steps go backwards."]


def test_health_warnings_of_the_log_are_passed_on(run):
    def logged(*warnings: list[str]) -> list[str]:
        lines = [
            {"step": 40 + number, "evaluations": 0, "probe": "health", "warnings": each}
            for number, each in enumerate(warnings)
        ]
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(
            "".join(
                [
                    *(line + "\n" for line in text.splitlines() if '"health"' not in line),
                    *(json.dumps(line) + "\n" for line in lines),
                ]
            )
        )
        findings = named(examine(run), run / "metrics.jsonl")
        return [finding.sentence for finding in findings if finding.level == "note"]

    assert logged([], []) == []
    assert logged(["it collapses."], ["it scatters."]) == [
        "at step 41, it scatters.",
        "1 of 2 health readings warned before, the last of them at step 40.",
    ]
    assert logged(["it collapses."], []) == ["1 of 2 health readings warned before, the last of them at step 40."]


def with_nan(path: Path) -> None:
    """A whole file with a value that is no number, as an older version could write it: its digest
    is right.
    """
    tensors, metadata = read_tensors(path)
    name = next(name for name, value in tensors.items() if value.is_floating_point() and value.numel())
    tensors[name].view(-1)[0] = float("nan")
    text = json.dumps({"digest": digest_of(tensors, metadata), **metadata}, sort_keys=True)
    path.write_bytes(save(tensors, metadata={"fewstep": text}))


@pytest.mark.parametrize(
    "kind",
    [
        "checkpoints/step-00000040.safetensors",
        "path/node-2.safetensors",
        "pairs.safetensors",
        "student.safetensors",
        "adapter.safetensors",
    ],
)
def test_values_that_are_not_finite_are_found_by_file_and_tensor(run, kind):
    with_nan(run / kind)
    if kind.startswith("path"):
        manifest = json.loads((run / "path/manifest.json").read_text())
        manifest["nodes"][1]["digest"] = digest_of(*read_tensors(run / kind))
        (run / "path/manifest.json").write_text(json.dumps(manifest))
    (found,) = (finding for finding in examine(run) if finding.level == "problem")
    assert found.place == str(run / kind)
    assert "holds values that are not finite" in found.sentence
    (alone,) = examine(run / kind)
    assert alone.level == "problem"
    if kind.startswith("checkpoints"):
        assert "step-00000036" in found.remedy


def test_a_checkpoint_that_was_set_aside_is_noted(run):
    aside = (run / "checkpoints/step-00000036.safetensors").rename(
        run / "checkpoints/step-00000036.not-finite.safetensors"
    )
    (found,) = (finding for finding in examine(run) if finding.place == str(aside))
    assert found.level == "note"
    assert "set aside" in found.sentence


def test_a_folder_in_use_and_half_files_are_noted(run):
    (run / "checkpoints" / ".step-00000044.safetensors.7-7.aside").write_bytes(b"half")
    with open(run / "lock", "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        findings = examine(run)
    assert [finding.level for finding in named(findings, run / "lock")] == ["note"]
    (left,) = named(findings, run / "checkpoints" / ".step-00000044.safetensors.7-7.aside")
    assert left.remedy == f"'fewstep checkpoints {run} --prune 2' removes it."
    assert named(examine(run), run / "lock") == []


@pytest.fixture
def offline(monkeypatch, tmp_path) -> None:
    """An empty folder and cache, no extras, and no network."""

    def fetch(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    monkeypatch.setattr("fewstep.doctor.requirements.version_of", lambda _: None)


def on_hub(recipe):
    return recipe.task == "distill" and recipe.teacher.kind == "pipeline"


@pytest.mark.usefixtures("offline")
def test_every_shipped_recipe_is_ready_or_says_what_it_lacks():
    for name in shipped_names():
        first, *rest = examine(name)
        assert (first.level, first.place) == ("ok", name)
        recipe, lacking = load_recipe(name), {finding.place: finding for finding in problems(rest)}
        expected = {
            "teacher.path": recipe.task == "distill" and recipe.teacher.kind == "file",
            "data.path": recipe.data is not None and recipe.data.kind == "images",
            "teacher": recipe.task == "distill" and recipe.teacher.pipeline is not None and not on_hub(recipe),
            "teacher.kind: pipeline": on_hub(recipe),
            "prompts": on_hub(recipe),
            "student.start": recipe.task == "distill" and bool(vars(recipe.student).get("start")),
            "evaluation.features.path": recipe.evaluation.features.kind == "classifier",
            "evaluation.features.kind: inception": recipe.evaluation.features.kind == "inception",
        }
        assert set(lacking) == {key for key, is_so in expected.items() if is_so}, name
        assert all(finding.remedy for finding in lacking.values())
        if "teacher.path" in lacking:
            assert f"'fewstep pretrain {recipe.teacher.recipe}'" in lacking["teacher.path"].remedy


def recipe_with(path: Path, **sections: dict) -> Path:
    path.write_text(yaml.safe_dump({**yaml.safe_load(shipped_text("digits-disback")), **sections}))
    return path


def test_a_recipe_finds_its_files(tmp_path, monkeypatch):
    """Teacher, start, data and feature network where the recipe says; damaged ones, and a set of
    other classes, are problems.
    """
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    weights = resources.files("fewstep.zoo") / "weights"
    for name in ("digits", "digits-features"):
        (tmp_path / f"{name}.safetensors").write_bytes((weights / f"{name}.safetensors").read_bytes())
    write_archive(tmp_path / "two.zip", [(Image.new("RGB", (8, 8), (label * 200, 0, 0)), label) for label in (0, 1)])
    sections = {
        "teacher": {"kind": "file", "path": "digits.safetensors"},
        "student": {"kind": "network", "network": {"kind": "small-unet"}, "start": "digits.safetensors"},
        "data": {"kind": "images", "path": "two.zip", "channels": 1, "classes": 2},
    }
    features = {
        **yaml.safe_load(shipped_text("digits-disback"))["evaluation"],
        "features": {"kind": "classifier", "path": "digits-features.safetensors"},
    }
    recipe = recipe_with(tmp_path / "a.yaml", **sections, evaluation=features)
    findings = examine(recipe)
    assert problems(findings) == []
    assert [finding.place for finding in findings] == [
        str(recipe),
        "teacher.path",
        "student.start",
        "data.path",
        "evaluation.features.path",
    ]
    for name, key in (
        ("digits.safetensors", {"teacher.path", "student.start"}),
        ("two.zip", {"data.path"}),
        ("digits-features.safetensors", {"evaluation.features.path"}),
    ):
        whole = (tmp_path / name).read_bytes()
        truncated(tmp_path / name)
        found = problems(examine(recipe))
        assert {finding.place for finding in found} == key
        assert all(name in finding.sentence for finding in found)
        (tmp_path / name).write_bytes(whole)
    recipe_with(recipe, **{**sections, "data": {**sections["data"], "classes": 3}}, evaluation=features)
    assert [finding.sentence for finding in problems(examine(recipe))] == [
        f"{tmp_path / 'two.zip'} has 2 classes, 'data.classes' says 3."
    ]


@pytest.mark.usefixtures("offline")
def test_extras_and_addresses_are_told_before_they_are_needed(tmp_path):
    features = yaml.safe_load(shipped_text("digits-disback"))["evaluation"]
    recipe = recipe_with(
        tmp_path / "a.yaml",
        teacher={"kind": "diffusers", "path": "google/ddpm-cifar10-32"},
        data={"kind": "huggingface", "name": "someone/something"},
        evaluation={**features, "features": {"kind": "inception", "weights": "nowhere.pth"}},
    )
    findings = examine(recipe)
    assert {finding.place: finding.remedy for finding in problems(findings) if "pip" in finding.remedy} == {
        "teacher.kind: diffusers": "pip install 'fewstep[diffusers]'",
        "data.kind: huggingface": "pip install 'fewstep[data]'",
        "evaluation.features.kind: inception": "pip install 'fewstep[metrics]'",
    }
    assert [finding.level for finding in named(findings, "evaluation.features.weights")] == ["problem"]
    assert [finding.level for key in ("teacher.path", "data.name") for finding in named(findings, key)] == [
        "note",
        "note",
    ]
    recipe_with(recipe, data={"kind": "webdataset", "urls": "shards-{000..001}.tar"})
    assert [finding.sentence for finding in named(examine(recipe), "data.urls")] == [
        f"no file is called {tmp_path}/shards-{{000..001}}.tar."
    ]
    for number in (0, 1):
        (tmp_path / f"shards-00{number}.tar").touch()
    assert [finding.sentence for finding in named(examine(recipe), "data.urls")] == ["2 shards are there."]
    url = "https://example.org/teacher.pkl"
    published = {"kind": "nvidia", "path": url, "network": "cifar10-ddpmpp", "sha256": "0" * 64}
    recipe_with(recipe, teacher=published)
    assert [finding.level for finding in named(examine(recipe), "teacher.path")] == ["note"]
    cached_file(url).parent.mkdir()
    cached_file(url).write_bytes(b"another")
    # Another file of that address is not the one that the recipe means.
    (found,) = named(examine(recipe), "teacher.path")
    assert (found.level, found.sentence) == ("note", f"{url} was not fetched yet.")
    recipe_with(recipe, teacher={**published, "path": "http://example.org/teacher.pkl"})
    assert "only https is fetched" in problems(examine(recipe))[0].sentence


def test_recipes_that_cannot_be_read_or_do_not_go_together(tmp_path):
    assert problems(examine("digits-disbak"))[0].remedy == "Did you mean 'digits-disback'?"
    assert "no such recipe file" in problems(examine(tmp_path / "nowhere.yaml"))[0].sentence
    recipe = recipe_with(tmp_path / "a.yaml", states={"kind": "rollout"})
    assert "cannot be combined" in problems(examine(recipe))[0].sentence
    recipe.write_text("task: [")
    assert "is not valid YAML" in problems(examine(recipe))[0].sentence
    assert "is not a run folder" in problems(examine(tmp_path))[0].sentence


def test_a_file_of_weights_says_what_it_is(made, tmp_path):
    weights = resources.files("fewstep.zoo") / "weights"
    (tmp_path / "features.safetensors").write_bytes((weights / "digits-features.safetensors").read_bytes())
    write_tensors(tmp_path / "loose.safetensors", {"a": torch.zeros(2)}, {})
    said = {
        made
        / "checkpoints"
        / "step-00000040.safetensors": "is the checkpoint of step 40 (22 steps into stage 2), whole",
        made / "path" / "node-2.safetensors": "is node 2 of a degradation path",
        made / "adapter.safetensors": "is an adapter of rank 2",
        made / "student.safetensors": "is whole: ",
        tmp_path / "features.safetensors": "is whole: digit-classifier",
        tmp_path / "loose.safetensors": "is whole; it holds tensors, but no model.",
    }
    for path, sentence in said.items():
        (found,) = examine(path)
        assert (found.level, found.place) == ("ok", str(path))
        assert found.sentence.startswith(sentence)
        spoilt = tmp_path / "spoilt" / path.name
        spoilt.parent.mkdir(exist_ok=True)
        shutil.copy(path, spoilt)
        for damage in (flipped, truncated, replaced, emptied):
            damage(spoilt)
            (found,) = examine(spoilt)
            assert (found.level, found.place) == ("problem", str(spoilt))
    (tmp_path / "bomb.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "os.system" in problems(examine(tmp_path / "bomb.pkl"))[0].sentence
    assert problems(examine(tmp_path / "nowhere.safetensors"))[0].sentence == "there is no such file."
    assert "nothing is fetched here" in problems(examine("https://example.org/a.pkl"))[0].sentence


def test_this_machine(monkeypatch, tmp_path):
    findings = examine()
    assert not has_problem(findings)
    assert {"python", "fewstep", "cpu", "threads", "cache", "disk", *(f"extra '{name}'" for name in EXTRAS)} <= {
        finding.place for finding in findings
    }
    assert f"torch {torch.__version__}" in named(findings, "fewstep")[0].sentence
    monkeypatch.setattr(
        "fewstep.doctor.environment.version_of", lambda package: None if package == "webdataset" else "1.2"
    )
    by_place = {finding.place: finding for finding in examine()}
    assert (by_place["extra 'data'"].level, by_place["extra 'data'"].sentence) == (
        "note",
        "webdataset not installed; there is datasets 1.2.",
    )
    assert (by_place["extra 'metrics'"].level, by_place["extra 'metrics'"].sentence) == ("ok", "torch-fidelity 1.2.")
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file" / "cache"))
    assert [finding.place for finding in problems(examine())] == ["cache"]


def test_the_extras_are_those_of_the_package():
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert {
        name: [package.partition(">")[0] for package in packages]
        for name, packages in declared.items()
        if name != "test"
    } == {name: list(each) for name, each in EXTRAS.items()}


def test_the_command_exits_with_2_when_something_is_wrong(run, monkeypatch, capsys):
    def called(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["fewstep", "doctor", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command()
        captured = capsys.readouterr()
        assert captured.err == ""
        return int(ended.value.code or 0), captured.out

    code, text = called(str(run))
    assert code == 0
    assert text.splitlines()[0].split(maxsplit=1) == ["ok", f"{run}/recipe.yaml: is a valid recipe of 40 steps."]
    replaced(run / "student.safetensors")
    code, text = called(str(run), "--json")
    assert code == 2
    found = [Finding(**each) for each in json.loads(text)["findings"]]
    assert found == examine(run)
    code, text = called(str(run))
    assert code == 2
    assert text.splitlines()[-1].startswith("1 problem, ")
    assert any(line.startswith("           Make it again") for line in text.splitlines())


def test_a_pretraining_is_a_run_as_well(tmp_path):
    folder = pretrain(
        "mixture2d-teacher", ["training.steps=2", "training.batch=8", "evaluation.samples=20"], tmp_path / "teacher"
    )
    findings = examine(folder)
    assert problems(findings) == []
    assert [finding.level for finding in named(findings, folder / "model.safetensors")] == ["ok"]
    flipped(folder / "model.safetensors")
    (found,) = problems(examine(folder))
    assert (found.place, found.remedy) == (
        str(folder / "model.safetensors"),
        (
            f"Make it again from the newest checkpoint: 'fewstep pretrain {folder / 'recipe.yaml'} --out "
            f"{folder} --resume'."
        ),
    )
    pretrain(folder / "recipe.yaml", (), folder, resume=True)
    assert problems(examine(folder)) == []


def test_a_path_that_is_gone_is_missed_once_it_was_recorded(run):
    shutil.rmtree(run / "path")
    assert {finding.place for finding in problems(examine(run))} == {str(run / "path" / "manifest.json")}
    for step in (40, 36):
        (run / "checkpoints" / f"step-{step:08d}.safetensors").unlink()
    assert problems(examine(run)) == []


def test_a_picture_is_held_against_its_checksums(run):
    """Where decoding looks away: in the checksum of the header and of the pixels."""
    picture = run / "samples" / "directions.png"
    whole = picture.read_bytes()
    for position in (30, len(whole) - 14):
        picture.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert [finding.place for finding in problems(examine(run))] == [str(picture)]
