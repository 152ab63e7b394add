"""`recattack train`: settings of a training run, its folder, and what it reports.

Light on purpose: Stable-Baselines3 and torch are imported by `agents.learner`, when training starts.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from agents.options import make_environment, resolved_config
from agents.reports import (
    Report,
    Stopwatch,
    attack_fields,
    defense_lines,
    effect_lines,
    platform_text,
    versions,
)
from recattack_gym.core import ArgumentError, FakeProfiles, UnknownNameError
from recattack_gym.core.checks import as_choice, as_count, as_real
from recattack_gym.core.files import atomic_write

if TYPE_CHECKING:
    from agents.learner import Learner
    from recattack_gym.simulator import PlatformSimulator

ALGORITHMS = ("ppo", "a2c")
"""Algorithms of Stable-Baselines3 that fit episodes of N * T clicks with one reward at the end."""

PolicyName = Literal["popularity", "embedding"]
POLICIES: tuple[PolicyName, ...] = ("popularity", "embedding")
LEARNING_RATES: Mapping[PolicyName, float] = MappingProxyType(
    {"popularity": 2e-2, "embedding": 1e-2}
)
"""Large, because a run has few updates; chosen on platform seeds 10 to 15, agent seeds from 100 on."""
LEARNERS_REWARD = "normalized"
"""What learners are paid, so that step sizes do not depend on the platform's size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Everything that decides the result of a training run."""

    env_id: str = "recattack_gym:RecPoison-ALS-v0"
    """Environment, as `module:id`."""
    env_options: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the environment that differ from its defaults; plain JSON values."""
    algo: str = "ppo"
    """A name from `ALGORITHMS`."""
    policy: PolicyName = "popularity"
    """How the policy knows items: by what everybody sees, or by an embedding that it learns."""
    total_steps: int = 128_000
    """Clicks to train for, rounded up to whole rollouts: 320 attacks of 400 clicks."""
    n_envs: int = 8
    """Attacks per rollout, evaluated together. PoisonRec takes 32; more updates learn from fewer attacks."""
    seed: int = 0
    """Seed of the policy and its samples; the platform has its own (`platform_seed`)."""
    eval_episodes: int = 16
    """Fresh attacks, sampled from the final policy, that it is judged by."""
    learning_rate: float | None = None
    """Step size; `None` takes the policy's, see `LEARNING_RATES`."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus; 0 as in Stable-Baselines3."""
    n_epochs: int = 8
    """PPO's passes over a rollout."""
    n_minibatches: int = 1
    """PPO's minibatches per pass; a rollout has no more returns than `n_envs`."""
    clip_range: float = 0.2
    """PPO's clip range; 0.2 as in Stable-Baselines3."""
    target_share: float = 0.5
    """With `policy="popularity"`: share of clicks on targets before training; a half, as PoisonRec's tree."""
    target_identity: float = 0.2
    """With `policy="popularity"`: weight of which target an item is; 0 treats all targets alike.

    Telling them apart lets a policy concentrate on a few targets, and costs it attacks to learn which;
    CoVisitation pays for it, at weight 1.
    """
    popularity_weight: float = 0.0
    """With `policy="popularity"`: how much the untrained policy prefers popular items; 0 not at all."""
    embedding_size: int = 32
    """With `policy="embedding"`: width of an item's embedding."""
    hidden_size: int = 64
    """Width of the hidden layer: the critic's, and with `policy="embedding"` the actor's."""

    def __post_init__(self) -> None:
        if self.algo not in ALGORITHMS:
            raise UnknownNameError("algorithm", self.algo, ALGORITHMS)
        as_choice("policy", self.policy, POLICIES)
        for name in (
            "total_steps",
            "n_envs",
            "eval_episodes",
            "n_epochs",
            "n_minibatches",
            "embedding_size",
            "hidden_size",
        ):
            as_count(name, getattr(self, name))
        as_count("seed", self.seed, at_least=0)
        if self.learning_rate is not None:
            as_real("learning_rate", self.learning_rate, above=0.0)
        as_real("target_share", self.target_share, above=0.0, at_most=0.999)
        as_real("target_identity", self.target_identity, at_least=0.0, at_most=1.0)
        as_real("popularity_weight", self.popularity_weight, at_least=0.0, at_most=10.0)
        as_real("ent_coef", self.ent_coef, at_least=0.0)
        as_real("clip_range", self.clip_range, above=0.0, at_most=1.0)
        if "reward" in self.env_options:
            raise ArgumentError(
                "env_options must not name a reward: learners are paid the normalised RecNum"
            )


def default_folder(env_id: str, algo: str, seed: int) -> Path:
    """Return where a run is kept if the user names no folder."""
    name = env_id.split(":")[-1]
    return Path("recattack-runs") / f"{name}-{algo}-seed{seed}"


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    show_progress: bool = False,
    side_effects: bool = True,
) -> Report:
    """Train an attacker, and report the best attack that it found and how good its policy is.

    `rec_num` is that of the best of all attacks that the learner tried, evaluated once more: what an
    attacker would inject. `policy` is the mean over fresh attacks sampled from the final policy.
    `n_queries` counts every simulated retraining that any of this took.

    Args:
        config: What to train.
        folder: Gets `checkpoint.zip` (before every rollout), then `model.zip` (for Stable-Baselines3),
            `profiles.npz` (the best attack) and `result.json`.
        resume: Whether to go on from the folder's checkpoint.
        show_progress: Whether to draw a progress bar on standard error.
        side_effects: Whether to measure how recommendations for genuine users suffer.

    Raises:
        ArgumentError: If the folder holds a run and `resume` is false, or it is another run's, or there
            is nothing to gain.
        ArtifactError: If there is nothing to resume, or it is damaged.
        KeyboardInterrupt: When interrupted; its message says how to go on.
    """
    checkpoint = folder / "checkpoint.zip"
    refuse_other_run(checkpoint, folder, resume=resume)
    watch = Stopwatch()
    env = make_environment(config.env_id, {**config.env_options, "reward": LEARNERS_REWARD})
    check_gain(env.simulator)
    from agents.learner import Learner

    learner = Learner(config, checkpoint, resume=resume)
    n_done = len(learner.progress.rec_nums)
    n_wanted = max(n_done, learner.total_steps // learner.budget.n_clicks)
    with tqdm(unit="attack", total=n_wanted, initial=n_done, disable=not show_progress) as bar:
        _run(learner, checkpoint, bar.update)
    progress = learner.progress
    fresh, _ = learner.sample(config.eval_episodes)
    header = {
        "attacker": config.algo,
        "env_id": config.env_id,
        "seed": config.seed,
        "config": _as_json(asdict(config)),
        "target_items": env.simulator.target_items.tolist(),
        "log_hash": env.simulator.log.content_hash,
        "n_queries": len(progress.rec_nums),
    }
    profiles = FakeProfiles(learner.best_profiles, header=header)
    n_queries = {"training": len(progress.rec_nums), "policy": len(fresh), "best": 1}
    data: dict[str, object] = {
        "command": "train",
        "env_id": config.env_id,
        "victim": env.simulator.victim.name,
        "algo": config.algo,
        **attack_fields(env.simulator, profiles, side_effects=side_effects),
        "best_in_training": progress.best_rec_num,
        "policy": {
            "mean_rec_num": float(fresh.mean()),
            "std_rec_num": float(fresh.std()),
            "n_attacks": len(fresh),
        },
        "n_queries": sum(n_queries.values()),
        "queries": n_queries,
        "total_steps": learner.model.num_timesteps,
        "curve": progress.rec_nums,
        "seed": config.seed,
        "config": {"training": _as_json(asdict(config)), "env": resolved_config(env)},
        "folder": str(folder),
        **watch.fields(),
        "versions": versions(),
    }
    profiles.save(folder / "profiles.npz")
    model = io.BytesIO()
    learner.model.save(model)
    with atomic_write(folder / "model.zip") as stream:
        stream.write(model.getvalue())
    with atomic_write(folder / "result.json") as stream:
        stream.write(json.dumps(data, indent=1, allow_nan=False).encode())
    return Report(text=describe(data, fresh), data=data)


def refuse_other_run(checkpoint: Path, folder: Path, *, resume: bool) -> None:
    """Refuse to write over a run that is not to be resumed."""
    if checkpoint.exists() and not resume:
        raise ArgumentError(
            f"{folder} already holds a run: add --resume to go on with it, or save to another folder"
        )


def check_gain(simulator: "PlatformSimulator") -> None:
    """Refuse a goal that is reached already, for which every attack would be paid the same."""
    if simulator.goal.direction == "nuke":
        if simulator.clean_rec_num == 0:
            raise ArgumentError(
                "targets must be shown to somebody if they are to be demoted, got RecNum 0 without any "
                "attack: give ids of items that are recommended, or a larger k"
            )
    elif simulator.clean_rec_num == simulator.max_rec_num:
        raise ArgumentError(
            f"targets must be missing in somebody's list if they are to be promoted, got RecNum "
            f"{simulator.max_rec_num} of {simulator.max_rec_num} without any attack: give other ids, or a "
            "smaller k"
        )


def _run(learner: "Learner", checkpoint: Path, on_attacks: Callable[[int], object]) -> None:
    try:
        learner.run(on_attacks)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"interrupted after {len(learner.progress.rec_nums)} attacks; {checkpoint} has all but the "
            f"last rollout: repeat the command with --save {checkpoint.parent} --resume to go on"
        ) from error


def describe(data: Mapping[str, object], fresh: NDArray[np.int64]) -> str:
    """Return what a terminal shows of a trained attacker; `fresh` is RecNum of fresh attacks, `(M,)`."""
    share = float(str(data["share"]))
    return "\n".join(
        [
            f"{data['algo']} on {platform_text(data)}, seed {data['seed']}",
            f"best attack  RecNum {data['rec_num']} of at most {data['max_rec_num']} ({share:.1%}); "
            f"without attack {data['clean_rec_num']}",
            f"policy       RecNum {fresh.mean():.1f} +- {fresh.std():.1f} over {len(fresh)} fresh attacks",
            f"cost         {data['accounts']} accounts, {data['clicks']} clicks, "
            f"{data['n_queries']} queries, {data['cpu_seconds']} CPU seconds",
            *defense_lines(data),
            *effect_lines(data),
            f"saved in     {data['folder']}",
        ]
    )


def _as_json(value: object) -> object:
    plain: object = json.loads(json.dumps(value, default=str))
    return plain
