"""Pages that one works with: served by this machine, to this machine alone."""

from fewstep.pages.local_server import LocalServer
from fewstep.pages.play_page import PlayPage
from fewstep.pages.played_run import PlayedRun
from fewstep.pages.preference_page import PreferencePage

__all__ = ["LocalServer", "PlayPage", "PlayedRun", "PreferencePage"]
