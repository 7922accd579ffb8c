"""What a visitor fills in or reads first is what the project says of itself elsewhere."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import fewstep

ROOT = Path(__file__).parents[1]
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def _form(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_something_and_each_question_is_named(path: Path) -> None:
    form = _form(path)
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names) > 0
    assert all(field["attributes"]["label"].strip() for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


@pytest.mark.parametrize("path", [*FORMS, ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md"], ids=lambda path: path.stem)
def test_files_that_a_form_names_are_there(path: Path) -> None:
    for name in re.findall(r"[\w./-]+\.md\b", path.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


def test_a_bugs_form_asks_for_what_doctor_prints() -> None:
    required = [field for field in _form(FORMS[0])["body"] if field.get("validations", {}).get("required")]
    assert "fewstep doctor --json" in [field["attributes"]["label"] for field in required]


def test_the_citation_is_of_this_version_and_licence() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["version"] == project["version"] == fewstep.__version__
    assert cited["license"] == project["license"]
    assert cited["title"] == project["name"]


def test_editors_break_lines_where_ruff_does() -> None:
    settings = configparser.ConfigParser()
    settings.read_string("[top]\n" + (ROOT / ".editorconfig").read_text(encoding="utf-8"))
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert settings.getint("*", "max_line_length") == ruff["line-length"]
