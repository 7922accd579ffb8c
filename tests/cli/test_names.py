"""Names in any coding, and files that are what their names say."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fewstep.command import entry
from fewstep.command.cli import app
from fewstep.errors import UserError
from fewstep.recipes import config, dump, load_recipe
from fewstep.runs.pictures.sample_files import write_array, write_samples
from fewstep.system.files import append_line, read_tensors, verify_tensors, write_tensors, write_text

SOURCES = Path(entry.__file__).parent


@pytest.fixture
def odd(tmp_path) -> Path:
    """A folder whose name is not UTF-8."""
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9")))
    path.mkdir()
    return path


def test_files_are_written_and_read_where_names_are_not_utf8(odd):
    tensors = {"a": torch.arange(3.0)}
    write_tensors(odd / "a.safetensors", tensors, {"where": str(odd)})
    found, metadata = read_tensors(odd / "a.safetensors")
    assert torch.equal(found["a"], tensors["a"])
    assert verify_tensors(odd / "a.safetensors") == metadata == {"where": str(odd)}
    recipe = load_recipe("digits-disback").model_copy(update={"data": config.ImagesData(kind="images", path=str(odd))})
    write_text(odd / "recipe.yaml", dump(recipe))
    assert load_recipe(odd / "recipe.yaml").data.path == str(odd)
    write_text(odd / "page.html", f"<p>{odd.name}</p>\n")
    append_line(odd / "page.html", odd.name)
    assert (odd / "page.html").read_bytes() == b"<p>caf\\udce9</p>\ncaf\\udce9\n"


def test_a_name_that_a_terminal_cannot_show_is_escaped(monkeypatch):
    """In the coding of locale C, which has no letter beyond ASCII, and for a name that is not
    UTF-8.
    """
    for coding, name, shown in (("ascii", "caf\xe9", b"caf\\xe9\n"), ("utf-8", "caf\udce9", b"caf\\udce9\n")):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=coding, errors="strict"))
        entry._print_any_name()
        print(name, flush=True)
        assert raw.getvalue() == shown


def test_a_name_that_the_locale_cannot_say_is_one_sentence(monkeypatch, capsys):
    def command() -> None:
        "caf\u00e9.zip".encode("ascii")

    monkeypatch.setattr(entry, "app", command)
    with pytest.raises(SystemExit) as ended:
        entry.run_command()
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err
        == "fewstep: 'caf\u00e9.zip' cannot be a file's name in this locale, whose coding is ascii; set "
        "LC_ALL=C.UTF-8 or PYTHONUTF8=1.\n"
    )


def test_classes_of_any_name_are_shown_under_locale_c(tmp_path):
    """Python is told to take the locale's own coding, as it does by itself where the locale is
    neither C nor UTF-8.
    """
    (tmp_path / "set" / "caf\u00e9").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "set" / "caf\u00e9" / "a.png")
    assert CliRunner().invoke(app, ["data", "zip", str(tmp_path / "set"), str(tmp_path / "set.zip")]).exit_code == 0
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "fewstep", "data", "show", str(tmp_path / "set.zip")]
    found = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"  1  caf" in found.stdout


def test_no_text_is_read_or_written_in_the_locales_coding():
    """Python warns of each place that leaves the coding to the locale; what is imported at once is
    looked at here, the rest by its text.
    """
    for file in SOURCES.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert ".read_text()" not in text, file
        assert 'open("w")' not in text, file
        assert '"w")' not in text.replace('ZipFile(stream, "w")', ""), file
        assert '"r")' not in text, file


@pytest.mark.parametrize(
    ("name", "kind"), [("s.png", "PNG"), ("s.jpg", "JPEG"), ("s.JPEG", "JPEG"), ("s.webp", "WEBP"), ("s.bmp", "BMP")]
)
@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (3, 1, 8, 8), (20, 2)])
def test_a_picture_is_what_its_name_says(name, kind, shape, tmp_path):
    samples = torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
    write_samples(tmp_path / name, samples, -1.0, 1.0)
    write_samples(tmp_path / "same.png", samples, -1.0, 1.0)
    with Image.open(tmp_path / name) as found, Image.open(tmp_path / "same.png") as same:
        assert (found.format, found.size) == (kind, same.size)
        difference = np.abs(np.asarray(found.convert("RGB"), dtype=int) - np.asarray(same.convert("RGB"), dtype=int))
        assert difference.mean() < (3 if kind == "JPEG" else 1e-9)


def test_a_name_that_says_no_picture_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(
        UserError, match=r"s\.gif: is no name of a picture; give one that ends in \.png, \.jpg, \.jpeg, \.webp, \.bmp"
    ):
        write_samples(tmp_path / "s.gif", torch.zeros(1, 3, 8, 8), -1.0, 1.0)
    with pytest.raises(UserError, match=r"s\.csv: samples are written as an \.npz; give a name that ends in \.npz"):
        write_array(tmp_path / "s.csv", torch.zeros(1))
    for command in (
        ["sample", str(tmp_path / "no-run"), "--out", "s"],
        ["sample", str(tmp_path / "no-run"), "--npz", "s.csv"],
        ["compare", str(tmp_path / "no-run"), str(tmp_path / "nor-this"), "--out", "s.txt"],
        ["data", "show", str(tmp_path / "no-set"), "--out", "s.tif"],
    ):
        error = CliRunner().invoke(app, command).exception
        assert isinstance(error, UserError)
        assert "give " in str(error)
        assert "no-" not in str(error)
    assert list(tmp_path.iterdir()) == []


def test_json_of_names_is_json(odd):
    (odd / odd.name).mkdir()
    Image.new("RGB", (4, 4)).save(odd / odd.name / "a.png")
    found = CliRunner().invoke(app, ["data", "show", str(odd), "--json"])
    assert json.loads(found.stdout)["classes"] == [{"name": "caf\udce9", "images": 1}]
