"""The loop: stages one after another, phases in turn, everything else at its cadence.

A step draws its states from its place (see ``random``), most of them while the step before computes
(``ahead``); each phase due takes its turn (``turns``) and calls its hook, and what it does not use
may wait elsewhere meanwhile (``offload``). Nothing the loop does
depends on how often it was interrupted: a run that was killed and resumed ends byte-equal to one
that was not, on the same machine and thread count.

Nothing that is not a finite number is stepped, averaged, recorded or saved. A flag on the device,
common to all processes, is raised by a loss or a gradient norm that is not finite, and never
lowered: optimizers and averages leave out the step that raised it and all after it. The host reads
what a step reports one step late, so that it does not wait for the device, and stops
(``Diverged``); before a hook that decides, a line of the log, a probe, a checkpoint and a stage's
end it reads all (``inbox``). What a checkpoint would hold is looked at before it is written
(``snapshots``).

Several processes work off the same stages, each on its rows of the batch (see ``layout``). All take
every turn of the loop together: what may end or bend it (a loss that is not finite, a signal, a
checkpoint written in the background) is summed over them first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fewstep.cost import metered
from fewstep.denoisers import Averaged, HalfLife, device_of
from fewstep.denoisers.average import Decay
from fewstep.errors import NotFinite, Stopped
from fewstep.random import Key
from fewstep.resumable import find_resumable
from fewstep.states import Step
from fewstep.system import distributed
from fewstep.system.ending import StopRequest, stop_requests
from fewstep.system.locks import locked
from fewstep.targets import decides
from fewstep.training.ahead import Ahead
from fewstep.training.layout import Sharded, build_layout
from fewstep.training.listeners.listener import Listener, Several
from fewstep.training.monitors import Monitor
from fewstep.training.offload import build_room, networks_in
from fewstep.training.phase import (
    Phase,
    Stage,
    Term,
    all_modules,
    build_optimizers,
    check_optimizers,
    computes_in_full,
    named_networks,
)
from fewstep.training.probes import Probe, ProbeRounds
from fewstep.training.reporting.inbox import Inbox
from fewstep.training.reporting.journal import Journal, noted
from fewstep.training.reporting.reports import Report
from fewstep.training.saving.best_student import NAME, BestStudent
from fewstep.training.saving.checkpoint import CHECKPOINTS
from fewstep.training.saving.saver import Saver
from fewstep.training.saving.snapshots import CheckpointContent, Optimizers, Snapshots
from fewstep.training.settings import Progress, Settings
from fewstep.training.turns import Turns


class Trainer:
    """Runs ``stages`` in ``folder`` and keeps the average of the model ``average``; or keeps an
    ``Averaged`` which the phases move themselves.

    ``fit`` returns the averaged model. The folder holds ``metrics.jsonl``, ``checkpoints/`` and a
    lock. ``best`` keeps the best student beside the last, and may end the last stage.
    """

    def __init__(
        self,
        folder: Path | str,
        stages: Sequence[Stage],
        average: nn.Module,
        settings: Settings | None = None,
        decay: Decay | None = None,
        probes: Sequence[Probe | Monitor] = (),
        listeners: Sequence[Listener] = (),
        best: BestStudent | None = None,
    ):
        self.folder = Path(folder)
        self.stages = list(stages)
        self.settings = settings or Settings()
        self.model = average
        self.average = average if isinstance(average, Averaged) else Averaged(average, decay or HalfLife(200.0))
        self.listener = Several(listeners)
        self.progress = Progress()
        self.networks = named_networks(self.stages)
        if not any(self.average is network for network in self.networks.values()):
            self.networks["average"] = self.average
        self._stateful = find_resumable(self.stages)
        self._best = best
        if best is not None:
            self.networks[NAME], self._stateful[NAME], probes = best.model, best, [*probes, best.probe]
        self._device = self.settings.device or device_of(self.average)
        halved = self.settings.precision == "bf16" and not computes_in_full(self.stages)
        self._layout = build_layout(self.settings.mode, self.settings.replicas, self._device.type, halved)
        check_optimizers(self.stages, isinstance(self._layout, Sharded))
        self._room = build_room(self.settings.offload, self.settings.mode, self._device)
        self._turns = Turns(self._layout, self.settings, self._device, average, self.average)
        kind = self.settings.checkpoints or ("shards" if isinstance(self._layout, Sharded) else "file")
        self._saver = Saver(self.folder / CHECKPOINTS, self.settings.keep, self.settings.run, kind)
        self._journal = Journal(self.folder / "metrics.jsonl", self.listener)
        kept = CheckpointContent(self.stages, self.networks, self._stateful, self._journal)
        self._snapshots = Snapshots(kept, self._saver, self.settings, self.listener.say)
        self._used_by_probes = list(networks_in([p.uses if isinstance(p, Probe) else p for p in probes]))
        self._probes = ProbeRounds(
            probes, self._journal, self.listener.say, self.settings.seed, self._device, self._room
        )
        self._inbox = Inbox(self._journal, self._snapshots.way_back, self._to_blame)
        self._ahead = Ahead(self.settings, self._device)
        self._optimizers: Optimizers = {}

    def fit(self, resume: bool = False) -> nn.Module:
        """Trains to the end; with ``resume`` from the newest whole checkpoint, where there is one.

        Raises ``UserError`` when the folder is in use, ``Diverged`` on what is not finite,
        ``Stopped`` after SIGTERM or Ctrl-C, having saved.
        """
        distributed.in_step(self.settings.check_portions)
        with locked(self.folder), stop_requests() as stop, self.listener, self._ahead:
            self._lay_out()
            found = self._snapshots.restore() if resume else None
            if found is None:
                self._start()
            else:
                self.progress, self._optimizers = found
                self.listener.began(self.folder, self.progress.step)
                if self._best is not None:
                    self._best.write_again()
            try:
                for stage in self.stages[self.progress.stage :]:
                    self._run_stage(stage, stop)
            except NotFinite as error:
                raise self._snapshots.way_back.diverged(str(error).removesuffix(".")) from error
            finally:
                # However it ends: DDP's modules must be gone before their group is.
                self._turns.forget()
            self.bring(self.average)
        return self.average.average

    def bring(self, *models: nn.Module | None) -> None:
        """Brings these models to the device, for whoever uses them after ``fit``; where networks
        may wait, all others do.
        """
        self._room.take_in(models)

    def advance(self, steps: int) -> None:
        """Begins the run, where it has not begun, and makes ``steps`` steps of its first stage,
        which nothing ends, saves or stops: for whoever measures what a step costs.
        """
        stage = self.stages[0]
        if not self._turns.ready:
            distributed.in_step(self.settings.check_portions)
            self._lay_out()
            self._start()
            self._optimizers = build_optimizers(stage)
            self._turns.prepare(stage)
        with self._ahead:
            for _ in range(steps):
                self._step(stage, StopRequest())
        self._inbox.read()

    def _lay_out(self) -> None:
        self._layout.lay_out(all_modules(self.stages, self.networks, self._stateful))
        everything = all_modules(self.stages, self.networks, self._stateful)
        self._room.settle(itertools.chain(everything, self._used_by_probes))

    def _start(self) -> None:
        """Begins a run; a folder in which one has made a step or saved is not touched."""
        self._saver.checkpoints.check_none()
        self._journal.log.begin()
        self.listener.began(self.folder, 0)
        self._probes.take(self.progress)

    def _run_stage(self, stage: Stage, stop: StopRequest) -> None:
        progress = self.progress
        if progress.stage_step == 0:
            self._begin(stage)
        self._optimizers = self._optimizers or build_optimizers(stage)
        self._turns.prepare(stage)
        self.listener.stage(stage.name, stage.total, progress.stage_step)
        while not self._ended(stage):
            self._step(stage, stop)
            if self._ended(stage):
                break
            if stop.signal or progress.step % self.settings.checkpoint_every == 0:
                self._save()
            self._stop_if_asked(stop)
        self._inbox.read()
        if progress.stage == len(self.stages) - 1:
            self._finish(stage)
            return
        self.progress, self._optimizers = Progress(progress.stage + 1, 0, progress.step, progress.evaluations), {}
        self._save()
        self._stop_if_asked(stop)

    def _ended(self, stage: Stage) -> bool:
        """Whether a stage ends here; the last one also where no better student comes any more."""
        return stage.finished(self.progress.stage_step) or (self._best is not None and self._best.out_of_patience)

    def _begin(self, stage: Stage) -> None:
        """Runs the stage's actions, which count."""
        if self._best is not None and stage is self.stages[-1]:
            self._best.begin_last_stage()
        self._room.take_in(stage.begin)
        with metered() as meter:
            for action in stage.begin:
                action.run()
                if action.remark:
                    self.listener.say(action.remark)
        self.progress.evaluations += int(distributed.total(torch.tensor([meter.evaluations], dtype=torch.float64))[0])

    def _finish(self, stage: Stage) -> None:
        """The last checkpoint stands at the end of the last stage, with its optimizers, so that a
        run can be extended; what comes after it is done again by a resumed run.
        """
        self._save()
        self._saver.finish()
        if self._journal.pending:
            self._journal.write(self.progress, stage.name)
        self._probes.take(self.progress, last=True)
        if self._best is not None and self._best.out_of_patience:
            self.listener.say(self._best.ending)
        self.listener.finished()

    def _step(self, stage: Stage, stop: StopRequest) -> None:
        progress, settings = self.progress, self.settings
        steps = self._ahead.take(stage, Key(settings.seed, stage.name, progress.stage_step))
        with metered() as meter:
            for phase in stage.due(progress.stage_step):
                self._take_turn(phase, steps, stage)
        self._ahead.learn(stage, steps)
        progress.stage_step += 1
        progress.step += 1
        progress.evaluations += self._agree(meter.evaluations, stop)
        figures = {key: value for found in self._stateful.values() for key, value in found.figures().items()}
        line = progress.step % settings.log_every == 0 or figures != self._journal.figures
        if line or self._probes.due(progress.step):
            self._inbox.read()
        else:
            self._inbox.end_step()
        if line:
            self._journal.figures = figures
            self._journal.write(progress, stage.name)
        self._probes.take(progress)
        self.listener.step(progress.stage_step, noted(figures))

    def _take_turn(self, phase: Phase, steps: Sequence[Step], stage: Stage) -> None:
        rate, optimizer = phase.optimizer.rate(self.progress.stage_step, stage.total), self._optimizers[phase.name]
        self._room.take_in(phase, *([self.average] if phase.network is self.model else []), optimizer=optimizer)
        report = self._turns.take(phase, steps, optimizer, rate)
        self._inbox.put(report, f"at step {self.progress.step + 1} (stage '{stage.name}')")
        if phase.after_step is not None:
            done = self.progress.stage_step + 1
            if decides(phase.after_step, done):
                self._inbox.read()
            phase.after_step(done, phase.network)

    def _to_blame(self, report: Report) -> Sequence[Term]:
        self._room.take_in(report.phase)
        return self._turns.to_blame(report)

    def _save(self) -> None:
        self._inbox.read()
        self._snapshots.save(self.progress, self._optimizers)

    def _agree(self, evaluations: int, stop: StopRequest) -> int:
        """What all processes must know alike at the end of a step: the evaluations of all, whether
        one was asked to stop, whether all have written what they write in the background.
        """
        counts = distributed.total(torch.tensor([evaluations, self._saver.busy], dtype=torch.float64))
        stop.signal = distributed.largest(stop.signal)
        if not counts[1]:
            self._saver.finish()
        return int(counts[0])

    def _stop_if_asked(self, stop: StopRequest) -> None:
        if stop.signal:
            self._saver.finish()
            raise Stopped(f"stopped and saved at step {self.progress.step}; go on with --resume.", stop.signal)
