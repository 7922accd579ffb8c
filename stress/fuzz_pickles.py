"""Does the reader of foreign pickles ever crash, hang, take memory or run something? Mutated and
made-up files, for some minutes.

    python stress/fuzz_pickles.py --minutes 10

Half of the files are whole ones with damage: bytes turned, pieces moved between places, opcodes put
for others, cut ends, opcodes behind the end; the rest are made of opcodes and names alone, hostile
ones among them. Each is read and loaded as a network. It may load, or be refused by a
``UserError``; any other exception is a defect. Audit hooks count what Python reports of imports,
code, processes and other files while a file is read, and functions that a hostile file would call
are replaced by ones that count. File i of a seed is always the same.
"""

from __future__ import annotations

import argparse
import builtins
import json
import os
import pickle
import pickletools
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import UserError
from fewstep.zoo import nvidia

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "zoo"))
from release_kit import Watch, named, program, release, text

RESULTS = Path(__file__).parent / "results"
OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
NAMES = [
    *(
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("pickle", "loads"),
        ("torch", "load"),
        ("numpy", "load"),
    ),
    *(
        ("torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.storage", "_load_from_bytes"),
    ),
    *(
        ("collections", "OrderedDict"),
        ("builtins", "set"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "scalar"),
        ("torch.nn.modules.container", "ModuleDict"),
        ("torch", "FloatStorage"),
    ),
]
COMMANDS = ["import os", "__import__('os').system('true')", "true"]


def pieces(content: bytes) -> list[int]:
    """Where the opcodes of a whole file begin."""
    return [position for _, _, position in pickletools.genops(content) if position is not None]


def turned(content: bytearray, starts: list[int], chance: random.Random) -> None:
    """A few bytes, one bit or all."""
    for _ in range(chance.choice((1, 1, 2, 8))):
        key = chance.randrange(len(content))
        content[key] = content[key] ^ (1 << chance.randrange(8)) if chance.random() < 0.5 else chance.randrange(256)


def substituted(content: bytearray, starts: list[int], chance: random.Random) -> None:
    """Opcodes for other opcodes, their arguments left."""
    for _ in range(chance.choice((1, 2, 5))):
        content[chance.choice(starts)] = chance.choice(OPCODES)[0]


def spliced(content: bytearray, starts: list[int], chance: random.Random) -> None:
    """A run of opcodes moved to, or put over, another place."""
    begin = chance.randrange(len(starts))
    end = min(len(starts) - 1, begin + chance.choice((1, 2, 5, 30)))
    key, piece = chance.choice(starts), bytes(content[starts[begin] : starts[end]])
    content[key : key + (len(piece) if chance.random() < 0.5 else 0)] = piece


def cut(content: bytearray, starts: list[int], chance: random.Random) -> None:
    """The end is missing, at an opcode or inside of one."""
    del content[chance.choice(starts) if chance.random() < 0.5 else chance.randrange(len(content)) :]


def lengthened(content: bytearray, starts: list[int], chance: random.Random) -> None:
    """More opcodes: behind the end, or somewhere inside."""
    key = len(content) if chance.random() < 0.3 else chance.choice(starts)
    content[key:key] = b"".join(made_opcode(chance) for _ in range(chance.choice((1, 3, 10))))


def renumbered(content: bytearray, starts: list[int], chance: random.Random) -> None:
    """Whole numbers for others, among them those at which types end."""
    numbers = [
        start
        for start in starts
        if content[start : start + 1] in (pickle.BININT1, pickle.BININT2, pickle.BININT, pickle.BINGET)
    ]
    for _ in range(chance.choice((1, 3)) if numbers else 0):
        key = chance.choice(numbers)
        content[key : key + 2] = chance.choice(
            (
                bytes([content[key], chance.randrange(256)]),
                pickle.BININT + struct.pack("<i", chance.choice((-1, 2**31 - 1, -(2**31)))),
            )
        )


MUTATIONS: tuple[Callable[[bytearray, list[int], random.Random], None], ...] = (
    turned,
    substituted,
    spliced,
    cut,
    lengthened,
    renumbered,
)


def made_opcode(chance: random.Random) -> bytes:
    """One opcode with an argument, or a name, or a call of one."""
    numbers = bytes(chance.randrange(256) for _ in range(9))
    return chance.choice(
        (
            named(*chance.choice(NAMES)),
            named(*chance.choice(NAMES))
            + text(chance.choice(COMMANDS))
            + pickle.TUPLE1
            + chance.choice((pickle.REDUCE, pickle.NEWOBJ)),
            text(chance.choice(["type", "class", "state", "version", "_modules", "_parameters", "ema", "x" * 300])),
            pickle.BINBYTES + struct.pack("<I", 4) + numbers[:4],
            chance.choice((pickle.BINBYTES8, pickle.BINUNICODE8, pickle.FRAME))
            + struct.pack("<Q", chance.choice((1, 10 * 2**30, 2**63, 2**64 - 1))),
            pickle.LONG1 + b"\x09" + numbers,
            chance.choice((pickle.BINGET, pickle.BINPUT)) + bytes([chance.randrange(8)]),
            chance.choice(OPCODES),
        )
    )


def made(chance: random.Random) -> bytes:
    """A file of opcodes alone."""
    return program(*(made_opcode(chance) for _ in range(chance.choice((1, 3, 10, 50, 300)))))


def damaged(whole: bytes, starts: list[int], chance: random.Random) -> bytes:
    """A whole file with one or a few mutations."""
    content = bytearray(whole)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        # Places are those of the whole file; after a cut they may lie behind the end.
        inside = [start for start in starts if start < len(content)]
        if inside:
            chance.choice(MUTATIONS)(content, inside, chance)
    return bytes(content)


def trip(counts: Counter[str]) -> None:
    """What a hostile file would call counts instead; the interpreter's own use of it in this
    program is over by then.
    """

    def tripped(*_: Any, **__: Any) -> None:
        counts["executions"] += 1

    for owner, name in (
        (os, "system"),
        (os, "popen"),
        (os, "execv"),
        (subprocess, "Popen"),
        (pickle, "loads"),
        (torch, "load"),
        (builtins, "eval"),
    ):
        setattr(owner, name, tripped)


def fuzz(minutes: float, seed: int) -> dict[str, Any]:
    """Counts by outcome, the first files that did something else, the longest file in seconds, and
    memory in MiB before and at most.
    """
    wholes = [
        release(wrapper, name)
        for wrapper, name in (
            ("EDMPrecond", "SongUNet"),
            ("iDDPMPrecond", "DhariwalUNet"),
            ("VPPrecond", "DhariwalUNet"),
        )
    ]
    starts = [pieces(whole) for whole in wholes]
    counts: Counter[str] = Counter(loaded=0, refused=0, other=0, executions=0)
    sentences: Counter[str] = Counter()
    defects: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pkl"
        for whole in wholes:
            path.write_bytes(whole)
            nvidia.load(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trip(counts)
        began, files = time.monotonic(), 0
        while time.monotonic() - began < 60 * minutes:
            chance = random.Random(f"{seed}-{files}")
            which = chance.randrange(len(wholes))
            path.write_bytes(damaged(wholes[which], starts[which], chance) if chance.random() < 0.7 else made(chance))
            files += 1
            start, watch = time.monotonic(), Watch(str(path))
            try:
                with watch:
                    nvidia.load(path)
                counts["loaded"] += 1
            except UserError as error:
                counts["refused"] += 1
                sentences[str(error).removeprefix(f"{path}: ")[:24]] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                counts["other"] += 1
                defects.append(f"file {files - 1}: {type(error).__name__}: {error}")
            counts["executions"] += len(watch.events)
            defects.extend(f"file {files - 1}: {event}" for event in watch.events)
            slowest = max(slowest, time.monotonic() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = {
        "files": files,
        **counts,
        "seconds": round(time.monotonic() - began, 1),
        "slowest_file_seconds": round(slowest, 3),
    }
    return {
        **outcome,
        "memory_before_mib": before // 1024,
        "memory_peak_mib": peak // 1024,
        "seed": seed,
        "defects": defects[:20],
        "refusals": dict(sentences.most_common(15)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    result = fuzz(chosen.minutes, chosen.seed)
    for name, value in result.items():
        print(
            f"{name:24} {value}"
            if not isinstance(value, dict | list)
            else f"{name}:\n"
            + "\n".join(f"    {line}" for line in (value.items() if isinstance(value, dict) else value))
        )
    chosen.results.mkdir(parents=True, exist_ok=True)
    (chosen.results / "fuzz_pickles.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if result["other"] or result["executions"] else 0)


if __name__ == "__main__":
    main()
