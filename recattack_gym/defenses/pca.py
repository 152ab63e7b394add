"""PCA-VarSelect: fake profiles made by one rule take no part in how genuine users vary."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.defenses.base import Detector, DetectorConfig
from recattack_gym.defenses.pairs import UserItems

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

_DENSE_USERS = 300
"""Up to so many users the whole matrix is decomposed, which is exact and no slower."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PCAVarSelectConfig(DetectorConfig):
    """Settings of `PCAVarSelect`."""

    n_components: int = 3
    """Leading eigenvectors; 3 as in the paper, which says 3 to 5."""
    is_binary: bool = False
    """Whether all ratings count as 1. What the method sees is which items are rated, not how."""

    def __post_init__(self) -> None:
        as_count("n_components", self.n_components)
        if not isinstance(self.is_binary, bool):
            raise ArgumentError(f"is_binary must be True or False, got {self.is_binary!r}")


class PCAVarSelect(Detector):
    """Suspect users with small loadings on the leading principal components of users.

    Mehta and Nejdl, "Unsupervised strategies for shilling detection and robust collaborative filtering",
    UMUAI 2009: each user's row of ratings, over *all* items with 0 for those not rated, is shifted and scaled
    to mean 0 and variance 1; of the users' covariance the `n_components` leading eigenvectors are taken; the
    score is minus the sum of a user's squared entries. (With means over the rated items alone it does not
    find what the paper says it finds: `tests/defenses/test_reference.py`.)

    Differs from the paper: clicks count as ratings of 1; a rating of exactly 0 cannot be told from none.
    """

    name = "pca-varselect"
    config: PCAVarSelectConfig
    config_class = PCAVarSelectConfig

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        pairs = UserItems.of(log)
        values = None if self.config.is_binary else pairs.ratings
        return -squared_loadings(pairs, values, self.config.n_components)


def squared_loadings(
    pairs: UserItems,
    values: NDArray[np.float64] | None,
    n_components: int,
    *,
    is_dense: bool | None = None,
) -> NDArray[np.float64]:
    """Return each user's sum of squared entries in the leading eigenvectors of `Z Z^T`.

    Args:
        pairs: Of a log.
        values: One per pair; `None` for ones.
        n_components: Eigenvectors, at most one fewer than users.
        is_dense: Whether to decompose the whole matrix; `None` decides by size.

    Returns:
        Shape `(n_users,)`, between 0 and 1.
    """
    n_users = pairs.n_users
    k = min(n_components, n_users - 1)
    if k < 1:
        return np.zeros(n_users)
    operator = _standardised(pairs, values)
    if n_users <= _DENSE_USERS if is_dense is None else is_dense:
        z = operator.matmat(np.eye(pairs.n_items))
        vectors = np.linalg.eigh(z @ z.T)[1][:, -k:]
    else:
        from scipy.sparse.linalg import LinearOperator, eigsh

        def covariance(vector: NDArray[np.float64]) -> NDArray[np.float64]:
            found: NDArray[np.float64] = operator.matvec(operator.rmatvec(vector))
            return found

        gram = LinearOperator((n_users, n_users), matvec=covariance, dtype=np.float64)
        # A start that is the same in any order of the users
        vectors = eigsh(gram, k, v0=np.asarray(pairs.lengths + 1.0))[1]
    loadings: NDArray[np.float64] = np.square(vectors).sum(axis=1)
    return loadings


def _standardised(pairs: UserItems, values: NDArray[np.float64] | None) -> "LinearOperator":
    """Return Z, `(n_users, n_items)`: rows shifted and scaled over all cells, rows without variance 0."""
    from scipy.sparse.linalg import LinearOperator

    x = pairs.matrix(values)
    given = np.ones(len(pairs.user_ids)) if values is None else values
    mean = pairs.user_sums(given) / pairs.n_items
    variance = np.maximum(pairs.user_sums(given**2) / pairs.n_items - mean**2, 0.0)
    varies = variance > 1e-12 * np.maximum(mean**2, 1e-300)
    scale = np.where(varies, 1.0 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)

    def times(w: NDArray[np.float64]) -> NDArray[np.float64]:
        w = w.reshape(pairs.n_items, -1)
        result: NDArray[np.float64] = scale[:, None] * (x @ w - mean[:, None] * w.sum(axis=0))
        return result

    def transposed(v: NDArray[np.float64]) -> NDArray[np.float64]:
        v = v.reshape(-1) * scale
        result: NDArray[np.float64] = x.T @ v - mean @ v
        return result

    return LinearOperator(
        x.shape, matvec=lambda w: times(w).ravel(), matmat=times, rmatvec=transposed,
        dtype=np.float64,
    )  # fmt: skip
