"""The probe attack: let the recommender under attack itself say what a genuine profile looks like."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agents.shilling.compositions import Items, Ratings
from agents.shilling.known import Known
from recattack_gym.core import ArgumentError, AttackBudget, AttackGoal, FakeProfiles
from recattack_gym.core.checks import as_count, as_generator, as_ids


class Recommender(Protocol):
    """What a platform shows a user who has rated some items."""

    def __call__(
        self, item_ids: NDArray[np.int64], ratings: NDArray[np.float64], n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return at most `n` items, best first, with predicted ratings.

        Args:
            item_ids: What the user has rated, shape `(n_rated,)`.
            ratings: How, shape `(n_rated,)`.
            n: Length of the list.
        """


def probe_profiles(
    recommend: Recommender,
    known: Known,
    goal: AttackGoal,
    budget: AttackBudget,
    rng: np.random.Generator,
    *,
    n_seeds: int = 3,
    list_length: int = 10,
) -> tuple[FakeProfiles, int]:
    """Rate a few items, then whatever is recommended as it is predicted, and the targets at the end.

    Mobasher et al., ACM TOIT 2007. Seeds are uniform items with ratings drawn as in the average attack. If
    nothing new is recommended any more, one more uniform item is rated like a seed.

    Args:
        recommend: Is asked once for every list; a fake account that asks has rated no target yet.
        known: The items' means.
        goal: Which items, and whether up or down.
        budget: All of which is spent.
        rng: Source of all randomness.
        n_seeds: Items rated before the first list.
        list_length: Of the lists that are asked for.

    Returns:
        The profiles, in the order in which they were rated, and how many lists were asked for.

    Raises:
        KnowledgeError: If the items' means are not known.
        ArgumentError: If the budget does not fit the catalogue.
    """
    as_generator("rng", rng)
    as_count("n_seeds", n_seeds)
    as_count("list_length", list_length)
    known.require(("item_means",), "probe")
    assert known.item_means is not None  # noqa: S101  # just required
    targets = as_ids("target_items", list(goal.target_items), below=known.n_items, shape=(None,))
    n_rest = budget.profile_size - len(targets)
    others = np.setdiff1d(np.arange(known.n_items), targets)
    if not 0 <= n_rest <= len(others):
        raise ArgumentError(
            f"profile_size must lie in [{len(targets)}, {known.n_items}], got {budget.profile_size}"
        )
    value = float(known.levels[-1 if goal.direction == "push" else 0])
    rows, n_lists = [], 0
    for _ in range(budget.n_fake_users):
        items, ratings, asked = _profile(
            recommend, known, others, n_rest, min(n_seeds, n_rest), list_length, rng
        )
        n_lists += asked
        rows.append((np.append(items, targets), np.append(ratings, np.full(len(targets), value))))
    header = {
        "attacker": "shilling-probe",
        "target_items": list(goal.target_items),
        "direction": goal.direction,
        "n_items": known.n_items,
        "n_lists": n_lists,
    }
    items, ratings = (np.stack(column) for column in zip(*rows, strict=True))
    return FakeProfiles(items, ratings, header), n_lists


def _profile(
    recommend: Recommender,
    known: Known,
    others: Items,
    n_rest: int,
    n_seeds: int,
    list_length: int,
    rng: np.random.Generator,
) -> tuple[Items, Ratings, int]:
    """Return items and ratings of one fake user, without targets, and the lists that it asked for."""
    assert known.item_means is not None  # noqa: S101  # the caller's check
    means, spreads = known.item_means
    chosen: Items = rng.choice(others, n_seeds, replace=False)
    ratings: Ratings = known.nearest_level(rng.normal(means[chosen], spreads[chosen]))
    n_lists = 0
    while len(chosen) < n_rest:
        shown, predicted = recommend(chosen, ratings, list_length)
        n_lists += 1
        is_new = np.isin(shown, others) & ~np.isin(shown, chosen)
        new, values = shown[is_new], predicted[is_new]
        if not len(new):
            new = rng.choice(np.setdiff1d(others, chosen), 1)
            values = rng.normal(means[new], spreads[new])
        room = n_rest - len(chosen)
        chosen = np.append(chosen, new[:room])
        ratings = np.append(ratings, known.nearest_level(values[:room]))
    return chosen, ratings, n_lists
