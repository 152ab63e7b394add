"""AppGrad: climb along an estimated gradient of RecNum with respect to the counts of fake clicks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.search import SearchAttacker, SearchConfig, Trials
from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, kw_only=True, slots=True)
class AppGradConfig(SearchConfig):
    """Settings of `AppGrad`; `batch_size` has no part in it."""

    n_directions: int = 5
    """Singular directions along which RecNum is probed in an iteration; 5, as in public code."""
    probe: float = 1.0
    """How far each is followed both ways: clicks by which the most affected count changes.

    Less than half a click would change nothing, much more leaves counts that say nothing about the gradient.
    """
    step: float = 1.0
    """Clicks by which an iteration moves the most affected count."""
    target_share: float = 0.5
    """Share of clicks on targets at the beginning; a half, PoisonRec §V."""

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        as_count("n_directions", self.n_directions)
        as_real("probe", self.probe, above=0.0)
        as_real("step", self.step, above=0.0)
        as_real("target_share", self.target_share, at_least=0.0, at_most=1.0)


class AppGrad(SearchAttacker):
    """Treat how often each fake user clicks each item as a matrix, and ascend RecNum by finite differences.

    Christakopoulou and Banerjee, "Adversarial attacks on an oblivious recommender", RecSys 2019, §4.2, as
    PoisonRec (Song et al., ICDE 2020, §V) adapts it to clicks. The gradient is estimated along the leading
    singular directions `u v'` of the matrix itself, so an item that no fake user clicks at the beginning is
    never clicked, and a step along them leaves them as they are (only rounding and clipping turn them).

    Differs from the paper: no generative network makes the first matrix, since there are no ratings to
    learn from; it is drawn with half of the clicks on targets, as in PoisonRec. Differences are two-sided:
    rounding and the fixed number of clicks make one-sided ones so crooked that nothing is climbed
    (tests/agents/optimization/test_search.py has a linear goal on which they go down). How counts are kept
    whole is not printed there: here the matrix is continuous, and what is evaluated is its nearest matrix
    of counts with exactly `profile_size` clicks per row (largest remainders). Steps are normalised.
    Clicks are in random order, one order for all probes of an iteration.
    """

    name = "appgrad"
    config: AppGradConfig
    config_class = AppGradConfig

    def _search(self, view: AttackerView, trials: Trials, rng: np.random.Generator) -> None:
        config, n_clicks = self.config, view.budget.profile_size
        items, counts = _initial_counts(view, config.target_share, rng)
        while not trials.is_spent:
            order = rng.random((len(counts), n_clicks)).argsort(axis=1)
            n_directions = min(config.n_directions, trials.n_left // 2)
            directions = singular_directions(counts, n_directions)
            if not len(directions):
                trials.query(_as_sets(items, counts[None], order))  # the last of an odd budget
                continue
            probes = config.probe / np.abs(directions).max(axis=(1, 2))
            moves = probes[:, None, None] * directions
            probed = np.concatenate([counts + moves, counts - moves])
            above, below = np.split(trials.query(_as_sets(items, probed, order)), 2)
            gradient = estimated_gradient(directions, above, below, probes)
            largest = np.abs(gradient).max(initial=0.0)
            if largest > 0:
                counts = counts + config.step * gradient / largest
                counts = np.maximum(counts, 0.0)
                counts *= n_clicks / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
            else:  # nothing to climb: start from somewhere else
                items, counts = _initial_counts(view, config.target_share, rng)


def singular_directions(counts: NDArray[np.float64], n_directions: int) -> NDArray[np.float64]:
    """Return the leading singular directions `u v'` of a matrix.

    Args:
        counts: Shape `(N, n)`.
        n_directions: How many at most.

    Returns:
        Shape `(n_found, N, n)`, each of Frobenius norm 1; none for singular values of 0.
    """
    u, s, vt = np.linalg.svd(counts, full_matrices=False)
    n_found = min(n_directions, int((s > 1e-9 * s[0]).sum()) if s[0] > 0 else 0)
    directions: NDArray[np.float64] = np.einsum("ik,kj->kij", u[:, :n_found], vt[:n_found])
    return directions


def estimated_gradient(
    directions: NDArray[np.float64],
    above: NDArray[np.float64],
    below: NDArray[np.float64],
    probes: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return `sum_k (f(M + a_k Z_k) - f(M - a_k Z_k)) / (2 a_k) Z_k`.

    For a linear f it is the projection of f's gradient on the directions, whatever `a`.

    Args:
        directions: Z, shape `(n, N, n_items)`.
        above: f at each `M + a_k Z_k`, shape `(n,)`.
        below: f at each `M - a_k Z_k`, shape `(n,)`.
        probes: a, shape `(n,)`.

    Returns:
        Shape `(N, n_items)`.
    """
    gradient: NDArray[np.float64] = np.tensordot((above - below) / (2 * probes), directions, axes=1)
    return gradient


def whole_counts(counts: NDArray[np.float64], n_clicks: int) -> NDArray[np.int64]:
    """Return whole counts near given ones: rows of exactly `n_clicks`, by largest remainders.

    Args:
        counts: Any numbers, shape `(N, n)`; negative ones count as 0, a row of zeros as equal ones.
        n_clicks: Sum of every row.

    Returns:
        Shape `(N, n)`.
    """
    shares = np.maximum(counts, 0.0)
    total = shares.sum(axis=1, keepdims=True)
    shares = np.where(total > 0, shares / np.where(total > 0, total, 1.0), 1.0 / counts.shape[1])
    wanted = shares * n_clicks
    whole = np.floor(wanted + 1e-9).astype(np.int64)
    missing = n_clicks - whole.sum(axis=1, keepdims=True)
    rank = np.argsort(np.argsort(-(wanted - whole), axis=1, kind="stable"), axis=1)
    rows: NDArray[np.int64] = whole + (rank < missing)
    return rows


def _initial_counts(
    view: AttackerView, target_share: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw clicks; returns the items that are clicked, `(n,)`, and how often by whom, `(N, n)`."""
    shape = (view.budget.n_fake_users, view.budget.profile_size)
    targets = np.array(view.goal.target_items, dtype=np.int64)
    others = np.setdiff1d(np.arange(view.n_items, dtype=np.int64), targets)
    clicks = rng.choice(targets, shape)
    if len(others):
        is_other = rng.random(shape) >= target_share
        clicks[is_other] = rng.choice(others, shape)[is_other]
    items = np.union1d(targets, clicks)
    counts = np.zeros((shape[0], len(items)))
    np.add.at(counts, (np.arange(shape[0])[:, None], np.searchsorted(items, clicks)), 1.0)
    return items, counts


def _as_sets(
    items: NDArray[np.int64], counts: NDArray[np.float64], order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Write matrices `(M, N, n)` out as clicks in the given order, `(M, N, T)`."""
    n_clicks = order.shape[1]
    sets = [[np.repeat(items, row) for row in whole_counts(each, n_clicks)] for each in counts]
    return np.take_along_axis(np.array(sets), order[None], axis=2)
