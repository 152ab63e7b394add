"""How visible target items are in top-k lists: several papers' "hit ratios", each under a name of its own.

Numbers of different definitions must never be compared. All functions take lists of genuine users only;
whoever calls them leaves fake users out, and hides seen items where the definition says so. None of them is
`hr_at_k`, which is about held-out items (`metrics.ranking`).
"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_ids
from recattack_gym.core.errors import ArgumentError


def target_recall_at_k(
    shown: NDArray[np.int64], target_items: NDArray[np.int64], owns: NDArray[np.bool_]
) -> float:
    """Return the mean share of a user's targets that are in its list: HR@K of Gradient Passing.

    "Accelerating the Surrogate Retraining for Poisoning Attacks against Recommender Systems", RecSys 2024
    (Recall@50 in its code): targets that a user has clicked in training do not count for it, and users who
    have clicked all of them do not count at all. The lists leave clicked items out.

    Args:
        shown: Top-k lists of genuine users, shape `(U, k)`, -1 for an empty place.
        target_items: Shape `(n_targets,)`.
        owns: Which targets each user has clicked, shape `(U, n_targets)`.

    Returns:
        In `[0, 1]`; `nan` if all users have clicked all targets.
    """
    hits = _hits(shown, target_items, owns)
    n_open = (~owns).sum(axis=1)
    counts = n_open > 0
    return _mean((hits & ~owns).sum(axis=1)[counts] / n_open[counts])


def target_recall_at_k_unmasked(shown: NDArray[np.int64], target_items: NDArray[np.int64]) -> float:
    """Return the mean share of all targets that are in a user's list: what GP-lab's attackers watch.

    The lists are over the whole catalogue, items that a user has clicked included, and all users count.

    Args:
        shown: Top-k lists of genuine users, nothing hidden, shape `(U, k)`.
        target_items: Shape `(n_targets,)`.

    Returns:
        In `[0, 1]`; `nan` without users.
    """
    nobody = np.zeros((len(shown), len(target_items)), dtype=np.bool_)
    return _mean(_hits(shown, target_items, nobody).mean(axis=1))


def hit_one_at_k(
    shown: NDArray[np.int64], target_items: NDArray[np.int64], owns: NDArray[np.bool_]
) -> float:
    """Return the share of users with at least one target in their list: HitOne@K of GP-lab.

    Args:
        shown: Top-k lists of genuine users without clicked items, shape `(U, k)`.
        target_items: Shape `(n_targets,)`.
        owns: Which targets each user has clicked, shape `(U, n_targets)`; users who have clicked all of them
            do not count.

    Returns:
        In `[0, 1]`; `nan` if all users have clicked all targets.
    """
    hits = _hits(shown, target_items, owns) & ~owns
    counts = (~owns).sum(axis=1) > 0
    return _mean((hits[counts].sum(axis=1) > 0).astype(np.float64))


def target_hit_rate_of_test_users_at_k(
    shown: NDArray[np.int64], target_items: NDArray[np.int64], has_test_item: NDArray[np.bool_]
) -> float:
    """Return the share of users with a test item who have at least one target in their list: TargetHR@K.

    Tang, Wen and Wang, "Revisiting adversarially learned injection attacks against recommender systems",
    RecSys 2020. The lists leave items of training out; who owns a target counts as everybody else.

    Args:
        shown: Top-k lists of genuine users, shape `(U, k)`.
        target_items: Shape `(n_targets,)`.
        has_test_item: Shape `(U,)`.

    Returns:
        In `[0, 1]`; `nan` if nobody has a test item.
    """
    nobody = np.zeros((len(shown), len(target_items)), dtype=np.bool_)
    hits = _hits(shown, target_items, nobody)
    if has_test_item.shape != (len(shown),):
        raise ArgumentError(
            f"has_test_item must have shape ({len(shown)},), got {has_test_item.shape}"
        )
    return _mean((hits[has_test_item].sum(axis=1) > 0).astype(np.float64))


def target_hr_at_k(
    shown: NDArray[np.int64], target_items: NDArray[np.int64], owns: NDArray[np.bool_]
) -> float:
    """Return the mean over targets of the share of users who do not own it and are shown it: T-HR@K.

    PamaCF (arXiv:2410.22844), where "own" means in the training, validation or test part.

    Args:
        shown: Top-k lists of genuine users without clicked items, shape `(U, k)`.
        target_items: Shape `(n_targets,)`.
        owns: Which targets each user has anywhere, shape `(U, n_targets)`.

    Returns:
        In `[0, 1]`; targets that all users own do not count, and `nan` if there is no other.
    """
    hits = _hits(shown, target_items, owns) & ~owns
    n_open = (~owns).sum(axis=0)
    counts = n_open > 0
    return _mean(hits.sum(axis=0)[counts] / n_open[counts])


def target_ndcg_at_k(
    shown: NDArray[np.int64], target_items: NDArray[np.int64], owns: NDArray[np.bool_]
) -> float:
    """Return the mean over users of the normalised discounted gain of targets: NDCG@K of GP-lab.

    A target at place p = 1, 2, ... gains `1 / log2(p + 1)`; the best list has the user's open targets first.

    Args:
        shown: Top-k lists of genuine users without clicked items, best first, shape `(U, k)`.
        target_items: Shape `(n_targets,)`.
        owns: As in `target_recall_at_k`.

    Returns:
        In `[0, 1]`; `nan` if all users have clicked all targets.
    """
    _hits(shown, target_items, owns)
    is_open = ~owns
    gains = 1.0 / np.log2(np.arange(shown.shape[1]) + 2.0)
    found = np.zeros(len(shown))
    for number, item in enumerate(target_items):
        found += ((shown == item) * is_open[:, [number]]) @ gains
    n_open = is_open.sum(axis=1)
    best = np.concatenate([[0.0], np.cumsum(gains)])[np.minimum(n_open, shown.shape[1])]
    counts = n_open > 0
    return _mean(found[counts] / best[counts])


def list_jaccard(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Return how alike two recommenders' lists are: the mean over users of `|A and B| / |A or B|`, JS@K.

    Gradient Passing (RecSys 2024), §5.4.2: how near a surrogate is to a victim.

    Args:
        first: Top-k lists, shape `(U, k)`, -1 for an empty place; items are distinct within a list.
        second: The other's lists for the same users, shape `(U, m)`.

    Returns:
        In `[0, 1]`; two empty lists are alike; `nan` without users.
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ArgumentError(
            f"second must have shape ({len(first)}, k), one list per user, got {second.shape}"
        )
    alike = np.empty(len(first))
    for user, (own, other) in enumerate(zip(first, second, strict=True)):
        a, b = own[own >= 0], other[other >= 0]
        n_both = int(np.isin(a, b, assume_unique=True).sum())
        n_any = len(a) + len(b) - n_both
        alike[user] = n_both / n_any if n_any else 1.0
    return _mean(alike)


def _hits(
    shown: NDArray[np.int64], target_items: NDArray[np.int64], owns: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which targets are in each list, shape `(U, n_targets)`, after checks."""
    if shown.ndim != 2:
        raise ArgumentError(f"shown must have shape (U, k), got {shown.shape}")
    targets = as_ids("target_items", target_items, below=int(np.iinfo(np.int64).max), shape=(None,))
    if owns.shape != (len(shown), len(targets)) or owns.dtype != np.bool_:
        raise ArgumentError(
            f"owns must be a bool array of shape ({len(shown)}, {len(targets)}), "
            f"got {owns.dtype} {owns.shape}"
        )
    return np.stack([(shown == item).any(axis=1) for item in targets], axis=1)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")
