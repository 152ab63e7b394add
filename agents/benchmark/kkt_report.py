"""What comes of `recattack bench kkt`: the paper's claims counted, tables, pictures and a page."""

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np

from agents.benchmark.kkt_figure import draw_beta, draw_sizes
from agents.benchmark.kkt_pieces import (
    ATTACKS,
    BETA,
    GOALS,
    RATING_GOALS,
    RMSE_GOALS,
    Row,
    goal_of,
    number,
)
from agents.benchmark.page import write_page
from agents.benchmark.tables import markdown_table
from recattack_gym.core.files import atomic_write

P_VALUE = 0.05
TESTS = ("t_rating", "t_matched", "t_rate", "ks", "chi_square", "calibrated_t", "calibrated_ks")


def attacks_of(rows: Sequence[Row]) -> list[Row]:
    """Return the attacks, of SGLD those with the usual beta."""
    return [row for row in rows if row["kind"] == "attack" and row["beta"] in (None, BETA)]


def betas_of(rows: Sequence[Row]) -> list[Row]:
    """Return SGLD's attacks wherever it was tried with more than one beta."""
    panels: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row["kind"] == "attack" and row["attack"] == "sgld":
            key = (row["dataset"], row["victim"], row["size"], row["seed"], goal_of(row))
            panels.setdefault(key, []).append(row)
    return [row for panel in panels.values() if len(panel) > 1 for row in panel]


def claims(attacks: Sequence[Row], betas: Sequence[Row]) -> list[dict[str, object]]:
    """Return the paper's claims with how many of the measured cases bear each out."""
    cells: dict[tuple[object, ...], dict[tuple[tuple[int, int], str], Row]] = {}
    for row in attacks:
        where = (row["dataset"], row["victim"], row["size"], row["seed"])
        cells.setdefault(where, {})[(goal_of(row), str(row["attack"]))] = row

    def count(
        text: str, *wanted: tuple[tuple[int, int], str, str], sign: int = 1
    ) -> dict[str, object]:
        """Count the cells in which the values named by `wanted` fall (or rise, for sign -1)."""
        cases = []
        for cell in cells.values():
            if all((mu, attack) in cell for mu, attack, _ in wanted):
                values = [sign * number(cell[(mu, attack)], what) for mu, attack, what in wanted]
                cases.append(all(a > b for a, b in pairwise(values)))
        return {"claim": text, "holds": sum(cases), "cases": len(cases)}

    rows = [
        count(
            f"({mu[0]}, {mu[1]}): RMSE of PGA > SGLD > uniform",
            (mu, "pga", "rmse"), (mu, "sgld", "rmse"), (mu, "uniform", "rmse"),
        )
        for mu in RMSE_GOALS
    ]  # fmt: skip
    rows.append(count(
        "PGA's RMSE is lower at (1, -1) than at (1, 0)",
        ((1, 0), "pga", "rmse"), ((1, -1), "pga", "rmse"),
    ))  # fmt: skip
    for mu in RATING_GOALS:
        sign, word = (1, "above") if mu[1] > 0 else (-1, "below")
        for attack, floor in (
            ("pga", "uniform"), ("sgld", "uniform"),
            ("pga+target", "uniform+target"), ("sgld+target", "uniform+target"),
        ):  # fmt: skip
            rows.append(count(
                f"({mu[0]}, {mu[1]}): average rating of {attack} {word} {floor}",
                (mu, attack, "average_rating"), (mu, floor, "average_rating"), sign=sign,
            ))  # fmt: skip
    rows += [
        count(
            f"{attack} lowers the target less at (-1, -1) than at (0, -1)",
            ((0, -1), attack, "average_rating"), ((-1, -1), attack, "average_rating"), sign=-1,
        )
        for attack in ("pga", "pga+target")
    ]  # fmt: skip
    for test in TESTS:
        for attack, is_small in (("pga", True), ("sgld", False)):
            own = [row for row in attacks if row["attack"] == attack]
            claim = f"{attack}: p {'<' if is_small else '>='} {P_VALUE} in {test}"
            holds = sum((_p_value(row, test) < P_VALUE) == is_small for row in own)
            rows.append({"claim": claim, "holds": holds, "cases": len(own)})
    rows += _claims_on_beta(betas)
    return rows


def _claims_on_beta(betas: Sequence[Row]) -> list[dict[str, object]]:
    """Count in how many panels the largest beta has more effect, and smaller p, than the smallest."""
    panels: dict[tuple[object, object, tuple[int, int]], list[Row]] = {}
    for row in betas:
        mu = goal_of(row)
        panels.setdefault((row["dataset"], row["seed"], mu), []).append(row)
    effect, p_falls = [], []
    for (_, _, mu), rows in panels.items():
        ends = sorted(rows, key=lambda row: number(row, "beta"))
        low, high = ends[0], ends[-1]
        what = "rmse" if mu in RMSE_GOALS else "average_rating"
        effect.append(number(high, what) > number(low, what))
        p_falls.append(_p_value(high, "calibrated_t") < _p_value(low, "calibrated_t"))
    return [
        {
            "claim": "RMSE or average rating grows from the smallest to the largest beta",
            "holds": sum(effect), "cases": len(effect),
        },
        {
            "claim": "p of calibrated_t falls from the smallest to the largest beta",
            "holds": sum(p_falls), "cases": len(p_falls),
        },
    ]  # fmt: skip


def _p_value(row: Row, test: str) -> float:
    return number(cast(Row, row["mimicry"]), test)


def summary(victim: str, rows: Sequence[Row]) -> dict[str, object]:
    """Return what the last line says of a victim: RMSE at (1, 0) and the largest size, and fd_error."""
    own = [r for r in rows if r["victim"] == victim]
    found = [r for r in attacks_of(own) if r["mu"] == [1, 0]]
    largest = [r for r in found if r["size"] == max(number(r, "size") for r in found)]
    by_attack: dict[str, float | None] = {}
    if largest:
        by_attack["clean"] = float(np.mean([number(r, "clean_rmse") for r in largest]))
    for attack in dict.fromkeys(str(r["attack"]) for r in largest):
        by_attack[attack] = float(
            np.mean([number(r, "rmse") for r in largest if r["attack"] == attack])
        )
    errors = [number(r, "fd_error") for r in own if r["kind"] == "gradient"]
    costs = {
        str(r["dataset"]): {k: r[k] for k in r if k.endswith("_seconds")}
        for r in own
        if r["kind"] == "cost"
    }
    cosines = {str(r["dataset"]): r["cosine"] for r in own if r["kind"] == "cost"}
    return {
        "rmse": by_attack, "fd_error": max(errors, default=None), "cosine": cosines, "seconds": costs,
    }  # fmt: skip


def report(rows: Sequence[Row]) -> str:
    """Return everything measured as Markdown."""
    attacks, betas = attacks_of(rows), betas_of(rows)
    costs = [row for row in rows if row["kind"] == "cost"]
    parts = ["### Effect\n\n" + _effect_table(attacks)] if attacks else []
    if attacks:
        found = [(c["claim"], f"{c['holds']} of {c['cases']}") for c in claims(attacks, betas)]
        parts.append("### Claims\n\n" + markdown_table(("claim", "holds in"), found))
        parts.append("### Mimicry\n\n" + _mimicry_table([r for r in rows if r["kind"] == "attack"]))
    if costs:
        parts.append("### The paper's gradient beside the exact one\n\n" + _cosine_table(costs))
        parts.append("### Cost\n\n" + _cost_table(costs))
    errors = [
        (r["victim"], f"{number(r, 'fd_error'):.2g}") for r in rows if r["kind"] == "gradient"
    ]
    if errors:
        parts.append(
            "### Finite differences\n\n" + markdown_table(("victim", "worst error"), errors)
        )
    return "\n\n".join(parts)


def _effect_table(attacks: Sequence[Row]) -> str:
    """One line per dataset, victim, goal and size: RMSE or average rating without and with each attack."""
    names = [name for name in ATTACKS if any(row["attack"] == name for row in attacks)]
    groups: dict[tuple[object, object, tuple[int, int], object], list[Row]] = {}
    for row in attacks:
        key = (row["dataset"], row["victim"], goal_of(row), row["size"])
        groups.setdefault(key, []).append(row)
    lines = []
    for (dataset, victim, mu, size), group in groups.items():
        what = "rmse" if mu in RMSE_GOALS else "average_rating"
        values = {
            name: float(np.mean([number(r, what) for r in group if r["attack"] == name]))
            for name in names
            if any(r["attack"] == name for r in group)
        }
        clean = float(np.mean([number(r, f"clean_{what}") for r in group]))
        label = f"{mu[0]}, {mu[1]}"
        cells = [f"{values[name]:.3f}" if name in values else None for name in names]
        lines.append(
            (dataset, victim, label, f"{float(str(size)):.0%}", what, f"{clean:.3f}", *cells)
        )
    return markdown_table(("dataset", "victim", "mu", "fakes", "measured", "clean", *names), lines)


def _mimicry_table(rows: Sequence[Row]) -> str:
    """Median p-values by dataset, victim, attack and beta."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (row["dataset"], row["victim"], row["attack"], row["beta"])
        groups.setdefault(key, []).append(row)
    lines = [
        (*key, *(f"{np.median([_p_value(r, t) for r in group]):.2g}" for t in TESTS))
        for key, group in groups.items()
    ]
    return markdown_table(("dataset", "victim", "attack", "beta", *TESTS), lines)


def _cosine_table(costs: Sequence[Row]) -> str:
    goals = [f"{mu[0]}, {mu[1]}" for mu in GOALS]
    lines = [
        (row["dataset"], row["victim"], label, *(cast(Row, row[field]).get(g) for g in goals))
        for row in costs
        for field, label in (("cosine", "paper"), ("path_cosine", "PGA's, worst of 4 steps"))
    ]
    return markdown_table(("dataset", "victim", "gradient", *goals), lines)


def _cost_table(costs: Sequence[Row]) -> str:
    """Milliseconds of CPU; `step` is what a step of PGA adds to retraining, see `measure_cost`."""
    names = ("sweep", "step", "utility", "exact", "paper", "implicit_sweep")
    lines = []
    for row in costs:
        seconds = [row.get(f"{name}_seconds") for name in names]
        shown = [None if s is None else f"{1e3 * float(str(s)):.2f}" for s in seconds]
        ratio = number(row, "step_seconds") / max(number(row, "sweep_seconds"), 1e-9)
        lines.append((row["dataset"], row["victim"], row["rank"], *shown, f"{ratio:.2f}"))
    heads = (
        "sweep ms",
        "step ms",
        "G V, G'U ms",
        "exact to 1e-3 ms",
        "paper ms",
        "implicit sweep ms",
    )
    return markdown_table(("dataset", "victim", "rank", *heads, "step / sweep"), lines)


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw what was measured of each dataset; return the files."""
    drawn, attacks, betas = [], attacks_of(rows), betas_of(rows)
    for dataset in dict.fromkeys(str(row["dataset"]) for row in attacks):
        path = folder / f"kkt-{dataset}.png"
        draw_sizes([r for r in attacks if r["dataset"] == dataset], RMSE_GOALS, ATTACKS, path)
        drawn.append(path)
    for dataset in dict.fromkeys(str(row["dataset"]) for row in betas):
        path = folder / f"kkt-{dataset}-beta.png"
        draw_beta([r for r in betas if r["dataset"] == dataset], RMSE_GOALS, path)
        drawn.append(path)
    return drawn


def write_docs(
    args: argparse.Namespace, text: str, rows: Sequence[Row], pictures: Sequence[Path]
) -> None:
    """Write the report with the command that made it, and every number behind it as JSON beside it."""
    numbers = {
        name: " ".join(map(str, getattr(args, name))) for name in ("sizes", "betas", "seeds")
    }
    command = (
        f"recattack bench kkt --datasets {' '.join(args.datasets)} --victims {' '.join(args.victims)} "
        f"--attacks {' '.join(args.attacks)} --sizes {numbers['sizes']} --betas {numbers['betas']} "
        f"--seeds {numbers['seeds']} --items-per-user {args.items_per_user} --steps {args.steps} "
        f"--nuclear-steps {args.nuclear_steps}"
    )
    if args.figures is not None:
        command += f" --figures {args.figures}"
    command += f" --write-docs {args.write_docs}"
    write_page(
        args.write_docs,
        title="KKT attacks on factorisation models",
        command=command,
        text=text,
        pictures=pictures,
    )
    with atomic_write(args.write_docs.with_suffix(".json")) as stream:
        stream.write(json.dumps({"command": command, "pieces": rows}, indent=0).encode())
