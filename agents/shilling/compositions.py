"""The compositions: which items are selected, which fill up, and what each gets; pure functions.

Lam and Riedl, "Shilling recommender systems for fun and profit", WWW 2004 (random, average); Mobasher, Burke,
Bhaumik and Williams, "Toward trustworthy recommender systems", ACM TOIT 7(4), 2007 (bandwagon, segment,
reverse bandwagon, love/hate, probe, popular); Hurley, Cheng and Zhang, RecSys 2009 (average over popular).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from agents.shilling.known import Fact, Known
from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.core.attack import DIRECTIONS, Direction

Items = NDArray[np.int64]
Ratings = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """What a composition is about."""

    known: Known
    """What the attacker knows."""
    target_items: Items
    """Shape `(n_targets,)`."""
    direction: Direction
    """What is wanted of them."""
    popular_rate: float
    """Share of the other items that counts as popular."""
    min_raters: int
    """Ratings from which an item is known well enough to be disliked."""
    segment_items: Items | None
    """Items that the audience likes, or `None` for those most like the targets."""

    @property
    def others(self) -> Items:
        """All items but the targets, ascending."""
        return np.setdiff1d(np.arange(self.known.n_items), self.target_items)

    @property
    def low(self) -> float:
        """The lowest rating that can be given."""
        return float(self.known.levels[0])

    @property
    def high(self) -> float:
        """The highest rating that can be given."""
        return float(self.known.levels[-1])


@dataclass(frozen=True, kw_only=True)
class Composition:
    """How profiles of one kind are put together."""

    needs: tuple[Fact, ...] = ()
    """The least that has to be known."""
    directions: tuple[Direction, ...] = DIRECTIONS
    """What it is good for."""
    selected: Callable[[Task], Items] | None = None
    """Items to select from, best first, without targets."""
    selected_rating: Callable[[Task, Items], Ratings] | None = None
    """What those get."""
    pool: Callable[[Task], Items] | None = None
    """Items that filler items are drawn from, without targets; `None`: selected ones fill up all."""
    filler_rating: Callable[[Task, Items, np.random.Generator], Ratings] | None = None
    """What filler items get, before it is rounded to a rating that can be given."""


# -- items -------------------------------------------------------------------------------------------


def most_popular(popularity: NDArray[np.int64], among: Items) -> Items:
    """Return items by how often they are clicked or rated, most first; of equals the smaller id."""
    return among[np.argsort(-popularity[among], kind="stable")]


def popular_share(popularity: NDArray[np.int64], among: Items, rate: float) -> Items:
    """Return the most popular `floor(rate * n)` items, at least one, ascending."""
    return np.sort(most_popular(popularity, among)[: max(1, int(rate * len(among)))])


def most_alike(log: Interactions, seeds: Items, among: Items) -> Items:
    """Return items by the sum of their cosines to some items, by who has both; most alike first."""
    from scipy.sparse import csr_matrix

    indptr, items = log.seen
    users = csr_matrix((np.ones(len(items)), items, indptr), shape=(log.n_users, log.n_items))
    size = np.sqrt(np.maximum(np.asarray(users.sum(axis=0)).ravel(), 1.0))
    shared = users.T @ (users[:, seeds] @ (1.0 / size[seeds]))
    likeness = shared / size
    return among[np.argsort(-likeness[among], kind="stable")]


def _popular(task: Task) -> Items:
    assert task.known.popularity is not None  # noqa: S101  # `needs`
    return most_popular(task.known.popularity, task.others)


def _top_share(task: Task) -> Items:
    assert task.known.popularity is not None  # noqa: S101  # `needs`
    return popular_share(task.known.popularity, task.others, task.popular_rate)


def _disliked(task: Task) -> Items:
    assert task.known.popularity is not None  # noqa: S101  # `needs`
    assert task.known.item_means is not None  # noqa: S101  # `needs`
    known = task.others[task.known.popularity[task.others] >= task.min_raters]
    return known[np.argsort(task.known.item_means[0][known], kind="stable")]


def _segment(task: Task) -> Items:
    if task.segment_items is not None:
        return task.segment_items[~np.isin(task.segment_items, task.target_items)]
    log = task.known.log
    assert log is not None  # noqa: S101  # `needs`
    if not log.item_popularity[task.target_items].any():
        raise ArgumentError(
            "segment_items must name what the audience likes where nobody has rated a target, got None"
        )
    return most_alike(log, task.target_items, task.others)


def _others(task: Task) -> Items:
    return task.others


# -- ratings -----------------------------------------------------------------------------------------


def _highest(task: Task, items: Items) -> Ratings:
    return np.full(len(items), task.high)


def _lowest(task: Task, items: Items) -> Ratings:
    return np.full(len(items), task.low)


def _cautious(task: Task, items: Items) -> Ratings:
    """Rate popular items low beside a pushed target and high beside a nuked one, the liked ones less so."""
    assert task.known.item_means is not None  # noqa: S101  # `needs`
    assert task.known.overall is not None  # noqa: S101  # `needs`
    levels = task.known.levels
    is_liked = task.known.item_means[0][items] >= task.known.overall[0]
    liked, disliked = (
        (levels[:2][-1], levels[0]) if task.direction == "push" else (levels[-1], levels[-2:][0])
    )
    result: Ratings = np.where(is_liked, liked, disliked)
    return result


def _overall_draw(task: Task, items: Items, rng: np.random.Generator) -> Ratings:
    assert task.known.overall is not None  # noqa: S101  # `needs`
    mean, spread = task.known.overall
    return rng.normal(mean, spread, len(items))


def _item_draw(task: Task, items: Items, rng: np.random.Generator) -> Ratings:
    assert task.known.item_means is not None  # noqa: S101  # `needs`
    means, spreads = task.known.item_means
    return rng.normal(means[items], spreads[items])


def _always_lowest(task: Task, items: Items, rng: np.random.Generator) -> Ratings:
    del rng
    return _lowest(task, items)


def _opposite(task: Task, items: Items, rng: np.random.Generator) -> Ratings:
    """Hate what surrounds a pushed target, love what surrounds a nuked one."""
    del rng
    return _lowest(task, items) if task.direction == "push" else _highest(task, items)


COMPOSITIONS: Mapping[str, Composition] = MappingProxyType(
    {
        "random": Composition(needs=("overall",), pool=_others, filler_rating=_overall_draw),
        "average": Composition(needs=("item_means",), pool=_others, filler_rating=_item_draw),
        "bandwagon": Composition(
            needs=("overall", "popularity"),
            directions=("push",),
            selected=_popular,
            selected_rating=_highest,
            pool=_others,
            filler_rating=_overall_draw,
        ),
        "bandwagon-average": Composition(
            needs=("popularity", "item_means"),
            directions=("push",),
            selected=_popular,
            selected_rating=_highest,
            pool=_others,
            filler_rating=_item_draw,
        ),
        "reverse-bandwagon": Composition(
            needs=("overall", "popularity", "item_means"),
            directions=("nuke",),
            selected=_disliked,
            selected_rating=_lowest,
            pool=_others,
            filler_rating=_overall_draw,
        ),
        "popular": Composition(
            needs=("overall", "popularity", "item_means"),
            selected=_popular,
            selected_rating=_cautious,
        ),
        "segment": Composition(
            needs=("log",),
            directions=("push",),
            selected=_segment,
            selected_rating=_highest,
            pool=_others,
            filler_rating=_always_lowest,
        ),
        "love-hate": Composition(pool=_others, filler_rating=_opposite),
        "average-over-popular": Composition(
            needs=("popularity", "item_means"), pool=_top_share, filler_rating=_item_draw
        ),
        "copy": Composition(needs=("log",)),
    }
)
"""The kinds of rated profiles; `"copy"` is put together in `profiles`, a probe attack in `probe`."""
