"""What a hostile or careless user may hand to the command line, made from a seed: recipes, overrides, YAML, image sets, files of weights, run folders (see ``hostile.py``).

Case i of a seed is always the same. What is merely a lot of work (a million steps) is no case here: it is what was asked for.
"""

from __future__ import annotations

import copy
import io
import json
import math
import random
import shutil
import stat
import string
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from fewstep.files import read_tensors, write_tensors
from fewstep.recipes import load_recipe
from fewstep.recipes.twin import twin

RECIPES = ["mixture2d-disback", "mixture2d-dmd2-ddil", "mixture2d-cd", "mixture2d-pd-ddil", "mixture2d-teacher", "emoji32-disback", "digits-fastgan", "mixture2d-kd"]
PLANNED = ["digits-disback", "imagenet64-disback", "ffhq64-fastgan-disback"]
WORDS = ["", "x", "kind", "ж\u202e😀", "\x07\x1b[31mred\x1b[0m", "a\nb", "\ud800", "a" * 5000, "../../etc/passwd", "/dev/zero", "\0", "<script>alert(1)</script>", "%s{}{0}", "no", "copy"]
HUGE = [10**9, 2**31, 2**63, 10**30, 10**400, 1e12, 1e308, -(10**9), -(2**63) - 1, -1e308]
ODD = [None, True, False, -1, 0, 0.0, -0.0, 1e-308, 5e-324, 0.5, -1.5, math.nan, math.inf, -math.inf, [], {}, [[]], [1, "a", None], {"kind": "x"}, {"kind": ["a"]}, {1: 2}, {"a": {"b": {}}}]
WHOLE = [0, 1, 2, 3, 7, 33, 100, 300, -1, -7, *(value for value in HUGE if isinstance(value, int))]
REAL = [0.0, 5e-324, 1e-308, 1e-30, 1e-6, 0.5, 0.999, 1.0, 2.0, 100.0, 1e6, 1e38, 1e308, -1.0, -1e-30, math.inf, math.nan]
TEXTS = ["[" * 500, "[" * 50_000, "{a: " * 400, "!!python/object/apply:os.system [ls]", "&a [*a]", "2001-99-99", "0x" + "f" * 50_000, "9" * 5000, "1:" * 2000 + "1", "{<<: [1]}", "'", "\x00", "? [a]: b"]
TEXTS += ["-", "{}: 1", "!!binary x", "!!set {a}", "!!int 'a'", "!!float a", "!!timestamp a", "<<", "=", "~", ".nan", ".inf", "1e999", "\ud800", "[1, 2", "{[a]: b}", "%YAML 9.9\n--- a", "a\n---\nb"]


@dataclass(frozen=True)
class Case:
    """``arguments`` of one command; ``fresh``: to be run in a process of its own."""

    kind: str
    what: str
    arguments: tuple[str, ...]
    fresh: bool = False


@dataclass(frozen=True)
class Stock:
    """What cases are made from: a whole ``run`` (one of several steps is beside it, in ``steps``), a teacher's file, and recipes by name."""

    folder: Path
    run: Path
    teacher: Path
    recipes: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, folder: Path) -> Stock:
        recipes = {}
        for name in RECIPES:
            recipes[name] = twin(load_recipe(name), 4, 4).model_dump(mode="json")
            recipes[name]["evaluation"].update(samples=20, draws=1, teacher_steps=[2])
        return cls(folder, folder / "run", folder / "teacher" / "model.safetensors", recipes)


def junk(chance: random.Random, instead: Any = None) -> Any:
    """A value that hardly any key takes; more often than not of the type of what it stands ``instead`` of, which gets further."""
    if isinstance(instead, int | float) and not isinstance(instead, bool) and chance.random() < 0.75:
        return chance.choice(WHOLE if isinstance(instead, int) else REAL)
    pool = chance.choice((WORDS, HUGE, ODD, ODD))
    value = copy.deepcopy(chance.choice(pool))
    if chance.random() < 0.05:
        for _ in range(chance.choice((5, 50, 200))):
            value = [value] if chance.random() < 0.5 else {"a": value}
    return value


def places(values: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys of all values, sections among them."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [place for key, value in inner for place in ((*before, key), *places(value, (*before, key)))]


def holder(values: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        values = values[key]
    return values


def mutate(values: Any, chance: random.Random) -> str:
    """Changes one thing in nested values; returns what."""
    place = chance.choice(places(values))
    inside, key = holder(values, place), place[-1]
    match chance.randrange(12):
        case 0 if isinstance(inside, dict):
            word = str(key)
            at = chance.randrange(len(word) + 1)
            inside[word[:at] + chance.choice(string.ascii_letters) + word[at:]] = inside.pop(key)
        case 1:
            del inside[key]
        case 2 if isinstance(inside, dict):
            inside[chance.choice(WORDS)] = junk(chance)
        case 3 if isinstance(inside[key], dict):
            inside[key] = list(inside[key].values())
        case 4 if isinstance(inside[key], dict) and "kind" in inside[key]:
            inside[key]["kind"] = chance.choice(["copy", "lora", "edm", "rho", "fixed", "every", "waves", "file", "learned", "network", "x", None, 3])
        case _:
            inside[key] = junk(chance, inside[key])
    return ".".join(map(str, place))[:60]


def recipe(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A recipe with one or a few values changed."""
    name = chance.choice(RECIPES)
    values = copy.deepcopy(stock.recipes[name])
    what = ", ".join(mutate(values, chance) for _ in range(chance.choice((1, 1, 1, 2, 4))) if places(values))
    text = yaml.safe_dump(values, sort_keys=False)
    if chance.random() < 0.05:
        text += "\ntraining: {steps: 4}\n"
    (here / "mine.yaml").write_text(text)
    command = "plan" if chance.random() < 0.05 else "pretrain" if values.get("task") == "pretrain" else "distill"
    return f"{name}: {what}", (command, str(here / "mine.yaml"), *(() if command == "plan" else ("--out", str(here / "out"))))


def bomb(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """YAML that expands, nests, or names types of the language."""
    levels = "".join(f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    makers: list[Callable[[], str | bytes]] = [
        lambda: "a: &a [x,x,x,x,x,x,x,x]\n" + levels,
        lambda: "a: " + "[" * chance.choice((300, 900, 5000, 100_000)),
        lambda: "a: " + "[" * 300 + "]" * 300,
        lambda: "task: distill\na: [" + "1," * chance.choice((10_000, 90_000, 400_000)) + "1]\n",
        lambda: "".join(f"k{i}: 1\n" for i in range(chance.choice((5000, 15_000, 100_000)))),
        lambda: "a: " * chance.choice((10, 400)) + "1",
        lambda: "task: distill\n<<: {task: pretrain}\n<<: [{a: 1}, {b: 2}]\n",
        lambda: f"task: {chance.choice(TEXTS)}\n",
        lambda: f"{chance.choice(TEXTS)}\n",
        lambda: f"teacher: !!python/object:os.system {{}}\nx: !!python/name:{chance.choice(['os.system', 'eval'])}\n",
        lambda: "task: 'distill\n" + "x" * chance.choice((100, 100_000, 2_000_000)),
        lambda: "? " * chance.choice((50, 2000)) + "a\n",
        lambda: "- " * chance.choice((50, 2000)) + "a\n",
        lambda: bytes(chance.randrange(256) for _ in range(300)),
        lambda: ("task: distill\n" + "ж" * 50).encode(chance.choice(("utf-16", "utf-32", "cp1251"))),
        lambda: "\ufefftask: distill\n",
        lambda: b"task: distill\n\x00\x00",
        lambda: "",
    ]
    content = chance.choice(makers)()
    (here / "bomb.yaml").write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    command = chance.choice(("distill", "distill", "pretrain", "plan"))
    return repr(content[:30]), (command, str(here / "bomb.yaml"), *(() if command == "plan" else ("--out", str(here / "out"))))


def override(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """``--set`` with keys and values of all kinds."""
    name = chance.choice(RECIPES)
    (here / "mine.yaml").write_text(yaml.safe_dump(stock.recipes[name], sort_keys=False))
    given: list[str] = []
    for _ in range(chance.choice((1, 1, 2))):
        place = chance.choice(places(stock.recipes[name]))
        instead = holder(stock.recipes[name], place)[place[-1]]
        key = ".".join(map(str, place))
        key = chance.choice([*[key] * 16, key + ".a", key + ".", "." + key, "", ".", "a.b.c.d", "a." * 2000 + "b", chance.choice(WORDS)])
        value = chance.choice(TEXTS) if chance.random() < 0.3 else yaml.safe_dump(junk(chance, instead), default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
        given += ["--set", f"{key}={value}" if chance.random() < 0.97 else key]
    # An argument of a process is at most 128 kB of bytes without zeros.
    given = [text.replace("\0", "\\0").encode("utf-8", "replace").decode()[:100_000] for text in given]
    command = "pretrain" if stock.recipes[name]["task"] == "pretrain" else "distill"
    if chance.random() < 0.05:
        return f"plan {given}"[:80], ("plan", chance.choice(PLANNED), *given)
    return f"{name} {given}"[:80], (command, str(here / "mine.yaml"), "--out", str(here / "out"), *given)


def png(width: int, height: int, colour: int = 2, data: bytes | None = None) -> bytes:
    """A PNG that claims a size, and holds ``data`` or that many zeros."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    if data is None:
        packer, row = zlib.compressobj(9), bytes(1 + width * {0: 1, 2: 3, 6: 4}[colour])
        data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def picture(chance: random.Random, side: int = 16, suffix: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.frombytes("RGB", (side, side), chance.randbytes(side * side * 3)).save(stream, suffix)
    return stream.getvalue()


def images(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """An image set with something wrong in it, as a zip or a folder."""
    path = here / "set.zip"
    what = chance.choice(("name", "link", "claim", "bomb", "no picture", "cut", "turned", "labels", "labels", "twice", "sizes", "no zip", "encrypted", "folder", "whole", "long json"))
    entries: list[tuple[str | zipfile.ZipInfo, bytes]] = [(f"0000{k % 2}/img{k}.png", picture(chance)) for k in range(6)]
    match what:
        case "name":
            entries.append((chance.choice(("../evil.png", "/etc/evil.png", "a/../../b.png", "C:\\x.png", "..\\x.png", "a" * 3000 + ".png", "ж\x1b[31m.png", "\n.png")), picture(chance)))
        case "link":
            entry = zipfile.ZipInfo("link.png")
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            entries.append((entry, b"/etc/passwd"))
        case "claim":
            entries[chance.randrange(6)] = ("a.png", png(chance.choice((60_000, 2**31 - 1, 0)), 60_000, data=zlib.compress(b"0" * 100)))
        case "bomb":
            side = chance.choice((3000, 5000, 8190))
            entries[0] = ("00000/a.png", png(side, side, chance.choice((0, 2, 6))))
        case "no picture":
            content = (b"", b"GIF89a" + bytes(50), b"<svg/>", chance.randbytes(500), b"\x89PNG\r\n\x1a\n", b"%PDF-1.4", picture(chance, suffix="GIF"), picture(chance, suffix="TIFF"), b"P6\n9999999 9999999\n255\n")
            entries[chance.randrange(6)] = (f"00000/a{chance.choice(('.png', '.jpg', '.webp', '.bmp', '.ppm'))}", chance.choice(content))
        case "labels" | "long json":
            names = [str(name) for name, _ in entries]
            labels: Any = {"labels": [[name, k] for k, name in enumerate(names)], "classes": [f"<script>{k}</script>" for k in range(6)]}
            mutate(labels, chance)
            text = json.dumps(labels)
            if what == "long json":
                text = chance.choice(("[" * 100_000, '{"labels": [' + "[]," * 20_000_000 + "0]}", "9" * 5000, '{"labels": NaN}', "\ud800", '{"labels": 1e999, "labels": 1}', "null"))
            entries.append(("dataset.json", text.encode("utf-8", "surrogatepass")))
        case "twice":
            entries.append(entries[0])
        case "sizes":
            entries[3] = ("00001/b.png", picture(chance, 8))
    if what == "folder":
        return _folder(here, chance)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            _write_quietly(archive, name, content)
    content = bytearray(path.read_bytes())
    if what == "cut":
        del content[chance.randrange(len(content)) :]
    elif what == "turned":
        for _ in range(chance.choice((1, 5, 50))):
            content[chance.randrange(len(content))] = chance.randrange(256)
    elif what == "no zip":
        content = bytearray(chance.choice((b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), chance.randbytes(1000), b"Rar!\x1a\x07")))
    elif what == "encrypted":
        for at in (6, content.find(b"PK\x01\x02") + 8):
            content[at] |= 1
    path.write_bytes(content)
    return what, _of_images(stock, here, path, chance)


def _write_quietly(archive: zipfile.ZipFile, name: str | zipfile.ZipInfo, content: bytes) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(name, content)


def _folder(here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    folder = here / "set"
    for k in range(4):
        (folder / f"class{k % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"class{k % 2}" / f"{k}.png").write_bytes(picture(chance))
    odd = folder / "class0" / "odd.png"
    match chance.randrange(5):
        case 0:
            odd.symlink_to("/etc/passwd")
        case 1:
            odd.symlink_to(odd)
        case 2:
            odd.mkdir()
        case 3:
            odd.symlink_to("/dev/zero")
        case _:
            (folder / "class0" / "loop").symlink_to(folder)
    return "folder", ("data", "show", str(folder))


def _of_images(stock: Stock, here: Path, path: Path, chance: random.Random) -> tuple[str, ...]:
    match chance.randrange(4):
        case 0:
            (here / "mine.yaml").write_text(yaml.safe_dump(stock.recipes["emoji32-disback"]))
            return "distill", str(here / "mine.yaml"), "--out", str(here / "out"), "--set", f"data={{kind: images, path: {path}, size: 16}}"
        case 1:
            return "data", "zip", str(path), str(here / "out.zip"), "--size", "8"
        case 2:
            return "data", "show", str(path), "--out", str(here / "sheet.png")
        case _:
            return "data", "show", str(path)


def damage(path: Path, chance: random.Random) -> str:
    """Raw damage to any file."""
    content = bytearray(path.read_bytes())
    what = chance.choice(("cut", "turned", "empty", "noise", "header", "folder", "link", "longer"))
    if what == "folder":
        path.unlink()
        path.mkdir()
        return what
    if what == "link":
        path.unlink()
        path.symlink_to(chance.choice(("nowhere", "/dev/zero", path.name)))
        return what
    if what == "cut":
        del content[chance.randrange(len(content) + 1) :]
    elif what == "turned" and content:
        for _ in range(chance.choice((1, 1, 10))):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif what == "header":
        content[:8] = struct.pack("<Q", chance.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)))
    elif what == "longer":
        content += chance.randbytes(100)
    else:
        content = bytearray(b"" if what == "empty" else chance.randbytes(1000))
    path.write_bytes(content)
    return what


def weights(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A file of weights with damage, or whole with what no run could have written."""
    role = chance.choice(("teacher", "student", "start", "features", "inspect"))
    source = stock.teacher if role == "teacher" or (role == "inspect" and chance.random() < 0.5) else stock.run / "student.safetensors"
    path = here / "model.safetensors"
    what = chance.choice(("raw", "nan", "inf", "shape", "type", "lacks", "more", "metadata", "metadata", "metadata", "foreign", "whole"))
    tensors, metadata = read_tensors(source)
    name = chance.choice(sorted(name for name, value in tensors.items() if value.numel() > 1))
    if what in ("nan", "inf"):
        tensors[name].view(-1)[chance.randrange(tensors[name].numel())] = math.nan if what == "nan" else math.inf
    elif what == "shape":
        tensors[name] = chance.choice((torch.zeros(0), torch.zeros(3, 7), torch.zeros(()), tensors[name][None]))
    elif what == "type":
        tensors[name] = tensors[name].to(chance.choice((torch.float64, torch.bfloat16, torch.int8, torch.bool)))
    elif what == "lacks":
        del tensors[name]
    elif what == "more":
        tensors["../../evil"] = torch.zeros(1)
    elif what == "metadata":
        what = f"metadata {mutate(metadata, chance)}"
    if what == "foreign":
        save_file(tensors, path, chance.choice((None, {"format": "pt"}, {"fewstep": "{}"}, {"fewstep": "[" * 100_000}, {"fewstep": "null"})))
    else:
        write_tensors(path, tensors, metadata)
    if what == "raw":
        what = f"raw {damage(path, chance)}"
    return f"{role}: {what}", _of_weights(stock, here, path, role, chance)


def _of_weights(stock: Stock, here: Path, path: Path, role: str, chance: random.Random) -> tuple[str, ...]:
    mine = here / "mine.yaml"
    mine.write_text(yaml.safe_dump(stock.recipes["mixture2d-disback"]))
    distill = ("distill", str(mine), "--out", str(here / "out"), "--set")
    if role == "student" and chance.random() < 0.5:
        shutil.copytree(stock.run, here / "run", symlinks=True)
        (here / "run" / "student.safetensors").unlink()
        shutil.move(path, here / "run" / "student.safetensors")
        return "evaluate", str(here / "run"), "--draws", "1"
    return {
        "teacher": (*distill, f"teacher={{kind: file, path: {path}}}"),
        "student": ("sample", str(path), "-n", "4", "--out", str(here / "out.png")),
        "start": (*distill, f"student.start={path}"),
        "features": (*distill, f"evaluation.features={{kind: classifier, path: {path}}}"),
        "inspect": ("inspect", str(path)),
    }[role]


def run_folder(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A run one of whose files is damaged, or whole JSON that means nothing."""
    run, name = here / "run", chance.choice(("run", "steps"))
    shutil.copytree(stock.folder / name, run)
    kinds: dict[tuple[str, str], list[Path]] = {}
    for found in sorted(p for p in run.rglob("*") if p.is_file() and p.name not in ("lock", "report.html")):
        kinds.setdefault((found.parent.name, found.suffix), []).append(found)
    path = chance.choice(kinds[chance.choice(list(kinds))])
    if path.suffix == ".json" and chance.random() < 0.8:
        values = json.loads(path.read_text())
        what = mutate(values, chance)
        path.write_text(json.dumps(values) if chance.random() < 0.9 else chance.choice(("[" * 100_000, "null", "[]", "1", '"a"', "9" * 5000)))
    elif path.suffix == ".jsonl" and chance.random() < 0.8:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        what = mutate(lines, chance)
        odd = [json.dumps(line) for line in lines] + [chance.choice(("[" * 100_000, "null", "[]", "1", '"a"', "9" * 5000, "{", "NaN", '{"step": NaN, "evaluations": 1e999, "stage": []}'))]
        path.write_text("\n".join(odd) + "\n")
    elif path.suffix == ".yaml" and chance.random() < 0.8:
        values = yaml.safe_load(path.read_text())
        what = mutate(values, chance)
        path.write_text(yaml.safe_dump(values) if chance.random() < 0.8 else chance.choice(TEXTS).encode("utf-8", "replace").decode())
    else:
        what = damage(path, chance)
    command = chance.choice((("report",), ("report",), ("compare",), ("evaluate", "--draws", "1"), ("sample", "-n", "4"), ("sample", "-n", "4", "--teacher"), ("resume",), ("shift",)))
    told = f"{name}/{path.relative_to(run)}: {what}"
    if command[0] == "compare":
        return told, ("compare", str(run), str(stock.run), "--out", str(here / "out.png"))
    if command[0] == "resume":
        return told, ("distill", str(stock.folder / f"{name}.yaml"), "--out", str(run), "--resume")
    return told, (command[0], str(run), *command[1:])


KINDS: dict[str, tuple[int, Callable[[Stock, Path, random.Random], tuple[str, tuple[str, ...]]]]] = {
    "recipes": (30, recipe),
    "YAML": (8, bomb),
    "overrides": (17, override),
    "images": (12, images),
    "weights": (16, weights),
    "runs": (17, run_folder),
}


def cases(stock: Stock, count: int, seed: int) -> Iterator[Case]:
    """The cases, each with its files in a folder of its own, made when it is asked for."""
    kinds, shares = list(KINDS), [share for share, _ in KINDS.values()]
    for number in range(count):
        chance = random.Random(f"{seed}-{number}")
        kind = chance.choices(kinds, shares)[0]
        here = stock.folder / f"case-{number}"
        here.mkdir()
        what, arguments = KINDS[kind][1](stock, here, chance)
        yield Case(kind, what, arguments, kind == "images" and what in ("bomb", "claim", "long json") or "raw header" in what)
        shutil.rmtree(here)
