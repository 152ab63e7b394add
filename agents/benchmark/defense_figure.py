"""The picture of what defences stop: attackers against defences, one panel per victim."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.benchmark.defense_report import MATTERS, PlanRow, price, shares
from agents.benchmark.figures import write_figure
from agents.benchmark.protections import NONE
from agents.benchmark.transfer_table import MODES


def draw_defense(rows: Sequence[PlanRow], path: Path) -> None:
    """Draw the share of the undefended RecNum that attacks keep; under each defence stands its price.

    Args:
        rows: Of one dataset and way of retraining, with some defence; victims without any are left out.
        path: Of the PNG file.
    """
    victims = list(dict.fromkeys(row["victim"] for row in rows if row["defense"] != NONE))
    attackers = list(dict.fromkeys(row["attacker"] for row in rows))
    defenses = [d for d in dict.fromkeys(row["defense"] for row in rows) if d != NONE]
    kept, cost = shares(rows), price(rows, "clean_hr")
    n_columns = min(2, len(victims))
    n_rows = -(-len(victims) // n_columns)
    size = (
        (2.4 + 1.05 * len(defenses)) * n_columns + 1.0,
        (1.8 + 0.34 * len(attackers)) * n_rows + 0.6,
    )
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    k, is_left_out = rows[0]["k"], False
    for axes, victim in zip(panels, victims, strict=False):
        measured = {row["defense"] for row in rows if row["victim"] == victim}
        own = [defense for defense in defenses if defense in measured]
        table = np.array(
            [[kept.get((victim, a, d), np.nan) for d in own] for a in attackers], dtype=float
        ).reshape(len(attackers), len(own))
        is_left_out = is_left_out or bool(np.isnan(table).any())
        image = axes.imshow(table, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        names = []
        for defense in own:
            change = cost.get((victim, defense))
            names.append(defense if change is None else f"{defense}\n{100 * change:+.1f} %")
        axes.set_xticks(range(len(own)), names, fontsize=8)
        axes.set_yticks(range(len(attackers)), attackers, fontsize=8)
        axes.set_title(victim)
        for (i, j), share in np.ndenumerate(table):
            text = f"{share:.2f}" if np.isfinite(share) else "-"
            colour = "white" if share <= 0.6 else "black"  # NaN leaves the white background
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    for axes in panels[len(victims) :]:
        axes.set_visible(False)
    below = f"defence, and what it changes in HR@{k} without any attack"
    if is_left_out:
        below += f"\n-: without any defence the attack reaches less than {MATTERS:.0%} of what there can be"
    figure.supxlabel(below, fontsize=10)
    figure.supylabel("attack, made against the undefended victim", fontsize=10)
    figure.colorbar(
        image, ax=panels.tolist(), label="RecNum over that without\nany defence", extend="max"
    )
    first = rows[0]
    figure.suptitle(f"Defences on {first['dataset']}, {MODES[first['retrain']]}, mean over seeds")
    write_figure(figure, path)
