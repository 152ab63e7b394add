"""FAP: suspicion spreads from known fake users over the items that they share with others."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.defenses.base import DetectorConfig, State, SupervisedDetector
from recattack_gym.defenses.pairs import UserItems, sums_by


@dataclass(frozen=True, kw_only=True, slots=True)
class FAPConfig(DetectorConfig):
    """Settings of `FAP`."""

    n_rounds: int = 20
    """From users to items and back; the order of users is stable from 5 rounds on, see `FAP`."""
    is_polished: bool = False
    """Whether weights are divided by the sums of both ends, as in the paper; without finds more here."""
    damping: float = 1.0
    """Share that spreads; below 1 the rest stays with the known fake users, which the paper has not."""
    max_seeds: int = 300
    """Most known fake users to spread from, drawn at random; 300 as in the paper's experiment."""

    def __post_init__(self) -> None:
        as_count("n_rounds", self.n_rounds)
        as_real("damping", self.damping, above=0.0, at_most=1.0)
        as_count("max_seeds", self.max_seeds)
        if not isinstance(self.is_polished, bool):
            raise ArgumentError(f"is_polished must be True or False, got {self.is_polished!r}")


class FAP(SupervisedDetector):
    """Suspect users who have what known fake users have.

    Zhang, Zhu, Lou and Xin, "Catch the black sheep: unified framework for shilling attack detection based on
    fraudulent action propagation", IJCAI 2015: a random walk on the graph of users and items, over edges that
    weigh more the more a rating deviates, from known fake users (probability 1).

    All probabilities tend to 1 as rounds go on, since nothing draws them to 0: only their order means
    anything, and it does not change any more after a few rounds. No threshold makes sense.

    Differs from the paper: the known fake users are those of the log that it was fitted on, whose profiles
    are put beside the log that is scored (the paper's are accounts of the scored log itself). It knows the
    attackers of the past, by what they clicked; if they pushed other items than today's, little is left.
    """

    name = "fap"
    config: FAPConfig
    config_class = FAPConfig

    def _fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> None:
        known = np.flatnonzero(is_fake)
        known = np.sort(rng.permutation(known)[: self.config.max_seeds])
        pairs = UserItems.of(log)
        is_kept = np.isin(pairs.user_ids, known)
        self._learnt: State = {
            "user_ids": np.searchsorted(known, pairs.user_ids[is_kept]),
            "item_ids": pairs.item_ids[is_kept],
        }
        if pairs.ratings is not None:
            self._learnt["ratings"] = pairs.ratings[is_kept]

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        learnt = self._learnt
        if (log.ratings is None) != ("ratings" not in learnt):
            raise ArgumentError(
                f"log must have {'ratings' if 'ratings' in learnt else 'no ratings'} like the one that "
                "detector 'fap' was fitted on"
            )
        n_seeds = int(learnt["user_ids"].max()) + 1
        both = Interactions(
            np.concatenate([log.user_ids, learnt["user_ids"] + log.n_users]),
            np.concatenate([log.item_ids, learnt["item_ids"]]),
            log.n_users + n_seeds,
            max(log.n_items, int(learnt["item_ids"].max()) + 1),
            ratings=None
            if log.ratings is None
            else np.concatenate([log.ratings, learnt["ratings"]]),
        )
        is_seed = np.arange(both.n_users) >= log.n_users
        config = self.config
        found = propagate(
            UserItems.of(both), is_seed, config.n_rounds,
            is_polished=config.is_polished, damping=config.damping,
        )  # fmt: skip
        return found[: log.n_users]

    def _state(self) -> State:
        return dict(self._learnt)

    def _restore(self, state: State) -> None:
        self._learnt = {"user_ids": state["user_ids"], "item_ids": state["item_ids"]}
        if "ratings" in state:
            self._learnt["ratings"] = state["ratings"]


def edge_weights(pairs: UserItems, *, is_polished: bool) -> NDArray[np.float64]:
    """Return `1 + |r - mean_u| / mean_u + |r - mean_i| / mean_i + |r - mean| / mean` of each pair.

    Polished, divided by the sum over the user's items and the sum over the item's users. Clicks weigh 1. A
    mean of 0, on scales that begin there, adds nothing. Shape `(n_pairs,)`.
    """
    weights = np.ones(len(pairs.user_ids))
    if pairs.ratings is not None and len(pairs.ratings):
        user_means = pairs.user_means(pairs.ratings)[pairs.user_ids]
        item_means = pairs.item_means[pairs.item_ids]
        overall = np.full(len(weights), pairs.ratings.mean())
        for mean in (user_means, item_means, overall):
            size = np.abs(mean)
            weights += np.where(
                size > 0, np.abs(pairs.ratings - mean) / np.where(size > 0, size, 1.0), 0.0
            )
    if is_polished:
        of_item = sums_by(pairs.item_ids, weights, pairs.n_items)[pairs.item_ids]
        weights = weights / (pairs.user_sums(weights)[pairs.user_ids] * of_item)
    return weights


def propagate(
    pairs: UserItems,
    is_seed: NDArray[np.bool_],
    n_rounds: int,
    *,
    is_polished: bool = False,
    damping: float = 1.0,
) -> NDArray[np.float64]:
    """Return the probability of each user to be fake after some rounds, seeds not yet set back to 1.

    Args:
        pairs: Of a log.
        is_seed: Known fake users, shape `(n_users,)`.
        n_rounds: At least 1.
        is_polished: See `edge_weights`.
        damping: See `FAPConfig.damping`.

    Returns:
        Shape `(n_users,)`, in [0, 1].
    """
    weights = edge_weights(pairs, is_polished=is_polished)
    of_user = pairs.user_sums(weights)
    of_item = sums_by(pairs.item_ids, weights, pairs.n_items)
    to_users = pairs.matrix(weights / of_user[pairs.user_ids])
    to_items = pairs.matrix(weights / of_item[pairs.item_ids]).T.tocsr()
    seeds = is_seed.astype(np.float64)
    found = seeds
    for _ in range(as_count("n_rounds", n_rounds)):
        spread: NDArray[np.float64] = to_users @ (to_items @ np.where(is_seed, 1.0, found))
        found = damping * spread + (1.0 - damping) * seeds
    return np.clip(found, 0.0, 1.0)
