"""The picture of `recattack demo`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.demo import AGENT, NO_ATTACK, SeedResult, smoothed
from recattack_gym.core.files import atomic_write

WINDOW = 32
"""Attacks that a point of a curve is the mean of."""
COLOURS = {
    NO_ATTACK: "#888888",
    "random": "#8c564b",
    "popular": "#1f77b4",
    "middle": "#9467bd",
    "power-item": "#2ca02c",
    AGENT: "#d62728",
}
DASHES: dict[str, tuple[int, tuple[int, ...]]] = {
    NO_ATTACK: (0, (1, 2)),
    "random": (0, (6, 3)),
    "popular": (0, (6, 6)),
    "middle": (0, (6, 3)),
    "power-item": (6, (6, 6)),
}
"""Popular and PowerItem often lie on each other: their dashes fill each other's gaps."""


def draw_learning_curves(results: Sequence[SeedResult], path: Path) -> None:
    """Draw what the agent's attacks reach while it learns, seeds thin and their mean thick.

    Args:
        results: One per seed, with curves of equal length.
        path: The `.png` file.
    """
    curves = np.stack([smoothed(result.curve, WINDOW) for result in results])
    first = min(WINDOW, curves.shape[1]) - 1  # before that, the mean is over few attacks
    curves, tried = curves[:, first:], np.arange(first + 1, curves.shape[1] + 1)
    figure = Figure(figsize=(9.6, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for n, curve in enumerate(curves):
        label = f"{AGENT}, each platform" if n == 0 else None
        axes.plot(tried, curve, color=COLOURS[AGENT], linewidth=0.8, alpha=0.5, label=label)
    axes.plot(
        tried, curves.mean(axis=0), color=COLOURS[AGENT], linewidth=2.2, label=f"{AGENT}, mean"
    )
    for name in results[0].mean:
        if name != AGENT:
            level = float(np.mean([result.mean[name] for result in results]))
            axes.axhline(
                level, color=COLOURS[name], linestyle=DASHES[name], label=f"{name} ({level:.0f})"
            )
    axes.set_xlabel("attacks tried by the agent (simulated retrainings)")
    axes.set_ylabel(f"RecNum (mean of the last {WINDOW} attacks)")
    axes.set_title(
        f"Learning to attack GRU4Rec on a synthetic log: {len(results)} platforms, "
        f"at most {results[0].max_rec_num}",
        fontsize=11,
    )
    axes.set_xlim(tried[0], tried[-1] + 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9, frameon=False)
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png")
