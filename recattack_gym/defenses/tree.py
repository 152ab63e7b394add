"""A decision tree as arrays: grown by scikit-learn, walked here, so that it can be saved without pickling."""

from importlib import import_module
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArgumentError
from recattack_gym.defenses.base import State


def scikit_learn(module: str, detector: str) -> ModuleType:
    """Import a module of scikit-learn.

    Raises:
        ArgumentError: If it is not installed.
    """
    try:
        return import_module(f"sklearn.{module}")
    except ModuleNotFoundError as error:
        raise ArgumentError(
            f"detector {detector!r} needs scikit-learn, which is not installed: "
            "pip install 'recattack-gym[detectors]'"
        ) from error


def grow_tree(
    features: NDArray[np.float64],
    is_fake: NDArray[np.bool_],
    *,
    min_leaf: int,
    seed: int,
    detector: str,
) -> State:
    """Grow a tree by information gain, both kinds of user weighing the same.

    Args:
        features: Shape `(n_users, n_features)`.
        is_fake: Shape `(n_users,)`.
        min_leaf: Fewest training users of a leaf.
        seed: Of ties between splits.
        detector: Whose tree it is, for the message.

    Returns:
        Arrays over nodes: `split_on`, `split_at`, `left`, `right` (-1 in leaves), `share` of fake users.
    """
    kind = scikit_learn("tree", detector).DecisionTreeClassifier
    grown = kind(
        criterion="entropy", min_samples_leaf=min_leaf, class_weight="balanced", random_state=seed
    ).fit(features, is_fake)
    tree = grown.tree_
    shares = tree.value[:, 0, :] / tree.value[:, 0, :].sum(axis=1, keepdims=True)
    return {
        "split_on": tree.feature.astype(np.int64),
        "split_at": tree.threshold.astype(np.float64),
        "left": tree.children_left.astype(np.int64),
        "right": tree.children_right.astype(np.int64),
        "share": shares[:, 1].astype(np.float64),
    }


def tree_shares(tree: State, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of fake users in each row's leaf; shape `(n_users,)`.

    Features are compared in single precision, as scikit-learn compares them.
    """
    node = np.zeros(len(features), dtype=np.int64)
    rows, compared = np.arange(len(features)), features.astype(np.float32)
    while (inner := tree["left"][node] >= 0).any():
        here = node[inner]
        goes_left = compared[rows[inner], tree["split_on"][here]] <= tree["split_at"][here]
        node[inner] = np.where(goes_left, tree["left"][here], tree["right"][here])
    share: NDArray[np.float64] = tree["share"][node]
    return share
