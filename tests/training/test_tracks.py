"""Who is told how a run goes: several at once, TensorBoard and Weights & Biases, read back from
their files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_kit import history

from fewstep.errors import UserError
from fewstep.training import Listener, Monitor, Probe, Reading, Silent, TensorBoard, WandB
from fewstep.training.listeners import Several, open_track
from fewstep.training.monitors import Check
from fewstep.training.reporting.log import read_log
from interrupt_kit import Interrupted, Interrupter


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leaves this machine."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


class Told(Listener):
    """Keeps all that it is told, in order."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def began(self, folder, step) -> None:
        self.heard.append(("began", step))

    def stage(self, name, total, done) -> None:
        self.heard.append(("stage", name, done))

    def step(self, done, note) -> None:
        self.heard.append(("step", done))

    def figures(self, step, figures) -> None:
        self.heard.append(("figures", step, dict(figures)))

    def finished(self) -> None:
        self.heard.append(("finished",))

    def __enter__(self):
        self.heard.append(("enter",))
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.heard.append(("exit", kind))


class Worried(Check):
    """Always off."""

    def read(self, step, recent) -> Reading:
        return Reading("worry", 2.0, "all is not well.")


def picture_probe(folder: Path, listener: Listener) -> Probe:
    """Tells of a picture every ten steps, as a distillation does."""

    def measure(step: int) -> dict[str, Any]:
        path = folder / f"{step}.png"
        Image.fromarray(np.full((4, 6, 3), step, dtype=np.uint8)).save(path)
        listener.picture(step, path)
        return {"file": path.name}

    return Probe("samples", 10, measure)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in read_log(folder / "metrics.jsonl") if name in line]


def same(shown: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    """The same steps, once each, and the same values, which TensorBoard keeps in 32 bits."""
    assert [step for step, _ in shown] == [step for step, _ in expected]
    assert [value for _, value in shown] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_several_are_told_the_same_in_the_order_of_the_run(small_run):
    run, first, second = small_run(steps=4), Told(), Told()
    run.trainer(listeners=[first, second], probes=[Probe("odd", 4, lambda step: {"value": step})]).fit()
    assert first.heard == second.heard
    kinds = [entry[0] for entry in first.heard]
    assert kinds[:3] == ["enter", "began", "figures"]
    assert kinds[-2:] == ["finished", "exit"]
    assert [entry[1] for entry in first.heard if entry[0] == "step"] == [1, 2, 3, 4]
    told = [
        (step, figures["student.gap"])
        for _, step, figures in (e for e in first.heard if e[0] == "figures")
        if "student.gap" in figures
    ]
    assert told == logged(run.folder, "student.gap")
    assert [(e[1], e[2]["odd.value"]) for e in first.heard if e[0] == "figures" and "odd.value" in e[2]] == [
        (0, 0),
        (4, 4),
    ]


def test_each_is_left_when_another_fails_as_it_is_entered():
    class Failing(Listener):
        def __enter__(self):
            raise UserError("no.")

    told = Told()
    with pytest.raises(UserError, match="no"), Several([told, Failing()]):
        pass
    assert told.heard == [("enter",), ("exit", UserError)]


def test_tensorboard_shows_figures_nodes_pictures_and_warnings(small_run):
    run, board = small_run(nodes=3, record=2, steps=20), TensorBoard()
    board.say("before anything.")
    monitor = Monitor([Worried()], every=10)
    run.trainer(listeners=[board], probes=[monitor, picture_probe(run.folder, board)]).fit()
    same(scalars(run.folder, "student/gap"), logged(run.folder, "student.gap"))
    same(scalars(run.folder, "degrade/gradient_norm"), logged(run.folder, "degrade.gradient_norm"))
    same(scalars(run.folder, "path_nodes"), logged(run.folder, "path_nodes"))
    assert [step for step, _ in scalars(run.folder, "health/worry")] == [0, 10, 20, 24]
    found = EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    assert [(image.step, image.width, image.height) for image in found.Images("samples")] == [
        (step, 6, 4) for step in (0, 10, 20, 24)
    ]
    texts = [(event.step, event.tensor_proto.string_val[0].decode()) for event in found.Tensors("said/text_summary")]
    assert texts[0] == (0, "before anything.")
    assert (10, "step 10: all is not well.") in texts


def test_tensorboard_goes_on_where_a_run_goes_on(small_run):
    """What was shown after the checkpoint is made again, and shown once."""
    run = small_run("cut", steps=20)
    with pytest.raises(Interrupted):
        run.trainer(listeners=[TensorBoard(), Interrupter(14)]).fit()
    assert scalars(run.folder, "student/gap")[-1][0] == 14
    small_run("cut", steps=20).trainer(listeners=[TensorBoard()]).fit(resume=True)
    shown = scalars(run.folder, "student/gap")
    same(shown, logged(run.folder, "student.gap"))
    assert [step for step, _ in shown] == list(range(2, 21, 2))


def test_wandb_holds_the_history_and_goes_on_in_the_same_run(small_run):
    run, track = small_run("run", nodes=3, record=2, steps=20), WandB()
    with pytest.raises(Interrupted):
        run.trainer(
            listeners=[track, Interrupter(14)],
            probes=[Monitor([Worried()], every=10), picture_probe(run.folder, track)],
        ).fit()
    rows = history(run.folder)
    gaps = [(int(row["step"]), float(row["student/gap"])) for row in rows if "student/gap" in row]
    same(gaps, logged(run.folder, "student.gap"))
    assert {int(row["step"]) for row in rows if "path_nodes" in row} >= {2, 4}
    assert sum('"image-file"' in row.get("samples", "") or "samples._type" in row for row in rows) == 2
    assert any("all is not well" in row.get("said", "") for row in rows)
    small_run("run", nodes=3, record=2, steps=20).trainer(
        listeners=[WandB()], probes=[Monitor([Worried()], every=10), picture_probe(run.folder, Silent())]
    ).fit(resume=True)
    parts = [path.name.rpartition("-")[2] for path in run.folder.glob("wandb/offline-run-*")]
    assert parts == [(run.folder / "wandb-id.txt").read_text()] * 2
    shown = {int(row["step"]): float(row["student/gap"]) for row in history(run.folder) if "student/gap" in row}
    same(sorted(shown.items()), logged(run.folder, "student.gap"))


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_track_whose_extra_is_missing_is_one_sentence(name, module, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf"is not installed: pip install 'fewstep\[{name}\]'\."):
        open_track(name)


def test_a_name_that_is_no_track_is_one_sentence():
    with pytest.raises(UserError, match="there is no 'trackio'; give tensorboard or wandb"):
        open_track("trackio")
