"""Which rule of thumb hurts which recommender?

Plans every heuristic attack several times against several victims on one log, and prints the mean RecNum.
"""

from collections.abc import Sequence

import gymnasium as gym
import numpy as np

from agents.benchmark.tables import markdown_table
from agents.heuristic import HEURISTICS
from recattack_gym.core import Knowledge
from recattack_gym.envs import PoisonEnv
from recattack_gym.simulator import PlatformView


def main(
    victims: Sequence[str] = ("ItemPop", "CoVisitation", "BPR", "ALS"),
    dataset: str = "synthetic",
    n_draws: int = 10,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Print and return the mean RecNum: victim -> attacker -> number."""
    results: dict[str, dict[str, float]] = {}
    for victim in victims:
        env = gym.make(f"recattack_gym:RecPoison-{victim}-v0", dataset=dataset).unwrapped
        assert isinstance(env, PoisonEnv)  # noqa: S101  # tells the type checker what make returned
        view = PlatformView(env.simulator, env.budget, Knowledge.GRAY_BOX)
        results[victim] = {"no attack": float(env.simulator.clean_rec_num)}
        for name, attacker in HEURISTICS.items():
            planner, rng = attacker(), np.random.default_rng(seed)
            sets = np.stack([planner.plan(view, rng).item_ids for _ in range(n_draws)])
            results[victim][name] = float(view.query(sets).mean())
    columns = list(results[victims[0]])
    rows = [(victim, *(round(row[name]) for name in columns)) for victim, row in results.items()]
    print(markdown_table(("victim", *columns), rows))
    return results


if __name__ == "__main__":
    main()
