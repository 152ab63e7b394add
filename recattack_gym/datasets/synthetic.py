"""Generated logs of any size: the embedded default, and what scaling is measured on.

The generator has the three properties that rankers live on, each with one knob:

* **Popularity** follows a shifted Zipf law, `weight(rank) = (rank + shift) ** -exponent`.
* **Taste**: items belong to topics; a user has a few favourite topics with fixed shares and draws
  items inside a topic by popularity.
* **Sequence**: with probability `follow_rate` the next item is one of a few fixed successors of
  the last one, in the same topic and of similar popularity.

A user never clicks one item twice. Topics are to users and items what blocks are to a stochastic
block model; successors are a sparse first-order Markov chain on top.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_generator, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.datasets.dataset import Dataset

CHUNK_USERS = 20_000
"""Users generated together; bounds memory. Part of the result: another value, another log."""
MODEL_TRIES = 4
"""How often a repeated item is drawn anew from the model before any unseen item will do."""
SUCCESSOR_REACH = 8
"""A successor is at most so many places away in its topic's ranking by popularity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """Size and shape of a generated log."""

    n_users: int = 1_000
    """Users; up to a million takes minutes and little more memory than the log itself."""
    n_items: int = 500
    """Catalogue; the least popular items may stay without events."""
    n_events: int = 30_000
    """Events in all, exactly."""
    min_events: int = 5
    """Fewest events of a user; 5 as in the Amazon 5-core sets."""
    max_events: int = 999
    """Most events of a user (PoisonRec drops users with 1,000 or more); at most half the catalogue."""
    spread: float = 0.8
    """Standard deviation of the logarithm of user activity; 0 makes all users equally active."""
    zipf_exponent: float = 1.5
    """Decay of popularity; 0 makes all items equally popular."""
    zipf_shift: float = 10.0
    """Flattens the head, so that the first item does not take a tenth of all clicks."""
    n_topics: int = 10
    """Groups of items that are liked together."""
    taste: tuple[float, ...] = (0.6, 0.3, 0.1)
    """Shares of a user's favourite topics; they sum to 1."""
    explore_rate: float = 0.1
    """Share of clicks that follow overall popularity, whatever the user's taste."""
    follow_rate: float = 0.2
    """Share of clicks that follow the click before."""
    successors: tuple[float, ...] = (0.6, 0.3, 0.1)
    """Probabilities of an item's successors; they sum to 1."""

    def __post_init__(self) -> None:
        as_count("n_users", self.n_users)
        as_count("n_topics", self.n_topics)
        as_count("n_items", self.n_items, at_least=2 * self.n_topics)
        as_count("min_events", self.min_events)
        as_count("max_events", self.max_events, at_least=self.min_events)
        as_count("n_events", self.n_events)
        as_real("spread", self.spread, at_least=0)
        as_real("zipf_exponent", self.zipf_exponent, at_least=0)
        as_real("zipf_shift", self.zipf_shift, above=-1)
        as_real("explore_rate", self.explore_rate, at_least=0, at_most=1)
        as_real("follow_rate", self.follow_rate, at_least=0, at_most=1 - self.explore_rate)
        for name in ("taste", "successors"):
            shares = getattr(self, name)
            if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
                raise ArgumentError(f"{name} must be shares that sum to 1, got {shares}")
        most = self.most_events
        if not self.min_events * self.n_users <= self.n_events <= most * self.n_users:
            raise ArgumentError(
                f"n_events must lie between n_users * min_events = {self.n_users * self.min_events} and "
                f"n_users * min(max_events, n_items // 2) = {self.n_users * most}, got {self.n_events}"
            )

    @property
    def most_events(self) -> int:
        """Most events that a user can have in this catalogue."""
        return min(self.max_events, self.n_items // 2)


def generate(
    config: SyntheticConfig, rng: np.random.Generator, *, name: str = "synthetic"
) -> Dataset:
    """Draw a log; the same configuration and generator state give the same log.

    Args:
        config: Size and shape.
        rng: Source of all randomness.
        name: What to call the dataset.

    Raises:
        ArgumentError: If `rng` is not a NumPy generator.
    """
    as_generator("rng", rng)
    n_events = _draw_activity(config, rng)
    catalogue = _Catalogue.draw(config, rng)
    item_ids = np.empty(config.n_events, dtype=np.int64)
    filled = 0
    for start in range(0, config.n_users, CHUNK_USERS):
        chunk = _draw_sequences(config, catalogue, n_events[start : start + CHUNK_USERS], rng)
        item_ids[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    log = Interactions(
        np.repeat(np.arange(config.n_users, dtype=np.int64), n_events),
        item_ids,
        config.n_users,
        config.n_items,
    )
    return Dataset(
        name=name,
        log=log,
        item_names=tuple(f"item {item}" for item in range(config.n_items)),
        provenance=f"generated by recattack_gym.datasets.synthetic with {config}",
        licence="None needed: the log is generated, it describes nobody.",
        citation="recattack-gym, synthetic generator",
        description="Clicks with Zipf popularity, topics that users prefer, and items that follow items.",
    )


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """Items in order of topic, then popularity; a *place* is a position in this order."""

    item_at: NDArray[np.int64]  # (n_items,) item id at each place
    mass_before: NDArray[np.float64]  # (n_items + 1,) cumulated popularity
    topic_start: NDArray[np.int64]  # (n_topics + 1,) first place of each topic
    successors: NDArray[np.int64]  # (n_items, n_successors) places

    @classmethod
    def draw(cls, config: SyntheticConfig, rng: np.random.Generator) -> "_Catalogue":
        n_items, n_topics = config.n_items, config.n_topics
        weights = (np.arange(1.0, n_items + 1) + config.zipf_shift) ** -config.zipf_exponent
        topic_of_rank = rng.permutation(np.arange(n_items) % n_topics)
        rank_at = np.argsort(topic_of_rank, kind="stable")
        topic_start = np.searchsorted(topic_of_rank[rank_at], np.arange(n_topics + 1))
        successors = np.empty((n_items, len(config.successors)), dtype=np.int64)
        for first, end in pairwise(topic_start):
            size = end - first
            reach = min(SUCCESSOR_REACH, size - 1)
            steps = rng.integers(1, reach + 1, size=(size, successors.shape[1]))
            steps *= rng.choice(np.array([-1, 1]), size=steps.shape)
            successors[first:end] = first + (np.arange(size)[:, None] + steps) % size
        return cls(
            item_at=rng.permutation(n_items)[rank_at],
            mass_before=np.concatenate([[0.0], np.cumsum(weights[rank_at])]),
            topic_start=topic_start.astype(np.int64),
            successors=successors,
        )

    def places_by_popularity(
        self, uniform: NDArray[np.float64], first: NDArray[np.int64], end: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Draw a place in `[first, end)` by popularity; `uniform` in `[0, 1)`, all of one shape."""
        low, high = self.mass_before[first], self.mass_before[end]
        places = np.searchsorted(self.mass_before, low + uniform * (high - low), side="right") - 1
        return np.clip(places, first, end - 1)


def _draw_activity(config: SyntheticConfig, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw how many events each user has; shape `(n_users,)`, sums to `n_events`."""
    eagerness = np.exp(config.spread * rng.standard_normal(config.n_users))
    n_events = np.full(config.n_users, config.min_events, dtype=np.int64)
    while (missing := config.n_events - int(n_events.sum())) > 0:
        open_users = np.flatnonzero(n_events < config.most_events)
        shares = eagerness[open_users] / eagerness[open_users].sum()
        n_events[open_users] += rng.multinomial(missing, shares)
        np.minimum(n_events, config.most_events, out=n_events)
    return n_events


def _draw_sequences(
    config: SyntheticConfig,
    catalogue: _Catalogue,
    n_events: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw the item sequences of some users, one after the other; shape `(n_events.sum(),)`."""
    order = np.argsort(-n_events, kind="stable")  # the users still clicking come first
    lengths = n_events[order]
    favourites = _draw_favourites(config, catalogue, len(order), rng)
    history: NDArray[np.int32] = np.full((len(order), int(lengths[0])), -1, dtype=np.int32)
    for t in range(history.shape[1]):
        n_active = int(np.searchsorted(-lengths, -t, side="left"))
        pending = np.arange(n_active)
        attempt = 0
        while len(pending):
            if attempt < MODEL_TRIES:
                last = history[pending, t - 1].astype(np.int64) if t else None
                places = _draw_places(config, catalogue, favourites[pending], last, rng)
            else:
                places = rng.integers(config.n_items, size=len(pending))
            repeated = (history[pending, :t] == places[:, None]).any(axis=1)
            history[pending[~repeated], t] = places[~repeated]
            pending = pending[repeated]
            attempt += 1
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    chosen = history[back]
    return catalogue.item_at[chosen[chosen >= 0]]


def _draw_favourites(
    config: SyntheticConfig, catalogue: _Catalogue, n_users: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw each user's favourite topics by the popularity of their items; `(n_users, n_favourites)`."""
    size = (n_users, len(config.taste))
    whole = np.zeros(size, dtype=np.int64)
    places = catalogue.places_by_popularity(rng.random(size), whole, whole + config.n_items)
    return np.searchsorted(catalogue.topic_start, places, side="right") - 1


def _draw_places(
    config: SyntheticConfig,
    catalogue: _Catalogue,
    favourites: NDArray[np.int64],
    last: NDArray[np.int64] | None,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw the next place of each user; `favourites` `(n, n_favourites)`, `last` and result `(n,)`."""
    n_users = len(favourites)
    kind, slot, uniform = rng.random((3, n_users))
    favourite = np.searchsorted(np.cumsum(config.taste)[:-1], slot, side="right")
    topic = favourites[np.arange(n_users), favourite]
    explores = kind < config.explore_rate
    first = np.where(explores, 0, catalogue.topic_start[topic])
    end = np.where(explores, config.n_items, catalogue.topic_start[topic + 1])
    places = catalogue.places_by_popularity(uniform, first, end)
    if last is None:
        return places
    successor = np.searchsorted(np.cumsum(config.successors)[:-1], slot, side="right")
    follows = kind >= 1 - config.follow_rate
    return np.where(follows, catalogue.successors[last, successor], places)
