"""The site: every link leads somewhere, no page asks another machine for anything, and what is
generated is whole.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fewstep.recipes import shipped_names

ROOT = Path(__file__).parents[1]
NARROW = ("asks.md", "start", "howto", "concepts", "reference")
"""What of ``docs/`` was written for the site, by its first part."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--config-file", str(ROOT / "mkdocs.yml")]
    made = subprocess.run(
        [*command, "--site-dir", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    # Strict: a page that is in no menu, and a link or an anchor that leads nowhere, fail it.
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


class _Asks(HTMLParser):
    """What a page loads, and the pictures without a text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.untold: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video") and found.get("src"):
            self.loaded.append(str(found["src"]))
        if tag == "link" and found.get("rel") != "canonical" and found.get("href"):
            self.loaded.append(str(found["href"]))
        if tag == "img" and not (found.get("alt") or "").strip():
            self.untold.append(str(found.get("src")))


def test_no_page_asks_another_machine_and_every_picture_has_a_text(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        asks = _Asks()
        asks.feed(page.read_text(encoding="utf-8"))
        assert asks.loaded
        assert not [each for each in asks.loaded if "//" in each], page
        assert not asks.untold, page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


def test_every_command_and_every_recipe_is_in_the_reference(site: Path) -> None:
    recipes = (site / "reference" / "shipped-recipes.html").read_text(encoding="utf-8")
    assert [name for name in shipped_names() if f"<code>{name}</code>" not in recipes] == []
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name in ("distill", "doctor", "data emoji", "sample"):
        assert f'id="fewstep-{name.replace(" ", "-")}"' in commands
        assert f"Usage: fewstep {name} " in commands


def test_a_key_has_its_bounds_and_its_default_in_the_reference() -> None:
    sys.path.insert(0, str(ROOT / "website"))
    try:
        import recipe_pages
    finally:
        sys.path.remove(str(ROOT / "website"))
    text = recipe_pages.PAGES["reference/distill-recipes.md"]()
    assert "### method.optimizer: `adam`" in text
    assert "| `accumulate` | a whole number from 1 on up to 10000 | `1` |" in text
    assert "| `scale` | a number from 0 on |  |" in text
    assert "| `precision` | `fp32` or `bf16` | `fp32` |" in text
    for kind in ("distribution-matching", "mean-flow", "sid"):
        assert f"## method: `{kind}`" in text


def test_a_link_to_a_page_leads_there_and_another_to_nowhere_fails() -> None:
    sys.path.insert(0, str(ROOT / "website"))
    try:
        import hooks
    finally:
        sys.path.remove(str(ROOT / "website"))

    def led(text: str) -> str:
        return hooks._LINK.sub(lambda found: hooks._led(found, "docs/axes/states.md", "axes/states.md"), text)

    assert led("[a](../data.md#folders)") == "[a](../data.md#folders)"
    assert led("[a](../../ARCHITECTURE.md)") == "[a](../project/architecture.md)"
    assert led("[the `law`](../../tests/laws/law_kit.py)") == "the `law`"
    assert led("[a](https://example.org/x)") == "[a](https://example.org/x)"
    with pytest.raises(hooks.PluginError, match=r"docs/axes/states.md: links to ../../gone.py, which is not there"):
        led("[a](../../gone.py)")


def test_pages_that_were_written_for_the_site_are_narrow() -> None:
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for place in NARROW
        for path in ([ROOT / "docs" / place] if place.endswith(".md") else [*(ROOT / "docs" / place).glob("*.md")])
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120
    ]
    wide += [
        f"README.md: {line}"
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if len(line) > 120
    ]
    assert wide == []
