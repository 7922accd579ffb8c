"""How the house stands: what a newcomer would stumble over, counted in the source.

    python benchmarks/house.py

- texts of a value: the most classes that say the same kind with the same fields;
- registries: tables in the source that map names to classes by hand;
- dispatch on choices: calls of ``isinstance`` that ask which choice of a recipe was made;
- widest folder: the most files in one package; circles: groups of modules that import one another;
- lines over 120 columns, of code, docstrings and comments; docstrings over 100;
- closets: files of 45 lines or fewer; ambiguous names: public names and file names that stand for
  two things, with the reason where one stays;
- exported names: what ``import fewstep as fs`` offers.

Prints a table and writes ``benchmarks/results/house.json``.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLOSET, WIDTH, TEXT_WIDTH = 45, 120, 100
STAYS = {
    "load": "fs.load of a run, fs.zoo.nvidia.load and zoo.diffusers_models.load of a release: called by their modules"
}
"""Why a name of two things stays; it is counted all the same."""


def trees(source: Path) -> dict[str, ast.Module]:
    """The modules below a folder, by dotted name."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def texts_of_a_value(modules: dict[str, ast.Module]) -> int:
    """The most classes with one kind and the same fields besides."""
    said: Counter[tuple[str, frozenset[str]]] = Counter()
    for tree in modules.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                fields = {
                    each.target.id: each.annotation
                    for each in node.body
                    if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
                }
                kinds = (
                    [each.value for each in ast.walk(fields["kind"]) if isinstance(each, ast.Constant)]
                    if "kind" in fields
                    else []
                )
                others = frozenset(fields) - {"kind"}
                if others:
                    said.update((str(kind), others) for kind in kinds)
    return max(said.values(), default=0)


def registries(modules: dict[str, ast.Module]) -> list[str]:
    """Tables of a module's own that give names to three classes or more by hand."""
    found = []
    for name, tree in modules.items():
        for node in tree.body:
            if not isinstance(node, (ast.Assign, ast.AnnAssign)):
                continue
            value = node.value
            if isinstance(value, ast.Dict) and len(value.keys) >= 3:
                sides = (value.keys, value.values)
                if any(
                    all(isinstance(each, ast.Name) and each.id[:1].isupper() and not each.id.isupper() for each in side)
                    for side in sides
                ):
                    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                    found.append(f"{name}.{ast.unparse(target)}")
    return found


def dispatches(modules: dict[str, ast.Module]) -> int:
    """Calls of ``isinstance`` on a choice of ``recipes.config``."""
    calls = (node for tree in modules.values() for node in ast.walk(tree) if isinstance(node, ast.Call))
    return sum(
        isinstance(call.func, ast.Name) and call.func.id == "isinstance" and "config." in ast.unparse(call.args[1])
        for call in calls
    )


def imports(name: str, tree: ast.Module, modules: dict[str, ast.Module]) -> Iterator[str]:
    """The modules that a module imports when it is imported itself."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def circles(modules: dict[str, ast.Module]) -> list[list[str]]:
    """Groups of modules of which each leads to each other."""
    to = {
        name: {each for each in imports(name, tree, modules) if each in modules and each != name}
        for name, tree in modules.items()
    }

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            for each in to[left.pop()] - seen:
                seen.add(each)
                left.append(each)
        return seen

    ways = {name: reached(name) for name in modules}
    # A package's own file names what is in it, and what is in it may name the package.
    groups = {frozenset(other for other in ways[name] if name in ways[other]) for name in modules if name in ways[name]}
    return sorted(sorted(group) for group in groups)


def long_lines(source: Path) -> tuple[int, int, int]:
    """(all lines, those over 120 columns, those of docstrings over 100)."""
    total = wide = wide_text = 0
    for path in source.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        total += len(lines)
        wide += sum(len(line) > WIDTH for line in lines)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                first = node.body[0]
                wide_text += sum(len(line) > TEXT_WIDTH for line in lines[first.lineno - 1 : first.end_lineno])
    return total, wide, wide_text


def ambiguous(modules: dict[str, ast.Module]) -> list[str]:
    """Public names that two modules define, and file names that two folders have."""
    where = defaultdict(set)
    for name, tree in modules.items():
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                where[node.name].add(name)
    files = Counter(name.rpartition(".")[2] for name in modules)
    return sorted(
        [
            *(name for name, places in where.items() if len(places) > 1),
            *(f"{name}.py" for name, count in files.items() if count > 1),
        ]
    )


def measured(source: Path) -> dict[str, object]:
    """All figures."""
    modules = trees(source)
    total, wide, wide_text = long_lines(source)
    folders = Counter(path.parent for path in source.rglob("*.py") if path.name != "__init__.py")
    sizes = [
        len(path.read_text(encoding="utf-8").splitlines())
        for path in source.rglob("*.py")
        if path.name != "__init__.py"
    ]
    widest = max(folders, key=lambda folder: folders[folder])
    import fewstep

    return {
        "lines": total,
        "texts of a value": texts_of_a_value(modules),
        "registries": registries(modules),
        "dispatch on choices": dispatches(modules),
        "widest folder": [widest.name, folders[widest]],
        "circles": circles(modules),
        "lines over 120": wide,
        "docstring lines over 100": wide_text,
        "closets": sum(size <= CLOSET for size in sizes),
        "longest file": max(sizes),
        "ambiguous names": ambiguous(modules),
        "exported names": len(dir(fewstep)),
    }


def _shown(value: object, counted: bool) -> str:
    if isinstance(value, list):
        return str(len(value)) if counted else " ".join(map(str, value))
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    found = measured(ROOT / "src" / "fewstep")
    for name, value in found.items():
        counted = name in ("registries", "circles", "ambiguous names")
        print(f"{name:28}{_shown(value, counted):>14}")
        for each in value if counted and isinstance(value, list) else ():
            said = each if isinstance(each, str) else " <-> ".join(each)
            print(f"    {said}{f' ({STAYS[said]})' if said in STAYS else ''}")
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "house.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
