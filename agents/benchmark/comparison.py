"""Put the cells of a comparison together: tables beside the paper's, and what holds of its claims."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq, gt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from scipy.stats import t as student

from agents.benchmark.cells import ENTRIES, Cell, identity
from agents.benchmark.published import TABLE3, TABLE3_VICTIMS
from agents.benchmark.sources import is_here
from agents.benchmark.store import ResultStore
from agents.benchmark.tables import markdown_table
from recattack_gym.core import FakeProfiles
from recattack_gym.victims import VICTIMS

logger = logging.getLogger(__name__)

HEURISTIC_ENTRIES = ("random", "popular", "middle", "power-item")
BUDGETS = (320, 640, 960, 1600, 3200)
"""Queries at which learners are compared, as far as they have them."""
_N_BOOTSTRAP = 2000
_FEWEST_PLANS = 6
"""Fewer have no order to speak of."""
_OF = ": interquartile mean of the ratio over victims and seeds, with a 95 % interval."


@dataclass(frozen=True)
class Row:
    """A finished cell."""

    cell: Cell
    """What was asked for."""
    result: Mapping[str, object]
    """What `cells.run_cell` returned."""
    is_current: bool
    """Whether it was made by the code that is here now."""
    path: Path = Path()
    """The file that it is in."""

    @property
    def rec_num(self) -> float:
        """RecNum of the plan, or the mean over draws."""
        return float(str(self.result["rec_num"]))

    @property
    def curve(self) -> NDArray[np.int64]:
        """RecNum of every query, shape `(n_queries,)`."""
        curve = self.result["curve"]
        assert isinstance(curve, list)  # noqa: S101  # as run_cell writes it
        return np.array(curve, dtype=np.int64)

    def best_after(self, n_queries: int) -> int:
        """Return the best RecNum of the first `n_queries` queries."""
        return int(self.curve[:n_queries].max())


def read_rows(cells: Sequence[Cell], folder: Path) -> list[Row]:
    """Return the finished ones of some cells.

    A result that was made by other code than is here now is used where there is no current one, and
    marked, so that a comparison need not be repeated for a changed comment. Of a dataset that is not on this
    machine, the log that results were made from is taken for its log.

    Args:
        cells: What is wanted.
        folder: Of the `ResultStore`.
    """
    store = ResultStore(folder)
    stored: dict[tuple[object, ...], tuple[float, Path, Mapping[str, object]]] = {}
    logs: dict[tuple[str, str | None], str] = {}
    for path, known, result in _files(folder):
        key, age = _key(known), path.stat().st_mtime
        dataset, protocol = known["dataset"], known["protocol"]
        logs[str(dataset), None if protocol is None else str(protocol)] = str(known["log"])
        if key not in stored or stored[key][0] < age:
            stored[key] = age, path, result
    rows = []
    for cell in cells:
        elsewhere = None if is_here(cell.dataset) else logs.get((cell.dataset, cell.protocol))
        wanted = identity(cell, log=elsewhere)
        current = store.get(wanted)
        if current is not None:
            rows.append(Row(cell, current, is_current=True, path=store.path(wanted)))
        elif _key(wanted) in stored:
            _, path, result = stored[_key(wanted)]
            rows.append(Row(cell, result, is_current=False, path=path))
    return rows


def cells_in(folder: Path) -> list[Cell]:
    """Return the cells that a folder has results of: per dataset, protocol, victim, attacker and seed one.

    Where there are several, with other budgets, it is the one with the most queries, most draws and
    full retraining.

    Args:
        folder: Of the `ResultStore`.
    """
    best: dict[tuple[object, ...], Cell] = {}
    for path, known, _ in _files(folder):
        config = known["attacker_config"]
        assert isinstance(config, Mapping)  # noqa: S101  # as `identity` writes it
        if known["entry"] not in ENTRIES or known["victim"] not in VICTIMS:
            logger.warning("%s is of an attacker or victim that is no more, and left out", path)
            continue
        cell = Cell(
            dataset=str(known["dataset"]),
            protocol=None if known["protocol"] is None else str(known["protocol"]),
            victim=str(known["victim"]),
            entry=str(known["entry"]),
            seed=int(str(known["seed"])),
            n_queries=int(config.get("n_queries", 1)),
            n_draws=int(str(known["n_draws"] or 1)),
            is_full=bool(known["is_full"]),
        )
        key = cell.dataset, cell.protocol, cell.victim, cell.entry, cell.seed
        size = (cell.n_queries, cell.n_draws, cell.is_full)
        if key not in best or size > (best[key].n_queries, best[key].n_draws, best[key].is_full):
            best[key] = cell
    order = list(ENTRIES)
    return sorted(
        best.values(),
        key=lambda c: (_place(c.dataset), c.victim, order.index(c.entry), c.seed),
    )


def _place(dataset: str) -> tuple[int, str]:
    """Return where a dataset comes: in the paper's order, then by name."""
    known = list(TABLE3)
    return (known.index(dataset) if dataset in known else len(known)), dataset


def _files(folder: Path) -> Iterator[tuple[Path, Mapping[str, object], Mapping[str, object]]]:
    """Yield file, identity and result of every cell in a folder."""
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
            known, result = content["identity"], content["result"]
        except (OSError, ValueError, KeyError) as error:
            logger.warning("%s cannot be read and is left out: %s", path, error)
            continue
        if "entry" in known:  # other benchmarks may keep theirs in the same folder
            yield path, known, result


def _key(identified: Mapping[str, object]) -> tuple[object, ...]:
    """Return what a cell is about, without the code that made it."""
    config = identified["attacker_config"]
    assert isinstance(config, Mapping)  # noqa: S101  # as `identity` writes it
    names = ("dataset", "protocol", "log", "victim", "entry", "seed", "n_draws", "is_full")
    return *(identified[name] for name in names), config.get("n_queries")


# -- tables ----------------------------------------------------------------------------------------


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
    """Say how well fine-tuning orders these plans as full retraining does, or nothing of too few.

    Spearman's rank correlation of a plan's RecNum under both, over attackers and seeds of a victim.
    """
    parts = []
    for victim in sorted({row.cell.victim for row in rows}, key=list(VICTIMS).index):
        both = [
            (float(str(row.result["finetune_rec_num"])), float(str(row.result["full_rec_num"])))
            for row in rows
            if row.cell.victim == victim and row.result["full_rec_num"] is not None
        ]
        if len(both) >= _FEWEST_PLANS and all(
            len(set(values)) > 1 for values in zip(*both, strict=True)
        ):
            fast, full = zip(*both, strict=True)
            parts.append(f"{victim} {spearmanr(fast, full).statistic:.2f} ({len(both)} plans)")
    if not parts:
        return []
    return [
        f"Agreement of the two kinds of retraining on these plans (Spearman): {', '.join(parts)}."
    ]


def paper_table(rows: Sequence[Row]) -> str:
    """Return the paper's numbers for the same dataset, attackers and victims."""
    published = TABLE3.get(rows[0].cell.label, {})

    def cell(own: Sequence[Row]) -> str:
        first = own[0].cell
        if first.entry not in published or first.victim not in TABLE3_VICTIMS:
            return "-"
        return f"{published[first.entry][TABLE3_VICTIMS.index(first.victim)]:,}"

    return _grid([row for row in rows if row.cell.entry in published] or rows[:1], cell)


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
    ours = {k: m for k, v in _by_platform(rows).items() if (m := _means(v, HEURISTIC_ENTRIES))}
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
        for entry in _winners(values, HEURISTIC_ENTRIES)
    )


def interquartile_mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the middle half; the quarter at each end is cut off, in fractions of a value."""
    ordered = np.sort(values)
    n = len(ordered)
    weights = np.clip(np.minimum(np.arange(1, n + 1) - n / 4, 3 * n / 4 - np.arange(n)), 0, 1)
    return float((ordered * weights).sum() / weights.sum())


# -- claims ----------------------------------------------------------------------------------------


def claims(rows: Sequence[Row]) -> str:
    """Return which of the paper's claims hold in these rows, worked out from them."""
    cells = _by_platform(rows)
    lines = [
        f"- Cells (dataset and victim) with results: {len(cells)}. Attackers are compared by means over the "
        "seeds that all of them have."
    ]
    paper_entries = (*HEURISTIC_ENTRIES, "conslop", "appgrad", "poisonrec")
    with_all = {k: m for k, v in cells.items() if (m := _means(v, paper_entries))}
    if with_all:
        best = Counter(e for v in with_all.values() for e in _winners(v, paper_entries))
        lines.append(
            f"- Best of the paper's seven attacks, by mean: {_counted(best)} (paper: poisonrec in all but "
            "CoVisitation, where conslop wins on 3 of 4 datasets)."
        )
        others = [
            f"{entry} on {dataset} {victim}"
            for (dataset, victim), means in with_all.items()
            for entry in _winners(means, paper_entries)
            if entry != "poisonrec"
        ]
        if others:
            lines.append(f"- Where it is not poisonrec: {', '.join(others)}.")
    everything = {
        k: m
        for k, v in cells.items()
        if "poisonrec" in v and len(m := _means(v, _with_all_seeds(v))) > 1
    }
    if everything:
        best = Counter(e for v in everything.values() for e in _winners(v, list(v)))
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
        both = {k: m for k, v in cells.items() if (m := _means(v, (better, worse)))}
        if both:
            above, equal = (
                sum(test(v[better], v[worse]) for v in both.values()) for test in (gt, eq)
            )
            tied = f", equal in {equal}" if equal else ""
            lines.append(f"- {better} above {worse}: {above} of {len(both)} cells{tied}.")
    ratios = [
        f"{dataset} {victim} {means['poisonrec-bplain'] / means['poisonrec']:.2f}"
        for (dataset, victim), v in cells.items()
        if (means := _means(v, ("poisonrec", "poisonrec-bplain"))) and means["poisonrec"]
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
        if (row.cell.entry, row.cell.victim) == (
            "poisonrec",
            "CoVisitation",
        ) and plan_file.is_file():
            pairs.setdefault(row.cell.label, []).append(alternation(FakeProfiles.load(plan_file)))
    if pairs:
        shares_by_dataset = ", ".join(
            f"{dataset} {observed:.0%} ({expected:.0%})"
            for dataset, values in pairs.items()
            for observed, expected in [np.mean(values, axis=0)]
        )
        lines.append(
            "- Share of consecutive clicks in poisonrec's plans on CoVisitation that join a target and "
            "another item, in brackets that of a random order (paper: it learns to alternate): "
            f"{shares_by_dataset}."
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


def _by_platform(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """Return RecNum: platform, then attacker, then seed."""
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        entries = found.setdefault((row.cell.label, row.cell.victim), {})
        entries.setdefault(row.cell.entry, {})[row.cell.seed] = row.rec_num
    return found


def _means(by_entry: Mapping[str, Mapping[int, float]], entries: Sequence[str]) -> dict[str, float]:
    """Return each attacker's mean over the seeds that all of `entries` have; nothing if there is none."""
    having = [set(by_entry.get(entry, ())) for entry in entries]
    seeds = set.intersection(*having) if having else set()
    if not seeds:
        return {}
    return {
        entry: float(np.mean([by_entry[entry][seed] for seed in sorted(seeds)]))
        for entry in entries
    }


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


def _winners(means: Mapping[str, float], entries: Sequence[str]) -> list[str]:
    """Return the entries with the largest mean, all where they tie, and none where nobody has anything."""
    largest = max(means[entry] for entry in entries)
    return [entry for entry in entries if means[entry] == largest] if largest else []


def _counted(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered)


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
