"""How do I plug in my own algorithm? REINFORCE in plain PyTorch on the native vector environment.

The policy knows two things about an item, whether it is a target and how popular it is, and weighs them
differently after a target than after another item: four numbers to learn.
"""

import gymnasium as gym
import numpy as np
import torch

from agents.benchmark.tables import markdown_table


def main(
    env_id: str = "recattack_gym:RecPoison-ALS-v0",
    n_updates: int = 40,
    num_envs: int = 8,
    n_clicks: int = 10,
    seed: int = 0,
) -> list[float]:
    """Print what each tenth of training reaches; return the mean RecNum of every update."""
    torch.manual_seed(seed)
    envs = gym.make_vec(
        env_id,
        num_envs=num_envs,
        autoreset_mode="SameStep",
        n_fake_users=n_clicks,
        profile_size=n_clicks,
    )
    platform = envs.unwrapped
    popularity = np.log1p(platform.item_popularity)  # type: ignore[attr-defined]  # PoisonVectorEnv's
    is_target = np.isin(np.arange(len(popularity)), platform.target_items)  # type: ignore[attr-defined]
    level = (popularity - popularity[~is_target].mean()) / popularity[~is_target].std()
    features = np.stack([is_target, np.where(is_target, 0.0, level)], axis=1)
    items = torch.tensor(features, dtype=torch.float32)  # (n_items, 2)
    start = [float(np.log((~is_target).sum() / is_target.sum())), 0.0]  # half the clicks on targets
    weights = torch.tensor([start, start], requires_grad=True)  # (last click was a target, feature)
    optimizer = torch.optim.Adam([weights], lr=0.2)
    curve = []
    envs.reset(seed=seed)
    for _ in range(n_updates):
        log_prob = torch.zeros(num_envs)
        after_target = torch.zeros(num_envs, dtype=torch.long)
        for _ in range(n_clicks * n_clicks):
            log_policy = (weights[after_target] @ items.T).log_softmax(dim=1)
            clicks = torch.multinomial(log_policy.exp(), 1)[:, 0]  # (num_envs,)
            log_prob = log_prob + log_policy[torch.arange(num_envs), clicks]
            after_target = items[clicks, 0].long()
            _, rewards, *_ = envs.step(clicks.numpy())
        returns = torch.tensor(rewards, dtype=torch.float32)  # only the last click is paid
        advantages = (returns - returns.mean()) / (returns.std() + 1e-8)
        optimizer.zero_grad()
        (-(advantages * log_prob).mean()).backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        curve.append(float(returns.mean()))
    rows = [
        (f"update {i * n_updates // 10 + 1}", round(float(np.mean(part))))
        for i, part in enumerate(np.array_split(curve, 10))
        if len(part)
    ]
    print(markdown_table(("from", "RecNum"), rows))
    return curve


if __name__ == "__main__":
    main()
