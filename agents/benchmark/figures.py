"""Pictures of a comparison, drawn from result files only."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agents.benchmark.rows import Row
from recattack_gym.core.files import atomic_write
from recattack_gym.victims import VICTIMS

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
DASHES = ("-", "--", "-.", ":")


def draw_anytime(rows: Sequence[Row], path: Path) -> None:
    """Draw the best RecNum so far against queries, one panel per victim, mean and range over seeds."""

    def curve(row: Row) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        best = np.maximum.accumulate(row.curve).astype(np.float64)
        return np.arange(1.0, len(best) + 1), best

    _panels(rows, curve, path, "queries (simulated retrainings)", "best RecNum so far")


def draw_learning(rows: Sequence[Row], path: Path) -> None:
    """Draw the mean RecNum of every batch against queries (PoisonRec's Fig. 4)."""
    _panels(
        rows,
        lambda row: _by_batch(row, row.curve.astype(np.float64)),
        path,
        "queries (simulated retrainings)",
        "mean RecNum of a batch",
    )


def draw_target_shares(rows: Sequence[Row], path: Path) -> None:
    """Draw the share of clicks on targets against queries (PoisonRec's Fig. 5)."""

    def curve(row: Row) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        shares = row.result["target_shares"]
        assert isinstance(shares, list)  # noqa: S101  # as run_cell writes it
        return _by_batch(row, np.array(shares, dtype=np.float64))

    _panels(rows, curve, path, "queries (simulated retrainings)", "share of clicks on targets")


def draw_heat_map(rows: Sequence[Row], path: Path) -> None:
    """Draw attackers against victims: mean RecNum over the best attacker's, with the numbers in the cells."""
    entries = list(dict.fromkeys(row.cell.entry for row in rows))
    victims = sorted({row.cell.victim for row in rows}, key=list(VICTIMS).index)
    means = np.full((len(entries), len(victims)), np.nan)
    n_seeds = np.zeros_like(means)
    for i, entry in enumerate(entries):
        for j, victim in enumerate(victims):
            values = [r.rec_num for r in rows if (r.cell.entry, r.cell.victim) == (entry, victim)]
            if values:
                means[i, j], n_seeds[i, j] = np.mean(values), len(values)
    lacks_seeds = (n_seeds > 0) & (n_seeds < n_seeds.max(axis=0))
    shares = means / np.maximum(1.0, np.nanmax(means, axis=0, initial=0.0))
    figure = Figure(
        figsize=(1.6 + 1.15 * len(victims), 1.4 + 0.42 * len(entries)),
        dpi=120,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(victims)), victims)
    axes.set_yticks(range(len(entries)), entries)
    for i in range(len(entries)):
        for j in range(len(victims)):
            if np.isfinite(means[i, j]):
                colour = "black" if shares[i, j] > 0.6 else "white"
                text = f"{means[i, j]:,.0f}{'*' if lacks_seeds[i, j] else ''}"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, label="RecNum over the best attacker's on this victim")
    note = " (*: fewer than the others have)" if lacks_seeds.any() else ""
    axes.set_title(f"RecNum on {rows[0].cell.label}, mean over seeds{note}")
    write_figure(figure, path)


def _by_batch(
    row: Row, values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return queries after each batch and the mean of `values`, one per query, in it."""
    sizes = row.result["batch_sizes"]
    assert isinstance(sizes, list)  # noqa: S101  # as run_cell writes it
    ends = np.cumsum(sizes)
    means = [part.mean() for part in np.split(values, ends[:-1])]
    return ends.astype(np.float64), np.array(means)


def _panels(
    rows: Sequence[Row],
    curve: Callable[[Row], tuple[NDArray[np.float64], NDArray[np.float64]]],
    path: Path,
    x_label: str,
    y_label: str,
) -> None:
    """Draw one panel per victim, a line per attacker that queries, over the seeds that all of them have."""
    asking = [row for row in rows if len(row.curve)]
    entries = list(dict.fromkeys(row.cell.entry for row in asking))
    victims = sorted({row.cell.victim for row in asking}, key=list(VICTIMS).index)
    n_columns = min(4, len(victims))
    n_rows = -(-len(victims) // n_columns)
    figure = Figure(figsize=(3.6 * n_columns, 2.9 * n_rows + 0.7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, victim in zip(panels, victims, strict=False):
        here = _on_common_seeds([row for row in asking if row.cell.victim == victim])
        for number, entry in enumerate(entries):
            own = [row for row in here if row.cell.entry == entry]
            if own:
                _draw_line(axes, [curve(row) for row in own], entry, number)
        n_seeds = len({row.cell.seed for row in here})
        axes.set_title(f"{victim}, {n_seeds} seed{'s' if n_seeds > 1 else ''}", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes in panels[len(victims) :]:
        axes.set_visible(False)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(f"{y_label} (mean; band: smallest to largest seed)", fontsize=10)
    marks: dict[str, Artist] = {}
    for axes in panels:  # an attacker need not have met the first victim
        handles, labels = axes.get_legend_handles_labels()
        marks |= dict(zip(labels, handles, strict=True))
    labels = [entry for entry in entries if entry in marks]
    figure.legend(
        [marks[label] for label in labels], labels,
        loc="outside upper center", ncols=min(5, len(labels)), frameon=False,
    )  # fmt: skip
    write_figure(figure, path)


def _on_common_seeds(rows: Sequence[Row]) -> list[Row]:
    """Leave out seeds that not every attacker of a victim has; all stay where they have none in common."""
    seeds = [{r.cell.seed for r in rows if r.cell.entry == e} for e in {r.cell.entry for r in rows}]
    common = set.intersection(*seeds)
    return [row for row in rows if row.cell.seed in common or not common]


def _draw_line(
    axes: Axes,
    curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    label: str,
    number: int,
) -> None:
    """Draw the mean of curves over their common length, and their range as a band."""
    n = min(len(x) for x, _ in curves)
    x = curves[0][0][:n]
    values = np.stack([y[:n] for _, y in curves])
    colour, dash = line_style(number)
    axes.plot(x, values.mean(axis=0), color=colour, linestyle=dash, linewidth=1.6, label=label)
    if len(curves) > 1:
        axes.fill_between(
            x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0
        )


def line_style(number: int) -> tuple[str, str]:
    """Return colour and dashes of a line, which it shares with none of 31 neighbours."""
    n_colours = len(COLOURS)
    return COLOURS[number % n_colours], DASHES[(number + number // n_colours) % len(DASHES)]


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png")
