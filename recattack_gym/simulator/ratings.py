"""The platform on which users give ratings and a victim predicts them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_ids, as_numbers, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.profiles import FakeProfiles
from recattack_gym.metrics.ratings import Prediction, availability, average_rating, integrity, rmse
from recattack_gym.simulator.platform import victim_class
from recattack_gym.victims.base import Victim, VictimConfig
from recattack_gym.victims.least_squares import (
    TOP,
    Linearised,
    RatingMatrix,
    matrix_of,
    rating_scale,
)
from recattack_gym.victims.rating_victim import RatingVictim


@dataclass(frozen=True, kw_only=True, slots=True)
class RatingGoal:
    """What an attacker of predicted ratings wants: `R = mu_1 R_av + mu_2 R_in`, to be made large.

    Li et al., NIPS 2016, equations (7) to (9). `R_av` sums squared changes over the unseen pairs, some
    1.5 million on ml-100k, `R_in` sums over users and targets, some thousand: equal coefficients are not
    equal weights. That is the paper's (`normalized=False`); `normalized=True` divides each by the number of
    its terms (`R_in` by users times targets), so that both are means.
    """

    availability: float = 1.0
    """mu_1; negative to leave a light trace."""
    integrity: float = 0.0
    """mu_2; negative to demote."""
    target_items: tuple[int, ...] = ()
    """J_0, distinct item ids."""
    weight: float = 2.0
    """w of every target; 2 as in the paper's section 5."""
    normalized: bool = False
    """Whether both parts are means instead of sums."""

    def __post_init__(self) -> None:
        for name in ("availability", "integrity", "weight"):
            as_real(name, getattr(self, name))
        if self.integrity and not self.target_items:
            raise ArgumentError("target_items must name an item where integrity is not 0")
        if len(set(self.target_items)) != len(self.target_items):
            raise ArgumentError(f"target_items must be distinct, got {self.target_items}")

    def coefficients(self, n_users: int, n_unseen: int) -> tuple[float, float]:
        """Return what `R_av` and the plain sum of the targets' ratings are multiplied by."""
        first, second = self.availability, self.integrity * self.weight
        if self.normalized:
            return first / max(n_unseen, 1), second / (n_users * max(len(self.target_items), 1))
        return first, second


@dataclass(frozen=True, kw_only=True, slots=True)
class RatingOutcome:
    """What a set of fake profiles did."""

    rmse: float
    """Root mean squared change of predictions on unseen pairs, on [-2, 2]; see `metrics.rmse`."""
    average_rating: float
    """Mean predicted rating of the goal's targets over genuine users, on [-2, 2]; `nan` without targets."""
    utility: float
    """R of the goal."""
    kkt_residual: float
    """Of the retrained victim."""


class RatingPlatform:
    """A platform of explicit ratings: inject rated profiles, retrain, compare with the clean predictions.

    Nothing that is called on it changes it.

    Args:
        log: With ratings.
        victim: `"ALS"`, `"NuclearNorm"`, or another `RatingVictim`.
        victim_config: Its settings, or a mapping of some of them.
        seed: Fixes the clean victim.

    Raises:
        ArgumentError: If the log has no ratings or the victim predicts none.
    """

    def __init__(
        self,
        log: Interactions,
        victim: str | type[Victim] = "ALS",
        *,
        victim_config: VictimConfig | Mapping[str, object] | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(log, Interactions) or log.ratings is None or len(log) == 0:
            raise ArgumentError("log must be Interactions with ratings")
        kind = victim_class(victim)
        if not issubclass(kind, RatingVictim):
            raise ArgumentError(
                f"victim must predict ratings (ALS, NuclearNorm), got {kind.name!r}"
            )
        if len(set(rating_scale(log))) == 1:
            raise ArgumentError(f"log must have more than one rating, got only {log.ratings[0]:g}")
        rng = np.random.default_rng(as_count("seed", seed, at_least=0))
        self.log = log
        self.matrix: RatingMatrix = matrix_of(log)
        self.victim = kind(victim_config).fit(log, rng)
        self.clean = Prediction(self.victim.users, self.victim.items)

    @property
    def n_users(self) -> int:
        """Genuine users, m."""
        return self.log.n_users

    @property
    def n_items(self) -> int:
        """Size of the catalogue, n."""
        return self.log.n_items

    @property
    def n_unseen(self) -> int:
        """Pairs of genuine users and items without a rating."""
        return self.n_users * self.n_items - len(self.matrix.ratings)

    @cached_property
    def clean_averages(self) -> NDArray[np.float64]:
        """Mean clean prediction of each item over genuine users, on [-2, 2]; shape `(n_items,)`."""
        averages: NDArray[np.float64] = self.clean.items @ self.clean.users.mean(axis=0)
        return averages

    @cached_property
    def clean_at_rated(self) -> NDArray[np.float64]:
        """Clean predictions of the pairs that genuine users rated, in the order of `matrix`."""
        return self.clean.at(self.matrix.user_ids, self.matrix.item_ids)

    # -- ratings on the log's scale and shifted to [-2, 2] -----------------------------------------

    def profiles(
        self,
        item_ids: NDArray[np.int64],
        shifted: NDArray[np.float64],
        header: Mapping[str, object],
    ) -> FakeProfiles:
        """Write fake profiles, whose ratings are on the log's scale, from ratings on [-2, 2]."""
        low, high = rating_scale(self.log)
        ratings = low + (np.clip(shifted, -TOP, TOP) + TOP) * ((high - low) / (2.0 * TOP))
        return FakeProfiles(item_ids, np.clip(ratings, low, high), header)

    def shifted(self, profiles: FakeProfiles) -> NDArray[np.float64]:
        """Return the ratings of profiles on [-2, 2], shape `(N, T)`; a click is +2.

        Raises:
            ArgumentError: If an item is not in the catalogue or a rating is off the log's scale.
        """
        poisoned = self.log.with_fake_users(profiles.item_ids, profiles.ratings)
        assert poisoned.ratings is not None  # noqa: S101  # the log has ratings
        low, high = rating_scale(self.log)
        given = poisoned.ratings[len(self.log) :].reshape(profiles.item_ids.shape)
        result: NDArray[np.float64] = 2.0 * TOP * (given - low) / (high - low) - TOP
        return result

    # -- what an attack does ---------------------------------------------------------------------

    def retrain(
        self,
        item_ids: NDArray[np.int64],
        shifted: NDArray[np.float64],
        *,
        start: NDArray[np.float64] | None = None,
        tolerance: float | None = None,
    ) -> Linearised:
        """Train the victim on genuine and fake ratings.

        Args:
            item_ids: Of the fake users, shape `(N, T)`.
            shifted: Their ratings on [-2, 2], shape `(N, T)`.
            start: Item factors to start from; `None` takes the clean ones.
            tolerance: Instead of the victim's.

        Returns:
            The solution; its first `n_users` rows of users are genuine.
        """
        items = as_ids("item_ids", item_ids, below=self.n_items, shape=(None, None))
        ratings = as_numbers("shifted", shifted)
        if ratings.shape != items.shape:
            raise ArgumentError(f"shifted must have shape {items.shape}, got {ratings.shape}")
        return self.victim.solve(
            self.matrix.with_fake_users(items, ratings),
            self.clean.items if start is None else start,
            tolerance=tolerance,
        )

    def prediction(self, point: Linearised) -> Prediction:
        """Return what a retrained victim predicts for genuine users."""
        return Prediction(point.users[: self.n_users], point.items)

    def utility(self, prediction: Prediction, goal: RatingGoal) -> float:
        """Return R of a goal; see `RatingGoal`."""
        first, second = goal.coefficients(self.n_users, self.n_unseen)
        pairs = self.matrix.user_ids, self.matrix.item_ids
        value = first * availability(prediction, self.clean, *pairs) if first else 0.0
        if second:
            targets = np.array(goal.target_items, dtype=np.int64)
            value += second * integrity(prediction, targets, np.ones(len(targets)))
        return value

    def outcome(self, profiles: FakeProfiles | None, goal: RatingGoal) -> RatingOutcome:
        """Inject profiles into the clean platform, retrain, and measure.

        Args:
            profiles: With ratings on the log's scale, or clicks; `None` retrains without fake users.
            goal: Whose utility and targets are meant.
        """
        if profiles is None:
            point = self.victim.solve(self.matrix, self.clean.items)
        else:
            point = self.retrain(profiles.item_ids, self.shifted(profiles))
        return self.effect(point, goal)

    def effect(self, point: Linearised, goal: RatingGoal) -> RatingOutcome:
        """Measure a retrained victim.

        Args:
            point: What `retrain` returned.
            goal: Whose utility and targets are meant.
        """
        found = self.prediction(point)
        targets = as_ids("target_items", list(goal.target_items), below=self.n_items, shape=(None,))
        return RatingOutcome(
            rmse=rmse(found, self.clean, self.matrix.user_ids, self.matrix.item_ids),
            average_rating=average_rating(found, targets) if len(targets) else float("nan"),
            utility=self.utility(found, goal),
            kkt_residual=point.kkt_residual,
        )

    def item_near(self, average: float, rng: np.random.Generator, *, n_nearest: int = 10) -> int:
        """Draw a target among the items whose average clean prediction is nearest to `average`.

        The paper takes an item whose average prediction is about 0.8 (section 5).
        """
        rated = np.flatnonzero(np.diff(self.matrix.item_indptr) > 0)
        distance = np.abs(self.clean_averages[rated] - average)
        near = rated[np.argsort(distance, kind="stable")[:n_nearest]]
        return int(rng.choice(near))
