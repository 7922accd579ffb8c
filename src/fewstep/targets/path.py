r"""The degradation path {s'_0 = teacher, s'_1, ..., s'_N} on disk (DisBack, Sec. 4.2).

Node i >= 1 is the file ``node-i.safetensors``; node 0 is the teacher, which the run has anyway.
``manifest.json`` names each node's file, digest and the recording step, and carries what the caller
wants to remember of how the path was made. A node is added by writing its file first and the
manifest after it, so that a manifest never names a node that is not whole; files that the manifest
does not name are ignored. A file that this path did not write, of another path or of somebody's,
keeps its content under another name (see ``ledger``).

Nodes are loaded strictly, one at a time, into a single frozen copy of the teacher, or of an adapter
on it where nodes are adapters: memory does not grow with N.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.denoisers import Denoiser, freeze
from fewstep.errors import UserError
from fewstep.networks.adapters import shorten_adapters
from fewstep.networks.kinds.network_files import load_strictly
from fewstep.resumable import Resumable
from fewstep.system.files import digest_of, read_tensors, write_tensors, write_text
from fewstep.system.ledger import keeping
from fewstep.targets.hook import Hook, StopRule
from fewstep.targets.record import RecordRule

FORMAT = 1
# The recorded nodes from which on their spacing says something.
FEWEST = 3


class DegradationPath(Resumable):
    """A path in ``folder`` that starts at ``teacher``; ``origin`` is kept in the manifest (for
    instance the resolved recipe).

    A new path is empty, and recording replaces what paths have written into the folder;
    ``DegradationPath.open`` reads a recorded one. ``like``: a model of the kind that nodes are,
    where that is not the teacher's: the teacher with a low-rank adapter that adds nothing yet, of
    which a node then holds the adapter alone.
    """

    def __init__(
        self,
        folder: Path | str,
        teacher: Denoiser,
        origin: Mapping[str, Any] | None = None,
        like: Denoiser | None = None,
    ):
        self.folder = Path(folder)
        self.teacher = teacher
        self._like = like
        self._first = None if like is None else {name: value.clone() for name, value in like.state_dict().items()}
        # Of what takes a node, found before networks are laid out over processes.
        slot = (self.teacher if like is None else self.blank()).state_dict()
        self._kept = {name: value.dtype for name, value in slot.items()}
        self.origin = dict(origin or {})
        self.nodes: list[dict[str, Any]] = []
        self.closed = ""
        self.steps = 0
        self.ways: list[float] = []
        self._rule: RecordRule | None = None
        self._manifest = self.folder / "manifest.json"

    @classmethod
    def open(cls, folder: Path | str, teacher: Denoiser) -> DegradationPath:
        """The path that was recorded in ``folder``; raises ``UserError`` when there is none or its
        manifest cannot be read.
        """
        path = cls(folder, teacher)
        path._read_manifest()
        return path

    @property
    def last(self) -> int:
        """N, the index of the most degraded node; 0 when nothing was recorded."""
        return len(self.nodes)

    def record(self, model: Denoiser, step: int) -> None:
        """Appends the model's weights as the next node, degraded for ``step`` steps."""
        index = len(self.nodes) + 1
        path = self.folder / f"node-{index}.safetensors"
        with keeping(self.folder):
            digest = write_tensors(path, self._as_kept(model.state_dict()), {"node": index, "step": step})
        self.nodes.append({"file": path.name, "digest": digest, "step": step})
        self._write_manifest()

    def _as_kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A node's weights in the types in which the model that takes them keeps them."""
        return {name: value.to(self._kept[name]) for name, value in tensors.items()}

    def close(self, reason: str) -> None:
        """Marks the path complete before its planned length, and says why."""
        self.closed = reason
        self._write_manifest()

    def lay_out(self, ways: Sequence[float]) -> None:
        """Notes how far each node lies from the one before it, in one unit for all."""
        self.ways = list(ways)
        self._write_manifest()

    @property
    def uneven(self) -> str:
        """The sentence for a path of three recorded nodes or more whose first lies beyond half of
        the way; else nothing.

        The student then passes the larger part of the path in one jump, which is what a path is to
        spare it.
        """
        whole = sum(self.ways)
        if len(self.ways) < FEWEST or not whole > 0 or self.ways[0] <= whole / 2:
            return ""
        places = ", ".join(f"{sum(self.ways[: index + 1]) / whole:.0%}" for index in range(len(self.ways)))
        remedy = "record by distance ('target.record.kind: distance'), or with a lower 'target.optimizer.lr'"
        return (
            f"the path's {len(self.ways)} nodes stand at {places} of the way from the teacher, so that most of "
            f"it is one jump: {remedy}."
        )

    def read(self, index: int) -> dict[str, Tensor]:
        """The weights of node ``index`` >= 1; raises ``UserError`` naming the file when it is
        missing, damaged or not the one that was recorded.
        """
        node = self.nodes[index - 1]
        path = self.folder / node["file"]
        tensors, metadata = read_tensors(path)
        if digest_of(tensors, metadata) != node["digest"]:
            raise UserError(f"{path}: is not node {index} of this path; restore it, or record the path again.")
        return tensors

    @property
    def carrier(self) -> Denoiser:
        """A model of the kind that nodes are: the teacher, or the one ``like`` which they are."""
        return self.teacher if self._like is None else self._like

    def blank(self) -> Denoiser:
        """A frozen model of that kind, for a node to be copied into."""
        blank = freeze(copy.deepcopy(self.carrier))
        shorten_adapters(blank)
        return blank

    def load(self, index: int, into: Denoiser) -> None:
        """Copies node ``index`` (0 for the teacher) into a model of the kind that nodes are,
        strictly.
        """
        first = self.teacher.state_dict() if self._first is None else self._first
        self.fill(index, into, first if index == 0 else self.read(index))

    def fill(self, index: int, into: Denoiser, tensors: Mapping[str, Tensor]) -> None:
        """``load`` of weights that were read ahead."""
        # A frozen model may keep its weights shorter than they were recorded.
        slots = into.state_dict()
        fitting = {name: value.to(slots[name].dtype) if name in slots else value for name, value in tensors.items()}
        load_strictly(into, fitting, f"{self.folder / f'node-{index}.safetensors'}")

    def full(self, nodes: int) -> StopRule:
        """Ends the recording stage once the path has ``nodes`` nodes, the teacher counted, or was
        closed.
        """
        return _Full(self, nodes)

    def rest(self, total: int, nodes: int = 1, least: Callable[[int], int] = lambda _: 1) -> StopRule:
        """Ends the stage after the recording one when both have ``total`` steps together, but not
        before it has ``least(N)``, N being the nodes recorded; ``nodes``: as of ``full``.
        """
        return _Rest(self, total, nodes, least)

    def recorder(self, rule: RecordRule) -> Recorder:
        """A hook for the degrading phase, which records what the rule says."""
        self._rule = rule
        return Recorder(self, rule)

    def expected_steps(self, nodes: int) -> int | None:
        """How many steps the recording of a path of ``nodes`` nodes, the teacher counted, will
        take, where that is known.
        """
        return None if self._rule is None else self._rule.expected_steps(nodes)

    def state_dict(self) -> dict[str, Any]:
        return {
            "nodes": [dict(node) for node in self.nodes],
            "closed": self.closed,
            "steps": self.steps,
            "ways": list(self.ways),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Returns to an earlier length of the path; nodes recorded after it are forgotten."""
        self.nodes = [dict(node) for node in state["nodes"]]
        self.closed = state["closed"]
        self.steps = state["steps"]
        # Of a run that was made before there were any: not measured.
        self.ways = list(state.get("ways", ()))
        if self.nodes:
            self._write_manifest()

    def _write_manifest(self) -> None:
        content = {
            "format": FORMAT,
            "origin": self.origin,
            "nodes": self.nodes,
            "closed": self.closed,
            "steps": self.steps,
        }
        content |= {"ways": self.ways} if self.ways else {}
        with keeping(self.folder):
            write_text(self._manifest, json.dumps(content, indent=2, sort_keys=True) + "\n")

    def _read_manifest(self) -> None:
        if not self._manifest.is_file():
            raise UserError(
                f"{self._manifest}: there is no such file, and without it there is no path; restore it from "
                "a copy, or record the path again."
            )
        try:
            content = json.loads(self._manifest.read_text(encoding="utf-8"))
            nodes, origin, closed, steps = content["nodes"], content["origin"], content["closed"], content["steps"]
            ways = [float(way) for way in content.get("ways", ())]
            if content["format"] != FORMAT:
                raise ValueError(f"it has format {content['format']}, this version reads {FORMAT}")
            well_formed = all(
                set(node) == {"file", "digest", "step"} and Path(node["file"]).name == node["file"] for node in nodes
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self._manifest}: is not a readable path manifest ({error}); delete the folder to record again."
            ) from error
        if not well_formed:
            raise UserError(f"{self._manifest}: an entry of 'nodes' is malformed; delete the folder to record again.")
        self.origin, self.nodes, self.closed, self.steps, self.ways = origin, nodes, closed, steps, ways


@dataclass(frozen=True, eq=False)
class _Full(StopRule):
    path: DegradationPath
    nodes: int

    def finished(self, steps: int) -> bool:
        return bool(self.path.closed) or self.path.last >= self.nodes - 1

    @property
    def total(self) -> int | None:
        return self.path.expected_steps(self.nodes)


@dataclass(frozen=True, eq=False)
class _Rest(StopRule):
    path: DegradationPath
    together: int
    nodes: int
    least: Callable[[int], int]

    def finished(self, steps: int) -> bool:
        return steps >= self.total

    @property
    def total(self) -> int:
        # Before anything is recorded: what the whole path will take, where that is known.
        before = self.path.steps or (self.path.expected_steps(self.nodes) or 0)
        return max(self.together - before, self.least(self.path.last or self.nodes - 1))


class Recorder(Resumable, Hook):
    """Called after each degrading step with (step, model): records a node when its rule says so."""

    def __init__(self, path: DegradationPath, rule: RecordRule):
        self.path = path
        self.rule = rule

    def __call__(self, step: int, model: Denoiser) -> None:
        """``step`` counts the finished steps of the stage, from 1."""
        self.path.steps = step
        decision = self.rule.decide(step, model)
        if decision.record or (decision.stop and self.path.last == 0):
            self.path.record(model, step)
        if decision.stop:
            self.path.close(decision.stop)

    def decides(self, step: int) -> bool:
        return self.rule.decides(step)

    def networks(self) -> Sequence[nn.Module]:
        return self.rule.networks()

    def in_use(self) -> Sequence[nn.Module]:
        return self.rule.in_use()

    def figures(self) -> dict[str, float]:
        return {"path_nodes": self.path.last}

    def state_dict(self) -> dict[str, Any]:
        return {"path": self.path.state_dict(), "rule": self.rule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.path.load_state_dict(state["path"])
        self.rule.load_state_dict(state["rule"])


class Prefetch:
    """Reads one node ahead of its use, in a thread; at most one node waits."""

    def __init__(self, path: DegradationPath):
        self._path = path
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="path")
        self._waiting: tuple[int, Future[dict[str, Tensor]]] | None = None

    def start(self, index: int) -> None:
        """Begins to read node ``index``; node 0, the teacher, is in memory already."""
        self._waiting = (index, self._pool.submit(self._path.read, index)) if index > 0 else None

    def take(self, index: int) -> dict[str, Tensor]:
        """The weights of node ``index`` >= 1, read ahead or now."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting[0] == index:
            return waiting[1].result()
        return self._path.read(index)
