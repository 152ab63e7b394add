"""Rated fake profiles of every composition: exact budgets, every item once, the target in every profile."""

from dataclasses import asdict, dataclass

import numpy as np

from agents.shilling.compositions import COMPOSITIONS, Composition, Items, Ratings, Task
from agents.shilling.known import Known
from recattack_gym.core import (
    ArgumentError,
    AttackBudget,
    AttackGoal,
    FakeProfiles,
    UnknownNameError,
)
from recattack_gym.core.checks import as_count, as_generator, as_ids, as_real
from recattack_gym.defenses import UserItems


@dataclass(frozen=True, kw_only=True, slots=True)
class ShillingConfig:
    """Settings of the compositions."""

    n_selected: int = 3
    """Selected items of a profile (bandwagon, reverse bandwagon, segment); 1 to 3 in the literature."""
    popular_rate: float = 0.4
    """Share of the items that "average over popular" fills up from; 0.2, 0.4 and 0.6 in its paper."""
    min_raters: int = 20
    """Ratings that a disliked item of the reverse bandwagon attack has at least; [ours]."""
    segment_items: tuple[int, ...] | None = None
    """What the audience of the segment attack likes; `None`: items that share the targets' raters."""

    def __post_init__(self) -> None:
        as_count("n_selected", self.n_selected, at_least=0)
        as_real("popular_rate", self.popular_rate, above=0.0, at_most=1.0)
        as_count("min_raters", self.min_raters)


def rating_profiles(
    kind: str,
    known: Known,
    goal: AttackGoal,
    budget: AttackBudget,
    rng: np.random.Generator,
    config: ShillingConfig | None = None,
) -> FakeProfiles:
    """Write rated profiles: targets, selected items, and filler items for the rest of the budget.

    Targets get the highest rating (push) or the lowest (nuke). Draws are rounded to the nearest rating that
    genuine users give, halves up. Items are in random order.

    Args:
        kind: A key of `COMPOSITIONS`.
        known: What the attacker knows.
        goal: Which items, and whether up or down.
        budget: All of which is spent.
        rng: Source of all randomness.
        config: Settings.

    Raises:
        UnknownNameError: If there is no such kind.
        KnowledgeError: If less is known than the kind needs.
        ArgumentError: If the kind has no answer to the goal, or the budget does not fit the catalogue.
    """
    if kind not in COMPOSITIONS:
        raise UnknownNameError("shilling attack", kind, COMPOSITIONS)
    composition, config = COMPOSITIONS[kind], config or ShillingConfig()
    as_generator("rng", rng)
    needs = () if kind == "segment" and config.segment_items else composition.needs
    known.require(needs, kind)
    if goal.direction not in composition.directions:
        raise ArgumentError(
            f"direction must be {' or '.join(map(repr, composition.directions))} for shilling attack "
            f"{kind!r}, got {goal.direction!r}"
        )
    task = _task(known, goal, config)
    n_rest = budget.profile_size - len(task.target_items)
    if n_rest < 0:
        raise ArgumentError(
            f"profile_size must be at least the number of targets, {len(task.target_items)}, "
            f"got {budget.profile_size}"
        )
    if kind == "copy":
        rows = _copied(task, n_rest, budget.n_fake_users, rng)
    else:
        rows = _composed(composition, task, n_rest, budget.n_fake_users, config.n_selected, rng)
    return _with_targets(rows, task, header={
        "attacker": f"shilling-{kind}",
        "config": asdict(config),
        "target_items": list(goal.target_items),
        "direction": goal.direction,
        "n_items": known.n_items,
    }, rng=rng)  # fmt: skip


def _task(known: Known, goal: AttackGoal, config: ShillingConfig) -> Task:
    def ids(name: str, items: tuple[int, ...]) -> Items:
        return as_ids(name, list(items), below=known.n_items, shape=(None,))

    segment = config.segment_items
    return Task(
        known=known,
        target_items=ids("target_items", goal.target_items),
        direction=goal.direction,
        popular_rate=config.popular_rate,
        min_raters=config.min_raters,
        segment_items=None if segment is None else ids("segment_items", segment),
    )


def _composed(
    composition: Composition,
    task: Task,
    n_rest: int,
    n_fake_users: int,
    n_selected: int,
    rng: np.random.Generator,
) -> list[tuple[Items, Ratings]]:
    """Return items and ratings of each fake user, without targets."""
    items: Items = np.empty(0, dtype=np.int64)
    ratings: Ratings = np.empty(0)
    if composition.selected is not None and composition.selected_rating is not None:
        wanted = n_rest if composition.pool is None else n_selected
        if wanted > n_rest:
            raise ArgumentError(
                f"n_selected must be at most {n_rest}, what targets leave of a profile, got {wanted}"
            )
        items = composition.selected(task)[:wanted]
        if len(items) < wanted:
            raise ArgumentError(
                f"there must be {wanted} items to select for profile_size and n_selected, "
                f"got {len(items)}"
            )
        ratings = composition.selected_rating(task, items)
    if composition.pool is None or composition.filler_rating is None:
        return [(items, ratings)] * n_fake_users
    pool, n_filler = np.setdiff1d(composition.pool(task), items), n_rest - len(items)
    if n_filler > len(pool):
        raise ArgumentError(
            f"profile_size must leave at most {len(pool)} filler items, that many can be chosen, "
            f"got {n_filler}"
        )
    rows = []
    for _ in range(n_fake_users):
        fillers = rng.choice(pool, n_filler, replace=False)
        given = task.known.nearest_level(composition.filler_rating(task, fillers, rng))
        rows.append((np.concatenate([items, fillers]), np.concatenate([ratings, given])))
    return rows


def _copied(
    task: Task, n_rest: int, n_fake_users: int, rng: np.random.Generator
) -> list[tuple[Items, Ratings]]:
    """Return some items of a genuine profile, with the ratings they have there, for each fake user."""
    log = task.known.log
    assert log is not None  # noqa: S101  # `needs`
    pairs = UserItems.of(log.select(~np.isin(log.item_ids, task.target_items)))
    able = np.flatnonzero(pairs.lengths >= n_rest)
    if not len(able):
        raise ArgumentError(
            f"profile_size must leave no more items than a genuine profile has, "
            f"{pairs.lengths.max(initial=0)}, got {n_rest}"
        )
    ends = np.cumsum(pairs.lengths)
    rows = []
    for user in rng.choice(able, n_fake_users):
        own = np.arange(ends[user] - pairs.lengths[user], ends[user])
        chosen = rng.choice(own, n_rest, replace=False) if n_rest else own[:0]
        rows.append((pairs.item_ids[chosen], pairs.given[chosen]))
    return rows


def _with_targets(
    rows: list[tuple[Items, Ratings]],
    task: Task,
    header: dict[str, object],
    rng: np.random.Generator,
) -> FakeProfiles:
    """Put the targets into every profile and mix it."""
    value = task.high if task.direction == "push" else task.low
    targets = task.target_items
    items = np.stack([np.concatenate([targets, own]) for own, _ in rows])
    ratings = np.stack([np.concatenate([np.full(len(targets), value), given]) for _, given in rows])
    order = rng.permuted(np.broadcast_to(np.arange(items.shape[1]), items.shape), axis=1)
    return FakeProfiles(
        np.take_along_axis(items, order, axis=1), np.take_along_axis(ratings, order, axis=1), header
    )
