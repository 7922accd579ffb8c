"""What raters see and say: order and sides, blindness, lines that are only added, and going on
after a kill.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pages_kit import SECRETS, asked, painted, painted_study

from fewstep.errors import UserError
from fewstep.pages import LocalServer, PreferencePage
from fewstep.studies.preference import AnswerBook, preferred_shares, study_at
from fewstep.studies.preference.answer_book import ShownPairs, checked_rater
from fewstep.studies.preference.preferred import TABLE

PAIRS = 6


def lines(book: AnswerBook) -> list[dict[str, object]]:
    return [json.loads(line) for line in book.path.read_text().splitlines() if line]


def test_order_and_sides_are_a_raters_own_and_balanced() -> None:
    for pairs in (1, 2, 7, 128):
        shown = ShownPairs.of(0, "ada", pairs)
        assert shown == ShownPairs.of(0, "ada", pairs)
        assert sorted(shown.order) == list(range(pairs))
        assert abs(Counter(shown.lefts)["A"] - Counter(shown.lefts)["B"]) == pairs % 2
    others = [ShownPairs.of(seed, name, 128) for seed, name in ((0, "ada"), (0, "bob"), (1, "ada"))]
    assert len({other.order for other in others}) == 3
    assert len({other.lefts for other in others}) == 3
    # Neither the place nor the pair says the side, over raters.
    many = [ShownPairs.of(0, f"rater {i}", 9) for i in range(400)]
    for place in range(9):
        assert 140 < sum(shown.lefts[place] == "A" for shown in many) < 260
        assert 140 < sum(shown.lefts[shown.order.index(place)] == "A" for shown in many) < 260


def test_sides_and_choices_mean_the_models(tmp_path: Path) -> None:
    study = painted_study(tmp_path / "study", PAIRS)
    book = AnswerBook(study, "ada")
    with LocalServer(PreferencePage(study, book)) as server:
        for place in range(PAIRS):
            pair, left = book.shown.order[place], book.shown.lefts[place]
            right = "B" if left == "A" else "A"
            state = asked(server.address + "state").json
            assert state["pair"] == {"place": place, "caption": f"scene <{pair}>"}
            for side, model in (("left", left), ("right", right)):
                answer = asked(f"{server.address}picture/{place}/{side}")
                assert (answer.headers["Content-Type"], answer.content) == ("image/png", painted(model, pair))
            choice = ("left", "right", "none")[place % 3]
            asked(server.address + "answer", {"place": place, "choice": choice})
            wanted = {"left": left, "right": right, "none": "none"}[choice]
            assert lines(book)[-1] == {"pair": pair, "left": left, "prefers": wanted}
            assert book.answered[-1].side == choice
        assert asked(server.address + "state").json["pair"] is None
        assert "answered meanwhile" in asked(server.address + "answer", {"place": 5, "choice": "left"}).sentence
    book.close()


def test_nothing_that_reaches_the_page_tells_the_models(tmp_path: Path) -> None:
    """Exchanging the models changes the pictures that are answered, and not a byte of anything
    else.
    """
    said = []
    for swapped in (False, True):
        study = painted_study(tmp_path / str(swapped), PAIRS, swapped)
        book = AnswerBook(study, "ada")
        found, pictures = [], []
        with LocalServer(PreferencePage(study, book)) as server:
            names = ("", "page.js", "page.css", "ask.js", "style.css", "state")
            answers = [asked(server.address + name) for name in names]
            for place in range(PAIRS):
                shown = [asked(f"{server.address}picture/{place}/{side}") for side in ("left", "right")]
                pictures.append({answer.content for answer in shown})
                sizes = ("Content-Length", "Date")
                one, other = ({k: v for k, v in each.headers.items() if k not in sizes} for each in shown)
                assert one == other
                answers.append(asked(server.address + "answer", {"place": place, "choice": "left"}))
            answers.append(asked(server.address + "undo", {"place": PAIRS - 1}))
            for answer in answers:
                text = answer.content.decode()
                assert not any(secret in text for secret in (*SECRETS.values(), str(tmp_path), '"A"', '"B"'))
                assert not any(secret in str(answer.headers) for secret in SECRETS.values())
                found.append(answer.content)
        said.append((found, pictures))
        book.close()
    assert said[0] == said[1]
    state = json.loads(said[0][0][-1])
    assert set(state) == {"rater", "done", "total", "pair"}
    assert set(state["pair"]) == {"place", "caption"}


def test_a_picture_that_is_gone_is_told_without_its_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study = painted_study(tmp_path / "study", PAIRS)
    book = AnswerBook(study, "ada")
    pair, left = book.shown.order[0], book.shown.lefts[0]
    path = study.folder / "pictures" / f"{pair:05d}-{left}.png"
    with LocalServer(PreferencePage(study, book)) as server:
        for damage in (path.unlink, lambda: path.write_text("<svg>"), lambda: (path.unlink(), path.mkdir())):
            damage()
            sentence = asked(server.address + "picture/0/left").sentence
            assert sentence == "a picture of this pair cannot be read; tell whoever started this page."
            assert path.name in capfd.readouterr().err
    book.close()


def test_answers_are_only_added_and_taken_back_by_a_line(tmp_path: Path) -> None:
    study = painted_study(tmp_path / "study", PAIRS)
    book = AnswerBook(study, "ada")
    book.add(0, "left")
    book.add(1, "none")
    before = book.path.read_bytes()
    book.undo(1)
    book.add(1, "right")
    assert book.path.read_bytes().startswith(before)
    assert lines(book)[2] == {"undo": book.shown.order[1]}
    for place in (0, 2, 5):
        with pytest.raises(UserError, match="take back"):
            book.undo(place)
    for place in (0, 1, 3):
        with pytest.raises(UserError, match="answered meanwhile"):
            book.add(place, "left")
    with pytest.raises(UserError, match="another fewstep process asks this rater"):
        AnswerBook(study, "ada")
    AnswerBook(study, "bob").close()
    answered = book.answered
    book.close()
    again = AnswerBook(study_at(tmp_path / "study"), "ada")
    assert again.answered == answered
    again.path.rename(again.path.with_suffix(".moved"))
    with pytest.raises(UserError, match="removed meanwhile"):
        again.add(2, "left")
    again.path.write_text("")
    with pytest.raises(UserError, match="replaced by another file"):
        again.add(2, "left")
    assert len(again.answered) == 2
    again.close()


def test_a_line_that_was_cut_short_is_passed_over_and_kept(tmp_path: Path) -> None:
    study = painted_study(tmp_path / "study", PAIRS)
    book = AnswerBook(study, "ada")
    book.add(0, "left")
    book.close()
    with open(book.path, "ab") as stream:
        stream.write(b'{"pair": 3, "le')
    book = AnswerBook(study, "ada")
    assert len(book.answered) == 1
    book.add(1, "right")
    book.close()
    assert b'"le\n{"pair"' in book.path.read_bytes()
    again = AnswerBook(study, "ada")
    assert again.answered == book.answered
    again.close()


SERVED = """
import sys
from fewstep.pages import LocalServer, PreferencePage
from fewstep.studies.preference import AnswerBook, study_at
study = study_at(sys.argv[1])
server = LocalServer(PreferencePage(study, AnswerBook(study, "ada")))
print(server.address, flush=True)
server.serve()
"""


def served(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that asks ada, and the address of its page."""
    process = subprocess.Popen([sys.executable, "-c", SERVED, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_rater_goes_on_where_a_kill_left_him(tmp_path: Path) -> None:
    study = painted_study(tmp_path / "study", PAIRS)
    process, address = served(study.folder)
    try:
        for place in range(3):
            after = asked(address + "answer", {"place": place, "choice": "left"}).json
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    book = AnswerBook(study, "ada")
    with LocalServer(PreferencePage(study, book)) as server:
        assert asked(server.address + "state").json == after
        assert after["done"] == 3
        assert after["pair"]["caption"] == f"scene <{book.shown.order[3]}>"
        assert asked(server.address + "answer", {"place": 3, "choice": "left"}).json["done"] == 4
    book.close()


@pytest.mark.parametrize(
    "name", ["", " ", "a/b", "../a", "..", ".a", "a\n", "a\x00", "x" * 61, " a", "a ", "a:b", "\ud800"]
)
def test_names_that_cannot_be_files_are_refused(name: str, tmp_path: Path) -> None:
    study = painted_study(tmp_path / "study", 1)
    with pytest.raises(UserError, match="--rater"):
        AnswerBook(study, name)
    assert list(study.answers.iterdir()) == []


def test_a_name_is_one_however_it_is_spelled() -> None:
    assert checked_rater("Zoe\u0308 2") == checked_rater("Zo\u00eb 2") == "Zo\u00eb 2"


@pytest.mark.parametrize(
    "line",
    [
        '{"pair": 99, "left": "A", "prefers": "A"}', '{"pair": 0}', "[]", "1", '{"undo": 0}', '{"undo": "x"}',
        '{"pair": "0", "left": "A", "prefers": "A"}', '{"left": "C"}', "{}",
    ],
)  # fmt: skip
def test_a_file_of_other_answers_is_refused_by_its_line(line: str, tmp_path: Path) -> None:
    study = painted_study(tmp_path / "study", PAIRS)
    path = study.answers / "ada.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(UserError, match="line 2 is no answer of this rater"):
        AnswerBook(study, "ada")
    assert path.read_text() == f"\n{line}\n"
    path.unlink()
    # Somebody else's answers, in whose order the pairs are others.
    shown = ShownPairs.of(study.seed, "bob", PAIRS)
    path.write_text("".join(json.dumps(vars(shown.preference(i, "left"))) + "\n" for i in range(PAIRS)))
    with pytest.raises(UserError, match="is no answer of this rater"):
        preferred_shares(study.folder)


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    study = painted_study(tmp_path / "study", 1)
    (tmp_path / "precious").write_text("mine")
    os.symlink(tmp_path / "precious", study.answers / "ada.jsonl")
    with pytest.raises(UserError, match=r"ada\.jsonl: could not be written"):
        AnswerBook(study, "ada")
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "[" * 100_000, '{"format": 2}',
        '{"format": 1, "seed": 0, "models": {"A": {}, "B": {}}, "captions": [""]}',
        '{"format": 1, "seed": 0, "models": {"A": {"run": "a"}, "B": {"run": "b"}}, "captions": []}',
        '{"format": 1, "seed": 0, "models": {"A": {"run": "a"}, "B": {"run": "b"}}, "captions": [1]}',
    ],
)  # fmt: skip
def test_what_is_no_study_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(UserError, match="is no list of pairs of ours"):
        study_at(tmp_path)
    with pytest.raises(UserError, match="holds no pairs"):
        study_at(tmp_path / "none")


def test_the_table_counts_what_was_preferred(tmp_path: Path) -> None:
    """Ada prefers A in all 4, Bob in 2, B in 1, and sees no difference in 1."""
    study = painted_study(tmp_path / "study", 4)
    with pytest.raises(UserError, match="nobody has answered yet"):
        preferred_shares(study.folder)
    wanted = {"ada": ["A", "A", "A", "A"], "bob": ["A", "A", "B", "none"]}
    for rater, by_pair in wanted.items():
        book = AnswerBook(study, rater)
        for place, pair in enumerate(book.shown.order):
            prefers, left = by_pair[pair], book.shown.lefts[place]
            book.add(place, "none" if prefers == "none" else "left" if prefers == left else "right")
        book.close()
    found = preferred_shares(study.folder)
    assert json.loads((study.folder / TABLE).read_text()) == json.loads(json.dumps(found))
    answers = found["answers"]
    assert [answers[name]["count"] for name in ("A", "B", "none", "decided")] == [6, 1, 1, 6]
    assert answers["A"]["share"] == 0.75
    assert answers["A"]["wilson"] == pytest.approx((0.409280, 0.928517), abs=1e-5)
    assert answers["decided"]["share"] == pytest.approx(6 / 7)
    assert found["raters"]["count"] == 2
    assert found["raters"]["A"]["mean"] == 0.75
    # Shares 1 and 1/2: 0.75 +- 12.706 * 0.25, which is cut off.
    assert found["raters"]["A"]["student"] == (0.0, 1.0)
    assert found["by_rater"]["bob"]["none"]["share"] == 0.25
    assert found["by_rater"]["ada"]["B"]["share"] == 0.0
    assert found["agreement"]["shared_pairs"] == 4
    assert found["agreement"]["equal"] == 0.5
    left = sum(each.side == "left" for rater in wanted for each in AnswerBook(study, rater).answered)
    assert answers["left"]["count"] == left
