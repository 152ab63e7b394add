"""The picture of `recattack bench gp`: likeness to the victim, and strength against cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from agents.benchmark.figures import COLOURS, write_figure
from agents.benchmark.gp_report import similarity_rows, strength_rows

MARKS = ("o", "s", "^", "D")


def draw_gp(rows: Sequence[Mapping[str, Any]], dataset: str, path: Path) -> None:
    """Draw JS after each epoch, and strength against CPU seconds; with Gradient Passing filled, without open.

    Args:
        rows: Results of one dataset, each with its piece.
        dataset: Its name.
        path: Of the PNG file.
    """
    similarity, attacks = similarity_rows(rows), strength_rows(rows)
    parts = [part for part in (similarity, attacks) if part]
    width = 5.4 * len(parts) + (1.5 if attacks else 0.0)
    figure = Figure(figsize=(width, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(parts), squeeze=False).ravel()
    number = 0
    if similarity:
        _draw_similarity(panels[number], similarity)
        number += 1
    if attacks:
        _draw_strength(panels[number], attacks)
    figure.suptitle(
        f"Gradient Passing on {dataset}:\nwithout (dashed, open) and with (full, filled)"
    )
    write_figure(figure, path)


def _draw_similarity(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for number, name in enumerate(dict.fromkeys(row["model"] for row in rows)):
        own = [row for row in rows if row["model"] == name]
        for field, dash, face in (("js", "--", "none"), ("js_gp", "-", COLOURS[number])):
            points = [(row["epochs"], row[field]) for row in own if row[field] is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    linestyle=dash,
                    marker=MARKS[number % len(MARKS)],
                    color=COLOURS[number],
                    markerfacecolor=face,
                    label=name if dash == "-" else None,
                )
    axes.set_xscale("log")
    ticks = sorted({row["epochs"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("epochs of the surrogate")
    axes.set_ylabel("JS: likeness of its lists to the victim's")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _draw_strength(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    made = [row for row in rows if row["training_seconds"] > 0]
    for number, name in enumerate(dict.fromkeys(row["attacker"] for row in made)):
        for gp, dash, face in (("no", "--", "none"), ("yes", "-", COLOURS[number])):
            own = sorted(
                (row["training_seconds"], row["strength"], row["epochs"])
                for row in made
                if (row["attacker"], row["gp"]) == (name, gp)
            )
            if not own:
                continue
            axes.plot(
                [x for x, _, _ in own],
                [y for _, y, _ in own],
                linestyle=dash,
                marker=MARKS[number % len(MARKS)],
                color=COLOURS[number],
                markerfacecolor=face,
                label=f"{name}{' with GP' if gp == 'yes' else ''}",
            )
            for x, y, epochs in own:
                # above its mark, series in turn to the right and to the left, so that few cover each other
                away = (5, 4) if number % 2 == 0 else (-5, 4)
                axes.annotate(
                    str(epochs),
                    (x, y),
                    textcoords="offset points",
                    xytext=away,
                    ha="left" if number % 2 == 0 else "right",
                    fontsize=8,
                    color=COLOURS[number],
                )
    baselines = [row for row in rows if row["training_seconds"] == 0]
    for number, row in enumerate(baselines):
        axes.axhline(
            row["strength"],
            color="0.5",
            linewidth=1,
            linestyle=(":", "-.", "--")[number % 3],
            label="no attack" if row["attacker"] == "none" else row["attacker"],
        )
    if made:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("CPU seconds of all retrainings (numbers: epochs of each)")
    axes.set_ylabel("target recall in %")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)
