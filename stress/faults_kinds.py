"""The faults, each tried a number of times on runs of a ``Bench``, and counted (see
``faults.py``).
"""

from __future__ import annotations

import errno
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from faults_life import Ended, Life
from faults_run import LEDGER, Bench, Kept

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES)
KILLS_A_RUN = 8
SPEAK_FOR_THEMSELVES = (LEDGER, "metrics.jsonl")
"""Files of which a damaged one is cut or begun anew, and not kept: see ``system.ledger``."""
DAMAGES = ("cut", "turned", "foreign", "gone", "empty")


@dataclass
class Count:
    """``tries`` of a fault: after how many the run went on to its end (``resumed``), ended
    ``equal`` to the undisturbed one, was ``refused``, had ``lost`` something, was ``stuck``.

    ``defects`` names everything that should not be: a loss, another result, a traceback, a process
    that did not end.
    """

    tries: int = 0
    resumed: int = 0
    equal: int = 0
    refused: int = 0
    lost: int = 0
    stuck: int = 0
    defects: list[str] = field(default_factory=list)

    def saw(self, ended: Ended, where: str) -> None:
        """Counts how a process ended by a fault."""
        self.refused += ended.one_sentence and ended.code == 2
        self.stuck += ended.stuck
        if ended.stuck:
            self.defects.append(f"{where}: it did not end")
        if ended.code not in (0, None) and not (ended.one_sentence or ended.code in (-signal.SIGTERM, -signal.SIGINT)):
            self.defects.append(f"{where}: exit code {ended.code}, and said: {ended.said[-1500:]}")

    def compare(self, bench: Bench, run: Path, where: str, tries: int = 1, besides: str = "") -> None:
        """Goes on with a run to its end and compares it; counts for all ``tries`` that happened to
        it.
        """
        ended = bench.go_on(run)
        if ended.code != 0:
            self.defects.append(f"{where}: it does not go on ({ended.code}): {ended.said[-1500:]}")
            return
        self.resumed += tries
        differences = bench.differences(run, besides)
        if differences:
            self.defects.append(f"{where}: {'; '.join(differences)}")
            return
        self.equal += tries
        shutil.rmtree(run)

    def look(self, before: Kept, run: Path, where: str) -> Kept:
        """What is there after a fault; counts what is not."""
        now = Kept.of(run)
        lost = now.lost(before, run)
        self.lost += bool(lost)
        self.defects += [f"{where}: {sentence}" for sentence in lost]
        return now


def kills(bench: Bench, tries: int, chance: random.Random, on_purpose: bool) -> Count:
    """SIGKILL, some to a run: at a random moment, or ``on_purpose`` before an operation on a file
    or between the halves of one. Of several processes all are killed, or one.
    """
    count, number = Count(), 0
    while count.tries < tries:
        run, done = bench.fresh(f"kill-{number}"), 0
        number, kept = number + 1, Kept.of(run)
        while done < KILLS_A_RUN and count.tries < tries:
            where = f"run {number}, kill {done + 1}"
            rank = chance.choice((None, *range(bench.processes)))
            if on_purpose:
                at = chance.randrange(1, max(2, bench.operations // 2))
                ended = bench.begin(run, {"do": "die", "at": at, "ranks": None if rank is None else [rank]}).end()
            else:
                ended = _killed(
                    bench.begin(run), chance.uniform(0, 0.6 * bench.seconds), rank if bench.processes > 1 else None
                )
            if ended.code == 0:
                break
            count.tries, done = count.tries + 1, done + 1
            count.saw(ended, where)
            kept = count.look(kept, run, where)
        count.compare(bench, run, f"run {number}", done)
    return count


def _killed(life: Life, after: float, rank: int | None) -> Ended:
    if life.until_working():
        time.sleep(after)
        life.signal(signal.SIGKILL, rank)
    return life.end()


def stops(bench: Bench, tries: int, chance: random.Random, *numbers: int) -> Count:
    """Signals one after another at random moments: it stops at once or after a save, in one
    sentence, and loses nothing.
    """
    count = Count()
    for number in range(tries):
        run, where = bench.fresh(f"stop-{number}"), f"try {number + 1}"
        life = bench.begin(run, plain=number % 5 == 4)
        if number % 5 == 4:
            life.until_ready()
        else:
            life.until_working()
        time.sleep(chance.uniform(0, bench.seconds))
        rank = chance.choice((None, *range(bench.processes))) if bench.processes > 1 else None
        for signalled in numbers:
            life.signal(signalled, rank)
            time.sleep(chance.choice((0.0, 0.001, 0.02)))
        ended = life.end()
        count.tries += 1
        count.saw(ended, where)
        # Of several processes torchrun ends the others once one has ended: the first may not get to
        # say its code, or may say that another is gone.
        told = bench.processes > 1 and (
            ended.code is None or (ended.code == 1 and "another process of this run has ended" in ended.said)
        )
        if ended.code not in (0, 128 + numbers[0], -numbers[0]) and not told:
            count.defects.append(f"{where}: exit code {ended.code}")
        count.look(Kept(0, frozenset(), 0), run, where)
        count.compare(bench, run, where)
    return count


def full_disk(bench: Bench, tries: int, chance: random.Random) -> Count:
    """A limit on the size of files, which no checkpoint, no node or only a picture is above."""
    sizes = sorted(path.stat().st_size for path in bench.reference.rglob("*") if path.is_file() and path.stat().st_size)
    return _lives(
        bench,
        tries,
        (0, 2),
        lambda run: bench.begin(
            run, {"do": "limit", "bytes": max(500, chance.choice(sizes) - chance.choice((1, 100, 1000)))}
        ),
    )


def write_errors(bench: Bench, tries: int, chance: random.Random) -> Count:
    """An error of the disk at a random operation on a file, for once or from there on."""

    def begin(run: Path) -> Life:
        fault = {
            "do": "fail",
            "at": chance.randrange(1, bench.operations + 1),
            "errno": chance.choice(ERRORS),
            "lasting": chance.random() < 0.5,
        }
        return bench.begin(run, fault)

    return _lives(bench, tries, (0, 2), begin)


def _lives(bench: Bench, tries: int, codes: tuple[int, ...], begin: Callable[[Path], Life]) -> Count:
    """Lives of a run of its own each, which end with one of the ``codes``: 0, or 2 and a
    sentence.
    """
    count = Count()
    for number in range(tries):
        run = bench.fresh(f"life-{number}")
        life = begin(run)
        where = f"try {number + 1} ({life.fault})"
        ended = life.end()
        count.tries += 1
        count.saw(ended, where)
        if ended.code not in codes:
            count.defects.append(f"{where}: exit code {ended.code}")
        count.look(Kept(0, frozenset(), 0), run, where)
        count.compare(bench, run, where)
    return count


def clocks(bench: Bench, tries: int, chance: random.Random) -> Count:
    """Clocks that jump from the beginning to the end."""
    return _lives(bench, tries, (0,), lambda run: bench.begin(run, {"do": "clock", "seed": chance.randrange(10**6)}))


def second_launches(bench: Bench, tries: int, _: random.Random) -> Count:
    """Another process on a folder that is in use, or both at the same moment: one is refused and
    the other not disturbed.
    """
    count = Count()
    for number in range(tries):
        run, where = bench.fresh(f"twice-{number}"), f"try {number + 1}"
        first = bench.begin(run)
        if number % 2:
            first.until_working()
        second = Life(
            ["distill", str(bench.recipe), "--out", str(run), "--resume"],
            run,
            run.parent / f"{run.name}-second-said",
            bench.processes,
        )
        found = [second.end(), first.end()]
        count.tries += 1
        for ended in found:
            count.saw(ended, where)
        # Where the second begins after the first has ended, it goes on with a run that has ended,
        # and says nothing.
        if 0 not in [ended.code for ended in found] or any(
            ended.code == 2 and "another fewstep process" not in ended.said for ended in found
        ):
            count.defects.append(
                f"{where}: exit codes {[ended.code for ended in found]}: {[ended.said[-300:] for ended in found]}"
            )
        count.compare(bench, run, where)
    return count


def damages(bench: Bench, tries: int, chance: random.Random) -> Count:
    """Each file of a run that has ended, and of one that was stopped on its way, cut short, with a
    bit turned, replaced by another's, or gone; ``tries`` times over.
    """
    count = Count()
    other = Bench.of(bench.folder / "other", bench.processes, bench.mode, seed=1)
    stopped, others = (_stopped(each, each.fresh("stopped")) for each in (bench, other))
    for source, foreign in ((stopped, others), (bench.reference, other.reference)):
        for name in sorted(
            path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file() and path.name != "lock"
        ):
            for what in DAMAGES * tries:
                _damaged(bench, source, name, what, foreign, count, chance)
    return count


def _stopped(bench: Bench, run: Path) -> Path:
    """A run that was stopped after its path was recorded."""
    life = bench.begin(run)
    life.until(lambda: (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_bytes().count(b"\n") > 52)
    life.signal(signal.SIGTERM)
    life.end()
    return run


def _damaged(
    bench: Bench, source: Path, name: str, what: str, foreign: Path, count: Count, chance: random.Random
) -> None:
    """One try.

    A run that goes on must end as if nothing had been, but for the damaged file where nothing makes
    it again, and must keep what it found there under another name where it writes that file anew;
    one that is refused must go on once the file is restored.
    """
    run, where = bench.fresh("damaged", source), f"{source.name}/{name} {what}"
    path = run / name
    before = [each.read_bytes() for each in run.rglob("*") if each.is_file()] if name == LEDGER else []
    _damage(path, what, foreign / name, chance)
    found = None if what == "gone" else path.read_bytes()
    ended = bench.go_on(run)
    count.tries += 1
    count.saw(ended, where)
    if ended.code == 0:
        count.resumed += 1
        # Without its ledger a run takes what it wrote for somebody's.
        stood = before if found is None else [*before, found]
        differences = bench.differences(run, name, stood)
        if found is not None and name not in SPEAK_FOR_THEMSELVES and path.is_file():
            replaced = path.read_bytes() != found
            differences += [f"{name}: what stood there is lost"] if replaced and found not in bench.aside(run) else []
        count.equal += not differences
        count.defects += [f"{where}: {'; '.join(differences)}"] if differences else []
        return
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(source / name, path)
    count.compare(bench, run, f"{where}, restored")


def _damage(path: Path, what: str, foreign: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if what == "gone":
        path.unlink()
        return
    if what == "foreign" and foreign.is_file():
        content = bytearray(foreign.read_bytes())
    elif what == "turned" and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    else:
        del content[chance.randrange(len(content) + 1) if what == "cut" else 0 :]
    path.write_bytes(content)
