"""What poison does to predicted ratings, from factors: no full matrix is ever made.

Predictions are `users @ items.T` for genuine users, `(m, k)` and `(n, k)`; those of the clean and of the
poisoned victim may differ in k. "Unseen" pairs are those that genuine users have not rated. Li, Wang, Singh &
Vorobeychik, "Data Poisoning Attacks on Factorization-Based Collaborative Filtering", NIPS 2016,
equations (7) and (8).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted ratings of genuine users, as factors.

    Args:
        users: Shape `(m, k)`.
        items: Shape `(n, k)`.
    """

    users: NDArray[np.float64]
    items: NDArray[np.float64]

    def __post_init__(self) -> None:
        if (
            self.users.ndim != 2
            or self.items.ndim != 2
            or self.users.shape[1] != self.items.shape[1]
        ):
            raise ArgumentError(
                f"users and items must have shapes (m, k) and (n, k), got {self.users.shape} and "
                f"{self.items.shape}"
            )

    def at(self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the predictions of pairs; all of shape `(n_pairs,)`."""
        predicted: NDArray[np.float64] = (self.users[user_ids] * self.items[item_ids]).sum(axis=1)
        return predicted

    def minus(self, other: "Prediction") -> "Prediction":
        """Return the difference of two predictions as factors, of `k + k'` columns."""
        return Prediction(
            np.hstack([self.users, -other.users]), np.hstack([self.items, other.items])
        )


def availability(
    prediction: Prediction,
    clean: Prediction,
    user_ids: NDArray[np.int64],
    item_ids: NDArray[np.int64],
) -> float:
    """Return the sum of squared changes over unseen pairs, equation (7).

    Args:
        prediction: Of the poisoned victim.
        clean: Of the clean victim.
        user_ids: Of the rated pairs, which do not count, each once; shape `(n_pairs,)`.
        item_ids: Same shape.
    """
    change = prediction.minus(clean)
    everywhere = ((change.users.T @ change.users) * (change.items.T @ change.items)).sum()
    seen = change.at(user_ids, item_ids)
    return max(0.0, float(everywhere - seen @ seen))


def rmse(
    prediction: Prediction,
    clean: Prediction,
    user_ids: NDArray[np.int64],
    item_ids: NDArray[np.int64],
) -> float:
    """Return the root mean squared change over unseen pairs: zero without an attack.

    The paper's second footnote: a deviation from the clean prediction, not an error against held-out ratings.
    Arguments as for `availability`; `nan` if every pair is rated.
    """
    n_unseen = len(prediction.users) * len(prediction.items) - len(user_ids)
    if n_unseen == 0:
        return float("nan")
    return float(np.sqrt(availability(prediction, clean, user_ids, item_ids) / n_unseen))


def integrity(
    prediction: Prediction, target_items: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    """Return the weighted sum of the targets' predicted ratings over genuine users, equation (8).

    Args:
        prediction: Of the poisoned victim.
        target_items: Shape `(n_targets,)`.
        weights: Shape `(n_targets,)`.
    """
    return float(prediction.users.sum(axis=0) @ (prediction.items[target_items].T @ weights))


def average_rating(prediction: Prediction, target_items: NDArray[np.int64]) -> float:
    """Return the mean predicted rating of some items over all genuine users."""
    weights = np.full(len(target_items), 1.0 / len(target_items))
    return integrity(prediction, target_items, weights) / len(prediction.users)
