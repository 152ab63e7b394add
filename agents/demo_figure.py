"""The picture of `recattack demo`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.demo import LEARNERS, NO_ATTACK, SeedResult, smoothed
from recattack_gym.core.files import atomic_write

WINDOW = 32
"""Attacks that a point of a curve is the mean of."""
COLOURS = {
    NO_ATTACK: "#888888",
    "random": "#8c564b",
    "popular": "#1f77b4",
    "middle": "#9467bd",
    "power-item": "#2ca02c",
    **dict(zip(LEARNERS, ("#d62728", "#e69f00", "#000000"), strict=True)),
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
    """Draw what learners' attacks reach while they learn, seeds thin and their mean thick.

    Args:
        results: One per seed, with curves of equal length.
        path: The `.png` file.
    """
    n_tried = len(results[0].curves[LEARNERS[0]])
    first = min(WINDOW, n_tried) - 1  # before that, the mean is over few attacks
    tried = np.arange(first + 1, n_tried + 1)
    figure = Figure(figsize=(9.6, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in LEARNERS:
        curves = np.stack([smoothed(result.curves[name], WINDOW)[first:] for result in results])
        for curve in curves:
            axes.plot(tried, curve, color=COLOURS[name], linewidth=0.7, alpha=0.4)
        axes.plot(tried, curves.mean(axis=0), color=COLOURS[name], linewidth=2.2, label=name)
    for name in results[0].mean:
        if name not in LEARNERS:
            level = float(np.mean([result.mean[name] for result in results]))
            axes.axhline(
                level, color=COLOURS[name], linestyle=DASHES[name], label=f"{name} ({level:.0f})"
            )
    axes.set_xlabel("attacks tried by a learner (simulated retrainings)")
    axes.set_ylabel(f"RecNum (mean of the last {WINDOW} attacks)")
    axes.set_title(
        f"Learning to attack {_victim(results[0])} on a synthetic log: {len(results)} platforms (thin) "
        f"and their mean, at most {results[0].max_rec_num}",
        fontsize=11,
    )
    axes.set_xlim(tried[0], tried[-1] + 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9, frameon=False)
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png")


def _victim(result: SeedResult) -> str:
    env = result.config["env"]
    assert isinstance(env, Mapping)  # noqa: S101  # as `run_demo` writes it
    return str(env["victim"])
