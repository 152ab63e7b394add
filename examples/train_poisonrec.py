"""What does an attacker that learns find that rules of thumb do not?

Trains PoisonRec on one platform, and compares the best poison set that it found with the best of equally many
random ones of simple structure, and with rules of thumb.
"""

import gymnasium as gym
import numpy as np

from agents.attackers import ATTACKERS
from agents.benchmark.tables import markdown_table
from agents.heuristic import HEURISTICS
from agents.poisonrec import PoisonRec, PoisonRecConfig, WarmPoisonRec, WarmPoisonRecConfig
from recattack_gym.core import Knowledge
from recattack_gym.envs import PoisonEnv
from recattack_gym.simulator import PlatformView


def main(
    env_id: str = "recattack_gym:RecPoison-CoVisitation-v0",
    n_queries: int = 960,
    n_draws: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """Print and return RecNum per attacker."""
    env = gym.make(env_id).unwrapped
    assert isinstance(env, PoisonEnv)  # noqa: S101  # tells the type checker what make returned
    found = {"no attack": float(env.simulator.clean_rec_num)}
    gray_box = PlatformView(env.simulator, env.budget, Knowledge.GRAY_BOX)
    for name, heuristic in HEURISTICS.items():
        rng = np.random.default_rng(seed)
        plans = [heuristic().plan(gray_box, rng).item_ids for _ in range(n_draws)]
        found[f"{name} (mean)"] = float(gray_box.query(np.stack(plans)).mean())
    black_box = PlatformView(env.simulator, env.budget)
    search = ATTACKERS["random-search"]({"n_queries": n_queries})
    plan = search.plan(black_box, np.random.default_rng(seed))
    found["random search (best)"] = float(black_box.query(plan.item_ids[None])[0])
    for name, agent in (
        ("PoisonRec (best)", PoisonRec(black_box, PoisonRecConfig(n_queries=n_queries), seed=seed)),
        (
            "PoisonRec, warm start (best)",
            WarmPoisonRec(black_box, WarmPoisonRecConfig(n_queries=n_queries), seed=seed),
        ),
    ):
        agent.learn(show_progress=True)
        found[name] = float(agent.best_rec_num)
    print(markdown_table(("attacker", "RecNum"), list(found.items())))
    return found


if __name__ == "__main__":
    main()
