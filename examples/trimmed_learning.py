"""Does it help to leave out the ratings that fit worst, where an attack planted some?

Shilling profiles of the literature are added to a rated log, and ALS and LTS-MF (least trimmed squares) are
trained on it from scratch: how far does the prediction of the pushed items move, how well are held-out
genuine ratings predicted, and who is it that LTS-MF leaves out?

    python examples/trimmed_learning.py --dataset ml-100k
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.tables import markdown_table
from agents.shilling import Known, rating_profiles
from recattack_gym.core import ArgumentError, AttackBudget, AttackGoal, Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import LTSMF
from recattack_gym.victims.least_squares import TOP, RatingMatrix, matrix_of

VICTIMS: Mapping[str, Mapping[str, object]] = {
    "ALS": {"trim_share": 0.0},
    "LTS-MF, ratings": {"trim": "ratings"},
    "LTS-MF, users": {"trim": "users"},
}
"""What is compared: settings of LTS-MF, which is ALS where nothing is trimmed."""


class Result(NamedTuple):
    """Means over seeds; shares are of the ratings of that kind, `nan` without attack."""

    shift: float
    """How much higher pushed items are predicted for genuine users who have not rated them than by the same
    victim without attack, in points of the log's scale."""
    rmse: float
    """Root mean squared error of held-out genuine ratings, in points of the log's scale."""
    targets_trimmed: float
    """Share of the fake ratings of pushed items that were left out."""
    fillers_trimmed: float
    """Share of the other fake ratings that were left out."""
    genuine_trimmed: float
    """Share of the genuine ratings that were left out."""


class Task(NamedTuple):
    """A log that is trained on, what is held out, and what is pushed."""

    log: Interactions
    held_out: RatingMatrix
    targets: NDArray[np.int64]
    points: float
    """Of the log's scale per unit of what victims predict."""


def make_task(log: Interactions, n_targets: int, seed: int) -> Task:
    """Hold out a tenth of the ratings and choose seldom rated targets, 5 to 20 ratings each."""
    if log.ratings is None:
        raise ArgumentError("log must have ratings, got clicks: try ml-100k")
    rng = np.random.default_rng(seed)
    is_out = rng.random(len(log)) < 0.1
    train = log.select(~is_out)
    seldom = np.flatnonzero((train.item_popularity >= 5) & (train.item_popularity <= 20))
    targets = np.sort(rng.choice(seldom, n_targets, replace=False))
    whole = matrix_of(log)
    keys = whole.user_ids * log.n_items + whole.item_ids
    out = np.isin(keys, log.user_ids[is_out] * log.n_items + log.item_ids[is_out])
    held_out = RatingMatrix(
        whole.user_ids[out], whole.item_ids[out], whole.ratings[out], log.n_users, log.n_items
    )
    return Task(train, held_out, targets, float(np.ptp(log.ratings)) / (2.0 * TOP))


def predictions(
    victim: LTSMF, users: NDArray[np.int64], items: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return predictions of pairs, kept on the scale; shape `(n_pairs,)`."""
    raw: NDArray[np.float64] = np.clip(
        (victim.users[users] * victim.items[items]).sum(axis=1), -TOP, TOP
    )
    return raw


def measure(task: Task, attack: str, n_fakes: int, clean: LTSMF, seed: int) -> Result:
    """Plan an attack, train on it, and compare with the same victim without it, `clean`."""
    log, n_users = task.log, task.log.n_users
    poisoned = log
    if n_fakes > 0:
        profile_size = int(np.median(np.diff(log.indptr)))
        plan = rating_profiles(
            attack,
            Known.of(log),
            AttackGoal(target_items=tuple(task.targets.tolist())),
            AttackBudget(n_fake_users=n_fakes, profile_size=profile_size),
            np.random.default_rng(seed),
        )
        poisoned = log.with_fake_users(plan.item_ids, plan.ratings)
    victim = LTSMF(clean.config).fit(poisoned, np.random.default_rng(seed))
    matrix = matrix_of(poisoned)
    is_fake, on_target = matrix.user_ids >= n_users, np.isin(matrix.item_ids, task.targets)
    users, targets = (
        np.repeat(np.arange(n_users), len(task.targets)),
        np.tile(task.targets, n_users),
    )
    unrated = ~log.has(users, targets)
    users, targets = users[unrated], targets[unrated]
    moved = predictions(victim, users, targets) - predictions(clean, users, targets)
    own = task.held_out
    errors = own.ratings - predictions(victim, own.user_ids, own.item_ids)

    def trimmed(who: NDArray[np.bool_]) -> float:
        return float((~victim.is_kept[who]).mean()) if who.any() else float("nan")

    return Result(
        float(moved.mean()) * task.points,
        float(np.sqrt((errors**2).mean())) * task.points,
        trimmed(is_fake & on_target),
        trimmed(is_fake & ~on_target),
        trimmed(~is_fake),
    )


def main(
    dataset: str = "ml-100k",
    log: Interactions | None = None,
    attacks: Sequence[str] = ("random", "average", "bandwagon"),
    sizes: Sequence[float] = (0.01, 0.05),
    n_targets: int = 5,
    seeds: Sequence[int] = (0, 1, 2),
) -> dict[str, dict[str, Result]]:
    """Print and return what attacks do to each victim: victim -> attack and size -> means over seeds.

    Args:
        dataset: A rated one.
        log: Instead of a dataset.
        attacks: Keys of `agents.shilling.COMPOSITIONS`; they push.
        sizes: Fake users per genuine user.
        n_targets: Pushed items.
        seeds: Of targets, profiles, held-out ratings and training.
    """
    rated = load(dataset).log if log is None else log
    cases = {"none": ("random", 0)}
    for size in sizes:
        for attack in attacks:
            cases[f"{attack}, {size:.0%}"] = attack, round(size * rated.n_users)
    tasks = [make_task(rated, n_targets, seed) for seed in seeds]
    results: dict[str, dict[str, Result]] = {}
    for name, settings in VICTIMS.items():
        results[name] = {}
        clean = [
            LTSMF(settings).fit(task.log, np.random.default_rng(seed))
            for task, seed in zip(tasks, seeds, strict=True)
        ]
        for case, (attack, n_fakes) in cases.items():
            each = [
                measure(task, attack, n_fakes, without, seed)
                for task, without, seed in zip(tasks, clean, seeds, strict=True)
            ]
            results[name][case] = Result(*np.mean(each, axis=0).tolist())
    rows = [
        (
            case,
            name,
            f"{found.shift:+.2f}",
            f"{found.rmse:.3f}",
            *("-" if np.isnan(share) else f"{share:.0%}" for share in found[2:]),
        )
        for case in cases
        for name, by_case in results.items()
        for found in [by_case[case]]
    ]
    header = ("attack", "victim", "shift", "RMSE", "targets out", "fillers out", "genuine out")
    print(markdown_table(header, rows))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    given = vars(parser.parse_args())
    as_json = given.pop("json")
    measured = main(**given)
    if as_json:
        plain = {
            victim: {
                case: {k: None if np.isnan(x) else x for k, x in result._asdict().items()}
                for case, result in by_case.items()
            }
            for victim, by_case in measured.items()
        }
        print(json.dumps({**given, "results": plain}))
