"""GP-lab's platform: a dense core, random targets, split profiles, a victim trained from scratch."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from agents.gradient.graph import InteractionGraph
from agents.gradient.profiles import Task
from agents.gradient.surrogates import Surrogate, SurrogateConfig
from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.core.checks import as_count
from recattack_gym.datasets import load
from recattack_gym.metrics import (
    hit_one_at_k,
    target_hr_at_k,
    target_ndcg_at_k,
    target_recall_at_k,
    target_recall_at_k_unmasked,
)

CORES = {"gowalla": 15}
"""Datasets of which users and items with fewer partners are left out, again and again until none is left."""
TRAIN_RATE = 0.8
"""Share of each profile, first clicks first, that recommenders learn from; the rest chooses the epoch."""
FAKE_RATE = 0.01
"""Fake users per genuine user."""
N_TARGETS = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Lab:
    """A log in two parts, over the same users and items."""

    train: Interactions
    """What attackers see and victims learn from."""
    validation: Interactions
    """What chooses a victim's epoch."""

    @property
    def n_fake_users(self) -> int:
        """One per cent of the users."""
        return max(1, int(FAKE_RATE * self.train.n_users))

    @property
    def profile_size(self) -> int:
        """The mean profile length of genuine users, both parts together."""
        n_events = len(self.train) + len(self.validation)
        return max(1, round(n_events / self.train.n_users))

    def task(self, seed: int) -> Task:
        """Return the attack of one seed: five items of the catalogue, drawn uniformly."""
        n_targets = min(N_TARGETS, self.train.n_items)
        targets = np.random.default_rng([seed, 5]).permutation(self.train.n_items)[:n_targets]
        return Task(
            log=self.train,
            target_items=targets,
            n_fake_users=self.n_fake_users,
            profile_size=self.profile_size,
        )


@lru_cache(maxsize=2)
def lab(dataset: str) -> Lab:
    """Return a dataset as GP-lab would have it: distinct pairs, its dense core, and the split in two.

    Raises:
        UnknownNameError: If there is no such dataset.
        DatasetNotFoundError: If it is not on this machine and cannot be fetched.
    """
    log = core_of(distinct(load(dataset).log), CORES.get(dataset, 1))
    return split(log)


def distinct(log: Interactions) -> Interactions:
    """Return the log with the first event of every (user, item) pair."""
    keys = log.user_ids * np.int64(log.n_items) + log.item_ids
    keep = np.zeros(len(log), dtype=np.bool_)
    keep[np.unique(keys, return_index=True)[1]] = True
    return log.select(keep)


def core_of(log: Interactions, k: int) -> Interactions:
    """Return what is left when users and items with fewer than `k` events are left out until none is.

    Args:
        log: Distinct pairs.
        k: At least 1.

    Returns:
        A log over the users and items that are left, renumbered in order.

    Raises:
        ArgumentError: If nothing is left.
    """
    as_count("k", k)
    users, items = log.user_ids, log.item_ids
    while True:
        of_users, of_items = np.bincount(users), np.bincount(items)
        keep = (of_users[users] >= k) & (of_items[items] >= k)
        if keep.all():
            break
        users, items = users[keep], items[keep]
    if len(users) == 0:
        raise ArgumentError(f"k must leave something of the log, got {k}")
    user_names, users = np.unique(users, return_inverse=True)
    item_names, items = np.unique(items, return_inverse=True)
    return Interactions(users, items, len(user_names), len(item_names))


def split(log: Interactions) -> Lab:
    """Split every user's events: the first `floor(0.8 n)` train, the others validate."""
    sizes = np.diff(log.indptr)
    places = np.arange(len(log)) - np.repeat(log.indptr[:-1], sizes)
    is_train = places < np.repeat(np.floor(TRAIN_RATE * sizes).astype(np.int64), sizes)
    return Lab(train=log.select(is_train), validation=log.select(~is_train))


def trained_victim(
    lab_: Lab,
    profiles: NDArray[np.int64] | None,
    config: SurrogateConfig,
    *,
    seed: int,
    max_epochs: int,
    patience: int,
    every: int = 5,
    k: int = 50,
) -> tuple[Surrogate, dict[str, object]]:
    """Train a victim from scratch on the poisoned log, up to its best epoch.

    Fake users are split like genuine ones, so a fifth of their clicks only chooses the epoch, as in GP-lab.
    The state of early stopping belongs to this one training.

    Args:
        lab_: The log.
        profiles: Fake clicks, shape `(n_fake_users, profile_size)`, or `None` for a clean victim.
        config: Settings of the victim.
        seed: Of its training.
        max_epochs: Longest training.
        patience: Epochs without a better NDCG@k of validation after which it ends.
        every: Epochs from one validation to the next.
        k: Length of the lists.

    Returns:
        The victim with the embeddings of its best epoch, and `best_epoch`, `validation_ndcg`, `n_epochs`.
    """
    clicks = np.empty((0, 1), dtype=np.int64) if profiles is None else profiles
    n_train = int(TRAIN_RATE * clicks.shape[1])
    graph = InteractionGraph.of(lab_.train, list(clicks[:, :n_train]))
    wanted = InteractionGraph.of(lab_.validation, list(clicks[:, n_train:]))
    victim = Surrogate(graph, config, seed=seed)
    best, best_epoch, best_embeddings = -1.0, 0, victim.embeddings.copy()
    while victim.n_epochs < max_epochs and victim.n_epochs - best_epoch < patience:
        victim.train(min(every, max_epochs - victim.n_epochs))
        ndcg = mean_ndcg(victim, wanted, k)
        if ndcg > best:
            best, best_epoch = ndcg, victim.n_epochs
            best_embeddings = victim.embeddings.copy()
    n_epochs = victim.n_epochs
    victim.embeddings[:] = best_embeddings
    return victim, {"best_epoch": best_epoch, "validation_ndcg": best, "n_epochs": n_epochs}


def mean_ndcg(model: Surrogate, wanted: InteractionGraph, k: int) -> float:
    """Return the mean NDCG@k of users who have something in `wanted`, training items hidden."""
    return quality(model, wanted, k)[1]


def quality(model: Surrogate, wanted: InteractionGraph, k: int) -> tuple[float, float]:
    """Return how well a model finds what users have in `wanted`, training items hidden.

    Args:
        model: The recommender.
        wanted: Held-out items; users who have none do not count.
        k: Length of the lists.

    Returns:
        The share of users with such an item in their list, and the mean NDCG@k.
    """
    sizes = np.diff(wanted.indptr)
    users = np.flatnonzero(sizes)
    if len(users) == 0:
        return 0.0, 0.0
    shown = lists_of(model, users, k)
    keys = np.repeat(np.arange(wanted.n_users), sizes) * np.int64(wanted.n_items) + wanted.items
    asked = users[:, None] * np.int64(wanted.n_items) + shown
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    hits = (keys[place] == asked) & (shown >= 0)
    gains = 1.0 / np.log2(np.arange(shown.shape[1]) + 2.0)
    best = np.concatenate([[0.0], np.cumsum(gains)])[np.minimum(sizes[users], shown.shape[1])]
    return float(hits.any(axis=1).mean()), float(((hits @ gains) / best).mean())


def lists_of(model: Surrogate, users: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Return top-k lists of users with their own training items hidden, shape `(U, min(k, n_items))`."""
    return model.lists(users, min(k, model.graph.n_items), hidden=model.graph)


def strength(victim: Surrogate, lab_: Lab, task: Task, k: int) -> dict[str, float]:
    """Return how visible the targets are to genuine users, by every definition, each under its name."""
    users = np.arange(victim.graph.n_genuine)
    shown = lists_of(victim, users, k)
    whole = victim.lists(users, min(k, victim.graph.n_items))
    targets = task.target_items
    owns = task.log.has(users[:, None], targets[None, :])
    owns_anywhere = owns | lab_.validation.has(users[:, None], targets[None, :])
    return {
        "target_recall_at_k": target_recall_at_k(shown, targets, owns),
        "target_recall_at_k_unmasked": target_recall_at_k_unmasked(whole, targets),
        "hit_one_at_k": hit_one_at_k(shown, targets, owns),
        "target_hr_at_k": target_hr_at_k(shown, targets, owns_anywhere),
        "target_ndcg_at_k": target_ndcg_at_k(shown, targets, owns),
    }
