"""What faults do to a run, counted: kills, signals, full disks, errors of the disk, clocks that
jump, damaged files, a second launch; in one process, and in two by torchrun (DDP and FSDP).

    python stress/faults.py --kills 100

Each try runs a small recipe (DisBack in the plane, 90 steps, a checkpoint every 5,
``faults_run.py``) into a fault, goes on with ``--resume``, and compares the end byte by byte with
an undisturbed run's: student, newest checkpoint, path, pictures, recipe, and the log but for its
``seconds``. The columns:

- tries: how often the fault came
- resumed: the run went on to its end
- equal: it ended equal to the undisturbed run; where a damaged file is one that nothing reads or
  makes again, all but this file
- one sentence: the fault was refused with exit code 2 and one sentence; a damaged file was then
  restored, and the run resumed
- lost: right after the fault, a finished file was gone, a node that the manifest names was not
  whole, or the newest whole checkpoint was older than the last one due
- stuck: processes that did not end
- defects: whatever else should not be (another result, a traceback, and the two columns before)

Half of the kills come at a random moment of the work, half on purpose before an operation on a file
or in the middle of a write. Of two processes one is killed, or both with torchrun. Draws are
seeded, but the moment that a signal hits is the machine's. A part that was counted is kept below
``--out`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from faults_kinds import Count, clocks, damages, full_disk, kills, second_launches, stops, write_errors
from faults_life import preload
from faults_run import Bench

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from runner import kept

COLUMNS = {
    "tries": "tries",
    "resumed": "resumed",
    "equal": "equal",
    "refused": "one sentence",
    "lost": "lost",
    "stuck": "stuck",
    "defects": "defects",
}
Tried = Callable[[Bench, int, random.Random], Count]
# What is tried, and how often at --kills 100.
FAULTS: dict[str, tuple[Tried, int]] = {
    "SIGKILL, any moment": (partial(kills, on_purpose=False), 50),
    "SIGKILL, while writing": (partial(kills, on_purpose=True), 50),
    "SIGTERM": (lambda *given: stops(*given, signal.SIGTERM), 20),
    "Ctrl-C": (lambda *given: stops(*given, signal.SIGINT), 10),
    "Ctrl-C twice": (lambda *given: stops(*given, signal.SIGINT, signal.SIGINT), 20),
    "file-size limit": (full_disk, 20),
    "write errors": (write_errors, 50),
    "clocks that jump": (clocks, 5),
    "second launch": (second_launches, 6),
    "damaged files": (damages, 1),
}
# Damage and clocks have nothing to do with the number of processes; what is written by two is in
# their kills and errors.
IN_ONE = ("damaged files",)


def count(name: str, begun: Callable[[], Bench], tries: int, seed: int) -> dict[str, Any]:
    """Counts a fault on a bench that is begun when it is asked for."""
    tried, _ = FAULTS[name]
    bench = begun()
    began = time.monotonic()
    found = tried(bench, tries, random.Random(f"{seed}-{name}-{bench.processes}-{bench.mode}"))
    return {
        "fault": name,
        "processes": bench.processes,
        "mode": bench.mode,
        **asdict(found),
        "seconds": round(time.monotonic() - began, 1),
    }


def shown(row: dict[str, Any]) -> str:
    """A row of the table."""
    where = "1 process" if row["processes"] == 1 else f"{row['processes']}, {row['mode']}"
    return f"{row['fault']:24}{where:12}" + "".join(
        f"{len(row[key]) if key == 'defects' else row[key]:>14}" for key in COLUMNS
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills",
        type=int,
        default=100,
        help="How many in all, half of them in two processes where both are tried; other faults in proportion.",
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--modes", nargs="+", choices=["ddp", "fsdp"], default=["ddp", "fsdp"], help="Of several processes."
    )
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    several = [processes for processes in chosen.processes if processes > 1]
    benches = [
        (processes, mode) for processes in chosen.processes for mode in (chosen.modes if processes > 1 else ["ddp"])
    ]
    rows: list[dict[str, Any]] = []
    preload()
    print(f"{'':36}" + "".join(f"{title:>14}" for title in COLUMNS.values()), flush=True)
    for processes, mode in benches:
        # One process has half of all the tries, or all; the others share the rest.
        share = 1.0 if not several else 0.5 if processes == 1 else 0.5 / (len(several) * len(chosen.modes))
        folder = chosen.out.absolute() / f"{processes}-{mode}"
        begun = cache(partial(Bench.of, folder, processes, mode))
        for name in chosen.faults:
            if name in IN_ONE and processes > 1:
                continue
            tries = (
                max(1, round(FAULTS[name][1] * share * chosen.kills / 100)) if name not in IN_ONE else FAULTS[name][1]
            )
            path = folder / f"{name.replace(' ', '-').replace(',', '')}-{tries}-{chosen.seed}.json"
            rows.append(kept(path, partial(count, name, begun, tries, chosen.seed)))
            print(shown(rows[-1]), *rows[-1]["defects"], sep="\n    ", flush=True)
    content = {"kills": chosen.kills, "seed": chosen.seed, "rows": rows}
    chosen.results.mkdir(parents=True, exist_ok=True)
    (chosen.results / "faults.json").write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(1 if any(row["defects"] for row in rows) else 0)


if __name__ == "__main__":
    main()
