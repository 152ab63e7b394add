"""The simulated platform: a log, a victim trained on it, what it shows, and what poison does to that."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recattack_gym.core.attack import DIRECTIONS, AttackGoal, Direction
from recattack_gym.core.checks import as_choice, as_count, as_generator, as_ids
from recattack_gym.core.errors import ArgumentError, StateError, UnknownNameError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.profiles import FakeProfiles, as_profile_batch
from recattack_gym.core.random import draw_seed
from recattack_gym.datasets import Dataset, Split, load
from recattack_gym.metrics.ranking import hr_at_k, ndcg_at_k
from recattack_gym.simulator.cache import fit_cached
from recattack_gym.simulator.candidates import draw_candidates
from recattack_gym.simulator.compilation import announce_compilation
from recattack_gym.victims import VICTIMS
from recattack_gym.victims.base import (
    BACKENDS,
    RETRAINS,
    Backend,
    ExposureEngine,
    Retrain,
    Victim,
    VictimConfig,
)
from recattack_gym.victims.ranking import CandidateLists


@dataclass(frozen=True, kw_only=True, slots=True)
class SideEffects:
    """What attacks do to everyone else: quality of full-catalogue lists against held-out items."""

    k: int
    """Length of the lists."""
    clean_hr_at_k: float
    """HR@k of the clean victim."""
    clean_ndcg_at_k: float
    """NDCG@k of the clean victim."""
    hr_at_k: NDArray[np.float64]
    """HR@k after each poison set, shape `(M,)`."""
    ndcg_at_k: NDArray[np.float64]
    """NDCG@k after each poison set, shape `(M,)`."""


class PlatformSimulator:
    """A platform under attack: inject fake clicks, retrain from the clean state, count exposure.

    Nothing that is called on a simulator changes it: every poison set starts from the same clean
    victim. Candidate lists and retraining draw from `seed`, so equal clicks give equal results (common
    random numbers); pass `rng` to `exposure` for a fresh draw.

    Args:
        dataset: A name from `DATASETS`, a `Dataset`, or a log. Of a dataset, the platform trains on
            `split.train` and keeps the held-out items for `side_effects`; a log is trained on whole.
        victim: A name from `VICTIMS`, or a subclass of `Victim`.
        targets: How many new items to append to the catalogue as targets (PoisonRec: 8), or the ids
            of existing items.
        direction: `"push"` or `"nuke"`.
        k: Length of a shown list.
        n_candidates: Length of each user's candidate list, targets included; `None` ranks the whole
            catalogue with seen items masked.
        retrain: `"finetune"` or `"full"`; see `Victim.poison`.
        victim_config: The victim's settings, or a mapping of some of them.
        seed: Fixes the clean victim, the candidate lists and retraining; in `[0, 2**63)`.
        backend: `"auto"` for compiled engines where there are, `"plain"` for the slow twins.
        device: Where torch-based victims run.
        protocol: Preprocessing preset of the dataset; see `datasets.load`.
        data_dir: Where datasets lie; see `datasets.load`.
        cache_dir: Where fitted victims are kept; see `cache.cache_folder`.

    Raises:
        ArgumentError: If an argument is wrong.
        DatasetNotFoundError: If the dataset is not on this machine and cannot be fetched.
    """

    def __init__(
        self,
        dataset: str | Dataset | Interactions = "synthetic",
        victim: str | type[Victim] = "BPR",
        *,
        targets: int | Sequence[int] = 8,
        direction: Direction = "push",
        k: int = 10,
        n_candidates: int | None = 100,
        retrain: Retrain = "finetune",
        victim_config: VictimConfig | Mapping[str, object] | None = None,
        seed: int = 0,
        backend: Backend = "auto",
        device: str = "cpu",
        protocol: str | None = None,
        data_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.k = as_count("k", k)
        self.retrain: Retrain = as_choice("retrain", retrain, RETRAINS)
        self.seed = as_count("seed", seed, at_least=0)
        self.backend: Backend = as_choice("backend", backend, BACKENDS)
        as_choice("direction", direction, DIRECTIONS)
        unfitted = victim_class(victim)(victim_config, device=device)
        announce_compilation()
        self.dataset = self._as_dataset(dataset, protocol, data_dir)
        self.log = dataset if isinstance(dataset, Interactions) else self._held_out().train
        self.target_items, n_new_items = self._as_targets(targets)
        self.goal = AttackGoal(target_items=tuple(self.target_items.tolist()), direction=direction)
        victim_seed, lists_seed, self._retrain_seed = (
            int(x)
            for x in np.random.SeedSequence(self.seed).generate_state(3, np.uint64) >> np.uint64(1)
        )
        catalogue = self.log.with_catalogue(self.log.n_items + n_new_items)
        self.item_popularity = catalogue.item_popularity
        self._n_candidates = n_candidates
        self._engines: dict[Retrain, ExposureEngine] = {}
        self._lock = Lock()
        self.lists = self._draw_lists(catalogue, lists_seed)
        self.victim = fit_cached(
            unfitted, catalogue, n_new_items=n_new_items, seed=victim_seed, cache_dir=cache_dir
        )

    # -- what the platform is --------------------------------------------------------------------

    @property
    def n_users(self) -> int:
        """Genuine users."""
        return self.log.n_users

    @property
    def n_original_items(self) -> int:
        """Size of the catalogue without new targets."""
        return self.log.n_items

    @property
    def n_items(self) -> int:
        """Size of the catalogue with new targets: original items first, then targets."""
        return len(self.item_popularity)

    @property
    def candidates(self) -> NDArray[np.int64] | None:
        """What is ranked for each user, shape `(U, C)`, targets in the last columns, or `None`.

        `None` means that the whole catalogue is ranked. Read-only.
        """
        ids = self.lists.all_ids
        if ids is not None:
            ids.flags.writeable = False
        return ids

    @property
    def max_rec_num(self) -> int:
        """The largest RecNum there can be, `n_users * min(k, n_targets)`.

        With existing targets it is an upper bound: users who own a target are never shown it.
        """
        return self.n_users * min(self.k, len(self.target_items))

    @cached_property
    def clean_exposure(self) -> NDArray[np.int64]:
        """Exposure of each target without any attack, shape `(n_targets,)`, read-only."""
        exposure = self.victim.exposure(self.lists)
        exposure.flags.writeable = False
        return exposure

    @property
    def clean_rec_num(self) -> int:
        """RecNum without any attack."""
        return int(self.clean_exposure.sum())

    # -- what an attack does ---------------------------------------------------------------------

    def exposure(
        self,
        profiles: FakeProfiles | ArrayLike,
        *,
        rng: np.random.Generator | None = None,
        retrain: Retrain | None = None,
    ) -> NDArray[np.int64]:
        """Inject poison sets, each into the clean platform, and count who is shown the targets.

        Args:
            profiles: Item ids, shape `(M, N, T)`, or `(N, T)` for one set.
            rng: If given, candidate lists and retraining are drawn afresh from it (PoisonRec's
                protocol); otherwise the platform's own, the same at every call.
            retrain: Overrides the platform's mode for this call.

        Returns:
            Genuine users with each target in their list, shape `(M, n_targets)`; fake users never
            count.

        Raises:
            ArgumentError: If shape, dtype or an item id is wrong.
        """
        batch = as_profile_batch(profiles, self.n_items)
        mode = self.retrain if retrain is None else as_choice("retrain", retrain, RETRAINS)
        if rng is None:
            with self._lock:  # engines keep working memory between calls
                return self._engine(mode).exposure(batch, self._retrain_seed)
        as_generator("rng", rng)
        lists = self._draw_lists(self.lists.log, draw_seed(rng))
        engine = self.victim.engine(lists, retrain=mode, backend=self.backend)
        return engine.exposure(batch, draw_seed(rng))

    def rec_num(
        self,
        profiles: FakeProfiles | ArrayLike,
        *,
        rng: np.random.Generator | None = None,
        retrain: Retrain | None = None,
    ) -> NDArray[np.int64]:
        """Return RecNum of each poison set, shape `(M,)`: `exposure` summed over targets.

        PoisonRec (Song et al., ICDE 2020) §III: how often target items occur in genuine users' lists.
        """
        totals: NDArray[np.int64] = self.exposure(profiles, rng=rng, retrain=retrain).sum(axis=1)
        return totals

    def side_effects(self, profiles: FakeProfiles | ArrayLike) -> SideEffects:
        """Measure how recommendation quality for genuine users changes.

        Args:
            profiles: Item ids, shape `(M, N, T)`, or `(N, T)` for one set.

        Raises:
            StateError: If the platform was made from a log, which has no held-out items.
        """
        split = self._held_out()
        users = np.flatnonzero(split.evaluable("test"))
        held_out = split.test_items[users]
        batch = as_profile_batch(profiles, self.n_items)
        shown = [
            victim.recommend(users, self.k)
            for victim in (
                self.victim,
                *(self.victim.poisoned(p, self._retrain_seed, self.retrain) for p in batch),
            )
        ]
        hr = np.array([hr_at_k(lists, held_out) for lists in shown])
        ndcg = np.array([ndcg_at_k(lists, held_out) for lists in shown])
        return SideEffects(
            k=self.k,
            clean_hr_at_k=float(hr[0]),
            clean_ndcg_at_k=float(ndcg[0]),
            hr_at_k=hr[1:],
            ndcg_at_k=ndcg[1:],
        )

    def __getstate__(self) -> dict[str, object]:
        """Leave out what is prepared for this process only: engines, and the lock that guards them."""
        return {**self.__dict__, "_engines": {}, "_lock": None}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        """Take over what `__getstate__` gave."""
        self.__dict__.update(state)
        self._lock = Lock()

    # -- parts -----------------------------------------------------------------------------------

    @staticmethod
    def _as_dataset(
        dataset: object, protocol: str | None, data_dir: str | Path | None
    ) -> Dataset | None:
        if isinstance(dataset, str):
            return load(dataset, data_dir=data_dir, protocol=protocol)
        if protocol is not None:
            raise ArgumentError(
                f"protocol goes with a dataset's name, got {protocol!r} with an object"
            )
        if isinstance(dataset, Dataset):
            return dataset
        if isinstance(dataset, Interactions):
            return None
        raise ArgumentError(
            f"dataset must be a name, a Dataset or Interactions, got {type(dataset).__name__}"
        )

    def _held_out(self) -> Split:
        if self.dataset is None:
            raise StateError(
                "side effects need held-out items: make the platform from a Dataset "
                "(recattack_gym.datasets.from_interactions(log)), not from a bare log"
            )
        return self.dataset.split

    def _as_targets(self, targets: object) -> tuple[NDArray[np.int64], int]:
        n_items = self.log.n_items
        if isinstance(targets, int | np.integer):
            n_new = as_count("targets", targets)
            if n_new > n_items:
                raise ArgumentError(f"targets must be at most {n_items} new items, got {n_new}")
            return np.arange(n_items, n_items + n_new, dtype=np.int64), n_new
        if isinstance(targets, str | bytes) or not isinstance(targets, Sequence | np.ndarray):
            raise ArgumentError(
                f"targets must be a number of new items or a sequence of item ids, got {targets!r}"
            )
        ids = as_ids("targets", targets, below=n_items, shape=(None,))
        if len(ids) == 0 or len(np.unique(ids)) != len(ids):
            raise ArgumentError(f"targets must be one or more distinct item ids, got {targets!r}")
        if len(ids) >= n_items:
            raise ArgumentError(f"targets must leave at least one other item, got all {n_items}")
        return ids, 0

    def _draw_lists(self, catalogue: Interactions, seed: int) -> CandidateLists:
        return draw_candidates(
            catalogue, self.target_items, k=self.k, n_candidates=self._n_candidates, seed=seed
        )

    def _engine(self, retrain: Retrain) -> ExposureEngine:
        if retrain not in self._engines:
            self._engines[retrain] = self.victim.engine(
                self.lists, retrain=retrain, backend=self.backend
            )
        return self._engines[retrain]


def victim_class(victim: str | type[Victim]) -> type[Victim]:
    """Return the class of a victim that is named or given.

    Raises:
        ArgumentError: If it is neither a name nor a subclass of `Victim`.
        UnknownNameError: If no victim has that name.
    """
    if isinstance(victim, type) and issubclass(victim, Victim):
        return victim
    if not isinstance(victim, str):
        raise ArgumentError(f"victim must be a name or a subclass of Victim, got {victim!r}")
    if victim not in VICTIMS:
        raise UnknownNameError("victim", victim, VICTIMS)
    return VICTIMS[victim]


def share_of_max(rec_num: float, max_rec_num: int) -> float:
    """Return RecNum as a share of the largest there can be, in `[0, 1]`."""
    return math.nan if max_rec_num == 0 else rec_num / max_rec_num
