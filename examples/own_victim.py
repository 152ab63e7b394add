"""How robust is my own recommender? A new victim in one class, attacked like any other.

Trending recommends what users clicked last: robust against old clicks, and easy prey for new ones?
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agents.benchmark.tables import markdown_table
from agents.heuristic import HEURISTICS
from recattack_gym.core import Interactions, Knowledge
from recattack_gym.envs import PoisonEnv
from recattack_gym.simulator import PlatformView
from recattack_gym.victims import Victim, VictimConfig
from recattack_gym.victims.base import State


@dataclass(frozen=True, kw_only=True, slots=True)
class TrendingConfig(VictimConfig):
    """Settings of `Trending`."""

    window: int = 5
    """How many of each user's last clicks count."""


class Trending(Victim):
    """Rank items by how often they are among the last clicks of a user."""

    name = "Trending"
    config: TrendingConfig
    config_class = TrendingConfig
    is_incremental = True  # counts add up, so fine-tuning equals full retraining

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        del rng  # nothing is random
        to_come = log.indptr[log.user_ids + 1] - np.arange(len(log))  # 1 for a user's last click
        recent = log.item_ids[to_come <= self.config.window]
        self._clicks = np.bincount(recent, minlength=log.n_items)

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        del user_ids  # the same for everyone
        return self._clicks[item_ids].astype(np.float32)

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        del log, seed
        recent = profile[:, -self.config.window :]
        self._clicks = self._clicks + np.bincount(recent.ravel(), minlength=len(self._clicks))

    def _state(self) -> State:
        return {"clicks": self._clicks}

    def _set_state(self, state: State) -> None:
        self._clicks = state["clicks"].astype(np.int64)


def main(n_targets: int = 2, n_draws: int = 10, seed: int = 0) -> dict[str, float]:
    """Print and return the mean RecNum of every heuristic against `Trending`."""
    made = gym.make("recattack_gym:RecPoison-ItemPop-v0", victim=Trending, targets=n_targets)
    env = made.unwrapped
    assert isinstance(env, PoisonEnv)  # noqa: S101  # tells the type checker what make returned
    view = PlatformView(env.simulator, env.budget, Knowledge.GRAY_BOX)
    results = {"no attack": float(env.simulator.clean_rec_num)}
    for name, attacker in HEURISTICS.items():
        planner, rng = attacker(), np.random.default_rng(seed)
        sets = np.stack([planner.plan(view, rng).item_ids for _ in range(n_draws)])
        results[name] = float(view.query(sets).mean())
    print(markdown_table(("attacker", "RecNum"), [(name, round(x)) for name, x in results.items()]))
    return results


if __name__ == "__main__":
    main()
