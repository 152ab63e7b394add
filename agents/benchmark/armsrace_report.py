"""What `recattack bench armsrace` reports: rows per round, curves, and what is left at the end."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, cast

import numpy as np

from agents.benchmark.armsrace_race import ADAPTIVE, NO_DETECTOR, OPPONENTS, STATIC, Race
from agents.benchmark.defense_report import interval
from agents.benchmark.tables import markdown_table


class RoundRow(TypedDict):
    """One round of one race; see `armsrace_race.run_race` for what the numbers are."""

    dataset: str
    victim: str
    attacker: str
    opponent: str
    seed: int
    round: int
    max_rec_num: int
    n_users: int
    n_fake_users: int
    k: int
    rec_num: float
    policy_rec_num: float
    clean_rec_num: int
    n_queries: int
    target_share: float
    auc_before: float
    recall_before: float
    auc_after: float
    recall_after: float
    n_dropped: float
    n_genuine_flagged: float
    n_genuine_dropped: int
    clean_hr: float
    clean_ndcg: float
    hr: float
    ndcg: float


_OF_RACE = ("max_rec_num", "n_users", "n_fake_users", "k")
_NAMED = ("dataset", "victim", "attacker", "opponent", "seed")


def rows_of(found: Sequence[tuple[Race, Mapping[str, object]]]) -> list[RoundRow]:
    """Return one row per round of some finished races."""
    rows: list[RoundRow] = []
    for race, result in found:
        rounds = result["rounds"]
        assert isinstance(rounds, list)  # noqa: S101  # as `run_race` writes it
        for number, measured in enumerate(rounds):
            named = {name: getattr(race, name) for name in _NAMED}
            of_race = {name: result[name] for name in _OF_RACE}
            rows.append(cast(RoundRow, {**named, "round": number, **of_race, **measured}))
    return rows


def final_means(rows: Sequence[RoundRow]) -> dict[str, dict[str, float]]:
    """Return means over everything of the last round, by opponent: share of what RecNum can be, and more."""
    last = [row for row in rows if row["round"] == max(each["round"] for each in rows)]

    def by_opponent(value: Callable[[RoundRow], float]) -> dict[str, float]:
        return {
            opponent: float(np.mean(values))
            for opponent in OPPONENTS
            if (values := [value(row) for row in last if row["opponent"] == opponent])
        }

    return {
        "rec_num_share": by_opponent(lambda row: row["rec_num"] / row["max_rec_num"]),
        "auc": by_opponent(lambda row: row["auc_before"]),
        "dropped_share": by_opponent(lambda row: row["n_dropped"] / row["n_fake_users"]),
        "hr": by_opponent(lambda row: row["hr"]),
    }


def report(rows: Sequence[RoundRow]) -> str:
    """Return Markdown: what is left in the last round, then curves, victim by victim."""
    if not rows:
        return "No race is finished yet."
    victims = dict.fromkeys(row["victim"] for row in rows)
    curves = (_curves([row for row in rows if row["victim"] == victim]) for victim in victims)
    return "\n\n".join([_ends(rows), *curves])


def _ends(rows: Sequence[RoundRow]) -> str:
    """Return the table of the last round, with the share of what the same attacker has undefended."""
    last_round = max(row["round"] for row in rows)
    last = [row for row in rows if row["round"] == last_round]
    table = []
    for victim, attacker, opponent in dict.fromkeys(
        (row["victim"], row["attacker"], row["opponent"]) for row in last
    ):
        own = _of(last, victim, attacker, opponent)
        whole = {row["seed"]: row["rec_num"] for row in _of(last, victim, attacker, NO_DETECTOR)}
        kept = [row["rec_num"] / whole[row["seed"]] for row in own if whole.get(row["seed"])]
        is_screened = opponent != NO_DETECTOR
        table.append(
            [
                victim,
                attacker,
                opponent,
                _number([row["rec_num"] for row in own]),
                interval(kept) if kept and is_screened else "-",
                _two([row["auc_before"] for row in own]),
                _two([row["recall_before"] for row in own]),
                _one([row["n_dropped"] for row in own]) if is_screened else "-",
                _one([row["n_genuine_flagged"] for row in own]) if is_screened else "-",
                _four([row["clean_hr"] for row in own]),
                _four([row["hr"] for row in own]),
                _four([row["ndcg"] for row in own]),
            ]
        )
    first = rows[0]
    k, n_fake, n_seeds = first["k"], first["n_fake_users"], len({row["seed"] for row in rows})
    header = [
        "victim", "attacker", "detector", "RecNum", "of undefended", "AUC", "recall at 1 %",
        f"dropped of {n_fake}", "genuine flagged", f"HR@{k} clean", f"HR@{k}", f"NDCG@{k}",
    ]  # fmt: skip
    return (
        f"**Round {last_round}, the last one** ({first['dataset']}, {first['n_users']:,} genuine users, "
        f"{n_seeds} seeds, mean ± half of the 95 % interval; AUC and recall are those of the detector "
        f"that judged the round, without one those of the detector that has learnt rules of thumb)\n\n"
        f"{markdown_table(header, table)}"
    )


def _curves(rows: Sequence[RoundRow]) -> str:
    """Return the table of one victim's rounds."""
    n_rounds = 1 + max(row["round"] for row in rows)
    table: list[list[object]] = []
    for attacker, opponent in dict.fromkeys((row["attacker"], row["opponent"]) for row in rows):
        own = [row for row in rows if (row["attacker"], row["opponent"]) == (attacker, opponent)]

        def line(
            name: str,
            as_text: Callable[[Sequence[float]], str],
            value: Callable[[RoundRow], float],
            own: Sequence[RoundRow] = own,
            label: tuple[str, str] = (attacker, opponent),
        ) -> list[object]:
            cells = [
                as_text([value(row) for row in own if row["round"] == number])
                for number in range(n_rounds)
            ]
            return [*label, name, *cells]

        table.append(line("RecNum", _number, lambda row: row["rec_num"]))
        if opponent != NO_DETECTOR:
            table.append(line("AUC", _two, lambda row: row["auc_before"]))
            if opponent == ADAPTIVE:
                table.append(line("AUC after", _two, lambda row: row["auc_after"]))
            table.append(line("recall at 1 %", _two, lambda row: row["recall_before"]))
            table.append(line("dropped", _one, lambda row: row["n_dropped"]))
            table.append(line("genuine flagged", _one, lambda row: row["n_genuine_flagged"]))
        table.append(line(f"HR@{rows[0]['k']}", _four, lambda row: row["hr"]))
    header = ["attacker", "detector", "mean", *(f"round {number}" for number in range(n_rounds))]
    return f"**{rows[0]['victim']}: rounds**\n\n{markdown_table(header, table)}"


def _of(rows: Sequence[RoundRow], victim: str, attacker: str, opponent: str) -> list[RoundRow]:
    named = (victim, attacker, opponent)
    return [row for row in rows if (row["victim"], row["attacker"], row["opponent"]) == named]


def _number(values: Sequence[float]) -> str:
    return f"{np.mean(values):,.0f}" if len(values) else "-"


def _one(values: Sequence[float]) -> str:
    return f"{np.mean(values):,.1f}" if len(values) else "-"


def _two(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f}" if len(values) else "-"


def _four(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f}" if len(values) else "-"


LABELS: Mapping[str, str] = {
    NO_DETECTOR: "no detector",
    STATIC: "learnt once",
    ADAPTIVE: "retrained every round",
}
"""What pictures call opponents."""
