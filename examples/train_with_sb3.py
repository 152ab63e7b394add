"""How do I train an agent from Stable-Baselines3?

All copies of the environment are evaluated together by the native vector environment. The agent clicks by
group (targets, then bands of popularity), and a rollout is one whole attack per copy.
"""

from functools import partial

import numpy as np
from stable_baselines3 import PPO

from agents.benchmark.tables import markdown_table
from agents.sb3 import ClickSequenceExtractor, make_sb3_vec_env
from recattack_gym.envs.wrappers import GroupedVectorActions


def main(
    env_id: str = "recattack_gym:RecPoison-ALS-v0",
    n_updates: int = 60,
    n_envs: int = 4,
    n_clicks: int = 10,
    seed: int = 0,
) -> tuple[float, float]:
    """Train, then print and return the mean RecNum of the untrained and of the trained policy."""
    envs = make_sb3_vec_env(
        env_id,
        n_envs,
        seed=seed,
        wrapper=partial(GroupedVectorActions, n_bands=5),
        n_fake_users=n_clicks,
        profile_size=n_clicks,
        reward="normalized",
    )
    n_steps = n_clicks * n_clicks
    model = PPO(
        "MultiInputPolicy",
        envs,
        n_steps=n_steps,
        batch_size=n_steps * n_envs,
        n_epochs=8,
        learning_rate=2e-2,
        gamma=1.0,
        gae_lambda=1.0,
        seed=seed,
        device="cpu",
        policy_kwargs={
            "features_extractor_class": ClickSequenceExtractor,
            "features_extractor_kwargs": {"embedding_size": 8},
            "net_arch": [32],
        },
    )
    before = mean_rec_num(model, n_steps)
    model.learn(n_updates * n_steps * n_envs)
    after = mean_rec_num(model, n_steps)
    rows = [("before training", before), ("after training", after)]
    print(markdown_table(("policy", "RecNum"), [(name, round(x)) for name, x in rows]))
    return before, after


def mean_rec_num(model: PPO, n_steps: int, n_rounds: int = 4) -> float:
    """Return the mean RecNum of fresh attacks, `n_rounds` in every copy of the environment."""
    envs = model.get_env()
    assert envs is not None  # noqa: S101  # the model was made with one
    rec_nums = []
    for _ in range(n_rounds):
        observation = envs.reset()
        for _ in range(n_steps):
            actions, _ = model.predict(observation, deterministic=False)  # type: ignore[arg-type]  # SB3
            observation, _, _, infos = envs.step(actions)
        rec_nums += [info["rec_num"] for info in infos]
    return float(np.mean(rec_nums))


if __name__ == "__main__":
    main()
