"""The report of a run, on a folder as a digits run leaves it: whole, self-contained, escaped,
honest about what is missing, the same for the same folder.
"""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw

from fewstep.errors import UserError
from fewstep.report import write_run_report

SECTIONS = ("headline", "evaluation", "curves", "samples", "path", "health", "cost", "settings")
VOID = {"meta", "img", "br"}
LAG = (
    "the fake score trails the student (loss {:.2f} times that in training): update it more often, or lower "
    "the student's rate."
)


class Page(HTMLParser):
    """What a page refers to, its texts and ids; fails on tags that are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def write_png(path: Path, columns: int, rows: int, shift: int = 0) -> None:
    """A grid of tiles with a stroke in each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (columns * 34, rows * 34), 40)
    pen = ImageDraw.Draw(image)
    for column in range(columns):
        for row in range(rows):
            x, y = column * 34 + 2, row * 34 + 2
            pen.rectangle((x, y, x + 30, y + 30), fill=10)
            pen.line((x + 5 + (column + shift) % 20, y + 4, x + 25 - row % 9, y + 26), fill=240, width=4)
    image.save(path)


def training_line(step: int, record: int, switches: dict[int, int]) -> dict[str, object]:
    recording = step <= record
    line: dict[str, object] = {
        "step": step,
        "stage": "record" if recording else "backtrack",
        "evaluations": 256 * step if recording else 256 * record + 640 * (step - record),
    }
    wiggle = 1 + 0.1 * math.sin(step)
    if recording:
        return line | {
            "degrade.denoising": (0.3 + 0.5 / (1 + step / 20)) * wiggle,
            "degrade.gradient_norm": wiggle,
            "path_nodes": step // 50,
            "seconds": 0.021 * step,
        }
    done = step - record
    node = min((node for at, node in switches.items() if step >= at), default=None)
    gap = (0.2 + 1.5 / (1 + done % 350 / 60)) * wiggle
    line |= {
        "student.gap": gap,
        "student.gradient": 0.02 * gap,
        "student.gradient_norm": 3 * gap,
        "fake.denoising": 0.2 + 0.5 / (1 + done / 90) + 0.02 * math.sin(step),
    }
    return line | {
        "fake.gradient_norm": wiggle,
        "path_nodes": record // 50,
        "target_node": node,
        "seconds": round(0.021 * record + 0.063 * done, 3),
    }


def write_log(folder: Path, steps: int, record: int, switches: dict[int, int], warn_at: tuple[int, ...]) -> None:
    lines: list[dict[str, object]] = []
    for step in range(steps + 1):
        line = training_line(step, record, switches)
        position = {"step": step, "evaluations": line["evaluations"]}
        if step and (step % 20 == 0 or step in switches or step == record):
            lines.append(line)
        if step % 100 == 0:
            progress = max(step - record, 0) / (steps - record)
            lines.append(
                {
                    **position,
                    "probe": "evaluation",
                    "fd": 4.6 + 80 * math.exp(-6 * progress) + math.sin(step),
                    "accuracy": 0.93 - 0.8 * math.exp(-5 * progress),
                }
            )
            lag = 1.9 + 0.001 * step if step in warn_at else 1.1 + 0.1 * math.sin(step)
            readings = {
                "fake_score_lag": lag,
                "gap": 0.4,
                "mismatch_over_bound": 1 + 6 * math.exp(-4 * progress),
                "spread_over_data": 0.9 + 0.05 * math.sin(step / 70),
            }
            readings |= {
                "saturation": 0.03 * math.exp(-progress),
                "student_gradient_over_clip": 1.2 + math.sin(step) / 9,
            }
            lines.append(
                {**position, "probe": "health", **readings, "warnings": [LAG.format(lag)] if step in warn_at else []}
            )
        if step % 200 == 0:
            name = f"samples/step-{step:08d}.png"
            write_png(folder / name, 10, 8, step // 200)
            lines.append({**position, "probe": "samples", "file": name})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 99999, "stage": "backtr')


def write_run(folder: Path, name: str = "digits", warn_at: tuple[int, ...] = (400, 500), **extra: object) -> Path:
    """A whole run folder: 200 steps of recording, then backtracking over three nodes."""
    folder.mkdir(parents=True)
    recipe = {
        "name": name,
        "method": "disback",
        "teacher": "digits",
        "seed": 0,
        "target": {
            "kind": "backtracked",
            "switch": {"kind": "plateau", "window": 100},
            "guidance": {"kind": "along-path", "scale": 3.0},
        },
    }
    recipe |= {
        "training": {"steps": 2200, "batch": 128, "precision": "fp32", "checkpoint_every": 500},
        "states": {"prior": {"sigma": 2.5}},
    }
    recipe |= {
        "student": {
            "optimizer": {"rate": 1e-4, "betas": [0.9, 0.99]},
            "clip": 1.0,
            "average": None,
            "weighting": "diff-instruct",
        },
        **extra,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    write_log(folder, 2200, 200, {201: 3, 560: 2, 900: 1, 1300: 0}, warn_at)
    teacher = {
        "35": {"fd": 3.214, "fd_spread": 0.12, "accuracy": 0.968, "nfe": 69, "ms_per_image": 12.44},
        "1": {"fd": 91.5, "fd_spread": 1.1, "accuracy": 0.31, "nfe": 1, "ms_per_image": 0.18},
    }
    student = {"1": {"fd": 4.61, "fd_spread": 0.2, "accuracy": 0.931, "nfe": 1, "ms_per_image": 0.18}}
    (folder / "evaluation.json").write_text(
        json.dumps(
            {"teacher": teacher, "student": student, "reference": {"halves_fd": 1.87, "samples": 1797, "draws": 5}}
        )
    )
    write_png(folder / "samples" / "path.png", 12, 4)
    (folder / "samples" / "path.json").write_text(json.dumps({"rows": ["teacher", "node 1", "node 2", "node 3"]}))
    write_png(folder / "samples" / "final.png", 10, 10)
    (folder / "path").mkdir()
    nodes = [{"file": f"node-{i}.safetensors", "digest": "0" * 64, "step": 50 * i} for i in (1, 2, 3)]
    (folder / "path" / "manifest.json").write_text(json.dumps({"nodes": nodes, "closed": ""}))
    return folder


def report(folder: Path) -> Page:
    return Page(write_run_report(folder).read_text())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(write_run(tmp_path_factory.mktemp("runs") / "digits"))


def test_every_section_is_there(page: Page) -> None:
    assert set(SECTIONS) <= set(page.values("id"))
    assert {value[1:] for value in page.values("href")} <= set(page.values("id"))


def test_nothing_is_fetched(page: Page) -> None:
    assert all(value.startswith("#") for value in page.values("href"))
    assert page.values("src")
    assert all(value.startswith("data:image/png;base64,") for value in page.values("src"))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "use", "image"})
    assert not any(
        re.search(r"url\(|@import|https?:", value or "")
        for tag, attributes in page.tags
        for value in [*attributes.values()]
    )
    assert not re.search(r"url\(|@import|https?:", page.text)


def test_every_picture_and_chart_has_a_text(page: Page) -> None:
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    assert all(attributes["aria-label"] for tag, attributes in page.tags if tag == "svg")


def test_headline_compares_student_and_teacher(page: Page) -> None:
    assert (
        "In 1 step the student reaches a Frechet distance of 4.61 ± 0.20; the teacher has 3.21 ± 0.12 in "
        "35 steps and 91.5 ± 1.1 in 1 step." in page.text
    )
    assert "disback" in page.text
    gap = (0.2 + 1.5 / (1 + 1 / 60)) * (1 + 0.1 * math.sin(201))
    assert (
        "backtracked, guided (along-path, scale 3.0): node 3 from step 201, node 2 from step 560, node 1 from step "
        f"900, teacher from step 1,300; the gap of its first step was {gap:.3g}" in page.text
    )


def test_evaluation_table_has_the_figures(page: Page) -> None:
    for text in (
        "Teacher, 35 steps 3.21 ± 0.12 96.8% 69 12.4",
        "Student, 1 step 4.61 ± 0.20 93.1% 1 0.18",
        "Two halves of the data 1.87",
        "1,797 samples",
        "over 5 draws",
    ):
        assert text in page.text


def test_switches_are_marked_where_they_are(page: Page) -> None:
    steps = [attributes["data-step"] for _, attributes in page.tags if attributes.get("class") == "switch"]
    assert steps[:4] == ["201", "560", "900", "1300"]
    charts_over_path = sum(attributes.get("class") == "band" and tag == "rect" for tag, attributes in page.tags)
    assert len(steps) == 4 * charts_over_path
    places = [float(attributes["x1"] or 0) for _, attributes in page.tags if attributes.get("class") == "switch"][:4]
    assert places == sorted(places)


def test_recording_is_shaded_up_to_its_end(page: Page) -> None:
    band = next(attributes for tag, attributes in page.tags if tag == "rect")
    switch = next(attributes for _, attributes in page.tags if attributes.get("class") == "switch")
    assert float(band["x"] or 0) + float(band["width"] or 0) == pytest.approx(float(switch["x1"] or 0), abs=2)


def test_samples_are_few_and_evenly_chosen(page: Page) -> None:
    captions = re.findall(r"step ([\d,]+) ?(?=step|Degradation)", page.text.split("The same noise at every step.")[1])
    assert captions == ["0", "400", "600", "1,000", "1,200", "1,600", "1,800", "2,200"]


def test_path_has_row_captions(page: Page) -> None:
    assert "teacher node 1 node 2 node 3" in page.text
    assert "3 nodes recorded after 50, 100 and 150 steps of degradation; the teacher is node 0." in page.text


def test_warnings_are_listed_with_their_steps(page: Page) -> None:
    assert "Recovered : 2 warnings in 23 checks, the last at step 500; the newest check was clean." in page.text
    assert f"{LAG.format(2.4)} at steps 400 and 500" in page.text


def test_no_warning_is_said_to_be_good(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "run", warn_at=()))
    assert "nothing was off" in page.text
    assert any(attributes.get("class") == "badge good" for _, attributes in page.tags)


def test_a_warning_at_the_end_is_bad(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "run", warn_at=(2200,)))
    assert "something is off" in page.text


def test_cost_is_counted_by_stage(page: Page) -> None:
    assert "record 200 51,200 3.8% 256 4.2 s 21" in page.text
    assert "backtrack 2,000 1,280,000 96.2% 640 2 min 6 s 63" in page.text
    assert "all 2,200 1,331,200 100.0% 605 2 min 10 s" in page.text


def test_time_survives_a_resume(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    lines = [
        {"step": step, "stage": "distill", "evaluations": step, "seconds": seconds}
        for step, seconds in ((10, 5.0), (20, 10.0), (30, 2.0), (40, 7.0))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "40 40 100.0% 1 17 s 425" in report(folder).text


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    folder = write_run(tmp_path / "run", name=evil, note=evil, deeper={evil: [evil, {"a": evil}]})
    (folder / "samples" / "path.json").write_text(json.dumps({"rows": [evil]}))
    (folder / "path" / "manifest.json").write_text(json.dumps({"nodes": [{"step": evil}], "closed": evil}))
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(
            "\n"
            + json.dumps({"step": 2201, "evaluations": 2e6, "probe": "health", evil: 1.0, "warnings": [evil]})
            + "\n"
        )
        stream.write(json.dumps({"step": 2201, "evaluations": 2e6, "stage": evil, f"{evil}.{evil}": 1.0}) + "\n")
    page = report(folder)
    assert page.text.count(evil) > 10
    assert "script" not in {tag for tag, _ in page.tags}


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("evaluation.json", "The run was not evaluated yet (there is no evaluation.json)."),
        ("path/manifest.json", "No degradation path was recorded (there is no path/manifest.json)."),
        ("samples/path.png", "There is no picture of the path's nodes (samples/path.png)."),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, lost: str, sentence: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / lost).unlink()
    assert sentence in report(folder).text


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: dmd\n")
    (tmp_path / "metrics.jsonl").write_text("")
    text = report(tmp_path).text
    for sentence in (
        "no distances were taken",
        "No samples were kept",
        "The log holds no figures yet.",
        "The log holds no training steps yet.",
        "No health readings were taken",
        "the log tells of no switch",
    ):
        assert sentence in text


def test_damaged_parts_are_said_and_strange_lines_skipped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "evaluation.json").write_text('{"teacher": ')
    (folder / "samples" / "final.png").write_bytes(b"no picture")
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(
            '\n7\n{"probe": "evaluation"}\n{"step": 2201, "evaluations": 9, "probe": "evaluation", "fd": NaN}\n'
        )
    page = report(folder)
    assert "evaluation.json could not be read; write it anew." in page.text
    assert "final" not in page.text


@pytest.mark.parametrize(
    ("name", "text"),
    [("recipe.yaml", None), ("metrics.jsonl", None), ("recipe.yaml", "- a\n"), ("recipe.yaml", "a: [\n")],
)
def test_a_folder_without_a_run_is_refused(tmp_path: Path, name: str, text: str | None) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(UserError, match=name):
        write_run_report(folder)


def test_equal_folders_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (write_run_report(write_run(tmp_path / parent / "run")).read_bytes() for parent in "ab")
    assert first == second
    assert write_run_report(tmp_path / "a" / "run").read_bytes() == first


def test_the_mismatch_degree_is_shown_by_level_and_unreliable_levels_are_marked(tmp_path):
    folder = write_run(tmp_path / "digits")
    path = folder / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["mismatch"] = {
        "levels": [0.1, 1.6],
        "training": [0.581, 0.075],
        "assessed": [0.975, 0.098],
        "reliable": [False, True],
    }
    evaluation["mismatch"]["norms"] = {
        "training": {"mean": [3.25, 0.5], "deviation": [0.5, 0.0]},
        "assessed": {"mean": [7.1], "deviation": [0.1]},
    }
    path.write_text(json.dumps(evaluation))
    page = write_run_report(folder).read_text()
    section = page[page.index("Mismatch degree by noise level") :]
    assert "3.25 ± 0.50" in section
    # Columns of another length are left out.
    assert "7.1" not in section[: section.index("</table>")]
    places = [section.index(text) for text in ("0.581", "0.975", "unreliable", "0.075", "0.098")]
    assert places == sorted(places)
    assert section.count("unreliable:") == 1
