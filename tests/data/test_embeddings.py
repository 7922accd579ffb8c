"""An embedding is computed once, and what the cache holds is what everybody reads."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import shutil
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from filling_kit import cut, filled_by_a_group, filled_by_two, flipped, killed_while_it_fills, packs_in
from prompt_kit import IDENTITY, SIZES, HashEncoder, fill, fill_and_hang, fill_as_a_group, hashed, texts_of
from torch import Tensor

from fewstep.data.cached import packs
from fewstep.data.cached import rows as row_files
from fewstep.data.prompts import EmbeddedPrompts, PromptEncoder, embed, read_prompts
from fewstep.errors import NotFinite, UserError
from fewstep.resumable import check_open, find_resumable
from fewstep.system.files import read_metadata, write_tensors


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def never() -> PromptEncoder:
    raise AssertionError("an encoder is made")


def silent(_: str) -> None:
    return


def filled(cache: Path, texts: list[str], encoder: HashEncoder | None = None, **more: Any) -> EmbeddedPrompts:
    made = encoder or HashEncoder()
    return embed(read_prompts(texts), lambda: made, made.identity, cache, **{"say": silent, **more})


def cached(cache: Path, texts: list[str], **more: Any) -> EmbeddedPrompts:
    return embed(read_prompts(texts), never, IDENTITY, cache, **{"say": silent, **more})


def all_rows(found: EmbeddedPrompts) -> dict[str, Tensor]:
    return found.rows(torch.arange(len(found)))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def test_each_row_is_its_prompts(cache: Path) -> None:
    texts = [*texts_of(10), "fox number 3"]
    found = filled(cache, texts, block=4)
    index = torch.tensor([10, 0, 7, 0])
    rows = found.rows(index)
    assert {name: tuple(value.shape) for name, value in rows.items()} == {
        "text": (4, 6, 3),
        "pooled": (4, 4),
        "mask": (4, 6),
    }
    for name, size in SIZES.items():
        assert torch.equal(rows[name], torch.stack([hashed(texts[each], size) for each in index.tolist()]))
    assert rows["mask"].dtype == torch.int64
    assert same(found.null, HashEncoder.null(_without_gradients()))
    assert found.shapes == {"text": (6, 3), "pooled": (4,), "mask": (6,)}
    assert len(found) == 11
    assert found.texts == tuple(texts)
    assert {name: tuple(value.shape) for name, value in found.rows(index[:0]).items()}["text"] == (0, 6, 3)


def _without_gradients() -> HashEncoder:
    class Free(HashEncoder):
        def __call__(self, prompts: Any) -> Mapping[str, Tensor]:
            with torch.no_grad():
                return super().__call__(prompts)

    return Free()


def test_what_is_cached_is_not_computed_whatever_list_it_is_in(cache: Path, tmp_path: Path) -> None:
    first = HashEncoder()
    filled(cache, [*texts_of(10), *texts_of(3)], first, block=4)
    # The unconditional prompt, then blocks of different prompts, of which each is counted once.
    assert [len(call) for call in first.called] == [1, 4, 4, 2]
    assert sorted(first.counted) == sorted(texts_of(10))
    before = [(path, path.stat().st_mtime_ns) for path in packs_in(cache)]
    said: list[str] = []
    assert same(
        all_rows(cached(cache, texts_of(10)[::-1], say=said.append)),
        all_rows(filled(tmp_path / "fresh", texts_of(10)[::-1])),
    )
    assert cached(cache, ["fox number 2"], block=1, say=said.append).texts == ("fox number 2",)
    assert said == []
    second = HashEncoder(shift=0.5)
    found = filled(cache, ["a box", *texts_of(12)], second, block=100)
    assert second.called == [["a box", "fox number 10", "fox number 11"]]
    assert torch.equal(found.rows(torch.tensor([1]))["pooled"][0], hashed("fox number 0", (4,)))
    assert before == [(path, path.stat().st_mtime_ns) for path in packs_in(cache)[:-1]]


def test_where_all_is_cached_nothing_is_held_or_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(cache, texts_of(3))

    def refused(*_: Any) -> None:
        raise AssertionError("the folder is held")

    monkeypatch.setattr(packs, "held_cache", refused)
    monkeypatch.setattr(packs, "write_tensors", refused)
    assert len(cached(cache, texts_of(3))) == 3


def test_the_machines_cache_is_the_usual_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "elsewhere"))
    embed(read_prompts(["fox"]), HashEncoder, IDENTITY, say=silent)
    assert len(packs_in(tmp_path / "elsewhere" / "embeddings")) == 2


def test_the_encoder_is_let_go(cache: Path) -> None:
    alive: list[weakref.ref[HashEncoder]] = []

    def make() -> HashEncoder:
        made = HashEncoder()
        alive.append(weakref.ref(made))
        return made

    gc.disable()
    try:
        found = embed(read_prompts(texts_of(9)), make, IDENTITY, cache, block=4, say=silent)
        assert [each() for each in alive] == [None]
    finally:
        gc.enable()
    assert len(all_rows(found)["text"]) == 9


def test_what_is_computed_first_is_what_counts(cache: Path) -> None:
    one = filled(cache, texts_of(5), HashEncoder(shift=0.0))
    two = filled(cache, texts_of(9), HashEncoder(shift=0.25), block=2)
    assert torch.equal(two.rows(torch.arange(5))["text"], all_rows(one)["text"])
    assert torch.equal(two.rows(torch.tensor([5]))["text"][0], hashed("fox number 5", (6, 3)) + 0.25)


def test_what_others_write_meanwhile_is_not_computed_again_and_is_what_counts(cache: Path) -> None:
    class Overtaken(HashEncoder):
        def __call__(self, prompts: Any) -> Mapping[str, Tensor]:
            if "fox number 0" in prompts:
                filled(cache, texts_of(8)[2:], HashEncoder(shift=0.5))
            return super().__call__(prompts)

    made = Overtaken()
    rows = all_rows(filled(cache, texts_of(10), made, block=4))["pooled"]
    assert made.called[1:] == [texts_of(4), texts_of(10)[8:]]
    shifts = [0.0] * 2 + [0.5] * 6 + [0.0] * 2
    assert torch.equal(rows, torch.stack([hashed(each, (4,)) + shifts[n] for n, each in enumerate(texts_of(10))]))


def test_the_identity_is_of_encoder_type_and_texts(cache: Path, tmp_path: Path) -> None:
    other = HashEncoder("f" * 64)
    made = [
        filled(cache, texts_of(3)),
        filled(cache, texts_of(2)),
        filled(cache, texts_of(3)[::-1]),
        filled(cache, texts_of(3), other),
        filled(cache, texts_of(3), dtype=torch.float16),
    ]
    assert len({each.identity for each in made}) == 5
    assert made[0].identity == cached(cache, texts_of(3)).identity == filled(tmp_path / "fresh", texts_of(3)).identity


def test_types_and_encoders_are_entries_of_their_own(cache: Path) -> None:
    plain = filled(cache, texts_of(3))
    half = HashEncoder()
    found = filled(cache, texts_of(3), half, dtype=torch.float16)
    assert len(half.called) == 2
    rows = all_rows(found)
    assert (rows["text"].dtype, rows["mask"].dtype) == (torch.float16, torch.int64)
    assert torch.equal(rows["text"], all_rows(plain)["text"].half())
    assert found.null["text"].dtype == torch.float16
    assert same(all_rows(cached(cache, texts_of(3), dtype=torch.float16)), rows)
    assert same(all_rows(cached(cache, texts_of(3))), all_rows(plain))
    brain = filled(cache, texts_of(3), HashEncoder("e" * 64, dtype=torch.bfloat16))
    assert all_rows(brain)["text"].dtype == torch.bfloat16
    assert len({path.parent for path in packs_in(cache)}) == 3


def test_equal_packs_are_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        filled(tmp_path / name, texts_of(7), block=3)
        contents.append([(path.name, path.read_bytes()) for path in packs_in(tmp_path / name)])
    assert contents[0] == contents[1]
    assert [name for name, _ in contents[0]] == [f"pack-0000000{number}.safetensors" for number in (1, 2, 3, 4)]


def header_cut(path: Path) -> None:
    os.truncate(path, 20)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def of_somebody_else(path: Path) -> None:
    write_tensors(path, {"x": torch.ones(2)}, {"kind": "another"})


def of_another_encoder(path: Path) -> None:
    metadata = read_metadata(path)
    write_tensors(path, {"x": torch.ones(4, 2)}, {**metadata, "made": {"encoder": "f" * 64, "type": "as given"}})


def of_odd_types(path: Path) -> None:
    metadata = read_metadata(path)
    write_tensors(path, {"x": torch.ones(4, 2)}, {**metadata, "counts": {"tokens": [[]] * 4}})


def of_an_odd_layout(path: Path) -> None:
    metadata = read_metadata(path)
    write_tensors(
        path, {"x": torch.ones(4, 2)}, {**metadata, "layout": {"facts": {"length": 6}, "rows": {"x": ["nn", 2]}}}
    )


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "mine").touch()


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        cut,
        header_cut,
        emptied,
        of_somebody_else,
        of_another_encoder,
        of_odd_types,
        of_an_odd_layout,
        a_folder,
    ],
)
def test_a_damaged_pack_is_passed_over_and_said_and_stays_and_its_prompts_are_computed_again(
    cache: Path, damage: Any
) -> None:
    expected = all_rows(filled(cache, texts_of(10), block=4))
    path = packs_in(cache)[2]
    damage(path)
    content = path.read_bytes() if path.is_file() else b""
    said: list[str] = []
    again = HashEncoder()
    found = filled(cache, texts_of(10), again, block=4, say=said.append)
    assert again.called == [texts_of(10)[4:8]]
    assert len(said) == 2
    assert said[0].startswith(str(path))
    assert said[0].endswith("It is passed over.")
    assert "4 of 10 different prompts" in said[1]
    assert same(all_rows(found), expected)
    assert (path.read_bytes() if path.is_file() else b"") == content
    assert packs_in(cache)[-1].name == "pack-00000005.safetensors"
    assert same(all_rows(cached(cache, texts_of(10))), expected)


def test_of_two_packs_with_one_prompt_the_first_by_name_is_read(cache: Path, tmp_path: Path) -> None:
    filled(cache, texts_of(4), HashEncoder(shift=0.0))
    path = packs_in(cache)[1]
    shutil.copy(path, tmp_path / "whole")
    flipped(path)
    later = filled(cache, texts_of(4), HashEncoder(shift=0.5))
    assert torch.equal(all_rows(later)["pooled"][0], hashed("fox number 0", (4,)) + 0.5)
    shutil.copy(tmp_path / "whole", path)
    restored = cached(cache, texts_of(4))
    assert torch.equal(all_rows(restored)["pooled"][0], hashed("fox number 0", (4,)))


def test_what_is_no_pack_by_its_name_is_left_alone(cache: Path) -> None:
    filled(cache, texts_of(2))
    folder = packs_in(cache)[0].parent
    for name in (".pack-00000009.safetensors.1-2-3.aside", "pack-1.safetensors", "pack-00000003.set-aside.safetensors"):
        (folder / name).write_bytes(b"mine")
    said: list[str] = []
    cached(cache, texts_of(2), say=said.append)
    filled(cache, texts_of(3), say=said.append)
    assert len(said) == 1
    assert packs_in(cache)[2].name == "pack-00000003.safetensors"


def test_a_pack_whose_data_is_damaged_after_it_was_found_is_said_when_it_is_opened(cache: Path) -> None:
    found = pickle.loads(pickle.dumps(filled(cache, texts_of(8), block=4)))  # noqa: S301 (made here)
    flipped(packs_in(cache)[2])
    assert len(found.rows(torch.arange(4))["text"]) == 4
    with pytest.raises(UserError, match=r"pack-00000003\.safetensors: its content does not match its checksum"):
        found.rows(torch.tensor([5]))
    packs_in(cache)[2].unlink()
    with pytest.raises(UserError, match=r"pack-00000003\.safetensors: there is no such file"):
        found.rows(torch.tensor([5]))


def test_a_header_that_lies_of_its_rows_is_refused(cache: Path) -> None:
    found = filled(cache, texts_of(4))
    path = packs_in(cache)[1]
    write_tensors(path, {"text": torch.ones(4, 6, 3), "mask": torch.ones(4, 6)}, read_metadata(path))
    with pytest.raises(UserError, match="has other rows than its header says"):
        found.rows(torch.tensor([0]))


class Counted:
    """The slices of one open pack, whose rows are counted."""

    def __init__(self, stream: Any, read: list[tuple[str, int]]):
        self._stream, self._read = stream, read

    def keys(self) -> list[str]:
        return list(self._stream.keys())

    def get_slice(self, name: str) -> Any:
        outer, slices = self, self._stream.get_slice(name)

        class Slices:
            def __getitem__(self, rows: slice) -> Tensor:
                outer._read.append((name, rows.stop - rows.start))
                return slices[rows]

        return Slices()


def test_rows_are_read_when_they_are_asked_for_and_no_others(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    opened: list[str] = []
    real = row_files.opened_tensors

    @contextlib.contextmanager
    def counted(path: Path) -> Iterator[Counted]:
        opened.append(path.name)
        with real(path) as stream:
            yield Counted(stream, read)

    monkeypatch.setattr(row_files, "opened_tensors", counted)
    found = filled(cache, texts_of(1000), block=100)
    # The unconditional prompt's pack alone, looked at once to hold it against its header.
    assert opened == ["pack-00000001.safetensors"]
    assert sum(count for _, count in read) == 2 * 3
    opened.clear()
    read.clear()
    found.rows(torch.tensor([5, 950, 7, 5]))
    assert opened == ["pack-00000002.safetensors", "pack-00000011.safetensors"]
    assert sum(count for _, count in read) == (2 + 4) * 3
    read.clear()
    found.rows(torch.tensor([951, 8]))
    assert len(opened) == 2
    assert sorted(read) == sorted([(name, 1) for name in ("text", "pooled", "mask")] * 2)


def test_a_pack_is_verified_once_when_it_is_first_opened(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    for module in (packs, row_files):
        real = module.verify_tensors
        monkeypatch.setattr(module, "verify_tensors", lambda path, real=real: (verified.append(path.name), real(path)))
    filled(cache, texts_of(12), block=4)
    assert sorted(verified) == [path.name for path in packs_in(cache)]
    verified.clear()
    found = cached(cache, texts_of(8))
    for _ in range(3):
        all_rows(found)
    assert sorted(verified) == [path.name for path in packs_in(cache)[:3]]
    verified.clear()
    copy = pickle.loads(pickle.dumps(found))  # noqa: S301 (made here)
    for _ in range(3):
        copy.rows(torch.tensor([7, 6]))
    assert verified == ["pack-00000003.safetensors"]
    assert same(all_rows(copy), all_rows(found))
    assert (copy.identity, copy.texts, copy.remarks) == (found.identity, found.texts, found.remarks)
    assert same(copy.null, found.null)


def test_threads_read_at_the_same_time_with_few_packs_open(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MOST_OPEN", 2)
    found = filled(cache, texts_of(40), block=4)
    expected = torch.stack([hashed(text, (6, 3)) for text in texts_of(40)])
    wrong: list[int] = []

    def read(seed: int) -> None:
        for turn in range(30):
            index = torch.randint(40, (9,), generator=torch.Generator().manual_seed(100 * seed + turn))
            if not torch.equal(found.rows(index)["text"], expected[index]):
                wrong.append(seed)
            if len(found.kept.packs._opened.packs) > 2:
                wrong.append(-1)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_run_may_hold_it_and_it_remembers_nothing(cache: Path) -> None:
    found = filled(cache, texts_of(2))
    check_open({"prompts": found, "list": read_prompts(["a"])}, "a phase")
    assert find_resumable(found) == {}


LONG = ["one two", "a b c d e f", "one two three four five six seven", "x " * 20, "one two"]


def test_prompts_that_are_too_long_are_counted_and_cut_and_said(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n" + "\n".join([*LONG, LONG[3]]), encoding="utf-8")
    prompts = read_prompts(tmp_path / "a.txt")
    sentence = f"{prompts.source}: 3 of 6 prompts are longer than 6 tokens and are cut: line 4 has 7."
    for make in (HashEncoder, never):
        said: list[str] = []
        found = embed(prompts, make, IDENTITY, cache, say=said.append)
        assert said[-1] == sentence
        assert found.remarks == (*prompts.remarks, sentence)
    assert found.rows(torch.tensor([3]))["mask"].sum() == 6
    said = []
    filled(cache, LONG[:3], say=said.append)
    assert said == [f"{read_prompts(LONG).source}: 1 of 3 prompts is longer than 6 tokens and is cut: prompt 3 has 7."]
    assert cached(cache, LONG[:2]).remarks == ()


def test_prompts_that_are_too_long_are_refused_before_any_is_embedded(cache: Path) -> None:
    made = HashEncoder()
    with pytest.raises(
        UserError, match=r"2 of 5 prompts are longer than the 6 tokens .*: prompt 3 \(prompt 3\) has 7;"
    ):
        filled(cache, LONG, made, too_long="refuse")
    assert made.called == []
    assert packs_in(cache) == []
    filled(cache, LONG)
    with pytest.raises(UserError, match=r"2 of 5 prompts are .* has 7;"):
        cached(cache, LONG, too_long="refuse")
    # A cached prompt that is too long is found before a missing one is embedded.
    with pytest.raises(UserError, match=r"1 of 2 prompts is .*: prompt 2 .* has 20;"):
        filled(cache, ["new", LONG[3]], made, too_long="refuse")
    assert made.called == []
    assert len(filled(cache, LONG[:2], too_long="refuse")) == 2


@pytest.mark.parametrize(("dtype", "value"), [(None, float("nan")), (None, float("inf")), (torch.float16, 1e6)])
def test_an_embedding_that_is_not_finite_is_refused_with_its_prompt(
    cache: Path, dtype: torch.dtype | None, value: float
) -> None:
    class Wrong(HashEncoder):
        def __call__(self, prompts: Any) -> Mapping[str, Tensor]:
            rows = dict(super().__call__(prompts))
            for row, prompt in enumerate(prompts):
                if prompt in ("fox number 6", "fox number 7"):
                    rows["pooled"][row, 1] = value
            return rows

    sentence = rf"the list of prompts: prompt 7: its embedding 'pooled' \({'float16' if dtype else 'float32'}\) holds"
    with pytest.raises(NotFinite, match=sentence):
        filled(cache, texts_of(10), Wrong(), block=4, dtype=dtype)
    # What was written before stays.
    after = HashEncoder()
    filled(cache, texts_of(10), after, block=4, dtype=dtype)
    assert after.called == [texts_of(10)[4:8], texts_of(10)[8:]]


def test_an_unconditional_prompt_that_is_not_finite_is_refused(cache: Path) -> None:
    with pytest.raises(NotFinite, match="the unconditional prompt: its embedding"):
        filled(cache, ["fox"], HashEncoder(shift=float("nan")))
    assert packs_in(cache) == []


def test_what_is_asked_wrongly_is_said(cache: Path) -> None:
    for identity in ("", "no hex", "../../../../../../etc", "abc"):
        with pytest.raises(UserError, match="at least 16 hexadecimal digits"):
            embed(read_prompts(["fox"]), never, identity, cache)
    for block in (0, -1, 2**16 + 1):
        with pytest.raises(UserError, match="in blocks of 1 to 65,536"):
            cached(cache, ["fox"], block=block)
    with pytest.raises(UserError, match="a type of floats"):
        cached(cache, ["fox"], dtype=torch.int8)
    with pytest.raises(UserError, match="not the one that was asked for"):
        embed(read_prompts(["fox"]), lambda: HashEncoder("f" * 64), IDENTITY, cache, say=silent)
    assert packs_in(cache) == []


def test_an_encoder_whose_rows_change_under_one_identity_is_refused(cache: Path) -> None:
    filled(cache, texts_of(2))
    before = packs_in(cache)
    for other in (
        HashEncoder(sizes={"text": (6, 4), "pooled": (4,)}),
        HashEncoder(sizes={"text": (6, 3)}),
        HashEncoder(dtype=torch.float64),
    ):
        with pytest.raises(
            UserError, match=r"holds embeddings of .* another form .* give the encoder another identity"
        ):
            filled(cache, texts_of(4), other)
    with pytest.raises(UserError, match="another form"):
        filled(cache, texts_of(4), HashEncoder(length=7))
    assert packs_in(cache) == before


@pytest.mark.parametrize("given", [{}, {"text": torch.zeros(3, 2)}, {"text": torch.tensor(0.0)}])
def test_an_encoder_gives_a_row_a_prompt(cache: Path, given: dict[str, Tensor]) -> None:
    class Wrong(HashEncoder):
        def null(self) -> Mapping[str, Tensor]:
            return {"text": torch.zeros(1, 2)}

        def __call__(self, prompts: Any) -> Mapping[str, Tensor]:
            return given

    with pytest.raises(UserError, match=r"the prompt encoder gives (no tensors|'text' of shape)"):
        filled(cache, texts_of(2), Wrong())


def test_a_pack_that_does_not_read_as_it_was_written_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(path: Path, tensors: Any, metadata: Any) -> None:
        write_tensors(path, tensors, metadata)
        flipped(path)

    monkeypatch.setattr(packs, "write_tensors", faulty)
    with pytest.raises(UserError, match=r"pack-00000001\.safetensors: was written, and does not read"):
        filled(cache, texts_of(2))


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"lock: (could not be written|cannot be read)"):
        filled(tmp_path / "file", texts_of(2))


def test_two_processes_that_fill_one_cache_read_the_same_bits(cache: Path, tmp_path: Path) -> None:
    """Each computes other bits, as batches and machines do; yet both read what was written
    first.
    """
    count = 60
    read = filled_by_two(fill, cache, tmp_path, count, 4)
    found = cached(cache, texts_of(count))
    assert read == all_rows(found)["text"].numpy().tobytes()
    listed = [prompt for path in packs_in(cache) for prompt in read_metadata(path)["keys"]]
    assert len(listed) == len(set(listed)) == count + 1


def test_a_process_that_is_killed_while_it_writes_leaves_a_cache_that_is_used(cache: Path, tmp_path: Path) -> None:
    # A file is synced, and its folder: the unconditional prompt and two blocks are whole, the third
    # block has its bytes and no name.
    aside = killed_while_it_fills(fill_and_hang, cache, tmp_path, 20, 4, 6)
    assert len(packs_in(cache)) == 3
    after = HashEncoder()
    said: list[str] = []
    found = filled(cache, texts_of(20), after, block=4, say=said.append)
    assert after.called == [texts_of(20)[begin : begin + 4] for begin in (8, 12, 16)]
    assert len(said) == 1
    assert aside.exists()
    undisturbed = tmp_path / "undisturbed"
    assert same(all_rows(found), all_rows(filled(undisturbed, texts_of(20), block=4)))
    assert [path.read_bytes() for path in packs_in(cache)] == [path.read_bytes() for path in packs_in(undisturbed)]


def test_of_several_processes_of_a_run_the_first_embeds_for_all(cache: Path, tmp_path: Path) -> None:
    assert filled_by_a_group(fill_as_a_group, cache, tmp_path)
