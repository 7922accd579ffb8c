"""What surrounds a command: folders that hold others' files, environments that others left (see
``hostile.py``).

A case of ``belongings`` says which files were there before; each must be there afterwards with the
same content, under its name or another: nothing that a command did not write itself is ever removed
or replaced.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path

import yaml

from fewstep.errors import UserError
from fewstep.system.files import read_tensors
from hostile_files import damage, forge
from hostile_images import picture
from hostile_values import Stock

OURS = (
    *(
        "recipe.yaml",
        "metrics.jsonl",
        "student.safetensors",
        "model.safetensors",
        "adapter.safetensors",
        "evaluation.json",
    ),
    *("report.html", "samples/final.png", "samples/step-00000000.png", "path/manifest.json", "path/node-1.safetensors"),
    *("checkpoints/step-00000002.safetensors", "checkpoints/step-00000002.safetensors.bak", "checkpoints/notes.txt"),
    *("checkpoints/step-00000009/manifest.json", "checkpoints/step-00000009", "lock", "run.json"),
)
THEIRS = ("notes.txt", ".hidden", "thesis/chapter1.tex", "samples/holiday.jpg", "path/to/nowhere", "weights.bin")


def belongings(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A folder of somebody's own, or a run with something of somebody's in it, and a command that
    writes there.
    """
    folder = here / "out"
    what = chance.choice(("a folder", "a folder", "another run", "a run", "a run", "a pretraining"))
    if what in ("another run", "a run", "a pretraining"):
        source = {"another run": "steps", "a run": "run", "a pretraining": "teacher"}[what]
        shutil.copytree(stock.folder / source, folder)
        (folder / "lock").unlink(missing_ok=True)
    names = chance.sample(
        THEIRS + OURS, chance.choice((0, 1, 1, 3)) if folder.is_dir() else chance.choice((1, 1, 2, 4))
    )
    for name in names:
        _put(folder / name, chance)
    if what == "a run" and chance.random() < 0.5:
        names.append(_spoilt_checkpoint(folder, chance))
    mine = here / "mine.yaml"
    mine.write_text(yaml.safe_dump(stock.recipes["mixture2d-disback"]))
    own = str(stock.folder / "run.yaml") if chance.random() < 0.5 else str(mine)
    commands: tuple[tuple[str, ...], ...] = (
        ("distill", own, "--out", str(folder)),
        ("distill", own, "--out", str(folder), "--resume"),
        ("distill", own, "--out", str(folder), "--resume"),
        ("distill", own, "--out", str(folder), "--resume", "--set", "training.steps=9"),
        ("pretrain", str(stock.folder / "teacher.yaml"), "--out", str(folder)),
        ("pretrain", str(stock.folder / "teacher.yaml"), "--out", str(folder), "--resume"),
        ("checkpoints", str(folder), "--prune", chance.choice(("1", "2", "5"))),
        ("evaluate", str(folder), "--draws", "1"),
        ("sample", str(folder), "-n", "4", "--out", str(folder / chance.choice(THEIRS))),
    )
    return f"{what} with {', '.join(names)}"[:120], chance.choice(commands)


def _put(path: Path, chance: random.Random) -> None:
    for parent in (path, *path.parents):
        # Where a file of that name stands already the case has one belonging less.
        if parent.is_file():
            return
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        picture(chance) if path.suffix in (".png", ".jpg") else chance.randbytes(chance.choice((0, 1, 300)))
    )


def _spoilt_checkpoint(folder: Path, chance: random.Random) -> str:
    """Damage to one checkpoint or to all, or values that are not finite in a file that is whole."""
    files = sorted((folder / "checkpoints").glob("step-*.safetensors"))
    for file in files if chance.random() < 0.4 else files[-1:]:
        try:
            tensors, metadata = read_tensors(file)
        except UserError:
            # Something of somebody's own stands under this name.
            continue
        if chance.random() < 0.5:
            damage(file, chance)
            continue
        name = chance.choice([name for name, value in tensors.items() if value.is_floating_point() and value.numel()])
        tensors[name].view(-1)[0] = float("nan")
        forge(file, tensors, metadata)
    return "a spoilt checkpoint"


def contents(folder: Path) -> dict[str, str]:
    """The digest of each file in a folder, by name; what a link points to is not looked at."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = "link " + os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def environments(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A command of a user whose shell still holds what torchrun or SLURM left there; the
    environment is in ``here / "environment"``.
    """
    left = {
        "RANK": chance.choice(("0", "1", "5", "-1", "abc", "", "0.0")),
        "WORLD_SIZE": chance.choice(("1", "2", "0", "-1", "x", "")),
        "MASTER_ADDR": chance.choice(("127.0.0.1", "nowhere.invalid", "")),
        "MASTER_PORT": chance.choice(("29511", "0", "99999", "x", "")),
        "LOCAL_RANK": chance.choice(("0", "7", "x")),
        "LC_ALL": chance.choice(("C", "POSIX", "xx_YY.nothing")),
        "PYTHONUTF8": "0",
        "FEWSTEP_CACHE": chance.choice((str(here / "mine.yaml"), "/proc/nothing", "~nobody/x", "\u0436")),
    }
    # Two processes that wait for each other are no case: only one is started.
    names = chance.sample(sorted(left), chance.choice((1, 2, 3)))
    chosen = {name: left[name] for name in names}
    if chosen.get("WORLD_SIZE") == "2" and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(chosen):
        del chosen["MASTER_PORT"]
    (here / "mine.yaml").write_text(yaml.safe_dump(stock.recipes["mixture2d-disback"]))
    (here / "environment").write_text("\0".join(f"{name}={value}" for name, value in chosen.items()), encoding="utf-8")
    commands: tuple[tuple[str, ...], ...] = (
        ("sample", str(stock.run), "-n", "4", "--out", str(here / "out.png")),
        ("distill", str(here / "mine.yaml"), "--out", str(here / "\u0436")),
        ("plan", "digits-disback"),
        ("doctor",),
        ("recipes",),
    )
    return ", ".join(f"{name}={value}" for name, value in chosen.items()), chance.choice(commands)
