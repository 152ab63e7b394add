"""LTS-MF: least squares on the ratings that fit best, so that planted ones count for nothing."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_choice, as_count, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.victims.als import ALS, ALSConfig
from recattack_gym.victims.base import State, state_array
from recattack_gym.victims.least_squares import Linearised, RatingMatrix, matrix_of
from recattack_gym.victims.least_squares_kernel import prediction_errors, solve_rows
from recattack_gym.victims.trimming import least_trimmed, n_kept, smallest

Unit = Literal["ratings", "users"]
UNITS: tuple[Unit, ...] = ("ratings", "users")


@dataclass(frozen=True, kw_only=True, slots=True)
class LTSMFConfig(ALSConfig):
    """Settings of LTS-MF; those of ALS, and what is trimmed."""

    trim_share: float = 0.1
    """Share of the ratings, or of the users, that training leaves out; 0 is ALS. The papers go from 0.1 to
    0.3: the most that an attack is expected to be."""
    trim: Unit = "ratings"
    """What is left out: `"ratings"` with the largest squared errors, or all ratings of the `"users"` with the
    largest mean squared errors. Those users still get recommendations, from items that others taught."""
    trim_rounds: int = 20
    """Most alternations of fitting and choosing."""
    finetune_rounds: int = 5
    """Alternations of fitting and choosing in fine-tuning: in each `finetune_sweeps` block solves of fake
    users and of clicked items. After a single solve the first choice would fall before clicks on a new item
    are fitted, and leave out most of them: docs/defenses.md has what that costs."""

    def __post_init__(self) -> None:
        super(
            LTSMFConfig, self
        ).__post_init__()  # slots: the class is made twice, so no bare super()
        share = as_real("trim_share", self.trim_share, at_least=0.0, at_most=1.0)
        if share == 1.0:
            raise ArgumentError("trim_share must be below 1, got 1.0: nothing would be learnt from")
        as_choice("trim", self.trim, UNITS)
        as_count("trim_rounds", self.trim_rounds)
        as_count("finetune_rounds", self.finetune_rounds)


class Trimmed(NamedTuple):
    """A solution of trimmed least squares."""

    point: Linearised
    """Of the kept ratings; its users are everybody's best rows for its items, see `LTSMF`."""
    is_kept: NDArray[np.bool_]
    """Which ratings were learnt from, shape `(n_entries,)`, in the order of the whole matrix."""
    n_fits: int
    """Fits to some kept set; the last set is the fit's own best if they are at most `trim_rounds`."""


class LTSMF(ALS):
    """Factorise ratings by least trimmed squares.

    Cheng & Hurley, "Robust Collaborative Recommendation by Least Trimmed Squares Matrix Factorization", ICTAI
    2010: minimise the sum of the `h` smallest squared errors, by turns choosing them and fitting the factors
    to them; trim learning (Hidano & Kiyomoto, ICISSP 2020) is the same loop. The first fit is ALS, to
    everything; every further one starts from the factors before it, so that the penalised sum of squares over
    the kept never rises, until the kept set is at rest.

    With `trim_share = 0` it is ALS of the same settings bit for bit, clean, fine-tuned and retrained in full.

    Fine-tuning starts from the clean factors and the clean choice, is ALS's on all fake ratings first, and
    then takes turns as training does, where only fake users and clicked items move (`RatingVictim`): the
    choice is made among all ratings.

    Differs from the paper: ALS with Newton steps instead of gradient steps; trimming whole users is an
    addition; on clicks, each click and each unclicked pair drawn beside it is a rating (`RatingVictim`).
    """

    name = "LTS-MF"
    config_class = LTSMFConfig
    config: LTSMFConfig
    _is_kept: NDArray[np.bool_]

    @property
    def is_kept(self) -> NDArray[np.bool_]:
        """Which ratings training learnt from, in the order of `matrix_of(log)`; shape `(n_entries,)`.

        After fine-tuning, those of the fake users come last.
        """
        return self._is_kept

    def trimmed(
        self, matrix: RatingMatrix, items: NDArray[np.float64], *, tolerance: float | None = None
    ) -> Trimmed:
        """Train on a matrix of ratings; see `RatingVictim.solve`."""
        config, n = self.config, len(matrix.ratings)
        if config.trim_share == 0.0:
            point = super().solve(matrix, items, tolerance=tolerance)
            return Trimmed(point, np.ones(n, dtype=np.bool_), 1)
        found: list[Linearised] = []

        def fit(is_kept: NDArray[np.bool_]) -> NDArray[np.float64]:
            start = found[-1].items if found else items
            point = super(LTSMF, self).solve(_only(matrix, is_kept), start, tolerance=tolerance)
            if config.trim == "users":
                point = replace(point, users=Linearised.at(matrix, point.items, config.reg).users)
            found[:] = [point]
            return _errors(matrix, point.users, point.items) ** 2

        if config.trim == "ratings":
            is_kept, n_fits = least_trimmed(
                fit, n, n_kept(n, config.trim_share), config.trim_rounds
            )
            return Trimmed(found[-1], is_kept, n_fits)
        raters, places = np.unique(matrix.user_ids, return_inverse=True)

        def fit_users(is_kept: NDArray[np.bool_]) -> NDArray[np.float64]:
            return _means(fit(is_kept[places]), places)

        kept_users, n_fits = least_trimmed(
            fit_users, len(raters), n_kept(len(raters), config.trim_share), config.trim_rounds
        )
        return Trimmed(found[-1], kept_users[places], n_fits)

    def solve(
        self, matrix: RatingMatrix, items: NDArray[np.float64], *, tolerance: float | None = None
    ) -> Linearised:
        """See `RatingVictim.solve`; the solution is that of the kept ratings."""
        return self.trimmed(matrix, items, tolerance=tolerance).point

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        items = self.start(log.n_items, np.random.default_rng(draw_seed(rng)))
        result = self.trimmed(matrix_of(log, self._negatives(0)), items)
        self._check_converged(result.point)
        self._take(result.point.users, result.point.items)
        self._is_kept = result.is_kept

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        if self.config.trim_share == 0.0:
            super()._finetune(log, profile, seed)
            self._is_kept = np.ones(len(self._with_fakes(log, profile).ratings), dtype=np.bool_)
            return
        config, matrix = self.config, self._with_fakes(log, profile)
        n_fake_ratings = len(matrix.ratings) - len(self._is_kept)
        is_kept = np.concatenate([self._is_kept, np.ones(n_fake_ratings, dtype=np.bool_)])
        fake_users, clicked = np.arange(log.n_users, matrix.n_users), np.unique(profile)
        k = self._items.shape[1]
        users = np.concatenate([self._users, np.zeros((len(fake_users), k))])
        items = self._items.copy()
        lower = np.empty((max(len(users), len(items)), k, k))
        for round_number in range(config.finetune_rounds):
            if round_number > 0:
                is_kept = self._choose(matrix, users, items)
            kept = _only(matrix, is_kept)
            taught_by = matrix if config.trim == "users" else kept
            for _ in range(config.finetune_sweeps):
                solve_rows(
                    fake_users, taught_by.indptr, taught_by.item_ids, taught_by.ratings,
                    items, config.reg, lower, users,
                )  # fmt: skip
                solve_rows(
                    clicked, kept.item_indptr, kept.raters, kept.ratings_by_item,
                    users, config.reg, lower, items,
                )  # fmt: skip
        self._take(users, items)
        self._is_kept = is_kept

    def _choose(
        self, matrix: RatingMatrix, users: NDArray[np.float64], items: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Return which ratings of a matrix fit best, shape `(n_entries,)`."""
        losses = _errors(matrix, users, items) ** 2
        if self.config.trim == "ratings":
            return smallest(losses, n_kept(len(losses), self.config.trim_share))
        raters, places = np.unique(matrix.user_ids, return_inverse=True)
        n = n_kept(len(raters), self.config.trim_share)
        kept: NDArray[np.bool_] = smallest(_means(losses, places), n)[places]
        return kept

    def _with_fakes(self, log: Interactions, profile: NDArray[np.int64]) -> RatingMatrix:
        """Return the ratings of the clean log and, behind them, those of the fake users."""
        clean, fakes = matrix_of(log, self._negatives(0)), self._fake_ratings(log, profile)
        return RatingMatrix(
            np.concatenate([clean.user_ids, fakes.user_ids + log.n_users]),
            np.concatenate([clean.item_ids, fakes.item_ids]),
            np.concatenate([clean.ratings, fakes.ratings]),
            log.n_users + len(profile),
            log.n_items,
        )

    def _state(self) -> State:
        return {**super()._state(), "is_kept": self._is_kept.astype(np.int64)}

    def _set_state(self, state: State) -> None:
        super()._set_state(state)
        self._is_kept = state_array(state, "is_kept", (None,)) != 0


def _only(matrix: RatingMatrix, is_kept: NDArray[np.bool_]) -> RatingMatrix:
    """Return the marked ratings `(n_entries,)` of a matrix."""
    if is_kept.all():
        return matrix
    return RatingMatrix(
        matrix.user_ids[is_kept],
        matrix.item_ids[is_kept],
        matrix.ratings[is_kept],
        matrix.n_users,
        matrix.n_items,
    )


def _errors(
    matrix: RatingMatrix, users: NDArray[np.float64], items: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return rating minus prediction of every rating, kept or not; shape `(n_entries,)`."""
    errors = np.empty(len(matrix.ratings))
    prediction_errors(matrix.indptr, matrix.item_ids, matrix.ratings, users, items, errors)
    return errors


def _means(losses: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean loss of each group, from losses `(n,)` and their groups `(n,)`."""
    means: NDArray[np.float64] = np.bincount(places, losses) / np.bincount(places)
    return means
