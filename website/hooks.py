"""What `mkdocs build` asks of us: pages of the repository's root, pages that are generated, the
methods in the navigation, and links that leave ``docs/``.

A link of a page leads where it leads in the repository: to a page of the site where that file is
one, and nowhere where it is source code, of which the name alone is shown then. A link to what is
not there fails the build.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import command_pages
import recipe_pages

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "CODE_OF_CONDUCT.md": "project/conduct.md",
    "src/fewstep/data/digits.md": "project/digits.md",
}
"""Files outside ``docs/`` that are pages, and where."""
GENERATED = {"reference/commands.md": command_pages.page, **recipe_pages.PAGES}

_LINK = re.compile(r"(?<!\\)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages of a folder where the navigation names ``FOLDER/*``."""
    assert config.nav is not None
    config.nav = [_expanded(entry) for entry in config.nav]
    return config


def _expanded(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {name: _expanded(inner) for name, inner in entry.items()}
    if isinstance(entry, list):
        return [_expanded(inner) for inner in entry]
    folder, star, _ = entry.partition("*")
    if not star:
        return entry
    there = sorted(path.name for path in (ROOT / "docs" / folder).glob("*.md"))
    # The folder's own page comes first.
    return [folder + name for name in sorted(there, key=lambda name: (name != "README.md", name))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, place in FROM_ROOT.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    for place, made in GENERATED.items():
        files.append(File.generated(config, place, content=made()))
    files.append(
        File.generated(config, "extra.css", content=(ROOT / "website" / "extra.css").read_text(encoding="utf-8"))
    )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    place = page.file.src_uri
    source = next((name for name, there in FROM_ROOT.items() if there == place), f"docs/{place}")
    if place in GENERATED:
        return markdown
    parts = _CODE.split(markdown)
    # What stands between marks of code is at odd places; a link's own text may hold code.
    whole = ""
    kept: list[str] = []
    for number, part in enumerate(parts):
        whole += part if number % 2 == 0 else f"\0{len(kept)}\0"
        if number % 2:
            kept.append(part)
    linked = _LINK.sub(lambda found: _led(found, source, place), whole)
    return re.sub("\0(\\d+)\0", lambda found: kept[int(found[1])], linked)


def _led(found: re.Match[str], source: str, place: str) -> str:
    """The link as it leads from the page at ``place``, which is made of the file ``source``."""
    text, target, anchor = found[1], found[2], found[3] or ""
    if not target or "://" in target or target.startswith("mailto:"):
        return found[0]
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    page = FROM_ROOT.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
    if page is not None:
        return f"[{text}]({posixpath.relpath(page, posixpath.dirname(place) or '.')}{anchor})"
    if not (ROOT / file).exists():
        raise PluginError(f"{source}: links to {target}, which is not there.")
    return text
