"""The picture of a race: what attacks reach and how visible they are, round by round."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.benchmark.armsrace_race import ADAPTIVE, NO_DETECTOR, OPPONENTS
from agents.benchmark.armsrace_report import LABELS, RoundRow
from agents.benchmark.figures import line_style, write_figure


def draw_race(rows: Sequence[RoundRow], path: Path) -> None:
    """Draw RecNum, AUC, dropped fake users and quality over rounds, a column per attacker.

    Args:
        rows: Of one victim.
        path: Of the PNG file.
    """
    attackers = list(dict.fromkeys(row["attacker"] for row in rows))
    k = rows[0]["k"]
    measures: list[tuple[str, Callable[[RoundRow], float], bool]] = [
        ("RecNum", lambda row: row["rec_num"], True),
        ("AUC", lambda row: row["auc_before"], False),
        ("fake users dropped", lambda row: row["n_dropped"], False),
        (f"HR@{k} under attack\n(not from 0)", lambda row: row["hr"], True),
    ]
    figure = Figure(figsize=(3.4 * len(attackers) + 0.8, 9.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(measures), len(attackers), squeeze=False, sharex=True)
    for column, attacker in enumerate(attackers):
        own = [row for row in rows if row["attacker"] == attacker]
        for axes, (label, value, is_of_all) in zip(panels[:, column], measures, strict=True):
            for number, opponent in enumerate(OPPONENTS):
                of_opponent = [row for row in own if row["opponent"] == opponent]
                if of_opponent and (is_of_all or opponent != NO_DETECTOR):
                    _line(axes, of_opponent, value, number, LABELS[opponent])
            if label == "AUC":
                adapted = [row for row in own if row["opponent"] == ADAPTIVE]
                if adapted:
                    _line(
                        axes,
                        adapted,
                        lambda row: row["auc_after"],
                        3,
                        "retrained, once it has seen it",
                    )
                axes.axhline(0.5, color="black", linewidth=0.6, linestyle=":")
                axes.set_ylim(0, 1.03)
            elif label == "fake users dropped":
                axes.set_ylim(0, 1.05 * own[0]["n_fake_users"])
            elif label == "RecNum":
                axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if column == 0:
                axes.set_ylabel(label)
        panels[0, column].set_title(attacker, fontsize=10)
    marks: dict[str, Artist] = {}
    for axes in panels[:2].ravel():
        handles, labels = axes.get_legend_handles_labels()
        marks |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(marks.values()), list(marks), loc="outside upper center", ncols=2, frameon=False
    )
    first, n_seeds = rows[0], len({row["seed"] for row in rows})
    figure.supxlabel(
        f"round ({first['victim']} on {first['dataset']}; mean and range of {n_seeds} seeds)",
        fontsize=10,
    )
    write_figure(figure, path)


def _line(
    axes: Axes,
    rows: Sequence[RoundRow],
    value: Callable[[RoundRow], float],
    number: int,
    label: str,
) -> None:
    """Draw the mean over seeds and their range."""
    rounds = sorted({row["round"] for row in rows})
    values = [[value(row) for row in rows if row["round"] == each] for each in rounds]
    colour, dash = line_style(number)
    axes.plot(
        rounds, [np.mean(v) for v in values], color=colour, linestyle=dash, marker=".", label=label
    )
    lows, highs = [min(v) for v in values], [max(v) for v in values]
    axes.fill_between(rounds, lows, highs, color=colour, alpha=0.15, linewidth=0)
