"""Does anything that a user may hand to the command line end in a traceback, a hang or a full
memory? Mutated recipes, YAML bombs, overrides, image sets, weights and run folders, counted.

    python stress/hostile.py --count 1000

Each case is one command (distill, pretrain, plan, sample, evaluate, shift, report, compare,
inspect, data, checkpoints, doctor) on files made for it (``hostile_cases.py``). It must end with
exit code 2 and exactly one sentence on stderr, which begins with ``fewstep: ``, or with 0 where the
change happens to be valid. (A run that diverges has shown its progress before it says so, and
``doctor`` prints what it found.) A traceback, more than 60 seconds of processor time (or five
minutes of waiting, on a machine that does other things as well), and more than 1 GiB of memory are
defects. So is a file of somebody's own that a command removed or replaced ("lost"), and code in a
file that was run ("executed").

Most cases run one after another in one process, which calls ``command.entry.run_command`` as the
command does and is begun anew every 100 cases and after a defect: starting one takes longer than a
case. Pictures that claim or hold many pixels, long metadata, and weights whose header claims
gigabytes run in processes of their own, ``python -m fewstep``. Memory is the most that the process
had resident during the case, with all that the interpreter and torch take (some 400 MiB): the
kernel's high-water mark, which is set back before each case. Case i of a seed is always the same;
``--only i`` runs one alone and prints what it said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hostile_worker import LIMIT_MIB, LIMIT_SECONDS, LIMIT_WAITING, Worker, alone, environment

PROGRESS = re.compile(
    r"[\w -]+: \d+/\d+ steps|step \d+: |passed over a checkpoint|.* is kept as |there is no checkpoint|resuming with "
    r"|[\w ]+: \d+ of \d+ different prompts are not in the cache; "
)
COLUMNS = (
    "cases",
    "refused",
    "valid",
    "tracebacks",
    "untidy",
    "lost",
    "executed",
    "hangs",
    "over memory",
    "crashes",
    "worst MiB",
    "worst s",
)


def judged(found: dict[str, Any], command: str) -> str:
    """The column in which it counts."""
    if "ended" in found:
        return str(found["ended"])
    if found["trace"]:
        return "tracebacks"
    if found["mib"] > LIMIT_MIB:
        return "over memory"
    if found["code"] == 0:
        return "valid"
    lines = [line for line in found["said"].splitlines() if line.strip() and not PROGRESS.match(line)]
    if found["code"] == 2 and command == "doctor" and not lines:
        return "refused"
    return (
        "refused"
        if found["code"] == 2 and len(lines) == 1 and lines[0].startswith("fewstep: ") and lines[0].isprintable()
        else "untidy"
    )


def prepare(folder: Path) -> Any:
    """Two short runs, measured while it trained and afterwards, and a teacher's file."""
    import yaml

    from hostile_values import Stock

    stock = Stock.of(folder)
    for run, name in (("run", "mixture2d-disback"), ("steps", "mixture2d-dmd2-ddil")):
        stock.recipes[name]["evaluation"]["every"] = 2
        (folder / f"{run}.yaml").write_text(yaml.safe_dump(stock.recipes[name]))
    (folder / "teacher.yaml").write_text(yaml.safe_dump(stock.recipes["mixture2d-teacher"]))
    commands = [
        ["distill", "run.yaml", "--out", "run"],
        ["distill", "steps.yaml", "--out", "steps"],
        ["pretrain", "teacher.yaml", "--out", "teacher"],
    ]
    commands += [["evaluate", "run", "--draws", "1"], ["shift", "steps"]]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "fewstep", *command],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"the whole run from which cases are made failed: {done.stderr}")
    return stock


def theirs(here: Path, stock: Any) -> set[str]:
    """The contents of a case's folder that no run of the stock's wrote."""
    from hostile_lives import contents

    ours = {digest for run in ("run", "steps", "teacher") for digest in contents(stock.folder / run).values()}
    return set(contents(here / "out").values()) - ours


def count(
    cases: int, seed: int, folder: Path, only: int | None, verbose: bool = False, kinds: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs the cases, of all ``kinds`` unless some are named; counts by kind, sentences and
    defects.
    """
    from hostile_cases import cases as made
    from hostile_foreign import TRIPWIRE
    from hostile_lives import contents

    stock = prepare(folder)
    # Whole numbers but for seconds.
    table: dict[str, dict[str, float]] = {}
    defects: list[dict[str, Any]] = []
    began = time.monotonic()
    with open(folder / "worker-stderr", "w") as errors:
        worker = Worker(errors)
        for number, case in enumerate(made(stock, cases, seed, kinds)):
            if only not in (None, number):
                continue
            start, here = time.monotonic(), folder / f"case-{number}"
            before = theirs(here, stock) if case.kind == "belongings" else set()
            found = alone(case.arguments, here) if case.fresh else worker.run(case.arguments, here)
            spent, column = time.monotonic() - start, judged(found, case.arguments[0])
            if before - set(contents(here / "out").values()):
                column = "lost"
            if (folder / TRIPWIRE).exists():
                (folder / TRIPWIRE).unlink()
                column = "executed"
            row = table.setdefault(case.kind, dict.fromkeys(COLUMNS, 0))
            row["cases"] += 1
            row[column] += 1
            row["worst MiB"], row["worst s"] = max(row["worst MiB"], found["mib"]), max(row["worst s"], round(spent, 1))
            if column not in ("refused", "valid"):
                worker.stop()
                defects.append(
                    {
                        "case": number,
                        "kind": case.kind,
                        "what": case.what,
                        "column": column,
                        "said": (found["trace"] or found["said"])[-600:],
                        "mib": found["mib"],
                    }
                )
                print(f"case {number} {case.kind} ({case.what}): {column}", flush=True)
            if verbose:
                print(
                    f"case {number} {case.kind} ({case.what!r}): {found['code']} {spent:.1f} s "
                    f"{found['mib']} MiB {found['said'][:300]!r}",
                    flush=True,
                )
            if only == number:
                print(
                    case.arguments,
                    found["code"],
                    found["said"][-3000:],
                    found["trace"],
                    f"{found['mib']} MiB, {spent:.1f} s",
                    sep="\n",
                )
        worker.stop()
    table["all"] = {
        column: max((row[column] for row in table.values()), default=0)
        if "worst" in column
        else sum(row[column] for row in table.values())
        for column in COLUMNS
    }
    limits = {"seconds": LIMIT_SECONDS, "seconds of waiting": LIMIT_WAITING, "MiB": LIMIT_MIB}
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "limits": limits,
        "kinds": table,
        "defects": defects,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Where the cases' files are made; a temporary folder unless given.")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", type=int, help="Run this case alone, and write nothing.")
    parser.add_argument("--kinds", nargs="+", default=(), help="Of these kinds alone, such as foreign.")
    parser.add_argument("--verbose", action="store_true", help="Print what each case said.")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if chosen.out is not None:
            chosen.out.mkdir(parents=True, exist_ok=True)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-", dir=chosen.out)))
        # Embeddings and moments that the user has kept are none of the cases' business.
        os.environ["FEWSTEP_CACHE"] = str(folder / "cache")
        result = count(chosen.count, chosen.seed, folder, chosen.only, chosen.verbose, chosen.kinds)
    print(f"{'':12}" + "".join(f"{column:>13}" for column in COLUMNS))
    for kind, row in result["kinds"].items():
        print(f"{kind:12}" + "".join(f"{row[column]:>13}" for column in COLUMNS))
    if chosen.only is None:
        chosen.results.mkdir(parents=True, exist_ok=True)
        (chosen.results / f"hostile{'-'.join(('', *chosen.kinds))}.json").write_text(
            json.dumps(result, indent=1) + "\n"
        )
    sys.exit(1 if result["defects"] else 0)


if __name__ == "__main__":
    main()
