"""Tables of `recattack bench gp`, from its results."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents.benchmark.tables import markdown_table

Row = Mapping[str, Any]
"""A piece and its result, as JSON has them."""
STRENGTH = "target_recall_at_k"
"""The paper's HR@50."""


def report(rows: Sequence[Row]) -> tuple[str, dict[str, object]]:
    """Return the tables of everything measured, and the same as JSON values.

    Args:
        rows: Results, each with its piece.

    Returns:
        Markdown, and `similarity`, `strength`, `gains` and `speed`.
    """
    similarity, attacks = similarity_rows(rows), strength_rows(rows)
    gains = gain_rows(attacks)
    speed = [
        {"dataset": row["piece"]["dataset"], **row["speed"]}
        for row in rows
        if row["piece"]["kind"] == "speed"
    ]
    parts = []
    if similarity:
        header: tuple[str, ...] = (
            "model", "dataset", "epochs", "JS", "JS with GP", "CPU s", "CPU s with GP",
        )  # fmt: skip
        parts.append(markdown_table(header, [tuple(row.values()) for row in similarity]))
    if attacks:
        header = (
            "attacker", "dataset", "GP", "epochs", "seeds", "HR@k %", "sd", "retraining CPU s", "total CPU s",
        )  # fmt: skip
        parts.append(markdown_table(header, [tuple(row.values()) for row in attacks]))
    if gains:
        header = (
            "attacker", "dataset", "epochs", "HR@k change %", "retraining CPU s change %",
            "total CPU s change %", "epochs for equal HR@k", "retraining CPU s change % at equal HR@k",
            "total CPU s change % at equal HR@k",
        )  # fmt: skip
        parts.append(markdown_table(header, [tuple(row.values()) for row in gains]))
    for row in speed:
        lines = [(name, row["dataset"], value) for name, value in row.items() if name != "dataset"]
        parts.append(markdown_table(("what", "dataset", "CPU"), lines))
    return "\n\n".join(parts), {
        "similarity": similarity,
        "strength": attacks,
        "gains": gains,
        "speed": speed,
    }


def similarity_rows(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return JS of both sides after each number of epochs; each takes its best learning rate per point."""
    found: dict[tuple[str, str, int, bool], dict[float, list[tuple[float, float]]]] = {}
    for row in rows:
        piece = row["piece"]
        if piece["kind"] != "similarity":
            continue
        for place, epoch in enumerate(piece["epochs"]):
            key = piece["name"], piece["dataset"], epoch, piece["is_passing"]
            by_rate = found.setdefault(key, {})
            value = row["js"][place], row["cpu_seconds"][place]
            by_rate.setdefault(piece["learning_rate"], []).append(value)
    best = {
        key: max(tuple(np.mean(values, axis=0)) for values in by_rate.values())
        for key, by_rate in found.items()
    }
    result: list[dict[str, object]] = []
    for name, dataset, epoch in dict.fromkeys(key[:3] for key in best):
        sides = [best.get((name, dataset, epoch, side)) for side in (False, True)]
        js, seconds = ([None if s is None else float(s[i]) for s in sides] for i in (0, 1))
        result.append(
            {
                "model": name,
                "dataset": dataset,
                "epochs": epoch,
                "js": js[0],
                "js_gp": js[1],
                "cpu_seconds": seconds[0],
                "cpu_seconds_gp": seconds[1],
            }
        )
    return result


def strength_rows(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return strength in per cent and seconds of every attack, mean over seeds."""
    found: dict[tuple[str, str, bool, int], list[Row]] = {}
    for row in rows:
        piece = row["piece"]
        if piece["kind"] == "attack":
            epochs = piece["epochs"][0] if piece["epochs"] else 0
            key = piece["name"], piece["dataset"], piece["is_passing"], epochs
            found.setdefault(key, []).append(row)
    result: list[dict[str, object]] = []
    for (name, dataset, is_passing, epochs), own in found.items():
        values = 100 * np.array([row["strength"][STRENGTH] for row in own])
        result.append(
            {
                "attacker": name,
                "dataset": dataset,
                "gp": "yes" if is_passing else "no",
                "epochs": epochs,
                "seeds": len(own),
                "strength": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(own) > 1 else None,
                "training_seconds": float(np.mean([row["training_seconds"] for row in own])),
                "total_seconds": float(np.mean([row["total_seconds"] for row in own])),
            }
        )
    return result


def gain_rows(attacks: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Return what Gradient Passing changes: at equal epochs, and where ordinary training is as strong.

    For each attack with passing, "equal strength" is the least number of epochs without passing whose mean
    strength is at least as large; `None` where none of those measured is.
    """
    result: list[dict[str, object]] = []
    for row in attacks:
        if row["gp"] != "yes":
            continue
        plain = [
            other
            for other in attacks
            if (other["attacker"], other["dataset"], other["gp"])
            == (row["attacker"], row["dataset"], "no")
        ]
        equal = next((other for other in plain if other["epochs"] == row["epochs"]), None)
        reaching = sorted(
            (other for other in plain if other["strength"] >= row["strength"]),
            key=lambda other: int(other["epochs"]),
        )
        as_strong = reaching[0] if reaching else None
        result.append(
            {
                "attacker": row["attacker"],
                "dataset": row["dataset"],
                "epochs": row["epochs"],
                "strength_change": _change(row, equal, "strength"),
                "seconds_change": _change(row, equal, "training_seconds"),
                "total_seconds_change": _change(row, equal, "total_seconds"),
                "equal_strength_epochs": None if as_strong is None else as_strong["epochs"],
                "equal_strength_seconds_change": _change(row, as_strong, "training_seconds"),
                "equal_strength_total_seconds_change": _change(row, as_strong, "total_seconds"),
            }
        )
    return result


def _change(row: Mapping[str, Any], base: Mapping[str, Any] | None, field: str) -> float | None:
    """Return by how many per cent a field differs from that of a base."""
    if base is None or not base[field]:
        return None
    return 100.0 * (float(row[field]) / float(base[field]) - 1.0)
