"""Both pages in a real browser without a window: Debian's chromium, driven by selenium.

The policy of the pages is obeyed (the browser's console is empty), nothing is wider than the
window, and keys, buttons and fields do what they say.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pages_kit import digits_run, painted_study

from fewstep.pages import LocalServer, PlayedRun, PlayPage, PreferencePage
from fewstep.studies.preference import AnswerBook

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the extra 'test')")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="there is no chromium with its driver (apt-get install chromium-driver)"
)
PAIRS = 4


class Looker:
    """A browser that looks at one page after another."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for each in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"):
            options.add_argument(each)
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))

    def size(self, width: int, dark: bool) -> None:
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def one(self, name: str):  # type: ignore[no-untyped-def]
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return str(self.one(name).text)

    def until(self, holds: Callable[[], object]) -> None:
        WebDriverWait(self.driver, 20).until(lambda _: holds())

    def press(self, key: str) -> None:
        self.driver.find_element(By.TAG_NAME, "body").send_keys(key)

    def colours(self) -> tuple[str, str]:
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        page, ink = self.driver.execute_script(script)
        return page, ink

    def check_layout(self) -> None:
        """Nothing is wider than the window, every field has a label, every picture that is shown
        an alternative text.
        """
        assert self.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        seen = "e => e.checkVisibility()"
        fields = f"[...document.querySelectorAll('input, select')].filter({seen}).every(e => e.labels.length === 1)"
        images = f"[...document.images].filter({seen}).every(e => e.alt !== '' && e.naturalWidth > 0)"
        assert self.driver.execute_script(f"return {fields}")
        assert self.driver.execute_script(f"return {images}")

    def check_quiet(self) -> None:
        """What was loaded came from the page's own server, and the policy held nothing up."""
        assert self.driver.get_log("browser") == []
        script = "return performance.getEntriesByType('resource').map(e => e.name)"
        own = self.driver.execute_script("return location.origin")
        assert all(name.startswith((own, "data:")) for name in self.driver.execute_script(script))


@pytest.fixture(scope="module")
def looker() -> Iterator[Looker]:
    found = Looker()
    yield found
    found.driver.quit()


def test_pairs_are_answered_by_keys_and_buttons(looker: Looker, tmp_path: Path) -> None:
    study = painted_study(tmp_path / "study", PAIRS)
    book = AnswerBook(study, "ada")

    def ready(done: int) -> None:
        looker.until(lambda: looker.text("progress") == f"ada: {done} of {PAIRS} pairs answered.")
        looker.until(lambda: looker.one("choose-left").is_enabled())

    with LocalServer(PreferencePage(study, book)) as server:
        grounds = set()
        for width, dark in ((1280, False), (390, False), (390, True), (1280, True)):
            looker.size(width, dark)
            looker.driver.get(server.address)
            ready(0)
            looker.check_layout()
            grounds.add(looker.colours())
        assert len(grounds) == 2
        # A caption is a text, whatever is in it.
        assert looker.text("caption") == f"scene <{book.shown.order[0]}>"
        left, right = (looker.one(side).rect for side in ("left", "right"))
        assert left["x"] + left["width"] <= right["x"]
        looker.press(Keys.ARROW_LEFT)
        ready(1)
        looker.press(Keys.ARROW_DOWN)
        ready(2)
        looker.press(Keys.BACKSPACE)
        ready(1)
        looker.press(Keys.ARROW_RIGHT)
        ready(2)
        assert [each.side for each in book.answered] == ["left", "right"]
        looker.driver.refresh()
        ready(2)
        assert looker.text("caption") == f"scene <{book.shown.order[2]}>"
        looker.one("choose-none").click()
        ready(3)
        # Another window has answered meanwhile: the page says so, and goes on with what is left.
        book.add(3, "left")
        book.undo(3)
        book.undo(2)
        looker.press(Keys.ARROW_LEFT)
        ready(2)
        assert "answered meanwhile" in looker.text("error")
        looker.one("choose-left").click()
        ready(3)
        assert looker.text("error") == ""
        looker.press(Keys.ARROW_RIGHT)
        looker.until(lambda: looker.one("end").is_displayed())
        looker.check_layout()
        assert [each.side for each in book.answered] == ["left", "right", "left", "right"]
        refused = [entry for entry in looker.driver.get_log("browser") if "400" not in entry["message"]]
        assert refused == []
    book.close()


def test_student_and_teacher_draw_what_is_asked_for(looker: Looker, tmp_path: Path) -> None:
    with LocalServer(PlayPage(PlayedRun.opened(digits_run(tmp_path / "run", 0)))) as server:
        looker.size(1280, False)
        looker.driver.get(server.address)
        looker.until(lambda: looker.one("draw").is_enabled())
        assert looker.text("run") == "run"
        assert not looker.one("prompt").is_displayed()
        looker.one("class").send_keys("class 7")
        looker.one("teacher-steps").clear()
        looker.one("teacher-steps").send_keys("3")
        looker.one("draw").click()
        looker.until(lambda: looker.text("ratio"))
        assert looker.text("student-facts").startswith("1 step, 1 network evaluation, ")
        assert looker.text("teacher-facts").startswith("3 steps, ")
        assert looker.one("student-picture").get_attribute("alt") == "The student's picture of class 7, seed 0"
        first = looker.one("student-picture").get_attribute("src")
        for width, dark in ((1280, False), (390, True)):
            looker.size(width, dark)
            looker.check_layout()
        looker.one("next").click()
        looker.until(lambda: looker.one("student-picture").get_attribute("src") != first and looker.text("ratio"))
        assert looker.one("seed").get_attribute("value") == "1"
        looker.check_quiet()
        # What the server refuses is one sentence, and nothing of before is left beside it.
        looker.one("student-steps").clear()
        looker.one("next").click()
        looker.until(lambda: looker.text("error"))
        assert looker.text("error") == "steps: is missing; give a whole number from 1 to 10,000."
        assert not looker.one("student-picture").is_displayed()
        assert not looker.one("teacher-picture").is_displayed()
    looker.one("student-steps").send_keys("1")
    looker.one("draw").click()
    looker.until(lambda: "is the command still running" in looker.text("error"))
