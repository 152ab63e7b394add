"""PoisonRec: the learner, its settings, its checkpoints, and the attacker that trains one."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Self

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
from agents.structured import structured_sets
from recattack_gym.core import ArgumentError, ArtifactError, FakeProfiles
from recattack_gym.core.checks import as_choice, as_count, as_real
from recattack_gym.core.files import read_arrays, write_arrays
from recattack_gym.core.random import draw_seed
from recattack_gym.core.view import AttackerView

logger = logging.getLogger(__name__)

CHECKPOINT_VERSION = 1
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

    warm_up: int = 0
    """Poison sets of simple structure that are tried and imitated first; 0: none, as in the paper."""
    imitation_epochs: int = 60
    """Updates that raise the likelihood of the best of them."""
    n_elites: int = 8
    """Poison sets that are imitated: the best so far."""
    imitation_weight: float = 0.0
    """Weight of their log-likelihood beside PPO's objective; 0: none, as in the paper."""

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        as_choice("action_space", self.action_space, ACTION_SPACES)
        as_choice("clip", self.clip, CLIPS)
        for name in ("n_examples", "n_epochs", "size", "n_elites", "imitation_epochs"):
            as_count(name, getattr(self, name))
        as_count("warm_up", self.warm_up, at_least=0)
        as_real("imitation_weight", self.imitation_weight, at_least=0.0)
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
    `config.warm_up` and `config.imitation_weight` are ours, and 0 by default.
    """

    def __init__(
        self,
        view: AttackerView,
        config: PoisonRecConfig | None = None,
        *,
        seed: int = 0,
        trials: Trials | None = None,
    ) -> None:
        self.config = PoisonRecConfig() if config is None else config
        self.seed = as_count("seed", seed, at_least=0)
        self.history: list[Step] = []
        """One entry per step."""
        self._view = view
        self._rng = np.random.default_rng([self.seed, 0])
        self._trials = Trials(view, self.config.n_queries) if trials is None else trials
        targets = np.array(view.goal.target_items, dtype=np.int64)
        budget = view.budget
        self._elites = np.zeros((0, budget.n_fake_users, budget.profile_size), dtype=np.int64)
        self._elite_worth = np.zeros(0)
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
        n_left = max(1, self._trials.n_left)  # without one, the query below says so
        with blocks() as threads:
            if self.config.warm_up and not self.history:
                n_sets = min(self.config.warm_up, n_left)
                item_ids = structured_sets(self._view, n_sets, self._rng)
                worth = self._trials.query(item_ids)
                self._keep_elites(item_ids, worth)
                self._imitate(threads)
            else:
                n_sets = min(self.config.batch_size, n_left)
                rollout = self.policy.sample(n_sets, self._rng, threads)
                item_ids = rollout.item_ids
                worth = self._trials.query(item_ids)
                self._keep_elites(item_ids, worth)
                self._improve(rollout, worth, threads)
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
            "attacker": "poisonrec",
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
            "elites": self._elites,
            "elite_worth": self._elite_worth,
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
            ArgumentError: If the platform has another budget, goal or catalogue.
        """
        header, arrays = read_arrays(Path(path), "PoisonRec")
        if header.get("format") != CHECKPOINT_VERSION or "platform" not in header:
            raise ArtifactError(
                f"{path} must be a PoisonRec checkpoint of format {CHECKPOINT_VERSION}, "
                f"got format {header.get('format')!r}"
            )
        if header["platform"] != _platform(view):
            raise ArgumentError(
                f"view must show the platform that {path} was trained on ({header['platform']}), "
                f"got {_platform(view)}"
            )
        settings = (
            header["config"] if n_queries is None else {**header["config"], "n_queries": n_queries}
        )
        agent = cls(view, PoisonRecConfig(**settings), seed=header["seed"])
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
        agent._elites, agent._elite_worth = arrays["elites"], arrays["elite_worth"]
        best = None
        if agent.history:
            best = header["best_rec_num"], arrays["best_profiles"]
        n_left = max(0, agent.config.n_queries - agent.n_queries)
        agent._trials = Trials(view, n_left, best)
        return agent

    # -- learning --------------------------------------------------------------------------------

    def _improve(self, rollout: Rollout, worth: NDArray[np.float64], threads: Blocks) -> None:
        """Make K updates from poison sets of worth `(M,)`."""
        elites = self._elites_to_imitate(worth.mean())
        examples: _Examples | None = None
        for _ in range(self.config.n_epochs):
            chosen = self._choose_examples(len(worth))
            if examples is None or len(chosen) < len(worth):
                examples = _Examples(self.policy, rollout[chosen], worth[chosen], elites, threads)
            examples.improve(self.config)

    def _keep_elites(self, item_ids: NDArray[np.int64], worth: NDArray[np.float64]) -> None:
        """Keep the best distinct poison sets so far."""
        both = np.concatenate([self._elites, item_ids])
        worths = np.concatenate([self._elite_worth, worth])
        _, first = np.unique(both.reshape(len(both), -1), axis=0, return_index=True)
        first = np.sort(first)
        best = first[np.argsort(-worths[first], kind="stable")][: self.config.n_elites]
        self._elites, self._elite_worth = both[best], worths[best]

    def _elites_to_imitate(self, mean_worth: float) -> NDArray[np.int64]:
        """Return the elites that are better than the policy's present sets, shape `(n, N, T)`."""
        if not self.config.imitation_weight:
            return self._elites[:0]
        return self._elites[self._elite_worth > mean_worth]

    def _n_possible_steps(self) -> int:
        """Return how many steps the budget allows."""
        n_left, n_steps = self._trials.n_left, 0
        if self.config.warm_up and not self.history and n_left:
            n_left, n_steps = max(0, n_left - self.config.warm_up), 1
        return n_steps + -(-n_left // self.config.batch_size)

    def _imitate(self, threads: Blocks) -> None:
        """Raise the likelihood of the elites."""
        evaluation = self.policy.evaluate(self._elites, threads)
        for _ in range(self.config.imitation_epochs):
            evaluation.improve(mean_log_p(evaluation.log_p(), evaluation.mask))

    def _choose_examples(self, n_sets: int) -> NDArray[np.int64]:
        """Return which poison sets an update is made from, shape `(B,)`."""
        if self.config.n_examples >= n_sets:
            return np.arange(n_sets)
        return self._rng.permutation(n_sets)[: self.config.n_examples]


class _Examples:
    """Poison sets that updates are made from, and elites to imitate beside them.

    Args:
        policy: What is improved.
        rollout: B poison sets that it made.
        worth: Shape `(B,)`.
        elites: Shape `(n_elites, N, T)`, also none.
        threads: Threads.
    """

    def __init__(
        self,
        policy: Policy,
        rollout: Rollout,
        worth: NDArray[np.float64],
        elites: NDArray[np.int64],
        threads: Blocks,
    ) -> None:
        n_fake_users = rollout.item_ids.shape[1]
        both = np.concatenate([rollout.item_ids, elites])
        self._evaluation = policy.evaluate(both, threads)
        self._n_rows = len(rollout.item_ids) * n_fake_users
        self._old_log_p = self._evaluation.by_time(rollout.log_p)
        advantages = normalise_rewards(torch.from_numpy(worth).float())
        self._advantages = advantages.repeat_interleave(n_fake_users).expand(
            self._old_log_p.shape[:-1]
        )

    def improve(self, config: PoisonRecConfig) -> None:
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
            objective = objective + config.imitation_weight * imitation
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

    def _search(self, view: AttackerView, trials: Trials, rng: np.random.Generator) -> None:
        agent = PoisonRec(view, self.config, seed=draw_seed(rng), trials=trials)
        agent.learn()


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmPoisonRecConfig(PoisonRecConfig):
    """Settings of `WarmPoisonRecAttacker`, chosen on platform seeds 10 and 11 of Steam."""

    batch_size: int = 16
    """Half of the paper's, so that twice as many steps are made from the same queries."""
    n_examples: int = 16
    """As many."""
    n_epochs: int = 6
    """Twice the paper's: queries cost more than updates."""
    warm_up: int = 64
    """Poison sets of simple structure that are tried and imitated first."""


class WarmPoisonRecAttacker(PoisonRecAttacker):
    """PoisonRec that does not begin with a blank policy, and makes more of each query.

    The paper's policy begins with all choices about equal. Its first poison sets then hardly differ in what
    matters, and it mostly settles on the first thing that is rewarded (on ItemPop
    two targets, where four pay more). Here the first queries try sets of simple structure
    (`agents.structured`), the policy imitates the best of them, and PPO goes on from there with
    smaller batches and more updates. PoisonRec: Song et al., ICDE 2020.

    Differs from the paper: all of the above. Not published elsewhere; docs/benchmarks.md has the ablation.
    """

    name = "poisonrec-warm"
    config: WarmPoisonRecConfig
    config_class = WarmPoisonRecConfig
