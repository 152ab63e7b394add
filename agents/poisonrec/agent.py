"""PoisonRec: the learner, its settings, its checkpoints, and the attacker that trains one."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from agents.poisonrec.policy import (
    ACTION_SPACES,
    ActionSpaceName,
    Policy,
    Rollout,
    make_action_space,
)
from agents.poisonrec.ppo import clipped_surrogate, mean_log_p, normalise_rewards
from agents.poisonrec.tensorboard import event_writer
from agents.poisonrec.threads import Blocks, blocks
from agents.search import SearchAttacker, SearchConfig, Trials
from recattack_gym.core import ArgumentError, ArtifactError, FakeProfiles
from recattack_gym.core.checks import as_choice, as_count, as_real
from recattack_gym.core.files import read_arrays, write_arrays
from recattack_gym.core.random import draw_seed
from recattack_gym.core.view import AttackerView

logger = logging.getLogger(__name__)

CHECKPOINT_VERSION = 2
_SECONDS_BETWEEN_CHECKPOINTS = 10.0

Clip = Literal["node", "path"]
CLIPS: tuple[Clip, ...] = ("node", "path")


@dataclass(frozen=True, kw_only=True, slots=True)
class PoisonRecConfig(SearchConfig):
    """Settings of `PoisonRec`; `batch_size` is M, the poison sets per step: 32, §V-A."""

    action_space: ActionSpaceName = "bcbt-popular"
    """How items are chosen: `"bcbt-popular"`, `"bcbt-random"`, `"bplain"` or `"plain"`, §IV-C and §IV-D."""
    n_examples: int = 32
    """Poison sets that each of the `n_epochs` updates is made from, B <= M: 32, §V-A."""
    n_epochs: int = 3
    """Updates per step, K: 3, §V-A."""
    learning_rate: float = 2e-3
    """Of Adam: 0.002, §V-A."""
    clip_range: float = 0.1
    """epsilon: 0.1, §V-A."""
    clip: Clip = "node"
    """Whether a decision at a node has a ratio and a clip, Eq. (9), or a whole click (`"path"`)."""
    size: int = 64
    """Width of embeddings, of the LSTM and of the layers after it: 64, §V-A."""
    feature_std: float = 0.1
    """Standard deviation of initial features; not in the paper; small, so choices begin about equal."""
    adam_epsilon: float = 1e-8
    """Of Adam; not in the paper, PyTorch's default."""
    patience: int | None = None
    """Steps without a better poison set after which learning stops; `None`: when the budget is spent."""

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        as_choice("action_space", self.action_space, ACTION_SPACES)
        as_choice("clip", self.clip, CLIPS)
        for name in ("n_examples", "n_epochs", "size"):
            as_count(name, getattr(self, name))
        if self.n_examples > self.batch_size:
            raise ArgumentError(
                f"n_examples must be at most batch_size, {self.batch_size}, got {self.n_examples}"
            )
        as_real("learning_rate", self.learning_rate, above=0.0)
        as_real("clip_range", self.clip_range, above=0.0, at_most=1.0)
        as_real("feature_std", self.feature_std, above=0.0)
        as_real("adam_epsilon", self.adam_epsilon, above=0.0)
        if self.patience is not None:
            as_count("patience", self.patience)


@dataclass(frozen=True)
class Step:
    """What one training step observed."""

    number: int
    """Steps before this one."""
    rec_nums: NDArray[np.int64]
    """RecNum of every poison set, shape `(M,)`."""
    target_share: float
    """Share of clicks on target items, in `[0, 1]`."""


class PoisonRec:
    """A policy that learns, from RecNum alone, what fake users should click.

    Each step the present policy makes M poison sets, the platform evaluates them, and K updates of PPO
    raise the probability of decisions in sets that were better than the batch's mean.

    PoisonRec: Song, Li, Hu, Wu, Li, Li, Gao, "PoisonRec: an adaptive data poisoning framework for
    attacking black-box recommender systems", ICDE 2020, §IV and Algorithm 1.

    Args:
        view: The platform as an attacker sees it; black box is enough.
        config: Settings, or `None` for the paper's.
        seed: Seed of the initial parameters and of every sample.
        trials: What counts queries; `None` makes one with `config.n_queries`.

    Raises:
        ArgumentError: If every item is a target.

    Differs from the paper: see `ppo.clipped_surrogate` and `ppo.normalise_rewards`; initial features, which
    the paper leaves open, come from N(0, 0.1). The best poison set that was tried is kept, and is the plan.
    """

    name: ClassVar[str] = "poisonrec"
    """The key of its attacker in `ATTACKERS`."""
    config_class: ClassVar[type[PoisonRecConfig]] = PoisonRecConfig

    def __init__(
        self,
        view: AttackerView,
        config: PoisonRecConfig | None = None,
        *,
        seed: int = 0,
        trials: Trials | None = None,
    ) -> None:
        self.config = self.config_class() if config is None else config
        self.seed = as_count("seed", seed, at_least=0)
        self.history: list[Step] = []
        """One entry per step."""
        self._imitation_weight = 0.0
        self._view = view
        self._rng = np.random.default_rng([self.seed, 0])
        self._trials = Trials(view, self.config.n_queries) if trials is None else trials
        targets = np.array(view.goal.target_items, dtype=np.int64)
        budget = view.budget
        self._is_target = np.zeros(view.n_items, dtype=np.bool_)
        self._is_target[targets] = True
        if self._is_target.all():
            raise ArgumentError(
                f"target_items must leave an item that is no target, got all {view.n_items}"
            )
        start_rng = np.random.default_rng([self.seed, 1])
        space = make_action_space(
            self.config.action_space, view.item_popularity, targets, start_rng
        )
        self.policy = Policy(
            space,
            n_fake_users=budget.n_fake_users,
            profile_size=budget.profile_size,
            size=self.config.size,
            learning_rate=self.config.learning_rate,
            adam_epsilon=self.config.adam_epsilon,
            feature_std=self.config.feature_std,
            rng=start_rng,
        )

    @property
    def n_queries(self) -> int:
        """Poison sets evaluated so far."""
        return sum(len(step.rec_nums) for step in self.history)

    @property
    def best_rec_num(self) -> int:
        """RecNum of the best poison set so far. Raises `StateError` before the first step."""
        return self._trials.best_rec_num

    @property
    def is_stuck(self) -> bool:
        """Whether the last `patience` steps brought no better poison set."""
        patience = self.config.patience
        if patience is None or len(self.history) <= patience:
            return False
        sign = 1 if self._view.goal.direction == "push" else -1
        bests = [int((sign * step.rec_nums).max()) for step in self.history]
        return max(bests[-patience:]) <= max(bests[:-patience])

    def learn(
        self,
        n_steps: int | None = None,
        *,
        on_step: Callable[[Step], object] | None = None,
        checkpoint: Path | None = None,
        log_dir: Path | None = None,
        show_progress: bool = False,
    ) -> Self:
        """Train until `n_steps` more steps are done, the query budget is spent, or patience is at its end.

        Args:
            n_steps: `None`: as many as the budget allows.
            on_step: Called after every step.
            checkpoint: File that is rewritten after the first step, then every ten seconds, and at the end;
                `load` goes on from it as if nothing had happened.
            log_dir: Folder for TensorBoard's events; needs the package `tensorboard`.
            show_progress: Whether to draw a progress bar on standard error.

        Returns:
            The agent.

        Raises:
            ArgumentError: If `n_steps` is not positive, or TensorBoard is asked for and not installed.
            KeyboardInterrupt: If interrupted; the checkpoint is at most ten seconds old.
        """
        n_possible = self._n_possible_steps()
        wanted = n_possible if n_steps is None else min(as_count("n_steps", n_steps), n_possible)
        saved_at = -np.inf
        with (
            event_writer(log_dir) as write_event,
            tqdm(total=wanted, unit="step", disable=not show_progress) as bar,
        ):
            for number in range(wanted):
                step = self.step()
                is_last = number == wanted - 1 or self.is_stuck
                is_due = is_last or monotonic() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS
                if checkpoint is not None and is_due:
                    self.save(checkpoint)
                    saved_at = monotonic()
                write_event(step.number, _scalars(step, self.best_rec_num))
                bar.set_postfix(
                    mean=f"{step.rec_nums.mean():.0f}", best=self.best_rec_num, refresh=False
                )
                bar.update()
                if on_step is not None:
                    on_step(step)
                if self.is_stuck:
                    logger.info("no better poison set in %s steps", self.config.patience)
                    break
        return self

    def step(self) -> Step:
        """Make poison sets, have them evaluated, and improve the policy.

        Raises:
            StateError: If no query is left.
        """
        with blocks() as threads:
            item_ids, worth = self._try_and_improve(threads)
        sign = 1 if self._view.goal.direction == "push" else -1
        step = Step(
            len(self.history),
            (sign * worth).astype(np.int64),
            float(self._is_target[item_ids].mean()),
        )
        self.history.append(step)
        return step

    def sample(self, n_sets: int) -> NDArray[np.int64]:
        """Let the present policy make poison sets, without a query.

        Args:
            n_sets: M.

        Returns:
            Item ids, shape `(M, n_fake_users, profile_size)`.
        """
        with blocks() as threads:
            return self.policy.sample(as_count("n_sets", n_sets), self._rng, threads).item_ids

    def plan(self) -> FakeProfiles:
        """Return the best poison set that was tried.

        Raises:
            StateError: Before the first step.
        """
        header = {
            "attacker": self.name,
            "config": asdict(self.config),
            "seed": self.seed,
            "target_items": list(self._view.goal.target_items),
            "direction": self._view.goal.direction,
            "n_items": self._view.n_items,
            "n_queries": self.n_queries,
        }
        return FakeProfiles(self._trials.best_profiles, header=header)

    # -- checkpoints -----------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write everything that learning depends on, whole or not at all.

        Raises:
            OSError: If the file cannot be written.
        """
        header = {
            "format": CHECKPOINT_VERSION,
            "attacker": self.name,
            "config": asdict(self.config),
            "seed": self.seed,
            "platform": _platform(self._view),
            "rng": self._rng.bit_generator.state,
            "batch_sizes": [len(step.rec_nums) for step in self.history],
            "best_rec_num": self.best_rec_num if self.history else None,
        }
        arrays: dict[str, NDArray[Any]] = {  # Any: floats, ids and flags
            "best_profiles": self._trials.best_profiles if self.history else np.zeros((0, 0)),
            "rec_nums": np.concatenate([[], *(s.rec_nums for s in self.history)]).astype(np.int64),
            "target_shares": np.array([step.target_share for step in self.history]),
            **self._extra_state(),
            **{f"policy.{name}": array for name, array in self.policy.state().items()},
        }
        write_arrays(Path(path), header, arrays)

    @classmethod
    def load(cls, path: Path, view: AttackerView, *, n_queries: int | None = None) -> Self:
        """Return the agent that `save` wrote, ready to go on.

        Args:
            path: The file.
            view: The platform that it was trained on.
            n_queries: Budget of the whole run, if it is to be another than the one that it began with.

        Raises:
            ArtifactError: If the file is missing or damaged, or another kind of file.
            ArgumentError: If another kind of agent wrote it, or the platform has another budget, goal or
                catalogue.
        """
        header, arrays = read_arrays(Path(path), "PoisonRec")
        if header.get("format") != CHECKPOINT_VERSION or "platform" not in header:
            raise ArtifactError(
                f"{path} must be a PoisonRec checkpoint of format {CHECKPOINT_VERSION}, "
                f"got format {header.get('format')!r}"
            )
        if header["attacker"] != cls.name:
            raise ArgumentError(
                f"{path} must be a checkpoint of {cls.name!r}, got one of {header['attacker']!r}"
            )
        if header["platform"] != _platform(view):
            raise ArgumentError(
                f"view must show the platform that {path} was trained on ({header['platform']}), "
                f"got {_platform(view)}"
            )
        settings = (
            header["config"] if n_queries is None else {**header["config"], "n_queries": n_queries}
        )
        agent = cls(view, cls.config_class(**settings), seed=header["seed"])
        prefix = "policy."
        agent.policy.restore(
            {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        )
        agent._rng.bit_generator.state = header["rng"]
        cuts = np.cumsum(header["batch_sizes"])[:-1]
        for number, rec_nums in enumerate(np.split(arrays["rec_nums"], cuts)):
            if len(rec_nums):
                share = float(arrays["target_shares"][number])
                agent.history.append(Step(number, rec_nums, share))
        agent._restore_extra(arrays)
        best = None
        if agent.history:
            best = header["best_rec_num"], arrays["best_profiles"]
        n_left = max(0, agent.config.n_queries - agent.n_queries)
        agent._trials = Trials(view, n_left, best)
        return agent

    # -- learning --------------------------------------------------------------------------------

    def _try_and_improve(self, threads: Blocks) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Make one step: poison sets that were tried, shape `(M, N, T)`, and their worth, `(M,)`."""
        rollout = self.policy.sample(self._n_next(self.config.batch_size), self._rng, threads)
        worth = self._trials.query(rollout.item_ids)
        self._improve(rollout, worth, threads)
        return rollout.item_ids, worth

    def _n_next(self, wanted: int) -> int:
        """Return how many of the wanted poison sets the budget allows; one, where it says no later."""
        return min(wanted, max(1, self._trials.n_left))

    def _improve(self, rollout: Rollout, worth: NDArray[np.float64], threads: Blocks) -> None:
        """Make K updates from poison sets of worth `(M,)`."""
        examples: _Examples | None = None
        imitated = self._imitated(worth)
        for _ in range(self.config.n_epochs):
            chosen = self._choose_examples(len(worth))
            if examples is None or len(chosen) < len(worth):
                examples = _Examples(self.policy, rollout[chosen], worth[chosen], imitated, threads)
            examples.improve(self.config, self._imitation_weight)

    def _imitated(self, worth: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return poison sets to imitate beside learning from sets of this worth; here none."""
        del worth
        budget = self._view.budget
        return np.zeros((0, budget.n_fake_users, budget.profile_size), dtype=np.int64)

    def _n_possible_steps(self) -> int:
        """Return how many steps the budget allows."""
        return -(-self._trials.n_left // self.config.batch_size)

    def _extra_state(self) -> dict[str, NDArray[Any]]:  # Any: floats and ids
        """Return what a subclass adds to a checkpoint, by name."""
        return {}

    def _restore_extra(self, arrays: Mapping[str, NDArray[Any]]) -> None:  # Any: floats and ids
        """Take back what `_extra_state` returned, and was saved."""

    def _choose_examples(self, n_sets: int) -> NDArray[np.int64]:
        """Return which poison sets an update is made from, shape `(B,)`."""
        if self.config.n_examples >= n_sets:
            return np.arange(n_sets)
        return self._rng.permutation(n_sets)[: self.config.n_examples]


class _Examples:
    """Poison sets that updates are made from.

    Args:
        policy: What is improved.
        rollout: B poison sets that it made.
        worth: Shape `(B,)`.
        imitated: Poison sets to imitate beside that, shape `(n, N, T)`, also none.
        threads: Threads.
    """

    def __init__(
        self,
        policy: Policy,
        rollout: Rollout,
        worth: NDArray[np.float64],
        imitated: NDArray[np.int64],
        threads: Blocks,
    ) -> None:
        n_fake_users = rollout.item_ids.shape[1]
        both = np.concatenate([rollout.item_ids, imitated])
        self._evaluation = policy.evaluate(both, threads)
        self._n_rows = len(rollout.item_ids) * n_fake_users
        self._old_log_p = self._evaluation.by_time(rollout.log_p)
        advantages = normalise_rewards(torch.from_numpy(worth).float())
        self._advantages = advantages.repeat_interleave(n_fake_users).expand(
            self._old_log_p.shape[:-1]
        )

    def improve(self, config: PoisonRecConfig, imitation_weight: float) -> None:
        """Make one update."""
        log_p, mask, own = self._evaluation.log_p(), self._evaluation.mask, self._n_rows
        objective = clipped_surrogate(
            log_p[:, :own],
            self._old_log_p,
            mask[:, :own],
            self._advantages,
            clip_range=config.clip_range,
            per_path=config.clip == "path",
        )
        if own < log_p.shape[1]:
            imitation = mean_log_p(log_p[:, own:], mask[:, own:])
            objective = objective + imitation_weight * imitation
        self._evaluation.improve(objective)


def _scalars(step: Step, best_rec_num: int) -> dict[str, float]:
    """Return what TensorBoard shows of a step."""
    return {
        "rec_num/mean": float(step.rec_nums.mean()),
        "rec_num/batch_max": float(step.rec_nums.max()),
        "rec_num/best": float(best_rec_num),
        "target_share": step.target_share,
    }


def _platform(view: AttackerView) -> dict[str, object]:
    """Return what a policy's shape depends on, as plain JSON values."""
    return {
        "n_items": view.n_items,
        "target_items": list(view.goal.target_items),
        "direction": view.goal.direction,
        "n_fake_users": view.budget.n_fake_users,
        "profile_size": view.budget.profile_size,
    }


class PoisonRecAttacker(SearchAttacker):
    """Train `PoisonRec` on the platform; the plan is the best poison set that it tried."""

    name = "poisonrec"
    config: PoisonRecConfig
    config_class = PoisonRecConfig
    agent_class: ClassVar[type[PoisonRec]] = PoisonRec

    def _search(self, view: AttackerView, trials: Trials, rng: np.random.Generator) -> None:
        agent = self.agent_class(view, self.config, seed=draw_seed(rng), trials=trials)
        agent.learn()
