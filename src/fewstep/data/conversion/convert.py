"""Image sets of other libraries, turned once into an EDM zip on this machine.

A draw is a function of an index, so a sample must be found by its index; a stream of shards has
none. Everything is therefore read through once, decoded, brought to one size, and written as a zip
in a cache folder; from then on it is a set of images like any other.

An entry of the cache is found by what decides its content: the digests of local files, the commit
of a set of the hub, what servers say of shards (``caches.address_marks``), how all this is read,
and the version of the rules. An entry is whole when its ``about.json`` is there, which is written
last and holds the zip's checksum; a zip that was cut or altered is made anew. Where the hub or a
server cannot be asked, the newest entry of the same request serves, and that is said.

WebDataset opens some addresses by running a program (``pipe:``, ``gs:``, ...), which a recipe must
not be able to ask for: only paths and http addresses are let through.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.data.conversion.hub import commit_of, is_commit
from fewstep.data.conversion.image_records import Uncaptioned, from_rows, from_shards, write_records
from fewstep.data.conversion.shards import expanded
from fewstep.data.pixels import reading_rules
from fewstep.data.tree import HIDDEN, PassedOver, is_hidden
from fewstep.errors import UserError
from fewstep.system import distributed
from fewstep.system.caches import address_marks, content_digest, held_cache
from fewstep.system.files import write_alone

_SHARDS = re.compile(r"\.(tar|tgz|tar\.gz)$")
_ADDRESS = re.compile(r"https?://[^\s'\"`$|;<>\\]+\.(tar|tgz|tar\.gz)")


class Converted(NamedTuple):
    """A zip that was made of another set.

    ``name``: what to call it. ``remarks``: the sentences to say of it.
    """

    path: Path
    name: str
    remarks: tuple[str, ...] = ()
    passed_over: PassedOver = PassedOver()

    def saying(self, sentence: str) -> Converted:
        """The same, with a further sentence."""
        return self._replace(remarks=(*self.remarks, sentence))


CONVERSION = 2
"""The version of how records become a zip; raised when the same records become another zip."""
ABOUT = "about.json"


def cached(
    folder: Path,
    asked: Mapping[str, Any],
    content: Mapping[str, Any] | None,
    write: Callable[[Path], PassedOver],
    name: str,
) -> Converted:
    """The zip in ``folder`` for what was ``asked`` of a ``content``, JSON values.

    It is written by ``write(path)`` where there is none yet.

    ``name``: what to call it. ``content``: what decides it, None where that cannot be known now;
    the newest zip of what was asked then serves. Several processes write one zip once: the others
    wait.
    """
    request = Path(folder) / _digest_of({"asked": asked, "rules": reading_rules(), "conversion": CONVERSION})

    def find_or_write() -> list[Any]:
        if content is None and (newest := _newest(request)) is not None:
            path, about = newest
            day = time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
            remarks = [
                (
                    f"{name}: what it holds now cannot be asked; the conversion of {day} serves "
                    f"({_short(about['content'])})."
                )
            ]
        else:
            path = request / _digest_of({"content": content}) / "images.zip"
            remarks, about = _entry(path, asked, content, write)
            if content is None:
                remarks.append(f"{name}: what it holds now cannot be asked; its library has given what it has.")
        return [str(path), remarks, about["passed_over"]]

    path, remarks, passed_over = distributed.together(find_or_write)
    return Converted(Path(path), name, tuple(remarks), PassedOver.of_json(passed_over))


def _entry(
    path: Path, asked: Mapping[str, Any], content: Mapping[str, Any] | None, write: Callable[[Path], PassedOver]
) -> tuple[list[str], dict[str, Any]]:
    """What is to be said of a zip that is there or was written now, and what its ``about.json``
    says.
    """
    about = _whole(path)
    if about is not None:
        return [], about
    with held_cache(path.parent):
        about = _whole(path)
        if about is not None:
            return [], about
        altered = (path.parent / ABOUT).is_file()
        passed_over = write(path)
        about = {
            "asked": dict(asked),
            "content": content,
            "passed_over": passed_over.as_json(),
            "sha256": content_digest(path),
        }
        write_alone(path.parent / ABOUT, json.dumps(about, indent=2, sort_keys=True).encode())
    return ([f"{path}: was cut or altered since it was made, and is made anew."] if altered else []), about


def _whole(path: Path) -> dict[str, Any] | None:
    """What ``about.json`` says of a zip that is as it was when it was made; None for any other."""
    try:
        about = json.loads((path.parent / ABOUT).read_text(encoding="utf-8"))
        PassedOver.of_json(about["passed_over"])
        return about if path.is_file() and about["sha256"] == content_digest(path) and "content" in about else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _newest(request: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole zip of a request, with what is said of it."""
    paths = sorted(request.glob("*/images.zip"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return next(((path, about) for path in paths if (about := _whole(path)) is not None), None)


def _digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _short(content: Any) -> str:
    return (
        f"commit {content['commit'][:12]}"
        if isinstance(content, dict) and isinstance(content.get("commit"), str)
        else "content unknown"
    )


def huggingface(
    folder: Path,
    name: str,
    split: str,
    image: str,
    label: str | None,
    revision: str | None,
    size: int | None,
    caption: str | None = None,
) -> Converted:
    """The zip of an image set of the Hugging Face hub, or of a folder that its library reads; with
    captions where they are asked for by their column.

    Needs the extra ``data``.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("'data.kind: huggingface' needs the datasets library: pip install 'fewstep[data]'.") from error
    asked: dict[str, Any] = {"kind": "huggingface", "split": split, "image": image, "label": label, "size": size}
    asked |= _also(caption)
    content: dict[str, Any] | None
    if Path(name).is_dir():
        content, commit = {"folder": distributed.together(lambda: content_digest(name))}, None
    else:
        commit = distributed.together(lambda: commit_of(name, revision))
        asked |= {"name": name, "revision": None if is_commit(revision) else revision}
        content = None if commit is None else {"commit": commit}

    def write(path: Path) -> PassedOver:
        try:
            rows = datasets.load_dataset(name, split=split, revision=commit or revision)
        except (OSError, ValueError) as error:
            raise UserError(
                f"data set '{name}', split '{split}': cannot be loaded ({error}); check 'data.name', "
                "'data.split' and 'data.revision'."
            ) from error
        for key, column in (("image", image), ("caption", caption)):
            if column is not None and column not in rows.column_names:
                raise UserError(
                    f"data set '{name}' has no column '{column}'; it has {', '.join(rows.column_names)}; set "
                    f"'data.{key}'."
                )
        feature = None if label is None else rows.features.get(label)
        classes = feature.names if isinstance(feature, datasets.ClassLabel) else ()
        undecoded = rows.cast_column(image, datasets.Image(decode=False))
        lacking = Uncaptioned("set 'data.caption' to the column that holds them, or to null")
        records = from_rows(undecoded, image, label, name, caption)
        write_records(path, lacking.among(records, f"data set '{name}'"), size, classes)
        return lacking.passed_over

    found = cached(folder, asked, content, write, f"data set '{name}'")
    if commit is None or is_commit(revision):
        return found
    return found.saying(
        f"data set '{name}': {'its newest commit' if revision is None else f'revision {revision}'} is "
        f"{commit}; set 'data.revision' to it, so that it stays the same."
    )


def _also(caption: str | None) -> dict[str, str]:
    """What is asked for besides: nothing where captions are not, as in sets of earlier versions."""
    return {} if caption is None else {"caption": caption}


def _opened(samples: Iterable[Mapping[str, Any]], urls: str) -> Iterator[Mapping[str, Any]]:
    # Where the stream is read, so that a missing shard is not taken for a zip that cannot be
    # written.
    try:
        yield from samples
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(
            f"shards '{urls}': cannot be read ({error}); check 'data.urls' and that the files are whole."
        ) from error


def webdataset(folder: Path, urls: str, label: str | None, size: int | None, caption: str | None = None) -> Converted:
    """The zip of the images in WebDataset shards at ``urls`` (paths or http addresses, with
    braces), with captions where they are asked for by the extension of their files. Needs the extra
    ``data``.
    """
    # The library splits at "::", and reads lists of further addresses from YAML.
    local = ":" not in urls and _SHARDS.search(urls)
    if not local and ("::" in urls or not _ADDRESS.fullmatch(urls)):
        raise UserError(
            f"'data.urls' is '{urls}', neither a path of .tar files nor an http address without quotes and "
            "spaces; addresses that run programs are not opened."
        )
    try:
        import webdataset as library
    except ImportError as error:
        raise UserError("'data.kind: webdataset' needs the webdataset library: pip install 'fewstep[data]'.") from error
    shards = expanded(urls)
    asked: dict[str, Any] = {"kind": "webdataset", "label": label, "size": size, **_also(caption)}
    content: dict[str, Any] | None
    if local:
        content, silent = {"shards": distributed.together(lambda: [content_digest(shard) for shard in shards])}, False
    else:
        asked["urls"] = urls
        marks = distributed.together(lambda: [address_marks(shard) for shard in shards])
        content = None if None in marks else {"marks": marks}
        silent = content is not None and {} in marks

    def write(path: Path) -> PassedOver:
        hidden: set[str] = set()
        # Of several processes this one alone reads, and it reads all shards.
        samples = library.WebDataset(
            shards,
            shardshuffle=False,
            nodesplitter=None,
            workersplitter=None,
            select_files=lambda name: not is_hidden(name, hidden),
        )
        lacking = Uncaptioned("set 'data.caption' to the extension of the files that hold them, or to null")
        records = from_shards(_opened(samples, urls), label, urls, caption)
        write_records(path, lacking.among(records, f"shards '{urls}'"), size)
        return PassedOver.of({HIDDEN: sorted(hidden)}) + lacking.passed_over

    found = cached(folder, asked, content, write, f"shards '{urls}'")
    if not silent:
        return found
    return found.saying(
        f"shards '{urls}': their server says nothing by which a change would be seen; to make the set anew, "
        f"remove {found.path.parent}."
    )
