"""The command line, as a user meets it: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_kit import ENVIRONMENT, called, failed, fewstep, small_recipe

import fewstep as fs
from fewstep.command.cli import FIRST, app
from fewstep.system.files import read_tensors, write_tensors

COMMANDS = [str(command.name) for command in app.registered_commands]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short digits run, made by the command line."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    result = called(
        "distill", "digits-disback", "--set", "training.steps=4", "--set", "evaluation.samples=100", "--out", folder
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_help_shows_an_example_for_every_command():
    assert all(name in called("--help").stdout for name in COMMANDS)
    for name in COMMANDS:
        assert f"Example: fewstep {name}" in called(name, "--help").stdout


def test_without_a_command_the_first_ones_are_said_and_all_others_by_what_they_are_for():
    shown = called()
    assert shown.returncode == 0
    first, rest = shown.stdout.partition("  make:")[::2]
    assert [line.split()[1] for line in first.splitlines() if line.startswith("  fewstep ")] == list(FIRST)
    others = {name.strip() for line in rest.splitlines() for name in line.rpartition(":")[2].split(",")}
    assert set(COMMANDS) - set(FIRST) <= others
    assert max(map(len, shown.stdout.splitlines())) <= 100


def test_help_imports_nothing_heavy():
    """What makes `--help` quick: neither torch nor numpy nor matplotlib is imported (a law, where a
    stopwatch would depend on the machine).
    """
    code = (
        "import sys, fewstep, fewstep.command.cli; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', "
        "'matplotlib', 'diffusers', 'jinja2', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_package_and_its_parts_stays_lazy():
    code = (
        "import sys, fewstep as fs; fs.states, fs.training, fs.zoo; sys.exit(any(m in sys.modules for m in "
        "('matplotlib', 'diffusers', 'jinja2', 'PIL', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_recipes_lists_and_prints():
    listing = called("recipes").stdout
    assert "digits-disback" in listing
    assert "mixture2d-disback" in listing
    assert called("recipes", "digits-disback").stdout.startswith("# DisBack")
    assert "did you mean 'digits-disback'" in failed(called("recipes", "digits-disbak"))


def test_a_run_folder_holds_what_it_promises(run):
    for name in (
        "recipe.yaml",
        "metrics.jsonl",
        "student.safetensors",
        "report.html",
        "lock",
        "path/manifest.json",
        "path/node-4.safetensors",
        "samples/final.png",
    ):
        assert (run / name).is_file(), name
    assert list((run / "checkpoints").glob("*.safetensors"))
    recipe = (run / "recipe.yaml").read_text()
    assert "steps: 4\n" in recipe


def test_four_steps_means_at_least_one_for_each_stage_and_node(run):
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    nodes = [entry["target_node"] for entry in entries if "target_node" in entry]
    # One step at each of nodes 3, 2, 1 and one at the teacher; a line tells where its step left the
    # target.
    assert nodes == [2, 1, 0, 0]


def test_the_students_file_names_no_date_path_or_run(run, tmp_path):
    other = tmp_path / "elsewhere" / "another-name"
    time.sleep(1.1)
    assert (
        fewstep(
            "distill", "digits-disback", "--set", "training.steps=4", "--set", "evaluation.samples=100", "--out", other
        ).returncode
        == 0
    )
    assert (other / "student.safetensors").read_bytes() == (run / "student.safetensors").read_bytes()


def test_sample_writes_a_picture_and_an_array_and_is_reproducible(run, tmp_path):
    result = fewstep(
        "sample",
        run,
        "-n",
        "12",
        "--class",
        "7",
        "--seed",
        "3",
        "--out",
        tmp_path / "a.png",
        "--npz",
        tmp_path / "a.npz",
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        samples = arrays["samples"]
    assert samples.shape == (12, 1, 8, 8)
    sampler = fs.load(run)
    np.testing.assert_array_equal(samples, sampler(12, seed=3, classes=7).numpy())
    # Sample i of a seed is the same whatever n is; two steps make another sample.
    np.testing.assert_allclose(samples[:5], sampler(5, seed=3, classes=7).numpy(), atol=1e-5)
    assert not np.allclose(samples, sampler(12, seed=3, classes=7, steps=2).numpy())
    assert samples.min() >= -1
    assert samples.max() <= 1


def test_sample_teacher(run, tmp_path):
    result = called(
        "sample", run, "--teacher", "--steps", "5", "-n", "10", "--guidance", "2", "--out", tmp_path / "t.png"
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "t.png").is_file()


def test_evaluate_prints_one_object_and_writes_it(run):
    result = called("evaluate", run, "--json", "--draws", "2", "--teacher-steps", "3", "--teacher-steps", "1")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert set(printed["teacher"]) == {"3", "1"}
    assert set(printed["student"]) == {"1"}
    for entry in (*printed["teacher"].values(), *printed["student"].values()):
        assert {"fd", "fd_spread", "nfe", "ms_per_image", "accuracy"} <= set(entry)
    assert [printed["teacher"]["3"]["nfe"], printed["student"]["1"]["nfe"]] == [3, 1]
    assert json.loads((run / "evaluation.json").read_text()) == printed
    table = called("evaluate", run, "--draws", "1", "--teacher-steps", "1").stdout
    assert "teacher, 1 step" in table
    assert "student, 1 step" in table


def test_compare_and_report(run, tmp_path):
    other = tmp_path / "other"
    assert (
        called(
            "distill",
            "digits-diff-instruct",
            "--set",
            "training.steps=4",
            "--set",
            "evaluation.samples=100",
            "--out",
            other,
        ).returncode
        == 0
    )
    result = called("compare", run, other, "--json", "--out", tmp_path / "c.png")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert set(printed) == {str(run), str(other)}
    assert set(printed[str(run)]["reaches"]) == {str(other)}
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "level" in called("compare", run, other, "--out", tmp_path / "c.png").stdout
    assert called("report", run).stdout.strip() == str(run / "report.html")


def test_pretrain_makes_a_teacher_that_distill_takes(tmp_path):
    made = called(
        "pretrain",
        "mixture2d-teacher",
        "--set",
        "training.steps=5",
        "--set",
        "evaluation.samples=50",
        "--out",
        tmp_path / "teacher",
    )
    assert made.returncode == 0, made.stderr
    model = tmp_path / "teacher" / "model.safetensors"
    recipe = small_recipe(tmp_path / "small.yaml")
    settings = ["--set", "teacher.kind=file", "--set", f"teacher.path={model}", "--set", "training.steps=8"]
    text = recipe.read_text().replace("  name: mixture2d\n", "")
    recipe.write_text(text)
    assert called("distill", recipe, *settings, "--out", tmp_path / "run").returncode == 0


def test_bad_input_is_one_sentence(run, tmp_path):
    recipe = tmp_path / "file-teacher.yaml"
    recipe.write_text(
        called("recipes", "digits-disback").stdout.replace(
            "{kind: shipped, name: digits}", "{kind: file, path: nowhere.safetensors}"
        )
    )
    refused = {
        ("distill", "digits-disback", "--set", "training.step=3"): "did you mean 'steps'",
        ("distill", "digits-disback", "--set", "training.steps=-1"): "'training.steps' is -1",
        ("distill", "digits-disback", "--set", "training.steps=ten"): "'training.steps' is 'ten'",
        ("distill", "digits-disback", "--set", "training.placement.teacher=cuda:99"): "'training.placement.teacher' is "
        "'cuda:99', which needs a GPU of that number",
        ("distill", "digits-disback", "--set", "training.placement.teacher=mps"): "'mps' is no place for networks",
        ("distill", "nothing.yaml"): "no such recipe file",
        ("distill", "digits-teacher"): "recipe for 'fewstep pretrain'",
        ("pretrain", "digits-disback"): "recipe for 'fewstep distill'",
        ("distill", str(recipe), "--out", str(tmp_path / "out")): "nowhere.safetensors: there is no such file",
        ("distill", "digits-disback", "--out", str(run)): "holds a run already",
        ("distill", "digits-diff-instruct", "--out", str(run), "--resume"): "has another recipe",
        ("sample", str(tmp_path)): "has no student.safetensors",
        ("sample", str(run), "--class", "10"): "classes must be in [0, 9]",
        ("sample", str(run), "--guidance", "2"): "only the teacher can be guided",
        ("export", str(run), "out"): "its teacher ('teacher.kind: shipped') is no text-to-image pipeline",
        ("export", str(tmp_path), "out"): "is not a run folder",
        ("evaluate", str(tmp_path)): "is not a run folder",
        ("report", str(tmp_path / "nowhere")): "nowhere",
        ("compare", str(run)): "at least two",
    }
    for arguments, sentence in refused.items():
        assert sentence in failed(called(*arguments, cwd=tmp_path)), arguments


def test_a_corrupt_teacher_is_named(run, tmp_path):
    student = run / "student.safetensors"
    content = bytearray(student.read_bytes())
    content[-100] ^= 1
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(bytes(content))
    with pytest.raises(fs.errors.UserError, match=r"broken.safetensors: its content does not match its checksum"):
        fs.load(broken)
    tensors, metadata = read_tensors(student)
    name = sorted(tensors)[0]
    tensors["renamed"] = tensors.pop(name)
    write_tensors(tmp_path / "renamed.safetensors", tensors, metadata)
    with pytest.raises(fs.errors.UserError, match=rf"renamed.safetensors: lacks tensor '{name}'"):
        fs.load(tmp_path / "renamed.safetensors")


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(tmp_path):
    """A file-size limit between the log's and a checkpoint's size stands for the full disk."""
    recipe = small_recipe(tmp_path / "small.yaml", checkpoint_every=10)
    folder = tmp_path / "run"
    assert called("distill", recipe, "--out", folder).returncode == 0
    newest = max((folder / "checkpoints").iterdir())
    before = newest.read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    sentence = failed_last_line(
        fewstep("distill", recipe, "--out", folder, "--resume", "--set", "training.steps=60", preexec=limit)
    )
    assert "could not be written: it would exceed the file-size limit" in sentence
    assert max((folder / "checkpoints").iterdir()) == newest
    assert newest.read_bytes() == before
    result = called("distill", recipe, "--out", folder, "--resume", "--set", "training.steps=60")
    assert result.returncode == 0, result.stderr


def failed_last_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/usr/bin/setpriv").exists(),
    reason="root may write anywhere, and there is no setpriv to become someone else",
)
def test_no_permission_to_write_is_one_sentence(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    command = [sys.executable, "-m", "fewstep", "distill", "mixture2d-disback", "--out", str(folder / "run")]
    if os.geteuid() == 0:
        # Root without the capability that overrides permissions; the folder then must not be
        # root's.
        os.chown(folder, 65534, 65534)
        command = [
            "/usr/bin/setpriv",
            "--bounding-set",
            "-dac_override,-dac_read_search",
            "--inh-caps",
            "-dac_override,-dac_read_search",
            *command,
        ]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=120)
    assert "writing is not permitted" in failed_last_line(result)
