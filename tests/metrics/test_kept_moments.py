"""Moments that are kept: found by what decides them, verified, and of one writer whoever writes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from fewstep.errors import UserError
from fewstep.metrics import FeatureStatistics, Reference, load_reference, save_reference
from fewstep.metrics.stored.kept_moments import KeptMoments, key_of
from fewstep.system import files

MADE = {"teacher": {"kind": "shipped", "sha": "0" * 64}, "samples": 40, "guidance": 1.5, "numbers": None}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


class Computed:
    """Moments that differ by ``shift``, and how often they were computed."""

    def __init__(self, shift: float = 0.0):
        self.times, self.shift = 0, shift

    def __call__(self) -> FeatureStatistics:
        self.times += 1
        return FeatureStatistics(torch.arange(3).double() + self.shift, torch.eye(3, dtype=torch.float64), 40)


def kept(tmp_path: Path, said: list[str] | None = None, **made: object) -> KeptMoments:
    heard = [] if said is None else said
    return KeptMoments({**MADE, **made}, "space", tmp_path / "shipped", heard.append)


def equal(one: FeatureStatistics, other: FeatureStatistics) -> bool:
    return (
        torch.equal(one.mean, other.mean) and torch.equal(one.covariance, other.covariance) and one.count == other.count
    )


def test_moments_are_computed_once_and_found_by_what_decides_them(tmp_path):
    compute, said = Computed(), []
    first = kept(tmp_path, said).get(compute)
    again = kept(tmp_path, said).get(compute)
    assert compute.times == 1
    assert equal(first, again)
    assert equal(again, Computed()())
    for other in ({"samples": 41}, {"guidance": 1.0}, {"teacher": {"kind": "shipped", "sha": "1" * 64}}):
        kept(tmp_path, said, **other).get(compute)
    assert compute.times == 4
    assert said == []
    # Whatever the order in which it is written down.
    assert key_of(dict(reversed(MADE.items()))) == key_of(MADE)


@pytest.mark.parametrize("harm", ["flipped", "cut", "other", "text"])
def test_a_file_that_is_damaged_is_passed_over_and_stays(tmp_path, harm):
    said: list[str] = []
    store = kept(tmp_path, said)
    store.get(Computed())
    (file,) = store.folder.glob("moments-*.safetensors")
    whole = file.read_bytes()
    if harm == "other":
        save_reference(file, Reference(Computed()(), "space", made={**MADE, "samples": 3}))
    else:
        flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
        file.write_bytes({"flipped": flipped, "cut": whole[:-9], "text": b"moments"}[harm])
    harmed, compute = file.read_bytes(), Computed()
    found = kept(tmp_path, said).get(compute)
    assert equal(found, Computed()())
    assert compute.times == 1
    assert len([each for each in said if "It is passed over." in each]) == 1
    assert file.read_bytes() == harmed
    assert sorted(path.name for path in store.folder.glob("moments-*")) == [
        "moments-0001.safetensors",
        "moments-0002.safetensors",
    ]
    kept(tmp_path).get(compute)
    assert compute.times == 1


def test_moments_that_ship_are_found_first_and_nothing_is_written(tmp_path):
    store, compute = kept(tmp_path), Computed(7.0)
    save_reference(store.shipped_file, Reference(Computed()(), "space", made=MADE, command="python make.py"))
    assert equal(store.get(compute), Computed()())
    assert compute.times == 0
    assert not store.folder.exists()
    # The teacher was exchanged: what ships is of another one.
    kept(tmp_path, teacher="another").get(compute)
    assert compute.times == 1


def test_what_a_file_says_is_read_as_it_was_written(tmp_path):
    said = Reference(Computed()(), "space", {"data": "0" * 64}, MADE, "python make.py")
    save_reference(tmp_path / "a.safetensors", said)
    found = load_reference(tmp_path / "a.safetensors")
    assert equal(found.statistics, said.statistics)
    assert (found.space, dict(found.origins), dict(found.made), found.command) == (
        "space",
        {"data": "0" * 64},
        MADE,
        "python make.py",
    )
    # A file of data says nothing of that, byte for byte as before there was anything to say.
    save_reference(tmp_path / "data.safetensors", Reference(said.statistics, "space"))
    assert set(files.read_metadata(tmp_path / "data.safetensors")) == {"format", "kind", "count", "space", "origins"}
    for wrong in ({"made": []}, {"command": 3}):
        plain = {"format": 1, "kind": "feature-statistics", "count": 3, "space": None, "origins": {}}
        files.write_tensors(
            tmp_path / "wrong.safetensors", {"mean": torch.zeros(1), "covariance": torch.eye(1)}, {**plain, **wrong}
        )
        with pytest.raises(UserError, match="holds no feature statistics"):
            load_reference(tmp_path / "wrong.safetensors")


def test_a_cache_that_cannot_be_written_costs_no_result(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file"))
    said: list[str] = []
    assert equal(kept(tmp_path, said).get(Computed()), Computed()())
    assert len(said) == 1
    assert "are not kept" in said[0]


def in_child(work) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_of_two_writers_the_first_counts_for_both(tmp_path):
    """Each computes other moments, and both have computed when either writes."""

    def work(number: int) -> None:
        def compute() -> FeatureStatistics:
            (tmp_path / f"computed-{number}").touch()
            while not (tmp_path / f"computed-{1 - number}").exists():
                time.sleep(0.005)
            return Computed(float(number))()

        found = kept(tmp_path).get(compute)
        (tmp_path / f"found-{number}").write_text(json.dumps(found.mean.tolist()))

    children = [in_child(lambda number=number: work(number)) for number in (0, 1)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    one, other = ((tmp_path / f"found-{number}").read_text() for number in (0, 1))
    assert one == other
    assert len(list(kept(tmp_path).folder.glob("moments-*"))) == 1


def test_a_writer_that_is_killed_leaves_a_cache_that_serves_the_next(tmp_path):
    def hang() -> None:
        def fsync(handle: int) -> None:
            (tmp_path / "writing").touch()
            time.sleep(600)

        files.os.fsync = fsync  # type: ignore[attr-defined]
        kept(tmp_path).get(Computed(3.0))

    child = in_child(hang)
    while not (tmp_path / "writing").exists():
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    compute, said = Computed(), []
    assert equal(kept(tmp_path, said).get(compute), Computed()())
    assert (compute.times, said) == (1, [])
    assert equal(kept(tmp_path).get(Computed(9.0)), Computed()())
