"""RAPU-R: click popular items that are near to both the average user and a target."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.gradient.attack import FillerChooser, GroupAttacker, GroupAttackerConfig
from agents.gradient.profiles import Task, top_items
from agents.gradient.surrogates import Surrogate
from recattack_gym.core.checks import as_real


@dataclass(frozen=True, kw_only=True, slots=True)
class RAPURConfig(GroupAttackerConfig):
    """Settings of `RAPUR`; the defaults are GP-lab's on Gowalla."""

    popular_rate: float = 0.1
    """Share of the catalogue, most popular first, that fillers are taken from, in `(0, 1]`."""

    def __post_init__(self) -> None:
        GroupAttackerConfig.__post_init__(self)
        as_real("popular_rate", self.popular_rate, above=0.0, at_most=1.0)


class RAPUR(GroupAttacker):
    """Click all targets, and the popular items with the largest score for "average user plus one target".

    Zhang, Tian, Li, Chen, He, Wang, Xiong and Zhang, "Data poisoning attack against recommender system using
    incomplete and perturbed data", KDD 2021, reduced to its relation to users and items as in GP-lab
    (Gradient Passing, RecSys 2024). Fake user f is made for target number `f mod n_targets`.

    Differs from the paper: the probabilistic model of incomplete and perturbed data is absent, as in GP-lab.
    Where the popular items are fewer than a profile needs, the next popular ones fill up.
    """

    name = "rapu-r"
    config: RAPURConfig
    config_class = RAPURConfig

    def _chooser(self, task: Task) -> "NearestPopular":
        return NearestPopular(task, self.config)


class NearestPopular(FillerChooser):
    """Chooses popular items near the average genuine user and a target.

    Args:
        task: What the attack is about.
        config: Settings.
    """

    def __init__(self, task: Task, config: RAPURConfig) -> None:
        self._task = task
        n_popular = max(int(config.popular_rate * task.log.n_items), task.n_fillers)
        popularity = task.log.item_popularity
        candidates = top_items(popularity.astype(np.float64), ~task.is_target, n_popular)
        self.is_candidate = np.zeros(task.log.n_items, dtype=np.bool_)
        """What may be a filler, shape `(n_items,)`."""
        self.is_candidate[candidates] = True

    def fillers(
        self, surrogate: Surrogate, fake_users: range, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """See `FillerChooser.fillers`."""
        del rng
        rows, graph = surrogate.representations(), surrogate.graph
        items, average = rows[graph.n_users :], rows[: graph.n_genuine].mean(axis=0)
        targets = self._task.target_items
        return [
            top_items(
                items @ (average + items[targets[fake % len(targets)]]),
                self.is_candidate,
                self._task.n_fillers,
            )
            for fake in fake_users
        ]
