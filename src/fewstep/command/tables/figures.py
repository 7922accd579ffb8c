"""How a figure is written in a table."""

from __future__ import annotations

from typing import Any


def shown_figure(entry: dict[str, Any], name: str) -> str:
    """A figure between 0 and 1 or near it; a dash where it could not be had."""
    return "-" if entry.get(name) is None else f"{entry[name]:.3f}"


def shown_distance(entry: dict[str, Any]) -> str:
    """A Frechet distance, with its spread where several draws were measured."""
    if entry.get("fd") is None:
        return "-"
    return f"{entry['fd']:.2f} +- {entry['fd_spread']:.2f}" if entry["fd_spread"] else f"{entry['fd']:.2f}"


def shown_share(entry: dict[str, Any], name: str) -> str:
    """A share of samples, such as those that a classifier takes for their class."""
    return "-" if entry.get(name) is None else f"{entry[name]:.1%}"


def shown_level(level: float | None) -> str:
    """A noise level, sigma over alpha; None where no signal is left."""
    return "pure noise" if level is None else f"{level:.3g}"


def shown_factor(factor: float | None) -> str:
    """How many times more; None where there is nothing to compare."""
    return "-" if factor is None else f"{factor:.2f} x"


def shown_draws(draws: int) -> str:
    """A number of draws."""
    return f"{draws} draw" + ("s" if draws != 1 else "")


def shown_steps(steps: str) -> str:
    """A number of steps, of the text that is a key in JSON."""
    return f"{steps} step" + ("s" if steps != "1" else "")


def shown_hours(hours: float) -> str:
    """A time of computing."""
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def shown_bytes(count: float) -> str:
    """An amount of memory."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def shown_count(count: int) -> str:
    """A number of parameters."""
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
