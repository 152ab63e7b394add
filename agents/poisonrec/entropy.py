"""PoisonRec with an entropy bonus inside the item trees: ours, not the paper's."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agents.poisonrec.agent import PoisonRec, PoisonRecAttacker, PoisonRecConfig
from agents.poisonrec.policy import Policy, Rollout
from agents.poisonrec.ppo import clipped_surrogate, normalise_rewards
from agents.poisonrec.threads import Blocks
from recattack_gym.core.checks import as_choice, as_real

TREES = ("bcbt-popular", "bcbt-random")
"""Action spaces whose decisions are between two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyPoisonRecConfig(PoisonRecConfig):
    """Settings of `EntropyPoisonRec`, chosen on platform seeds 10 to 19 of Steam's ItemPop, 3,200 queries."""

    entropy_weight: float = 3.0
    """Weight of the mean entropy of decisions below the root, beside PPO's objective, in the first step."""
    entropy_until: float = 0.75
    """Share of the queries after which the weight has fallen to 0, in a parabola; in `(0, 1]`."""

    def __post_init__(self) -> None:
        PoisonRecConfig.__post_init__(self)
        as_choice("action_space", self.action_space, TREES)
        as_real("entropy_weight", self.entropy_weight, at_least=0.0)
        as_real("entropy_until", self.entropy_until, above=0.0, at_most=1.0)


class EntropyPoisonRec(PoisonRec):
    """`PoisonRec` that goes on trying different items while it learns which kind of item to click.

    The paper's policy has nothing that keeps it trying. Where a few clicks per target achieve nothing, the
    first targets that happen to get more are rewarded, so they get still more, and the others are given up
    before it can learn that fewer clicks would do: on ItemPop it ends at two targets where three or four pay
    more. Here the entropy of all decisions but the one at the root (a target or not) is rewarded, too, less
    and less, and not at all in the last quarter. The root is left out, since all clicks have to be on targets
    before one sees what they are worth. On Steam it ends at three targets.

    PoisonRec: Song et al., ICDE 2020. Entropy as a bonus: Williams, Peng, "Function optimization using
    connectionist reinforcement learning algorithms", 1991.

    Differs from the paper: the bonus. With `entropy_weight=0` it is the paper's.
    """

    name = "poisonrec-entropy"
    config: EntropyPoisonRecConfig
    config_class = EntropyPoisonRecConfig

    @property
    def entropy_weight(self) -> float:
        """Weight of the entropy in the next step."""
        done = self.n_queries / self.config.n_queries
        return self.config.entropy_weight * max(0.0, 1.0 - done / self.config.entropy_until) ** 2

    def _improve(self, rollout: Rollout, worth: NDArray[np.float64], threads: Blocks) -> None:
        examples: _Examples | None = None
        for _ in range(self.config.n_epochs):
            chosen = self._choose_examples(len(worth))
            if examples is None or len(chosen) < len(worth):
                examples = _Examples(self.policy, rollout[chosen], worth[chosen], threads)
            examples.improve(self.config, self.entropy_weight)


class _Examples:
    """Poison sets that updates are made from: B of a rollout, and their worth, shape `(B,)`."""

    def __init__(
        self, policy: Policy, rollout: Rollout, worth: NDArray[np.float64], threads: Blocks
    ) -> None:
        self._evaluation = policy.evaluate(rollout.item_ids, threads)
        self._old_log_p = self._evaluation.by_time(rollout.log_p)
        advantages = normalise_rewards(torch.from_numpy(worth).float())
        per_row = advantages.repeat_interleave(rollout.item_ids.shape[1])
        self._advantages = per_row.expand(self._old_log_p.shape[:-1])

    def improve(self, config: EntropyPoisonRecConfig, entropy_weight: float) -> None:
        """Make one update."""
        log_p, mask = self._evaluation.log_p(), self._evaluation.mask
        objective = clipped_surrogate(
            log_p,
            self._old_log_p,
            mask,
            self._advantages,
            clip_range=config.clip_range,
            per_path=config.clip == "path",
        )
        if entropy_weight > 0:
            objective = objective + entropy_weight * mean_entropy(log_p, mask)
        self._evaluation.improve(objective)


def mean_entropy(log_p: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the entropy of decisions between two, those at the root as 0, as a mean over all decisions.

    Args:
        log_p: Log-probability of what was chosen, shape `(..., depth)`, the root first.
        mask: Whether there is a decision, same shape.

    Returns:
        A scalar, in `[0, log 2]`.
    """
    p = log_p.exp().clamp(1e-6, 1 - 1e-6)
    entropy = -(p * p.log() + (1 - p) * torch.log1p(-p))
    counted = mask.clone()
    counted[..., 0] = False
    return (entropy * counted).sum() / mask.sum()


class EntropyPoisonRecAttacker(PoisonRecAttacker):
    """Train `EntropyPoisonRec` on the platform; the plan is the best poison set that it tried."""

    name = "poisonrec-entropy"
    config: EntropyPoisonRecConfig
    config_class = EntropyPoisonRecConfig
    agent_class = EntropyPoisonRec
