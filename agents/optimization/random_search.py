"""Random search: what a learner has to beat before it may call itself one."""

import numpy as np

from agents.search import SearchAttacker, Trials
from agents.structured import structured_sets
from recattack_gym.core.view import AttackerView


class RandomSearch(SearchAttacker):
    """Try poison sets of simple, random structure, and keep the best one.

    Bergstra and Bengio, "Random search for hyper-parameter optimization", JMLR 2012: with few queries and
    few dimensions that matter, random trials are hard to beat. The dimensions are those of
    `agents.structured.structured_sets`.

    Differs from the paper: it is about hyper-parameters, this about poison sets.
    """

    name = "random-search"

    def _search(self, view: AttackerView, trials: Trials, rng: np.random.Generator) -> None:
        while not trials.is_spent:
            trials.query(structured_sets(view, min(self.config.batch_size, trials.n_left), rng))
