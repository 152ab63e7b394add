"""What does a policy of Stable-Baselines3 gain by walking down a tree of items, instead of a logit per item?

Trains PPO twice on the same platform, with the same features of the clicks so far and the same settings, and
compares RecNum of fresh attacks and the processor time of training.
"""

import time
from typing import Any

import numpy as np
from stable_baselines3 import PPO

from agents.benchmark.tables import markdown_table
from agents.sb3 import ClickSequenceExtractor, TreePolicy, make_sb3_vec_env, tree_policy_kwargs


def main(
    env_id: str = "recattack_gym:RecPoison-BPR-v0",
    n_updates: int = 30,
    n_envs: int = 16,
    n_clicks: int = 10,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Print and return, per policy, RecNum before and after training and seconds of training."""
    found = {}
    for name in ("one logit per item", "tree"):
        envs = make_sb3_vec_env(
            env_id,
            n_envs,
            seed=seed,
            n_fake_users=n_clicks,
            profile_size=n_clicks,
            reward="normalized",
        )
        settings: dict[str, Any] = {  # Any: arguments of many types
            "features_extractor_class": ClickSequenceExtractor,
            "features_extractor_kwargs": {"embedding_size": 16},
            "net_arch": [32],
        }
        is_tree = name == "tree"
        model = PPO(
            TreePolicy if is_tree else "MultiInputPolicy",
            envs,
            n_steps=n_clicks**2,  # one whole attack
            batch_size=n_clicks**2 * n_envs,
            n_epochs=8,
            learning_rate=1e-2,
            gamma=1.0,
            gae_lambda=1.0,
            seed=seed,
            device="cpu",
            policy_kwargs=tree_policy_kwargs(envs, **settings) if is_tree else settings,
        )
        before = mean_rec_num(model, n_clicks**2)
        begin = time.process_time()
        model.learn(n_updates * n_envs * n_clicks**2)
        seconds = time.process_time() - begin
        after = mean_rec_num(model, n_clicks**2)
        found[name] = {"before": before, "after": after, "CPU seconds": seconds}
    rows = [(name, *(round(x, 1) for x in row.values())) for name, row in found.items()]
    print(markdown_table(("policy", "RecNum before", "RecNum after", "CPU seconds"), rows))
    return found


def mean_rec_num(model: PPO, n_steps: int) -> float:
    """Return the mean RecNum of one fresh attack in every copy of the environment."""
    envs = model.get_env()
    assert envs is not None  # noqa: S101  # the model was made with one
    observation = envs.reset()
    for _ in range(n_steps):
        actions, _ = model.predict(observation, deterministic=False)  # type: ignore[arg-type]  # SB3
        observation, _, _, infos = envs.step(actions)
    return float(np.mean([info["rec_num"] for info in infos]))


if __name__ == "__main__":
    main()
