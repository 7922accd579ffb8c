"""The run that faults happen to, whether one that they happened to equals one that was left alone,
and whether anything of it is lost (see ``faults.py``).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from faults_life import Ended, Life
from fewstep.recipes import shipped_text
from fewstep.runs import list_checkpoints
from fewstep.system.files import read_metadata, read_tensors
from fewstep.system.ledger import NAME as LEDGER

EVERY = 5
# What is another at every run (times), and what no command reads again.
IGNORED = ("lock", "report.html", "samples.png")
_ASIDE = re.compile(r"\.(set-aside|unreadable|another-run|not-finite)(-\d+)?(\.|$)")


def recipe(path: Path, seed: int = 0, mode: str = "ddp") -> Path:
    """DisBack on the plane in 90 small steps: 3 nodes recorded over 24, a line a step, a checkpoint
    every 5.
    """
    values = yaml.safe_load(shipped_text("mixture2d-disback"))
    values["student"].update(width=32, depth=2)
    values["target"].update(nodes=4, record={"kind": "every", "steps": 8}, switch={"kind": "every", "steps": 12})
    values["training"].update(steps=90, batch=16, seed=seed, log_every=1, checkpoint_every=EVERY, health_every=40)
    values["evaluation"].update(samples=100, draws=1, every=30, teacher_steps=[2])
    if mode != "ddp":
        values["distributed"] = {"mode": mode}
    path.write_text(yaml.safe_dump(values))
    return path


@dataclass(frozen=True)
class Bench:
    """A recipe to be run by ``processes`` in a ``mode``; ``reference`` is the folder of its
    undisturbed run, which took so many ``seconds`` of work and ``operations`` on files.
    """

    folder: Path
    recipe: Path
    processes: int
    mode: str
    reference: Path
    seconds: float
    operations: int

    @classmethod
    def of(cls, folder: Path, processes: int, mode: str, seed: int = 0) -> Bench:
        """Runs it undisturbed."""
        folder.mkdir(parents=True, exist_ok=True)
        bench = cls(folder, recipe(folder / "small.yaml", seed, mode), processes, mode, folder / "reference", 0.0, 0)
        shutil.rmtree(bench.reference, ignore_errors=True)
        life = bench.begin(bench.reference, plain=True)
        ended = life.end()
        if ended.code != 0:
            raise SystemExit(f"the undisturbed run failed: {ended.code} {ended.said[-2000:]}")
        return cls(folder, bench.recipe, processes, mode, bench.reference, bench._seconds(), ended.operations)

    def _seconds(self) -> float:
        """How long a run works, in one that is thrown away."""
        run = self.fresh("timed")
        life = self.begin(run)
        life.until_working()
        began = time.monotonic()
        life.end()
        self.fresh("timed")
        return time.monotonic() - began

    def begin(self, run: Path, fault: dict[str, Any] | None = None, plain: bool = False) -> Life:
        """Begins the run in the folder ``run``, or goes on with it."""
        return Life(
            ["distill", str(self.recipe), "--out", str(run), "--resume"],
            run,
            run.parent / f"{run.name}-said",
            self.processes,
            fault,
            plain,
        )

    def go_on(self, run: Path) -> Ended:
        """The same to its end, undisturbed."""
        return self.begin(run).end()

    def fresh(self, name: str, source: Path | None = None) -> Path:
        """A new run folder, empty or a copy of ``source``."""
        run = self.folder / name
        shutil.rmtree(run, ignore_errors=True)
        if source is not None:
            shutil.copytree(source, run)
        return run

    def differences(self, run: Path, besides: str = "", stood: Collection[bytes] = ()) -> list[str]:
        """What of the run is not byte for byte as in the reference; the file ``besides`` may be
        otherwise.

        ``stood``: contents that the run may have found in its way, and may keep under other names.
        """
        ours, theirs = _files(run), _files(self.reference)
        found = [f"{name} is not there" for name in theirs if name not in ours and name != besides]
        found += [
            f"{name} is too many"
            for name in ours
            if name not in theirs and name != besides and not (_ASIDE.search(name) and ours[name].read_bytes() in stood)
        ]

        def equal(name: str) -> bool:
            # A checkpoint counts the lines of the log, which are fewer when the log was damaged.
            read = _without_log_lines if besides == "metrics.jsonl" else _content
            found, expected = read(ours[name]), read(theirs[name])
            if name == LEDGER and isinstance(found, dict):
                found, expected = ({**each, besides: None} for each in (found, expected))
            return bool(found == expected)

        return found + [f"{name} differs" for name in theirs if name in ours and name != besides and not equal(name)]

    def aside(self, run: Path) -> list[bytes]:
        """What a run keeps under other names."""
        return [path.read_bytes() for name, path in _files(run).items() if _ASIDE.search(name)]


@dataclass(frozen=True)
class Kept:
    """What a run has so far: the ``step`` of its newest whole checkpoint (0 without), its
    ``finished`` files, and the last step in its ``log``.
    """

    step: int
    finished: frozenset[str]
    log: int

    @classmethod
    def of(cls, run: Path) -> Kept:
        """Looks at a run folder that nobody works in."""
        if not run.is_dir():
            return cls(0, frozenset(), 0)
        steps = [0]
        if (run / "recipe.yaml").is_file():
            steps += [
                each.step or 0 for each in list_checkpoints(run, verify=True).checkpoints if each.state == "whole"
            ]
        last = 0
        for line in (run / "metrics.jsonl").read_bytes().splitlines() if (run / "metrics.jsonl").is_file() else ():
            with contextlib.suppress(ValueError):
                last = max(last, int(json.loads(line)["step"]))
        files = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
        # Checkpoints, which may be folders, are pruned; what is aside is unfinished.
        finished = [
            name.as_posix()
            for name in files
            if name.parts[0] != "checkpoints" and not any(part.endswith(".aside") for part in name.parts)
        ]
        return cls(max(steps), frozenset(finished), last)

    def lost(self, before: Kept, run: Path) -> list[str]:
        """What a fault has taken of what was there ``before``: a file, a checkpoint, more steps
        than lie between two checkpoints, a node that the manifest names.
        """
        found = [f"{name} is gone" for name in sorted(before.finished - self.finished)]
        if self.step < before.step:
            found.append(f"the newest checkpoint is of step {self.step}, and was of {before.step}")
        if self.log - self.step > EVERY:
            found.append(f"step {self.log} was made, and the newest checkpoint is of step {self.step}")
        return found + _lost_nodes(run)


def _lost_nodes(run: Path) -> list[str]:
    """Nodes that a manifest names, and that are not whole."""
    manifest = run / "path" / "manifest.json"
    if not manifest.is_file():
        return []
    nodes = [run / "path" / node["file"] for node in json.loads(manifest.read_text())["nodes"]]
    return [
        f"{node.name} is named, and not whole"
        for node in nodes
        if not node.is_file() or "node" not in read_metadata(node)
    ]


def _files(run: Path) -> dict[str, Path]:
    """The files of a run that must be equal: of its checkpoints the newest, which is one file or a
    folder of some.
    """
    steps = (path.name for path in (run / "checkpoints").glob("step-*") if not _ASIDE.search(path.name))
    newest = max(steps, default="").partition(".")[0]
    files = {
        path.relative_to(run).as_posix(): path
        for path in run.rglob("*")
        if path.is_file() and path.name not in IGNORED and not path.name.endswith(".aside")
    }
    return {
        name: path
        for name, path in sorted(files.items())
        if not name.startswith("checkpoints/") or name.startswith(f"checkpoints/{newest}")
    }


def _content(path: Path) -> Any:
    """A file's bytes; of a ledger each file's last line; a log's lines without the seconds; of a
    checkpoint in shards the tensors and what describes them, since DCP writes its entries in any
    order.
    """
    content = path.read_bytes()
    if path.name.startswith("shard-"):
        with safe_open(path, "pt") as shard:
            described = {
                key: json.loads(value) if value.startswith("{") else value
                for key, value in (shard.metadata() or {}).items()
            }
        return described, {
            name: value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            for name, value in load_file(path).items()
        }
    if path.name == "manifest.json" and path.parent.parent.name == "checkpoints":
        manifest = json.loads(content)
        return manifest["state"], {name: mark["bytes"] for name, mark in manifest["files"].items()}
    if path.suffix != ".jsonl":
        return content
    try:
        entries = [json.loads(line) for line in content.splitlines() if line]
        if path.name == LEDGER:
            # A line a content that was about to be written: a run that was ended has more of them.
            return {entry["file"]: entry for entry in entries if entry["file"] not in IGNORED}
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]
    except (ValueError, AttributeError, KeyError, TypeError):
        return content


def _without_log_lines(path: Path) -> Any:
    """The same; of a checkpoint in one file its tensors and what it says, but for the length of the
    log.
    """
    if path.parent.name != "checkpoints":
        return _content(path)
    tensors, state = read_tensors(path)
    return {name: value.numpy().tobytes() for name, value in tensors.items()}, {
        key: value for key, value in state.items() if key != "log_lines"
    }
