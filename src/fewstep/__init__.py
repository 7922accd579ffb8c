"""fewstep: pretrained diffusion models turned into generators of one to four steps.

``import fewstep as fs`` is quick; ``fs.zoo``, ``fs.states`` and the other packages are imported
when they are first named, as are ``fs.load``, ``fs.distill``, ``fs.pretrain``, ``fs.evaluate``,
``fs.compare`` and ``fs.export``.
"""

from __future__ import annotations

# Nothing is imported before ``start`` can tell of an interruption; type checkers take this name for
# true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"
NEEDS_UNIX = "fewstep needs Unix (Linux or macOS), whose locks and signals guard its runs; on Windows use WSL."

_MODULES = frozenset(
    {
        "condition",
        "cost",
        "data",
        "denoisers",
        "doctor",
        "errors",
        "metrics",
        "networks",
        "objectives",
        "planning",
        "prediction",
        "random",
        "recipes",
    }
    | {"report", "runs", "schedule", "solvers", "states", "studies", "targets", "times", "training", "zoo"}
)
_FUNCTIONS = {
    **dict.fromkeys(("compare", "distill", "evaluate", "export", "load", "load_teacher", "pretrain"), "runs"),
    "register_network": "networks",
    "register_data": "recipes.given",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"fewstep.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"fewstep.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'fewstep' has no attribute '{name}'")


def __dir__() -> list[str]:
    return ["__version__", *sorted(_MODULES), *sorted(_FUNCTIONS)]
