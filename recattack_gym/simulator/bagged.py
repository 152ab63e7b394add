"""The platform on which many models vote, each taught by a few of the accounts; with a guarantee."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recattack_gym.core.checks import as_choice, as_count, as_generator
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.profiles import FakeProfiles, as_profile_batch
from recattack_gym.core.random import draw_seed
from recattack_gym.defenses.votes import (
    Bagging,
    count_votes,
    elected,
    largest_barred,
    largest_borne,
)
from recattack_gym.metrics.ranking import hr_at_k, ndcg_at_k
from recattack_gym.simulator.cache import fit_cached
from recattack_gym.simulator.platform import PlatformSimulator, SideEffects, victim_class
from recattack_gym.victims.base import RETRAINS, Retrain, Victim
from recattack_gym.victims.ranking import CandidateLists, count_exposure, top_k
from recattack_gym.victims.serving import check_reads_clicks, serving

_CELLS = 2_000_000
"""Votes that are counted at once, so that memory does not grow with the users."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What e fake accounts cannot change, whatever they click: nothing was attacked to know it."""

    k: int
    """Length of a list."""
    borne: NDArray[np.int64]
    """For each place of each user's list, how many fake accounts its item is sure to stay in the list under;
    -1 if there is no item, or it would lose a tie already. Shape `(U, k)`."""
    barred: NDArray[np.int64]
    """How many fake accounts each target is sure to stay out of each user's list under; -1 if it is in there
    or tied. Shape `(U, n_targets)`."""

    def overlap(self, n_fake_users: int) -> float:
        """Return the certified share of the lists: the mean part of a list that is sure to stay in it.

        Raises:
            ArgumentError: If the number is no whole number >= 0.
        """
        return float((self.borne >= as_count("n_fake_users", n_fake_users, at_least=0)).mean())

    def rec_num_bound(self, n_fake_users: int) -> int:
        """Return the largest RecNum that this many fake accounts can reach.

        Raises:
            ArgumentError: If the number is no whole number >= 0.
        """
        may_enter = (self.barred < as_count("n_fake_users", n_fake_users, at_least=0)).sum(axis=1)
        return int(np.minimum(may_enter, self.k).sum())


class BaggedSimulator(PlatformSimulator):
    """A platform whose accounts are dealt out to several models, which vote on what is shown.

    A hash deals every account, genuine or fake, to one model, which is trained on its accounts and ranks the
    candidates of *every* user by what the user has clicked. Each model votes for its first k, and a user is
    shown the k items with most votes (`defenses.votes`). e fake accounts teach at most e models, so that
    `certificate` bounds what they can do, however they click and whatever the victim is.

    `victim` is the plain one, trained on everybody: its name and its settings are those of the models, but
    nobody is shown its lists. Only models that were dealt a fake account are retrained, from their clean
    state; there is no compiled engine.

    Args:
        dataset: See `PlatformSimulator`.
        victim: One that reads what a user clicked when it recommends; see `victims.serving.READS_CLICKS`.
        bagging: How many models there are.
        **platform: The other arguments of `PlatformSimulator`.

    Raises:
        ArgumentError: If an argument is wrong, or a model has nobody to learn from.
        UnknownNameError: If the victim cannot recommend to users whom it was not trained on.
    """

    def __init__(
        self,
        dataset: object = "synthetic",
        victim: str | type[Victim] = "ItemKNN",
        *,
        bagging: Bagging,
        **platform: object,
    ) -> None:
        if not isinstance(bagging, Bagging):
            raise ArgumentError(f"bagging must be a Bagging, got {bagging!r}")
        check_reads_clicks(victim_class(victim).name)
        super().__init__(dataset, victim, **platform)  # type: ignore[arg-type]  # checked there
        self.bagging = bagging
        catalogue = self.lists.log
        teaches = bagging.models_of(np.arange(catalogue.n_users), self.seed)
        has_clicks = np.diff(catalogue.indptr) > 0
        sizes = np.bincount(teaches[has_clicks], minlength=bagging.n_models)
        if sizes.min() == 0:
            raise ArgumentError(
                f"n_models must leave every model somebody to learn from, got {bagging.n_models} for "
                f"{int(has_clicks.sum())} users with clicks: model {int(sizes.argmin())} has none"
            )
        seeds = np.random.SeedSequence((self.seed, bagging.n_models))
        self.models: list[Victim] = []
        """The clean models, each on the log of its own accounts, renumbered from 0."""
        for model, seed in enumerate(
            seeds.generate_state(bagging.n_models, np.uint64) >> np.uint64(1)
        ):
            unfitted = type(self.victim)(self.victim.config, device=self.victim.device)
            self.models.append(
                fit_cached(
                    unfitted,
                    _of_users(catalogue, teaches == model),
                    n_new_items=self.victim.n_new_items,
                    seed=int(seed),
                    cache_dir=cast(str | Path | None, platform.get("cache_dir")),
                )
            )

    # -- what is shown ---------------------------------------------------------------------------

    def _lists_of(self, model: Victim, lists: CandidateLists) -> NDArray[np.int64]:
        """Return what one model votes for, shape `(U, k)`."""
        serves = serving(model, self.lists.log)
        shown = np.empty((lists.n_users, lists.k), dtype=np.int64)
        for users in self._blocks(lists):
            items, allowed = lists.block(users)
            shown[users] = top_k(serves.score(users, items), items, allowed, lists.k)
        return shown

    def _elected(
        self, votes: NDArray[np.int64], lists: CandidateLists, users: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return what users `(B,)` are shown after the models' votes `(K, U, k)`; shape `(B, k)`."""
        shown = np.empty((len(users), lists.k), dtype=np.int64)
        step = max(1, _CELLS // self.n_items)
        for start in range(0, len(users), step):
            some = users[start : start + step]
            shown[start : start + step] = elected(votes[:, some], *lists.block(some), self.n_items)
        return shown

    def _blocks(self, lists: CandidateLists) -> Iterator[NDArray[np.int64]]:
        width = self.n_items if lists.all_ids is None else lists.all_ids.shape[1]
        step = max(1, _CELLS // width)
        for start in range(0, lists.n_users, step):
            yield np.arange(start, min(start + step, lists.n_users))

    @cached_property
    def _votes(self) -> NDArray[np.int64]:
        """The clean models' lists on the platform's candidates, shape `(K, U, k)`."""
        return self._votes_on(self.lists)

    def _votes_on(self, lists: CandidateLists) -> NDArray[np.int64]:
        return np.stack([self._lists_of(model, lists) for model in self.models])

    @cached_property
    def shown(self) -> NDArray[np.int64]:
        """What every genuine user is shown without any attack, shape `(U, k)`, read-only."""
        shown = self._elected(self._votes, self.lists, np.arange(self.n_users))
        shown.flags.writeable = False
        return shown

    @cached_property
    def clean_exposure(self) -> NDArray[np.int64]:
        """Exposure of each target without any attack, shape `(n_targets,)`, read-only."""
        exposure = count_exposure(self.shown, self.target_items)
        exposure.flags.writeable = False
        return exposure

    # -- what an attack does ---------------------------------------------------------------------

    def poisoned_models(
        self, profile: NDArray[np.int64], seed: int, retrain: Retrain
    ) -> dict[int, Victim]:
        """Return the models that fake users, shape `(N, T)`, teach, retrained; by number."""
        accounts = self.n_users + np.arange(len(profile))
        teaches = self.bagging.models_of(accounts, self.seed)
        return {
            model: self.models[model].poisoned(profile[teaches == model], seed, retrain)
            for model in np.unique(teaches).tolist()
        }

    def _shown_after(
        self,
        poisoned: dict[int, Victim],
        votes: NDArray[np.int64],
        shown: NDArray[np.int64],
        lists: CandidateLists,
    ) -> NDArray[np.int64]:
        """Return what users are shown when some models are replaced; shape `(U, k)`."""
        after, moved = votes.copy(), np.zeros(len(shown), dtype=np.bool_)
        for number, model in poisoned.items():
            after[number] = self._lists_of(model, lists)
            moved |= (after[number] != votes[number]).any(axis=1)
        result = shown.copy()
        users = np.flatnonzero(moved)
        result[users] = self._elected(after, lists, users)
        return result

    def shown_after(self, profile: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what genuine users are shown after one attack, shape `(U, k)`.

        Args:
            profile: Item ids, shape `(N, T)`.
        """
        (checked,) = as_profile_batch(profile, self.n_items)
        poisoned = self.poisoned_models(checked, self._retrain_seed, self.retrain)
        return self._shown_after(poisoned, self._votes, self.shown, self.lists)

    @cached_property
    def _catalogue(self) -> tuple[CandidateLists, NDArray[np.int64], NDArray[np.int64]]:
        """Lists of the whole catalogue, the clean models' votes `(K, U, k)` on them, and who is elected."""
        lists = CandidateLists(self.lists.log, None, self.target_items.copy(), self.k)
        votes = self._votes_on(lists)
        return lists, votes, self._elected(votes, lists, np.arange(self.n_users))

    def best_of_catalogue(self, profile: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return the elected of the whole catalogue for every genuine user, shape `(U, k)`.

        Args:
            profile: What is injected, item ids of shape `(N, T)`; nothing if `None`.
        """
        lists, votes, shown = self._catalogue
        if profile is None:
            return shown
        poisoned = self.poisoned_models(profile, self._retrain_seed, self.retrain)
        return self._shown_after(poisoned, votes, shown, lists)

    def exposure(
        self,
        profiles: FakeProfiles | ArrayLike,
        *,
        rng: np.random.Generator | None = None,
        retrain: Retrain | None = None,
    ) -> NDArray[np.int64]:
        """Inject poison sets, retrain the models they reach, vote, and count; see `PlatformSimulator`."""
        batch = as_profile_batch(profiles, self.n_items)
        mode = self.retrain if retrain is None else as_choice("retrain", retrain, RETRAINS)
        if rng is None:
            lists, votes, shown, seed = self.lists, self._votes, self.shown, self._retrain_seed
        else:
            as_generator("rng", rng)
            lists = self._draw_lists(self.lists.log, draw_seed(rng))
            votes, seed = self._votes_on(lists), draw_seed(rng)
            shown = self._elected(votes, lists, np.arange(self.n_users))
        return np.stack(
            [
                count_exposure(
                    self._shown_after(
                        self.poisoned_models(profile, seed, mode), votes, shown, lists
                    ),
                    self.target_items,
                )
                for profile in batch
            ]
        )

    def side_effects(self, profiles: FakeProfiles | ArrayLike) -> SideEffects:
        """Measure how recommendation quality for genuine users changes; see `PlatformSimulator`."""
        split = self._held_out()
        users = np.flatnonzero(split.evaluable("test"))
        batch = as_profile_batch(profiles, self.n_items)
        after = [self.best_of_catalogue(profile)[users] for profile in batch]
        return self.quality(self.best_of_catalogue()[users], after, split.test_items[users])

    def quality(
        self,
        clean: NDArray[np.int64],
        after: Sequence[NDArray[np.int64]],
        held_out: NDArray[np.int64],
    ) -> SideEffects:
        """Compare lists with and without attacks.

        Args:
            clean: Without, shape `(U, k)`.
            after: After each of M attacks, same shape.
            held_out: The item that each of these users is known to have wanted, shape `(U,)`.
        """
        return SideEffects(
            k=self.k,
            clean_hr_at_k=float(hr_at_k(clean, held_out)),
            clean_ndcg_at_k=float(ndcg_at_k(clean, held_out)),
            hr_at_k=np.array([hr_at_k(shown, held_out) for shown in after]),
            ndcg_at_k=np.array([ndcg_at_k(shown, held_out) for shown in after]),
        )

    def certificate(self) -> Certificate:
        """Return what fake accounts cannot change on this platform's lists."""
        n_users, k = self.n_users, self.k
        borne = np.empty((n_users, k), dtype=np.int64)
        barred = np.empty((n_users, len(self.target_items)), dtype=np.int64)
        for users in self._blocks(self.lists):
            items, allowed = self.lists.block(users)
            votes = count_votes(self._votes[:, users], items, self.n_items)
            for listed, per_item, filler in (
                (self.shown[users], largest_borne(votes, allowed, k), -1),
                (
                    np.broadcast_to(self.target_items, (len(users), barred.shape[1])),
                    largest_barred(votes, allowed, k),
                    np.iinfo(np.int64).max,
                ),
            ):
                dense = np.full((len(users), self.n_items + 1), filler, dtype=np.int64)
                np.put_along_axis(dense, items, per_item, axis=1)
                found = np.take_along_axis(dense, listed, axis=1)  # -1 is the last column
                (borne if filler == -1 else barred)[users] = found
        return Certificate(k=k, borne=borne, barred=barred)


def _of_users(log: Interactions, wanted: NDArray[np.bool_]) -> Interactions:
    """Return the log of some users `(n_users,)`, renumbered from 0, those without clicks included."""
    number = np.cumsum(wanted) - 1
    part = log.select(wanted[log.user_ids])
    return Interactions(
        number[part.user_ids],
        part.item_ids,
        int(wanted.sum()),
        log.n_items,
        timestamps=part.timestamps,
        ratings=part.ratings,
    )
