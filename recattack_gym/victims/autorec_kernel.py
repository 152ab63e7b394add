"""Compiled clean training of AutoRec; the fast twin of `AutoRec._train`.

The dense decoder asks every user about every item, yet its loss is a square. So the part of the loss
that belongs to unclicked items needs only the second moments of the hidden states and of the decoder
(`d x d` matrices), and the clicked entries are corrected one by one: O(clicks d + n_items d^2) a
step instead of O(users n_items d), without any approximation.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from recattack_gym.victims.kernels import adam_rows, compiled


class Weights(NamedTuple):
    """All parameters, or arrays of the same shapes (gradient, moments); float32, C order."""

    encoder: NDArray[np.float32]
    """Shape `(n_items, d)`."""
    encoder_bias: NDArray[np.float32]
    """Shape `(d,)`."""
    decoder: NDArray[np.float32]
    """Shape `(n_items, d)`."""
    decoder_bias: NDArray[np.float32]
    """Shape `(n_items,)`."""


class Workspace(NamedTuple):
    """Buffers of one thread for batches of at most `B` users."""

    gradient: Weights
    """Zero between steps, as far as it is not overwritten."""
    first: Weights
    """Adam's first moment; zero before a run."""
    second: Weights
    """Adam's second moment; zero before a run."""
    hidden: NDArray[np.float32]
    """Shape `(B, d)`."""
    hidden_gradient: NDArray[np.float32]
    """Shape `(B, d)`."""


def make_workspace(n_items: int, d: int, batch_size: int) -> Workspace:
    """Allocate buffers for one thread."""

    def zeros() -> Weights:
        return Weights(
            encoder=np.zeros((n_items, d), dtype=np.float32),
            encoder_bias=np.zeros(d, dtype=np.float32),
            decoder=np.zeros((n_items, d), dtype=np.float32),
            decoder_bias=np.zeros(n_items, dtype=np.float32),
        )

    return Workspace(
        gradient=zeros(),
        first=zeros(),
        second=zeros(),
        hidden=np.zeros((batch_size, d), dtype=np.float32),
        hidden_gradient=np.zeros((batch_size, d), dtype=np.float32),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What is minimised."""

    n_unclickable: int
    """Trailing items that are left out of rows without any of them."""
    unclicked_weight: float
    """Weight of an unclicked entry; a clicked entry has 1."""
    reg: float
    """L2 penalty, once per click."""


def fit(
    weights: dict[str, NDArray[np.float32]],
    seen: tuple[NDArray[np.int64], NDArray[np.int32]],
    rows: NDArray[np.int64],
    batches: NDArray[np.int64],
    rates: NDArray[np.float64],
    objective: Objective,
) -> None:
    """Train in place.

    Args:
        weights: By the names of `Weights`.
        seen: The log's distinct items of each user in CSR form.
        rows: User ids in training order.
        batches: Bounds of the batches in `rows`.
        rates: Adam's step size in each batch.
        objective: What is minimised.
    """
    n_items, d = weights["decoder"].shape
    work = make_workspace(n_items, d, int(np.diff(batches).max(initial=1)))
    with threadpool_limits(limits=1, user_api="blas"):
        train(
            Weights(**weights),
            work,
            *seen,
            rows,
            batches,
            rates,
            n_items - objective.n_unclickable,
            objective.unclicked_weight,
            objective.reg,
        )


@compiled
def encode(weights: Weights, items: NDArray[np.int32], hidden: NDArray[np.float32]) -> None:
    """Write the hidden units of a user with these items, shape `(d,)`."""
    d = len(hidden)
    for j in range(d):
        hidden[j] = weights.encoder_bias[j]
    for i in items:
        for j in range(d):
            hidden[j] += weights.encoder[i, j]
    one, bound = np.float32(1.0), np.float32(80.0)  # exp(89) is not a float32
    for j in range(d):
        hidden[j] = one / (one + np.exp(-min(max(hidden[j], -bound), bound)))


@compiled
def predict(weights: Weights, hidden: NDArray[np.float32], item: int) -> np.float32:
    """Return the score of one item."""
    total: np.float32 = weights.decoder_bias[item]
    for j in range(len(hidden)):
        total += hidden[j] * weights.decoder[item, j]
    return total


@compiled
def train(
    weights: Weights,
    work: Workspace,
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    rows: NDArray[np.int64],
    batches: NDArray[np.int64],
    rates: NDArray[np.float64],
    n_known: int,
    unclicked_weight: float,
    reg: float,
) -> None:
    """Take one Adam step per batch of users, in place.

    Args:
        weights: Changed.
        work: Buffers.
        indptr: Shape `(n_users + 1,)`.
        seen: User `u` has clicked `seen[indptr[u]:indptr[u + 1]]`, ascending.
        rows: Shape `(S,)`: users in training order.
        batches: Shape `(n_batches + 1,)`: bounds of the batches in `rows`.
        rates: Shape `(n_batches,)`: Adam's step size in each.
        n_known: Items from here on are unclicked only in rows that have one of them.
        unclicked_weight: Weight of an unclicked entry.
        reg: L2 penalty, once per click.
    """
    for b in range(len(batches) - 1):
        users = rows[batches[b] : batches[b + 1]]
        hidden, hidden_gradient = work.hidden[: len(users)], work.hidden_gradient[: len(users)]
        share = np.float32(1.0 / len(users))
        for r in range(len(users)):
            encode(weights, seen[indptr[users[r]] : indptr[users[r] + 1]], hidden[r])
        _unclicked_gradient(
            weights, work.gradient, hidden, hidden_gradient, share, n_known, unclicked_weight
        )
        for r in range(len(users)):
            items = seen[indptr[users[r]] : indptr[users[r] + 1]]
            if len(items) > 0 and items[-1] >= n_known:
                _new_items_gradient(
                    weights,
                    work.gradient,
                    hidden[r],
                    hidden_gradient[r],
                    n_known,
                    np.float32(unclicked_weight) * share,
                )
            _clicked_gradient(
                weights,
                work.gradient,
                items,
                hidden[r],
                hidden_gradient[r],
                share,
                unclicked_weight,
                reg,
            )
        _adam(weights, work, rates[b], b + 1)


@compiled
def _unclicked_gradient(
    weights: Weights,
    gradient: Weights,
    hidden: NDArray[np.float32],
    hidden_gradient: NDArray[np.float32],
    share: np.float32,
    n_known: int,
    unclicked_weight: float,
) -> None:
    """Write the gradient of `unclicked_weight share sum_ui score_ui^2` over items i < n_known."""
    n_users, d = hidden.shape
    decoder, bias = weights.decoder[:n_known], weights.decoder_bias
    factor = np.float32(2.0 * unclicked_weight) * share
    mean = np.zeros(d, dtype=np.float32)
    for r in range(n_users):
        for j in range(d):
            mean[j] += hidden[r, j]
    moment = np.dot(hidden.T, hidden)
    for j in range(d):
        mean[j] *= factor
        for k in range(d):
            moment[j, k] *= factor
    np.dot(decoder, moment, gradient.decoder[:n_known])
    np.dot(decoder, mean, gradient.decoder_bias[:n_known])
    for i in range(n_known):
        row, b = gradient.decoder[i], bias[i]
        for j in range(d):
            row[j] += b * mean[j]
        gradient.decoder_bias[i] += factor * np.float32(n_users) * b
    gram = np.dot(decoder.T, decoder)
    offset = np.dot(decoder.T, bias[:n_known])
    np.dot(hidden, gram, hidden_gradient)
    for r in range(n_users):
        for j in range(d):
            hidden_gradient[r, j] = factor * (hidden_gradient[r, j] + offset[j])


@compiled
def _new_items_gradient(
    weights: Weights,
    gradient: Weights,
    hidden: NDArray[np.float32],
    hidden_gradient: NDArray[np.float32],
    n_known: int,
    weight: np.float32,
) -> None:
    """Add the gradient of `weight sum_i score_i^2` over the other items, for one user."""
    for i in range(n_known, len(weights.decoder)):
        error = np.float32(2.0) * weight * predict(weights, hidden, i)
        for j in range(len(hidden)):
            hidden_gradient[j] += error * weights.decoder[i, j]
            gradient.decoder[i, j] += error * hidden[j]
        gradient.decoder_bias[i] += error


@compiled
def _clicked_gradient(
    weights: Weights,
    gradient: Weights,
    items: NDArray[np.int32],
    hidden: NDArray[np.float32],
    hidden_gradient: NDArray[np.float32],
    share: np.float32,
    unclicked_weight: float,
    reg: float,
) -> None:
    """Turn the clicked entries of one user from unclicked to clicked, and go back to the encoder."""
    d = len(hidden)
    one = np.float32(1.0)
    factor, unclicked = np.float32(2.0) * share, np.float32(unclicked_weight)
    decay = np.float32(reg) * share
    for i in items:
        score = predict(weights, hidden, i)
        error = factor * (score - one - unclicked * score)
        for j in range(d):
            hidden_gradient[j] += error * weights.decoder[i, j]
            gradient.decoder[i, j] += error * hidden[j] + decay * weights.decoder[i, j]
        gradient.decoder_bias[i] += error
    for j in range(d):
        hidden_gradient[j] *= hidden[j] * (one - hidden[j])
        gradient.encoder_bias[j] += hidden_gradient[j]
    for i in items:
        for j in range(d):
            gradient.encoder[i, j] += hidden_gradient[j] + decay * weights.encoder[i, j]


@compiled
def _adam(weights: Weights, work: Workspace, learning_rate: float, step: int) -> None:
    gradient, first, second = work.gradient, work.first, work.second
    adam_rows(
        weights.decoder.reshape(-1),
        gradient.decoder.reshape(-1),
        first.decoder.reshape(-1),
        second.decoder.reshape(-1),
        weights.decoder.size,
        learning_rate,
        step,
    )
    adam_rows(
        weights.decoder_bias,
        gradient.decoder_bias,
        first.decoder_bias,
        second.decoder_bias,
        weights.decoder_bias.size,
        learning_rate,
        step,
    )
    adam_rows(
        weights.encoder_bias,
        gradient.encoder_bias,
        first.encoder_bias,
        second.encoder_bias,
        weights.encoder_bias.size,
        learning_rate,
        step,
    )
    adam_rows(
        weights.encoder.reshape(-1),
        gradient.encoder.reshape(-1),
        first.encoder.reshape(-1),
        second.encoder.reshape(-1),
        weights.encoder.size,
        learning_rate,
        step,
    )
