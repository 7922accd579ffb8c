"""What is installed is whole: a wheel, in an environment of its own outside the checkout, distils;
and the extras say what is imported.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from fewstep.doctor.environment import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = {name: packages for name, packages in PROJECT["optional-dependencies"].items() if name != "test"}
TINY = (
    "training.steps=2",
    "training.batch=8",
    "evaluation.samples=60",
    "evaluation.draws=1",
    "evaluation.teacher_steps=[1]",
)


def plain(requirement: str) -> str:
    """A requirement's package, without its version."""
    found = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert found is not None
    return found.group()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-build-isolation",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    (path,) = folder.glob("fewstep-*.whl")
    return path


def test_a_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("fewstep/")}
    source = ROOT / "src"
    there = {
        str(path.relative_to(source))
        for path in (source / "fewstep").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == there
    assert {Path(name).suffix for name in held} >= {".py", ".yaml", ".safetensors", ".npz", ".j2"}


def test_an_installed_wheel_distils(wheel, tmp_path):
    """In a new environment, which shares this one's other packages; nothing of the checkout is on
    its path.
    """
    place = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
            "--python",
            str(python),
            "install",
            "--no-index",
            "--no-deps",
            str(wheel),
        ],
        check=True,
    )
    packages = next(place.glob("lib/python*/site-packages"))
    # A folder that is named here comes after the environment's own, and its .pth files, an editable
    # install's among them, are not read.
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*command: str | Path) -> str:
        ended = subprocess.run(
            [str(part) for part in command],
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert Path(run(python, "-c", "import fewstep; print(fewstep.__file__)").strip()).is_relative_to(place)
    settings = [part for each in TINY for part in ("--set", each)]
    run(place / "bin" / "fewstep", "distill", "digits-diff-instruct", "--out", "run", *settings)
    assert (tmp_path / "run" / "student.safetensors").is_file()
    assert "</html>" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("extra", "package"), [(extra, plain(each)) for extra, packages in OPTIONAL.items() for each in packages]
)
def test_what_an_extra_installs_is_imported_where_it_is_needed(extra, package):
    """By a function, never by a module: whoever has no need of it need not have it."""
    module = package.replace("-", "_")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    named = rf"(?:from|import) {module}\b"
    assert any(re.search(rf"^[ ]+{named}", source, re.MULTILINE) for source in sources), (
        f"nothing imports {package}, which the extra '{extra}' installs"
    )
    assert not any(re.search(rf"^{named}", source, re.MULTILINE) for source in sources), (
        f"a module needs {package}, which the extra '{extra}' installs"
    )


def test_the_doctor_knows_the_extras():
    assert {name: tuple(map(plain, packages)) for name, packages in OPTIONAL.items()} == EXTRAS


def test_what_is_installed_has_a_version_in_constraints():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    asked = [
        *PROJECT["dependencies"],
        *(each for packages in PROJECT["optional-dependencies"].values() for each in packages),
    ]
    assert {plain(each).lower().replace("_", "-") for each in asked} <= pinned
