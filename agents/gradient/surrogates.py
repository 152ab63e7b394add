"""The attacker's own recommenders: MF and LightGCN, trained with BPR, BCE or MSE, passing or not."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agents.gradient.gradient_passing import Adjacency, GradientPassing
from agents.gradient.graph import InteractionGraph
from agents.gradient.kernels import (
    Real,
    adam_step,
    add_bce_gradient,
    add_bpr_gradient,
    draw_examples,
    hide_items,
    largest,
)
from agents.gradient.squared_error import squared_error_gradient
from recattack_gym.core.checks import as_choice, as_count, as_ids, as_real
from recattack_gym.core.errors import ArgumentError, StateError
from recattack_gym.core.random import (
    MAX_SEED,
    counter_normal,
    counter_permutation,
    counter_words,
)

Model = Literal["mf", "lightgcn"]
Loss = Literal["bpr", "bce", "mse"]
MODELS: tuple[Model, ...] = ("mf", "lightgcn")
LOSSES: tuple[Loss, ...] = ("bpr", "bce", "mse")

_ORDER, _INITIAL, _PASSING = 1 << 40, (1 << 40) + 1, (1 << 41)
"""Streams of a seed beside those of the epochs, which are numbered from 0."""
_AT_ONCE = 512
"""Users whose scores are in memory at once."""
_DRAWS = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class SurrogateConfig:
    """Settings of a surrogate; the defaults are GP-lab's for DPA2DL and RAPU-R on Gowalla."""

    model: Model = "mf"
    """`"mf"`: final representations are the embeddings; `"lightgcn"`: their mean over hops on the graph."""
    loss: Loss = "bce"
    """`"bpr"` and `"bce"` learn from drawn pairs, `"mse"` from all cells of batches of users."""
    embedding_size: int = 64
    """d."""
    n_layers: int = 3
    """Hops of LightGCN."""
    learning_rate: float = 0.01
    """Step size of Adam."""
    reg: float = 0.01
    """Weight of the squared norms of the final representations of a batch (of its mean, not its sum)."""
    batch_size: int = 4096
    """Draws per step; with `"mse"` users per step."""
    n_negatives: int = 4
    """Items not clicked per draw of `"bce"`; `"bpr"` takes one."""
    positive_weight: float = 1.0
    """Weight of clicked cells in `"mse"`; 20 in RevAdv."""
    initial_scale: float = 0.1
    """Standard deviation of untrained embeddings."""
    genuine_rate: float = 1.0
    """The sampling strategy's p, in `(0, 1]`: an epoch has so many draws per genuine click. 1 is ordinary
    training; less only makes sense after pre-training, where 0.1 is published."""
    passing: GradientPassing | None = None
    """Gradient Passing, `None` for ordinary training."""
    passing_rate: float = 1.0
    """Probability that a step passes its gradient, in `[0, 1]`; 1, 0.5 and 0.25 are published."""

    def __post_init__(self) -> None:
        as_choice("model", self.model, MODELS)
        as_choice("loss", self.loss, LOSSES)
        for name in ("embedding_size", "batch_size", "n_negatives"):
            as_count(name, getattr(self, name))
        as_count("n_layers", self.n_layers, at_least=0)
        for name in ("learning_rate", "positive_weight", "initial_scale"):
            as_real(name, getattr(self, name), above=0.0)
        as_real("reg", self.reg, at_least=0.0)
        as_real("genuine_rate", self.genuine_rate, above=0.0, at_most=1.0)
        as_real("passing_rate", self.passing_rate, at_least=0.0, at_most=1.0)


class Surrogate:
    """A recommender with one table of embeddings, users before items, trained with Adam in place.

    Matrix factorisation without biases, or LightGCN (He et al., SIGIR 2020) over the same table. Gradient
    Passing sits between the final representations and the model: it changes the gradient of the loss with
    respect to them, the penalty's share included, and leaves scores alone.

    Adam moves all rows at every step, as `torch.optim.Adam` does on a dense table, also those whose gradient
    is zero (their mean gradient is not). Gradient Passing makes nearly all rows of the gradient non-zero.

    Args:
        graph: What to learn from; fake users are among its users.
        config: Settings.
        seed: Decides initial embeddings, draws and order.
        initial: Embeddings to begin with, shape `(n_rows, embedding_size)`, instead of random ones.
        dtype: Precision of everything.

    Raises:
        ArgumentError: If the seed or the initial embeddings do not fit.
    """

    def __init__(
        self,
        graph: InteractionGraph,
        config: SurrogateConfig | None = None,
        *,
        seed: int = 0,
        initial: NDArray[Real] | None = None,
        dtype: type[Real] = np.float32,
    ) -> None:
        self.graph = graph
        self.config = SurrogateConfig() if config is None else config
        self.seed = as_count("seed", seed, at_least=0) % MAX_SEED
        shape = (graph.n_rows, self.config.embedding_size)
        if initial is None:
            drawn = counter_normal(self.seed, _INITIAL, shape)
            initial = drawn * np.float32(self.config.initial_scale)
        if initial.shape != shape:
            raise ArgumentError(f"initial must have shape {shape}, got {initial.shape}")
        self.embeddings: NDArray[Real] = np.array(initial, dtype=dtype, order="C")
        self.first: NDArray[Real] = np.zeros_like(self.embeddings)
        self.second: NDArray[Real] = np.zeros_like(self.embeddings)
        self.n_steps = 0
        """Steps of Adam so far."""
        self.n_epochs = 0
        """Epochs of training so far."""
        self.training_seconds = 0.0
        """CPU seconds that `train_epoch` took so far."""
        self._adjacency: Adjacency | None = None
        self._gradient: NDArray[Real] = np.zeros_like(self.embeddings)
        degrees = np.diff(graph.indptr)
        users = np.flatnonzero(degrees).astype(np.int64)
        self._genuine, self._fake = users[users < graph.n_genuine], users[users >= graph.n_genuine]

    @property
    def adjacency(self) -> Adjacency:
        """The normalised adjacency of the graph; made when it is first used."""
        if self._adjacency is None:
            self._adjacency = Adjacency(self.graph, self.embeddings.dtype.type)
        return self._adjacency

    def representations(self) -> NDArray[Real]:
        """Return the final representations, shape `(n_rows, d)`; of MF the table itself, not a copy."""
        if self.config.model == "mf":
            return self.embeddings
        return self._smoothed(self.embeddings)

    def scores(self, user_ids: NDArray[np.int64]) -> NDArray[Real]:
        """Return the scores of all items for some users, shape `(len(user_ids), n_items)`."""
        rows = self.representations()
        return rows[user_ids] @ rows[self.graph.n_users :].T

    def lists(
        self,
        user_ids: NDArray[np.int64],
        k: int,
        *,
        hidden: InteractionGraph | None = None,
    ) -> NDArray[np.int64]:
        """Return the top-k lists of some users over the whole catalogue.

        Args:
            user_ids: Shape `(U,)`.
            k: Length of the lists, at most the number of items.
            hidden: Items that are never shown to the user who has them there; `None` shows all.

        Returns:
            Shape `(U, k)`, best first, -1 for an empty place.
        """
        if not 1 <= as_count("k", k) <= self.graph.n_items:
            raise ArgumentError(f"k must be at most the {self.graph.n_items} items, got {k}")
        users = as_ids("user_ids", user_ids, below=self.graph.n_users, shape=(None,))
        rows = self.representations()
        items = rows[self.graph.n_users :]
        shown = np.empty((len(users), k), dtype=np.int64)
        for start in range(0, len(users), _AT_ONCE):
            some = users[start : start + _AT_ONCE]
            scores = rows[some] @ items.T
            if hidden is not None:
                hide_items(some, hidden.indptr, hidden.items, scores)
            largest(scores, k, shown[start : start + _AT_ONCE])
        return shown

    def train(self, n_epochs: int) -> float:
        """Train for some epochs and return the mean loss of the last one (`nan` for none)."""
        loss = float("nan")
        for _ in range(as_count("n_epochs", n_epochs, at_least=0)):
            loss = self.train_epoch()
        return loss

    def train_epoch(self) -> float:
        """Train for one epoch, with Gradient Passing if the settings say so, and return the mean loss.

        Raises:
            StateError: If training diverged.
        """
        with self.epoch():
            losses = self._user_epoch() if self.config.loss == "mse" else self._pair_epoch()
        return float(np.mean(losses)) if losses else float("nan")

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Count and time what happens inside as an epoch of training.

        Raises:
            StateError: If the embeddings are not finite afterwards.
        """
        start = time.process_time()
        yield
        self.n_epochs += 1
        self.training_seconds += time.process_time() - start
        if not np.isfinite(self.embeddings.sum(dtype=np.float64)):
            raise StateError("the surrogate diverged: lower its learning_rate")

    def descend(self, gradient: NDArray[Real]) -> None:
        """Take one step of Adam against a gradient with respect to the final representations, as it is.

        Args:
            gradient: Shape `(n_rows, d)`; all zero afterwards.
        """
        if self.config.model == "lightgcn":
            smoothed = self._smoothed(gradient)
            gradient[:] = 0
            gradient = smoothed
        self.n_steps += 1
        adam_step(
            self.embeddings,
            gradient,
            self.first,
            self.second,
            self.n_steps,
            self.config.learning_rate,
        )

    def passed(self, gradient: NDArray[Real], representations: NDArray[Real]) -> NDArray[Real]:
        """Return the gradient that the next step of training uses: as it is, or passed on, in its place."""
        passing = self.config.passing
        if passing is not None and self._is_passing():
            self.adjacency.pass_on(gradient, representations, passing)
        return gradient

    def epoch_draws(self) -> tuple[int, float]:
        """Return how many draws an epoch has, and the probability that one is of a genuine user.

        With p = `genuine_rate`: fake clicks and `int(p * genuine clicks)`, and
        `p n_genuine / (p n_genuine + n_fake_users)`, over users with clicks.
        """
        n_genuine, n_fake = len(self._genuine), len(self._fake)
        n_clicks = int(self.graph.indptr[self.graph.n_genuine])
        rate = self.config.genuine_rate
        n_draws = self.graph.n_edges - n_clicks + int(rate * n_clicks)
        if n_genuine + n_fake == 0:
            return 0, 1.0
        return n_draws, rate * n_genuine / (rate * n_genuine + n_fake)

    def draw(
        self, first: int, n_draws: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Return draws of the present epoch: users, their items, and items that they do not have.

        Args:
            first: Number of the first one within the epoch.
            n_draws: How many.

        Returns:
            Shapes `(n_draws,)`, `(n_draws,)` and `(n_draws, n_negatives)`.
        """
        n_negatives = 1 if self.config.loss == "bpr" else self.config.n_negatives
        users, positives = np.empty((2, n_draws), dtype=np.int32)
        negatives = np.empty((n_draws, n_negatives), dtype=np.int32)
        _, genuine_share = self.epoch_draws()
        draw_examples(
            self.seed,
            self.n_epochs,
            first,
            self._genuine,
            self._fake,
            round(genuine_share * _DRAWS),
            self.graph.indptr,
            self.graph.items,
            self.graph.n_items,
            users,
            positives,
            negatives,
        )
        return users, positives, negatives

    def user_batches(self) -> list[NDArray[np.int64]]:
        """Return the users of each step of the present epoch of `"mse"`, in random order."""
        order = counter_permutation(self.seed, _ORDER + 2 * self.n_epochs, self.graph.n_users)
        size = self.config.batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def train_step(self, first: int, n_draws: int) -> float:
        """Take one step on draws of the present epoch and return its mean loss; not for `"mse"`.

        Args:
            first: Number of the first draw.
            n_draws: How many.
        """
        config = self.config
        add_gradient = add_bpr_gradient if config.loss == "bpr" else add_bce_gradient
        rows = self.representations()
        users, positives, negatives = self.draw(first, n_draws)
        loss = add_gradient(
            self.graph.n_users, users, positives, negatives, rows, config.reg, self._gradient
        )
        self._step(self._gradient, rows)
        return float(loss)

    def _pair_epoch(self) -> list[float]:
        size = self.config.batch_size
        n_draws, _ = self.epoch_draws()
        return [
            self.train_step(first, min(size, n_draws - first)) for first in range(0, n_draws, size)
        ]

    def _user_epoch(self) -> list[float]:
        config, losses = self.config, []
        for users in self.user_batches():
            rows = self.representations()
            loss, gradient = squared_error_gradient(
                users, rows, self.graph, config.positive_weight, config.reg
            )
            losses.append(loss)
            self._step(gradient, rows)
        return losses

    def _step(self, gradient: NDArray[Real], rows: NDArray[Real]) -> None:
        self.descend(self.passed(gradient, rows))

    def _is_passing(self) -> bool:
        rate = self.config.passing_rate
        if rate in (0.0, 1.0):
            return rate == 1.0
        word = counter_words(self.seed, _PASSING, np.array([self.n_steps]))[0]
        return float(word >> np.uint64(11)) * 2.0**-53 < rate

    def _smoothed(self, values: NDArray[Real]) -> NDArray[Real]:
        """Return the mean over 0 to `n_layers` hops along the graph: LightGCN's forward and backward."""
        total = values.copy()
        self.adjacency.add_hops(total, values, (1.0, 1.0), self.config.n_layers)
        total *= total.dtype.type(1.0 / (self.config.n_layers + 1))
        return total


def embeddings_of(trained: Surrogate, graph: InteractionGraph, seed: int) -> NDArray[np.float32]:
    """Return initial embeddings for a larger graph: rows of genuine users and items from a trained surrogate.

    The pre-training strategy of Gradient Passing; rows of fake users are random.

    Args:
        trained: On the clean graph.
        graph: The same with fake users.
        seed: What the random rows are drawn from.
    """
    n_genuine, config = graph.n_genuine, trained.config
    if (trained.graph.n_users, trained.graph.n_items) != (n_genuine, graph.n_items):
        raise ArgumentError(
            f"graph must have the {trained.graph.n_users} users and {trained.graph.n_items} items that were "
            f"trained on, got {n_genuine} and {graph.n_items}"
        )
    shape = (graph.n_rows, config.embedding_size)
    initial = counter_normal(seed % MAX_SEED, _INITIAL, shape) * np.float32(config.initial_scale)
    initial[:n_genuine] = trained.embeddings[:n_genuine]
    initial[graph.n_users :] = trained.embeddings[n_genuine:]
    return initial
