"""What does PPO look like when nothing is hidden? One file in the style of CleanRL, on the native vector env.

The policy decides whether to click a target, and then which item of that kind, so that untrained it makes
half of its clicks on targets. An item is a learnt embedding beside what everybody sees of it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agents.benchmark.tables import markdown_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Everything that decides a run; on the command line as `--option value`."""

    env_id: str = "recattack_gym:RecPoison-CoVisitation-v0"
    """Environment, as `module:id`."""
    n_updates: int = 60
    """Rollouts to learn from; in each, every copy is attacked once."""
    num_envs: int = 16
    """Copies of the environment, evaluated together: queries per update."""
    n_fake_users: int = 20
    """Accounts of an attack."""
    profile_size: int = 20
    """Clicks of an account."""
    n_targets: int = 8
    """New items to promote."""
    platform_seed: int = 0
    """Decides the platform: clean victim, candidate lists, retraining."""
    seed: int = 0
    """Decides the untrained agent and what it samples."""
    learning_rate: float = 1e-2
    """Adam's, falling to 0 in equal steps; large, since there are few updates."""
    gamma: float = 1.0
    """Discount. Only the last of 400 clicks is paid: the first would hear little of it with less than 1."""
    gae_lambda: float = 1.0
    """1 compares what was paid with the critic's guess; less trusts the critic from click to click."""
    n_epochs: int = 4
    """Passes over a rollout."""
    n_minibatches: int = 1
    """Minibatches per pass; a rollout has no more returns than `num_envs`."""
    clip_range: float = 0.2
    """How far an update may move the probability of a click, as a share of it."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the critic's loss."""
    max_grad_norm: float = 0.5
    """Longer gradients are shortened to this length."""
    embedding_size: int = 8
    """Width of what is learnt about an item."""
    embedding_scale: float = 0.3
    """Standard deviation of it before training: how differently items of a kind are treated by chance."""
    hidden_size: int = 64
    """Width of the hidden layers, the actor's and the critic's."""
    log_dir: str = ""
    """Folder for TensorBoard; without one, nothing is written."""


class Agent(nn.Module):
    """Actor and critic on a fake user's clicks so far.

    Args:
        item_popularity: Clicks of each item, shape `(n_items,)`.
        target_items: Distinct item ids, shape `(n_targets,)`.
        args: Widths and the scale of untrained embeddings.
    """

    def __init__(
        self, item_popularity: NDArray[np.int64], target_items: NDArray[np.int64], args: Args
    ) -> None:
        super().__init__()
        n_items = len(item_popularity)
        is_target = np.isin(np.arange(n_items), target_items)
        level = np.log1p(item_popularity)
        level = (level - level[~is_target].mean()) / (level[~is_target].std() + 1e-8)
        seen = np.zeros((n_items + 1, 2), dtype=np.float32)  # the last row is "no click yet"
        seen[:-1, 0] = is_target
        seen[:-1, 1] = np.where(is_target, 0.0, level)
        self.seen = torch.from_numpy(seen)
        self.kinds = [torch.from_numpy(np.flatnonzero(kind)) for kind in (~is_target, is_target)]
        self.column = torch.cat(self.kinds).argsort()  # where an item is if others come first
        self.embedding = nn.Embedding(n_items + 1, args.embedding_size, padding_idx=n_items)
        item_size = args.embedding_size + seen.shape[1]
        self.actor = nn.Sequential(nn.Linear(2 * item_size + 1, args.hidden_size), nn.Tanh())
        self.kind = nn.Linear(args.hidden_size, 2)
        self.query = nn.Linear(args.hidden_size, item_size)
        self.critic = nn.Sequential(
            nn.Linear(2 * item_size + 1, args.hidden_size),
            nn.Tanh(),
            nn.Linear(args.hidden_size, 1),
        )
        with torch.no_grad():
            self.embedding.weight.mul_(args.embedding_scale)
        for head in (self.kind, self.query):  # nearly equal chances before training
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)

    def forward(self, clicks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logarithm of the policy, `(B, n_items)`, and values, `(B,)`.

        Args:
            clicks: The observation's `clicks`, shape `(B, T)`.
        """
        items = torch.cat([self.embedding.weight, self.seen], dim=1)  # (n_items + 1, item_size)
        n_clicks = (clicks < len(items) - 1).sum(dim=1, keepdim=True)  # (B, 1)
        described = items[clicks]  # (B, T, item_size)
        last = described[torch.arange(len(clicks)), (n_clicks[:, 0] - 1).clamp(min=0)]
        mean = described.sum(dim=1) / n_clicks.clamp(min=1)
        state = torch.cat([last, mean, n_clicks / clicks.shape[1]], dim=1)
        hidden = self.actor(state)
        scores = self.query(hidden) @ items[:-1].T  # (B, n_items)
        log_kind = self.kind(hidden).log_softmax(dim=1)  # (B, 2)
        log_policy = [
            log_kind[:, i, None] + scores[:, kind].log_softmax(dim=1)
            for i, kind in enumerate(self.kinds)
        ]
        # Detached: an embedding serves the policy alone, as there are many and returns are few.
        values = self.critic(state.detach())[:, 0]
        return torch.cat(log_policy, dim=1)[:, self.column], values


class Rollout(NamedTuple):
    """S steps of M copies."""

    rec_nums: NDArray[np.int64]  # (M,), of the attacks that ended with the last step
    last_value: torch.Tensor  # (M,), of what follows the last step
    clicks: torch.Tensor  # (S, M, T)
    actions: torch.Tensor  # (S, M)
    log_probs: torch.Tensor  # (S, M)
    values: torch.Tensor  # (S, M)
    rewards: torch.Tensor  # (S, M)
    ends: torch.Tensor  # (S, M), 1 where an attack ended with this step


def make_envs(args: Args) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Make all copies on one platform."""
    return gym.make_vec(
        args.env_id,
        num_envs=args.num_envs,
        autoreset_mode="SameStep",  # with Gymnasium's default, attacks are followed by a step that resets
        reward="normalized",
        n_fake_users=args.n_fake_users,
        profile_size=args.profile_size,
        targets=args.n_targets,
        platform_seed=args.platform_seed,
    )


@torch.no_grad()
def collect(
    envs: gym.vector.VectorEnv[Any, Any, Any],
    agent: Agent,
    clicks: NDArray[np.int64],
    n_steps: int,
) -> tuple[Rollout, NDArray[np.int64]]:
    """Let the agent act; return what happened, and the clicks `(M, T)` that it sees next."""
    steps = []
    info: dict[str, Any] = {}
    for _ in range(n_steps):
        seen = torch.from_numpy(clicks)
        log_policy, values = agent(seen)
        actions = torch.multinomial(log_policy.exp(), 1)  # (M, 1)
        log_probs = log_policy.gather(1, actions)[:, 0]
        observation, rewards, terminated, truncated, info = envs.step(actions[:, 0].numpy())
        clicks = observation["clicks"]
        paid = torch.tensor(rewards, dtype=torch.float32)
        ends = torch.from_numpy(terminated | truncated).float()
        steps.append((seen, actions[:, 0], log_probs, values, paid, ends))
    columns = [torch.stack(column) for column in zip(*steps, strict=True)]
    last_value = agent(torch.from_numpy(clicks))[1]
    return Rollout(info["final_info"]["rec_num"], last_value, *columns), clicks


def estimate_advantages(rollout: Rollout, gamma: float, gae_lambda: float) -> torch.Tensor:
    """Return how much better every action was than expected, `(S, M)`.

    Generalised advantage estimation: Schulman, Moritz, Levine, Jordan, Abbeel, ICLR 2016, eq. 16. Differs
    from the paper: none.
    """
    advantages = torch.zeros_like(rollout.rewards)
    advantage, value_tp1 = torch.zeros_like(rollout.last_value), rollout.last_value
    for t in reversed(range(len(advantages))):
        goes_on = 1.0 - rollout.ends[t]
        surprise = rollout.rewards[t] + gamma * goes_on * value_tp1 - rollout.values[t]
        advantage = surprise + gamma * gae_lambda * goes_on * advantage
        advantages[t], value_tp1 = advantage, rollout.values[t]
    return advantages


def learn(
    agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, args: Args
) -> dict[str, float]:
    """Update the agent by one rollout; return the last minibatch's losses by name.

    Proximal policy optimisation: Schulman, Wolski, Dhariwal, Radford, Klimov, arXiv 1707.06347, eq. 7 and 9.
    Differs from the paper: advantages are standardised per minibatch, gradients are shortened.
    """
    advantages = estimate_advantages(rollout, args.gamma, args.gae_lambda)
    returns = (advantages + rollout.values).flatten()
    clicks, actions = rollout.clicks.flatten(0, 1), rollout.actions.flatten()
    old_log_probs, all_advantages = rollout.log_probs.flatten(), advantages.flatten()
    losses: dict[str, float] = {}
    for _ in range(args.n_epochs):
        for rows in torch.randperm(len(actions)).chunk(args.n_minibatches):
            log_policy, values = agent(clicks[rows])
            log_ratio = log_policy.gather(1, actions[rows, None])[:, 0] - old_log_probs[rows]
            ratio = log_ratio.exp()
            clipped = ratio.clamp(1.0 - args.clip_range, 1.0 + args.clip_range)
            advantage = all_advantages[rows]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            policy_loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
            value_loss = 0.5 * (values - returns[rows]).square().mean()
            entropy = -(log_policy.exp() * log_policy).sum(dim=1).mean()
            loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
            losses = {
                "losses/policy": policy_loss.item(),
                "losses/value": value_loss.item(),
                "losses/entropy": entropy.item(),
                "losses/approx_kl": (ratio - 1.0 - log_ratio).mean().item(),
                "losses/clip_fraction": (ratio != clipped).float().mean().item(),
            }
    return losses


def open_log(args: Args) -> Any:  # noqa: ANN401  # TensorBoard may be absent, and its class with it
    """Return a `SummaryWriter` on `args.log_dir`, `None` without a folder."""
    if not args.log_dir:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SystemExit(
            "--log-dir needs TensorBoard: pip install 'recattack-gym[tensorboard]'"
        ) from error
    log: Any = SummaryWriter(args.log_dir)
    log.add_text("args", markdown_table(("option", "value"), list(asdict(args).items())))
    return log


def main(args: Args | None = None) -> list[float]:
    """Print what each tenth of training reaches; return the mean RecNum of every update."""
    args = args or Args()
    torch.manual_seed(args.seed)
    log = open_log(args)
    envs = make_envs(args)
    platform: Any = envs.unwrapped  # a PoisonVectorEnv
    agent = Agent(platform.item_popularity, platform.target_items, args)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    n_steps = args.n_fake_users * args.profile_size  # a rollout is one attack, never a part of one
    clicks = envs.reset(seed=args.seed)[0]["clicks"]
    curve: list[float] = []
    for update in range(args.n_updates):
        learning_rate = args.learning_rate * (1.0 - update / args.n_updates)
        optimizer.param_groups[0]["lr"] = learning_rate
        rollout, clicks = collect(envs, agent, clicks, n_steps)
        losses = learn(agent, optimizer, rollout, args)
        curve.append(float(rollout.rec_nums.mean()))
        charts = {"charts/rec_num": curve[-1], "charts/learning_rate": learning_rate}
        if log is not None:
            for name, number in {**charts, **losses}.items():
                log.add_scalar(name, number, (update + 1) * n_steps * args.num_envs)
    if log is not None:
        log.close()
    envs.close()
    tenths = [part for part in np.array_split(np.arange(len(curve)), 10) if len(part)]
    rows = [
        (f"update {part[0] + 1}", round(float(np.mean(np.take(curve, part))))) for part in tenths
    ]
    print(markdown_table(("from", "RecNum"), rows))
    return curve


def parse(argv: Sequence[str] | None = None) -> Args:
    """Read `Args` from a command line."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in fields(Args):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            option, type=type(field.default), default=field.default, help="see Args"
        )
    return Args(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main(parse())
