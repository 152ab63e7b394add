"""Train an attacker with Stable-Baselines3, one rollout of whole attacks at a time, and survive being killed.

A checkpoint holds everything that training depends on (parameters, optimiser, both random states), so
that a run that was stopped and resumed gives, bit for bit, what an uninterrupted run gives.
"""

import io
import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from agents.interruption import raise_if_interrupted
from agents.popularity_policy import PopularityPolicy, item_features
from agents.sb3 import ClickSequenceExtractor, make_sb3_vec_env
from agents.training import LEARNERS_REWARD, LEARNING_RATES, TrainingConfig
from agents.uninterrupted import holding_interrupts
from recattack_gym.core import ArgumentError, ArtifactError, AttackBudget, StateError
from recattack_gym.core.files import atomic_write

logger = logging.getLogger(__name__)

CHECKPOINT_VERSION = 1


@dataclass(slots=True)
class Progress:
    """What a run has found so far."""

    rec_nums: list[int] = field(default_factory=list)
    """RecNum of every attack, in the order of evaluation."""
    best_rec_num: int | None = None
    """The best of them for the attacker."""
    best_profiles: NDArray[np.int64] | None = None
    """The clicks that reached it, shape `(n_fake_users, profile_size)`."""

    def add(self, rec_num: int, profiles: NDArray[np.int64], *, is_nuke: bool) -> None:
        """Note one finished attack; profiles of shape `(n_fake_users, profile_size)`."""
        self.rec_nums.append(rec_num)
        best = self.best_rec_num
        if best is None or (rec_num < best if is_nuke else rec_num > best):
            self.best_rec_num, self.best_profiles = rec_num, profiles.copy()


class Learner:
    """One training run: an environment, a policy, and what it has found so far.

    Args:
        config: What to train.
        checkpoint: File that is rewritten before every rollout, or `None` to keep nothing.
        resume: Whether to go on from `checkpoint`, which must exist.

    Raises:
        ArgumentError: If the checkpoint belongs to another configuration.
        ArtifactError: If the checkpoint is missing or damaged.
    """

    def __init__(
        self,
        config: TrainingConfig,
        checkpoint: Path | None = None,
        *,
        resume: bool = False,
    ) -> None:
        self.config = config
        self.progress = Progress()
        self._checkpoint = checkpoint
        self._on_attacks: Callable[[int], object] | None = None
        self._randomness: Randomness | None = None
        self._env = make_attack_envs(config, config.n_envs)
        self.budget: AttackBudget = self._env.get_attr("budget")[0]
        self._is_nuke = self._env.get_attr("goal")[0].direction == "nuke"
        self.model = _make_model(config, self._env, self.budget.n_clicks)
        if resume:
            if checkpoint is None:
                raise ArgumentError("resume needs a checkpoint, got None")
            self._load(checkpoint)

    @property
    def total_steps(self) -> int:
        """Clicks of the whole run: `config.total_steps` rounded up to whole rollouts."""
        rollout = self.budget.n_clicks * self.config.n_envs
        return -(-self.config.total_steps // rollout) * rollout

    @property
    def best_profiles(self) -> NDArray[np.int64]:
        """Clicks of the best attack so far, shape `(n_fake_users, profile_size)`."""
        if self.progress.best_profiles is None:
            raise StateError("no attack has been tried yet: call run() first")
        return self.progress.best_profiles

    def run(self, on_attacks: Callable[[int], object] | None = None) -> None:
        """Train up to `total_steps`, writing a checkpoint before every rollout and at the end.

        Args:
            on_attacks: Called with the number of attacks that have just been evaluated.
        """
        self._on_attacks = on_attacks
        if self._randomness is not None:
            self._randomness.restore()
            self._randomness = None
        missing = self.total_steps - self.model.num_timesteps
        if missing > 0:
            n_threads = torch.get_num_threads()
            torch.set_num_threads(
                1
            )  # for layers this small a second thread costs more than it does
            try:
                self.model.learn(missing, callback=_Recorder(self), reset_num_timesteps=False)
            finally:
                torch.set_num_threads(n_threads)
            self.save_checkpoint()

    def sample(self, n_attacks: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Let the present policy make fresh attacks.

        Args:
            n_attacks: M.

        Returns:
            RecNum, shape `(M,)`, and the clicks, shape `(M, n_fake_users, profile_size)`.
        """
        env = make_attack_envs(self.config, n_attacks)
        observation = env.reset()
        for _ in range(self.budget.n_clicks):
            actions, _ = self.model.predict(observation, deterministic=False)  # type: ignore[arg-type]
            observation, _, _, infos = env.step(actions)
        rec_nums = np.array([info["rec_num"] for info in infos], dtype=np.int64)
        return rec_nums, np.stack(env.get_attr("last_profiles"))

    def note(self, rec_nums: Sequence[int], profiles: Sequence[NDArray[np.int64]]) -> None:
        """Remember finished attacks: their RecNum, and their clicks `(n_fake_users, profile_size)`."""
        for rec_num, clicks in zip(rec_nums, profiles, strict=True):
            self.progress.add(rec_num, clicks, is_nuke=self._is_nuke)
        if self._on_attacks is not None:
            self._on_attacks(len(rec_nums))

    # -- checkpoints -----------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write the state of the run, whole or not at all."""
        if self._checkpoint is None:
            return
        header = {
            "format": CHECKPOINT_VERSION,
            "config": _identity(self.config),
            "n_steps": self.model.num_timesteps,
            "rec_nums": self.progress.rec_nums,
            "best_rec_num": self.progress.best_rec_num,
        }
        parameters = io.BytesIO()
        torch.save(self.model.get_parameters(), parameters)
        arrays = io.BytesIO()
        best = self.progress.best_profiles
        np.savez(
            arrays,
            best_profiles=np.zeros((0, 0), dtype=np.int64) if best is None else best,
            **Randomness.now().arrays(),  # type: ignore[arg-type]  # allow_pickle is no array
        )
        with (
            holding_interrupts(),  # a zip that is left half-written complains when it is collected
            atomic_write(self._checkpoint) as stream,
            zipfile.ZipFile(stream, "w") as archive,
        ):
            archive.writestr("header.json", json.dumps(header))
            archive.writestr("parameters.pt", parameters.getvalue())
            archive.writestr("arrays.npz", arrays.getvalue())

    def _load(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                header = json.loads(archive.read("header.json"))
                parameters = torch.load(
                    io.BytesIO(archive.read("parameters.pt")), weights_only=True
                )
                with np.load(io.BytesIO(archive.read("arrays.npz"))) as stored:
                    arrays = {name: stored[name] for name in stored.files}
        except FileNotFoundError as error:
            raise ArtifactError(
                f"there is nothing to resume: {path} does not exist; train without --resume first"
            ) from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{path} is not a readable checkpoint: {error}") from error
        if header.get("format") != CHECKPOINT_VERSION:
            raise ArtifactError(
                f"{path} has another format version; this is version {CHECKPOINT_VERSION}"
            )
        _check_same(header["config"], _identity(self.config), path)
        self.model.set_parameters(parameters)
        self.model.num_timesteps = header["n_steps"]
        best = arrays["best_profiles"]
        self.progress = Progress(
            header["rec_nums"], header["best_rec_num"], best if best.size else None
        )
        self._randomness = Randomness.of(arrays)


class _Recorder(BaseCallback):
    """Notes every finished attack, and writes a checkpoint before every rollout."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self._learner = learner

    def _on_rollout_start(self) -> None:
        self._learner.save_checkpoint()

    def _on_step(self) -> bool:
        ended = np.flatnonzero(self.locals["dones"]).tolist()
        if ended:
            profiles = self.training_env.get_attr("last_profiles", ended)
            rec_nums = [int(self.locals["infos"][copy]["rec_num"]) for copy in ended]
            self._learner.note(rec_nums, profiles)
        raise_if_interrupted()
        return True


@dataclass(frozen=True, slots=True)
class Randomness:
    """The global random states that Stable-Baselines3 draws actions and minibatches from."""

    torch_state: NDArray[np.uint8]
    numpy_keys: NDArray[np.uint32]
    numpy_position: int

    @classmethod
    def now(cls) -> "Randomness":
        """Return the present states."""
        _, keys, position, _, _ = np.random.get_state()  # noqa: NPY002  # what SB3 uses
        return cls(torch.get_rng_state().numpy().copy(), np.asarray(keys), int(position))

    @classmethod
    def of(cls, arrays: dict[str, NDArray[np.generic]]) -> "Randomness":
        """Return the states that `arrays()` gave."""
        return cls(
            arrays["torch_state"].astype(np.uint8),
            arrays["numpy_keys"].astype(np.uint32),
            int(arrays["numpy_position"]),
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the states as arrays by name."""
        return {
            "torch_state": self.torch_state,
            "numpy_keys": self.numpy_keys,
            "numpy_position": np.array(self.numpy_position),
        }

    def restore(self) -> None:
        """Make these the present states."""
        torch.set_rng_state(torch.from_numpy(self.torch_state.copy()))
        state = ("MT19937", self.numpy_keys, self.numpy_position, 0, 0.0)
        np.random.set_state(state)  # noqa: NPY002  # what SB3 uses


def make_attack_envs(config: TrainingConfig, n_envs: int) -> VecEnv:
    """Return the environments of a run: the native vector environment behind SB3's interface."""
    options: dict[str, Any] = {**config.env_options, "reward": LEARNERS_REWARD}
    return make_sb3_vec_env(config.env_id, n_envs, seed=config.seed, monitor=False, **options)


def _make_model(config: TrainingConfig, env: VecEnv, n_clicks: int) -> OnPolicyAlgorithm:
    learning_rate = config.learning_rate
    if learning_rate is None:
        learning_rate = LEARNING_RATES[config.policy]
    policy, policy_kwargs = _make_policy(config, env)
    common: dict[str, Any] = {  # Any: arguments of many types
        "policy": policy,
        "env": env,
        "learning_rate": learning_rate,
        "n_steps": n_clicks,
        "gamma": 1.0,
        "gae_lambda": 1.0,
        "ent_coef": config.ent_coef,
        "normalize_advantage": True,
        "seed": config.seed,
        "device": "cpu",
        "policy_kwargs": policy_kwargs,
    }
    if config.algo == "a2c":
        return A2C(**common)
    n_samples = n_clicks * config.n_envs
    return PPO(
        **common,
        batch_size=max(2, -(-n_samples // config.n_minibatches)),
        n_epochs=config.n_epochs,
        clip_range=config.clip_range,
    )


def _make_policy(
    config: TrainingConfig, env: VecEnv
) -> tuple[str | type[ActorCriticPolicy], dict[str, Any]]:
    """Return the policy and its arguments, as Stable-Baselines3 takes them."""
    net_arch = [config.hidden_size]
    if config.policy == "embedding":
        return "MultiInputPolicy", {
            "features_extractor_class": ClickSequenceExtractor,
            "features_extractor_kwargs": {"embedding_size": config.embedding_size},
            "net_arch": net_arch,
        }
    table = item_features(
        env.get_attr("item_popularity")[0],
        env.get_attr("target_items")[0],
        config.target_identity,
    )
    kwargs = {
        "table": table,
        "target_share": config.target_share,
        "popularity_weight": config.popularity_weight,
        "net_arch": {"pi": [], "vf": net_arch},  # the actor is linear: few parameters, few attacks
    }
    return PopularityPolicy, kwargs


def _identity(config: TrainingConfig) -> dict[str, object]:
    """What must be equal for a run to be continued; a longer one may go on from a shorter one."""
    identity: dict[str, object] = json.loads(json.dumps(asdict(config)))
    for name in ("total_steps", "eval_episodes"):
        del identity[name]
    return identity


def _check_same(stored: dict[str, object], wanted: dict[str, object], path: Path) -> None:
    differing = [name for name in wanted if stored.get(name) != wanted[name]]
    if differing:
        told = "; ".join(f"{x} {stored.get(x)!r}, now {wanted[x]!r}" for x in differing)
        raise ArgumentError(
            f"{path} was trained with other settings ({told}): resume with the same, "
            "or save to another folder"
        )
