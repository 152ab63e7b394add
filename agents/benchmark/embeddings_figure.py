"""The picture of what attacks click on a map of the items (PoisonRec's Figure 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from agents.benchmark.figures import COLOURS, write_figure

_CLICKED, _TARGET = COLOURS[1], COLOURS[2]
_GREYS = LinearSegmentedColormap.from_list("greys", ["0.85", "0"])


@dataclass(frozen=True)
class Panel:
    """One attack on one map."""

    victim: str
    """What the attack was made against."""
    embeddings_of: str
    """Whose item embeddings the map shows."""
    points: NDArray[np.float64]
    """Where items are, shape `(n_items, 2)`."""
    popularity: NDArray[np.int64]
    """Genuine clicks of every item, shape `(n_items,)`."""
    target_items: NDArray[np.int64]
    """Shape `(n_targets,)`."""
    clicks: NDArray[np.int64]
    """Fake clicks of every item, shape `(n_items,)`."""

    @property
    def target_share(self) -> float:
        """Share of the fake clicks that are on targets."""
        return float(self.clicks[self.target_items].sum() / self.clicks.sum())

    @property
    def original_items(self) -> NDArray[np.int64]:
        """All items but the targets."""
        return np.setdiff1d(np.arange(len(self.clicks)), self.target_items)

    @property
    def popularity_rank(self) -> float | None:
        """Where a fake click on an original item is on average, in `[0, 1]`: 0 is the most popular.

        Equally popular items share their mean rank. `None` if there is no such click.
        """
        others = self.original_items
        weights = self.clicks[others]
        if not weights.any():
            return None
        popularity = self.popularity[others]
        ordered = np.sort(popularity)
        at_most = np.searchsorted(ordered, popularity, side="right")
        below = np.searchsorted(ordered, popularity, side="left")
        rank = (len(others) - (below + at_most + 1) / 2) / max(1, len(others) - 1)
        return float(np.average(rank, weights=weights))

    def summary(self) -> dict[str, object]:
        """Return what the picture shows as numbers."""
        rank = self.popularity_rank
        return {
            "victim": self.victim,
            "map_of": self.embeddings_of,
            "target_share": round(self.target_share, 4),
            "n_targets_clicked": int((self.clicks[self.target_items] > 0).sum()),
            "n_others_clicked": int((self.clicks[self.original_items] > 0).sum()),
            "popularity_rank": None if rank is None else round(rank, 4),
        }


def draw_embeddings(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draw one panel per attack; shades are logarithmic and common to all.

    Args:
        panels: At least one.
        title: Over all of them.
        path: Of the PNG file.
    """
    n_columns = min(4, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(4.0 * n_columns, 3.9 * n_rows + 1.1), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    most = max(2, *(int(panel.popularity.max()) for panel in panels))
    shades = [
        _draw_panel(axes, panel, LogNorm(1, most))
        for axes, panel in zip(grid, panels, strict=False)
    ]
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(title)
    n_marks = n_columns if n_columns < 3 else 4  # in a row, as the width allows
    figure.legend(handles=_legend(), loc="outside lower center", ncols=n_marks, frameon=False)
    figure.colorbar(
        shades[0], ax=grid.tolist(), label="genuine clicks of an original item", shrink=0.6
    )
    write_figure(figure, path)


def _draw_panel(axes: Axes, panel: Panel, shade: LogNorm) -> PathCollection:
    """Draw all original items in their shade of grey, circles around clicked ones, and stars for targets."""
    points, clicks = panel.points, panel.clicks
    others, targets = panel.original_items, panel.target_items
    # popular items last, or the many unpopular ones hide them
    ordered = others[np.argsort(panel.popularity[others], kind="stable")]
    shades = axes.scatter(
        points[ordered, 0],
        points[ordered, 1],
        c=np.maximum(1, panel.popularity[ordered]),
        cmap=_GREYS,
        norm=shade,
        s=5,
        linewidths=0,
    )
    clicked = others[clicks[others] > 0]
    axes.scatter(
        points[clicked, 0],
        points[clicked, 1],
        s=_size(clicks[clicked]),
        facecolors="none",
        edgecolors=_CLICKED,
    )
    rest = targets[clicks[targets] == 0]
    axes.scatter(
        points[rest, 0], points[rest, 1], s=70, marker="*", facecolors="white", edgecolors=_TARGET
    )
    promoted = targets[clicks[targets] > 0]
    axes.scatter(
        points[promoted, 0],
        points[promoted, 1],
        s=4 * _size(clicks[promoted]),
        marker="*",
        color=_TARGET,
        alpha=0.8,
    )
    source = "" if panel.embeddings_of == panel.victim else f" (items of {panel.embeddings_of})"
    axes.set_title(
        f"{panel.victim}{source}\n{panel.target_share:.0%} of clicks on {len(promoted)} targets, "
        f"the rest on {len(clicked)} items",
        fontsize=9,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    return shades


def _size(clicks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return an area in points squared that grows with the square root of the clicks."""
    return 14.0 * np.sqrt(clicks.astype(np.float64))


def _legend() -> list[Line2D]:
    """Return the marks; circles of two sizes say what size means."""
    marks = []
    for n_clicks in (1, 25):
        size = float(np.sqrt(_size(np.array([n_clicks]))[0]))
        marks.append(
            Line2D(
                [], [], linestyle="", marker="o", markersize=size, markerfacecolor="none",
                markeredgecolor=_CLICKED, label=f"item with {n_clicks} fake click{'s' * (n_clicks > 1)}",
            )
        )  # fmt: skip
    for label, colour in (("clicked target", _TARGET), ("target that is not clicked", "white")):
        marks.append(
            Line2D(
                [], [], linestyle="", marker="*", markersize=11, markerfacecolor=colour,
                markeredgecolor=_TARGET, label=label,
            )
        )  # fmt: skip
    return marks
