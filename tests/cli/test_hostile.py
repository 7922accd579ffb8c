"""What a user may hand to the command line by mistake or by malice: refused in one sentence, at
once, and without the memory that it claims (docs/security.md, benchmarks/hostile.py).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import typer
import yaml
from cli_kit import small_recipe
from pydantic import BaseModel

from fewstep.command import entry
from fewstep.data import open_images
from fewstep.denoisers import EDMInputs, Generator, NetworkDenoiser, load_model, save_model
from fewstep.doctor.records import check_records
from fewstep.errors import LONGEST, UserError, all_without_secrets, one_line, without_secrets
from fewstep.metrics.frechet import features_of
from fewstep.networks import build
from fewstep.networks.kinds.bounds import at_most, machine_numbers
from fewstep.networks.kinds.network_files import load_network, save_network
from fewstep.networks.kinds.registry import kinds
from fewstep.prediction import EDM
from fewstep.recipes import load_recipe, shipped_names, shipped_text
from fewstep.report import write_run_report
from fewstep.report.gather import gather
from fewstep.report.words import is_number, number
from fewstep.runs import RunFolder, compare, distill, load
from fewstep.schedule import KarrasVE
from fewstep.system.files import read_tensors, write_tensors

BILLION = 10**9


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a refused command, called in this process."""
    before, sys.argv = sys.argv, ["fewstep", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            entry.run_command()
    finally:
        sys.argv = before
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("fewstep: ")
    assert lines[0].isprintable()
    return lines[0]


@pytest.fixture
def denoiser() -> NetworkDenoiser:
    """One of the plane."""
    return NetworkDenoiser(
        build({"kind": "residual-mlp", "width": 8, "depth": 1}), KarrasVE(), EDM(0.5), EDMInputs(0.5), (2,)
    )


def student(path: Path, **changes: object) -> Path:
    """A generator's file, with changes to what it says besides the model."""
    model = Generator(build({"kind": "latent-mlp", "latent": 2, "dim": 2, "width": 8, "depth": 2}), (2,), (2,))
    sampling = {"jump": "renoise", "grid": "rho", "steps": 1, "gamma": 0.0, "guidance": None, "rule": "euler"}
    save_model(
        path, model, {"prior": {"time": 1.0, "scale": 1.0}, "range": [-1.0, 1.0], "sampling": sampling, **changes}
    )
    return path


def rewritten(path: Path, change) -> Path:
    """The file with a change to its metadata, its checksum right."""
    tensors, metadata = read_tensors(path)
    change(metadata)
    write_tensors(path, tensors, metadata)
    return path


# What is said


def test_a_sentence_is_one_printable_line_of_bounded_length() -> None:
    assert one_line("plain, äöü and 数字") == "plain, äöü and 数字"
    assert one_line("a\nb\x1b[31mc\u202ed\ud800") == r"a\nb\x1b[31mc\u202ed\ud800"
    long = one_line("a" * 5000 + "b" * 5000)
    assert long == "a" * (LONGEST // 2) + " ... " + "b" * (LONGEST // 2)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://example.org/a/b.pkl", "https://example.org/a/b.pkl"),
        ("https://me:pass@word@example.org/b.pkl#x", "https://***@example.org/b.pkl#x"),
        ("https://token@example.org", "https://***@example.org"),
        ("https://example.org/b.pkl?X-Signature=s3cret&x=1", "https://example.org/b.pkl?***"),
        ("S3://me:secret@example.org/b?c", "S3://***@example.org/b?***"),
        ("folder/mail@example.org?", "folder/mail@example.org?"),
    ],
)
def test_what_opens_an_address_is_not_shown(address, shown) -> None:
    assert without_secrets(address) == shown
    assert one_line(f"'{address}': is it there? ({address})") == f"'{shown}': is it there? ({shown})"
    assert all_without_secrets({"a": [address, 1, None]}) == {"a": [shown, 1, None]}


@pytest.mark.parametrize(
    "text", ["a" * 300_000, "a." * 150_000, "a://" * 75_000, "https://" + "@" * 300_000, "https://" + "?" * 300_000]
)
def test_a_long_text_is_read_once_for_its_addresses(text) -> None:
    """A pattern that began anew at each character would not come back within the hour."""
    assert without_secrets(text)[:2] == text[:2]


def test_a_secret_address_is_in_no_sentence_and_no_report(capsys, monkeypatch, tmp_path) -> None:
    values = yaml.safe_load(shipped_text("mixture2d-diff-instruct"))
    path, run = small_recipe(tmp_path / "mine.yaml", steps=4), tmp_path / "run"
    distill(path, (), run)
    secret = "https://me:s3cret@localhost:9/b.pkl?signature=s3cret"
    (tmp_path / "far.yaml").write_text(
        yaml.safe_dump({**values, "teacher": {"kind": "nvidia", "network": "ffhq64-ddpmpp", "path": secret}})
    )
    assert "https://***@localhost:9/b.pkl?***: could not be fetched" in refused(
        capsys, "distill", tmp_path / "far.yaml", "--out", tmp_path / "out"
    )
    monkeypatch.setattr(sys, "argv", ["fewstep", "doctor", str(tmp_path / "far.yaml")])
    with pytest.raises(SystemExit):
        entry.run_command()
    said = capsys.readouterr()
    assert "https://***@localhost:9/b.pkl?***" in said.out
    assert "s3cret" not in said.out + said.err
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(
        yaml.safe_dump({**kept, "teacher": {"kind": "nvidia", "network": "ffhq64-ddpmpp", "path": secret}})
    )
    page = write_run_report(run).read_text()
    assert "https://***@localhost:9/b.pkl?***" in page
    assert "s3cret" not in page


@pytest.mark.parametrize("word", ["\x1b[31mred", "a\nb", "\ud800", "a" * 50_000, "\x00"])
def test_what_a_key_or_value_holds_stays_in_its_line(capsys, tmp_path, word) -> None:
    values = yaml.safe_load(shipped_text("mixture2d-disback"))
    (tmp_path / "key.yaml").write_text(yaml.safe_dump({**values, word: 1}))
    values["method"]["weighting"]["kind"] = word
    (tmp_path / "value.yaml").write_text(yaml.safe_dump(values))
    for name in ("key", "value"):
        assert len(refused(capsys, "distill", tmp_path / f"{name}.yaml", "--out", tmp_path / "out")) < LONGEST + 100


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_memory_that_is_not_there_is_a_sentence(capsys, monkeypatch, error) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(entry, "app", fail)
    assert "not enough memory" in refused(capsys)


@pytest.mark.parametrize("inside", [True, False])
def test_an_interruption_is_a_sentence(capsys, monkeypatch, inside) -> None:
    """Also one that the library of commands catches, which makes a bare exit code of it."""

    def fail() -> None:
        raise KeyboardInterrupt

    app = typer.Typer()
    app.command()(fail)
    monkeypatch.setattr(entry, "app", app if inside else fail)
    monkeypatch.setattr(sys, "argv", ["fewstep"])
    with pytest.raises(SystemExit) as ended:
        entry.run_command()
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == "fewstep: interrupted."


@pytest.mark.parametrize(
    "where",
    [
        "entry.app = lambda: Held() and None",  # a callback, here that of an object's end
        "entry.app = lambda: atexit.register(interrupt)",  # the interpreter's own end
        "entry._fail = interrupt; entry.app = interrupt",  # while the first interruption is being told
    ],
)
def test_an_interruption_that_nobody_can_catch_is_the_same_sentence(where) -> None:
    script = f"""
import atexit
from fewstep.command import entry

def interrupt(*_):
    raise KeyboardInterrupt

class Held:
    __del__ = interrupt

{where}
entry.run_command()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stderr.strip()) == (130, "fewstep: interrupted.")


def test_another_defect_keeps_its_traceback(monkeypatch) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(entry, "app", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        entry.run_command()


def test_nothing_that_is_written_or_said_holds_the_environment(capsys, monkeypatch, tmp_path) -> None:
    secret = "hf_" + "s3cr3t" * 6
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)
    path = small_recipe(tmp_path / "mine.yaml", steps=4)
    run = tmp_path / "run"
    for arguments in (
        ("distill", path, "--out", run),
        ("report", run),
        ("doctor", run),
        ("doctor",),
        ("distill", path, "--out", run),
        ("inspect", run / "student.safetensors"),
    ):
        monkeypatch.setattr(sys, "argv", ["fewstep", *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            entry.run_command()
    said = capsys.readouterr()
    assert secret not in said.out + said.err
    files = [file for file in run.rglob("*") if file.is_file()]
    assert len(files) > 8
    assert not any(secret.encode() in file.read_bytes() for file in files)


# Recipes


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("training: {steps: 1}\ntraining: {steps: 2}", "the key 'training' is given twice"),
        ("a: {b: 1, b: 1}", "the key 'b' is given twice"),
        ("a: !!timestamp a", "tags"),
        ("!!map {a: 1}", "tags"),
        ("a: !mine 1", "tags"),
        ("? [a]\n: b", "a key must be a word"),
        ("a: " + "[" * 20_000, "nested more than 50 deep"),
        ("- " * 2000 + "a", "recursion"),
        ("a: " + "9" * 5000, "digits"),
    ],
)
def test_yaml_that_no_recipe_needs_is_refused(tmp_path, text, sentence) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"not valid YAML: .*{sentence}"):
        load_recipe(path)


def test_merges_and_dates_are_words(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("task: distill\n<<: {a: 1}\n")
    with pytest.raises(UserError, match=r"unknown key '<<'|is missing"):
        load_recipe(path)
    with pytest.raises(UserError, match=r"'training\.precision' is '2001-99-99'"):
        load_recipe("digits-disback", ["training.precision=2001-99-99"])


@pytest.mark.parametrize(
    "value",
    [
        "!!timestamp a",
        "!!int 'a'",
        "!!float a",
        "[" * 20_000,
        "9" * 5000,
        "&a [*a]",
        "!!python/object/apply:os.system [ls]",
    ],
)
def test_an_override_is_read_as_carefully_as_a_file(capsys, tmp_path, value) -> None:
    assert "not valid YAML" in refused(
        capsys, "distill", "digits-disback", "--out", tmp_path / "out", "--set", f"a.b.c={value}"
    )


def test_a_value_is_quoted_in_a_few_words() -> None:
    with pytest.raises(UserError, match=r"'training.batch' is a whole number of 40005 bits: .*") as caught:
        load_recipe("digits-disback", ["training.batch=0x1" + "0" * 10_001])
    assert len(str(caught.value)) < 300
    with pytest.raises(UserError) as caught:
        load_recipe("digits-disback", ["training.batch=" + "[" * 40 + "]" * 40])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["digits-disback", "mixture2d-cd", "digits-dmd2-ddil", "emoji32-teacher"])
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", str(-BILLION), str(BILLION), "1" + "0" * 40])
def test_no_number_of_a_recipe_may_be_endless(name, value) -> None:
    """Every count and every measure of a section, wherever it is; floats alone may be large."""

    def walk(section, before: str) -> None:
        for key in type(section).model_fields:
            found, dotted = getattr(section, key), f"{before}{key}"
            if isinstance(found, BaseModel):
                walk(found, dotted + ".")
            elif (type(found) is int and "seed" not in key) or (
                type(found) is float and value in (".nan", ".inf", "-.inf")
            ):
                with pytest.raises(UserError, match=key):
                    load_recipe(name, [f"{dotted}={value}"])

    walk(load_recipe(name), "")


def test_seeds_are_what_torch_takes() -> None:
    for seed in (2**63 - 1, -(2**63)):
        torch.Generator().manual_seed(load_recipe("digits-disback", [f"training.seed={seed}"]).training.seed)
    with pytest.raises(UserError, match=r"training\.seed"):
        load_recipe("digits-disback", [f"training.seed={2**63}"])


@pytest.mark.parametrize("key", ["half_width", "std"])
def test_made_up_points_stay_where_their_squares_are_numbers(key) -> None:
    assert load_recipe("mixture2d-teacher", [f"data.{key}=1.0e+6"])
    with pytest.raises(UserError, match=rf"'data\.{key}'"):
        load_recipe("mixture2d-teacher", [f"data.{key}=1.0e+308"])


def test_every_shipped_recipe_is_within_the_bounds() -> None:
    assert all(load_recipe(name) for name in shipped_names())


def test_made_up_images_must_fit() -> None:
    data = "data={kind: waves, shape: [3, 512, 512], samples: 1000}"
    with pytest.raises(UserError, match=r"'samples' .* more than .* values"):
        load_recipe("emoji32-disback", [data])


# Networks and files of weights


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"kind": "residual-mlp", "width": 10**6}, "no room|allocate"),
        ({"kind": "residual-mlp", "width": 10**7}, "'width' is more than 1,000,000"),
        ({"kind": "residual-mlp", "width": 2, "depth": 10**6}, "more than 20,000"),
        ({"kind": "residual-mlp", "width": 0}, "'width' is 0, and must be at least 1"),
        ({"kind": "residual-mlp", "dim": -1}, "'dim' is -1, and must be at least 1"),
        ({"kind": "residual-mlp", "width": "a"}, "'width' is 'a', and must be a whole number"),
        ({"kind": "residual-mlp", "classes": {}}, "'classes' is {}, and must be a whole number"),
        ({"kind": ["residual-mlp"]}, "unknown kind"),
    ],
)
def test_a_network_that_cannot_be_is_refused_before_memory_is_taken(description, sentence) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        build(description)
    assert "\n" not in str(caught.value)


def test_the_bound_counts_parameters_and_ends_with_its_context() -> None:
    with at_most(8, "a test"):
        torch.nn.Linear(3, 2)
    with pytest.raises(UserError, match="more than 7 parameters, for which a test has no room"), at_most(7, "a test"):
        torch.nn.Linear(3, 2)
    torch.nn.Linear(30, 20)


@pytest.mark.parametrize("kind", ["small-unet", "residual-mlp", "fastgan", "digit-classifier"])
def test_trying_that_a_network_fits_draws_nothing(kind) -> None:
    """Its weights are those that the seed alone would give."""
    torch.manual_seed(5)
    built = build({"kind": kind}).state_dict()
    torch.manual_seed(5)
    plain = kinds()[kind].cls().state_dict()
    assert all(torch.equal(built[name], value) for name, value in plain.items())


def test_on_the_meta_device_a_network_may_be_of_any_size() -> None:
    """A plan counts there what no machine here could hold."""
    with torch.device("meta"):
        assert sum(p.numel() for p in build({"kind": "residual-mlp", "width": 10**6}).parameters()) > machine_numbers()


def test_a_small_file_cannot_ask_for_a_large_network(tmp_path, denoiser) -> None:
    save_model(tmp_path / "model", denoiser)
    with pytest.raises(
        UserError, match=r"model: the network has more than .* parameters, for which the file has no room"
    ):
        load_model(rewritten(tmp_path / "model", lambda metadata: metadata["model"]["network"].update(width=2000)))
    save_network(tmp_path / "network", build({"kind": "digit-classifier", "width": 8, "features": 8}))
    with pytest.raises(
        UserError, match=r"network: the network has more than .* parameters, for which the file has no room"
    ):
        load_network(rewritten(tmp_path / "network", lambda metadata: metadata["network"].update(width=1000)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_wherever_they_are_loaded(
    capsys, tmp_path, denoiser, value, monkeypatch
) -> None:
    torch.nn.init.constant_(denoiser.network.leave.bias, value)
    with monkeypatch.context() as older:
        # We do not write such a file; others may.
        older.setattr("fewstep.system.files.first_not_finite", lambda tensors: "")
        save_model(tmp_path / "model.safetensors", denoiser)
    for arguments in (
        (
            "distill",
            "mixture2d-disback",
            "--out",
            tmp_path / "one",
            "--set",
            f"teacher={{kind: file, path: {tmp_path / 'model.safetensors'}}}",
        ),
        (
            "distill",
            "mixture2d-disback",
            "--out",
            tmp_path / "two",
            "--set",
            f"student.start={tmp_path / 'model.safetensors'}",
        ),
        ("sample", tmp_path / "model.safetensors", "-n", "1"),
        ("inspect", tmp_path / "model.safetensors"),
    ):
        assert "tensor 'network.leave.bias' holds values that are not finite" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (("shape",), [3], r"makes samples of shape \(2,\)|does not take"),
        (("shape",), [BILLION], "a shape of"),
        (("shape",), "2", "a shape of"),
        (("shape",), [2.0], "a shape of"),
        (("classes",), -1, "-1 classes"),
        (("classes",), True, "True classes"),
        (("schedule", "sigma_max"), 1e300, "'sigma_max' is 1e"),
        (("schedule", "sigma_max"), float("nan"), "'sigma_max' is nan"),
        (("schedule", "sigma_min"), "a", "must be a number|malformed"),
        (("inputs",), {"kind": "iddpm", "steps": BILLION}, f"'steps' is {BILLION}"),
        (("inputs",), {"kind": "iddpm", "steps": 2.5}, "'steps' is 2.5"),
        (("inputs",), [1], "malformed"),
        (("prediction",), None, "malformed"),
    ],
)
def test_a_description_that_means_nothing_is_refused(tmp_path, denoiser, place, value, sentence) -> None:
    save_model(tmp_path / "model", denoiser)

    def change(metadata: dict) -> None:
        inside = metadata["model"]
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = value

    with pytest.raises(UserError, match=sentence):
        load_model(rewritten(tmp_path / "model", change))


@pytest.mark.parametrize(
    "changes",
    [
        {"prior": {"time": "a", "scale": 1.0}},
        {"prior": {"time": float("nan"), "scale": 1.0}},
        {"prior": {"time": 1.0, "scale": 1e300}},
        {"prior": {"time": 1.0, "scale": None}},
        {"prior": []},
        {"range": [1.0, -1.0]},
        {"range": [-1.0, "a"]},
        {"range": [-1.0]},
        {"range": [float("-inf"), 1.0]},
    ],
)
def test_how_a_student_samples_must_be_numbers(tmp_path, changes) -> None:
    assert load(student(tmp_path / "good"))(2).shape == (2, 2)
    with pytest.raises(UserError, match="not how to sample it"):
        load(student(tmp_path / "bad", **changes))


@pytest.mark.parametrize(
    "changes", [{"steps": 1.5}, {"steps": BILLION}, {"steps": True}, {"gamma": "a"}, {"guidance": [1]}]
)
def test_sampling_of_a_file_is_checked(tmp_path, changes) -> None:
    _, extra = load_model(student(tmp_path / "good"))
    with pytest.raises(UserError, match="sampling: 'steps' must be a whole number"):
        load(student(tmp_path / "bad", sampling={**extra["sampling"], **changes}))


def test_samples_that_are_not_finite_are_not_measured() -> None:
    samples = torch.zeros(4, 2)
    assert features_of(samples, lambda x: x).shape == (4, 2)
    samples[3, 1] = float("nan")
    with pytest.raises(UserError, match="diverged"):
        features_of(samples, lambda x: x)


# Image sets


def test_labels_take_no_more_memory_than_labels_need(tmp_path, image_bytes) -> None:
    def write(text: str) -> Path:
        with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.png", image_bytes)
            archive.writestr("dataset.json", text)
        return tmp_path / "set.zip"

    assert open_images(write('{"labels": [["a.png", 0]]}' + " " * 2**20)).classes == 1
    with pytest.raises(
        UserError, match=r"'dataset.json' has 2,097,178 bytes, more than the labels of 1 images need \(1,049,600\)"
    ):
        open_images(write('{"labels": [["a.png", 0]]}' + " " * 2**21))
    with pytest.raises(UserError, match="'classes' must be a list"):
        open_images(write('{"labels": [["a.png", 0]], "classes": "abc"}'))


@pytest.fixture
def image_bytes() -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


# Run folders


def run_folder(folder: Path, lines: str) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(shipped_text("mixture2d-disback"))
    (folder / "metrics.jsonl").write_text(lines)
    return folder


def test_a_report_expands_no_aliases(tmp_path) -> None:
    """Their values are shared in memory, and would be written out one by one."""
    folder = run_folder(tmp_path / "run", "")
    (folder / "recipe.yaml").write_text("a: &a [x]\nb: [*a, *a]\n")
    with pytest.raises(UserError, match="aliases"):
        gather(folder)


def test_a_report_passes_over_json_that_is_none(tmp_path) -> None:
    folder = run_folder(tmp_path / "run", '{"step": 1' + "\n")
    for name in ("evaluation.json", "shift.json"):
        (folder / name).write_text("[" * 100_000)
    assert gather(folder).missing["evaluation"] == "evaluation.json could not be read; write it anew."


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        (1, True),
        (1e99, True),
        (1e101, False),
        (10**400, False),
        (-(10**400), False),
        (float("nan"), False),
        (float("inf"), False),
        (True, False),
        ("1", False),
    ],
)
def test_a_number_is_one_that_can_be_computed_with(value, is_one) -> None:
    assert is_number(value) is is_one
    assert isinstance(number(value), str)


def test_measurements_that_are_no_numbers_are_left_out_of_a_comparison(tmp_path) -> None:
    good = [{"step": step, "evaluations": 8 * step, "probe": "evaluation", "fd": 1.0 / step} for step in (1, 2, 3)]
    bad = [
        {**good[0], "fd": "a\nb"},
        {**good[0], "step": 10**400},
        {**good[0], "evaluations": None},
        {**good[0], "fd": True},
        {"probe": "evaluation"},
    ]
    one = run_folder(tmp_path / "one", "".join(json.dumps(line) + "\n" for line in good))
    two = run_folder(tmp_path / "two", "".join(json.dumps(line) + "\n" for line in [*bad, *good]))
    first, second = compare([one, two]).runs
    assert (first.steps, first.evaluations, first.fd) == (second.steps, second.evaluations, second.fd)


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e99, -1e99, 0.0])
def test_a_report_draws_any_number_of_a_log(tmp_path, value) -> None:
    lines = [
        {"step": step, "evaluations": step, "stage": "distill", "student.gap": fd, "probe": "evaluation", "fd": fd}
        for step, fd in ((1, value), (2, 1.0), (3, abs(value)))
    ]
    folder = run_folder(tmp_path / "run", "".join(json.dumps(line) + "\n" for line in lines))
    assert "Frechet distance" in write_run_report(folder).read_text()


@pytest.mark.parametrize("value", [3, True, None, "abc", {"a": 1}])
def test_warnings_that_are_no_list_are_none(tmp_path, value) -> None:
    def lines(last: object) -> str:
        return "".join(
            json.dumps({"step": step, "evaluations": step, "probe": "health", "warnings": found}) + "\n"
            for step, found in ((1, ["a sentence"]), (2, last))
        )

    warned = gather(run_folder(tmp_path / "run", lines(value))).history.warnings()
    assert warned == gather(run_folder(tmp_path / "same", lines([]))).history.warnings()
    assert [each.text for each in warned] == ["a sentence"]


def test_a_picture_that_leads_to_a_device_is_not_read(tmp_path) -> None:
    """It would never end."""
    folder = run_folder(tmp_path / "run", "")
    (folder / "samples").mkdir()
    (folder / "samples" / "final.png").symlink_to("/dev/zero")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Path,
            "read_bytes",
            lambda path: pytest.fail(f"{path} was read") if path.suffix == ".png" else path.open("rb").read(),
        )
        found = [finding for finding in check_records(RunFolder(folder), "again") if "final.png" in finding.place]
    assert [finding.level for finding in found] == ["problem"]
