"""Which of the paper's claims hold in the cells of a comparison, counted from them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import eq, gt
from pathlib import Path

import numpy as np

from agents.benchmark.rows import HEURISTIC_ENTRIES, Row, by_platform, means_of, winners
from recattack_gym.core import FakeProfiles


def claims(rows: Sequence[Row]) -> str:
    """Return which of the paper's claims hold in these rows, worked out from them."""
    cells = by_platform(rows)
    lines = [
        f"- Cells (dataset and victim) with results: {len(cells)}. Attackers are compared by means over the "
        "seeds that all of them have."
    ]
    paper_entries = (*HEURISTIC_ENTRIES, "conslop", "appgrad", "poisonrec")
    with_all = {k: m for k, v in cells.items() if (m := means_of(v, paper_entries))}
    if with_all:
        best = Counter(e for v in with_all.values() for e in winners(v, paper_entries))
        lines.append(
            f"- Best of the paper's seven attacks, by mean: {_counted(best)} (paper: poisonrec in all but "
            "CoVisitation, where conslop wins on 3 of 4 datasets)."
        )
        others = [
            f"{entry} on {dataset} {victim}"
            for (dataset, victim), means in with_all.items()
            for entry in winners(means, paper_entries)
            if entry != "poisonrec"
        ]
        if others:
            lines.append(f"- Where it is not poisonrec: {', '.join(others)}.")
    everything = {
        k: m
        for k, v in cells.items()
        if "poisonrec" in v and len(m := means_of(v, _with_all_seeds(v))) > 1
    }
    if everything:
        best = Counter(e for v in everything.values() for e in winners(v, list(v)))
        lines.append(
            f"- Best of everything compared here, by mean: {_counted(best)} (of {len(everything)} cells with "
            "poisonrec; attackers that lack a seed of a cell are left out there)."
        )
    for better, worse in (
        ("poisonrec", "poisonrec-random"),
        ("poisonrec-random", "poisonrec-plain"),
        ("poisonrec", "poisonrec-bplain"),
        ("poisonrec", "random-search"),
        ("poisonrec", "cross-entropy"),
        ("poisonrec-warm", "poisonrec"),
        ("poisonrec-warm", "random-search"),
    ):
        both = {k: m for k, v in cells.items() if (m := means_of(v, (better, worse)))}
        if both:
            above, equal = (
                sum(test(v[better], v[worse]) for v in both.values()) for test in (gt, eq)
            )
            tied = f", equal in {equal}" if equal else ""
            lines.append(f"- {better} above {worse}: {above} of {len(both)} cells{tied}.")
    ratios = [
        f"{dataset} {victim} {means['poisonrec-bplain'] / means['poisonrec']:.2f}"
        for (dataset, victim), v in cells.items()
        if (means := means_of(v, ("poisonrec", "poisonrec-bplain"))) and means["poisonrec"]
    ]
    if ratios:
        lines.append(
            f"- poisonrec-bplain over poisonrec: {', '.join(ratios)} (paper, Fig. 4: equal on ItemPop "
            "and NeuMF, less on the others)."
        )
    shares = _final_shares(rows)
    if shares:
        lines.append(f"- Share of target clicks in poisonrec's last batch (Fig. 5): {shares}.")
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        plan_file = row.path.with_suffix(".npz") if row.path.name else Path()
        victim = row.cell.victim
        if (
            row.cell.entry == "poisonrec"
            and victim.startswith("CoVisitation")
            and plan_file.is_file()
        ):
            name = row.cell.label if victim == "CoVisitation" else f"{row.cell.label} {victim}"
            pairs.setdefault(name, []).append(alternation(FakeProfiles.load(plan_file)))
    if pairs:
        shares_by_platform = ", ".join(
            f"{name} {observed:.0%} ({expected:.0%})"
            for name, values in pairs.items()
            for observed, expected in [np.mean(values, axis=0)]
        )
        lines.append(
            "- Share of consecutive clicks in poisonrec's plans on CoVisitation that join a target and "
            "another item, in brackets that of a random order (paper: it learns to alternate): "
            f"{shares_by_platform}."
        )
    n_old = sum(not row.is_current for row in rows)
    if n_old:
        lines.append(f"- {n_old} of {len(rows)} results were made by an earlier state of the code.")
    return "\n".join(lines)


def alternation(profiles: FakeProfiles) -> tuple[float, float]:
    """Return how often two consecutive clicks are on a target and on another item.

    Args:
        profiles: With `target_items` in the header.

    Returns:
        The observed share of pairs, and what it is expected to be if each fake user's clicks are shuffled.
    """
    target_items = np.array(profiles.header["target_items"], dtype=np.int64)
    is_target = np.isin(profiles.item_ids, target_items)  # (N, T)
    size = is_target.shape[1]
    n_targets = is_target.sum(axis=1)
    expected = 2 * n_targets * (size - n_targets) / max(1, size * (size - 1))
    observed = (is_target[:, 1:] != is_target[:, :-1]).mean() if size > 1 else 0.0
    return float(observed), float(expected.mean())


def _with_all_seeds(by_entry: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Return the attackers that have every seed that any attacker has."""
    seeds = set().union(*by_entry.values())
    return [entry for entry, by_seed in by_entry.items() if seeds <= set(by_seed)]


def _final_shares(rows: Sequence[Row]) -> str:
    found: dict[str, list[float]] = {}
    is_one = len({row.cell.label for row in rows}) == 1
    for row in rows:
        shares, sizes = row.result["target_shares"], row.result["batch_sizes"]
        if row.cell.entry == "poisonrec" and isinstance(shares, list) and isinstance(sizes, list):
            name = row.cell.victim if is_one else f"{row.cell.label} {row.cell.victim}"
            found.setdefault(name, []).append(float(np.mean(shares[-sizes[-1] :])))
    return ", ".join(f"{victim} {np.mean(values):.2f}" for victim, values in found.items())


def _counted(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered)
