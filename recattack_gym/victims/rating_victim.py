"""What victims that complete a matrix of ratings have in common."""

import logging
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.victims.base import State, Victim, VictimConfig, state_array
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.least_squares import Linearised, Negatives, RatingMatrix, matrix_of
from recattack_gym.victims.least_squares_kernel import solve_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RatingConfig(VictimConfig):
    """Settings of victims that complete a matrix of ratings; the paper gives none of these values."""

    reg: float = 8.0
    """Weight of the penalty; the victim says on what."""
    tolerance: float = 1e-6
    """Training stops when no entry of the gradient is larger: the KKT residual."""
    max_steps: int = 60
    """Most Newton steps of training; more are warned of, not an error."""
    finetune_sweeps: int = 3
    """Block solves of fake users and of clicked items in fine-tuning."""
    negatives_per_click: int = 1
    """Unclicked items per click that a log without ratings is completed with, each rated -2.

    Where every rating is +2 there is nothing to tell apart: with 0 items rank by how many rate them, and no
    attack on the synthetic log has any RecNum.
    """
    new_items_as_negatives: bool = False
    """Whether they may be new items, such as new targets."""

    def __post_init__(self) -> None:
        as_real("reg", self.reg, above=0.0)
        as_real("tolerance", self.tolerance, above=0.0)
        as_count("max_steps", self.max_steps)
        as_count("finetune_sweeps", self.finetune_sweeps)
        as_count("negatives_per_click", self.negatives_per_click, at_least=0)
        if not isinstance(self.new_items_as_negatives, bool):
            raise ArgumentError(
                f"new_items_as_negatives must be True or False, got {self.new_items_as_negatives!r}"
            )


class RatingVictim(Victim):
    """Predicts `u_i . v_j` from ratings on [-2, 2] and ranks by it.

    A rated log is shifted linearly, its smallest rating to -2 and its largest to +2. If a user rates an item
    more than once the last rating counts. A click of a log without ratings is a rating of +2, and as many
    items that the user did not click (`negatives_per_click`) are rated -2.

    Fine-tuning solves, in turn, for the rows of the fake users and for those of the items that they
    clicked (between all raters, genuine ones too), `finetune_sweeps` times from the clean solution; genuine
    users and other items rest. Nothing about it is random.
    """

    config_class = RatingConfig
    config: RatingConfig

    @abstractmethod
    def start(self, n_items: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return item factors to train from, shape `(n_items, k)`."""

    @abstractmethod
    def solve(
        self, matrix: RatingMatrix, items: NDArray[np.float64], *, tolerance: float | None = None
    ) -> Linearised:
        """Train on a matrix of ratings.

        Args:
            matrix: Of genuine users, and of fake ones after them.
            items: Where to start, shape `(n_items, k)`: `start`, or an earlier solution.
            tolerance: Instead of the configured one.

        Returns:
            The solution and its Hessian.
        """

    @property
    def users(self) -> NDArray[np.float64]:
        """User factors, shape `(n_users, k)`."""
        return self._users

    @property
    def items(self) -> NDArray[np.float64]:
        """Item factors, shape `(n_items, k)`."""
        return self._items

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        # A generator of its own for the items, so that nothing depends on the users that follow
        items = self.start(log.n_items, np.random.default_rng(draw_seed(rng)))
        point = self.solve(matrix_of(log, self._negatives(0)), items)
        self._check_converged(point)
        self._take(point.users, point.items)

    def _check_converged(self, point: Linearised) -> None:
        if point.kkt_residual > self.config.tolerance:
            logger.warning(
                "%s stopped after max_steps = %d with a KKT residual of %.2g, above tolerance = %g",
                self.name, self.config.max_steps, point.kkt_residual, self.config.tolerance,
            )  # fmt: skip

    def _negatives(self, first_event: int) -> Negatives | None:
        """Return what to add to events that start with number `first_event`, if they are clicks."""
        config = self.config
        if config.negatives_per_click == 0:
            return None
        n_items = self.log.n_items - (0 if config.new_items_as_negatives else self.n_new_items)
        return Negatives(self._fit_seed, config.negatives_per_click, n_items, first_event)

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        del seed  # solves are not random
        clean = matrix_of(log, self._negatives(0))
        fakes = self._fake_ratings(log, profile)
        clicked = np.unique(profile)
        raters = _raters_of(clean, fakes, clicked)
        n_fake_users, k = len(profile), self._items.shape[1]
        users = np.concatenate([self._users, np.empty((n_fake_users, k))])
        fake_users = users[len(users) - n_fake_users :]
        items, moved = self._items.copy(), np.empty((len(clicked), k))
        user_lower, item_lower = np.empty((n_fake_users, k, k)), np.empty((len(clicked), k, k))
        for _ in range(self.config.finetune_sweeps):
            solve_rows(
                np.arange(n_fake_users), fakes.indptr, fakes.item_ids, fakes.ratings,
                items, self.config.reg, user_lower, fake_users,
            )  # fmt: skip
            solve_rows(
                np.arange(len(clicked)), raters.item_indptr, raters.raters, raters.ratings_by_item,
                users, self.config.reg, item_lower, moved,
            )  # fmt: skip
            items[clicked] = moved
        self._take(users, items)

    def _fake_ratings(self, log: Interactions, profile: NDArray[np.int64]) -> RatingMatrix:
        """Return what fake users, shape `(N, T)`, add to the ratings of the clean log; users from 0."""
        owners = np.repeat(np.arange(len(profile)), profile.shape[1])
        clicks = Interactions(owners, profile.ravel(), len(profile), log.n_items)
        return RatingMatrix.from_log(
            clicks, self._negatives(len(log)) if log.ratings is None else None
        )

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        return self._factors.score(user_ids, item_ids)

    @cached_property
    def _factors(self) -> Factors:
        users, items = (side.astype(np.float32) for side in (self._users, self._items))
        return Factors(users, items, np.zeros(len(items), dtype=np.float32))

    def _take(self, users: NDArray[np.float64], items: NDArray[np.float64]) -> None:
        self._users, self._items = users, items
        self.__dict__.pop("_factors", None)

    def _state(self) -> State:
        return {"users": self._users, "items": self._items}

    def _set_state(self, state: State) -> None:
        items = state_array(state, "items", (self.log.n_items, None)).astype(np.float64)
        rank = items.shape[1]
        # A copy that is to be fine-tuned has the fake users in its log already, but no rows for them
        users = state_array(state, "users", (None, rank)).astype(np.float64)
        self._take(users, items)


def _raters_of(
    clean: RatingMatrix, fakes: RatingMatrix, item_ids: NDArray[np.int64]
) -> RatingMatrix:
    """Return the columns `item_ids` of clean and fake ratings together, renumbered from 0."""
    users, items, ratings = [], [], []
    for matrix, offset in ((clean, 0), (fakes, clean.n_users)):
        starts, ends = matrix.item_indptr[item_ids], matrix.item_indptr[item_ids + 1]
        lengths = ends - starts
        first = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        places = first + np.arange(lengths.sum())
        users.append(matrix.raters[places] + offset)
        items.append(np.repeat(np.arange(len(item_ids)), lengths))
        ratings.append(matrix.ratings_by_item[places])
    joined = [np.concatenate(part) for part in (users, items, ratings)]
    order = np.argsort(joined[0], kind="stable")
    return RatingMatrix(
        joined[0][order], joined[1][order], joined[2][order],
        clean.n_users + fakes.n_users, len(item_ids),
    )  # fmt: skip
