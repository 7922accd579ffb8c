"""Prompts are the same from whatever source, and what is none is refused with its place."""

from __future__ import annotations

import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from fewstep.data.prompts import Prompts, captions, formats, read, read_hub_prompts, read_prompts
from fewstep.errors import UserError
from image_kit import picture, png, zipped

TEXTS = ("a red fox", 'a "blue" box, open', "ein Mädchen 🦊", "a red fox")


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def csv_of(texts: tuple[str, ...], column: str = "prompt") -> str:
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    return "\n".join([f"id,{column}", *(f"{number},{text}" for number, text in enumerate(quoted))]) + "\n"


def objects(texts: tuple[str, ...], column: str = "prompt") -> list[dict[str, Any]]:
    return [{"id": number, column: text} for number, text in enumerate(texts)]


def lines(values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


SOURCES = {
    "lines.txt": "\n".join(TEXTS),
    "ended.txt": "\n".join(TEXTS) + "\n",
    "no-suffix": "\n".join(TEXTS),
    "windows.txt": "\ufeff" + "\r\n".join(TEXTS) + "\r\n",
    "old-mac.txt": "\r".join(TEXTS),
    "spaced.txt": "\n".join(f"  {text}\t" for text in TEXTS),
    "UPPER.TXT": "\n".join(TEXTS),
    "a.csv": csv_of(TEXTS),
    "caption.csv": csv_of(TEXTS, "caption"),
    "text.csv": csv_of(TEXTS, "text"),
    "windows.csv": "\ufeff" + csv_of(TEXTS).replace("\n", "\r\n"),
    "spaced.csv": csv_of(TEXTS).replace("id,prompt", "id, prompt"),
    "a.jsonl": lines(objects(TEXTS)),
    "caption.jsonl": lines(objects(TEXTS, "caption")),
    "strings.jsonl": lines(TEXTS),
    "windows.jsonl": "\ufeff" + lines(objects(TEXTS)).replace("\n", "\r\n"),
    "strings.json": json.dumps(TEXTS),
    "a.json": "\ufeff" + json.dumps(objects(TEXTS, "text"), indent=1, ensure_ascii=False),
}


@pytest.mark.parametrize("name", SOURCES)
def test_all_sources_of_the_same_texts_are_the_same_prompts(tmp_path: Path, name: str) -> None:
    found = read_prompts(written(tmp_path / name, SOURCES[name]))
    assert found.texts == TEXTS
    assert found.identity == read_prompts(list(TEXTS)).identity
    assert len(found) == 4


def test_the_identity_is_of_the_texts_in_their_order() -> None:
    made = [Prompts(texts).identity for texts in (("a", "b"), ("b", "a"), ("ab",), ("a",), ("a", "b", "b"), ())]
    assert len(set(made)) == len(made)
    assert all(len(each) == 64 for each in made)
    assert Prompts(("a", "b"), source="another", places=(3, 9)).identity == made[0]


def test_what_is_empty_is_passed_over_and_what_is_there_twice_is_kept_and_both_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "fox\n\n  \nbox\nfox\n\t\nfox\n")
    found = read_prompts(path)
    assert found.texts == ("fox", "box", "fox", "fox")
    assert found.remarks == (
        f"{path}: passed over 3 empty prompts (such as 'line 2').",
        f"{path}: 2 of 4 prompts are there before (such as line 5 says what line 1 does); all are kept.",
    )
    assert [found.where(index) for index in range(4)] == ["line 1", "line 4", "line 5", "line 7"]


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.csv", 'prompt\n"two\nlines"\n\nfox\n', ["line 2", "line 5"]),
        ("a.jsonl", '{"prompt": "two\\nlines"}\n\n{"prompt": null}\n{"prompt": "fox"}\n', ["line 1", "line 4"]),
        ("a.json", '["two\\nlines", "", null, "fox"]', ["entry 1", "entry 4"]),
    ],
)
def test_a_place_is_where_the_prompt_begins(tmp_path: Path, name: str, content: str, places: list[str]) -> None:
    found = read_prompts(written(tmp_path / name, content))
    assert found.texts == ("two\nlines", "fox")
    assert [found.where(index) for index in range(2)] == places
    assert "empty prompts" in found.remarks[0]


def test_a_line_break_in_a_field_is_one_character_wherever_it_was_written(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path / "a.csv", 'prompt\r\n"two\r\nlines"\r\n')).texts == ("two\nlines",)


def test_places_of_a_list_are_numbers_from_1() -> None:
    found = read_prompts(["", "fox"])
    assert found.where(0) == "prompt 2"
    assert found.remarks == ("the list of prompts: passed over 1 empty prompts (such as 'prompt 1').",)
    assert Prompts(("a", "b")).where(1) == "prompt 2"


def test_the_column_is_the_one_asked_for_else_the_first_that_is_known(tmp_path: Path) -> None:
    both = [{"text": "t", "prompt": "p", "other": "o"}]
    for path in (
        written(tmp_path / "a.jsonl", lines(both)),
        written(tmp_path / "a.json", json.dumps(both)),
        written(tmp_path / "a.csv", "text,prompt,other\nt,p,o\n"),
    ):
        found = read_prompts(path)
        assert found.texts == ("p",)
        assert "has the columns 'prompt' and 'text', of which 'prompt' is read" in found.remarks[0]
        other = read_prompts(path, column="other")
        assert (other.texts, other.remarks) == (("o",), ())


BAD = {
    "nothing": ("a.txt", b"", "holds no prompts"),
    "a mark alone": ("a.txt", b"\xef\xbb\xbf", "holds no prompts"),
    "white space": ("a.txt", b"\n \n\t\n", r"holds no prompts.*passed over 3 empty"),
    "nothing csv": ("a.csv", b"", "holds no prompts"),
    "a header alone": ("a.csv", b"prompt\n", "holds no prompts"),
    "nothing jsonl": ("a.jsonl", b"", "holds no prompts"),
    "nothing json": ("a.json", b"", "holds no prompts"),
    "a list of nothing": ("a.json", b"[]", "holds no prompts"),
    "no column": ("a.csv", b"id,name\n1,fox\n", "has no column 'prompt', 'caption' or 'text'; it has 'id', 'name'"),
    "no header": ("a.csv", b"a red fox\na box\n", "has no column .* it has 'a red fox'"),
    "no key": ("a.jsonl", b'{"id": 1}\n', "line 1: has no column .* it has 'id'"),
    "no key later": ("a.jsonl", b'{"prompt": "a"}\n{"text": "a"}\n', "line 2 has no 'prompt'; it has 'text'"),
    "no key in a list": ("a.json", b'[{"prompt": "a"}, {}]', "entry 2 has no 'prompt'; it has none"),
    "two columns": ("a.csv", b"prompt,prompt\na,b\n", "two columns 'prompt'"),
    "nul": ("a.txt", b"fox\na\0b\n", r"line 2 has the control character U\+0000 at character 2"),
    "nul csv": ("a.csv", b"prompt\na\0b\n", r"line 2 has the control character U\+0000"),
    "nul json": ("a.jsonl", b'"a\\u0000b"\n', r"line 1 has the control character U\+0000"),
    "escape": ("a.txt", b"\x1b[31mfox\n", r"line 1 has the control character U\+001B at character 1"),
    "next line": ("a.txt", "fox\x85box".encode(), r"line 1 has the control character U\+0085"),
    "a control character at the end": ("a.txt", b"fox\x1f\n", r"U\+001F"),
    "half a character": ("a.jsonl", b'"fox"\n"\\ud800"\n', r"line 2 has half a character U\+D800"),
    "latin-1": ("a.txt", b"fox\nM\xe4dchen\n", r"line 2 is not UTF-8 \(byte 0xe4, character 2 of the line\)"),
    "latin-1 csv": ("a.csv", b"id,prompt\n\xff,fox\n", r"line 2 is not UTF-8 \(byte 0xff"),
    "latin-1 jsonl": ("a.jsonl", b'"fox"\n"\xe4"\n', r"line 2 is not UTF-8 \(byte 0xe4"),
    "latin-1 json": ("a.json", b'["fox",\n"\xe4"]', r"line 2 is not UTF-8 \(byte 0xe4"),
    "utf-16": ("a.txt", "fox\nbox".encode("utf-16"), r"line 1 is not UTF-8 \(byte 0xf[ef]"),
    "cut short": ("a.txt", "Mä".encode()[:-1], r"line 1 is not UTF-8 \(byte 0xc3"),
    "too long": ("a.txt", b"fox\n" + b"x" * 10_001, "line 2 has 10,001 characters"),
    "too long csv": ("a.csv", b"prompt\n" + b"x" * 10_001, "line 2 has 10,001 characters"),
    "a field too long": ("a.csv", b"id,prompt\n" + b"x" * 200_000 + b",a", "line 2 is not CSV .*field larger"),
    "an open quote": ("a.csv", b'prompt\nfox\n"box\n', "line 3 is not CSV .*a double quote"),
    "a comma": ("a.csv", b"prompt\nfox\na box, open\n", "line 3 has 2 fields, the header has 1; .*double quotes"),
    "a field missing": ("a.csv", b"id,prompt\n1,fox\n2\n", "line 3 has 1 field, the header has 2"),
    "malformed": ("a.jsonl", b'"fox"\n{"prompt": "a"\n', r"line 2 is not JSON \(Expecting .* column \d+\)"),
    "malformed list": ("a.json", b'["fox",\n"a" "b"]', r"is not JSON \(.*line 2, column 5\)"),
    "lines in a list's file": ("a.json", b'"fox"\n"box"\n', r"is not JSON \(Extra data"),
    "not a list": ("a.json", b'{"prompt": "fox"}', "holds an object, not a list"),
    "a number": ("a.jsonl", b'{"prompt": "a"}\n{"prompt": 7}\n', r"line 2 is a number \(7\), where a text should be"),
    "a bare number": ("a.jsonl", b"7\n", "line 1 is a number"),
    "a number in a list": ("a.json", b'["a", 7.5]', r"entry 2 is a number \(7.5\)"),
    "a list in a list": ("a.json", b'["a", ["b"]]', "entry 2 is a list"),
    "true": ("a.json", b'[{"text": true}]', "entry 1 is true or false"),
    "an object": ("a.json", b'[{"text": {"en": "a"}}]', "entry 1 is an object"),
    "deep": ("a.jsonl", b'"a"\n' + b"[" * 200_000, "line 2 is nested too deeply"),
    "deep list": ("a.json", b'{"a":' * 200_000, "is nested too deeply"),
    "digits": ("a.jsonl", b"1" * 10_000, "line 1 is not JSON that can be read"),
    "a long line": ("a.jsonl", b'"' + b"x" * (2**24), "line 1 has more than 16,777,216 characters"),
    "another suffix": ("a.xlsx", b"fox", "is none of .txt, .csv, .jsonl, .json, .parquet"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_sentence_with_file_and_place(tmp_path: Path, case: str) -> None:
    name, content, sentence = BAD[case]
    path = written(tmp_path / name, content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "id,prompt\n1,a\n", "has no column 'x'; it has 'id', 'prompt'"),
        ("a.jsonl", '{"prompt": "a"}\n', "line 1: has no column 'x'; it has 'prompt'"),
        ("b.jsonl", '"a"\n', "line 1 is a text, not an object with columns"),
        ("a.txt", "fox", "has no columns, so that column='x' cannot be read"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        read_prompts(written(tmp_path / name, content), column="x")
    with pytest.raises(UserError, match="the list of prompts: has no columns"):
        read_prompts(["a"], column="x")


def test_many_columns_are_not_all_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", ",".join(f"c{number}" for number in range(5000)))
    with pytest.raises(UserError, match="'c11' and 4,988 more"):
        read_prompts(path)


@pytest.mark.parametrize("value", [7, b"fox", ["fox"], {"text": "fox"}, True])
def test_a_list_holds_texts(value: Any) -> None:
    with pytest.raises(UserError, match=r"the list of prompts: prompt 2 is .*where a text should be"):
        read_prompts(["fox", value])


def test_a_list_is_held_to_the_same_bounds() -> None:
    for text, sentence in (("x" * 10_001, "10,001 characters"), ("a\0", r"U\+0000"), ("\ud800", "half a character")):
        with pytest.raises(UserError, match=f"prompt 2 has .*{sentence}"):
            read_prompts(["fox", text])
    assert read_prompts(["x" * 10_000, " " * 20_000 + "y"]).texts == ("x" * 10_000, "y")
    with pytest.raises(UserError, match="the list of prompts: holds no prompts"):
        read_prompts([])


@pytest.mark.parametrize("source", ["nowhere.txt", "a red fox", "x" * 5000, "a\0b"])
def test_what_is_not_there_is_said(source: str) -> None:
    with pytest.raises(UserError, match=r"there is no such file or folder; .* as a list"):
        read_prompts(source)


def test_what_cannot_be_opened_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.txt", "fox")

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        read_prompts(path)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.json", "a.parquet"])
def test_a_file_above_a_gibibyte_is_refused_before_it_is_read(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, "")
    os.truncate(path, 2**30 + 1)
    begin = time.monotonic()
    with pytest.raises(UserError, match="has 1,073,741,825 bytes, more than the 1,073,741,824"):
        read_prompts(path)
    assert time.monotonic() - begin < 1


def test_a_json_list_may_have_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_JSON", 10)
    with pytest.raises(UserError, match=r"12 bytes, more than the 10 .*JSON lines"):
        read_prompts(written(tmp_path / "a.json", '["aaaaaaaa"]'))


def test_there_may_be_so_many_prompts_and_characters_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read.MOST_PROMPTS == 10_000_000
    monkeypatch.setattr(read, "MOST_PROMPTS", 3)
    assert len(read_prompts(written(tmp_path / "a.txt", "a\nb\n\nc\n\n"))) == 3
    with pytest.raises(UserError, match=r"b\.txt: has more than 3 prompts"):
        read_prompts(written(tmp_path / "b.txt", "a\nb\nc\nd\n"))
    monkeypatch.setattr(read, "MOST_BYTES", 10)
    with pytest.raises(UserError, match="prompts of more than 10 characters together"):
        read_prompts(["123456", "12345"])


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_half_a_million_prompts_take_seconds(tmp_path: Path, name: str) -> None:
    texts = tuple(f"a photograph of fox number {number}, in the snow" for number in range(500_000))
    content = {"a.txt": "\n".join, "a.csv": csv_of, "a.jsonl": lambda each: lines(objects(each))}[name](texts)
    path = written(tmp_path / name, content)
    begin = time.process_time()
    found = read_prompts(path)
    assert time.process_time() - begin < 10
    assert found.texts == texts


class FakeParquet(types.ModuleType):
    """As much of pyarrow as is used, over a table of lists; what columns were read is noted."""

    class ArrowException(Exception):
        pass

    def __init__(self, table: dict[str, list[Any]], fails: bool = False):
        super().__init__("pyarrow")
        self.parquet = types.ModuleType("pyarrow.parquet")
        self.asked: list[list[str]] = []
        outer = self

        class Batch:
            def __init__(self, rows: slice):
                self._rows = rows

            def column(self, name: str) -> Any:
                return types.SimpleNamespace(to_pylist=lambda: table[name][self._rows])

        class ParquetFile:
            schema_arrow = types.SimpleNamespace(names=list(table))

            def __init__(self, path: Path):
                if fails:
                    raise outer.ArrowException("no magic bytes")

            def __enter__(self) -> ParquetFile:
                return self

            def __exit__(self, *_: object) -> None:
                return

            def iter_batches(self, batch_size: int, columns: list[str]) -> Any:
                outer.asked.append(columns)
                count = len(next(iter(table.values())))
                return (Batch(slice(begin, begin + 2)) for begin in range(0, count, 2))

        self.parquet.ParquetFile = ParquetFile  # type: ignore[attr-defined]


def install(monkeypatch: pytest.MonkeyPatch, library: FakeParquet | None) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", library)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None if library is None else library.parquet)


def test_of_parquet_only_the_prompts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.parquet", "PAR1")
    library = FakeParquet({"image": [b""] * 5, "caption": ["a", None, "b", "", "c"]})
    install(monkeypatch, library)
    found = read_prompts(path)
    assert found.texts == ("a", "b", "c")
    assert [found.where(index) for index in range(3)] == ["row 1", "row 3", "row 5"]
    assert library.asked == [["caption"]]
    assert found.remarks == (f"{path}: passed over 2 empty prompts (such as 'row 2').",)
    with pytest.raises(UserError, match="has no column 'x'; it has 'image', 'caption'"):
        read_prompts(path, column="x")
    install(monkeypatch, FakeParquet({"text": ["a", "b", 7]}))
    with pytest.raises(UserError, match=r"row 3 is a number \(7\)"):
        read_prompts(path)
    install(monkeypatch, FakeParquet({"text": []}, fails=True))
    with pytest.raises(UserError, match=r"a\.parquet: is no readable parquet file \(no magic bytes\)"):
        read_prompts(path)


def test_parquet_without_its_library_says_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    with pytest.raises(UserError, match=r"needs pyarrow.*pip install 'fewstep\[data\]'"):
        read_prompts(written(tmp_path / "a.parquet", "PAR1"))


def test_parquet_as_its_library_writes_it(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2, 3, 4], "text": list(TEXTS)}), path)
    assert read_prompts(path).texts == TEXTS
    parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(UserError, match="row 1 is a number"):
        read_prompts(path)
    with pytest.raises(UserError, match="is no readable parquet file"):
        read_prompts(written(path, b"PAR1 and no more"))


def folder_of(place: Path, names: tuple[str, ...]) -> Path:
    for number, name in enumerate(names):
        written(place / name, png(picture(number)))
    return place


def test_captions_beside_images_are_in_the_order_of_the_images(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", ("b.png", "a.png", "in/c.jpg", "alone.png"))
    for name, text in (
        ("a.txt", "\ufefffirst\r\n"),
        ("b.txt", "two\nlines\n"),
        ("in/c.txt", "third"),
        ("LIES.txt", "x"),
    ):
        written(folder / name, text)
    written(folder / ".hidden" / "d.txt", "x")
    found = read_prompts(folder)
    assert found.texts == ("first", "two\nlines", "third")
    assert list(found.places) == ["a.png", "b.png", "in/c.jpg"]
    assert found.where(2) == "image 'in/c.jpg'"
    (remark,) = found.remarks
    assert remark == (
        f"{folder}: passed over 1 images without a caption (such as 'alone.png'); "
        "1 text files without an image (such as 'LIES.txt')."
    )


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_captions_of_metadata_are_in_the_order_of_the_images(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path / "set", ("b.png", "a.png", "in/c.jpg", "alone.png"))
    written(folder / "a.txt", "not this")
    rows = [("in/c.jpg", "third"), ("./b.png", "second"), ("a.png", "first"), ("gone.png", "lost")]
    jsonl = lines({"file_name": file, "text": text, "n": 1} for file, text in rows) + "\n"
    csv = "text,file_name,n\n" + "".join(f"{text},{file},1\n" for file, text in rows)
    path = written(folder / name, jsonl if name.endswith("l") else csv)
    found = read_prompts(folder)
    assert found.texts == ("first", "second", "third")
    assert list(found.places) == ["a.png", "b.png", "in/c.jpg"]
    (remark,) = found.remarks
    assert remark == (
        f"{folder}: passed over 1 images without a caption (such as 'alone.png'); "
        f"1 rows of {name} without an image (such as 'gone.png'); "
        f"1 text files, since {name} says the captions (such as 'a.txt')."
    )
    with pytest.raises(UserError, match=rf"{name}.*has no column 'other'"):
        read_prompts(folder, column="other")
    path.write_text(path.read_text().replace("text", "words"))
    assert read_prompts(folder, column="words").texts == found.texts


FOLDERS = {
    "no images": ({"a.txt": b"fox"}, "holds no images"),
    "no captions": ({"a.png": b""}, r"holds no prompts.*1 images without a caption \(such as 'a.png'\)"),
    "two metadata": ({"a.png": b"", "metadata.csv": b"", "metadata.jsonl": b""}, "has both"),
    "no file_name": ({"a.png": b"", "metadata.csv": b"text\nfox\n"}, r"metadata\.csv'?: has no column 'file_name'"),
    "no text": ({"a.png": b"", "metadata.csv": b"file_name,n\na.png,1\n"}, "has no column 'prompt', 'caption' or"),
    "bare texts": ({"a.png": b"", "metadata.jsonl": b'"fox"\n'}, r"metadata\.jsonl'?: line 1 is a text, not an object"),
    "a number for a name": (
        {"a.png": b"", "metadata.jsonl": b'{"file_name": 7, "text": "fox"}'},
        r"metadata\.jsonl'?: line 1: 'file_name' is a number",
    ),
    "no name": ({"a.png": b"", "metadata.csv": b"file_name,text\n,fox\n"}, "line 2: 'file_name' is empty"),
    "a name twice": ({"a.png": b"", "metadata.csv": b"file_name,text\na.png,x\na.png,y\n"}, "line 3 is a second row"),
    "a number for a text": (
        {"a.png": b"", "metadata.jsonl": b'{"file_name": "a.png", "text": 7}'},
        r"image 'a\.png' is a number \(7\)",
    ),
    "latin-1": ({"a.png": b"", "a.txt": b"fox\nM\xe4dchen"}, r"a\.txt'?: line 2 is not UTF-8 \(byte 0xe4"),
    "nul": ({"a.png": b"", "a.txt": b"a\0"}, r"image 'a\.png' has the control character U\+0000"),
    "too long": ({"a.png": b"", "a.txt": b"x" * 10_001}, r"image 'a\.png' has 10,001 characters"),
    "too large": ({"a.png": b"", "a.txt": b"x" * 200_000}, r"a\.txt'?: has 200,000 bytes, more than the 131,072"),
}


@pytest.mark.parametrize("wrapped", ["", "set/"])
@pytest.mark.parametrize("kind", ["beside", "metadata.csv", "metadata.jsonl"])
def test_a_zip_of_a_folder_has_the_folders_captions(tmp_path: Path, kind: str, wrapped: str) -> None:
    files = {"b.png": b"", "a.png": b"", "in/c.png": b"", "alone.png": b"", "LIES.txt": b"x"}
    texts = {"a": "first", "b": "a \u00e4, two", "in/c": "third"}
    if kind == "beside":
        files |= {f"{name}.txt": text.encode() for name, text in texts.items()}
    elif kind == "metadata.csv":
        rows = "".join(f'{name}.png,"{text}"\n' for name, text in texts.items())
        files[kind] = ("\ufefffile_name,text\n" + rows).encode()
    else:
        files[kind] = lines({"file_name": f"{name}.png", "text": text} for name, text in texts.items()).encode()
    for name, content in files.items():
        written(tmp_path / "set" / name, content)
    packed = zipped(tmp_path / "set.zip", {f"{wrapped}{name}": content for name, content in files.items()})
    folder, archive = read_prompts(tmp_path / "set"), read_prompts(packed)
    assert archive.texts == folder.texts == tuple(texts.values())
    assert list(archive.places) == list(folder.places)
    assert [each.replace(str(packed), "") for each in archive.remarks] == (
        [each.replace(str(tmp_path / "set"), "") for each in folder.remarks]
    )


@pytest.mark.parametrize("case", FOLDERS)
def test_what_is_wrong_with_captions_is_one_sentence(tmp_path: Path, case: str) -> None:
    files, sentence = FOLDERS[case]
    for name, content in files.items():
        written(tmp_path / "set" / name, content)
    with pytest.raises(UserError, match=sentence):
        read_prompts(tmp_path / "set")
    # A file of an archive is named by the archive and the entry.
    with pytest.raises(UserError, match=sentence):
        read_prompts(zipped(tmp_path / "set.zip", files))


def test_metadata_above_a_gibibyte_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "set", ("a.png",))
    written(folder / "metadata.csv", "file_name,text\na.png,fox\n")
    monkeypatch.setattr(captions, "_MOST_BYTES", 8)
    with pytest.raises(UserError, match=r"metadata\.csv: has \d+ bytes, more than the 8"):
        read_prompts(folder)
    (folder / "metadata.csv").unlink()
    with pytest.raises(UserError, match=r"has neither metadata\.jsonl nor metadata\.csv"):
        read_prompts(folder, column="text")


class HubRows(dict):
    """Columns as the datasets library gives them."""

    @property
    def column_names(self) -> list[str]:
        return list(self)


def test_prompts_of_the_hub_are_a_column_of_a_commit(monkeypatch):
    asked, library = [], types.ModuleType("datasets")

    def load(name, split, revision):
        asked.append((name, split, revision))
        return HubRows({"id": [1, 2, 3], "text": ["a fox", " ", "a hen"], "caption": ["x", "y", "z"]})

    library.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("fewstep.data.prompts.hub_prompts.commit_of", lambda name, revision: revision or "c" * 40)
    found = read_hub_prompts("owner/set", "test")
    assert found.texts == ("x", "y", "z")
    assert any("'caption' is read" in remark for remark in found.remarks)
    assert any("c" * 40 in remark for remark in found.remarks)
    chosen = read_hub_prompts("owner/set", "test", "text", "d" * 40)
    assert chosen.texts == ("a fox", "a hen")
    assert chosen.where(1) == "row 3"
    assert not any("commit" in remark for remark in chosen.remarks)
    assert asked == [("owner/set", "test", "c" * 40), ("owner/set", "test", "d" * 40)]
    with pytest.raises(UserError, match=r"data set 'owner/set', split 'train': has no column 'none'"):
        read_hub_prompts("owner/set", column="none")


@pytest.mark.parametrize("name", ["set", "."])
def test_prompts_of_a_folder_are_of_no_commit(name, tmp_path, monkeypatch):
    """A recipe's path is absolute when it is read: the hub is never asked for it."""
    (tmp_path / name).mkdir(exist_ok=True)
    asked, library = [], types.ModuleType("datasets")

    def load(place, split, revision):
        asked.append((place, revision))
        return HubRows({"text": ["a fox"]})

    library.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("fewstep.data.prompts.hub_prompts.commit_of", lambda name, revision: "c" * 40)
    monkeypatch.chdir(tmp_path)
    for given in (f"./{name}", str(tmp_path / name)):
        assert read_hub_prompts(given).remarks == ()
    assert {(Path(place).resolve(), revision) for place, revision in asked} == {((tmp_path / name).resolve(), None)}


def test_a_data_set_that_cannot_be_loaded_is_named(monkeypatch):
    library = types.ModuleType("datasets")

    def load(name, split, revision):
        raise FileNotFoundError("no such set")

    library.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("fewstep.data.prompts.hub_prompts.commit_of", lambda name, revision: None)
    with pytest.raises(UserError, match=r"'owner/set', split 'train': cannot be loaded \(no such set\)"):
        read_hub_prompts("owner/set")
