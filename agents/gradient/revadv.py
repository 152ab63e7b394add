"""RevAdv: the exact gradient of an attack through the last epochs of its surrogate's training."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.gradient.adversarial import adversarial_gradient
from agents.gradient.descent import ProfileDescent, ProfileDescentConfig
from agents.gradient.kernels import Real
from agents.gradient.profiles import Task
from agents.gradient.squared_error import (
    squared_error_by_clicks,
    squared_error_gradient,
    squared_error_hessian_product,
)
from agents.gradient.surrogates import Surrogate
from recattack_gym.core.checks import as_count
from recattack_gym.core.errors import ArgumentError


@dataclass(frozen=True, kw_only=True, slots=True)
class RevAdvConfig(ProfileDescentConfig):
    """Settings of `RevAdv`; the defaults are GP-lab's on Gowalla."""

    learning_rate: float = 0.1
    """Step size of the surrogate's Adam."""
    reg: float = 0.1
    """Weight of the squared norms."""
    positive_weight: float = 20.0
    """Weight of clicked cells in the surrogate's squared error."""
    unrolled_epochs: int = 5
    """The last epochs, of `epochs`, that the gradient goes back through."""

    def __post_init__(self) -> None:
        ProfileDescentConfig.__post_init__(self)
        if as_count("unrolled_epochs", self.unrolled_epochs) > self.epochs:
            raise ArgumentError(
                f"unrolled_epochs must be at most epochs, {self.epochs}, got {self.unrolled_epochs}"
            )


class RevAdv(ProfileDescent):
    """Move clicks along the gradient of the adversarial loss through unrolled epochs of training.

    Tang, Wen and Wang, "Revisiting adversarially learned injection attacks against recommender systems",
    RecSys 2020, with the surrogate WRMF trained by Adam, as in GP-lab (Gradient Passing, RecSys 2024). See
    `ProfileDescent`, and `unrolled_gradient` for what is exact.

    Differs from the paper: the largest `profile_size` entries become clicks, as in GP-lab, where the
    original takes all above a threshold. The surrogate is reseeded alike at each epoch, as in the original.
    Ties of the hit rate are decided by the loss. With Gradient Passing, what is passed counts as constant
    in the unrolled epochs: it has no second derivatives.
    """

    name = "revadv"
    config: RevAdvConfig
    config_class = RevAdvConfig

    def _step(self, surrogate: Surrogate, task: Task) -> tuple[float, float, NDArray[Real]]:
        surrogate.train(self.config.epochs - self.config.unrolled_epochs)
        hit_rates: list[float] = []

        def objective(rows: NDArray[Real]) -> tuple[float, NDArray[Real]]:
            graph = surrogate.graph
            loss, hit_rate, gradient = adversarial_gradient(
                np.arange(graph.n_genuine),
                rows,
                graph.n_users,
                task.target_items,
                self.config.list_length,
            )
            hit_rates.append(hit_rate)
            return loss, gradient

        loss, gradient = unrolled_gradient(surrogate, self.config.unrolled_epochs, objective)
        return loss, hit_rates[0], gradient


@dataclass(frozen=True, eq=False, slots=True)
class _Step:
    """One step of Adam: where it began, its moments after it, and the gradient that it used."""

    users: NDArray[np.int64]
    embeddings: NDArray[Real]
    first_after: NDArray[Real]
    second_after: NDArray[Real]
    used: NDArray[Real]
    number: int


def unrolled_gradient(
    surrogate: Surrogate,
    n_epochs: int,
    objective: Callable[[NDArray[Real]], tuple[float, NDArray[Real]]],
) -> tuple[float, NDArray[Real]]:
    """Train a surrogate for some more epochs, and return how an objective of the outcome follows fake clicks.

    Reverse-mode differentiation by hand through every step of Adam: its two moments, and the gradient of the
    squared error by embeddings (a product with its Hessian) and by the fake users' cells. What came before
    counts as constant, and so do the weights of cells and, with Gradient Passing, what was passed.

    Args:
        surrogate: Matrix factorisation with `loss="mse"`; it is trained.
        n_epochs: At least 1.
        objective: From final representations to a value and its gradient, shape `(n_rows, d)`.

    Returns:
        The value, and its gradient by the cells of fake users, shape `(n_fake_users, n_items)`.

    Raises:
        ArgumentError: If the surrogate is another.
    """
    config, graph = surrogate.config, surrogate.graph
    if config.model != "mf" or config.loss != "mse":
        raise ArgumentError(
            "surrogate must be a matrix factorisation with a squared error (model='mf', loss='mse'), "
            f"got model={config.model!r} and loss={config.loss!r}"
        )
    steps = _forward(surrogate, as_count("n_epochs", n_epochs))
    value, of_embeddings = objective(surrogate.embeddings)
    of_first, of_second = np.zeros_like(of_embeddings), np.zeros_like(of_embeddings)
    by_clicks = np.zeros((graph.n_users - graph.n_genuine, graph.n_items), of_embeddings.dtype)
    weight, reg = config.positive_weight, config.reg
    for step in reversed(steps):
        of_gradient = _through_adam(step, config.learning_rate, of_embeddings, of_first, of_second)
        by_clicks += squared_error_by_clicks(
            of_gradient, step.users, step.embeddings, graph, weight
        )
        of_embeddings = of_embeddings + squared_error_hessian_product(
            of_gradient, step.users, step.embeddings, graph, weight, reg
        )
    return value, by_clicks


def _forward(surrogate: Surrogate, n_epochs: int) -> list[_Step]:
    """Train as `Surrogate.train` does, and remember every step."""
    config, steps = surrogate.config, list[_Step]()
    for _ in range(n_epochs):
        with surrogate.epoch():
            for users in surrogate.user_batches():
                embeddings = surrogate.embeddings.copy()
                _, gradient = squared_error_gradient(
                    users, embeddings, surrogate.graph, config.positive_weight, config.reg
                )
                used = surrogate.passed(gradient, embeddings).copy()
                surrogate.descend(used.copy())
                steps.append(
                    _Step(
                        users,
                        embeddings,
                        surrogate.first.copy(),
                        surrogate.second.copy(),
                        used,
                        surrogate.n_steps,
                    )
                )
    return steps


def _through_adam(
    step: _Step,
    learning_rate: float,
    of_embeddings: NDArray[Real],
    of_first: NDArray[Real],
    of_second: NDArray[Real],
) -> NDArray[Real]:
    """Go back through one step of Adam.

    Args:
        step: Which.
        learning_rate: Adam's.
        of_embeddings: Derivative of the value by the embeddings after the step, which is also the part of
            that before it that does not go through the gradient.
        of_first: Likewise by the mean of gradients; changed to that before the step.
        of_second: Likewise by the mean of squares; changed to that before the step.

    Returns:
        The derivative by the gradient that the step used.
    """
    real = of_embeddings.dtype.type
    rate = real(learning_rate / (1.0 - 0.9**step.number))
    scale = real(1.0 / (1.0 - 0.999**step.number))
    root = np.sqrt(step.second_after * scale)
    width = root + real(1e-8)
    of_first -= rate / width * of_embeddings
    slope = np.divide(scale, real(2) * root, out=np.zeros_like(root), where=root > 0)
    of_second += of_embeddings * rate * step.first_after / (width * width) * slope
    of_gradient: NDArray[Real] = real(0.1) * of_first + real(0.002) * step.used * of_second
    of_first *= real(0.9)
    of_second *= real(0.999)
    return of_gradient
