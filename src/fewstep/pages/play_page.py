"""The page on which a run's student and teacher are asked for pictures."""

from __future__ import annotations

import base64

from fewstep.pages.played_run import PlayedRun, Wish
from fewstep.pages.served import Answer, Said, ServedPage

MODELS = ("student", "teacher")
MOST_STEPS, MOST_GUIDANCE = 10_000, 1000.0


class PlayPage(ServedPage):
    """Draws what is asked of ``run``."""

    def __init__(self, run: PlayedRun):
        super().__init__("play")
        self._run = run

    def asked(self, name: str) -> Answer | None:
        """``about``: what the run's models take."""
        return Answer.of(self._run.about()) if name == "about" else None

    def told(self, name: str, said: Said) -> Answer | None:
        """``draw`` with a model, a seed, steps, and what else the model takes."""
        if name != "draw":
            return None
        drawn = self._run.drawn(self._wish(said))
        return Answer.of(
            {
                "picture": "data:image/png;base64," + base64.b64encode(drawn.png).decode(),
                "milliseconds": drawn.milliseconds,
                "evaluations": drawn.evaluations,
            }
        )

    def _wish(self, said: Said) -> Wish:
        about = self._run.about()
        model = said.one_of("model", MODELS)
        guided = about[model]["guidance"] is not None
        return Wish(
            model == "teacher",
            said.whole("seed", 0),
            said.whole("steps", 1, MOST_STEPS),
            said.text("prompt") if about["prompts"] else None,
            said.whole("class", 0, len(about["classes"]) - 1) if about["classes"] else None,
            said.number("guidance", 0, MOST_GUIDANCE) if guided else None,
        )
