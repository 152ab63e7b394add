"""DPA2DL: poison a surrogate's weights, then let each fake user click what that surrogate shows it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.gradient.attack import FillerChooser, GroupAttacker, GroupAttackerConfig
from agents.gradient.kernels import Real, largest
from agents.gradient.profiles import Task, top_items
from agents.gradient.surrogates import Surrogate
from recattack_gym.core.checks import as_count, as_real

_AT_ONCE = 512
"""Users whose scores are in memory at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DPA2DLConfig(GroupAttackerConfig):
    """Settings of `DPA2DL`; the defaults are GP-lab's on Gowalla."""

    rounds: int = 1
    """Poisonings of a surrogate, each followed by an epoch of training."""
    list_length: int = 50
    """K: a target should score above the K-th best item of a user."""
    poison_scale: float = 1e-7
    """Weight of both poison losses; small, because they share Adam's second moments with training."""
    user_weight: float = 10.0
    """Weight of the loss of genuine users (eta; `reg_u` in GP-lab)."""
    margin: float = 1.0
    """kappa: by how much log-probabilities of targets should be larger; more is not rewarded."""
    selection_decay: float = 0.9
    """What a chosen item's selection probability is multiplied by (delta), in `(0, 1]`."""
    user_batch_size: int = 2048
    """Genuine users per poison step."""

    def __post_init__(self) -> None:
        GroupAttackerConfig.__post_init__(self)
        for name in ("rounds", "list_length", "user_batch_size"):
            as_count(name, getattr(self, name))
        for name in ("poison_scale", "user_weight", "margin"):
            as_real(name, getattr(self, name), above=0.0)
        as_real("selection_decay", self.selection_decay, above=0.0, at_most=1.0)


class DPA2DL(GroupAttacker):
    """Click the targets, and the items that a surrogate poisoned in their favour would show each fake user.

    Huang, Mu, Gong, Li, Liu and Xu, "Data poisoning attacks to deep learning based recommender systems", NDSS
    2021, as GP-lab has it (Gradient Passing, RecSys 2024). Between two epochs of training the surrogate's
    weights are pushed so that targets enter genuine users' top-K and fake users' other scores fall.

    Differs from the paper: as in GP-lab the joint loss is replaced by alternating steps of one Adam, and the
    norm of fake users' scores leaves targets out. Selection probabilities are reset when those of all items
    that are no targets are below 1 (targets are never chosen, so theirs never falls).
    """

    name = "dpa2dl"
    config: DPA2DLConfig
    config_class = DPA2DLConfig

    def _chooser(self, task: Task) -> "SelectionByScore":
        return SelectionByScore(task, self.config)


class SelectionByScore(FillerChooser):
    """Poisons surrogates and chooses by score times selection probability.

    Args:
        task: What the attack is about.
        config: Settings.
    """

    def __init__(self, task: Task, config: DPA2DLConfig) -> None:
        self._task, self._config = task, config
        self._is_filler = ~task.is_target
        self.selection = np.ones(task.log.n_items)
        """Selection probabilities p, shape `(n_items,)`."""

    def fillers(
        self, surrogate: Surrogate, fake_users: range, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """See `FillerChooser.fillers`."""
        fakes = surrogate.graph.n_genuine + np.array(fake_users)
        for _ in range(self._config.rounds):
            self._poison(surrogate, fakes, rng)
            surrogate.train_epoch()
        return [self.choose(scores) for scores in surrogate.scores(fakes)]

    def choose(self, scores: NDArray[Real]) -> NDArray[np.int64]:
        """Return the fillers of a fake user from its scores, shape `(n_items,)`; lowers their probability."""
        worth = _sigmoid(scores.astype(np.float64)) * self.selection
        chosen = top_items(worth, self._is_filler, self._task.n_fillers)
        self.selection[chosen] *= self._config.selection_decay
        if (self.selection[self._is_filler] < 1.0).all():
            self.selection[:] = 1.0
        return chosen

    def _poison(
        self, surrogate: Surrogate, fakes: NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        config = self._config
        users = rng.permutation(surrogate.graph.n_genuine)
        for start in range(0, len(users), config.user_batch_size):
            some = users[start : start + config.user_batch_size]
            _, gradient = promotion_gradient(
                some,
                surrogate.representations(),
                surrogate.graph.n_users,
                self._task.target_items,
                list_length=config.list_length,
                margin=config.margin,
            )
            gradient *= gradient.dtype.type(config.poison_scale * config.user_weight)
            surrogate.descend(gradient)
        if self._is_filler.any():
            gradient = suppression_gradient(
                fakes, surrogate.representations(), surrogate.graph.n_users, self._is_filler
            )[1]
            gradient *= gradient.dtype.type(config.poison_scale)
            surrogate.descend(gradient)


def promotion_terms(
    scores: NDArray[Real], target_items: NDArray[np.int64], *, list_length: int, margin: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return how far targets are from each user's list: `max(log sigma(s_(K)) - log sigma(s_t), -margin)`.

    Huang et al., NDSS 2021, the loss of normal users.

    Args:
        scores: Of all items, targets and clicked ones included, shape `(B, n_items)`.
        target_items: Shape `(n_targets,)`.
        list_length: K; the last item where there are fewer.
        margin: kappa.

    Returns:
        The terms, shape `(B, n_targets)`, and the K-th best item of each user, shape `(B,)`.
    """
    k = min(list_length, scores.shape[1])
    best = np.empty((len(scores), k), dtype=np.int64)
    largest(np.ascontiguousarray(scores), k, best)
    last = best[:, -1]
    threshold = _log_sigmoid(scores[np.arange(len(scores)), last].astype(np.float64))
    reached = _log_sigmoid(scores[:, target_items].astype(np.float64))
    return np.maximum(threshold[:, None] - reached, -margin), last


def promotion_gradient(
    users: NDArray[np.int64],
    representations: NDArray[Real],
    n_users: int,
    target_items: NDArray[np.int64],
    *,
    list_length: int,
    margin: float,
) -> tuple[float, NDArray[Real]]:
    """Return the mean of `promotion_terms` over users and targets, and its gradient.

    Args:
        users: Shape `(B,)`.
        representations: Shape `(n_rows, d)`.
        n_users: Where the rows of items begin.
        target_items: Shape `(n_targets,)`.
        list_length: K.
        margin: kappa.

    Returns:
        The loss, and its gradient, shape `(n_rows, d)`.
    """
    gradient = np.zeros_like(representations)
    items, of_items = representations[n_users:], gradient[n_users:]
    n_terms, total = len(users) * len(target_items), 0.0
    for start in range(0, len(users), _AT_ONCE):
        some = users[start : start + _AT_ONCE]
        rows = representations[some]
        scores = rows @ items.T
        terms, last = promotion_terms(scores, target_items, list_length=list_length, margin=margin)
        total += terms.sum()
        counts = terms > -margin
        at_last = _sigmoid(-scores[np.arange(len(some)), last].astype(np.float64))
        push_last = (at_last * counts.sum(axis=1) / n_terms).astype(rows.dtype)
        at_targets = _sigmoid(-scores[:, target_items].astype(np.float64))
        push_targets = (-at_targets * counts / n_terms).astype(rows.dtype)
        gradient[some] += push_last[:, None] * items[last] + push_targets @ items[target_items]
        np.add.at(of_items, last, push_last[:, None] * rows)
        of_items[target_items] += push_targets.T @ rows
    return total / n_terms, gradient


def suppression_gradient(
    fakes: NDArray[np.int64],
    representations: NDArray[Real],
    n_users: int,
    is_filler: NDArray[np.bool_],
) -> tuple[float, NDArray[Real]]:
    """Return the mean of `sigma(s_fi) ** 2` over fake users and items that are no targets, and its gradient.

    Args:
        fakes: Rows of fake users, shape `(B,)`.
        representations: Shape `(n_rows, d)`.
        n_users: Where the rows of items begin.
        is_filler: Which items count, shape `(n_items,)`; at least one.

    Returns:
        The loss, and its gradient, shape `(n_rows, d)`.
    """
    gradient = np.zeros_like(representations)
    rows, items = representations[fakes], representations[n_users:]
    shares = _sigmoid((rows @ items.T).astype(np.float64)) * is_filler
    n_terms = len(fakes) * int(is_filler.sum())
    push = (2.0 * shares**2 * (1.0 - shares) / n_terms).astype(rows.dtype)
    gradient[fakes] += push @ items
    gradient[n_users:] += push.T @ rows
    return float((shares**2).sum() / n_terms), gradient


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(_log_sigmoid(x))


def _log_sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.logaddexp(0.0, -x)
