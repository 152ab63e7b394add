"""Evolutionary search: recombine the best poison sets so far."""

from dataclasses import dataclass

import numpy as np

from agents.recombination import Elites
from agents.search import SearchAttacker, SearchConfig, Trials
from agents.structured import structured_sets
from recattack_gym.core.checks import as_count
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, kw_only=True, slots=True)
class EvolutionConfig(SearchConfig):
    """Settings of `Evolution`, those of `WarmPoisonRec`."""

    batch_size: int = 16
    """Poison sets per generation."""
    first_generation: int = 64
    """Poison sets of simple structure that are tried first."""
    n_elites: int = 16
    """Poison sets that are recombined: the best so far."""

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        as_count("first_generation", self.first_generation)
        as_count("n_elites", self.n_elites)


class Evolution(SearchAttacker):
    """Try sets of simple structure, then keep recombining the best ones: no policy, nothing is learnt.

    The baseline for learners that use the same first sets (`agents.structured`) and recombinations
    (`agents.recombination`): what their policy adds is the difference. A (mu + lambda) evolution strategy
    with truncation to the best mu, after Beyer and Schwefel, "Evolution strategies: a comprehensive
    introduction", Natural Computing 1, 2002.

    Differs from the paper: parents are drawn by rank, and changes are those of discrete profiles.
    """

    name = "evolution"
    config: EvolutionConfig
    config_class = EvolutionConfig

    def _search(self, view: AttackerView, trials: Trials, rng: np.random.Generator) -> None:
        elites = Elites(view, self.config.n_elites)
        first = structured_sets(view, min(self.config.first_generation, trials.n_left), rng)
        elites.add(first, trials.query(first))
        while not trials.is_spent:
            item_ids = elites.recombine(min(self.config.batch_size, trials.n_left), rng)
            elites.add(item_ids, trials.query(item_ids))
