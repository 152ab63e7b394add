"""Tables of `recattack bench defense`, from its rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from agents.benchmark.comparison import with_interval
from agents.benchmark.protections import NONE, WEIGHTED
from agents.benchmark.rows import HEURISTIC_ENTRIES
from agents.benchmark.tables import markdown_table
from agents.benchmark.transfer_table import MODES
from recattack_gym.core import FakeProfiles

PlanRow = Mapping[str, Any]
"""A plan on a platform of PoisonRec's with a defence."""
FieldRow = Mapping[str, Any]
"""A victim that was trained from scratch under an attack, with a defence."""
Seen = Mapping[str, Any]
"""How visible an attack is to a detector."""
Learned = Mapping[str, Any]
"""What an attacker that asked found, in the setting of the papers on robust training."""
FIELD_NUMBERS = ("t_hr", "t_hr_trained", "t_ndcg", "recall", "ndcg")
_NO_ATTACK = "none"
MATTERS = 0.01
"""Share of the largest RecNum there can be; of attacks that reach less there is nothing to stop."""


def report(
    rows: Sequence[PlanRow],
    adaptive: Sequence[PlanRow],
    field: Sequence[FieldRow],
    seen: Sequence[Seen],
    learned: Sequence[Learned] = (),
) -> str:
    """Return everything as Markdown."""
    parts: list[str] = []
    for dataset, retrain in dict.fromkeys((row["dataset"], row["retrain"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["retrain"]) == (dataset, retrain)]
        parts += _platform_part(own, f"{dataset}, {MODES[retrain]}")
    if adaptive:
        parts += [
            "## Attackers that adapt\n\nThese asked the defended platforms themselves, with "
            f"{adaptive[0]['n_queries']} queries each: RecNum after screening is all that they saw. The "
            'plans above have not seen any defence. "share": of what the same attacker reaches with as many '
            "queries on the undefended platform." + _weighed_down(adaptive),
            attack_table(adaptive, with_place=True),
        ]
    of_plans = [each for each in seen if each["victim"] is not None]
    if of_plans:
        parts += [
            "## Visibility of the plans\n\nHow far fake users stand out to each detector; no victim takes "
            "part in this. Recall: with 1 % of the genuine users flagged. AP: average precision, by chance "
            "the share of fake users. Mean over the victims that attacks were made against and seeds.",
            visibility_table(of_plans),
        ]
    for dataset, victim in dict.fromkeys((row["dataset"], row["victim"]) for row in field):
        own = [row for row in field if (row["dataset"], row["victim"]) == (dataset, victim)]
        parts += [
            f"## {dataset}, {victim} trained from scratch on 1 % fake users\n\n"
            "Five existing items are promoted; the whole catalogue is ranked. The first five numbers in per "
            "cent, over genuine users, mean over seeds ± half of the 95 % interval (Student's t). \"Of the "
            'trained": T-HR@50 of those who are not kept out of training; whom a detector keeps out is shown '
            "what is most popular in what is trained on. "
            '"Share": T-HR@50 of the trained over that of the undefended victim.'
            + _weighed_down(own),
            field_table(own),
            "Means over the attacks, seed by seed against the undefended victim under the same attack; no "
            "attack is not among them.",
            field_summary(own),
        ]
    in_field = [each for each in seen if each["victim"] is None]
    if in_field:
        parts += [
            "Visibility of these attacks, by the clicks that victims are trained on. Recall: with 1 % of the "
            "genuine users flagged. AP: average precision, by chance the share of fake users. Mean over "
            "seeds and, of attackers that ask, over the victims that they asked.",
            visibility_table(in_field),
        ]
    if learned:
        parts += [
            "## What those who ask were told\n\nThese asked the undefended victim, fine-tuned for every "
            "query, for RecNum: the targets' places in the genuine users' first "
            f"{learned[0]['k']} items. The best that they tried is their attack. Victims are trained with it "
            "from scratch, so what tables above show of it is a transfer. Mean over seeds.",
            learned_table(learned),
        ]
    return "\n\n".join(parts)


def _platform_part(own: Sequence[PlanRow], title: str) -> list[str]:
    k = own[0]["k"]
    parts = [
        f"## {title}\n\nAttacks were made against the undefended victim and do not adapt to the defence. "
        "Share of the undefended RecNum that they keep: mean over victims and rules of thumb, which look at "
        "the log alone, over victims and attackers that queried, whose attacks lose something on any victim "
        "that is trained in another way, and the largest. "
        "Fake users kept out of training; and the price without any attack: genuine users kept out, and "
        f"HR@{k} and NDCG@{k} of all genuine users, those who are kept out included, against no defence.",
        summary_table(own),
    ]
    for victim in dict.fromkeys(row["victim"] for row in own):
        some = [row for row in own if row["victim"] == victim]
        parts += [
            f"### {victim}\n\nWithout any attack.",
            price_table(some),
            "Under attack: RecNum, mean over seeds ± half of the 95 % interval (Student's t); its share of "
            "the undefended, where that is at least 1 % of what there can be; genuine users among the "
            "flagged; quality for genuine users." + _weighed_down(some),
            attack_table(some),
        ]
    return parts


# -- PoisonRec's platforms -------------------------------------------------------------------------


def shares(rows: Sequence[PlanRow]) -> dict[tuple[str, str, str], float]:
    """Return what attacks keep: (victim, attacker, defence) -> RecNum over the undefended.

    Args:
        rows: Of one dataset and way of retraining.

    Returns:
        Ratios of sums over the seeds that both have; nothing where there is no such seed, or where the
        undefended attack reaches less than 1 % of what there can be: that would be a ratio of accidents.
    """
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    most: dict[tuple[str, int], float] = {}
    for row in rows:
        key = row["victim"], row["attacker"], row["defense"]
        found.setdefault(key, {})[row["seed"]] = row["rec_num"]
        most[row["victim"], row["seed"]] = row["max_rec_num"]
    result = {}
    for (victim, attacker, defense), by_seed in found.items():
        base = found.get((victim, attacker, NONE), {})
        both = sorted(by_seed.keys() & base.keys())
        below = sum(base[seed] for seed in both)
        if below > MATTERS * sum(most[victim, seed] for seed in both):
            result[victim, attacker, defense] = sum(by_seed[seed] for seed in both) / below
    return result


def price(rows: Sequence[PlanRow], name: str) -> dict[tuple[str, str], float]:
    """Return what defences change without any attack: (victim, defence) -> relative change, 0 for none.

    Args:
        rows: Of one dataset and way of retraining.
        name: `"clean_hr"` or `"clean_ndcg"`.

    Returns:
        Ratio of means over the seeds that both have, minus 1; nothing where it was not measured.
    """
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row[name] is not None:
            found.setdefault((row["victim"], row["defense"]), {})[row["seed"]] = row[name]
    result = {}
    for (victim, defense), by_seed in found.items():
        base = found.get((victim, NONE), {})
        both = sorted(by_seed.keys() & base.keys())
        below = sum(base[seed] for seed in both)
        if below > 0:
            result[victim, defense] = sum(by_seed[seed] for seed in both) / below - 1.0
    return result


def summary_table(rows: Sequence[PlanRow]) -> str:
    """Return defences against what they stop and cost, over all victims and attackers."""
    kept = shares(rows)
    changes = [price(rows, name) for name in ("clean_hr", "clean_ndcg")]
    lines = []
    for defense in _in_order(row["defense"] for row in rows):
        own = [row for row in rows if row["defense"] == defense]
        some = {key: value for key, value in kept.items() if key[2] == defense}
        worst = max(some, key=lambda key: some[key]) if some else None
        lines.append(
            (
                defense,
                len({row["victim"] for row in own}),
                _two(_mean(v for k, v in some.items() if k[1] in HEURISTIC_ENTRIES)),
                _two(_mean(v for k, v in some.items() if k[1] not in HEURISTIC_ENTRIES)),
                "-" if worst is None else f"{some[worst]:.2f}",
                "-" if worst is None or defense == NONE else f"{worst[1]} on {worst[0]}",
                _dropped(own),
                _count(row["clean_n_flagged"] for row in own),
                *(
                    _percent(_mean(v for (_, name), v in change.items() if name == defense))
                    for change in changes
                ),
            )
        )
    k = rows[0]["k"]
    header = (
        "defence", "victims", "rules of thumb", "queried", "largest", "of", "fakes dropped",
        "genuine kept out", f"HR@{k}", f"NDCG@{k}",
    )  # fmt: skip
    return markdown_table(header, lines)


def price_table(rows: Sequence[PlanRow]) -> str:
    """Return defences of one victim without any attack."""
    changes = {name: price(rows, name) for name in ("clean_hr", "clean_ndcg")}
    k = rows[0]["k"]
    lines = []
    for defense in _in_order(row["defense"] for row in rows):
        # one row per seed: all attackers have the same platform
        by_seed = {row["seed"]: row for row in rows if row["defense"] == defense}
        own = list(by_seed.values())
        quality: list[str] = []
        for name, change in changes.items():
            values = [row[name] for row in own if row[name] is not None]
            quality.append(f"{np.mean(values):.4f}" if values else "-")
            quality.append(_percent(change.get((rows[0]["victim"], defense))))
        lines.append(
            (
                defense,
                own[0]["trained"],
                with_interval([row["clean_rec_num"] for row in own]),
                _count(row["clean_n_flagged"] for row in own),
                *quality,
            )
        )
    header = (
        "defence", "trained", "RecNum", "genuine kept out", f"HR@{k}", "change", f"NDCG@{k}", "change",
    )  # fmt: skip
    return markdown_table(header, lines)


def attack_table(rows: Sequence[PlanRow], *, with_place: bool = False) -> str:
    """Return what attacks do under each defence; the first columns say on what if there are several.

    Args:
        rows: Of one way of retraining, and of one dataset and victim unless `with_place`.
        with_place: Whether rows name dataset and victim.
    """
    lines = []
    for dataset, victim in dict.fromkeys((row["dataset"], row["victim"]) for row in rows):
        here = [row for row in rows if (row["dataset"], row["victim"]) == (dataset, victim)]
        kept = shares(here)
        for attacker in dict.fromkeys(row["attacker"] for row in here):
            some = [row for row in here if row["attacker"] == attacker]
            for defense in _in_order(row["defense"] for row in some):
                own = [row for row in some if row["defense"] == defense]
                lines.append(
                    (
                        *((dataset, victim) if with_place else ()),
                        attacker,
                        defense,
                        with_interval([row["rec_num"] for row in own]),
                        _two(kept.get((victim, attacker, defense))),
                        _dropped(own),
                        _count(row["n_genuine_flagged"] for row in own),
                        _four(row["hr"] for row in own),
                        _four(row["ndcg"] for row in own),
                    )
                )
    k = rows[0]["k"]
    header = (
        *(("dataset", "victim") if with_place else ()),
        "attacker", "defence", "RecNum", "share", "fakes dropped", "genuine flagged", f"HR@{k}", f"NDCG@{k}",
    )  # fmt: skip
    return markdown_table(header, lines)


def visibility_table(seen: Sequence[Seen]) -> str:
    """Return attackers against detectors: how visible their fake users are."""
    detectors = list(dict.fromkeys(each["detector"] for each in seen))
    numbers = (("auc", "AUC"), ("average_precision", "AP"), ("recall", "recall"))
    lines = []
    for dataset, attacker in dict.fromkeys((each["dataset"], each["attacker"]) for each in seen):
        own = [each for each in seen if (each["dataset"], each["attacker"]) == (dataset, attacker)]
        lines.append(
            (
                dataset,
                attacker,
                *(
                    _two(_mean(each[name] for each in own if each["detector"] == detector))
                    for detector in detectors
                    for name, _ in numbers
                ),
            )
        )
    header = ("dataset", "attacker", *(f"{d}: {text}" for d in detectors for _, text in numbers))
    return markdown_table(header, lines)


def platform_means(rows: Sequence[PlanRow]) -> dict[str, object]:
    """Return means per defence over all platforms: what attacks keep, and the price.

    Returns:
        `rec_num_share`, `clean_hr_change` and `fakes_dropped` (share), each a mapping defence -> number;
        defences without any are left out.
    """
    kept: dict[str, list[float]] = {}
    changed: dict[str, list[float]] = {}
    for dataset, retrain in dict.fromkeys((row["dataset"], row["retrain"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["retrain"]) == (dataset, retrain)]
        for (_, _, defense), share in shares(own).items():
            kept.setdefault(defense, []).append(share)
        for (_, defense), change in price(own, "clean_hr").items():
            changed.setdefault(defense, []).append(change)
    dropped: dict[str, list[float]] = {}
    for row in rows:
        dropped.setdefault(row["defense"], []).append(row["n_dropped"] / row["n_fake"])
    return {
        name: {defense: float(np.mean(values)) for defense, values in found.items()}
        for name, found in (
            ("rec_num_share", kept),
            ("clean_hr_change", changed),
            ("fakes_dropped", dropped),
        )
    }


# -- the setting of the papers on robust training --------------------------------------------------


def field_table(rows: Sequence[FieldRow]) -> str:
    """Return attackers and defences of one dataset and victim: targets shown, quality, who was flagged."""
    base = {(row["attacker"], row["seed"]): row for row in rows if row["defense"] == NONE}
    lines = []
    for attacker in dict.fromkeys(row["attacker"] for row in rows):
        some = [row for row in rows if row["attacker"] == attacker]
        for defense in _in_order(row["defense"] for row in some):
            own = [row for row in some if row["defense"] == defense]
            pairs = [(row, base.get((attacker, row["seed"]))) for row in own]
            below = sum(other["t_hr_trained"] for _, other in pairs if other is not None)
            above = sum(row["t_hr_trained"] for row, other in pairs if other is not None)
            lines.append(
                (
                    "(no attack)" if attacker == _NO_ATTACK else attacker,
                    defense,
                    *(interval([100.0 * row[name] for row in own]) for name in FIELD_NUMBERS),
                    _two(above / below if below > 0 else None),
                    _dropped(own) if own[0]["n_fake"] else "-",
                    _count(row["n_genuine_flagged"] for row in own),
                )
            )
    header = (
        "attacker", "defence", "T-HR@50", "of the trained", "T-NDCG@50", "Recall@20", "NDCG@20", "share",
        "fakes dropped", "genuine flagged",
    )  # fmt: skip
    return markdown_table(header, lines)


def field_summary(rows: Sequence[FieldRow]) -> str:
    """Return per defence what is left of T-HR@50, and how quality changes: means over attacks and seeds."""
    attacked = [row for row in rows if row["attacker"] != _NO_ATTACK]
    base = {(row["attacker"], row["seed"]): row for row in attacked if row["defense"] == NONE}
    lines = []
    for defense in _in_order(row["defense"] for row in attacked):
        own = [row for row in attacked if row["defense"] == defense]
        pairs = [
            (row, base[row["attacker"], row["seed"]])
            for row in own
            if (row["attacker"], row["seed"]) in base
        ]
        below = sum(other["t_hr_trained"] for _, other in pairs)
        above = sum(row["t_hr_trained"] for row, _ in pairs)
        changes = [
            _percent(
                _mean(row[name] / other[name] - 1.0 for row, other in pairs if other[name] > 0)
            )
            for name in ("recall", "ndcg")
        ]
        lines.append((defense, len(pairs), _two(above / below if below > 0 else None), *changes))
    return markdown_table(("defence", "runs", "share", "Recall@20", "NDCG@20"), lines)


def what_was_told(plan: FakeProfiles) -> dict[str, object]:
    """Return what a learner's queries brought, from the header of its plan.

    Args:
        plan: Of `learn`.

    Returns:
        Plain JSON values. `first_rec_num` and `last_rec_num`: mean over the first and over the last batch of
        queries. `curve` and the others: as in the header.
    """
    told: Mapping[str, Any] = plan.header
    curve, sizes = np.array(told["curve"]), np.array(told["batch_sizes"])
    names = ("k", "n_queries", "clean_rec_num", "rec_num", "max_rec_num", "curve", "cpu_seconds")
    return {
        "first_rec_num": float(curve[: sizes[0]].mean()),
        "last_rec_num": float(curve[-sizes[-1] :].mean()),
        **{name: told[name] for name in names},
    }


def learned_table(learned: Sequence[Learned]) -> str:
    """Return what attackers that asked were told: without an attack, at first, at last, and at best."""
    lines = []
    keys = dict.fromkeys((each["dataset"], each["victim"], each["attacker"]) for each in learned)
    for dataset, victim, attacker in keys:
        own = [
            each
            for each in learned
            if (each["dataset"], each["victim"], each["attacker"]) == (dataset, victim, attacker)
        ]
        numbers = ("clean_rec_num", "first_rec_num", "last_rec_num", "rec_num", "max_rec_num")
        lines.append(
            (
                dataset,
                victim,
                attacker,
                f"{own[0]['n_queries']:,}",
                *(f"{np.mean([each[name] for each in own]):,.0f}" for name in numbers),
            )
        )
    header = (
        "dataset", "asked", "attacker", "queries", "no attack", "first batch", "last batch", "best",
        "there can be",
    )  # fmt: skip
    return markdown_table(header, lines)


def field_means(rows: Sequence[FieldRow]) -> dict[str, object]:
    """Return means per defence over attacks, victims, datasets and seeds: those that all defences have.

    Returns:
        `t_hr`, `t_hr_trained`, `t_ndcg`, `recall` and `ndcg` under attack, `clean_recall` without; each a
        mapping defence -> number in `[0, 1]`, empty if defences have nothing in common.
    """
    attacked = [row for row in rows if row["attacker"] != _NO_ATTACK]
    clean = [row for row in rows if row["attacker"] == _NO_ATTACK]
    return {
        **{name: _by_defense(attacked, name) for name in FIELD_NUMBERS},
        "clean_recall": _by_defense(clean, "recall"),
    }


def _by_defense(rows: Sequence[FieldRow], name: str) -> dict[str, float]:
    defenses = _in_order(row["defense"] for row in rows)
    found: dict[tuple[object, ...], dict[str, float]] = {}
    for row in rows:
        run = (row["dataset"], row["victim"], row["attacker"], row["seed"])
        found.setdefault(run, {})[row["defense"]] = row[name]
    common = [run for run in found.values() if len(run) == len(defenses)]
    if not common:
        return {}
    return {defense: float(np.mean([run[defense] for run in common])) for defense in defenses}


def interval(values: Sequence[float]) -> str:
    """Return `mean ± half width` of the 95 % interval by Student's t, or the mean alone of one value."""
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return f"{mean:.3g}"
    half = float(student.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / n**0.5
    return f"{mean:.3g} ± {half:.2g}"


# -- cells -----------------------------------------------------------------------------------------


def _weighed_down(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a remark for tables with flagged users, if not all of these are kept out of training."""
    if not any(WEIGHTED in row["defense"] for row in rows):
        return ""
    return (
        f" Behind `{WEIGHTED}` twice as many are flagged, and a lottery lets about half of them take part in "
        "training: those who do are among the genuine flagged, not among the fakes dropped."
    )


def _in_order(labels: Iterable[str]) -> list[str]:
    """Return distinct labels as they come, no defence first."""
    found = list(dict.fromkeys(labels))
    return [label for label in found if label == NONE] + [label for label in found if label != NONE]


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(np.mean(known)) if known else None


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _four(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.4f}" if known else "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100.0 * value:+.1f} %"


def _count(values: Iterable[float]) -> str:
    mean = float(np.mean(list(values)))
    return f"{mean:,.0f}" if mean.is_integer() else f"{mean:,.1f}"


def _dropped(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{_count(row['n_dropped'] for row in rows)} of {_count(row['n_fake'] for row in rows)}"
