"""Put the cells of a comparison together: tables beside the paper's."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from scipy.stats import t as student

from agents.benchmark.claims import claims
from agents.benchmark.effects_tables import effects_section
from agents.benchmark.published import TABLE3, TABLE3_VICTIMS, published_number
from agents.benchmark.rows import HEURISTIC_ENTRIES, Row, by_platform, means_of, winners
from agents.benchmark.tables import markdown_table
from recattack_gym.victims import VICTIMS

BUDGETS = (320, 640, 960, 1600, 3200)
"""Queries at which learners are compared, as far as they have them."""
_N_BOOTSTRAP = 2000
_FEWEST_PLANS = 6
"""Fewer have no order to speak of."""
_OF = ": interquartile mean of the ratio over victims and seeds, with a 95 % interval."


def report(rows: Sequence[Row]) -> str:
    """Return everything as Markdown: a section per dataset, then the claims."""
    parts = []
    for dataset in dict.fromkeys(row.cell.label for row in rows):
        own = [row for row in rows if row.cell.label == dataset]
        parts += [
            f"## {dataset}\n\n{_budgets(own)} RecNum, mean over seeds ± half of the 95 % interval "
            "(Student's t); a number alone is one seed's. Attackers that do not query: the mean over their "
            "draws. The others: the best set that they tried, on the candidate lists that it was chosen on.",
            rec_num_table(own),
        ]
        if dataset in TABLE3:
            parts += [
                "PoisonRec's Table III (Song et al., ICDE 2020), for comparison of orders, not of levels.",
                paper_table(own),
            ]
        full = [row for row in own if row.result["full_rec_num"] is not None]
        if full:
            parts += [
                "The same plans after full retraining, mean over seeds (heuristics: their first draw)."
                f"{_who(full, own)}",
                full_table(full),
                *agreement(full),
            ]
        else:
            parts.append("No plan was retrained in full here (`--no-full`).")
        parts += [
            "What the attacks cost, and what they do to everyone else: mean over the cells (victim and seed) "
            "that there are.",
            cost_table(own),
        ]
        budgets = learners_table(own)
        if budgets:
            parts += [f"Best RecNum after so many queries, against PoisonRec's{_OF}", budgets]
        parts += effects_section(own)
    if len({row.cell.label for row in rows}) > 1:
        budgets = learners_table(rows)
        if budgets:
            parts += [
                "## Best RecNum after so many queries, against PoisonRec's, all datasets",
                budgets,
            ]
    heuristics = heuristics_table(rows)
    if heuristics:
        parts += [
            "## How often each heuristic is the best of the four (the paper's Table IV)\n\nBy mean RecNum on "
            "each dataset and victim; ties count for all, and where nobody reaches anything, nobody counts. "
            "The paper's are counted over the same victims; in brackets over all of its own.",
            heuristics,
        ]
    return "\n\n".join([*parts, "## The paper's claims", claims(rows)])


def _who(some: Sequence[Row], rows: Sequence[Row]) -> str:
    """Say which seeds it was, where it was not all."""
    seeds = [sorted({row.cell.seed for row in part}) for part in (some, rows)]
    if seeds[0] == seeds[1]:
        return ""
    return f" Of seed{'s' if len(seeds[0]) > 1 else ''} {', '.join(map(str, seeds[0]))} only."


def _budgets(rows: Sequence[Row]) -> str:
    """Say how many seeds and queries there were, and where they were fewer."""
    asking = [row for row in rows if len(row.curve)]
    seeds = len({row.cell.seed for row in rows})
    text = f"{seeds} seed{'s' if seeds > 1 else ''}."
    counts = Counter(len(row.curve) for row in asking)
    if counts:
        usual = counts.most_common(1)[0][0]
        other: dict[int, set[str]] = {}
        for row in asking:
            if len(row.curve) != usual:
                other.setdefault(len(row.curve), set()).add(row.cell.victim)
        but = "".join(
            f", {n:,} against {', '.join(sorted(victims, key=list(VICTIMS).index))}"
            for n, victims in sorted(other.items())
        )
        text += f" Queries of attackers that query: {usual:,}{but}."
    return text


def rec_num_table(rows: Sequence[Row]) -> str:
    """Return attackers against victims: mean RecNum and half of its 95 % interval over seeds."""
    return _grid(rows, lambda own: with_interval([row.rec_num for row in own]))


def full_table(rows: Sequence[Row]) -> str:
    """Return attackers against victims: mean RecNum of the plans after full retraining."""

    def cell(own: Sequence[Row]) -> str:
        values = [row.result["full_rec_num"] for row in own]
        known = [float(str(value)) for value in values if value is not None]
        return f"{np.mean(known):,.0f}" if known else "-"

    return _grid(rows, cell)


def agreement(rows: Sequence[Row]) -> list[str]:
    """Say how far RecNum under fine-tuning stands for RecNum under full retraining, or nothing of too few.

    Per victim, over the plans of all attackers and seeds: Spearman's rank correlation, the ratio of the
    sums (1 is right), and the ranges. An order is a dash where one side does not vary.
    """
    lines = []
    for victim in sorted({row.cell.victim for row in rows}, key=list(VICTIMS).index):
        fast, full = np.array(
            [
                (float(str(row.result["finetune_rec_num"])), float(str(row.result["full_rec_num"])))
                for row in rows
                if row.cell.victim == victim and row.result["full_rec_num"] is not None
            ]
        ).T.reshape(2, -1)
        if len(fast) < _FEWEST_PLANS:
            continue
        varies = np.ptp(fast) > 0 and np.ptp(full) > 0
        lines.append(
            (
                victim,
                len(fast),
                f"{spearmanr(fast, full).statistic:.2f}" if varies else "-",
                f"{fast.sum() / full.sum():.2f}" if full.any() else "-",
                *(f"{values.min():,.0f} to {values.max():,.0f}" for values in (fast, full)),
            )
        )
    if not lines:
        return []
    names = ["victim", "plans", "Spearman", "finetune / full", "finetune", "full"]
    return [
        "How far fine-tuning, which attackers were rewarded by, stands for full retraining on these plans.",
        markdown_table(names, lines),
    ]


def paper_table(rows: Sequence[Row]) -> str:
    """Return the paper's numbers for the same dataset and victims, whether or not there is a row for each."""
    dataset = rows[0].cell.label
    victims = sorted({row.cell.victim for row in rows}, key=list(VICTIMS).index)
    lines = []
    for entry in TABLE3.get(dataset, {}):
        numbers = [published_number(dataset, entry, victim) for victim in victims]
        lines.append((entry, *("-" if number is None else f"{number:,}" for number in numbers)))
    return markdown_table(("attacker", *victims), lines)


def cost_table(rows: Sequence[Row]) -> str:
    """Return cells, queries, clicks, seconds, share of target clicks and harm per attacker."""
    lines = []
    for entry, own in _by(rows, "entry").items():
        lines.append(
            (
                entry,
                str(own[0].result["knowledge"]).replace("_", " "),
                len(own),
                int(_mean(own, "n_queries")),
                int(_mean(own, "clicks")),
                _mean(own, "cpu_seconds"),
                f"{_mean(own, 'target_share'):.2f}",
                f"{np.mean([_quality(row, 'hr_at_k') for row in own]):+.1%}",
                f"{np.mean([_quality(row, 'ndcg_at_k') for row in own]):+.1%}",
            )
        )
    names = [
        "attacker",
        "knows",
        "cells",
        "queries",
        "clicks",
        "CPU-s",
        "on-targets",
        "HR@10",
        "NDCG@10",
    ]
    header = [name.replace("-", " ") for name in names]
    return markdown_table(header, lines)


def learners_table(rows: Sequence[Row]) -> str:
    """Return, per attacker that queries, its best RecNum over PoisonRec's at several budgets.

    The last column is at the cell's own budget, whatever that is, as long as both have the same. Ratios are
    formed per victim and seed (cells where both are 0 are left out), then their interquartile
    mean, with a 95 % interval by bootstrap over seeds within victims (Agarwal et al., NeurIPS 2021); victims
    with one seed add nothing to its width.

    Returns:
        An empty text if there is nobody to compare.
    """
    by_cell = {(r.cell.label, r.cell.victim, r.cell.seed, r.cell.entry): r for r in rows}
    entries = [e for e, own in _by(rows, "entry").items() if len(own[0].curve)]
    if "poisonrec" not in entries:
        return ""
    budgets: list[int | None] = [b for b in BUDGETS if b <= max(len(r.curve) for r in rows)]
    budgets.append(None)
    lines = []
    for entry in entries:
        if entry == "poisonrec":
            continue
        line: list[str] = [entry]
        for budget in budgets:
            ratios: dict[tuple[str, str], list[float]] = {}
            for (dataset, victim, seed, other), row in by_cell.items():
                base = by_cell.get((dataset, victim, seed, "poisonrec"))
                if other != entry or base is None:
                    continue
                lengths = len(row.curve), len(base.curve)
                if lengths[0] != lengths[1] if budget is None else min(lengths) < budget:
                    continue
                ours, theirs = (each.best_after(budget or len(each.curve)) for each in (row, base))
                if ours or theirs:
                    ratios.setdefault((dataset, victim), []).append(ours / max(1, theirs))
            line.append(_iqm_with_interval(list(ratios.values())))
        if any(text != "-" for text in line[1:]):
            lines.append(line)
    header = [f"{b:,} queries" if b else "all of them" for b in budgets]
    return markdown_table(("attacker", *header), lines) if lines else ""


def heuristics_table(rows: Sequence[Row]) -> str:
    """Return how often each heuristic is the best of the four, ours beside the paper's (Table IV).

    Returns:
        An empty text if no platform has all four.
    """
    ours = {k: m for k, v in by_platform(rows).items() if (m := means_of(v, HEURISTIC_ENTRIES))}
    if not ours:
        return ""
    datasets = list(dict.fromkeys(dataset for dataset, _ in ours))
    whole = {
        (dataset, victim): {e: float(TABLE3[dataset][e][i]) for e in HEURISTIC_ENTRIES}
        for dataset in datasets
        if dataset in TABLE3
        for i, victim in enumerate(TABLE3_VICTIMS)
    }
    same = {platform: whole[platform] for platform in ours if platform in whole}
    counts = [heuristics_best(cells) for cells in (ours, same, whole)]
    columns = [*datasets, "all"] if len(datasets) > 1 else datasets
    lines = []
    for entry in HEURISTIC_ENTRIES:
        line = [entry]
        for dataset in columns:
            own, paper, all_paper = (
                sum(n for (d, e), n in count.items() if e == entry and dataset in (d, "all"))
                for count in counts
            )
            line += [str(own), f"{paper} ({all_paper})" if dataset in (*TABLE3, "all") else "-"]
        lines.append(line)
    header = ["heuristic", *(f"{name}{paper}" for name in columns for paper in ("", ", paper"))]
    return markdown_table(header, lines)


def heuristics_best(
    cells: Mapping[tuple[str, str], Mapping[str, float]],
) -> Counter[tuple[str, str]]:
    """Return for (dataset, heuristic) the number of victims on which no other heuristic has more.

    As in the paper, victims on which none of them achieves anything are left out; ties count for all.

    Args:
        cells: For (dataset, victim) the RecNum of all heuristics by name.
    """
    return Counter(
        (dataset, entry)
        for (dataset, _), values in cells.items()
        for entry in winners(values, HEURISTIC_ENTRIES)
    )


def interquartile_mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the middle half; the quarter at each end is cut off, in fractions of a value."""
    ordered = np.sort(values)
    n = len(ordered)
    weights = np.clip(np.minimum(np.arange(1, n + 1) - n / 4, 3 * n / 4 - np.arange(n)), 0, 1)
    return float((ordered * weights).sum() / weights.sum())


# -- parts -----------------------------------------------------------------------------------------


def _grid(rows: Sequence[Row], cell: Callable[[Sequence[Row]], str]) -> str:
    """Return a table of attackers against victims, in the order of the registry of victims."""
    victims = sorted({row.cell.victim for row in rows}, key=list(VICTIMS).index)
    lines = []
    for entry, own in _by(rows, "entry").items():
        line = [entry]
        for victim in victims:
            here = [row for row in own if row.cell.victim == victim]
            line.append(cell(here) if here else "-")
        lines.append(line)
    return markdown_table(("attacker", *victims), lines)


def _by(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(getattr(row.cell, name)), []).append(row)
    return found


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([float(str(row.result[name])) for row in rows]))


def _quality(row: Row, name: str) -> float:
    """Return the relative change of a quality measure."""
    effects = row.result["side_effects"]
    assert isinstance(effects, Mapping)  # noqa: S101  # as run_cell writes it
    before = float(effects[f"clean_{name}"])
    return float(effects[name]) / before - 1 if before else 0.0


def with_interval(values: Sequence[float]) -> str:
    """Return `mean ± half width` of the 95 % interval by Student's t, or the mean alone of one value."""
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return f"{mean:,.0f}"
    half = float(student.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / n**0.5
    return f"{mean:,.0f} ± {half:,.0f}"


def _iqm_with_interval(groups: Sequence[Sequence[float]]) -> str:
    """Return the interquartile mean of all values and its 95 % interval, resampling within groups.

    The mean alone where no group has two values: there is nothing to resample.
    """
    if not groups:
        return "-"
    centre = interquartile_mean(np.concatenate([np.array(g) for g in groups]))
    if all(len(group) == 1 for group in groups):
        return f"{centre:.2f}"
    rng = np.random.default_rng(0)
    draws = [
        interquartile_mean(np.concatenate([rng.choice(np.array(g), size=len(g)) for g in groups]))
        for _ in range(_N_BOOTSTRAP)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{centre:.2f} [{low:.2f}, {high:.2f}]"
