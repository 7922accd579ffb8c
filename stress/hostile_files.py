"""Weights and run folders that are not what they should be, each with a command that reads it (see
``hostile.py``).
"""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from fewstep.system.files import digest_of, read_tensors
from hostile_values import TEXTS, Stock, mutate


def damage(path: Path, chance: random.Random) -> str:
    """Raw damage to any file."""
    content = bytearray(path.read_bytes())
    what = chance.choice(("cut", "turned", "empty", "noise", "header", "folder", "link", "longer"))
    if what == "folder":
        path.unlink()
        path.mkdir()
        return what
    if what == "link":
        path.unlink()
        path.symlink_to(chance.choice(("nowhere", "/dev/zero", path.name)))
        return what
    if what == "cut":
        del content[chance.randrange(len(content) + 1) :]
    elif what == "turned" and content:
        for _ in range(chance.choice((1, 1, 10))):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif what == "header":
        content[:8] = struct.pack("<Q", chance.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)))
    elif what == "longer":
        content += chance.randbytes(100)
    else:
        content = bytearray(b"" if what == "empty" else chance.randbytes(1000))
    path.write_bytes(content)
    return what


def forge(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """A file with a right checksum over values that are not finite, which this version does not
    write and earlier ones did.
    """
    plain = {name: value.contiguous() for name, value in tensors.items()}
    header = json.dumps({"digest": digest_of(plain, metadata), **metadata}, sort_keys=True)
    save_file(plain, path, {"fewstep": header})


def weights(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A file of weights with damage, or whole with what no run could have written."""
    role = chance.choice(("teacher", "student", "start", "features", "inspect"))
    source = (
        stock.teacher
        if role == "teacher" or (role == "inspect" and chance.random() < 0.5)
        else stock.run / "student.safetensors"
    )
    path = here / "model.safetensors"
    what = chance.choice(
        ("raw", "nan", "inf", "shape", "type", "lacks", "more", "metadata", "metadata", "metadata", "foreign", "whole")
    )
    tensors, metadata = read_tensors(source)
    name = chance.choice(sorted(name for name, value in tensors.items() if value.numel() > 1))
    if what in ("nan", "inf"):
        tensors[name].view(-1)[chance.randrange(tensors[name].numel())] = math.nan if what == "nan" else math.inf
    elif what == "shape":
        tensors[name] = chance.choice((torch.zeros(0), torch.zeros(3, 7), torch.zeros(()), tensors[name][None]))
    elif what == "type":
        tensors[name] = tensors[name].to(chance.choice((torch.float64, torch.bfloat16, torch.int8, torch.bool)))
    elif what == "lacks":
        del tensors[name]
    elif what == "more":
        tensors["../../evil"] = torch.zeros(1)
    elif what == "metadata":
        what = f"metadata {mutate(metadata, chance)}"
    if what == "foreign":
        save_file(
            tensors,
            path,
            chance.choice((None, {"format": "pt"}, {"fewstep": "{}"}, {"fewstep": "[" * 100_000}, {"fewstep": "null"})),
        )
    else:
        forge(path, tensors, metadata)
    if what == "raw":
        what = f"raw {damage(path, chance)}"
    return f"{role}: {what}", _of_weights(stock, here, path, role, chance)


def _of_weights(stock: Stock, here: Path, path: Path, role: str, chance: random.Random) -> tuple[str, ...]:
    mine = here / "mine.yaml"
    mine.write_text(yaml.safe_dump(stock.recipes["mixture2d-disback"]))
    distill = ("distill", str(mine), "--out", str(here / "out"), "--set")
    if role == "student" and chance.random() < 0.5:
        shutil.copytree(stock.run, here / "run", symlinks=True)
        (here / "run" / "student.safetensors").unlink()
        shutil.move(path, here / "run" / "student.safetensors")
        return "evaluate", str(here / "run"), "--draws", "1"
    return {
        "teacher": (*distill, f"teacher={{kind: file, path: {path}}}"),
        "student": ("sample", str(path), "-n", "4", "--out", str(here / "out.png")),
        "start": (*distill, f"student.start={path}"),
        "features": (*distill, f"evaluation.features={{kind: classifier, path: {path}}}"),
        "inspect": ("inspect", str(path)),
    }[role]


READERS = (
    *(
        ("report",),
        ("report",),
        ("compare",),
        ("evaluate", "--draws", "1"),
        ("sample", "-n", "4"),
        ("sample", "-n", "4", "--teacher"),
    ),
    *(("resume",), ("resume",), ("shift",), ("checkpoints", "--verify"), ("doctor",)),
)


def run_folder(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A run one of whose files is damaged, or whole JSON that means nothing."""
    run, name = here / "run", chance.choice(("run", "steps"))
    shutil.copytree(stock.folder / name, run)
    kinds: dict[tuple[str, str], list[Path]] = {}
    for found in sorted(p for p in run.rglob("*") if p.is_file() and p.name not in ("lock", "report.html")):
        kinds.setdefault((found.parent.name, found.suffix), []).append(found)
    path = chance.choice(kinds[chance.choice(list(kinds))])
    if path.suffix == ".json" and chance.random() < 0.8:
        values = json.loads(path.read_text())
        what = mutate(values, chance)
        path.write_text(
            json.dumps(values)
            if chance.random() < 0.9
            else chance.choice(("[" * 100_000, "null", "[]", "1", '"a"', "9" * 5000))
        )
    elif path.suffix == ".jsonl" and chance.random() < 0.8:
        # A ledger begins each line anew, so that a torn one before it stays one.
        lines = [json.loads(line) for line in path.read_text().splitlines() if line]
        what = mutate(lines, chance)
        odd = [json.dumps(line) for line in lines] + [
            chance.choice(
                (
                    "[" * 100_000,
                    "null",
                    "[]",
                    "1",
                    '"a"',
                    "9" * 5000,
                    "{",
                    "NaN",
                    '{"step": NaN, "evaluations": 1e999, "stage": []}',
                )
            )
        ]
        path.write_text("\n".join(odd) + "\n")
    elif path.suffix == ".yaml" and chance.random() < 0.8:
        values = yaml.safe_load(path.read_text())
        what = mutate(values, chance)
        path.write_text(
            yaml.safe_dump(values)
            if chance.random() < 0.8
            else chance.choice(TEXTS).encode("utf-8", "replace").decode()
        )
    else:
        what = damage(path, chance)
    command = chance.choice(READERS)
    told = f"{name}/{path.relative_to(run)}: {what}"
    if command[0] == "compare":
        return told, ("compare", str(run), str(stock.run), "--out", str(here / "out.png"))
    if command[0] == "resume":
        return told, ("distill", str(stock.folder / f"{name}.yaml"), "--out", str(run), "--resume")
    return told, (command[0], str(run), *command[1:])
