"""PGA on clicks: the closed form of one ridge regression says how an item follows a fake click."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.gradient.adversarial import adversarial_gradient
from agents.gradient.descent import ProfileDescent, ProfileDescentConfig
from agents.gradient.graph import InteractionGraph
from agents.gradient.kernels import Real
from agents.gradient.profiles import Task
from agents.gradient.surrogates import Surrogate


@dataclass(frozen=True, kw_only=True, slots=True)
class PGAConfig(ProfileDescentConfig):
    """Settings of `PGA`; the defaults are GP-lab's on Gowalla."""

    attack_learning_rate: float = 10.0
    """Length of a step: each fake user's gradient is normalised."""


class PGA(ProfileDescent):
    """Move clicks along a gradient that assumes that item embeddings solve a ridge regression.

    Li, Wang, Singh and Vorobeychik, "Data poisoning attacks on factorization-based collaborative filtering",
    NeurIPS 2016, for clicks instead of ratings, as in GP-lab (Gradient Passing, RecSys 2024). See
    `ProfileDescent`, and `click_gradient` for the formula.

    Differs from the paper: the squared error of clicks over all cells instead of ratings, and profiles that
    are sets; as in GP-lab, the Gram matrix holds the users who clicked the item alone, although the
    surrogate's loss is over all users, so the "gradient" is a direction by rule of thumb. Ties of the hit
    rate are decided by the loss; `click_targets` is on.
    """

    name = "pga-implicit"
    config: PGAConfig
    config_class = PGAConfig

    def _step(self, surrogate: Surrogate, task: Task) -> tuple[float, float, NDArray[Real]]:
        surrogate.train(self.config.epochs)
        rows, graph = surrogate.representations(), surrogate.graph
        loss, hit_rate, gradient = adversarial_gradient(
            np.arange(graph.n_genuine),
            rows,
            graph.n_users,
            task.target_items,
            self.config.list_length,
        )
        return loss, hit_rate, click_gradient(gradient, rows, graph, self.config.reg)


def click_gradient(
    gradient: NDArray[Real], representations: NDArray[Real], graph: InteractionGraph, reg: float
) -> NDArray[np.float64]:
    """Return how a loss changes with clicks if every item's embedding solves a ridge regression.

    With users constant and `q_j = (sum_{u in U_j} p_u p_u' + reg I)^-1 sum_u y_uj p_u`, where `U_j` clicked
    j: `dL / dy_fj = (dL / dq_j)' (sum_{u in U_j} p_u p_u' + reg I)^-1 p_f`. Li et al., NeurIPS 2016, §4.1.

    Args:
        gradient: Of the loss with respect to `representations`, shape `(n_rows, d)`.
        representations: Shape `(n_rows, d)`.
        graph: Who clicked what.
        reg: The regression's penalty, positive.

    Returns:
        Shape `(n_fake_users, n_items)`.
    """
    n, size = graph.n_users, representations.shape[1]
    users = representations[:n].astype(np.float64)
    indptr, who, _ = graph.transposed
    slopes = np.empty((graph.n_items, size))
    shrink = reg * np.eye(size)
    for item in range(graph.n_items):
        own = users[who[indptr[item] : indptr[item + 1]]]
        slopes[item] = np.linalg.solve(own.T @ own + shrink, gradient[n + item].astype(np.float64))
    return users[graph.n_genuine :] @ slopes.T
