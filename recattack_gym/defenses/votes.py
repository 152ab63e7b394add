"""Bagging: many models vote on what is shown, and how many of them would have to change to change it.

Where every account teaches one model only, e fake accounts change the lists of at most e models. So they move
the votes of an item by at most e, and what is ahead by more than 2e votes stays ahead, whatever they click.

Jia et al., "PORE: Provably Robust Recommender Systems against Data Poisoning Attacks", USENIX Security 2023,
certify an ensemble on random samples of users.

Differs from the paper: disjoint parts instead of samples, so that the bound is exact counting and holds for
certain, not with a confidence.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.core.random import counter_integers

_PARTS = 42
"""Stream of the counter-based generator that deals accounts out."""


@dataclass(frozen=True)
class Bagging:
    """Train `n_models` victims, each on the accounts that a hash deals it, and show what most of them show.

    Args:
        n_models: How many, at least 2. With more, more fake accounts are borne, by weaker models.

    Raises:
        ArgumentError: If the number is wrong.
    """

    n_models: int = 50

    def __post_init__(self) -> None:
        as_count("n_models", self.n_models, at_least=2)

    def models_of(self, accounts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Return which model each account teaches, in `[0, n_models)`; same shape.

        A hash of the account's number and of the seed alone: nobody's place depends on who else is there.
        """
        return counter_integers(seed, _PARTS, accounts, self.n_models)


def count_votes(
    shown: NDArray[np.int64], item_ids: NDArray[np.int64], n_items: int
) -> NDArray[np.int64]:
    """Count the models that show each candidate.

    Args:
        shown: Lists of K models, shape `(K, B, k)`; -1 where a list ends early.
        item_ids: Candidates, shape `(B, C)`.
        n_items: Size of the catalogue.

    Returns:
        Shape `(B, C)`.
    """
    return _summed(shown, np.ones(shown.shape[2], dtype=np.int64), item_ids, n_items)


def elected(
    shown: NDArray[np.int64],
    item_ids: NDArray[np.int64],
    allowed: NDArray[np.bool_],
    n_items: int,
) -> NDArray[np.int64]:
    """Return the items with most votes; of equal votes those that stand higher in the lists, then lower ids.

    Args:
        shown: Lists of K models, shape `(K, B, k)`; -1 where a list ends early.
        item_ids: Candidates, shape `(B, C)`, distinct in each row.
        allowed: Same shape; the rest is never shown.
        n_items: Size of the catalogue.

    Returns:
        Shape `(B, k)`, best first; -1 where fewer may be shown.
    """
    n_models, n_rows, k = shown.shape
    # A vote outweighs all places together: K lists give an item at most K k points for places
    worth = n_models * k + 1 + np.arange(k, 0, -1)
    points = np.where(allowed, _summed(shown, worth, item_ids, n_items), -1)
    order = np.lexsort((item_ids, -points), axis=1)[:, :k]
    best = np.full((n_rows, k), -1, dtype=np.int64)
    best[:, : order.shape[1]] = np.where(
        np.take_along_axis(points, order, axis=1) >= 0,
        np.take_along_axis(item_ids, order, axis=1),
        -1,
    )
    return best


def _summed(
    shown: NDArray[np.int64], worth: NDArray[np.int64], item_ids: NDArray[np.int64], n_items: int
) -> NDArray[np.int64]:
    """Add up what each place of the lists is worth, shape `(k,)`, per candidate; shape `(B, C)`."""
    n_rows = shown.shape[1]
    rows = np.broadcast_to(np.arange(n_rows)[None, :, None], shown.shape)
    cells = (rows * (n_items + 1) + np.where(shown < 0, n_items, shown)).ravel()
    weights = np.broadcast_to(worth, shown.shape).ravel()
    sums = np.bincount(cells, weights, n_rows * (n_items + 1)).astype(np.int64)
    return np.take_along_axis(sums.reshape(n_rows, n_items + 1), item_ids, axis=1)


def largest_borne(
    votes: NDArray[np.int64], allowed: NDArray[np.bool_], k: int
) -> NDArray[np.int64]:
    """Return how many changed models each candidate is sure to stay among the first k under.

    Item i stays under e if at most `k - 1` others can reach it: those j with `min(K, v_j + e) >= v_i - e`,
    ties counted against i. (K votes are never too few, since `v_i <= K`.) Sufficient, not necessary: a list
    that changes cannot vote for everybody.

    Args:
        votes: Shape `(B, C)`.
        allowed: Which candidates may be shown, same shape.
        k: Length of a list.

    Returns:
        Shape `(B, C)`: the largest such e; -1 where there is none, not even 0; the largest integer where no
        number of changes puts k others ahead, because there are not so many.
    """
    first_out = _ranked_vote(votes, allowed, k)[:, None]
    lead = votes - first_out
    borne = np.where(lead > 0, (lead - 1) // 2, -1)
    borne = np.where(first_out < 0, np.iinfo(np.int64).max, borne)
    result: NDArray[np.int64] = np.where(allowed, borne, -1)
    return result


def largest_barred(
    votes: NDArray[np.int64], allowed: NDArray[np.bool_], k: int
) -> NDArray[np.int64]:
    """Return how many changed models each candidate is sure to stay out of the first k under.

    Item i stays out under e if at least k others stay ahead of it: those j with `v_j - e > min(K, v_i + e)`.

    Args:
        votes: Shape `(B, C)`.
        allowed: Which candidates may be shown, same shape.
        k: Length of a list.

    Returns:
        Shape `(B, C)`: the largest such e; -1 where there is none; the largest integer where not allowed.
    """
    last_in = _ranked_vote(votes, allowed, k - 1)[:, None]
    lead = (
        last_in - votes
    )  # never positive for the first k, so it does not matter that they are among them
    barred = np.where(lead > 0, (lead - 1) // 2, -1)
    result: NDArray[np.int64] = np.where(allowed, barred, np.iinfo(np.int64).max)
    return result


def _ranked_vote(
    votes: NDArray[np.int64], allowed: NDArray[np.bool_], rank: int
) -> NDArray[np.int64]:
    """Return each row's vote of rank `rank`, from 0, among the allowed; -1 if there are fewer; `(B,)`."""
    if votes.shape[1] <= rank:
        return np.full(len(votes), -1, dtype=np.int64)
    losses = np.where(allowed, -votes, 1)
    ranked: NDArray[np.int64] = -np.partition(losses, rank, axis=1)[:, rank]
    return ranked
