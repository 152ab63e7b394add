"""What attackers with surrogates share: settings, records, and the loop over groups of fake users."""

import math
import time
from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agents.base import Attacker, AttackerConfig
from agents.gradient.gradient_passing import GradientPassing
from agents.gradient.graph import InteractionGraph
from agents.gradient.profiles import Task, as_clicks
from agents.gradient.surrogates import Loss, Model, Surrogate, SurrogateConfig, embeddings_of
from agents.interruption import raise_if_interrupted
from recattack_gym.core import Knowledge
from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.random import draw_seed
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, kw_only=True, slots=True)
class SurrogateAttackerConfig(AttackerConfig):
    """Settings that all attackers with a surrogate have."""

    epochs: int = 1
    """Epochs of each retraining."""
    embedding_size: int = 64
    """d of the surrogate."""
    learning_rate: float = 0.01
    """Step size of the surrogate's Adam."""
    reg: float = 0.01
    """Weight of the squared norms."""
    batch_size: int = 4096
    """Draws (BPR, BCE) or users (MSE) per step."""
    gradient_passing: bool = False
    """Whether retrainings pass gradients along the graph."""
    passing_threshold_odd: float | None = 0.0
    """xi_odd; `None` lets all pairs pass (minus infinity)."""
    passing_threshold_even: float | None = None
    """xi_even; `None` lets all pairs pass (minus infinity)."""
    passing_weight_odd: float = 1.0
    """alpha_odd; 0 passes nothing over odd hops."""
    passing_weight_even: float = 10.0
    """alpha_even; 10 is published, 100 with pre-training and sampling."""
    passing_order: int = 2
    """K."""
    passing_rate: float = 1.0
    """Probability that a step passes its gradient, in `[0, 1]`."""

    def __post_init__(self) -> None:
        as_count("epochs", self.epochs)
        if not isinstance(self.gradient_passing, bool):
            raise ArgumentError(
                f"gradient_passing must be true or false, got {self.gradient_passing!r}"
            )
        self.surrogate_config()

    def surrogate_config(self) -> SurrogateConfig:
        """Return the settings of the surrogate."""
        return SurrogateConfig(
            embedding_size=self.embedding_size,
            learning_rate=self.learning_rate,
            reg=self.reg,
            batch_size=self.batch_size,
            passing=self.passing(),
            passing_rate=self.passing_rate,
        )

    def passing(self) -> GradientPassing | None:
        """Return the settings of Gradient Passing, `None` for ordinary training."""
        odd, even = (
            -math.inf if threshold is None else threshold
            for threshold in (self.passing_threshold_odd, self.passing_threshold_even)
        )
        passing = GradientPassing(
            threshold_odd=odd,
            threshold_even=even,
            weight_odd=self.passing_weight_odd,
            weight_even=self.passing_weight_even,
            order=self.passing_order,
        )
        return passing if self.gradient_passing else None


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class AttackRun:
    """Profiles, and what making them cost."""

    item_ids: NDArray[np.int64]
    """Clicks, shape `(n_fake_users, profile_size)`."""
    n_retrainings: int
    """Surrogates that were trained."""
    training_seconds: float
    """CPU seconds of their training epochs."""
    total_seconds: float
    """CPU seconds of everything."""
    pretraining_seconds: float = 0.0
    """CPU seconds of pre-training, which `training_seconds` does not include."""
    curve: tuple[float, ...] = ()
    """The attacker's own target hit rate after each retraining, where it is measured."""


class SurrogateAttacker(Attacker):
    """An attack that trains recommenders of its own on the log, and never asks the platform."""

    knowledge = Knowledge.GRAY_BOX
    config: SurrogateAttackerConfig
    config_class = SurrogateAttackerConfig
    why_not = (
        "demotion would need another adversarial loss; use an attacker that queries, for example "
        "'poisonrec'"
    )

    def _plan(self, view: AttackerView, rng: np.random.Generator) -> NDArray[np.int64]:
        return self.attack(Task.of(view), rng).item_ids

    @abstractmethod
    def attack(self, task: Task, rng: np.random.Generator) -> AttackRun:
        """Return profiles and what they cost; for measurements, where a view would hide the costs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupAttackerConfig(SurrogateAttackerConfig):
    """Settings of attackers that make fake users group by group."""

    surrogate: Model = "mf"
    """`"mf"` or `"lightgcn"`."""
    loss: Loss = "bce"
    """`"bce"` (published), `"bpr"` or `"mse"`."""
    group_size: int = 1
    """Fake users per retraining: 1 on Gowalla, 2 on Yelp, 100 on Tenrec."""
    pretrain_epochs: int = 0
    """Epochs on the clean log whose embeddings every retraining starts from; 0 starts from random ones."""
    genuine_rate: float = 1.0
    """The sampling strategy's p, in `(0, 1]`; below 1 (0.1 is published) it needs pre-training."""

    def __post_init__(self) -> None:
        SurrogateAttackerConfig.__post_init__(self)
        as_count("group_size", self.group_size)
        as_count("pretrain_epochs", self.pretrain_epochs, at_least=0)
        as_real("genuine_rate", self.genuine_rate, above=0.0, at_most=1.0)
        if self.genuine_rate < 1.0 and self.pretrain_epochs == 0:
            raise ArgumentError(
                f"genuine_rate must be 1 without pre-training (pretrain_epochs=0), got {self.genuine_rate}"
            )

    def surrogate_config(self) -> SurrogateConfig:
        """Return the settings of the surrogate."""
        return SurrogateConfig(
            model=self.surrogate,
            loss=self.loss,
            embedding_size=self.embedding_size,
            learning_rate=self.learning_rate,
            reg=self.reg,
            batch_size=self.batch_size,
            passing=self.passing(),
            passing_rate=self.passing_rate,
            genuine_rate=self.genuine_rate,
        )


class GroupAttacker(SurrogateAttacker):
    """Make fake users group by group, each with a surrogate retrained on those before and its target clicks.

    A group enters the log with its clicks on the targets alone; a new surrogate is trained on that, and says
    what else the group clicks. The wrapper loop of Gradient Passing (RecSys 2024), with its pre-training
    and sampling strategies.

    With fewer clicks than targets there are no fillers, so no surrogate is trained: fake users take turns on
    the targets. In a catalogue with too few items a profile repeats its items.

    Differs from the paper: pre-training has a fixed number of epochs instead of early stopping, which would
    need an attacker who holds clicks back.
    """

    config: GroupAttackerConfig
    config_class = GroupAttackerConfig

    def attack(self, task: Task, rng: np.random.Generator) -> AttackRun:
        """See `SurrogateAttacker.attack`."""
        start, config = time.process_time(), self.config
        profiles = [task.targets_of(fake) for fake in range(task.n_fake_users)]
        pretrained = self._pretrained(task, draw_seed(rng)) if task.n_fillers else None
        chooser = self._chooser(task)
        training_seconds, n_retrainings = 0.0, 0
        for first in range(0, task.n_fake_users if task.n_fillers else 0, config.group_size):
            raise_if_interrupted()
            last = min(first + config.group_size, task.n_fake_users)
            seed = draw_seed(rng)
            graph = task.graph(profiles[:last])
            initial = None if pretrained is None else embeddings_of(pretrained, graph, seed)
            surrogate = Surrogate(graph, config.surrogate_config(), seed=seed, initial=initial)
            surrogate.train(config.epochs)
            fillers = chooser.fillers(surrogate, range(first, last), rng)
            for fake, chosen in zip(range(first, last), fillers, strict=True):
                profiles[fake] = np.concatenate([profiles[fake], chosen])
            training_seconds += surrogate.training_seconds
            n_retrainings += 1
        return AttackRun(
            item_ids=as_clicks(profiles, task.profile_size, rng),
            n_retrainings=n_retrainings,
            training_seconds=training_seconds,
            total_seconds=time.process_time() - start,
            pretraining_seconds=0.0 if pretrained is None else pretrained.training_seconds,
        )

    def _pretrained(self, task: Task, seed: int) -> Surrogate | None:
        config = self.config
        if config.pretrain_epochs == 0:
            return None
        ordinary = replace(config.surrogate_config(), genuine_rate=1.0)
        surrogate = Surrogate(InteractionGraph.of(task.log), ordinary, seed=seed)
        surrogate.train(config.pretrain_epochs)
        return surrogate

    @abstractmethod
    def _chooser(self, task: Task) -> "FillerChooser":
        """Return what chooses the fillers of one attack."""


class FillerChooser:
    """Chooses fillers group by group; made anew for every attack."""

    @abstractmethod
    def fillers(
        self, surrogate: Surrogate, fake_users: range, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Return distinct items that are no targets, for each fake user of a group.

        Args:
            surrogate: Trained on the log, the fake users before, and the group's target clicks.
            fake_users: Numbers of the group's fake users, from 0.
            rng: Source of randomness.
        """
