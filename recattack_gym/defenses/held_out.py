"""A supervised detector that a platform retrains: it learns from several logs, and judges nobody in-sample.

`SupervisedDetector.fit` learns from one log. A platform that collects the fake users of past attacks has
many: each attack stood in a log of its own, and how popular an item is, which is what detectors of clicks
look at, depends on how many fake users were in that log. Put into one log, fifty attacks on the same targets
would make these look fifty times as popular as they will be in the next one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_generator
from recattack_gym.core.errors import ArgumentError, StateError, UnknownNameError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import draw_seed, mix
from recattack_gym.defenses.base import Detector, DetectorConfig, State, _only
from recattack_gym.defenses.degree_sad import DegreeSADConfig, PopSADConfig
from recattack_gym.defenses.features import pop_sad_edges, popularity, popularity_histogram, tmf
from recattack_gym.defenses.pairs import UserItems
from recattack_gym.defenses.svm import SVMConfig, click_features, decide, train
from recattack_gym.defenses.tree import grow_tree, tree_shares

N_FOLDS = 2
"""Parts of the accounts; each is judged by what was learnt from the genuine users of the others."""


class RowLearner(Protocol):
    """The parts of a supervised detector that looks at each account as a row of numbers."""

    def rows(self, log: Interactions) -> NDArray[np.float64]:
        """Return a row for every account of a log, shape `(n_users, n_features)`."""
        ...

    def learn(
        self, rows: NDArray[np.float64], is_fake: NDArray[np.bool_], rng: np.random.Generator
    ) -> State:
        """Learn from rows `(n, n_features)` of accounts that are fake or not `(n,)`."""
        ...

    def decide(self, state: State, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how suspicious each row is, shape `(n,)`."""
        ...


class _InATree:
    """What is learnt and decided by a tree; `rows` of a subclass says of what."""

    config: DegreeSADConfig | PopSADConfig
    detector: str
    """Name of the detector, for errors."""

    def learn(
        self, rows: NDArray[np.float64], is_fake: NDArray[np.bool_], rng: np.random.Generator
    ) -> State:
        return grow_tree(
            rows, is_fake, min_leaf=self.config.min_leaf,
            seed=draw_seed(rng) % 2**32, detector=self.detector,
        )  # fmt: skip

    def decide(self, state: State, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return tree_shares(state, rows)


class _Degrees(_InATree):
    """`DegreeSAD`: mean, range and lower quartile of item popularity, in a tree."""

    detector = "degree-sad"

    def __init__(self, genuine: Interactions, config: DegreeSADConfig) -> None:
        del genuine  # nothing depends on it
        self.config = config

    def rows(self, log: Interactions) -> NDArray[np.float64]:
        pairs = UserItems.of(log)
        kinds = [popularity(pairs, kind) for kind in ("mean", "range", "quartile")]
        return np.stack(kinds, axis=1) / log.n_users


class _Histograms(_InATree):
    """`PopSAD`: the histogram of item popularity, in a tree; bins are those of the genuine log."""

    detector = "pop-sad"

    def __init__(self, genuine: Interactions, config: PopSADConfig) -> None:
        self.config = config
        pairs = UserItems.of(genuine)
        means = popularity(pairs)[pairs.lengths > 0]
        largest = float(pairs.n_raters.max())
        width = max(float(means.min()), largest / config.max_bins)
        self._edges = pop_sad_edges(width, largest) / genuine.n_users

    def rows(self, log: Interactions) -> NDArray[np.float64]:
        return popularity_histogram(UserItems.of(log), self._edges * log.n_users)


class _Clicks:
    """`ClickSVM`: features that need no rating, in a support vector machine."""

    def __init__(self, genuine: Interactions, config: SVMConfig) -> None:
        del genuine  # as above
        self.config = config

    def rows(self, log: Interactions) -> NDArray[np.float64]:
        return click_features(log)

    def learn(
        self, rows: NDArray[np.float64], is_fake: NDArray[np.bool_], rng: np.random.Generator
    ) -> State:
        return train(rows, is_fake, self.config, rng, "svm-clicks")

    def decide(self, state: State, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return decide(state, rows)


RARE = 0.005
"""An item is rare if at most that share of all users has it; `quick_features`."""


def quick_features(log: Interactions) -> NDArray[np.float64]:
    """Return what tells clicks of fake users without comparing users; shape `(n_users, 6)`.

    Logarithm of the number of distinct items; mean and standard deviation of the logarithm of item popularity
    (in shares of users); share of rare items; TMF; share of repeated clicks.
    """
    pairs = UserItems.of(log)
    share = pairs.popularity / log.n_users
    level = np.log(share)
    mean = pairs.user_means(level)
    spread = np.sqrt(np.maximum(pairs.user_means(level**2) - mean**2, 0.0))
    lengths, n_events = np.maximum(pairs.lengths, 1), np.maximum(np.diff(log.indptr), 1)
    columns = [
        np.log(lengths),
        mean,
        spread,
        pairs.user_means((share <= RARE).astype(np.float64)),
        tmf(pairs, "push"),
        1.0 - pairs.lengths / n_events,
    ]
    return np.stack(columns, axis=1)


class _Quick(_Clicks):
    """`ClickSVM` with `quick_features`: a log is read in milliseconds, and every poison set can be judged."""

    def rows(self, log: Interactions) -> NDArray[np.float64]:
        return quick_features(log)


RETRAINABLE: Mapping[
    str, tuple[type[DetectorConfig], Callable[[Interactions, DetectorConfig], RowLearner]]
] = MappingProxyType(
    {
        "svm-quick": (SVMConfig, _Quick),  # type: ignore[dict-item]  # each with its own config
        "pop-sad": (PopSADConfig, _Histograms),  # type: ignore[dict-item]  # as above
        "degree-sad": (DegreeSADConfig, _Degrees),  # type: ignore[dict-item]  # as above
        "svm-clicks": (SVMConfig, _Clicks),  # type: ignore[dict-item]  # as above
    }
)
"""Detectors that can learn from several logs of clicks, with their settings and their parts.

All but `"svm-quick"` are keys of `DETECTORS`. That one is `"svm-clicks"` without the neighbours of each user,
which take most of a second on a log like Steam.
"""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Fake users as they stood in one log.

    Args:
        profiles: Item ids of all fake users of that log, shape `(n, T)`.
        is_known: Which of them the platform has found, shape `(n,)`.
    """

    profiles: NDArray[np.int64]
    is_known: NDArray[np.bool_]


class HeldOutDetector(Detector):
    """Suspect accounts that look like fake users of past attacks; no account is judged by itself.

    Accounts are in two parts, by a hash of what they clicked. One machine learns from the genuine users of
    the first part and judges the second, another the other way round; both learn from all fake users that
    are given. A score is the share of its own part that an account is more suspicious than (ties count
    half), since decision values of two machines are not on one scale.

    Each fake user is looked at in the genuine log with the other fake users of its attack in it, as the
    platform saw it, and never beside those of other attacks.

    Args:
        kind: A key of `RETRAINABLE`.
        settings: Of that detector.

    Raises:
        UnknownNameError: If the kind or a setting is unknown.
        ArgumentError: If a setting is out of range.
    """

    name = "held-out"

    def __init__(
        self, kind: str = "svm-quick", settings: Mapping[str, object] | None = None
    ) -> None:
        if kind not in RETRAINABLE:
            raise UnknownNameError("detector that can be retrained", kind, tuple(RETRAINABLE))
        super().__init__()
        self.kind = kind
        config_class, self._parts = RETRAINABLE[kind]
        known = config_class.__dataclass_fields__
        for setting in settings or {}:
            if setting not in known:
                raise UnknownNameError(f"setting of {kind}", setting, tuple(known))
        self.settings = config_class(**dict(settings or {}))
        self._is_fitted = False

    def learn(
        self, genuine: Interactions, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Self:
        """Learn from scratch.

        Args:
            genuine: Events of all genuine users; those without events teach nothing.
            snapshots: Fake users, by the log that they stood in; at least one of them known. Unknown ones
                make their log what it was, and teach nothing.
            rng: Source of all randomness.

        Returns:
            The detector itself.

        Raises:
            ArgumentError: If nobody is known to be fake, or a part has no genuine user.
        """
        as_generator("rng", rng)
        self._check_log(genuine)
        if not any(bool(each.is_known.any()) for each in snapshots):
            raise ArgumentError("snapshots must have at least one known fake user, got none")
        # as `scores` does: shares of users are of those with events, in learning and in judging
        genuine = _only(genuine, np.diff(genuine.indptr) > 0)
        folds = fold_of(genuine)
        if np.bincount(folds, minlength=N_FOLDS).min() == 0:
            raise ArgumentError(
                f"genuine must have users with events in all {N_FOLDS} parts, "
                f"got {genuine.n_users} of them"
            )
        self._learner = self._parts(genuine, self.settings)
        own = self._learner.rows(genuine)
        fake = np.concatenate([self._fake_rows(genuine, each) for each in snapshots])
        self._machines = []
        for fold in range(N_FOLDS):
            others = own[folds != fold]
            rows = np.concatenate([others, fake])
            self._machines.append(
                self._learner.learn(rows, np.arange(len(rows)) >= len(others), rng)
            )
        self._is_fitted = True
        return self

    def _fake_rows(self, genuine: Interactions, snapshot: Snapshot) -> NDArray[np.float64]:
        """Return the rows of the known fake users of one log."""
        rows = self._learner.rows(genuine.with_fake_users(snapshot.profiles))
        found: NDArray[np.float64] = rows[genuine.n_users :][snapshot.is_known]
        return found

    def _state(self) -> State:
        raise StateError("detector 'held-out' is made anew from what is known: it cannot be saved")

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        rows, folds = self._learner.rows(log), fold_of(log)
        scores = np.zeros(log.n_users)
        for fold, machine in enumerate(self._machines):
            own = folds == fold
            scores[own] = shares_below(self._learner.decide(machine, rows[own]))
        return scores


def fold_of(log: Interactions) -> NDArray[np.int64]:
    """Return the part that each account is in, shape `(n_users,)`: a hash of its clicks and their order.

    It does not depend on who else is in the log, nor on the account's number.
    """
    place = np.arange(len(log)) - log.indptr[log.user_ids]
    words = mix((log.item_ids.astype(np.uint64) << np.uint64(32)) + place.astype(np.uint64))
    totals = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(words, dtype=np.uint64)])
    sums = mix(totals[log.indptr[1:]] - totals[log.indptr[:-1]])
    return (sums % np.uint64(N_FOLDS)).astype(np.int64)


def shares_below(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of values below each one, equal ones counting half; shape `(n,)`."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    shares: NDArray[np.float64] = ((below + 0.5 * counts) / max(len(values), 1))[place]
    return shares
