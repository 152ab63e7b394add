"""Attackers that ask a platform, in the setting of `defense_field`: existing targets, 1 % fake users.

What they ask is the undefended victim, trained on the training part of the log and fine-tuned for every query
from its clean state, as everywhere in the suite. RecNum is counted in lists of the whole catalogue, of all
genuine users. The best plan that was tried is handed over; the victims of `defense_field`, undefended or not,
are trained from scratch with it, so every number there is one of a transfer.

An attacker decides the clicks that a platform trains on. The log has every pair of user and item once, and
profiles of all other attackers of this setting are sets. An account that clicked one target 100 times would
be another setting, so a click on what the same account has already clicked goes elsewhere: to the next item
of a random order that is the account's own and has no targets in it. Queries and plan are treated alike.
"""

import time
from dataclasses import asdict
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from agents.attackers import ATTACKERS
from agents.base import Attacker
from agents.benchmark.gp_platform import TRAIN_RATE, Lab
from agents.recording import RecordingView
from agents.search import SearchAttacker
from recattack_gym.core import AttackBudget, FakeProfiles, UnknownNameError
from recattack_gym.core.profiles import as_profile_batch
from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.simulator.cache import code_hash
from recattack_gym.simulator.platform import PlatformSimulator
from recattack_gym.simulator.view import PlatformView
from recattack_gym.victims import VICTIMS

LEARNERS = ("poisonrec", "poisonrec-warm", "evolution")
"""Names of attackers, all with their own settings and a query budget."""
_DECISIVE = (
    "agents",
    "recattack_gym.simulator",
    "recattack_gym.metrics",
    "recattack_gym.core.random",
    "recattack_gym.core.groups",
)
"""Packages and modules that decide what a learner sees and does."""


def n_trained_clicks(profile_size: int) -> int:
    """Return how many clicks of a fake user a platform trains on: the first 80 %, as of everybody's."""
    return max(1, int(TRAIN_RATE * profile_size))


def make_learner(name: str, n_queries: int) -> Attacker:
    """Return an attacker with its own settings and this budget.

    Raises:
        UnknownNameError: If it is none of `LEARNERS`.
        ArgumentError: If the budget is not positive.
    """
    if name not in LEARNERS:
        raise UnknownNameError("attacker", name, LEARNERS)
    attacker = ATTACKERS[name]
    assert issubclass(attacker, SearchAttacker)  # noqa: S101  # of LEARNERS
    return attacker({"n_queries": n_queries})


def platform(own: Lab, victim: str, seed: int, k: int) -> PlatformSimulator:
    """Return the platform that learners ask; its clean victim is fitted or comes from the cache.

    Args:
        own: The log.
        victim: The undefended one, a key of `VICTIMS`.
        seed: Decides the target items and everything that the platform draws.
        k: Length of the lists in which targets are counted.
    """
    targets = own.task(seed).target_items.tolist()
    return PlatformSimulator(own.train, victim, targets=targets, k=k, n_candidates=None, seed=seed)


def learn(
    own: Lab, simulator: PlatformSimulator, *, name: str, seed: int, n_queries: int
) -> FakeProfiles:
    """Let an attacker ask a platform, and return the best plan that it tried.

    Args:
        own: The log that the platform is made from.
        simulator: `platform` of it.
        name: One of `LEARNERS`.
        seed: Decides everything that the attacker draws.
        n_queries: Budget.

    Returns:
        Profiles of full length without repetition. Their first `n_trained_clicks` are what was tried; the
        others, which no platform trains on, are the next items of each account's random order. The header
        has `rec_num` of the plan, `clean_rec_num`, `max_rec_num`, and `curve`, the RecNum of every query in
        order, with `batch_sizes`.
    """
    attacker = make_learner(name, n_queries)
    n_trained = n_trained_clicks(own.profile_size)
    budget = AttackBudget(n_fake_users=own.n_fake_users, profile_size=n_trained)
    orders = filler_orders(own, simulator.target_items, seed)
    view = RecordingView(SetsView(simulator, budget, orders))
    start = time.process_time()
    raw = attacker.plan(view, np.random.default_rng([seed, 8])).item_ids
    spent = time.process_time() - start
    tried = without_repeats(raw[None], orders)
    n_others = own.profile_size - n_trained
    longer = np.pad(tried, ((0, 0), (0, 0), (0, n_others)), mode="edge")
    header = {
        "attacker": name,
        "config": asdict(attacker.config),
        "victim": simulator.victim.name,
        "target_items": simulator.target_items.tolist(),
        "n_items": simulator.n_items,
        "k": simulator.k,
        "n_queries": view.n_queries,
        "rec_num": max(view.rec_nums),
        "clean_rec_num": simulator.clean_rec_num,
        "max_rec_num": simulator.max_rec_num,
        "curve": view.rec_nums,
        "batch_sizes": view.batch_sizes,
        "cpu_seconds": round(spent, 1),
    }
    return FakeProfiles(without_repeats(longer, orders)[0], header=header)


# -- profiles without repetition -------------------------------------------------------------------


def filler_orders(own: Lab, target_items: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return what each account clicks instead of repeating itself, shape `(n_fake_users, <= profile_size)`.

    Args:
        own: The log.
        target_items: Left out, shape `(n_targets,)`.
        seed: Decides the orders.
    """
    rng = np.random.default_rng([seed, 7])
    others = np.setdiff1d(np.arange(own.train.n_items), target_items)
    return np.stack([rng.permutation(others)[: own.profile_size] for _ in range(own.n_fake_users)])


def without_repeats(profiles: NDArray[np.int64], orders: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return profiles in which clicks on what the account has already clicked go to its next fillers.

    Args:
        profiles: Item ids, shape `(M, N, T)`.
        orders: Of `filler_orders`, at least T long where the catalogue is.

    Returns:
        The same shape. Fillers are items that the profile has nowhere; where these end, repeats stay.
    """
    n_fake_users, n_clicks = profiles.shape[1:]
    rows = profiles.reshape(-1, n_clicks).copy()
    for number, row in enumerate(rows):
        is_repeat = np.ones(n_clicks, dtype=np.bool_)
        is_repeat[np.unique(row, return_index=True)[1]] = False
        places = np.flatnonzero(is_repeat)
        if len(places):
            # of T fillers the other T - n clicks can have taken T - n
            fillers = orders[number % n_fake_users, :n_clicks]
            free = fillers[~np.isin(fillers, row)][: len(places)]
            row[places[: len(free)]] = free
    return rows.reshape(profiles.shape)


class SetsView(PlatformView):
    """A view of a platform on which no account clicks an item twice.

    Args:
        simulator: The platform.
        budget: Accounts, and clicks of each that are trained on.
        orders: Of `filler_orders`.
    """

    def __init__(
        self, simulator: PlatformSimulator, budget: AttackBudget, orders: NDArray[np.int64]
    ) -> None:
        super().__init__(simulator, budget)
        self._orders = orders

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `AttackerView.query`; what is injected is `without_repeats`."""
        batch = as_profile_batch(profiles, self.n_items)
        return super().query(without_repeats(batch, self._orders))


# -- identities ------------------------------------------------------------------------------------


def learner_identity(name: str, victim: str, n_queries: int, k: int) -> dict[str, object]:
    """Return what decides a learner's plan beside log and seed, as plain JSON values.

    Args:
        name: One of `LEARNERS`.
        victim: Who is asked.
        n_queries: Budget.
        k: Length of the lists in which targets are counted.
    """
    return {
        "attacker_config": asdict(make_learner(name, n_queries).config),
        "code": _code(name),
        "victim_code": code_hash(VICTIMS[victim]),
        "victim_config": asdict(VICTIMS[victim]().config),
        "k": k,
    }


@lru_cache(maxsize=8)
def _code(name: str) -> str:
    """Return a digest of the sources of the attacker and of the platform that it asks."""
    files = imported_files(__name__, _DECISIVE)
    return source_digest(files | imported_files(ATTACKERS[name].__module__, _DECISIVE))[:16]
