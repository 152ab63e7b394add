"""Logs to train and to test detectors on: other users, other attacks, other targets, other seeds.

Genuine users are split in two halves. A detector learns on one half, with attacks that were planned on that
half; it is judged on the other half, with attacks that were planned there, on other targets.
"""

import gzip
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agents.attackers import ATTACKERS
from agents.shilling import COMPOSITIONS, Known, ShillingConfig, rating_profiles
from recattack_gym.core import (
    ArtifactError,
    AttackBudget,
    AttackGoal,
    DatasetNotFoundError,
    FakeProfiles,
    Interactions,
    Knowledge,
    KnowledgeError,
    StateError,
)
from recattack_gym.datasets import SyntheticConfig, generate, load, with_generated_ratings

RATED = ("ml-100k", "filmtrust", "generated-ratings")
CLICKED = ("steam", "generated-clicks")
SMOKE = ("generated-ratings", "generated-clicks")
RATED_ATTACKS = tuple(kind for kind in COMPOSITIONS if kind != "bandwagon-average")
PLANNED = (
    *("random", "popular", "middle", "power-item"),
    *(name for name in ATTACKERS if name.startswith("shilling-")),
)
"""Attackers of clicks that need no queries, so that they are planned here."""
ARCHIVED = (
    "conslop",
    "appgrad",
    "cross-entropy",
    "evolution",
    "dpa2dl",
    "revadv",
    "poisonrec",
    "poisonrec-warm",
    "sb3-ppo",
)
"""Attackers of clicks whose plans against eight victims on steam `recattack bench table3` has kept."""
FAMILIES = (
    ("random", "shilling-random"),
    ("popular", "shilling-bandwagon", "shilling-popular"),
    ("cross-entropy", "evolution"),
    ("poisonrec", "poisonrec-warm"),
)
"""Attacks that are one idea: who has learnt from one of them has seen the others."""
SDLIB = "average (SDLib's file)"
"""150 average-attack profiles of FilmTrust that others have made."""
MADE_AGAINST = {"train": ("BPR", 0), "test": ("NeuMF", 1)}
"""Victim and first seed of the archived plans that are learnt from, and of those that are to be found."""
N_CLICK_TARGETS = 8
KNOWN_FAKES = 5
"""Fake users of an attack that are not to be found, but known, where a detector is told some."""
LARGEST_GENUINE = 4.0
"""On FilmTrust; SDLib's fake users give their targets 5, which nobody else can."""


@dataclass(frozen=True, eq=False)
class Case:
    """A log with fake users in it.

    Args:
        log: Genuine users first.
        is_fake: Shape `(n_users,)`.
    """

    log: Interactions
    is_fake: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class World:
    """Two halves of a platform and the attacks on each.

    Args:
        halves: Genuine users to learn from, and to test on.
        training: Fake users of each attack to learn from, one or two plans.
        testing: Fake users to find; the last `KNOWN_FAKES` of each are not.
    """

    halves: tuple[Interactions, Interactions]
    training: Mapping[str, Sequence[FakeProfiles]]
    testing: Mapping[str, FakeProfiles]

    def training_case(self, without: Sequence[str] = ()) -> Case:
        """Return the half to learn from with all attacks but some, and those of the same idea."""
        left_out = set[str]().union(*map(kin_of, without))
        plans = [
            plan for name, own in self.training.items() if name not in left_out for plan in own
        ]
        return _poisoned(self.halves[0], plans)

    def told_case(self, attack: str) -> Case:
        """Return the half to learn from with a few fake users of the very attack that is to be found."""
        return _poisoned(self.halves[0], [_rows(self.testing[attack], slice(-KNOWN_FAKES, None))])

    def testing_case(self, attack: str) -> Case:
        """Return the half to test on with one attack."""
        return _poisoned(self.halves[1], [_rows(self.testing[attack], slice(None, -KNOWN_FAKES))])


def kin_of(attack: str) -> set[str]:
    """Return an attack and those that are the same idea."""
    own = {attack, "average"} if attack == SDLIB else {attack}
    return own.union(*(family for family in FAMILIES if attack in family))


def _rows(profiles: FakeProfiles, rows: slice) -> FakeProfiles:
    ratings = None if profiles.ratings is None else profiles.ratings[rows]
    return FakeProfiles(profiles.item_ids[rows], ratings, profiles.header)


def _poisoned(log: Interactions, plans: Sequence[FakeProfiles]) -> Case:
    n_genuine = log.n_users
    for plan in plans:
        log = log.with_fake_users(plan.item_ids, plan.ratings)
    return Case(log, np.arange(log.n_users) >= n_genuine)


@lru_cache(maxsize=2)
def world_of(dataset: str, seed: int, attack_size: float, archive: str | None) -> World:
    """Return the two halves of a dataset and attacks on them.

    Args:
        dataset: One of `RATED` or `CLICKED`.
        seed: Decides who is in which half, targets and attacks.
        attack_size: Fake users to be found per genuine user, of attacks that are planned here.
        archive: Plans of `recattack bench table3` for steam, or `None`.

    Raises:
        DatasetNotFoundError: If the data is not on this machine.
    """
    rng = np.random.default_rng(seed)
    if dataset == "filmtrust":
        return _filmtrust(rng, attack_size)
    log = log_of(dataset)
    halves = halves_of(log, rng)
    if log.ratings is not None:
        return _rated(halves, attack_size, rng)
    return _clicked(halves, attack_size, archive, seed, rng)


@lru_cache(maxsize=2)
def log_of(dataset: str) -> Interactions:
    """Return all genuine events of a dataset."""
    if dataset not in SMOKE:
        return load(dataset, protocol="poisonrec" if dataset == "steam" else None).log
    rng = np.random.default_rng(0)
    size = SyntheticConfig(n_users=300, n_items=200, n_events=6_000, n_topics=5, min_events=10)
    log = generate(size, rng).log
    return with_generated_ratings(log, rng) if dataset == "generated-ratings" else log


def halves_of(log: Interactions, rng: np.random.Generator) -> tuple[Interactions, Interactions]:
    """Return the log of a random half of the users, and that of the others; users are renumbered."""
    order = rng.permutation(log.n_users)
    half = log.n_users // 2
    return tuple(_users(log, np.sort(part)) for part in (order[:half], order[half:]))  # type: ignore[return-value]  # two


def _users(log: Interactions, users: NDArray[np.int64]) -> Interactions:
    part = log.select(np.isin(log.user_ids, users))
    return replace(part, user_ids=np.searchsorted(users, part.user_ids), n_users=len(users))


# -- ratings -----------------------------------------------------------------------------------------


def _rated(
    halves: tuple[Interactions, Interactions], attack_size: float, rng: np.random.Generator
) -> World:
    train, test = halves
    both = train.item_popularity + test.item_popularity
    targets = _rare_items(np.minimum(train.item_popularity, test.item_popularity), both, rng)
    n_attacks = len(RATED_ATTACKS)
    lengths = np.diff(train.indptr)
    sizes = [int(np.quantile(lengths, q)) for q in (0.5, 0.75)]
    n_each = max(3, round(0.1 * train.n_users / (2 * n_attacks)))
    n_test = max(5, round(attack_size * test.n_users)) + KNOWN_FAKES
    test_size = int(np.median(np.diff(test.indptr)))
    training, testing = {}, {}
    for number, kind in enumerate(RATED_ATTACKS):
        training[kind] = [
            _plan_rated(kind, train, int(targets[number]), n_each, size, rng) for size in sizes
        ]
        target = int(targets[n_attacks + number])
        testing[kind] = _plan_rated(kind, test, target, n_test, test_size, rng)
    return World(halves, training, testing)


def _rare_items(
    in_both: NDArray[np.int64], popularity: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return items that both halves have, the rarer half of them, in random order: targets."""
    known = np.flatnonzero(in_both >= 2)
    rare = known[popularity[known] <= np.median(popularity[known])]
    return rng.permutation(rare)


def _plan_rated(
    kind: str, log: Interactions, target: int, n: int, size: int, rng: np.random.Generator
) -> FakeProfiles:
    goal = AttackGoal(target_items=(target,), direction=COMPOSITIONS[kind].directions[-1])
    if kind in ("random", "average", "popular", "average-over-popular", "copy"):
        goal = replace(goal, direction="push")
    budget = AttackBudget(n_fake_users=n, profile_size=size)
    min_raters = int(np.quantile(log.item_popularity[log.item_popularity > 0], 0.75))
    config = ShillingConfig(n_selected=max(1, min(3, size // 4)), min_raters=max(2, min_raters))
    return rating_profiles(kind, Known.of(log), goal, budget, rng, config)


def _filmtrust(rng: np.random.Generator, attack_size: float) -> World:
    log, is_fake = sdlib_file()
    halves = halves_of(_users(log, np.flatnonzero(~is_fake)), rng)
    world = _rated(halves, attack_size, rng)
    n_test = max(5, round(attack_size * halves[1].n_users)) + KNOWN_FAKES
    chosen = np.sort(rng.permutation(np.flatnonzero(is_fake))[:n_test])
    return World(halves, world.training, {SDLIB: _as_profiles(_users(log, chosen))})


def _as_profiles(log: Interactions) -> FakeProfiles:
    """Return users as profiles of one length, the longest; shorter ones repeat their last rating."""
    assert log.ratings is not None  # noqa: S101  # a file of ratings
    lengths = np.diff(log.indptr)
    column = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
    places = log.indptr[:-1, None] + column
    return FakeProfiles(log.item_ids[places], log.ratings[places])


@lru_cache(maxsize=1)
def sdlib_file() -> tuple[Interactions, NDArray[np.bool_]]:
    """Return FilmTrust with SDLib's 150 average-attack profiles, and who they are.

    Fake users give their targets 5 where genuine ratings end at 4: so marked, anybody finds them. Those
    ratings are cut to 4.

    Raises:
        DatasetNotFoundError: If the file is not on this machine.
    """
    name = "shilling-filmtrust-averageattack"
    folder = Path(os.environ.get("RECATTACK_DATA", ".")) / name
    try:
        with gzip.open(folder / "interactions.csv.gz", "rt") as stream:
            events = pd.read_csv(stream)
        with gzip.open(folder / "labels.csv.gz", "rt") as stream:
            labels = pd.read_csv(stream)
    except FileNotFoundError as error:
        raise DatasetNotFoundError(
            f"{name} is not in {folder}: put interactions.csv.gz and labels.csv.gz there, or set "
            "RECATTACK_DATA to the folder above (Coder-Yu/SDLib, dataset/averageattack)"
        ) from error
    users, user_ids = np.unique(events["user"].to_numpy(), return_inverse=True)
    items, item_ids = np.unique(events["item"].to_numpy(), return_inverse=True)
    ratings = np.minimum(events["rating"].to_numpy(dtype=np.float64), LARGEST_GENUINE)
    fake = labels.loc[labels["label"] == 1, "user"].to_numpy()
    log = Interactions(user_ids, item_ids, len(users), len(items), ratings=ratings)
    return log, np.isin(users, fake)


# -- clicks ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LogView:
    """An `AttackerView` of a log without a platform: for attackers that do not query.

    Args:
        log: Clean, over the whole catalogue.
        goal: Which items, and whether up or down.
        budget: What may be injected.
    """

    log: Interactions
    goal: AttackGoal
    budget: AttackBudget
    knowledge: Knowledge = Knowledge.GRAY_BOX
    n_queries: int = 0

    @property
    def n_items(self) -> int:
        """See `AttackerView.n_items`."""
        return self.log.n_items

    @property
    def item_popularity(self) -> NDArray[np.int64]:
        """See `AttackerView.item_popularity`."""
        return self.log.item_popularity

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """There is no platform to ask."""
        raise StateError(
            f"{len(profiles)} poison sets cannot be tried on a log without a platform: "
            "PLANNED must name attackers that need no queries"
        )

    @property
    def victim_name(self) -> str:
        """There is none."""
        raise KnowledgeError(
            f"the victim needs knowledge white_box, this view has {self.knowledge}"
        )

    @property
    def victim_config(self) -> Mapping[str, object]:
        """There is none."""
        raise KnowledgeError(
            f"the victim needs knowledge white_box, this view has {self.knowledge}"
        )


def _clicked(
    halves: tuple[Interactions, Interactions],
    attack_size: float,
    archive: str | None,
    seed: int,
    rng: np.random.Generator,
) -> World:
    """Plan on, or take from an archive; targets are new items, of each attack to learn from its own."""
    names = [*PLANNED, *(ARCHIVED if archive is not None else ())]
    n_original = halves[0].n_items
    n_items = n_original + N_CLICK_TARGETS * (1 + len(names))
    train, test = (half.with_catalogue(n_items) for half in halves)
    training: dict[str, list[FakeProfiles]] = {}
    testing: dict[str, FakeProfiles] = {}
    n_train = max(3, round(0.1 * train.n_users / len(names)))
    n_test = 20 if archive is not None else max(5, round(attack_size * test.n_users)) + KNOWN_FAKES
    for number, name in enumerate(names):
        targets = n_original + N_CLICK_TARGETS * (1 + number)
        if name in PLANNED:
            training[name] = [_plan_clicks(name, train, n_original, targets, n_train, rng)]
            testing[name] = _plan_clicks(name, test, n_original, n_original, n_test, rng)
            continue
        victim, first = MADE_AGAINST["train"]
        plan = read_plan_file(archive, "steam", victim, name, first)
        moved = plan.item_ids + np.where(plan.item_ids >= n_original, targets - n_original, 0)
        training[name] = [FakeProfiles(moved[:n_train], None, plan.header)]
        victim, first = MADE_AGAINST["test"]
        testing[name] = read_plan_file(archive, "steam", victim, name, first + seed % 2)
    return World((train, test), training, testing)


def _plan_clicks(
    name: str,
    log: Interactions,
    n_original: int,
    first_target: int,
    n: int,
    rng: np.random.Generator,
) -> FakeProfiles:
    targets = tuple(range(first_target, first_target + N_CLICK_TARGETS))
    budget = AttackBudget(n_fake_users=n, profile_size=20)
    view = LogView(log, AttackGoal(target_items=targets), budget)
    plan = ATTACKERS[name]().plan(view, rng)
    # Other attacks' targets are in the catalogue, too: whoever would click them clicks an old item instead
    is_strange = (plan.item_ids >= n_original) & ~np.isin(plan.item_ids, targets)
    items = np.where(is_strange, rng.integers(n_original, size=plan.item_ids.shape), plan.item_ids)
    return FakeProfiles(items, None, plan.header)


def read_plan_file(
    archive: str | None, dataset: str, victim: str, entry: str, seed: int
) -> FakeProfiles:
    """Return a plan that `recattack bench table3` has kept in an archive.

    Raises:
        ArtifactError: If the archive cannot be read or does not hold it.
    """
    wanted = re.compile(rf"{dataset}-{victim}-{re.escape(entry)}-{seed}-[0-9a-f]{{16}}\.npz")
    try:
        with zipfile.ZipFile(str(archive)) as packed, tempfile.TemporaryDirectory() as folder:
            names = [name for name in packed.namelist() if wanted.fullmatch(name)]
            if not names:
                raise ArtifactError(
                    f"{archive} must hold a plan of {entry} against {victim} on {dataset}, seed {seed}"
                )
            return FakeProfiles.load(packed.extract(names[0], folder))
    except (OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{archive} must be a readable archive of results: {error}") from error
