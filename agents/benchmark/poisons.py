"""Varied poison sets for measuring the simulator; not attacks to report."""

import numpy as np
from numpy.typing import NDArray

KINDS = ("random", "popular", "niche", "one_item", "targets", "one_target", "blocks", "cluster")
"""What the clicks beside the target clicks are; see `poison_set`."""


def varied_poison(
    item_popularity: NDArray[np.int64],
    target_items: NDArray[np.int64],
    shape: tuple[int, int, int],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Make poison sets of all kinds in turn.

    Args:
        item_popularity: Shape `(n_items,)`, targets included.
        target_items: Shape `(n_targets,)`.
        shape: `(M, N, T)`.
        rng: Source of all randomness.

    Returns:
        Item ids, of `shape`; set `m` is of kind `KINDS[m % len(KINDS)]`.
    """
    n_sets, *size = shape
    kinds = (KINDS[m % len(KINDS)] for m in range(n_sets))
    cell = (size[0], size[1])
    return np.stack([poison_set(kind, item_popularity, target_items, cell, rng) for kind in kinds])


def poison_set(
    kind: str,
    item_popularity: NDArray[np.int64],
    target_items: NDArray[np.int64],
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Make one poison set; which targets it promotes and the share of their clicks are drawn.

    Args:
        kind: `"random"`, `"popular"`, `"niche"` and `"one_item"`: filler clicks uniform over the
            catalogue, its most popular tenth, its least popular half, or all on one item.
            `"targets"` and `"one_target"`: no fillers. `"blocks"`: each fake user clicks its targets
            first. `"cluster"`: twenty filler items that all fake users share.
        item_popularity: Shape `(n_items,)`, targets included.
        target_items: Shape `(n_targets,)`.
        shape: `(N, T)`.
        rng: Source of all randomness.

    Returns:
        Item ids, of `shape`.
    """
    others = np.setdiff1d(np.arange(len(item_popularity)), target_items)
    ranked = others[np.argsort(-item_popularity[others], kind="stable")]
    promoted = rng.permutation(target_items)[: rng.integers(1, len(target_items) + 1)]
    share = rng.uniform(0.1, 0.9)
    is_target = rng.random(shape) < share
    pool = ranked
    if kind == "popular":
        pool = ranked[: max(len(ranked) // 10, 1)]
    elif kind == "niche":
        pool = ranked[len(ranked) // 2 :]
    elif kind == "one_item":
        pool = rng.choice(ranked[: max(len(ranked) // 4, 1)], 1)
    elif kind == "cluster":
        pool = rng.choice(ranked[: max(len(ranked) // 2, 1)], 20)
    elif kind == "blocks":
        is_target = np.broadcast_to(np.arange(shape[1]) < share * shape[1], shape)
    elif kind in ("targets", "one_target"):
        is_target = np.ones(shape, dtype=np.bool_)
        promoted = promoted[:1] if kind == "one_target" else promoted
    clicks: NDArray[np.int64] = np.where(
        is_target, rng.choice(promoted, shape), rng.choice(pool, shape)
    )
    return clicks
