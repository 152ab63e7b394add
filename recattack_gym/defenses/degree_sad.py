"""DegreeSAD and Pop-SAD: which items a profile has, by how many others have them; ratings play no part."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.defenses.base import DetectorConfig, State, SupervisedDetector
from recattack_gym.defenses.features import pop_sad_edges, popularity, popularity_histogram
from recattack_gym.defenses.pairs import UserItems
from recattack_gym.defenses.tree import grow_tree, tree_shares


@dataclass(frozen=True, kw_only=True, slots=True)
class DegreeSADConfig(DetectorConfig):
    """Settings of `DegreeSAD`."""

    min_leaf: int = 5
    """Fewest training users of a leaf; with 1 all scores are 0 or 1."""

    def __post_init__(self) -> None:
        as_count("min_leaf", self.min_leaf)


class DegreeSAD(SupervisedDetector):
    """Suspect users by mean, range and lower quartile of how popular their items are.

    Li et al., "Shilling attack detection in recommender systems via selecting patterns analysis", IEICE
    Trans. 2016, in the form that SDLib calls DegreeSAD: MUD, RUD and QUD in a decision tree. Genuine profiles
    follow item popularity, uniformly chosen filler items do not. Copies of genuine profiles cannot be found.

    Differs from the paper: popularity is counted in shares of all users, so that a tree can be used on a
    log of another size; leaves have at least `min_leaf` users, and both kinds of user weigh the same.
    """

    name = "degree-sad"
    config: DegreeSADConfig
    config_class = DegreeSADConfig

    def _fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> None:
        self._tree = grow_tree(
            _degrees(log), is_fake, min_leaf=self.config.min_leaf,
            seed=draw_seed(rng) % 2**32, detector=self.name,
        )  # fmt: skip

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        return tree_shares(self._tree, _degrees(log))

    def _state(self) -> State:
        return dict(self._tree)

    def _restore(self, state: State) -> None:
        names = ("split_on", "split_at", "left", "right", "share")
        self._tree = {name: state[name] for name in names}


def _degrees(log: Interactions) -> NDArray[np.float64]:
    """Return MUD, RUD and QUD in shares of all users; shape `(n_users, 3)`."""
    pairs = UserItems.of(log)
    kinds = [popularity(pairs, kind) for kind in ("mean", "range", "quartile")]
    return np.stack(kinds, axis=1) / log.n_users


@dataclass(frozen=True, kw_only=True, slots=True)
class PopSADConfig(DetectorConfig):
    """Settings of `PopSAD`."""

    max_bins: int = 50
    """Most bins; they get wider where the paper's width would make more."""
    min_leaf: int = 5
    """Fewest training users of a leaf of the tree."""

    def __post_init__(self) -> None:
        as_count("max_bins", self.max_bins)
        as_count("min_leaf", self.min_leaf)


class PopSAD(SupervisedDetector):
    """Suspect users by the histogram of how popular their items are.

    Li et al., IEICE Trans. 2016 (see `DegreeSAD`): bins of one width from 0 to the popularity of the most
    popular item; the width is the smallest mean popularity of a genuine training user's items; a decision
    tree tells histograms apart.

    Differs from the paper: popularity is counted in shares of all users; the tree's leaves have at least
    `min_leaf` users, and both kinds of user weigh the same; the number of bins is bounded, since one genuine
    user with a rare item can make them thousands.
    """

    name = "pop-sad"
    config: PopSADConfig
    config_class = PopSADConfig

    def _fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> None:
        pairs = UserItems.of(log)
        largest = float(pairs.n_raters.max())
        width = max(float(popularity(pairs)[~is_fake].min()), largest / self.config.max_bins)
        self._edges = pop_sad_edges(width, largest) / log.n_users
        self._tree = grow_tree(
            self._histogram(log), is_fake, min_leaf=self.config.min_leaf,
            seed=draw_seed(rng) % 2**32, detector=self.name,
        )  # fmt: skip

    def _histogram(self, log: Interactions) -> NDArray[np.float64]:
        return popularity_histogram(UserItems.of(log), self._edges * log.n_users)

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        return tree_shares(self._tree, self._histogram(log))

    def _state(self) -> State:
        return {**self._tree, "edges": self._edges}

    def _restore(self, state: State) -> None:
        names = ("split_on", "split_at", "left", "right", "share")
        self._tree = {name: state[name] for name in names}
        self._edges = state["edges"]
