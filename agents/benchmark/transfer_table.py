"""What attacks do to victims that they were not made against: matrices and their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.comparison import with_interval
from agents.benchmark.plans import Plan
from agents.benchmark.tables import markdown_table
from recattack_gym.core import ArtifactError
from recattack_gym.victims import VICTIMS
from recattack_gym.victims.base import Retrain

NO_ATTACK = "(no attack)"
"""Label of what victims show before any attack."""
MODES: Mapping[Retrain, str] = {"finetune": "fine-tuning", "full": "full retraining"}


@dataclass(frozen=True)
class Evaluation:
    """One attack injected into one victim."""

    plan: Plan
    """The attack, and what it was made against."""
    tested_on: str
    """The victim that it was injected into."""
    retrain: Retrain
    """How that victim was retrained."""
    result: Mapping[str, object]
    """What `transfer.evaluate` stored."""

    @property
    def rec_num(self) -> int:
        """RecNum of the plan on `tested_on`."""
        return int(str(self.result["rec_num"]))

    @property
    def clean_rec_num(self) -> int:
        """RecNum of `tested_on` without any attack."""
        return int(str(self.result["clean_rec_num"]))


@dataclass(frozen=True)
class Matrix:
    """Trained-on against tested-on for one attacker on one dataset with one way of retraining."""

    dataset: str
    """Name of the dataset."""
    attacker: str
    """Label of the attacker."""
    retrain: Retrain
    """How victims were retrained."""
    victims: tuple[str, ...]
    """Both axes, V victims in the order of the registry."""
    rec_nums: NDArray[np.float64]
    """RecNum, shape `(V, V, n_seeds)`: trained on, tested on; NaN where it was not measured."""
    clean: NDArray[np.float64]
    """RecNum without any attack, shape `(V, n_seeds)`; NaN where it was not measured."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """RecNum over that of the attack made against the tested victim itself, shape `(V, V)`.

        Ratio of means over the seeds that have both; NaN where there are none, or where the victim's
        own attack reaches nothing.
        """
        return _ratio(self.rec_nums, np.einsum("bbs->bs", self.rec_nums)[None])

    @property
    def clean_shares(self) -> NDArray[np.float64]:
        """What is shown without any attack, over the same, shape `(V,)`."""
        return _ratio(self.clean, np.einsum("bbs->bs", self.rec_nums))

    @property
    def shares_elsewhere(self) -> NDArray[np.float64]:
        """`shares` without the victims' own, shape `(V, V)`."""
        shares = self.shares
        np.fill_diagonal(shares, np.nan)
        return shares


def matrices(evaluations: Sequence[Evaluation]) -> list[Matrix]:
    """Return one matrix per dataset, way of retraining and attacker.

    Raises:
        ArtifactError: If platforms of one dataset and seed differ in their candidate lists, so that their
            results do not belong together.
    """
    check_same_lists(evaluations)
    groups: dict[tuple[str, Retrain, str], list[Evaluation]] = {}
    for each in evaluations:
        key = each.plan.cell.dataset, each.retrain, each.plan.cell.entry
        groups.setdefault(key, []).append(each)
    return [_matrix(group) for group in groups.values()]


def check_same_lists(evaluations: Sequence[Evaluation]) -> None:
    """Refuse results that were counted in different candidate lists, or over different users.

    Raises:
        ArtifactError: If two of one dataset and seed were.
    """
    seen: dict[tuple[str, int], tuple[str, object]] = {}
    for each in evaluations:
        platform = each.plan.cell.dataset, each.plan.cell.seed
        lists = each.result["lists"]
        victim, expected = seen.setdefault(platform, (each.tested_on, lists))
        if lists != expected:
            raise ArtifactError(
                f"results of {platform[0]}, seed {platform[1]}, must be counted in the same candidate "
                f"lists, got others on {each.tested_on} than on {victim}: remove the older ones"
            )


def report(found: Sequence[Matrix]) -> str:
    """Return everything as Markdown: per dataset and way of retraining a summary, then every matrix."""
    parts = []
    for dataset, retrain in dict.fromkeys((m.dataset, m.retrain) for m in found):
        own = [m for m in found if (m.dataset, m.retrain) == (dataset, retrain)]
        parts += [
            f"## {dataset}, {MODES[retrain]}\n\nShare of what an attack made against the victim itself "
            "reaches that attacks made against other victims reach, mean over these.",
            summary_table(own),
        ]
        for matrix in own:
            parts += [
                f"### {matrix.attacker}\n\nRecNum, mean over seeds ± half of the 95 % interval (Student's "
                "t). Rows: made against; columns: injected into.",
                rec_num_table(matrix),
                'The same over what the attack made against the column\'s victim reaches. "elsewhere": mean '
                "without the row's own.",
                share_table(matrix),
            ]
    return "\n\n".join(parts)


def summary_table(found: Sequence[Matrix]) -> str:
    """Return attackers against victims: mean share that plans made against other victims reach."""
    victims = list(dict.fromkeys(victim for matrix in found for victim in matrix.victims))
    lines = []
    for matrix in found:
        means = dict(zip(matrix.victims, _means(matrix.shares_elsewhere.T), strict=True))
        values = [means.get(victim, np.nan) for victim in victims]
        lines.append((matrix.attacker, *map(as_text, [*values, *_means(np.array([values]))])))
    return markdown_table(("injected into", *victims, "mean"), lines)


def rec_num_table(matrix: Matrix) -> str:
    """Return RecNum with intervals over seeds, and without any attack."""
    return markdown_table(
        ("made against", *matrix.victims),
        [
            (label, *map(_over_seeds, row))
            for label, row in zip(
                (*matrix.victims, NO_ATTACK), (*matrix.rec_nums, matrix.clean), strict=True
            )
        ],
    )


def share_table(matrix: Matrix) -> str:
    """Return shares, their mean over other victims, and the share that needs no attack."""
    elsewhere = _means(matrix.shares_elsewhere)
    lines = [
        (victim, *map(as_text, row), as_text(mean))
        for victim, row, mean in zip(matrix.victims, matrix.shares, elsewhere, strict=True)
    ]
    clean = matrix.clean_shares
    lines.append((NO_ATTACK, *map(as_text, clean), as_text(_means(clean[None])[0])))
    return markdown_table(("made against", *matrix.victims, "elsewhere"), lines)


def as_text(share: float) -> str:
    """Return a share with two digits, or `-` where there is none."""
    return f"{share:.2f}" if np.isfinite(share) else "-"


def _matrix(group: Sequence[Evaluation]) -> Matrix:
    first = group[0]
    named = {name for each in group for name in (each.plan.cell.victim, each.tested_on)}
    victims = tuple(sorted(named, key=list(VICTIMS).index))
    seeds = sorted({each.plan.cell.seed for each in group})
    rec_nums = np.full((len(victims), len(victims), len(seeds)), np.nan)
    clean = np.full((len(victims), len(seeds)), np.nan)
    for each in group:
        trained, tested = victims.index(each.plan.cell.victim), victims.index(each.tested_on)
        seed = seeds.index(each.plan.cell.seed)
        rec_nums[trained, tested, seed] = each.rec_num
        clean[tested, seed] = each.clean_rec_num
    return Matrix(
        first.plan.cell.dataset, first.plan.cell.entry, first.retrain, victims, rec_nums, clean
    )


def _ratio(values: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ratio of sums over the last axis, where both are known; NaN where `own` has nothing."""
    both = np.isfinite(values) & np.isfinite(own)
    above = np.where(both, values, 0.0).sum(axis=-1)
    below = np.where(both, own, 0.0).sum(axis=-1)
    shares: NDArray[np.float64] = np.full(above.shape, np.nan)
    np.divide(above, below, out=shares, where=below > 0)
    return shares


def _means(rows: NDArray[np.float64]) -> list[float]:
    """Return the mean of every row without its NaN, NaN for a row of nothing else."""
    return [
        float(row[np.isfinite(row)].mean()) if np.isfinite(row).any() else np.nan for row in rows
    ]


def _over_seeds(values: NDArray[np.float64]) -> str:
    known = values[np.isfinite(values)]
    return with_interval(known.tolist()) if len(known) else "-"
