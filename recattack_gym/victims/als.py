"""ALS: alternating least squares on the ratings that are there."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.victims.least_squares import Linearised, RatingMatrix, minimise
from recattack_gym.victims.rating_victim import RatingConfig, RatingVictim

_SCALE = 0.3
"""Standard deviation of the item factors that training starts from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ALSConfig(RatingConfig):
    """Settings of ALS; `reg` was chosen on a tenth of ml-100k (0.5 to 12 tried, docs/benchmarks.md)."""

    embedding_size: int = 8
    """Dimensions of every factor; 8 as in a public replication, the paper gives none."""
    sweeps: int = 10
    """Alternations before Newton steps finish; of them depends which local minimum is found."""

    def __post_init__(self) -> None:
        super(ALSConfig, self).__post_init__()  # slots: the class is made twice, so no bare super()
        as_count("embedding_size", self.embedding_size)
        as_count("sweeps", self.sweeps, at_least=0)


class ALS(RatingVictim):
    """Factorise ratings by alternating least squares.

    Li, Wang, Singh & Vorobeychik, "Data Poisoning Attacks on Factorization-Based Collaborative
    Filtering", NIPS 2016, equations (2) and (4): minimise `1/2 sum (r_ij - u_i . v_j)^2 +
    reg / 2 (|U|^2 + |V|^2)` over the rated pairs, solving for all users and all items in turn.

    Differs from the paper: its equations print twice the penalty, its optimality conditions (section 4.1),
    which everything else rests on, are those of the function above; one `reg` for users and items (only their
    product matters to the predictions); alternation is followed by Newton steps, which reach the same kind of
    point to any accuracy; ranks items, and where there are no ratings, takes clicks for
    top ratings and as many unclicked items for lowest ones.
    """

    name = "ALS"
    config_class = ALSConfig
    config: ALSConfig

    def start(self, n_items: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw item factors from `normal(0, 0.3)`; see `RatingVictim.start`."""
        return _SCALE * rng.standard_normal((n_items, self.config.embedding_size))

    def solve(
        self, matrix: RatingMatrix, items: NDArray[np.float64], *, tolerance: float | None = None
    ) -> Linearised:
        """See `RatingVictim.solve`."""
        config = self.config
        return minimise(
            matrix,
            items,
            config.reg,
            sweeps=config.sweeps,
            tolerance=config.tolerance if tolerance is None else tolerance,
            max_steps=config.max_steps,
        )
