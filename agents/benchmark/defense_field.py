"""Defences in the setting of the papers on robust training: existing targets, whole catalogue, full training.

As in PamaCF (arXiv:2410.22844) and the evaluation code of its authors, on `gp_platform`'s logs: 1 % fake
users, of whose clicks the platform trains on the first part as of everybody's; victims trained from scratch
on the poisoned log, from which a detector's suspects are left out; T-HR@50 and T-NDCG@50 of five items,
Recall@20 and NDCG@20 of what users did later.

Differs from the paper: 80 % of each profile is for training and the rest for testing, nothing for
validation, since victims have fixed epochs; targets are drawn uniformly; quality is a mean over genuine
users, where that code has fake ones among them.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
from joblib import delayed
from numpy.typing import NDArray
from tqdm import tqdm

from agents.attackers import ATTACKERS
from agents.benchmark.field_learners import (
    LEARNERS,
    learn,
    learner_identity,
    n_trained_clicks,
    platform,
)
from agents.benchmark.gp import BASELINES, GRADIENT_ATTACKERS, make_attacker
from agents.benchmark.gp import Piece as SurrogatePiece
from agents.benchmark.gp_platform import Lab, lab
from agents.benchmark.protections import Protection
from agents.benchmark.store import ResultStore
from agents.benchmark.workers import share_the_machine, workers
from agents.gradient.attack import GroupAttackerConfig
from agents.gradient.baselines import bandwagon_sets, random_sets
from agents.interruption import raise_if_interrupted
from agents.reports import versions
from recattack_gym import __version__
from recattack_gym.core import FakeProfiles, Interactions
from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.metrics import target_hr_at_k
from recattack_gym.simulator.cache import code_hash
from recattack_gym.simulator.known_users import recommend_unseen
from recattack_gym.victims import VICTIMS

NO_ATTACK = BASELINES[0]
FIELD_ATTACKERS = (*BASELINES[1:], *GRADIENT_ATTACKERS, *LEARNERS)
"""What can be asked for; no attack is measured in any case."""
K_TARGETS, K_QUALITY = 50, 20
"""Length of the lists in which targets, and what users did later, are looked for."""
_MEASURING = 1
"""Of what is measured here; to be raised when that changes."""
_SCREENED = 3
"""Likewise of trials in which a detector keeps accounts out."""
_DECISIVE = ("agents", "recattack_gym.core.random", "recattack_gym.metrics")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A set of fake users to be made: nothing about it depends on a defence, or on who else is trained."""

    dataset: str
    seed: int
    """Decides the target items and the attack."""
    name: str
    """`"none"` or one of `FIELD_ATTACKERS`."""
    epochs: int = 0
    """Of each retraining of the surrogate, where there is one."""
    attack_epochs: int = 0
    """Steps of attackers that descend."""
    group_size: int = 0
    """Fake users per retraining of attackers that make them group by group."""
    queried: str = ""
    """The victim whose platform a learner asks; those that ask nobody have none."""
    n_queries: int = 0
    """Budget of a learner."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A victim, a defence and an attack that it is trained under."""

    attack: Attack
    victim: str
    """The plain one, a key of `VICTIMS`."""
    protection: Protection

    @property
    def trained(self) -> str | None:
        """The victim that is trained; `None` if the plain one has no such form."""
        return self.protection.victim(self.victim)


def attack_of(
    dataset: str,
    seed: int,
    name: str,
    *,
    epochs: int,
    descent_epochs: int,
    attack_epochs: int,
    group_size: int,
    victim: str = "",
    n_queries: int = 0,
) -> Attack:
    """Return an attack with those of the settings that it has.

    Args:
        dataset: Name of the log.
        seed: Decides targets and attack.
        name: `"none"` or one of `FIELD_ATTACKERS`.
        epochs: Of each retraining of the surrogate of attackers that make fake users group by group.
        descent_epochs: The same of attackers that descend.
        attack_epochs: Steps of those.
        group_size: Fake users per retraining of the others.
        victim: Whom learners ask; the others ask nobody.
        n_queries: Budget of learners.
    """
    if name in LEARNERS:
        return Attack(dataset=dataset, seed=seed, name=name, queried=victim, n_queries=n_queries)
    if name not in GRADIENT_ATTACKERS:
        return Attack(dataset=dataset, seed=seed, name=name)
    if issubclass(ATTACKERS[name].config_class, GroupAttackerConfig):
        return Attack(dataset=dataset, seed=seed, name=name, epochs=epochs, group_size=group_size)
    return Attack(
        dataset=dataset, seed=seed, name=name, epochs=descent_epochs, attack_epochs=attack_epochs
    )


def run_trials(
    trials: Sequence[Trial], folder: Path, *, n_jobs: int, backend: str = "loky"
) -> None:
    """Make the attacks that are not stored yet, then train the victims under them.

    Args:
        trials: What to measure; those that cannot be are left out.
        folder: Of the `ResultStore`.
        n_jobs: Processes, each on one thread.
        backend: As in `workers`.

    Raises:
        KeyboardInterrupt: If interrupted; finished pieces are kept.
    """
    store = ResultStore(folder)
    missing = [
        trial
        for trial in trials
        if trial.trained is not None and store.get(trial_identity(trial)) is None
    ]
    attacks = [
        each
        for each in dict.fromkeys(trial.attack for trial in missing)
        if each.name != NO_ATTACK and not _plan_file(store, each).is_file()
    ]
    asked = dict.fromkeys((each.dataset, each.queried, each.seed) for each in attacks)
    platforms = [each for each in asked if each[1]]
    with workers(n_jobs, backend) as run_tasks:
        fits = run_tasks(delayed(_fit)(*each, n_jobs) for each in platforms)
        for _ in tqdm(fits, total=len(platforms), desc="clean victims", unit="fit"):
            raise_if_interrupted()
        made = run_tasks(delayed(_make)(each, folder, n_jobs) for each in attacks)
        for _ in tqdm(made, total=len(attacks), desc="attacks", unit="attack"):
            raise_if_interrupted()
        finished = run_tasks(delayed(_run)(trial, folder, n_jobs) for trial in missing)
        for _ in tqdm(finished, total=len(missing), desc="trained under attack", unit="victim"):
            raise_if_interrupted()


def _fit(dataset: str, victim: str, seed: int, n_jobs: int) -> None:
    """Fit a clean victim, or find it in the cache, so that no two processes do it at once."""
    share_the_machine(n_jobs)
    platform(lab(dataset), victim, seed, K_TARGETS)


def _make(attack: Attack, folder: Path, n_jobs: int) -> None:
    share_the_machine(n_jobs)
    make_plan(attack).save(_plan_file(ResultStore(folder), attack))


def _run(trial: Trial, folder: Path, n_jobs: int) -> None:
    share_the_machine(n_jobs)
    store = ResultStore(folder)
    store.put(trial_identity(trial), train_under_attack(trial, plan_of(trial.attack, folder)))


def read_trials(trials: Sequence[Trial], folder: Path) -> list[tuple[Trial, dict[str, object]]]:
    """Return the finished ones of some trials, with their results."""
    store = ResultStore(folder)
    possible = [trial for trial in trials if trial.trained is not None]
    results = [(trial, store.get(trial_identity(trial))) for trial in possible]
    return [(trial, result) for trial, result in results if result is not None]


def plan_of(attack: Attack, folder: Path) -> FakeProfiles | None:
    """Return the plan of an attack that was made; `None` for no attack.

    Raises:
        ArtifactError: If it is missing or damaged.
    """
    if attack.name == NO_ATTACK:
        return None
    return FakeProfiles.load(_plan_file(ResultStore(folder), attack))


def _plan_file(store: ResultStore, attack: Attack) -> Path:
    return store.path(attack_identity(attack)).with_suffix(".npz")


def make_plan(attack: Attack) -> FakeProfiles:
    """Make the fake users of an attack from the training part of the log."""
    own = lab(attack.dataset)
    if attack.name in LEARNERS:
        return learn(
            own,
            platform(own, attack.queried, attack.seed, K_TARGETS),
            name=attack.name,
            seed=attack.seed,
            n_queries=attack.n_queries,
        )
    task = own.task(attack.seed)
    rng = np.random.default_rng(_seed(attack.seed, 2))
    if attack.name in BASELINES:
        profiles = (random_sets if attack.name == "random-sets" else bandwagon_sets)(task, rng)
    else:
        surrogate = SurrogatePiece(
            kind="attack",
            dataset=attack.dataset,
            seed=attack.seed,
            name=attack.name,
            epochs=(attack.epochs,),
            attack_epochs=attack.attack_epochs,
            group_size=attack.group_size,
        )
        profiles = make_attacker(surrogate).attack(task, rng).item_ids
    header = {"attacker": attack.name, "target_items": task.target_items.tolist()}
    return FakeProfiles(profiles, header=header)


def trained_part(plan: FakeProfiles) -> FakeProfiles:
    """Return the clicks of fake users that the platform trains on: the first 80 %, as of everybody's."""
    return FakeProfiles(plan.item_ids[:, : n_trained_clicks(plan.item_ids.shape[1])])


def train_under_attack(trial: Trial, plan: FakeProfiles | None) -> dict[str, object]:
    """Train the victim of a trial from scratch, without the accounts that are kept out, and measure it.

    Args:
        trial: Which victim and defence.
        plan: The fake users, `None` for nobody.

    Returns:
        Plain JSON values: `t_hr`, `t_ndcg`, `recall`, `ndcg` over genuine users, `t_hr_trained` over those
        who are not kept out of training, and who was flagged. Whom training leaves out is shown what is most
        popular in what is trained on.
    """
    assert trial.trained is not None  # noqa: S101  # callers leave these out
    own, start = lab(trial.attack.dataset), time.process_time()
    genuine = own.train.n_users
    log = own.train if plan is None else own.train.with_fake_users(trained_part(plan).item_ids)
    is_flagged, is_dropped = np.zeros((2, log.n_users), dtype=np.bool_)
    for screening in trial.protection.screenings:
        flagged, dropped = screening.flags_and_drops(log, trial.attack.seed)
        is_flagged |= flagged
        is_dropped |= dropped
    rng = np.random.default_rng(_seed(trial.attack.seed, 3))
    victim = VICTIMS[trial.trained]().fit(log.select(~is_dropped[log.user_ids]), rng)
    shown = recommend_unseen(victim, np.arange(genuine), own.train, max(K_TARGETS, K_QUALITY))
    targets = own.task(trial.attack.seed).target_items
    return {
        **strength_and_quality(shown, own, targets),
        "t_hr_trained": target_hr_at_k(
            shown[:, :K_TARGETS], targets, _owns(own, targets) | is_dropped[:genuine, None]
        ),
        "n_fake": log.n_users - genuine,
        "n_dropped": int(is_dropped[genuine:].sum()),
        "n_genuine_flagged": int(is_flagged[:genuine].sum()),
        "cpu_seconds": round(time.process_time() - start, 1),
        "versions": versions(),
    }


def strength_and_quality(
    shown: NDArray[np.int64], own: Lab, target_items: NDArray[np.int64]
) -> dict[str, float]:
    """Return how visible targets are and how well users are served; all over genuine users.

    Args:
        shown: Top-50 lists of all genuine users, their training items hidden, shape `(n_users, 50)`.
        own: What they clicked, in training and later.
        target_items: Shape `(n_targets,)`.
    """
    owns = _owns(own, target_items)
    recall, ndcg = recall_and_ndcg(shown[:, :K_QUALITY], own.validation)
    return {
        "t_hr": target_hr_at_k(shown[:, :K_TARGETS], target_items, owns),
        "t_ndcg": target_gain_at_k(shown[:, :K_TARGETS], target_items, owns),
        "recall": recall,
        "ndcg": ndcg,
    }


def _owns(own: Lab, target_items: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which targets each genuine user has in either part, shape `(n_users, n_targets)`."""
    users = np.arange(own.train.n_users)[:, None]
    return own.train.has(users, target_items) | own.validation.has(users, target_items)


def target_gain_at_k(
    shown: NDArray[np.int64], target_items: NDArray[np.int64], owns: NDArray[np.bool_]
) -> float:
    """Return the mean over targets of the mean discounted gain among users who do not own it: T-NDCG@K.

    As in the code of PamaCF: a target at place p = 1, 2, ... of a list gains `1 / log2(p + 1)`. (GP-lab's
    NDCG of targets, `target_ndcg_at_k`, is normalised by what a list full of targets would gain.)

    Args:
        shown: Top-k lists of genuine users without clicked items, best first, shape `(U, k)`.
        target_items: Shape `(n_targets,)`.
        owns: Which targets each user has anywhere, shape `(U, n_targets)`.

    Returns:
        In `[0, 1]`; targets that all users own do not count, and `nan` if there is no other.
    """
    gains = 1.0 / np.log2(np.arange(shown.shape[1]) + 2.0)
    means = [
        float(((shown[~owner] == item) @ gains).mean())
        for item, owner in zip(target_items, owns.T, strict=True)
        if not owner.all()
    ]
    return float(np.mean(means)) if means else float("nan")


def recall_and_ndcg(shown: NDArray[np.int64], held_out: Interactions) -> tuple[float, float]:
    """Return Recall@k and NDCG@k of lists against several held-out items per user.

    Args:
        shown: Top-k lists, -1 for an empty place, shape `(n_users, k)`.
        held_out: Distinct pairs; users without any do not count.

    Returns:
        The mean share of a user's held-out items in the list, and the mean gain over that of the best list;
        `nan` if nobody has held-out items.
    """
    sizes = np.diff(held_out.indptr)
    counts = sizes > 0
    if not counts.any():
        return float("nan"), float("nan")
    users = np.arange(len(shown))[:, None]
    hits = (shown >= 0) & held_out.has(users, np.maximum(shown, 0))
    gains = 1.0 / np.log2(np.arange(shown.shape[1]) + 2.0)
    best = np.cumsum(gains)[np.minimum(sizes[counts], shown.shape[1]) - 1]
    recall = hits[counts].sum(axis=1) / sizes[counts]
    return float(recall.mean()), float(((hits[counts] @ gains) / best).mean())


# -- identities ------------------------------------------------------------------------------------


def attack_identity(attack: Attack) -> dict[str, object]:
    """Return everything that decides an attack, as plain JSON values."""
    settings, asked = asdict(attack), ""
    if attack.name in LEARNERS:
        asked = f"-{attack.queried}"
        settings["learner"] = learner_identity(
            attack.name, attack.queried, attack.n_queries, K_TARGETS
        )
    else:  # what they have no use for is not part of them
        del settings["queried"], settings["n_queries"]
    return {
        "piece": f"attack-{attack.dataset}{asked}-{attack.name}-{attack.seed}",
        "version": __version__,
        "code": _attack_code(attack.name),
        "log": _log_hash(attack.dataset),
        "measuring": _MEASURING,
        **settings,
    }


def trial_identity(trial: Trial) -> dict[str, object]:
    """Return everything that decides the result of a trial, as plain JSON values."""
    attack, victim = trial.attack, trial.trained
    assert victim is not None  # noqa: S101  # callers leave these out
    screened = "-".join(trial.protection.detectors) or "unscreened"
    return {
        "piece": f"trial-{attack.dataset}-{victim}-{screened}-{attack.name}-{attack.seed}",
        "attack": attack_identity(attack),
        "victim": victim,
        "victim_code": code_hash(VICTIMS[victim]),
        "victim_config": asdict(VICTIMS[victim]().config),
        "screening": trial.protection.identity(),
        "code": _attack_code(NO_ATTACK),
        "measuring": _SCREENED if trial.protection.detectors else _MEASURING,
    }


@lru_cache(maxsize=16)
def _attack_code(name: str) -> str:
    """Return a digest of the sources of the log and the task, and of the attacker if it has any."""
    files = imported_files("agents.benchmark.gp_platform", _DECISIVE)
    if name in ATTACKERS:
        files |= imported_files(ATTACKERS[name].__module__, _DECISIVE)
    elif name != NO_ATTACK:
        files |= imported_files("agents.gradient.baselines", _DECISIVE)
    return source_digest(files)[:16]


@lru_cache(maxsize=8)
def _log_hash(dataset: str) -> str:
    own = lab(dataset)
    return own.train.content_hash + own.validation.content_hash


def _seed(seed: int, use: int) -> int:
    """Return the seed of one use, alike for all attackers, victims and defences; as in `gp`."""
    return int(np.random.default_rng([seed, use]).integers(2**31))


def trials_of(
    attacks: Sequence[Attack], victims: Sequence[str], protections: Sequence[Protection]
) -> list[Trial]:
    """Return every victim with every defence under every attack, as far as there is such a victim.

    Learners' attacks are for the victim that was asked, in all of its forms.
    """
    everything = (
        Trial(attack=attack, victim=victim, protection=protection)
        for victim, protection, attack in product(victims, protections, attacks)
        if attack.queried in ("", victim)
    )
    return [trial for trial in everything if trial.trained is not None]
