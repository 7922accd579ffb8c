"""Pictures of a study in the plane (DisBack, App.

E.2 and E.3): where the student's points are, and where the two scores point.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.denoisers import Denoiser, device_of
from fewstep.prediction import score_of
from fewstep.system.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GENERATED, DATA, ARROWS = "#0969da", "#cf222e", "#57606a"


def scatter_png(samples: Tensor, low: float, high: float, data: Tensor | None = None) -> bytes:
    """Points (N, 2) in blue, over the data's (M, 2) in red if given, within [low, high]^2 (Fig.
    12).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2, 3.2), dpi=100)
    axes = figure.add_axes((0.1, 0.08, 0.87, 0.87))
    if data is not None:
        axes.scatter(data[:, 0], data[:, 1], s=2, alpha=0.35, linewidths=0, color=DATA)
    axes.scatter(samples[:, 0], samples[:, 1], s=2, alpha=0.5, linewidths=0, color=GENERATED)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.tick_params(labelsize=7)
    return _png(figure)


@torch.no_grad()
def write_directions(
    path: Path,
    scores: Sequence[tuple[str, Denoiser, Tensor, str]],
    sigma: float = 0.5,
    half_width: float = 6.0,
    points: int = 25,
) -> None:
    """Writes a panel for each (title, denoiser, points (N, 2), colour): the score's direction and
    size at noise level ``sigma`` on an even grid (Fig. 13).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(scores), 4.3), dpi=100, layout="constrained")
    for axes, (title, denoiser, cloud, colour) in zip(
        figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True
    ):
        _draw_field(axes, denoiser, sigma, half_width, points)
        axes.scatter(cloud[:, 0], cloud[:, 1], s=2, alpha=0.4, linewidths=0, color=colour)
        axes.set(xlim=(-half_width, half_width), ylim=(-half_width, half_width))
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
    write_bytes(path, _png(figure))


def _draw_field(axes: Axes, denoiser: Denoiser, sigma: float, half_width: float, points: int) -> None:
    line = torch.linspace(-half_width, half_width, points)
    x = torch.cartesian_prod(line, line)
    t = denoiser.schedule.time_at_sigma(sigma).expand(len(x))
    score = score_of(denoiser.schedule, denoiser(x.to(device_of(denoiser)), t).cpu(), x, t)
    # Arrows as long as the fourth root of the score's size: directions stay readable where it is
    # small.
    size = score.norm(dim=1, keepdim=True)
    arrows = score / size.clamp(min=1e-9) * size.sqrt().sqrt()
    axes.quiver(x[:, 0], x[:, 1], arrows[:, 0], arrows[:, 1], color=ARROWS, width=0.003)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
