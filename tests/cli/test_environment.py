"""What torchrun's variables may say when a command starts: what cannot be meant is one sentence,
and nobody waits for processes that do not come without saying so.
"""

from __future__ import annotations

import datetime
import socket

import pytest
from cli_kit import called, failed

from fewstep.errors import UserError
from fewstep.recipes.building.device import resolve_device
from fewstep.system import distributed

NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_USE_AGENT_STORE",
)


def surrounded(monkeypatch: pytest.MonkeyPatch, variables: str) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for each in variables.split():
        monkeypatch.setenv(*each.split("=", 1))


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ("RANK=0", "RANK is 0 in the environment, and WORLD_SIZE is not set"),
        ("WORLD_SIZE=2", "WORLD_SIZE is 2 in the environment, and RANK is not set"),
        ("RANK=0 WORLD_SIZE=2", "not where they meet (MASTER_ADDR and MASTER_PORT)"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1", "not where they meet (MASTER_PORT)"),
        ("RANK=abc WORLD_SIZE=2", "RANK is 'abc' in the environment; it must be a whole number from 0"),
        ("RANK=-1 WORLD_SIZE=2", "RANK is '-1'"),
        ("RANK=5 WORLD_SIZE=2", "RANK is 5 in the environment, and WORLD_SIZE is 2"),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE is '0'"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=port", "MASTER_PORT is 'port'"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=70000", "MASTER_PORT is 70000"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(variables, sentence, monkeypatch):
    surrounded(monkeypatch, variables)
    said = failed(called("recipes"))
    assert sentence in said
    assert "unset RANK and WORLD_SIZE" in said


@pytest.mark.parametrize(
    "variables",
    [
        "RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1",
        "RANK=0 WORLD_SIZE=1",
        "WORLD_SIZE=1",
        "RANK=0 WORLD_SIZE=1 MASTER_ADDR=nobody.invalid MASTER_PORT=9",
        "RANK= ",
    ],
)
def test_a_process_that_is_all_of_its_group_needs_nobody(variables, monkeypatch):
    """Also where an address is left of another day."""
    surrounded(monkeypatch, variables)
    result = called("recipes")
    assert (result.returncode, result.stderr) == (0, "")
    assert "digits-disback" in result.stdout


@pytest.mark.parametrize("number", [0, 1])
def test_processes_that_do_not_come_are_not_waited_for_for_ever(number, monkeypatch):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    surrounded(monkeypatch, f"RANK={number} WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={port}")
    monkeypatch.setattr(distributed, "LONGEST_START", datetime.timedelta(seconds=1))
    monkeypatch.setattr(distributed, "QUIET_START", 0.05)
    result = called("recipes")
    waits, ends = result.stderr.strip().splitlines()
    assert waits == f"fewstep: process {number} of 2 waits for the others at 127.0.0.1:{port}."
    assert ends.startswith(
        f"fewstep: process {number} of 2 (RANK and WORLD_SIZE in the environment) did not meet the others "
        f"at 127.0.0.1:{port}: "
    )
    assert result.returncode == 2


def test_a_number_of_a_card_that_is_not_there_is_said_where_a_card_is_asked_for(monkeypatch):
    """Not by torch, when the group is joined: a run on the CPU has no use for it."""
    surrounded(monkeypatch, "RANK=0 WORLD_SIZE=1 LOCAL_RANK=3")
    asked: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", asked.append)
    with distributed.joined():
        assert resolve_device("cpu").type == "cpu"
        with pytest.raises(UserError, match=r"this is process 4 of this machine, which has 2 GPU\(s\)"):
            resolve_device("auto")
    assert not asked
    monkeypatch.setenv("LOCAL_RANK", "1")
    with distributed.joined():
        assert asked == [1]
