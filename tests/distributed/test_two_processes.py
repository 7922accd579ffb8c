"""Two processes over gloo, spawned once, run all cases (``pair.py``); one process says what they
must come to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pair
import pytest
import torch
from safetensors.torch import load_file

from fewstep.runs import evaluate

SECONDS = 500
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the pair has left what it found."""
    base = tmp_path_factory.mktemp("pair")
    logs = [open(base / f"log-{rank}", "w+") for rank in (0, 1)]  # noqa: SIM115 (closed below)
    commands = [[sys.executable, pair.__file__, str(base), str(rank), str(base / "store")] for rank in (0, 1)]
    # The pair finds the modules that pytest has found for us.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        for command, log in zip(commands, logs, strict=True)
    ]
    try:
        codes = [process.wait(SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
        said = [(log.seek(0), log.read(), log.close())[1] for log in logs]
    assert codes == [0, 0], "\n".join(text[-3000:] for text in said)
    return base


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same runs in this process, made when asked for."""
    base, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    made: dict[tuple, dict[str, torch.Tensor]] = {}

    def run(name: str, **changes) -> dict[str, torch.Tensor]:
        key = (name, *sorted(changes.items()))
        if key not in made:
            torch.set_num_threads(1)
            label = "-".join(map(str, key))
            pair.keep(base, label, pair.run(base / label, name, **changes))
            torch.set_num_threads(threads)
            made[key] = load_file(base / f"{label}.safetensors")
        return made[key]

    return run


def apart(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of two runs' weights, which must be of the same names and shapes."""
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in wanted.items()}
    return max(float((found[name].double() - wanted[name].double()).abs().max()) for name in wanted)


@pytest.mark.parametrize("mode", pair.MODES)
@pytest.mark.parametrize("name", pair.RECIPES)
def test_two_processes_are_one(folder, alone, name, mode):
    assert apart(load_file(folder / f"{name}-{mode}.safetensors"), alone(name)) < ROUNDING


@pytest.mark.parametrize("case", ["replicas", "portions", "portions-ddp"])
def test_replicas_and_portions_are_one_process_with_the_whole_batch(folder, alone, case):
    assert apart(load_file(folder / f"{case}.safetensors"), alone("mixture2d-diff-instruct")) < ROUNDING


def test_one_process_in_portions_takes_the_same_steps(alone):
    assert 0 < apart(alone("mixture2d-diff-instruct", accumulate=4), alone("mixture2d-diff-instruct")) < ROUNDING


def test_portions_are_one_step_to_the_switch_of_a_target(folder, alone):
    """The plateau's windows count steps, not portions: the target moves at the same steps."""
    assert apart(alone("mixture2d-disback", accumulate=2), alone("mixture2d-disback")) < ROUNDING


def test_with_the_usual_epsilon_of_adam_two_processes_are_nearly_one(folder, alone):
    assert apart(load_file(folder / "usual-eps.safetensors"), alone("mixture2d-diff-instruct", eps=1e-8)) < 1e-4


def test_sharded_in_half_precision_is_near(folder, alone):
    short = apart(load_file(folder / "short.safetensors"), alone("mixture2d-diff-instruct", precision="bf16"))
    assert 0 < short < 2e-2


@pytest.mark.parametrize("case", ["in-full", "owned-portions"])
def test_what_is_computed_in_full_precision_is_sharded_in_it_and_in_portions(folder, alone, case):
    """In a run of half precision whose only objective asks for full, weights are gathered in
    full.
    """
    assert apart(load_file(folder / f"{case}.safetensors"), alone("digits-scm")) < ROUNDING


@pytest.mark.parametrize("case", ["two-one-two", "background-one-ddp", "again"])
def test_a_run_goes_on_in_another_number_of_processes_and_another_mode(folder, alone, case):
    assert apart(load_file(folder / f"{case}.safetensors"), alone("mixture2d-disback")) < ROUNDING


def test_a_run_goes_on_that_was_left_while_its_path_was_recorded(folder, alone):
    assert apart(load_file(folder / "early.safetensors"), alone("mixture2d-disback", more=pair.SLOWLY)) < ROUNDING


def test_a_sharded_run_that_was_left_twice_ends_bit_for_bit_as_one_that_was_not(folder):
    again, undisturbed = (load_file(folder / f"{name}.safetensors") for name in ("again", "mixture2d-disback-fsdp"))
    assert all(torch.equal(again[name], value) for name, value in undisturbed.items())
    logs = [_log(folder / name) for name in ("again", "mixture2d-disback-fsdp")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("name", ["mixture2d-dmd2-4step", "mixture2d-kd"])
def test_the_log_of_two_processes_is_that_of_one(folder, tmp_path, name):
    """Means over the whole batch, and the evaluations of both, those of the pairs too, of which
    each makes a block.
    """
    pair.run(tmp_path, name)
    for mine, wanted in zip(_log(folder / f"{name}-ddp"), _log(tmp_path), strict=True):
        assert mine.keys() == wanted.keys()
        assert mine["evaluations"] == wanted["evaluations"]
        for key, value in wanted.items():
            # The root mean square of a gradient is taken in each process.
            if isinstance(value, float) and key != "student.gradient":
                assert mine[key] == pytest.approx(value, rel=1e-4, abs=1e-7), key


def test_checkpoints_are_of_the_kind_that_was_asked_for(folder):
    kinds = {
        case: {path.is_dir() for path in (folder / case / "checkpoints").iterdir()}
        for case in ("mixture2d-disback-ddp", "mixture2d-disback-fsdp")
    }
    assert kinds == {"mixture2d-disback-ddp": {False}, "mixture2d-disback-fsdp": {True}}
    shards = sorted(
        path.name for path in (folder / "mixture2d-disback-fsdp" / "checkpoints" / "step-00000020").iterdir()
    )
    assert shards == ["manifest.json", *(f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2))]


def test_what_the_processes_agree_on(folder, tmp_path):
    answers = [json.loads((folder / f"answers-{rank}.json").read_text()) for rank in (0, 1)]
    assert [each.pop("share") for each in answers] == [[0, 3], [3, 3]]
    errors = [each.pop("errors") for each in answers]
    # The first process' failure, the second's, and one of both.
    assert [kind for kind, _ in errors[0]] == ["own", "shared", "own"]
    assert [kind for kind, _ in errors[1]] == ["shared", "own", "own"]
    assert [text for _, text in errors[0]] == [text for _, text in errors[1]]
    assert errors[0][0][1] == "refused in process 0."
    assert errors[0][1][1] == "refused in process 1."
    for key, kinds in (("held", ["own", "shared"]), ("unwritable", ["own", "shared"])):
        found = [each.pop(key) for each in answers]
        assert [each[0] for each in found] == kinds
        assert found[0][1] == found[1][1]
    # Of blocks of 500, 500 and 300, the first and the third; and the second, with one that is not
    # kept.
    assert [each.pop("evaluations") for each in answers] == [800, 500]
    found = [pair.untimed(each.pop("evaluation")) for each in answers]
    assert found[0] == found[1] == pair.untimed(json.loads(json.dumps(evaluate(folder / "evaluated"))))
    best = [each.pop("best") for each in answers]
    assert best[0] == best[1]
    for found, mode in zip(best[0], pair.MODES, strict=True):
        alone_found = pair.kept_best(tmp_path / mode, mode)
        assert {key: found[key] for key in ("step", "measured", "lines")} == {
            key: alone_found[key] for key in ("step", "measured", "lines")
        }
        for key in ("first", "second", "figure", "weights"):
            assert found[key] == pytest.approx(alone_found[key], rel=1e-3), key
    assert answers[0].pop("samples") == answers[0]["samples of one"] == answers[1].pop("samples")
    assert answers[0] == answers[1]
    # In one process' gradient only, of one of two terms: both say the same.
    assert all(
        "the gradient of 'broken' in phase 'student' was not finite at step 3" in sentence
        for sentence in answers[0]["diverged"]
    )
    assert all("step-00000002" in sentence for sentence in answers[0]["diverged"])
    expected = {
        "total": [3.0, 1.0],
        "largest": 3,
        "agreed": {"from": 0},
        "everyones": ["x", "xx"],
        "mean": [0.5],
        "plateau": [pytest.approx(0.55), False, False],
        "distance": [True, 0.5],
        "images": True,
    }
    assert {key: answers[0][key] for key in expected} == expected
    assert answers[0]["spread"] == [float(job) for job in range(5) for _ in range(job + 1)]


def _log(run: Path) -> list[dict]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]
