"""The cross-entropy method over which targets, and items of which popularity, are clicked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.search import SearchAttacker, SearchConfig, Trials
from recattack_gym.core.checks import as_real
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEntropyConfig(SearchConfig):
    """Settings of `CrossEntropy`."""

    elite_rate: float = 0.2
    """Share of a batch that the distribution is moved towards; batches are small, so no 0.01 to 0.1."""
    smoothing: float = 0.3
    """How far it is moved, 1 all the way; below the usual 0.4 to 0.9, as batches are small."""
    target_share: float = 0.5
    """Share of clicks on targets at the beginning; a half, as PoisonRec's tree."""
    bin_growth: float = 1.5
    """Each bin of items by popularity holds so many times the items of the one before it; > 1."""

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        as_real("elite_rate", self.elite_rate, above=0.0, at_most=1.0)
        as_real("smoothing", self.smoothing, above=0.0, at_most=1.0)
        as_real("target_share", self.target_share, above=0.0, at_most=1.0)
        as_real("bin_growth", self.bin_growth, above=1.0)


class CrossEntropy(SearchAttacker):
    """Draw poison sets from a distribution that moves towards the best of each batch.

    De Boer, Kroese, Mannor and Rubinstein, "A tutorial on the cross-entropy method", Annals of Operations
    Research 134, 2005, algorithm 4.1 with smoothed updates.

    A click is drawn in two stages. First a *cell*: one of the targets, or one of the bins that hold the
    other items by popularity, each larger than the one before it. Then an item of the cell, uniformly. Even
    and odd places of a profile have distributions of their own, so that alternation can be found. All
    fake users are alike. So there are about sixty numbers to learn, whatever the size of the catalogue.

    Args:
        config: Settings.

    Differs from the paper: small batches, so a larger elite and a smaller step.
    """

    name = "cross-entropy"
    config: CrossEntropyConfig
    config_class = CrossEntropyConfig

    def _search(self, view: AttackerView, trials: Trials, rng: np.random.Generator) -> None:
        config = self.config
        cells, sizes = _cells(view, config.bin_growth)
        n_targets = len(view.goal.target_items)
        shares = _initial_shares(n_targets, len(sizes), config.target_share)
        starts = np.cumsum(sizes) - sizes
        while not trials.is_spent:
            n_sets = min(config.batch_size, trials.n_left)
            chosen = _draw_cells(shares, n_sets, view, rng)
            place = starts[chosen] + (rng.random(chosen.shape) * sizes[chosen]).astype(np.int64)
            worth = trials.query(cells[place])
            n_elites = max(1, round(config.elite_rate * n_sets))
            elites = chosen[np.argsort(-worth, kind="stable")[:n_elites]]
            for parity in range(min(2, chosen.shape[2])):
                counts = np.bincount(elites[:, :, parity::2].ravel(), minlength=len(sizes))
                shares[parity] += config.smoothing * (counts / counts.sum() - shares[parity])


def _cells(view: AttackerView, growth: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all items, cell by cell, shape `(n_items,)`, and the size of each cell, targets first."""
    targets = np.array(view.goal.target_items, dtype=np.int64)
    others = np.setdiff1d(np.arange(view.n_items, dtype=np.int64), targets)
    others = others[np.argsort(-view.item_popularity[others], kind="stable")]
    sizes, left, size = [1] * len(targets), len(others), 1.0
    while left > 0:
        sizes.append(min(left, int(size)))
        left -= sizes[-1]
        size *= growth
    return np.concatenate([targets, others]), np.array(sizes)


def _initial_shares(n_targets: int, n_cells: int, target_share: float) -> NDArray[np.float64]:
    """Return the chance of every cell at even and at odd places, shape `(2, n_cells)`."""
    shares = np.zeros((2, n_cells))
    n_bins = n_cells - n_targets
    share = target_share if n_bins else 1.0
    shares[:, :n_targets] = share / n_targets
    shares[:, n_targets:] = (1 - share) / max(1, n_bins)
    return shares


def _draw_cells(
    shares: NDArray[np.float64], n_sets: int, view: AttackerView, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the cell of every click, shape `(n_sets, n_fake_users, profile_size)`."""
    budget = view.budget
    chosen = np.zeros((n_sets, budget.n_fake_users, budget.profile_size), dtype=np.int64)
    for parity in range(2):
        places = chosen[:, :, parity::2]
        places[...] = rng.choice(
            len(shares[parity]), size=places.shape, p=_normalised(shares[parity])
        )
    return chosen


def _normalised(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take out the rounding of many small updates, which `rng.choice` would refuse."""
    positive = np.maximum(shares, 0.0)
    normalised: NDArray[np.float64] = positive / positive.sum()
    return normalised
