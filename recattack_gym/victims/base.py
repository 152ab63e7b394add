"""What every victim (the recommender under attack) has in common.

The base class owns the rules: argument checks, masking of seen items, ranking, ties, the clean state
that every attack starts from, saving and loading. A victim writes how it is fitted, scored and
fine-tuned, and, where it pays, a compiled engine that must agree with those.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self, cast, final

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import (
    as_choice,
    as_count,
    as_device,
    as_generator,
    as_ids,
    as_real,
)
from recattack_gym.core.errors import ArgumentError, ArtifactError, StateError, UnknownNameError
from recattack_gym.core.files import read_arrays, write_arrays
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.profiles import as_profile_batch
from recattack_gym.core.random import draw_seed
from recattack_gym.victims.ranking import CandidateLists, count_exposure, seen_mask, top_k

Retrain = Literal["finetune", "full"]
Backend = Literal["auto", "plain"]
RETRAINS: tuple[Retrain, ...] = ("finetune", "full")
BACKENDS: tuple[Backend, ...] = ("auto", "plain")
State = dict[str, NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64]]

STATE_VERSION = 3
"""Rises whenever saved victims of an earlier version would give other results."""

_BLOCK_CELLS = 4_000_000
"""Scores that are held at once while ranking, so that memory does not grow with the users."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VictimConfig:
    """Settings of a victim; each victim has its own subclass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientConfig(VictimConfig):
    """Settings that all victims trained by gradient descent share."""

    embedding_size: int = 64
    """Dimensions of every embedding; 64 as in PoisonRec's rankers and policy."""
    epochs: int = 20
    """Passes over the log in clean training and in `retrain="full"`."""
    learning_rate: float = 1e-3
    """Step size of clean training."""
    reg: float = 0.0
    """L2 penalty; the victim says on what."""
    batch_size: int = 1024
    """Examples per gradient step of clean training."""
    new_items_as_negatives: bool = False
    """Whether genuine users' examples may draw new items as negatives.

    New items are catalogue entries that no genuine user has clicked, such as new targets. A platform that
    samples negatives from everything pushes them down before and during the attack.
    """
    finetune_epochs: int = 5
    """Passes over the fake clicks in `retrain="finetune"`."""
    finetune_learning_rate: float = 1e-3
    """Step size of fine-tuning; each victim says with which optimiser, whose state starts fresh."""
    finetune_replay: float = 1.0
    """Genuine clicks mixed in per fake click in every epoch; `>= len(log)` in all means the whole log."""
    finetune_batch_size: int = 256
    """Examples per gradient step of fine-tuning."""

    def negatives_below(self, n_items: int, n_new_items: int) -> int:
        """Return where the items end that genuine users' negatives are drawn from.

        Args:
            n_items: Size of the catalogue.
            n_new_items: How many of its last items are new.
        """
        return n_items if self.new_items_as_negatives else n_items - n_new_items

    def __post_init__(self) -> None:
        for name in ("embedding_size", "batch_size", "finetune_batch_size"):
            as_count(name, getattr(self, name))
        for name in ("epochs", "finetune_epochs"):
            as_count(name, getattr(self, name), at_least=0)
        for name in ("learning_rate", "finetune_learning_rate"):
            as_real(name, getattr(self, name), above=0.0)
        for name in ("reg", "finetune_replay"):
            as_real(name, getattr(self, name), at_least=0.0)
        if not isinstance(self.new_items_as_negatives, bool):
            raise ArgumentError(
                f"new_items_as_negatives must be True or False, got {self.new_items_as_negatives!r}"
            )


class ExposureEngine(Protocol):
    """Evaluates poison sets against one platform's candidate lists."""

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Poison, rank and count, each set from the clean state.

        Args:
            profiles: Shape `(M, N, T)`, checked.
            seed: What retraining draws from; the same for every set.

        Returns:
            Shape `(M, n_targets)`: genuine users who are shown each target.
        """
        ...


class Victim(ABC):
    """A top-k recommender on a platform that retrains on what its users click.

    Args:
        config: Settings, a mapping of some of them by name, or `None` for the defaults.
        device: Where torch-based parts run.

    Raises:
        ArgumentError: If a setting is unknown or out of range.
    """

    name: ClassVar[str]
    """As the paper writes it; the key in `VICTIMS` and the middle of the environment id."""
    config_class: ClassVar[type[VictimConfig]] = VictimConfig
    is_incremental: ClassVar[bool] = False
    """Whether fine-tuning gives exactly what full retraining gives (count-based victims)."""

    def __init__(
        self, config: VictimConfig | Mapping[str, object] | None = None, *, device: str = "cpu"
    ) -> None:
        self.config = self._as_config(config)
        self.device = as_device(device)
        self._fitted_log: Interactions | None = None
        self._n_new_items = 0
        self._fit_seed = 0

    @classmethod
    def _as_config(cls, config: VictimConfig | Mapping[str, object] | None) -> VictimConfig:
        if isinstance(config, VictimConfig):
            if not isinstance(config, cls.config_class):
                raise ArgumentError(
                    f"config must be a {cls.config_class.__name__} for {cls.name}, "
                    f"got {type(config).__name__}"
                )
            return config
        if config is not None and not isinstance(config, Mapping):
            raise ArgumentError(
                f"config must be a {cls.config_class.__name__}, a mapping of settings or None, "
                f"got {config!r}"
            )
        settings = dict(config or {})
        known = [field.name for field in fields(cls.config_class)]
        for setting in settings:
            if setting not in known:
                raise UnknownNameError(f"setting of {cls.name}", setting, known)
        return cls.config_class(**settings)

    # -- state -----------------------------------------------------------------------------------

    @property
    def log(self) -> Interactions:
        """The log that this victim was trained on, over the whole catalogue."""
        if self._fitted_log is None:
            raise StateError(f"{self.name} has not been fitted: call fit(log, rng) first")
        return self._fitted_log

    @property
    def n_new_items(self) -> int:
        """How many trailing items of the catalogue no genuine user has clicked."""
        return self._n_new_items

    @property
    def n_original_items(self) -> int:
        """Size of the catalogue without the new items."""
        return self.log.n_items - self._n_new_items

    @final
    @property
    def state(self) -> State:
        """Copies of all learnt arrays, by name."""
        _ = self.log
        return {name: array.copy() for name, array in self._state().items()}

    @final
    def fit(self, log: Interactions, rng: np.random.Generator, *, n_new_items: int = 0) -> Self:
        """Train from scratch.

        Args:
            log: What to train on; its catalogue includes the new items.
            rng: Source of all randomness; the same state gives the same victim.
            n_new_items: How many trailing items of the catalogue are new: in the catalogue, with
                untrained parameters, and without any event in `log`.

        Returns:
            The victim itself.
        """
        n_new = as_count("n_new_items", n_new_items, at_least=0)
        if not isinstance(log, Interactions):
            raise ArgumentError(f"log must be Interactions, got {type(log).__name__}")
        if len(log) == 0:
            raise ArgumentError("log must have at least one event, got none")
        _check_new_items(log, n_new)
        self._fit_seed = draw_seed(as_generator("rng", rng))
        self._fitted_log, self._n_new_items = log, n_new
        try:
            self._fit(log, np.random.default_rng(self._fit_seed))
        except BaseException:
            self._fitted_log = None  # half-trained parameters are nobody's
            raise
        return self

    # -- recommending ----------------------------------------------------------------------------

    @final
    def score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Score items for users; higher is better, and seen items are scored like any other.

        Args:
            user_ids: Shape `(U,)`.
            item_ids: Shape `(U, C)`: the items to score for each user.

        Returns:
            Shape `(U, C)`, finite.

        Raises:
            StateError: If the victim is not fitted or its training diverged.
        """
        log = self.log
        users = as_ids("user_ids", user_ids, below=log.n_users, shape=(None,))
        items = as_ids("item_ids", item_ids, below=log.n_items, shape=(len(users), None))
        scores = self._score(users, items).astype(np.float32, copy=False)
        if not np.isfinite(scores).all():
            raise StateError(
                f"{self.name} gave a score that is not finite; lower its learning_rate"
            )
        return scores

    @final
    def recommend(self, user_ids: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """Return the `k` best unseen items of each user from the whole catalogue.

        Args:
            user_ids: Shape `(U,)`.
            k: Length of each list, at least 1.

        Returns:
            Shape `(U, k)`, best first; -1 where a user has fewer than `k` unseen items.
        """
        k = as_count("k", k)
        log = self.log
        users = as_ids("user_ids", user_ids, below=log.n_users, shape=(None,))
        shown = np.empty((len(users), k), dtype=np.int64)
        for rows in _blocks(len(users), log.n_items):
            items = np.broadcast_to(np.arange(log.n_items), (len(users[rows]), log.n_items))
            allowed = ~seen_mask(log, users[rows])
            shown[rows] = top_k(self.score(users[rows], items), items, allowed, k)
        return shown

    @final
    def exposure(self, lists: CandidateLists) -> NDArray[np.int64]:
        """Count how many genuine users are shown each target by this victim as it is.

        Returns:
            Shape `(n_targets,)`.
        """
        total = np.zeros(len(lists.target_items), dtype=np.int64)
        width = self.log.n_items if lists.all_ids is None else lists.all_ids.shape[1]
        for rows in _blocks(lists.n_users, width):
            users = np.arange(rows.start, rows.stop)
            items, allowed = lists.block(users)
            shown = top_k(self.score(users, items), items, allowed, lists.k)
            total += count_exposure(shown, lists.target_items)
        return total

    # -- poisoning -------------------------------------------------------------------------------

    @final
    def poison(
        self,
        profiles: NDArray[np.int64],
        rng: np.random.Generator,
        *,
        retrain: Retrain = "finetune",
    ) -> "PoisonedBatch":
        """Inject poison sets into the clean log and retrain, each from this victim's clean state.

        Args:
            profiles: Item ids, shape `(M, N, T)`, or `(N, T)` for one set.
            rng: Gives the one seed that the updates of all sets draw from.
            retrain: `"finetune"` continues from the clean parameters, `"full"` trains from scratch.

        Returns:
            The M poisoned victims, made one at a time as they are asked for.
        """
        batch = as_profile_batch(profiles, self.log.n_items)
        as_choice("retrain", retrain, RETRAINS)
        return PoisonedBatch(self, batch, draw_seed(as_generator("rng", rng)), retrain)

    @final
    def poisoned(self, profile: NDArray[np.int64], seed: int, retrain: Retrain) -> Self:
        """Return a poisoned copy; the plain path, which every compiled engine must agree with.

        Args:
            profile: One checked poison set, shape `(N, T)`.
            seed: What fine-tuning draws from. Full retraining repeats the clean fit's seed, and with it
                the draws of genuine users and events (see `epochs`), so that only the poison differs.
            retrain: See `poison`.
        """
        clean_log = self.log
        copy = type(self)(self.config, device=self.device)
        copy._fitted_log = clean_log.with_fake_users(profile)
        copy._n_new_items, copy._fit_seed = self._n_new_items, self._fit_seed
        if retrain == "full":
            copy._fit(copy.log, np.random.default_rng(self._fit_seed))
        else:
            copy._set_state(self.state)
            copy._finetune(clean_log, profile, seed)
        return copy

    @final
    def engine(
        self, lists: CandidateLists, *, retrain: Retrain = "finetune", backend: Backend = "auto"
    ) -> ExposureEngine:
        """Return what evaluates poison sets against `lists`, prepared once and used many times.

        Args:
            lists: What the platform ranks.
            retrain: See `poison`.
            backend: `"auto"` takes the compiled path where there is one, `"plain"` never does.
        """
        as_choice("retrain", retrain, RETRAINS)
        as_choice("backend", backend, BACKENDS)
        log = self.log
        if (lists.n_users, lists.log.n_items) != (log.n_users, log.n_items):
            raise ArgumentError(
                f"lists must be made for the log of this {self.name} ({log.n_users} users, "
                f"{log.n_items} items), got {lists.n_users} users, {lists.log.n_items} items"
            )
        if backend == "auto" and (retrain == "finetune" or self.is_incremental):
            engine = self._compiled_engine(lists)
            if engine is not None:
                return engine
        return PlainEngine(self, lists, retrain)

    # -- saving ----------------------------------------------------------------------------------

    @final
    def save(self, path: str | Path) -> None:
        """Write the learnt state to an `.npz` file, whole or not at all; the log is not included."""
        header = {
            "format": STATE_VERSION,
            "victim": self.name,
            "config": asdict(self.config),
            "log": self.log.content_hash,
            "n_new_items": self._n_new_items,
            "fit_seed": self._fit_seed,
        }
        write_arrays(Path(path), header, self._state())

    @classmethod
    @final
    def load(cls, path: str | Path, log: Interactions, *, device: str = "cpu") -> Self:
        """Read a victim that `save` wrote; never unpickles.

        Args:
            path: The file.
            log: The log that the victim was fitted on.
            device: Where torch-based parts run.

        Raises:
            ArtifactError: If the file is missing, damaged, of another version, victim or log.
        """
        header, state = read_arrays(Path(path), "victim")
        expected = {"format": STATE_VERSION, "victim": cls.name, "log": log.content_hash}
        for key, value in expected.items():
            if header.get(key) != value:
                raise ArtifactError(
                    f"{path} was saved with {key} {header.get(key)!r}, not {value!r}"
                )
        try:
            victim = cls(header["config"], device=device)
            n_new = as_count("n_new_items", header["n_new_items"], at_least=0)
            fit_seed = as_count("fit_seed", header["fit_seed"], at_least=0)
            _check_new_items(log, n_new)
            victim._fitted_log, victim._n_new_items, victim._fit_seed = log, n_new, fit_seed
            victim._set_state(cast(State, state))
        except (KeyError, TypeError, ArgumentError, ArtifactError) as error:
            raise ArtifactError(f"{path} does not hold a {cls.name} victim: {error}") from error
        return victim

    # -- what a victim writes --------------------------------------------------------------------

    @abstractmethod
    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        """Train from scratch on `log`, whose last users may be fake.

        Nothing random about genuine users, their events, items or layers may depend on how many users
        and events follow: draw seeds, layers and items before users, and everything about an event or
        a user by its number (`epochs`), never from a generator that goes through all of them.
        """

    @abstractmethod
    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Score checked ids: users `(U,)`, items `(U, C)`, result `(U, C)`."""

    @abstractmethod
    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        """Continue from the clean state that is set on this copy, in place; the plain path.

        Args:
            log: The clean log; `self.log` already has the fake users.
            profile: Shape `(N, T)`.
            seed: The only source of randomness (`core.random`, counter-based).
        """

    @abstractmethod
    def _state(self) -> State:
        """Return all learnt arrays by name, without copying where possible."""

    @abstractmethod
    def _set_state(self, state: State) -> None:
        """Take over arrays that `_state` returned; this object may keep and change them.

        Raises:
            ArtifactError: If an array is missing or has the wrong shape (see `state_array`).
        """

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:  # noqa: ARG002
        """Return the fast twin of fine-tuning + ranking for `lists`, or `None` if there is none."""
        return None


class PoisonedBatch:
    """M poisoned victims that are made when asked for; 32 copies never exist at once.

    Iterate over it or index it for the victims themselves, or call `score` for all of them.
    """

    def __init__(
        self, clean: Victim, profiles: NDArray[np.int64], seed: int, retrain: Retrain
    ) -> None:
        self._clean = clean
        self._profiles = profiles
        self._seed = seed
        self._retrain: Retrain = retrain

    def __len__(self) -> int:
        """Return M."""
        return len(self._profiles)

    def __getitem__(self, m: int) -> Victim:
        """Return the victim poisoned by set `m`; fake users have the ids after the genuine ones."""
        return self._clean.poisoned(self._profiles[m], self._seed, self._retrain)

    def __iter__(self) -> Iterator[Victim]:
        """Yield the poisoned victims in order."""
        return (self[m] for m in range(len(self)))

    def score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Score items under every poison set; see `Victim.score`. Shape `(M, U, C)`."""
        return np.stack([victim.score(user_ids, item_ids) for victim in self])


class PlainEngine:
    """One poisoned copy after another, ranked in full: slow, obvious, and the oracle of the others."""

    def __init__(self, victim: Victim, lists: CandidateLists, retrain: Retrain) -> None:
        self._victim = victim
        self._lists = lists
        self._retrain: Retrain = retrain

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        return np.stack(
            [
                self._victim.poisoned(profile, seed, self._retrain).exposure(self._lists)
                for profile in profiles
            ]
        )


def _check_new_items(log: Interactions, n_new: int) -> None:
    if n_new >= log.n_items:
        raise ArgumentError(f"n_new_items must be < n_items = {log.n_items}, got {n_new}")
    if n_new and log.item_popularity[-n_new:].any():
        raise ArgumentError(f"the last n_new_items = {n_new} items must have no event in log")


def state_array(
    state: State, name: str, shape: tuple[int | None, ...]
) -> NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64]:
    """Return one array of a state that may come from a file; for `_set_state`.

    Args:
        state: What `_state` returned once.
        name: The array's name.
        shape: The expected shape; `None` stands for any length.

    Raises:
        ArtifactError: If there is no such array, or it has another shape or is not finite.
    """
    if name not in state:
        raise ArtifactError(f"the saved state has no array {name!r}, only {sorted(state)}")
    array = state[name]
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise ArtifactError(
            f"array {name!r} of the saved state must have shape {shape}, got {array.shape}"
        )
    if not (np.issubdtype(array.dtype, np.number) and np.isfinite(array).all()):
        raise ArtifactError(f"array {name!r} of the saved state must hold finite numbers")
    return array


def _blocks(n_rows: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK_CELLS // max(width, 1))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
