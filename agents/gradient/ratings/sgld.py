"""SGLD: fake users drawn between what looks genuine and what does harm."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agents.gradient.ratings.adjoints import GRADIENTS, Gradient, RatingGradient
from agents.gradient.ratings.base import RatingAttack, RatingAttackConfig
from recattack_gym.core import AttackBudget
from recattack_gym.core.checks import as_choice, as_count, as_real
from recattack_gym.simulator import RatingGoal, RatingPlatform
from recattack_gym.victims.least_squares import TOP, RatingMatrix

Scaling = Literal["item", "none"]
SCALINGS: tuple[Scaling, ...] = ("item", "none")
Support = Literal["top", "dense"]
SUPPORTS: tuple[Support, ...] = ("top", "dense")


@dataclass(frozen=True, kw_only=True, slots=True)
class SGLDConfig(RatingAttackConfig):
    """Settings of SGLD."""

    gradient: Gradient = "exact"
    """`"exact"`, or `"paper"` for the paper's approximation; see `adjoints`."""
    beta: float = 0.6
    """Weight of the utility beside the prior; 0.6 as in the paper. It multiplies R itself, so its
    meaning depends on the size of the log and on `RatingGoal.normalized`."""
    n_steps: int = 15
    """Langevin steps; the paper gives no number."""
    step_size: float = 0.5
    """s_t at the first step; the paper gives none."""
    decay: float = 0.33
    """s_t falls as `(t + 1) ** -decay`."""
    scaling: Scaling = "item"
    """`"item"` multiplies an item's step by its prior variance, a constant preconditioner that leaves
    the sampled distribution as it is and is stable for s_t < 4; `"none"` is the paper's one step for
    all, stable only below four times the *smallest* variance, which on rated data is next to nothing."""
    support: Support = "top"
    """What the victim is trained on during sampling: `"top"` the ratings that the projection would keep,
    a feasible attack, or `"dense"` all of them. The paper does not say."""
    sigma_floor: float = 1e-3
    """Smallest prior standard deviation; an item without ratings would have none."""
    gradient_iterations: int = 6
    """Most products with the Hessian per gradient, which starts from the one before. With 6 a gradient costs
    less than three sweeps of ALS and has a cosine above 0.98 to the converged one (docs/benchmarks.md)."""
    tolerance: float = 1e-3
    """Of retraining and of the gradient's linear system."""

    def __post_init__(self) -> None:
        super(
            SGLDConfig, self
        ).__post_init__()  # slots: the class is made twice, so no bare super()
        as_choice("gradient", self.gradient, GRADIENTS)
        as_choice("scaling", self.scaling, SCALINGS)
        as_choice("support", self.support, SUPPORTS)
        as_count("n_steps", self.n_steps, at_least=0)
        as_count("gradient_iterations", self.gradient_iterations)
        for name in ("step_size", "sigma_floor", "tolerance"):
            as_real(name, getattr(self, name), above=0.0)
        for name in ("beta", "decay"):
            as_real(name, getattr(self, name), at_least=0.0)


class SGLD(RatingAttack):
    """Sample fake ratings from `N(xi_j, sigma_j^2) exp(beta R)` by stochastic gradient Langevin dynamics.

    Li, Wang, Singh & Vorobeychik, NIPS 2016, Algorithm 2, equations (16) and (17). Mean and variance of
    an item are over *all* genuine users, who give 0 where they give no rating: both grow with
    popularity, so that the final choice of the `profile_size` largest ratings imitates what is popular.
    Fake users have a rating of every item until then.

    Differs from the paper: steps, what the victim is trained on and `force_targets`, see `SGLDConfig`; the
    gradient is exact (but for how far its linear system is solved) unless `gradient="paper"`.
    """

    name = "sgld"
    config_class = SGLDConfig
    config: SGLDConfig

    def _attack(
        self,
        platform: RatingPlatform,
        goal: RatingGoal,
        budget: AttackBudget,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        config = self.config
        mean, deviation = rating_prior(platform.matrix, platform.n_users, config.sigma_floor)
        shape = (budget.n_fake_users, platform.n_items)
        state = mean + deviation * rng.standard_normal(shape)
        gradient = RatingGradient(
            platform, goal, config.gradient,
            tolerance=config.tolerance, max_iterations=config.gradient_iterations,
        )  # fmt: skip
        forced = self._forced(goal)
        start: NDArray[np.float64] | None = None
        for t in range(config.n_steps):
            pull = np.zeros(shape)
            if config.beta:
                items, ratings = self._seen(state, budget.profile_size, forced)
                point = platform.retrain(items, ratings, start=start, tolerance=config.tolerance)
                start = point.items
                slope = gradient.at(point)
                np.put_along_axis(pull, items, config.beta * slope.reshape(items.shape), axis=1)
            state = langevin_step(state, pull, mean, deviation, self.step_sizes(t, deviation), rng)
        return largest(state, budget.profile_size, forced)

    def step_sizes(self, t: int, deviation: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return s_t of each item; shape `(n_items,)`."""
        size = self.config.step_size * (t + 1) ** -self.config.decay
        scale = deviation**2 if self.config.scaling == "item" else np.ones_like(deviation)
        sizes: NDArray[np.float64] = size * scale
        return sizes

    def _seen(
        self, state: NDArray[np.float64], profile_size: int, forced: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if self.config.support == "top":
            return largest(state, profile_size, forced)
        return np.broadcast_to(np.arange(state.shape[1]), state.shape), state


def rating_prior(
    matrix: RatingMatrix, n_users: int, floor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each item over all users, `(n_items,)` both.

    Args:
        matrix: Genuine ratings; a missing one counts as 0.
        n_users: m.
        floor: Smallest standard deviation.
    """
    total = np.bincount(matrix.item_ids, matrix.ratings, matrix.n_items)
    squares = np.bincount(matrix.item_ids, matrix.ratings**2, matrix.n_items)
    mean = total / n_users
    deviation = np.sqrt(np.maximum(squares / n_users - mean**2, 0.0))
    return mean, np.maximum(deviation, floor)


def langevin_step(
    state: NDArray[np.float64],
    pull: NDArray[np.float64],
    mean: NDArray[np.float64],
    deviation: NDArray[np.float64],
    step_sizes: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Take one step of equation (17), `x + s / 2 (-(x - xi) / sigma^2 + pull) + N(0, s)`.

    Without a pull and with a constant s the stationary distribution is normal with mean xi and variance
    `sigma^2 / (1 - s / (4 sigma^2))`.

    Args:
        state: x, shape `(N, n_items)`.
        pull: `beta dR / dx`, same shape.
        mean: xi, shape `(n_items,)`.
        deviation: sigma, shape `(n_items,)`.
        step_sizes: s, shape `(n_items,)`.
        rng: Source of the noise.
    """
    drift = pull - (state - mean) / deviation**2
    noise = np.sqrt(step_sizes) * rng.standard_normal(state.shape)
    return state + 0.5 * step_sizes * drift + noise


def largest(
    state: NDArray[np.float64], profile_size: int, forced: tuple[int, ...] = ()
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the items of each row's largest absolute ratings, sorted, and these clipped; `(N, T)`.

    Args:
        state: Shape `(N, n_items)`.
        profile_size: T.
        forced: Items to keep whatever their rating.
    """
    size = np.abs(state)
    size[:, list(forced)] = np.inf
    order = np.argsort(-size, axis=1, kind="stable")[:, :profile_size]
    items = np.sort(order, axis=1).astype(np.int64)
    return items, np.clip(np.take_along_axis(state, items, axis=1), -TOP, TOP)
