"""The picture of who can stand in for whom: attacks on victims that they were not made against."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from agents.benchmark.figures import write_figure
from agents.benchmark.transfer_table import MODES, NO_ATTACK, Matrix, as_text


def draw_transfer(matrices: Sequence[Matrix], path: Path) -> None:
    """Draw one panel per attacker: made against (rows) and injected into (columns), share in the cell.

    Args:
        matrices: Of one dataset and way of retraining.
        path: Of the PNG file.
    """
    n_columns = min(2, len(matrices))
    n_rows = -(-len(matrices) // n_columns)
    n_victims = max(len(matrix.victims) for matrix in matrices)
    size = 1.6 + 0.56 * n_victims
    figure = Figure(
        figsize=(size * n_columns + 1.2, (size + 0.2) * n_rows + 0.9), dpi=120, layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, matrix in zip(panels, matrices, strict=False):
        n = len(matrix.victims)
        shares = np.vstack([matrix.shares, matrix.clean_shares])
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="cividis", aspect="equal")
        axes.set_xticks(range(n), matrix.victims, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n + 1), [*matrix.victims, NO_ATTACK])
        axes.axhline(n - 0.5, color="black", linewidth=2.5)
        axes.set_title(matrix.attacker)
        for i in range(n):
            axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, linewidth=1.2))
        for (i, j), share in np.ndenumerate(shares):
            colour = "white" if share <= 0.6 else "black"  # NaN leaves the white background
            axes.text(j, i, as_text(share), ha="center", va="center", color=colour, fontsize=8)
    for axes in panels[len(matrices) :]:
        axes.set_visible(False)
    figure.supxlabel("injected into", fontsize=10)
    figure.supylabel("made against", fontsize=10)
    figure.colorbar(
        image,
        ax=panels.tolist(),
        label="RecNum over that of the attack\nmade against the victim itself",
        extend="max",
        shrink=0.8,
    )
    first = matrices[0]
    figure.suptitle(
        f"Transfer of attacks on {first.dataset}, {MODES[first.retrain]}, mean over seeds"
    )
    write_figure(figure, path)
