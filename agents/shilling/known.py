"""What an attacker who writes ratings knows of the log; no composition may ask for more than it is given."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions, KnowledgeError
from recattack_gym.core.checks import as_choice

Fact = Literal["overall", "popularity", "item_means", "log"]
FACTS: tuple[Fact, ...] = ("overall", "popularity", "item_means", "log")


@dataclass(frozen=True, eq=False, kw_only=True)
class Known:
    """Facts about a rated log; those that an attacker does not know are `None`."""

    n_items: int
    """Size of the catalogue."""
    levels: NDArray[np.float64]
    """Every rating that one can give, ascending; the platform shows them."""
    overall: tuple[float, float] | None = None
    """Mean and population standard deviation of all ratings."""
    popularity: NDArray[np.int64] | None = None
    """Ratings of each item, shape `(n_items,)`."""
    item_means: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Mean and standard deviation of each item's ratings, each `(n_items,)`; see `_item_means`."""
    log: Interactions | None = None
    """Every profile."""

    @classmethod
    def of(cls, log: Interactions, facts: Iterable[Fact] = FACTS) -> "Known":
        """Return some facts about a log.

        Args:
            log: With ratings.
            facts: Which; by default all.

        Raises:
            ArgumentError: If the log has no ratings, or there is no such fact.
        """
        chosen = {as_choice("facts", fact, FACTS) for fact in facts}
        if log.ratings is None or len(log) == 0:
            raise ArgumentError("log must have ratings, got clicks")
        mean, spread = float(log.ratings.mean()), float(log.ratings.std())
        count = log.item_popularity
        return cls(
            n_items=log.n_items,
            levels=np.unique(log.ratings),
            overall=(mean, spread) if "overall" in chosen else None,
            popularity=count if "popularity" in chosen else None,
            item_means=_item_means(log, count, mean, spread) if "item_means" in chosen else None,
            log=log if "log" in chosen else None,
        )

    def require(self, facts: Iterable[Fact], kind: str) -> None:
        """Raise `KnowledgeError` unless all of some facts are known."""
        for fact in facts:
            if getattr(self, fact) is None:
                raise KnowledgeError(f"shilling attack {kind!r} needs to know {fact!r} of the log")

    def nearest_level(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the ratings that can be given nearest to some values; of two the higher one. Any shape."""
        middles = (self.levels[1:] + self.levels[:-1]) / 2.0
        return self.levels[np.searchsorted(middles, values, side="right")]


def _item_means(
    log: Interactions, count: NDArray[np.int64], mean: float, spread: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means, overall where nobody rates, and deviations, overall where fewer than two do."""
    assert log.ratings is not None  # noqa: S101  # checked by the caller
    some = np.maximum(count, 1)
    means = np.bincount(log.item_ids, log.ratings, log.n_items) / some
    off = (log.ratings - means[log.item_ids]) ** 2
    spreads = np.sqrt(np.bincount(log.item_ids, off, log.n_items) / some)
    return np.where(count >= 1, means, mean), np.where(count >= 2, spreads, spread)
