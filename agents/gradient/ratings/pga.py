"""PGA: projected gradient ascent on the ratings of fake users."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.gradient.ratings.adjoints import GRADIENTS, Gradient, RatingGradient
from agents.gradient.ratings.base import RatingAttack, RatingAttackConfig, random_items
from recattack_gym.core import AttackBudget
from recattack_gym.core.checks import as_choice, as_count, as_real
from recattack_gym.simulator import RatingGoal, RatingPlatform
from recattack_gym.victims.least_squares import TOP


@dataclass(frozen=True, kw_only=True, slots=True)
class PGAConfig(RatingAttackConfig):
    """Settings of PGA; the paper gives neither step size nor stopping rule."""

    gradient: Gradient = "exact"
    """`"exact"`, or `"paper"` for the paper's approximation; see `adjoints`."""
    n_steps: int = 15
    """Gradient steps."""
    step_size: float = 0.5
    """Root mean square of a step over all fake ratings, before clipping, on [-2, 2]; the raw gradient's size
    depends on the log, the goal and the number of fake users."""
    gradient_iterations: int = 6
    """Most products with the Hessian per gradient, which starts from the one before. With 6 a gradient costs
    less than three sweeps of ALS and has a cosine above 0.98 to the converged one (docs/benchmarks.md)."""
    tolerance: float = 1e-3
    """Of retraining and of the gradient's linear system."""

    def __post_init__(self) -> None:
        super(PGAConfig, self).__post_init__()  # slots: the class is made twice, so no bare super()
        as_choice("gradient", self.gradient, GRADIENTS)
        as_count("n_steps", self.n_steps, at_least=0)
        as_real("step_size", self.step_size, above=0.0)
        as_real("tolerance", self.tolerance, above=0.0)
        as_count("gradient_iterations", self.gradient_iterations)


class PGA(RatingAttack):
    """Climb the attacker's utility from random ratings of random items, which stay the rated ones.

    Li, Wang, Singh & Vorobeychik, NIPS 2016, Algorithm 1, equation (10).

    Differs from the paper: the gradient is exact (but for how far its linear system is solved) unless
    `gradient="paper"`; steps have a fixed length; of all points on the way the one of highest utility is
    returned; `force_targets` is ours; line 5 of the algorithm refers to equation (10) where (11) is meant.
    """

    name = "pga"
    config_class = PGAConfig
    config: PGAConfig

    def _attack(
        self,
        platform: RatingPlatform,
        goal: RatingGoal,
        budget: AttackBudget,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        items = random_items(platform.n_items, budget, self._forced(goal), rng)
        start = rng.uniform(-TOP, TOP, items.shape)
        path = ascend(platform, goal, items, start, self.config)
        return items, max(path, key=lambda step: step[0])[1]


def ascend(
    platform: RatingPlatform,
    goal: RatingGoal,
    items: NDArray[np.int64],
    ratings: NDArray[np.float64],
    config: PGAConfig,
) -> list[tuple[float, NDArray[np.float64]]]:
    """Return utility and ratings at each point, from the start on; `n_steps + 1` of them.

    Each retraining starts from the solution before it.

    Args:
        platform: The platform.
        goal: What the attacker wants.
        items: Distinct within each row and sorted, shape `(N, T)`.
        ratings: To start from, on [-2, 2], shape `(N, T)`.
        config: Step size, number of steps, kind of gradient.
    """
    path, start = [], None
    gradient = RatingGradient(
        platform, goal, config.gradient,
        tolerance=config.tolerance, max_iterations=config.gradient_iterations,
    )  # fmt: skip
    for step in range(config.n_steps + 1):
        point = platform.retrain(items, ratings, start=start, tolerance=config.tolerance)
        start = point.items
        path.append((platform.utility(platform.prediction(point), goal), ratings))
        if step == config.n_steps:
            break
        slope = gradient.at(point)
        size = float(np.sqrt((slope**2).mean()))
        if size == 0.0:
            break
        move = (config.step_size / size) * slope.reshape(items.shape)
        ratings = np.clip(ratings + move, -TOP, TOP)
    return path
