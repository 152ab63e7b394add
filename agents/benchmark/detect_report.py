"""What comes of `recattack bench detect`: tables of who finds what, and a file of all numbers."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from agents.benchmark.tables import markdown_table
from recattack_gym.core.files import atomic_write
from recattack_gym.defenses import DETECTORS

Row = Mapping[str, object]

MEASURES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "recall_at_1": "recall at 1 % false positives",
}
LEARNT = {
    "none": "-",
    "seen": "all attacks",
    "unseen": "all other attacks",
    "told": "5 of these fake users",
}
"""How a table says what a detector has learnt from, always on other genuine users."""
PAPER = {
    ("random", 0.01): 97.4, ("random", 0.03): 98.4, ("random", 0.05): 98.6,
    ("random", 0.1): 98.8, ("random", 0.25): 98.6, ("random", 0.4): 98.6,
    ("average", 0.01): 97.6, ("average", 0.03): 97.8, ("average", 0.05): 97.6,
    ("average", 0.1): 97.0, ("average", 0.25): 96.8, ("average", 0.4): 95.6,
    ("bandwagon", 0.01): 87.0, ("bandwagon", 0.03): 94.2, ("bandwagon", 0.05): 96.4,
    ("bandwagon", 0.1): 97.6, ("bandwagon", 0.25): 98.4, ("bandwagon", 0.4): 98.2,
}  # fmt: skip
"""Percent of the flagged that are fake, PCA-VarSelect on ml-100k: Mehta and Nejdl, UMUAI 2009."""


def report(rows: Sequence[Row]) -> str:
    """Return all tables as Markdown."""
    parts = []
    attacks = [row for row in rows if "filler" not in row]
    for dataset in dict.fromkeys(str(row["dataset"]) for row in attacks):
        own = [row for row in attacks if row["dataset"] == dataset]
        n_fake, n_genuine = (
            _span(sorted({int(str(row[name])) for row in own})) for name in ("n_fake", "n_genuine")
        )
        n_seeds = len({row["seed"] for row in own})
        among = f"{n_fake} fake among {n_genuine} genuine users, seeds: {n_seeds}"
        parts += [f"**{dataset}: mean over attacks** ({among})", _means_table(own)]
        for measure, title in (("auc", "AUC"), ("recall_at_1", "recall at 1 % false positives")):
            parts += [
                f"**{dataset}: {title} by attack**, supervised detectors on attacks that they have not seen",
                _attacks_table(own, measure),
            ]
    reference = [row for row in rows if "filler" in row]
    if reference:
        parts += [
            "**ml-100k: percent of the 94 most suspicious that are fake** (94 fake, 943 genuine users, one "
            "target)",
            _reference_table(reference),
        ]
    return "\n\n".join(parts) if parts else "nothing is measured yet"


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _means_table(rows: Sequence[Row]) -> str:
    """Return a line per detector and what it has learnt from: means over attacks, and its weakest attack."""
    header = ["detector", "learnt from", "AUC", "average precision", "recall at 1 %"]
    lines: list[list[object]] = []
    for detector, learnt in dict.fromkeys((str(r["detector"]), str(r["learnt"])) for r in rows):
        own = [r for r in rows if (r["detector"], r["learnt"]) == (detector, learnt)]
        means = (_text(_mean(float(str(r[measure])) for r in own)) for measure in MEASURES)
        by_attack: dict[str, list[float]] = {}
        for row in own:
            by_attack.setdefault(str(row["attack"]), []).append(float(str(row["auc"])))
        aucs = {attack: float(np.mean(values)) for attack, values in by_attack.items()}
        worst = min(aucs, key=lambda attack: aucs[attack])
        lines.append([detector, LEARNT[learnt], *means, f"{worst} ({aucs[worst]:.2f})"])
    return markdown_table([*header, "weakest against (AUC)"], lines)


def _attacks_table(rows: Sequence[Row], measure: str) -> str:
    """Return attacks down, detectors across: unsupervised ones, and others on unseen attacks."""
    shown = [row for row in rows if row["learnt"] in ("none", "unseen")]
    detectors = list(dict.fromkeys(str(row["detector"]) for row in shown))
    cells: dict[tuple[str, str], list[float]] = {}
    for row in shown:
        key = str(row["attack"]), str(row["detector"])
        cells.setdefault(key, []).append(float(str(row[measure])))
    lines = [
        [attack, *(_text(_mean(cells.get((attack, detector), []))) for detector in detectors)]
        for attack in dict.fromkeys(str(row["attack"]) for row in shown)
    ]
    return markdown_table(["attack", *detectors], lines)


def _reference_table(rows: Sequence[Row]) -> str:
    fillers = sorted({float(str(row["filler"])) for row in rows})
    lines: list[list[object]] = []
    for kind in dict.fromkeys(str(row["attack"]) for row in rows):
        paper = [PAPER.get((kind, filler)) for filler in fillers]
        if any(value is not None for value in paper):
            lines.append(
                [f"{kind}: paper, PCA-VarSelect", *(f"{v:.1f}" if v else "-" for v in paper)]
            )
        for detector in dict.fromkeys(str(row["detector"]) for row in rows):
            own = [r for r in rows if (r["attack"], r["detector"]) == (kind, detector)]
            means = [
                _mean([float(str(r["precision_at_n"])) for r in own if r["filler"] == filler])
                for filler in fillers
            ]
            texts = ["-" if mean is None else f"{100 * mean:.1f}" for mean in means]
            lines.append([f"{kind}: {detector}", *texts])
    return markdown_table(["attack", *(f"{100 * f:g} % filler" for f in fillers)], lines)


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def summary(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return, per dataset and detector, the mean over attacks and seeds of each measure.

    Of supervised detectors it is the one on attacks that they have not seen.
    """
    found: dict[str, dict[str, float]] = {}
    attacks = [row for row in rows if "filler" not in row and row["learnt"] in ("none", "unseen")]
    for row in attacks:
        found.setdefault(f"{row['dataset']}/{row['detector']}", {})
    for name, values in found.items():
        own = [row for row in attacks if f"{row['dataset']}/{row['detector']}" == name]
        for measure in MEASURES:
            values[measure] = round(float(np.mean([float(str(row[measure])) for row in own])), 4)
    return found


def write_docs(args: argparse.Namespace, rows: Sequence[Row], versions: Mapping[str, str]) -> None:
    """Write every number with the command that made it, as JSON."""
    everything = list(args.detectors) == list(DETECTORS)
    command = (
        f"recattack bench detect --datasets {' '.join(args.datasets)} "
        f"{'' if everything else '--detectors ' + ' '.join(args.detectors) + ' '}"
        f"--seeds {' '.join(map(str, args.seeds))} --attack-size {args.attack_size:g}"
    )
    content = {
        "command": command,
        "versions": dict(versions),
        "rows": [_rounded(row) for row in rows],
    }
    with atomic_write(args.write_docs) as stream:
        stream.write(json.dumps(content, indent=0).encode())


def _rounded(row: Row) -> dict[str, object]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
