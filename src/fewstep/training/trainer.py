"""The loop: stages one after another, phases in turn, everything else at its cadence.

A step draws its states from its place (see ``random``), each phase due runs its terms, backward, clipping, its optimizer and its hook, and the average follows the student. Nothing the loop
does depends on how often it was interrupted: a run that was killed and resumed ends byte-equal to one that was not, on the same machine and thread count.

Nothing that is not a finite number is stepped, averaged, recorded or saved. A flag on the device, common to all processes, is raised by a loss or a gradient norm that is not finite, and
never lowered: optimizers and averages leave out the step that raised it and all after it. The host reads what a step reports before it calls a hook and at the step's end, and stops
(``Diverged``). What a checkpoint would hold is looked at before it is written.

Several processes work off the same stages, each on its rows of the batch (see ``layout``). All take every turn of the loop together: what may end or bend it (a loss that is not
finite, a signal, a checkpoint written in the background) is summed over them first.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import distributed
from fewstep.cost import metered
from fewstep.denoisers import Averaged, HalfLife, device_of
from fewstep.denoisers.average import Decay
from fewstep.errors import NotFinite, Stopped, UserError
from fewstep.files import locked
from fewstep.finite import first_not_finite, first_number_not_finite
from fewstep.networks.store import load_strictly
from fewstep.random import Place
from fewstep.stateful import find_stateful
from fewstep.states import Step
from fewstep.training.checkpoint import optimizer_tensors, restore_optimizer
from fewstep.training.layout import Sharded, build_layout
from fewstep.training.log import Log
from fewstep.training.monitors import Monitor
from fewstep.training.optimizer import step_unless
from fewstep.training.origins import check_origins
from fewstep.training.phase import Phase, Stage, Term, build_optimizers, named_networks, used_modules
from fewstep.training.progress import Silent, Watcher
from fewstep.training.reports import Report, Soundness
from fewstep.training.saving import Saver
from fewstep.training.settings import Probe, Progress, Settings
from fewstep.training.signals import StopRequest, stop_requests


class Diverged(UserError):
    """A loss, a gradient or a weight was not a finite number; nothing of that step is kept, and the last checkpoint is from before it."""


class Trainer:
    """Runs ``stages`` in ``folder`` and keeps the average of the model ``average``; or keeps an ``Averaged`` which the phases move themselves.

    ``fit`` returns the averaged model. The folder holds ``metrics.jsonl``, ``checkpoints/`` and a lock.
    """

    def __init__(
        self,
        folder: Path | str,
        stages: Sequence[Stage],
        average: nn.Module,
        settings: Settings | None = None,
        decay: Decay | None = None,
        probes: Sequence[Probe | Monitor] = (),
        watcher: Watcher | None = None,
    ):
        self.folder = Path(folder)
        self.stages = list(stages)
        self.settings = settings or Settings()
        self.model = average
        self.average = average if isinstance(average, Averaged) else Averaged(average, decay or HalfLife(200.0))
        self.probes = list(probes)
        self.watcher = watcher or Silent()
        self.progress = Progress()
        self._log = Log(self.folder / "metrics.jsonl")
        self.networks = named_networks(self.stages)
        if not any(self.average is network for network in self.networks.values()):
            self.networks["average"] = self.average
        self._stateful = find_stateful(self.stages)
        self._device = self.settings.device or device_of(self.average)
        self._layout = build_layout(self.settings.mode, self.settings.replicas, self._device.type, self.settings.precision == "bf16")
        self._losses: dict[str, nn.Module] = {}
        self._soundness = Soundness(self._device)
        self._reports: list[Report] = []
        self._unsaid: set[str] = set()
        self._went_on_from: int | None = None
        kind = self.settings.checkpoints or ("shards" if isinstance(self._layout, Sharded) else "file")
        self._saver = Saver(self.folder / "checkpoints", self.settings.keep, self.settings.run, kind)
        self._sums: dict[str, list[float]] = {}
        self._recent: dict[str, float] = {}
        self._figures: dict[str, float] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._began = time.monotonic()

    def fit(self, resume: bool = False) -> nn.Module:
        """Trains to the end; with ``resume`` from the newest whole checkpoint, where there is one.

        Raises ``UserError`` when the folder is in use, ``Diverged`` on what is not finite, ``Stopped`` after SIGTERM or Ctrl-C, having saved.
        """
        distributed.in_step(self._check_portions)
        with locked(self.folder), stop_requests() as stop, self.watcher:
            self._layout.lay_out(self._all_modules())
            optimizers = self._restore() if resume else None
            if optimizers is None:
                self._start()
            else:
                self._went_on_from = self.progress.step
            try:
                for _ in range(self.progress.stage, len(self.stages)):
                    self._run_stage(optimizers or {}, stop)
                    optimizers = None
            except NotFinite as error:
                raise self._diverged(str(error).removesuffix(".")) from error
            finally:
                # However it ends: DDP's modules must be gone before their group is.
                self._losses = {}
        return self.average.average

    def advance(self, steps: int) -> None:
        """Begins the run, where it has not begun, and makes ``steps`` steps of its first stage, which nothing ends, saves or stops: for whoever measures what a step costs."""
        stage = self.stages[0]
        if not self._losses:
            distributed.in_step(self._check_portions)
            self._layout.lay_out(self._all_modules())
            self._start()
            self._optimizers = build_optimizers(stage)
            self._losses = {phase.name: self._layout.prepared(phase) for phase in stage.phases}
        for _ in range(steps):
            self._step(stage, self._optimizers, StopRequest())

    def _check_portions(self) -> None:
        batch, processes, portions = self.settings.batch, distributed.size(), self.settings.accumulate
        if batch % (processes * portions):
            shared = f"which {processes} processes cannot share in 'training.accumulate' = {portions} equal portions each"
            raise UserError(f"'training.batch' is {batch}, {shared}; use a multiple of {processes * portions}.")

    def _all_modules(self) -> Iterator[nn.Module]:
        """What is to be laid out. A generator: only a layout that asks makes a stateful object allocate what it will need."""
        yield from self.networks.values()
        yield from used_modules(self.stages)
        for found in self._stateful.values():
            yield from found.networks()

    def _start(self) -> None:
        """Begins a run; a folder in which one has made a step or saved is not touched."""
        self._saver.checkpoints.check_none()
        self._log.begin()
        self._probe()

    def _run_stage(self, optimizers: dict[str, torch.optim.Optimizer], stop: StopRequest) -> None:
        stage, progress = self.stages[self.progress.stage], self.progress
        if progress.stage_step == 0:
            with metered() as meter:
                for action in stage.begin:
                    action.run()
                    if action.remark:
                        self.watcher.say(action.remark)
            progress.evaluations += int(distributed.total(torch.tensor([meter.evaluations], dtype=torch.float64))[0])
        optimizers = optimizers or build_optimizers(stage)
        self._losses = {phase.name: self._layout.prepared(phase) for phase in stage.phases}
        self.watcher.stage(stage.name, stage.total, progress.stage_step)
        while not stage.finished(progress.stage_step):
            self._step(stage, optimizers, stop)
            if stage.finished(progress.stage_step):
                break
            due = progress.step % self.settings.checkpoint_every == 0
            if due or stop.signal:
                self._save(optimizers)
            self._stop_if_asked(stop)
        if progress.stage == len(self.stages) - 1:
            self._finish(stage, optimizers)
            return
        self.progress = Progress(progress.stage + 1, 0, progress.step, progress.evaluations)
        self._save({})
        self._stop_if_asked(stop)

    def _finish(self, stage: Stage, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        """The last checkpoint stands at the end of the last stage, with its optimizers, so that a run can be extended; what comes after it is done again by a resumed run."""
        self._save(optimizers)
        self._saver.finish()
        if self._sums:
            self._write_log(stage)
        self._probe(last=True)

    def _step(self, stage: Stage, optimizers: Mapping[str, torch.optim.Optimizer], stop: StopRequest) -> None:
        progress, settings = self.progress, self.settings
        place, (start, rows) = Place(settings.seed, stage.name, progress.stage_step), distributed.share(settings.batch)
        steps = Step.portions(place, rows, start, settings.accumulate, self._device)
        with metered() as meter:
            for phase in stage.phases:
                if progress.stage_step % phase.every == 0:
                    self._run_phase(phase, steps, stage, optimizers[phase.name])
        self._read_reports(stage)
        progress.stage_step += 1
        progress.step += 1
        progress.evaluations += self._agree(meter.evaluations, stop)
        figures = {key: value for found in self._stateful.values() for key, value in found.figures().items()}
        if progress.step % settings.log_every == 0 or figures != self._figures:
            self._figures = figures
            self._write_log(stage)
        self._probe()
        self.watcher.step(progress.stage_step, _note(self._figures))

    def _agree(self, evaluations: int, stop: StopRequest) -> int:
        """What all processes must know alike at the end of a step: the evaluations of all, whether one was asked to stop, whether all have written what they write in the background."""
        counts = distributed.total(torch.tensor([evaluations, self._saver.busy], dtype=torch.float64))
        stop.signal = distributed.largest(stop.signal)
        if not counts[1]:
            self._saver.finish()
        return int(counts[0])

    def _run_phase(self, phase: Phase, steps: Sequence[Step], stage: Stage, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        report = Report(phase, steps)
        self._backward(phase, steps, self._losses[phase.name], report)
        norm = nn.utils.clip_grad_norm_(phase.trained.parameters(), phase.optimizer.clip if phase.optimizer.clip is not None else float("inf"))
        report.end(distributed.whole(norm))
        self._reports.append(report)
        self._soundness.judge(report)
        for group in optimizer.param_groups:
            group["lr"] = phase.optimizer.rate(self.progress.stage_step, stage.total)
        step_unless(optimizer, self._soundness.lost)
        if phase.network is self.model:
            self.average.update(phase.network, self._soundness.lost)
        for average in phase.averages:
            average.update(phase.network, self._soundness.lost)
        if phase.after_step is not None:
            # A hook decides on the host, which must know by now.
            self._read_reports(stage)
            phase.after_step(self.progress.stage_step + 1, phase.network)

    def _backward(self, phase: Phase, steps: Sequence[Step], loss: nn.Module, report: Report | None = None) -> None:
        """Adds up the gradients of a phase's loss over the portions of a step."""
        with self._layout.holding(phase):
            for number, step in enumerate(steps, 1):
                with self._layout.accumulating(phase, loss) if number < len(steps) else contextlib.nullcontext():
                    with torch.autocast(self._device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                        total, losses, figures, reductions = loss(step)
                    if report is not None:
                        report.add(losses, figures, reductions)
                    (total if len(steps) == 1 else total / len(steps)).backward()
                step.forget_graphs()

    def _read_reports(self, stage: Stage) -> None:
        """Takes what the phases have reported into the sums of the log; raises ``Diverged``, in all processes, when one was not finite."""
        reports, self._reports = self._reports, []
        for report, values in zip(reports, Report.gathered(reports), strict=True):
            where = f"in phase '{report.phase.name}'"
            at = f"at step {self.progress.step + 1} (stage '{stage.name}')"
            for term, value in zip(report.phase.terms, values.losses, strict=True):
                if not math.isfinite(value):
                    raise self._diverged(f"the loss of '{term.label}' {where} was {value} {at}")
            if not math.isfinite(values.norm):
                labels = " and ".join(f"'{term.label}'" for term in self._to_blame(report))
                raise self._diverged(f"the gradient of {labels} {where} was not finite {at}, though the loss was")
            for name, value in (*values.figures.items(), (f"{report.phase.name}.gradient_norm", values.norm)):
                if math.isfinite(value):
                    self._add(name, value)
                elif name not in self._unsaid:
                    self._unsaid.add(name)
                    self.watcher.say(f"the figure '{name}' was {value} {at}; where it is not finite the log leaves it out.")

    def _to_blame(self, report: Report) -> Sequence[Term]:
        """The terms whose gradients are not finite, found by taking each alone once more; all of them where none is, or where there is only one."""
        phase = report.phase
        if len(phase.terms) == 1:
            return phase.terms
        found = []
        for term in phase.terms:
            alone = replace(phase, terms=[term])
            phase.trained.zero_grad(set_to_none=True)
            self._backward(alone, report.steps, self._layout.prepared(alone))
            gradients = [(name, value.grad) for name, value in phase.trained.named_parameters() if value.grad is not None]
            if distributed.largest(int(bool(first_not_finite(gradients)))):
                found.append(term)
        phase.trained.zero_grad(set_to_none=True)
        return found or phase.terms

    def _diverged(self, what: str) -> Diverged:
        """The exception that says ``what`` was not finite and where to go on; sets aside the checkpoint from which the run has come here at once."""
        self._saver.finish()
        checkpoints, remedy = self._saver.checkpoints, "lower the learning rate or change the weighting, and start anew in another folder"
        paths = [checkpoints.folder / name for name in distributed.together(lambda: [path.name for path in checkpoints.paths()])]
        if not paths:
            return Diverged(f"{what}; nothing of that step was kept, and there is no checkpoint yet to go on from: {remedy}.")
        if self._went_on_from is None:
            return Diverged(f"{what}; nothing of that step was kept: go on from {paths[0]} with --resume, or, where it ends here again, {remedy}.")
        again = f"{what}; the run went on from {paths[0]} and ended here at once"
        if len(paths) == 1 or checkpoints.was_set_aside(self._went_on_from):
            return Diverged(f"{again}, as it will whenever it goes on: {remedy}.")
        aside = checkpoints.set_aside(paths[0]).name
        older = f"go on from {paths[1]} with --resume, or, where it ends here again, {remedy}"
        return Diverged(f"{again}, so that this checkpoint was set aside as {aside}: {older}.")

    def _add(self, name: str, value: float) -> None:
        entry = self._sums.setdefault(name, [0.0, 0])
        entry[0] += value
        entry[1] += 1

    def _write_log(self, stage: Stage) -> None:
        progress = self.progress
        entry: dict[str, Any] = {"step": progress.step, "stage": stage.name, "evaluations": progress.evaluations}
        if self._sums:
            # A checkpoint of an older version may hold sums that are not finite.
            self._recent = {name: total / count for name, (total, count) in self._sums.items() if math.isfinite(total)}
        self._log.append({**entry, **self._recent, **self._figures, "seconds": round(time.monotonic() - self._began, 3)})
        self._sums.clear()

    def _probe(self, last: bool = False) -> None:
        """Takes the measurements that are due; at the end, those that are not due as well, so that none is taken twice."""
        for probe in self.probes:
            if (self.progress.step % probe.every == 0) != last:
                position = {"step": self.progress.step, "evaluations": self.progress.evaluations}
                self._log.append({**position, "probe": probe.name, **self._finite_only(probe.name, self._measure(probe))})

    def _finite_only(self, probe: str, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The figures without those that are not finite, which are said."""
        left_out = [name for name, value in figures.items() if first_number_not_finite(value, name)]
        for name in left_out:
            self.watcher.say(f"step {self.progress.step}: '{name}' of the probe '{probe}' was not finite, and is left out of the log.")
        return {name: value for name, value in figures.items() if name not in left_out}

    def _measure(self, probe: Probe | Monitor) -> Mapping[str, Any]:
        if isinstance(probe, Probe):
            return probe.measure(self.progress.step)
        readings = probe.read(Step(Place(self.settings.seed, "monitor", self.progress.step), probe.rows, device=self._device), self._recent)
        warnings = [reading.warning for reading in readings if reading.warning and self.progress.step >= probe.warn_from]
        for warning in warnings:
            self.watcher.say(f"step {self.progress.step}: {warning}")
        return {**{reading.name: reading.value for reading in readings}, "warnings": warnings}

    def _stop_if_asked(self, stop: StopRequest) -> None:
        if stop.signal:
            self._saver.finish()
            raise Stopped(f"stopped and saved at step {self.progress.step}; go on with --resume.", stop.signal)

    def _save(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        tensors = {f"network/{n}/{k}": v for n, network in self.networks.items() for k, v in network.state_dict().items()}
        tensors |= {f"stateful/{place}/{k}": v for place, found in self._stateful.items() for k, v in found.tensors().items()}
        for name, optimizer in optimizers.items():
            tensors |= optimizer_tensors(optimizer, f"optimizer/{name}")
        stateful = {place: found.state_dict() for place, found in self._stateful.items()}
        self._check_finite(tensors, {"stateful": stateful})
        state = {
            "run": self.settings.run,
            "origins": dict(self.settings.origins),
            "progress": vars(self.progress),
            "sums": self._sums,
            "recent": self._recent,
            "figures": self._figures,
            "log_lines": self._log.lines,
            "stateful": stateful,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        self._saver.save(self.progress.step, tensors, state)
        self._went_on_from = None

    def _check_finite(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Raises ``Diverged``, in all processes, when something that a checkpoint would hold is not finite."""
        wrong = next((each for each in distributed.everyones(first_not_finite(tensors.items()) or first_number_not_finite(state)) if each), "")
        if wrong:
            raise self._diverged(f"'{wrong}' held values that are not finite after step {self.progress.step} (stage '{self.stages[self.progress.stage].name}')")

    def _restore(self) -> dict[str, torch.optim.Optimizer] | None:
        """Returns to the newest checkpoint: the optimizers of its stage, or None when there is no checkpoint."""
        found = self._saver.checkpoints.newest(self.watcher.say)
        if found is None:
            if self._log.path.is_file():
                self._check_never_saved()
                self.watcher.say("there is no checkpoint to resume from: starting from the beginning.")
                self._log.cut(0, self.watcher.say)
            return None
        state = found.state
        check_origins(f"the newest checkpoint in {self._saver.checkpoints.folder}", state.get("origins", {}), self.settings.origins, self.watcher.say)
        self.progress = Progress(**state["progress"])
        self._warn_if_not_exact(state)
        if set(state["stateful"]) != set(self._stateful):
            raise UserError(f"{self._saver.checkpoints.folder}: the checkpoint is of another set of stages; it cannot be resumed with these.")
        for place, value in state["stateful"].items():
            self._stateful[place].load_state_dict(value)
            self._stateful[place].load_tensors(found.read(f"stateful/{place}/", {}))
        for name, network in self.networks.items():
            load_strictly(network, found.read(f"network/{name}/", network.state_dict()), f"checkpoint of step {self.progress.step}, network '{name}'")
        self._sums, self._recent, self._figures = state["sums"], state["recent"], state["figures"]
        self._log.cut(state["log_lines"], self.watcher.say)
        optimizers = build_optimizers(self.stages[self.progress.stage])
        if self.progress.stage_step:
            for name, optimizer in optimizers.items():
                restore_optimizer(optimizer, f"optimizer/{name}", found)
        return optimizers

    def _check_never_saved(self) -> None:
        """Raises ``UserError`` where the log has steps after a checkpoint must have been written: it is gone, or its disk is not mounted."""
        # In the background one is whole when the next begins, at the latest.
        first = self.settings.checkpoint_every * (2 if self._saver.kind == "background" else 1)
        made = self._log.last_step()
        if made > first:
            what = f"holds no checkpoint, though the run made {made} steps"
            raise UserError(f"{self._saver.checkpoints.folder}: {what}; put its checkpoints back (is a disk not mounted?), or start anew in another folder.")

    def _warn_if_not_exact(self, state: Mapping[str, Any]) -> None:
        for what, now in (("torch", torch.__version__), ("threads", torch.get_num_threads())):
            if state[what] != now:
                self.watcher.say(f"resuming with {what} {now}, the run began with {state[what]}: the rest will not be bit for bit the same.")


def _note(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in figures.items())
