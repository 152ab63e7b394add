"""Tables of what attacks show to detectors and do to everyone else, from the sidecars of finished cells."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import t as student

from agents.benchmark.rows import Row
from agents.benchmark.tables import markdown_table
from agents.reports import DETECTORS
from recattack_gym.simulator.effects import Effects
from recattack_gym.victims import VICTIMS

Measure = Callable[[Row], float]
"""One number of a row that has effects."""
GROUPS = Effects.names


def effects_section(rows: Sequence[Row]) -> list[str]:
    """Return what detectors and bands of items say of a dataset's attacks, or that it was not measured.

    Args:
        rows: Finished cells of one dataset, with effects or without.
    """
    measured = [row for row in rows if row.effects is not None]
    title = "### Detectors and side effects"
    if not measured:
        return [f"{title}\n\nNot measured (`--effects` does it)."]
    return [
        f"{title}\n\nOf one plan per cell, under fine-tuning (attackers that do not query: the first draw). "
        "AUC: how often a detector, which reads clicks and knows no attack, scores a fake user above a "
        "genuine one (0.5 is chance). Found: share of the fake users that it finds while it flags 1 % of the "
        "genuine ones. HR@10 and NDCG@10: change for the genuine users with a held-out item, in their lists "
        "over the whole catalogue. Targets, head, middle, tail: places in the same lists that a group of "
        "items gains or loses, in per cent of all places; what one group gains others lose. Head: the fewest "
        "most clicked items with a fifth of all clicks. Tail: the least clicked with at most a fifth, those "
        f"without clicks among them. Middle: the rest.{missing_text(rows)}",
        found_text(measured),
        "Mean over the cells (victim and seed) that are measured:",
        _table(("attacker",), _by(measured, lambda row: (row.cell.entry,)), with_spread=False),
        "Each victim, mean over seeds ± half of the 95 % interval (Student's t):",
        _table(
            ("victim", "attacker"),
            _by(_in_order(measured), lambda row: (row.cell.victim, row.cell.entry)),
            with_spread=True,
        ),
        "Whom the lists showed before any attack, mean over seeds:",
        clean_table(measured),
    ]


def missing_text(rows: Sequence[Row]) -> str:
    """Say of which attacks nothing was measured, and how many by other code than is here now."""
    text = ""
    lacking = []
    for victim in sorted({row.cell.victim for row in rows}, key=list(VICTIMS).index):
        own = [row for row in rows if row.cell.victim == victim]
        n_missing = sum(row.effects is None for row in own)
        if n_missing:
            lacking.append(
                f"{victim} ({'all' if n_missing == len(own) else f'{n_missing} of {len(own)}'})"
            )
    if lacking:
        text += f" Not measured: {', '.join(lacking)}."
    n_old = sum(row.effects is not None and not row.has_current_effects for row in rows)
    if n_old:
        text += f" Measured by other code than is here now: {n_old:,}."
    return text


def found_text(rows: Sequence[Row]) -> str:
    """Count in how many attacks the detector that finds most finds nobody, hardly anybody, or everybody.

    Args:
        rows: Cells with effects.
    """
    best = np.array([max(found(detector)(row) for detector in DETECTORS) for row in rows])
    return (
        f"With 1 % of the genuine users flagged, the detector that finds most finds no fake user in "
        f"{(best == 0).sum():,} of {len(best):,} attacks, at most a tenth of them in "
        f"{(best <= 0.1).sum():,}, and all in {(best == 1).sum():,}."
    )


def clean_table(rows: Sequence[Row]) -> str:
    """Return per victim how many items each group has, and which share of all places without any attack."""
    lines = []
    for (victim,), own in _by(_in_order(rows), lambda row: (row.cell.victim,)).items():
        line = [victim]
        for name in GROUPS:
            share = np.mean([_group(row, name)["clean"] / _places(row) for row in own])
            line.append(f"{_group(own[0], name)['n_items']:,.0f}: {share:.2%}")
        lines.append(line)
    return markdown_table(("victim", *(f"{name}: items, places" for name in GROUPS)), lines)


def auc(detector: str) -> Measure:
    """Return what reads a detector's AUC."""
    return lambda row: float(_detectors(row)[detector]["auc"])


def found(detector: str) -> Measure:
    """Return what reads a detector's recall at 1 % false positives."""
    return lambda row: float(_detectors(row)[detector]["recall"])


def change(quality: str) -> Measure:
    """Return what reads the relative change of `"hr_at_k"` or `"ndcg_at_k"`; of nothing it is 0."""

    def read(row: Row) -> float:
        effects = _part(row, "side_effects")
        before, after = (float(str(effects[name])) for name in (f"clean_{quality}", quality))
        return after / before - 1 if before else 0.0

    return read


def gain(group: str) -> Measure:
    """Return what reads the places that a group gained, as a share of all."""

    def read(row: Row) -> float:
        counts = _group(row, group)
        return (counts["poisoned"] - counts["clean"]) / _places(row)

    return read


def columns() -> list[tuple[str, str, Measure]]:
    """Return the columns of the tables: name, format, and what reads the number."""
    return [
        *((f"AUC {name}", ".2f", auc(name)) for name in DETECTORS),
        *((f"found {name}", ".2f", found(name)) for name in DETECTORS),
        ("HR@10", "+.1%", change("hr_at_k")),
        ("NDCG@10", "+.1%", change("ndcg_at_k")),
        *((name, "+.2%", gain(name)) for name in GROUPS),
    ]


def spread(values: Sequence[float], form: str) -> str:
    """Return `mean ± half width` of the 95 % interval by Student's t, or the mean alone of one value."""
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return format(mean, form)
    half = float(student.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / n**0.5
    return f"{mean:{form}} ± {half:{form.removeprefix('+')}}"


def _table(
    names: Sequence[str], groups: Mapping[tuple[str, ...], Sequence[Row]], *, with_spread: bool
) -> str:
    lines = []
    for key, own in groups.items():
        line = list(key) if with_spread else [*key, str(len(own))]
        for _, form, read in columns():
            values = [read(row) for row in own]
            line.append(spread(values, form) if with_spread else format(np.mean(values), form))
        lines.append(line)
    counted = () if with_spread else ("cells",)
    return markdown_table((*names, *counted, *(name for name, _, _ in columns())), lines)


def _by(
    rows: Sequence[Row], key: Callable[[Row], tuple[str, ...]]
) -> dict[tuple[str, ...], list[Row]]:
    found_: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found_.setdefault(key(row), []).append(row)
    return found_


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """Return rows victim by victim, in the order of the registry, attackers in theirs."""
    return sorted(rows, key=lambda row: list(VICTIMS).index(row.cell.victim))


def _part(row: Row, name: str) -> Mapping[str, object]:
    part = (row.effects or {})[name]
    assert isinstance(part, Mapping)  # noqa: S101  # as `measured_fields` writes it
    return part


def _detectors(row: Row) -> Mapping[str, Mapping[str, float]]:
    return _part(row, "detectors")  # type: ignore[return-value]  # as `measured_fields` writes it


def _group(row: Row, name: str) -> Mapping[str, float]:
    groups = _part(row, "exposure")["groups"]
    assert isinstance(groups, Mapping)  # noqa: S101  # as above
    counts: Mapping[str, float] = groups[name]
    return counts


def _places(row: Row) -> float:
    """Return how many places the lists have without any attack; the attack changes none of that."""
    return float(sum(_group(row, name)["clean"] for name in GROUPS))
