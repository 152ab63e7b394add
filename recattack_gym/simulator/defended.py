"""The platform that screens accounts: suspicious ones are kept out of what the victim is trained on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recattack_gym.core.checks import as_choice, as_count, as_generator
from recattack_gym.core.errors import ArgumentError, UnknownNameError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.profiles import FakeProfiles, as_profile_batch
from recattack_gym.core.random import draw_seed
from recattack_gym.datasets import Dataset, Split
from recattack_gym.defenses import DETECTORS, Bagging, Screening
from recattack_gym.defenses.screening import ACTIONS
from recattack_gym.metrics.ranking import hr_at_k, ndcg_at_k
from recattack_gym.simulator.bagged import BaggedSimulator
from recattack_gym.simulator.known_users import ListsOfKnownUsers, recommend_unseen
from recattack_gym.simulator.platform import PlatformSimulator, SideEffects, victim_class
from recattack_gym.victims.base import RETRAINS, ExposureEngine, Retrain, Victim
from recattack_gym.victims.robust import TRAININGS, robust_victim

Defense = str | Bagging | Screening | Sequence[str | Bagging | Screening] | None
"""What `make_simulator` takes as `defense`."""

BAGGING = "bagging"
"""The defence that is a `Bagging()`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Screened:
    """What screening did to M poison sets of N fake users."""

    is_dropped: NDArray[np.bool_]
    """Fake users who were kept out of training, shape `(M, N)`."""
    n_genuine_flagged: NDArray[np.int64]
    """Genuine users among the flagged accounts of the poisoned log, shape `(M,)`."""

    @property
    def n_dropped(self) -> NDArray[np.int64]:
        """Fake users who were kept out, shape `(M,)`."""
        dropped: NDArray[np.int64] = self.is_dropped.sum(axis=1)
        return dropped


class DefendedSimulator(PlatformSimulator):
    """A platform that flags accounts before every training and trains without them, or without some of them.

    Whom of the flagged it keeps out is up to `Screening.action`: all, or each with a probability that falls
    with suspicion. The clean victim is trained without the genuine users who are kept out in the clean log:
    they keep their place among the users who are shown lists and whose recommendations are measured, but the
    platform does not learn from what they clicked (`genuine_dropped`, `n_genuine_clicks_lost`). That is the
    price of the defence without any attack, and part of `clean_exposure` and of the clean quality in
    `side_effects`.

    They are shown what is clicked most in what is learnt from, fake clicks that pass included, whatever the
    victim is (`known_users`). What they clicked is still known, so that it is not shown again. Who has no
    click is the victim's, flagged or not: nothing of them was kept out.

    For a poison set the detector sees the whole log with the fake accounts in it, and flags the same share
    again. Fake users are kept out of retraining by the same rule. Which *genuine* users are out stays as it
    was in the clean log, so that every attack starts from one clean victim; how many are flagged in the
    poisoned log is reported. So an attack cannot have genuine users thrown out: framing is not simulated.

    Args:
        dataset: See `PlatformSimulator`.
        victim: See `PlatformSimulator`.
        screening: Which accounts are flagged, and what then; or several, each of which keeps its own out.
        targets: See `PlatformSimulator`.
        **platform: The other arguments of `PlatformSimulator`.

    Raises:
        ArgumentError: If an argument is wrong, or no account would be left.
    """

    lists: ListsOfKnownUsers

    def __init__(
        self,
        dataset: str | Dataset | Interactions = "synthetic",
        victim: str | type[Victim] = "BPR",
        *,
        screening: Screening | Sequence[Screening],
        targets: int | Sequence[int] = 8,
        protocol: str | None = None,
        data_dir: str | Path | None = None,
        **platform: object,
    ) -> None:
        self.screening = _as_screenings(screening)
        found = self._as_dataset(dataset, protocol, data_dir)
        train = dataset if isinstance(dataset, Interactions) else cast(Dataset, found).split.train
        n_new = as_count("targets", targets) if isinstance(targets, int | np.integer) else 0
        self.unscreened_log = train.with_catalogue(train.n_items + n_new)
        self._lottery_seed = as_count("seed", platform.get("seed", 0), at_least=0)
        self.genuine_dropped = self._screened(self.unscreened_log)[1]
        self.genuine_dropped.flags.writeable = False
        left = train.select(~self.genuine_dropped[train.user_ids])
        if len(left) == 0:
            raise ArgumentError(
                f"screening must leave somebody's clicks to learn from, flagged are "
                f"{int(self.genuine_dropped.sum())} of {train.n_users} users"
            )
        self.n_genuine_clicks_lost = len(train) - len(left)
        self._split = None if found is None else replace(found.split, train=left)
        super().__init__(left if found is None else found, victim, targets=targets, **platform)  # type: ignore[arg-type]  # checked there

    @cached_property
    def clean_exposure(self) -> NDArray[np.int64]:
        """See `PlatformSimulator.clean_exposure`; in all lists, also of those who are kept out."""
        popular = self.lists.exposure_by_popularity(self.item_popularity)
        exposure: NDArray[np.int64] = self._clean_trained_exposure + popular
        exposure.flags.writeable = False
        return exposure

    @cached_property
    def _clean_trained_exposure(self) -> NDArray[np.int64]:
        """What the victim shows without any attack to those who are not kept out, shape `(n_targets,)`."""
        return self.victim.exposure(self.lists)

    def _held_out(self) -> Split:
        """Return the split whose training part is screened; what is held out is everyone's."""
        return super()._held_out() if self._split is None else self._split

    def _draw_lists(self, catalogue: Interactions, seed: int) -> ListsOfKnownUsers:
        """Draw what each user has not clicked, flagged or not; victims still learn from `catalogue` alone."""
        drawn = super()._draw_lists(self.unscreened_log, seed)
        return ListsOfKnownUsers(
            catalogue, drawn.item_ids, drawn.target_items, drawn.k, self.unscreened_log
        )

    def flags(self, log: Interactions) -> NDArray[np.bool_]:
        """Tell which accounts of a log any screening flags, shape `(n_users,)`."""
        return self._screened(log)[0]

    def _screened(self, log: Interactions) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Tell which accounts are flagged and which are kept out, by any screening; `(n_users,)` each."""
        flagged, dropped = np.zeros((2, log.n_users), dtype=np.bool_)
        for screening in self.screening:
            its_flagged, its_dropped = screening.flags_and_drops(log, self._lottery_seed)
            flagged |= its_flagged
            dropped |= its_dropped
        return flagged, dropped

    def screen(self, profiles: FakeProfiles | ArrayLike) -> Screened:
        """Inject poison sets into the clean log, each alone, flag accounts and keep some of them out.

        Args:
            profiles: Item ids, shape `(M, N, T)`, or `(N, T)` for one set.
        """
        n_users = self.n_users
        found = np.stack(
            [
                self._screened(self.unscreened_log.with_fake_users(profile))
                for profile in as_profile_batch(profiles, self.n_items)
            ]
        )
        return Screened(
            is_dropped=found[:, 1, n_users:],
            n_genuine_flagged=found[:, 0, :n_users].sum(axis=1),
        )

    def exposure(
        self,
        profiles: FakeProfiles | ArrayLike,
        *,
        rng: np.random.Generator | None = None,
        retrain: Retrain | None = None,
    ) -> NDArray[np.int64]:
        """Screen poison sets, inject what is left, and count who is shown the targets.

        See `PlatformSimulator.exposure`. A set of which nobody is left changes nothing.
        """
        return self.screened_exposure(profiles, rng=rng, retrain=retrain)[0]

    def screened_exposure(
        self,
        profiles: FakeProfiles | ArrayLike,
        *,
        rng: np.random.Generator | None = None,
        retrain: Retrain | None = None,
    ) -> tuple[NDArray[np.int64], Screened]:
        """Return `exposure` and what screening did to the poison sets."""
        batch = as_profile_batch(profiles, self.n_items)
        mode = self.retrain if retrain is None else as_choice("retrain", retrain, RETRAINS)
        if rng is not None:
            as_generator("rng", rng)
        screened = self.screen(batch)
        kept = ~screened.is_dropped
        if rng is None:
            clean = self._clean_trained_exposure
            with self._lock:  # engines keep working memory between calls
                engine = self._engine(mode)
                trained = self._expose(batch, kept, engine, clean, self._retrain_seed)
            return trained + self._exposure_by_popularity(batch, kept, self.lists), screened
        lists = self._draw_lists(self.lists.log, draw_seed(rng))
        engine = self.victim.engine(lists, retrain=mode, backend=self.backend)
        is_empty = not kept.any(axis=1).all()
        clean = self.victim.exposure(lists) if is_empty else self._clean_trained_exposure
        trained = self._expose(batch, kept, engine, clean, draw_seed(rng))
        return trained + self._exposure_by_popularity(batch, kept, lists), screened

    @staticmethod
    def _expose(
        batch: NDArray[np.int64],
        kept: NDArray[np.bool_],
        engine: ExposureEngine,
        clean: NDArray[np.int64],
        seed: int,
    ) -> NDArray[np.int64]:
        """Return what the victim shows to those who are not kept out, shape `(M, n_targets)`."""
        exposure = np.empty((len(batch), len(clean)), dtype=np.int64)
        for sets, left in _by_size(batch, kept):
            exposure[sets] = clean if left is None else engine.exposure(left, seed)
        return exposure

    def _exposure_by_popularity(
        self, batch: NDArray[np.int64], kept: NDArray[np.bool_], lists: ListsOfKnownUsers
    ) -> NDArray[np.int64]:
        """Return what those who are kept out are shown, shape `(M, n_targets)`."""
        return np.stack(
            [
                lists.exposure_by_popularity(
                    self.item_popularity
                    + np.bincount(profile[passes].ravel(), minlength=self.n_items)
                )
                for profile, passes in zip(batch, kept, strict=True)
            ]
        )

    def side_effects(self, profiles: FakeProfiles | ArrayLike) -> SideEffects:
        """Measure how recommendation quality for genuine users changes; see `PlatformSimulator`.

        The users that screening drops from training are measured, too, by what is most popular.
        """
        split = self._held_out()
        batch = as_profile_batch(profiles, self.n_items)
        kept = ~self.screen(batch).is_dropped
        users = np.flatnonzero(split.evaluable("test"))
        held_out = split.test_items[users]

        def quality(victim: Victim) -> tuple[float, float]:
            shown = recommend_unseen(victim, users, self.unscreened_log, self.k)
            return float(hr_at_k(shown, held_out)), float(ndcg_at_k(shown, held_out))

        clean_hr, clean_ndcg = quality(self.victim)
        hr, ndcg = np.full(len(batch), clean_hr), np.full(len(batch), clean_ndcg)
        for m in np.flatnonzero(kept.any(axis=1)):
            left = batch[m][kept[m]]
            hr[m], ndcg[m] = quality(self.victim.poisoned(left, self._retrain_seed, self.retrain))
        return SideEffects(
            k=self.k,
            clean_hr_at_k=clean_hr,
            clean_ndcg_at_k=clean_ndcg,
            hr_at_k=hr,
            ndcg_at_k=ndcg,
        )


def _by_size(
    batch: NDArray[np.int64], kept: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64] | None]]:
    """Group poison sets by how many fake users are left; yield places, and profiles or `None` for nobody.

    Args:
        batch: Shape `(M, N, T)`.
        kept: Shape `(M, N)`.
    """
    n_left = kept.sum(axis=1)
    for n in np.unique(n_left):
        sets = np.flatnonzero(n_left == n)
        left = batch[sets][kept[sets]].reshape(len(sets), n, batch.shape[2])
        yield sets, left if n else None


def _as_screenings(screening: object) -> tuple[Screening, ...]:
    several = (screening,) if isinstance(screening, Screening) else screening
    if not isinstance(several, Sequence) or isinstance(several, str) or not several:
        raise ArgumentError(f"screening must be one Screening or several, got {screening!r}")
    for one in several:
        if not isinstance(one, Screening):
            raise ArgumentError(f"screening must hold Screening objects, got {one!r}")
    return tuple(several)


def named_screening(name: str) -> Screening:
    """Return what a name stands for as `defense`.

    Args:
        name: A key of `DETECTORS`, for keeping the most suspicious 1 % of accounts out; with `:weight` after
            it for weights from 0 to 1 over the most suspicious 2 %, which costs as many genuine users.

    Raises:
        UnknownNameError: If there is no such detector, or no such action.
        ArgumentError: If the detector learns from examples.
    """
    detector, colon, action = name.partition(":")
    if detector not in DETECTORS:
        raise UnknownNameError("defense", name, (*DETECTORS, *TRAININGS, BAGGING))
    if colon and action not in ACTIONS:
        raise UnknownNameError(f"action of defense {detector!r}", action, ACTIONS)
    kind = DETECTORS[detector]
    if kind.is_supervised:
        raise ArgumentError(
            f"defense {detector!r} learns from fake users that are known: give "
            f"Screening(detector) with a fitted {kind.__name__}"
        )
    if action == "weight":
        return Screening(kind(), 0.02, "weight")
    return Screening(kind())


def make_simulator(arguments: Mapping[str, object]) -> PlatformSimulator:
    """Return a platform, a defended one if `defense` says so.

    Args:
        arguments: Keyword arguments of `PlatformSimulator`, and `defense`: `None`; a name from
            `DETECTORS`, alone or with `:drop` or `:weight` after it (`named_screening`); robust training by
            name (`victims.robust`), where there is some for the victim; a `Screening`, for another share or a
            fitted detector; or a sequence of such. Or, alone, `"bagging"`, or a `Bagging` for another number
            of models.

    Raises:
        ArgumentError: If an argument is wrong, or there is something beside bagging.
        UnknownNameError: If no defence has that name.
    """
    rest = {name: value for name, value in arguments.items() if name != "defense"}
    defense = arguments.get("defense")
    if defense is None:
        return PlatformSimulator(**rest)  # type: ignore[arg-type]  # checked by the constructor
    several = defense if isinstance(defense, list | tuple) else (defense,)
    if BAGGING in several or any(isinstance(one, Bagging) for one in several):
        if len(several) > 1:
            raise ArgumentError(
                "defense must have nothing beside bagging, whose guarantee is that an account reaches one "
                f"model only, got {defense!r}"
            )
        bagging = several[0] if isinstance(several[0], Bagging) else Bagging()
        return BaggedSimulator(bagging=bagging, **rest)  # type: ignore[arg-type]  # checked there
    screenings: list[Screening] = []
    for one in several:
        if isinstance(one, str) and one in TRAININGS:
            rest["victim"] = robust_victim(
                one, victim_class(cast(str, rest.get("victim", "BPR"))).name
            )
        elif isinstance(one, str):
            screenings.append(named_screening(one))
        elif isinstance(one, Screening):
            screenings.append(one)
        else:
            raise ArgumentError(
                f"defense must be a name, a Screening, several of these, or None, got {one!r}"
            )
    if not screenings:
        return PlatformSimulator(**rest)  # type: ignore[arg-type]  # as above
    return DefendedSimulator(screening=screenings, **rest)  # type: ignore[arg-type]  # as above
