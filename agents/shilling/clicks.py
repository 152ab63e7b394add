"""Shilling attacks in clicks: sets of items in random order, every target in every profile, nothing twice.

Without ratings "random", "average" and "love/hate" are one attack, `shilling-random`: uniform filler items.
All of them push: what demotes a target is a low rating, and there is none.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from agents.base import Attacker, AttackerConfig
from agents.shilling.compositions import most_alike, most_popular, popular_share
from recattack_gym.core import Knowledge
from recattack_gym.core.checks import as_real
from recattack_gym.core.view import AttackerView

Items = NDArray[np.int64]

NO_NUKE = (
    "shilling attacks that demote rate the targets low, and a click cannot; with ratings there is "
    "agents.shilling.rating_profiles"
)


class _SetAttacker(Attacker):
    """Puts the targets and some other items, each once, into every profile."""

    why_not = NO_NUKE

    @final
    def _plan(self, view: AttackerView, rng: np.random.Generator) -> NDArray[np.int64]:
        budget = view.budget
        targets = np.array(view.goal.target_items, dtype=np.int64)
        others = np.setdiff1d(np.arange(view.n_items), targets)
        n_others = max(0, budget.profile_size - len(targets))
        rows = []
        for fake, chosen in enumerate(self._choose(view, others, n_others, rng)):
            own = targets
            if len(targets) > budget.profile_size:  # fake users take turns
                places = fake * budget.profile_size + np.arange(budget.profile_size)
                own = targets[places % len(targets)]
            # A catalogue with fewer items than a profile has clicks: the profile begins again
            row = np.resize(np.concatenate([own, chosen[:n_others]]), budget.profile_size)
            rows.append(rng.permutation(row))
        return np.stack(rows)

    @abstractmethod
    def _choose(
        self, view: AttackerView, others: Items, n: int, rng: np.random.Generator
    ) -> list[Items]:
        """Return items without targets for each fake user: distinct, `n` or as many as there are."""


def _filled(selected: Items, pool: Items, n: int, rng: np.random.Generator) -> Items:
    """Return the selected items and uniform ones from a pool that fill up to `n`, then more of any."""
    chosen = selected[:n]
    rest = np.setdiff1d(pool, chosen)
    return np.concatenate([chosen, rng.permutation(rest)[: n - len(chosen)]])


class ShillingRandom(_SetAttacker):
    """Fill up with uniform items: what is left of the random and the average attack without ratings.

    Lam and Riedl, "Shilling recommender systems for fun and profit", WWW 2004.

    Differs from the paper: clicks instead of ratings.
    """

    name = "shilling-random"

    def _choose(
        self, view: AttackerView, others: Items, n: int, rng: np.random.Generator
    ) -> list[Items]:
        return [rng.permutation(others)[:n] for _ in range(view.budget.n_fake_users)]


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedConfig(AttackerConfig):
    """Settings of attacks with selected items."""

    selected_rate: float = 0.5
    """Share of the clicks beside the targets that are on selected items; half, as in SAShA's code."""

    def __post_init__(self) -> None:
        as_real("selected_rate", self.selected_rate, at_least=0.0, at_most=1.0)


class ShillingBandwagon(_SetAttacker):
    """Click the most popular items, the same for all fake users, and fill up with uniform ones.

    Mobasher, Burke, Bhaumik and Williams, "Toward trustworthy recommender systems", ACM TOIT 7(4), 2007.

    Differs from the paper: clicks instead of ratings; a share of the profile is selected, not 1 to 3 items.
    """

    name = "shilling-bandwagon"
    config: SelectedConfig
    config_class = SelectedConfig

    def _choose(
        self, view: AttackerView, others: Items, n: int, rng: np.random.Generator
    ) -> list[Items]:
        n_selected = int(self.config.selected_rate * n)
        popular = most_popular(view.item_popularity, others)[:n_selected]
        return [_filled(popular, others, n, rng) for _ in range(view.budget.n_fake_users)]


class ShillingPopular(_SetAttacker):
    """Click the most popular items and nothing else beside the targets.

    Mobasher et al., ACM TOIT 2007 (popular attack).

    Differs from the paper: clicks instead of ratings, so all fake users click the same items.
    """

    name = "shilling-popular"

    def _choose(
        self, view: AttackerView, others: Items, n: int, rng: np.random.Generator
    ) -> list[Items]:
        del rng
        return [most_popular(view.item_popularity, others)[:n]] * view.budget.n_fake_users


class ShillingSegment(_SetAttacker):
    """Click what the targets' audience clicks, and fill up with uniform items; needs the log.

    Mobasher et al., ACM TOIT 2007 (segment attack). The segment is the items with the largest cosines to the
    targets, by who clicked both; of targets that nobody has clicked, to the most popular item.

    Differs from the paper: clicks instead of ratings; the segment is computed, not chosen by genre.
    """

    name = "shilling-segment"
    knowledge = Knowledge.GRAY_BOX
    config: SelectedConfig
    config_class = SelectedConfig

    def _choose(
        self, view: AttackerView, others: Items, n: int, rng: np.random.Generator
    ) -> list[Items]:
        log = view.log.with_catalogue(view.n_items)
        seeds = np.array(view.goal.target_items, dtype=np.int64)
        if not log.item_popularity[seeds].any():
            seeds = most_popular(log.item_popularity, others)[:1]
        n_selected = int(self.config.selected_rate * n)
        segment = most_alike(log, seeds, others)[:n_selected] if len(seeds) else others[:0]
        return [_filled(segment, others, n, rng) for _ in range(view.budget.n_fake_users)]


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageOverPopularConfig(AttackerConfig):
    """Settings of `ShillingAverageOverPopular`."""

    popular_rate: float = 0.4
    """Share of the other items, the most clicked ones, to fill up from; 0.2 to 0.6 in the paper."""

    def __post_init__(self) -> None:
        as_real("popular_rate", self.popular_rate, above=0.0, at_most=1.0)


class ShillingAverageOverPopular(_SetAttacker):
    """Fill up with uniform items of the popular part of the catalogue, to look like genuine users.

    Hurley, Cheng and Zhang, "Statistical attack detection", RecSys 2009 (AoP).

    Differs from the paper: clicks instead of ratings; if the part is too small, other items fill up.
    """

    name = "shilling-aop"
    config: AverageOverPopularConfig
    config_class = AverageOverPopularConfig

    def _choose(
        self, view: AttackerView, others: Items, n: int, rng: np.random.Generator
    ) -> list[Items]:
        if not len(others):
            return [others] * view.budget.n_fake_users
        part = popular_share(view.item_popularity, others, self.config.popular_rate)
        rows = []
        for _ in range(view.budget.n_fake_users):
            chosen = rng.permutation(part)[:n]
            rows.append(_filled(chosen, others, n, rng))
        return rows


class ShillingCopy(_SetAttacker):
    """Click what a genuine user clicked, drawn anew for each fake user; needs the log.

    The perfect-knowledge attack of the literature: no statistic of single profiles can tell the copy.

    Differs from the paper: a profile is cut to, or filled up with popular items to, the budget.
    """

    name = "shilling-copy"
    knowledge = Knowledge.GRAY_BOX

    def _choose(
        self, view: AttackerView, others: Items, n: int, rng: np.random.Generator
    ) -> list[Items]:
        log = view.log.with_catalogue(view.n_items)
        indptr, items = log.seen
        lengths = np.diff(indptr)
        able = np.flatnonzero(lengths >= min(n, int(lengths.max(initial=0))))
        popular = most_popular(log.item_popularity, others)
        rows = []
        for _ in range(view.budget.n_fake_users):
            user = rng.choice(able)
            own = items[indptr[user] : indptr[user + 1]].astype(np.int64)
            own = rng.permutation(own[np.isin(own, others)])[:n]
            more = popular[~np.isin(popular, own)][: n - len(own)]
            rows.append(np.concatenate([own, more]))
        return rows
