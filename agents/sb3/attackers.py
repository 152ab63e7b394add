"""Learners of Stable-Baselines3 as attackers that plan against a view, under a counted query budget."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from torch import nn

from agents.sb3.features import SUMMARIES, ClickSequenceExtractor, Summary
from agents.sb3.recurrent import RecurrentClickPolicy
from agents.sb3.tree import RecurrentTreePolicy, TreePolicy, tree_policy_kwargs
from agents.sb3.view_env import ViewVecEnv
from agents.search import SearchAttacker, SearchConfig, Trials
from recattack_gym.core.checks import as_choice, as_count, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.groups import group_items
from recattack_gym.core.view import AttackerView

Actions = Literal["tree", "grouped", "flat"]
ACTIONS: tuple[Actions, ...] = ("tree", "grouped", "flat")


@dataclass(frozen=True, kw_only=True, slots=True)
class SB3Config(SearchConfig):
    """Settings of every learner of Stable-Baselines3."""

    batch_size: int = 16
    """Attacks per rollout, which all are evaluated together: M, Stable-Baselines3's `n_envs`."""
    actions: Actions = "tree"
    """`"tree"`: a walk, see `TreePolicy`; `"grouped"`: a group and a place, see `group_items`; `"flat"`:
    one logit per item."""
    learning_rate: float = 2e-2
    """Adam's; large, since there are few updates. Chosen with `n_epochs` and `clip_range` by a few runs on
    BPR and CoVisitation, generated data, platform seeds 10 to 13."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the critic's loss; Stable-Baselines3's default."""
    max_grad_norm: float = 0.5
    """Largest norm of a gradient; Stable-Baselines3's default."""
    embedding_size: int = 16
    """Width of an item's embedding."""
    hidden_size: int = 32
    """Width of the actor's and of the critic's hidden layer."""
    summary: Summary = "mean"
    """How the clicks so far are summed up, see `ClickSequenceExtractor`."""

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        as_choice("actions", self.actions, ACTIONS)
        as_choice("summary", self.summary, SUMMARIES)
        as_real("learning_rate", self.learning_rate, above=0.0)
        as_real("ent_coef", self.ent_coef, at_least=0.0)
        as_real("vf_coef", self.vf_coef, at_least=0.0)
        as_real("max_grad_norm", self.max_grad_norm, above=0.0)
        as_count("embedding_size", self.embedding_size)
        as_count("hidden_size", self.hidden_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class SB3PPOConfig(SB3Config):
    """Settings of `SB3PPO`."""

    n_epochs: int = 3
    """Passes over a rollout; 3, as PoisonRec's updates per step; 8 did worse in those runs."""
    n_minibatches: int = 1
    """Updates per pass; fewer if a rollout cannot be divided into as many equal parts."""
    clip_range: float = 0.5
    """How far an action's probability ratio counts; larger than the usual 0.2, since the ratio of a walk is
    the product of a dozen decisions'."""

    def __post_init__(self) -> None:
        SB3Config.__post_init__(self)
        as_count("n_epochs", self.n_epochs)
        as_count("n_minibatches", self.n_minibatches)
        as_real("clip_range", self.clip_range, above=0.0, at_most=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SB3RecurrentPPOConfig(SB3PPOConfig):
    """Settings of `SB3RecurrentPPO`."""

    lstm_size: int = 32
    """Width of the LSTM."""

    def __post_init__(self) -> None:
        SB3PPOConfig.__post_init__(self)
        as_count("lstm_size", self.lstm_size)


class SB3Attacker(SearchAttacker):
    """A learner of Stable-Baselines3 that attacks the platform behind a view, rollout by rollout.

    A rollout is `batch_size` whole attacks, one step per click; discount and GAE's lambda are 1, since only
    an attack's last click is paid, see `ViewVecEnv`. After every rollout but the last the policy is updated.
    The last rollout is what is left of the budget, one attack at least and `batch_size` at most: nothing is
    learnt from it, since nobody would use it.

    Every untrained policy makes half of its clicks on targets. `"tree"` draws the other half nearly
    uniformly, as leaves are one level deeper or not; `"grouped"` uniformly from a band of popularity and a
    place in it; `"flat"` uniformly. The clicks on targets are spread over them in the same way.

    Global random states, which Stable-Baselines3 seeds and draws from, are afterwards as they were before.
    """

    config: SB3Config
    config_class = SB3Config
    policy_classes: ClassVar[tuple[type[ActorCriticPolicy], type[ActorCriticPolicy]]] = (
        TreePolicy,
        MultiInputActorCriticPolicy,
    )
    """For walks, and for the other kinds of actions."""

    def _search(self, view: AttackerView, trials: Trials, rng: np.random.Generator) -> None:
        if len(view.goal.target_items) == view.n_items:
            raise ArgumentError(
                f"target_items must leave an item that is no target, got all {view.n_items}"
            )
        n_envs = self.config.batch_size
        n_updates = (trials.n_left - 1) // n_envs
        items = (
            group_items(view.item_popularity, np.array(view.goal.target_items))
            if self.config.actions == "grouped"
            else None
        )
        envs = ViewVecEnv(view, n_envs, trials, items)
        with _global_randomness_kept():
            model = self.make_model(envs, seed=int(rng.integers(2**32)))
            if n_updates:
                model.learn(n_updates * n_envs * envs.n_steps)
            _play(model, envs)

    def make_model(self, envs: ViewVecEnv, *, seed: int) -> OnPolicyAlgorithm:
        """Return the untrained learner.

        Args:
            envs: What it is going to be trained on.
            seed: Stable-Baselines3's.
        """
        config = self.config
        policy_kwargs: dict[str, Any] = {
            "net_arch": [config.hidden_size],
            "features_extractor_class": ClickSequenceExtractor,
            "features_extractor_kwargs": {
                "embedding_size": config.embedding_size,
                "summary": config.summary,
            },
            **self._policy_settings(),
        }
        walks, others = self.policy_classes
        if config.actions == "tree":
            policy_kwargs = tree_policy_kwargs(envs, **policy_kwargs)
        model = self._make_learner(
            walks if config.actions == "tree" else others,
            envs,
            n_steps=envs.n_steps,
            gamma=1.0,
            gae_lambda=1.0,
            learning_rate=config.learning_rate,
            ent_coef=config.ent_coef,
            vf_coef=config.vf_coef,
            max_grad_norm=config.max_grad_norm,
            policy_kwargs=policy_kwargs,
            seed=seed,
            device="cpu",
        )
        if config.actions != "tree":
            _click_targets_half_of_the_time(model.policy, envs)
        return model

    def _policy_settings(self) -> dict[str, Any]:
        return {}

    def _make_learner(
        self,
        policy: type[ActorCriticPolicy],
        envs: ViewVecEnv,
        **settings: Any,  # noqa: ANN401  # the learner checks them
    ) -> OnPolicyAlgorithm:
        raise NotImplementedError


class SB3A2C(SB3Attacker):
    """Advantage actor-critic: one update per rollout.

    Mnih et al., "Asynchronous methods for deep reinforcement learning", ICML 2016, as in Stable-Baselines3.

    Args:
        config: Settings.

    Differs from the paper: synchronous; Adam instead of RMSProp; whole episodes; advantages are normalised.
    """

    name = "sb3-a2c"

    def _make_learner(
        self,
        policy: type[ActorCriticPolicy],
        envs: ViewVecEnv,
        **settings: Any,  # noqa: ANN401  # the learner checks them
    ) -> OnPolicyAlgorithm:
        is_many = envs.num_envs * envs.n_steps > 1
        return A2C(policy, envs, use_rms_prop=False, normalize_advantage=is_many, **settings)


class SB3PPO(SB3Attacker):
    """Proximal policy optimisation: several updates per rollout, clipped.

    Schulman et al., "Proximal policy optimization algorithms", 2017, as in Stable-Baselines3.

    Args:
        config: Settings.

    Differs from the paper: whole episodes, a wider clip, no bonus for entropy by default.
    """

    name = "sb3-ppo"
    config: SB3PPOConfig
    config_class = SB3PPOConfig
    learner: ClassVar[Callable[..., OnPolicyAlgorithm]] = PPO

    def _make_learner(
        self,
        policy: type[ActorCriticPolicy],
        envs: ViewVecEnv,
        **settings: Any,  # noqa: ANN401  # the learner checks them
    ) -> OnPolicyAlgorithm:
        config = self.config
        n_clicks = envs.num_envs * envs.n_steps
        n_parts = next(n for n in range(config.n_minibatches, 0, -1) if n_clicks % n == 0)
        size = n_clicks // n_parts
        return self.learner(
            policy,
            envs,
            batch_size=size,
            n_epochs=config.n_epochs,
            clip_range=config.clip_range,
            normalize_advantage=size > 1,
            **settings,
        )


class SB3RecurrentPPO(SB3PPO):
    """`SB3PPO` with an LSTM over all clicks of an attack, from `sb3_contrib`.

    Args:
        config: Settings.

    Differs from the paper: see `SB3PPO`. The critic has no LSTM.
    """

    name = "sb3-recurrent-ppo"
    config: SB3RecurrentPPOConfig
    config_class = SB3RecurrentPPOConfig
    learner = RecurrentPPO
    policy_classes = (RecurrentTreePolicy, RecurrentClickPolicy)

    def _policy_settings(self) -> dict[str, Any]:
        return {"lstm_hidden_size": self.config.lstm_size, "enable_critic_lstm": False}


def _play(model: OnPolicyAlgorithm, envs: ViewVecEnv) -> None:
    """Play one attack per copy with the present policy; learn nothing."""
    observation: Any = envs.reset()  # Any: SB3 annotates arrays only
    state, starts = None, np.ones(envs.num_envs, dtype=np.bool_)
    for _ in range(envs.n_steps):
        actions, state = model.predict(observation, state, starts, deterministic=False)
        observation, _, starts, _ = envs.step(actions)


def _click_targets_half_of_the_time(policy: ActorCriticPolicy, envs: ViewVecEnv) -> None:
    """Set the biases of the actor's last layer, all of whose other logits are about zero."""
    head = policy.action_net
    assert isinstance(head, nn.Linear)  # noqa: S101  # what SB3 makes for these spaces
    bias = head.bias
    with torch.no_grad():
        if envs.items is None:
            targets = torch.from_numpy(envs.target_items)
            bias[targets] = float(np.log(len(bias) / len(targets) - 1.0))
        else:
            bias[0] = float(np.log(len(envs.items) - 1.0))


@contextmanager
def _global_randomness_kept() -> Iterator[None]:
    """Put the global random states of Python, NumPy and PyTorch back at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  # what SB3 uses
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002  # what SB3 uses
        torch.set_rng_state(states[2])
