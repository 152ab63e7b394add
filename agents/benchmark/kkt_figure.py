"""The pictures of `recattack bench kkt`: effect against the number of fake users, and p against beta."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.benchmark.figures import line_style, write_figure

Row = Mapping[str, object]


def draw_sizes(
    rows: Sequence[Row],
    rmse_goals: Sequence[tuple[int, int]],
    attacks: Sequence[str],
    path: Path,
) -> None:
    """Draw a row of panels per victim and one panel per goal, as Figures 1, 2, 5 and 6 of the paper.

    Args:
        rows: Attacks on one dataset.
        rmse_goals: (mu_1, mu_2) whose panels show RMSE; others show the target's average rating.
        attacks: Names, in the order of the legend.
        path: Of the PNG file.
    """
    victims = list(dict.fromkeys(str(row["victim"]) for row in rows))
    goals = list(dict.fromkeys(_goal(row) for row in rows))
    figure = Figure(
        figsize=(2.6 * len(goals) + 0.6, 2.5 * len(victims) + 0.8), dpi=120, layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(victims), len(goals), squeeze=False)
    for i, victim in enumerate(victims):
        for j, goal in enumerate(goals):
            axes = panels[i, j]
            own = [r for r in rows if r["victim"] == victim and _goal(r) == goal]
            what = "rmse" if goal in rmse_goals else "average_rating"
            for number, attack in enumerate(attacks):
                x, y = _curve([r for r in own if r["attack"] == attack], "size", what)
                if x:
                    colour, dash = line_style(number)
                    axes.plot(
                        [100 * size for size in x], y,
                        color=colour, linestyle=dash, marker=".", label=attack,
                    )  # fmt: skip
            if own:  # a run may have been killed before this panel
                clean = np.mean([float(str(r[f"clean_{what}"])) for r in own])
                axes.axhline(clean, color="#777777", linewidth=1, linestyle=":", label="clean")
            axes.set_title(f"{victim}, $\\mu$ = {goal}", fontsize=9)
            axes.set_ylabel("RMSE" if what == "rmse" else "average rating", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.grid(alpha=0.3)
    figure.supxlabel("fake users, % of genuine ones", fontsize=10)
    marks: dict[str, Artist] = {}
    for axes in panels.ravel():
        handles, labels = axes.get_legend_handles_labels()
        marks |= dict(zip(labels, handles, strict=True))
    _legend(figure, marks)
    write_figure(figure, path)


def draw_beta(rows: Sequence[Row], rmse_goals: Sequence[tuple[int, int]], path: Path) -> None:
    """Draw one panel per goal: effect (left) and p of the t-test (right) against beta, as Figure 3.

    Args:
        rows: SGLD on one dataset.
        rmse_goals: As in `draw_sizes`.
        path: Of the PNG file.
    """
    goals = list(dict.fromkeys(_goal(row) for row in rows))
    figure = Figure(figsize=(3.1 * len(goals), 3.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(goals), squeeze=False).ravel()
    marks: dict[str, Artist] = {}
    for axes, goal in zip(panels, goals, strict=True):
        own = [r for r in rows if _goal(r) == goal]
        what = "rmse" if goal in rmse_goals else "average_rating"
        x, y = _curve(own, "beta", what)
        places = range(len(x))  # betas span decades and begin at zero
        axes.plot(places, y, color="#0072b2", marker="o", label="effect")
        axes.set_xticks(places, [f"{beta:g}" for beta in x])
        axes.set_ylabel("RMSE" if what == "rmse" else "average rating", color="#0072b2", fontsize=9)
        other = axes.twinx()
        tests = [{**r, **cast(Row, r["mimicry"])} for r in own]
        for test, dash, name in (
            ("calibrated_t", "-", "p of the t-test, calibrated"),
            ("calibrated_ks", "--", "p of Kolmogorov-Smirnov, calibrated"),
        ):
            p = _curve(tests, "beta", test)[1]
            other.plot(places, p, color="#d55e00", marker=".", linestyle=dash, label=name)
        other.axhline(0.05, color="#777777", linewidth=1, linestyle=":", label="p = 0.05")
        other.set_yscale("log")
        other.set_ylim(0.004, 1.2)
        other.set_ylabel("p", color="#d55e00", fontsize=9)
        for each in (axes, other):
            each.tick_params(labelsize=7)
            marks |= dict(zip(*each.get_legend_handles_labels()[::-1], strict=True))
        axes.set_title(f"$\\mu$ = {goal}", fontsize=10)
        axes.grid(alpha=0.3)
    figure.supxlabel(r"$\beta$ of SGLD", fontsize=10)
    _legend(figure, marks)
    write_figure(figure, path)


def _legend(figure: Figure, marks: Mapping[str, Artist]) -> None:
    figure.legend(
        list(marks.values()),
        list(marks),
        loc="outside upper center",
        ncols=len(marks),
        frameon=False,
    )


def _goal(row: Row) -> tuple[int, ...]:
    return tuple(cast(list[int], row["mu"]))


def _curve(rows: Sequence[Row], along: str, what: str) -> tuple[list[float], list[float]]:
    """Return the values of `along`, rising, and the mean of `what` at each."""
    x = sorted({float(str(row[along])) for row in rows})
    y = [
        float(np.mean([float(str(r[what])) for r in rows if float(str(r[along])) == value]))
        for value in x
    ]
    return x, y
