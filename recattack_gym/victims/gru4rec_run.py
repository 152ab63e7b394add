"""The clean run of GRU4Rec, and how fine-tuning goes through it again with fake sessions added.

Full retraining repeats the seed of the clean fit (`epochs`). So it is known beforehand which step each fake
session falls into, what is dropped, and which sampled items turn into clicked ones: `Rerun` has all of it for
any profiles of shape `(N, T)`. What is not known is only what genuine users' states were at the time, and
these `CleanRun` keeps, a few of each step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.base import State, state_array
from recattack_gym.victims.gru4rec_sessions import (
    SamplingTable,
    bucketed,
    cut,
    draw_dropout,
    draw_places,
    rises,
    table_size,
)
from recattack_gym.victims.schedule import MAX_TRIES, fake_share

RECURRENT = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
"""What torch calls the parts of a recurrent layer."""

MOVED_SHARE = 0.2
"""An item's row moves if at least this share of its clicks is fake.

Rows that rest are read from the clean run. Full retraining moves them too, though less: below this share, an
attack on an existing item shows nothing in fine-tuning.
"""

BETA1, BETA2 = 0.9, 0.999
"""Adam's decays of the moments, as in `torch.optim.Adam`."""


@dataclass(eq=False, slots=True)
class CleanRun:
    """What clean training went through: S steps, a sample of K states in each, and W waypoints.

    Attributes:
        seed: What clean training draws from.
        steps: Shape `(S,)`, in training order: `(epoch << 32) + number` with the number of `bucketed`.
        states: Shape `(S, K, d)`: states of genuine users before a click, drawn from the step's clicks.
        log_totals: Shape `(S, K)`: logs of the sums that the softmax of these clicks is divided by.
        waypoints: Parameters by the names of `GRU4Rec.state`, each with a first axis of length W.
        roots: Square roots of Adam's second moments of the recurrent weights there, likewise.
        first_items: Untrained vectors of the new items, shape `(n_new_items, d)`.
    """

    seed: int
    steps: NDArray[np.int64]
    states: NDArray[np.float32]
    log_totals: NDArray[np.float32]
    waypoints: dict[str, NDArray[np.float32]]
    roots: dict[str, NDArray[np.float32]]
    first_items: NDArray[np.float32]

    @property
    def n_waypoints(self) -> int:
        """Return W."""
        return len(self.waypoints["bias"])

    def as_state(self) -> State:
        """Return the arrays by name, not copied."""
        return {
            "run_seed": np.array([self.seed], dtype=np.int64),
            "run_steps": self.steps,
            "run_states": self.states,
            "run_log_totals": self.log_totals,
            "first_items": self.first_items,
            **{f"past_{name}": array for name, array in self.waypoints.items()},
            **{f"root_{name}": array for name, array in self.roots.items()},
        }

    @classmethod
    def from_state(
        cls,
        state: State,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        n_waypoints: int,
        n_anchors: int,
        n_new_items: int,
    ) -> Self:
        """Take over the arrays of `as_state`.

        Args:
            state: All arrays of a victim.
            shapes: Of its parameters, by name.
            n_waypoints: W.
            n_anchors: K.
            n_new_items: How many of the last items are new.

        Raises:
            ArtifactError: If an array is missing or does not fit.
        """
        d = shapes["items"][1]
        n_steps = len(state_array(state, "run_steps", (None,)))

        def floats(name: str, *shape: int) -> NDArray[np.float32]:
            return state_array(state, name, shape).astype(np.float32, copy=False)

        return cls(
            seed=int(state_array(state, "run_seed", (1,))[0]),
            steps=state_array(state, "run_steps", (n_steps,)).astype(np.int64, copy=False),
            states=floats("run_states", n_steps, n_anchors, d),
            log_totals=floats("run_log_totals", n_steps, n_anchors),
            waypoints={name: floats(f"past_{name}", n_waypoints, *s) for name, s in shapes.items()},
            roots={name: floats(f"root_{name}", n_waypoints, *shapes[name]) for name in RECURRENT},
            first_items=floats("first_items", n_new_items, d),
        )

    def after(
        self, items: NDArray[np.int64], vectors: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> "CleanRun":
        """Return the run of a poisoned model: what the poison has decided stands where it ended.

        Args:
            items: Those that moved, shape `(R,)`.
            vectors: Where to, shape `(R, d)`.
            bias: Shape `(R,)`.
        """
        past = dict(self.waypoints)
        past["items"], past["bias"] = past["items"].copy(), past["bias"].copy()
        past["items"][:, items], past["bias"][:, items] = vectors, bias
        return CleanRun(
            self.seed,
            self.steps,
            self.states,
            self.log_totals,
            past,
            self.roots,
            self.first_items,
        )


@dataclass(frozen=True, eq=False, slots=True)
class Moved:
    """The items whose rows one poison set decides.

    Attributes:
        items: Ascending, shape `(R,)`.
        is_fresh: Shape `(R,)`: nobody genuine clicked it, so full retraining learns it from scratch.
        share: Share of its clicks that are fake, shape `(R,)`; its steps are scaled by it.
        first: Untrained vectors where fresh, shape `(R, d)`; else 0. Of an item that is fresh but not new,
            the clean vector stands for it; that is untrained too unless `new_items_as_negatives`.
    """

    items: NDArray[np.int64]
    is_fresh: NDArray[np.bool_]
    share: NDArray[np.float32]
    first: NDArray[np.float32]


def moved_items(
    log: Interactions, profile: NDArray[np.int64], run: CleanRun, clean_items: NDArray[np.float32]
) -> Moved:
    """Return what the profile, shape `(N, T)`, moves; `clean_items` are the vectors after clean training."""
    share = fake_share(log, profile)
    items = np.flatnonzero(share >= MOVED_SHARE)
    is_fresh = log.item_popularity[items] == 0
    untrained = clean_items[items]
    n_old = log.n_items - len(run.first_items)
    is_new = items >= n_old
    untrained[is_new] = run.first_items[items[is_new] - n_old]
    return Moved(items, is_fresh, share[items], np.where(is_fresh[:, None], untrained, 0.0))


@dataclass(eq=False, slots=True)
class Rerun:
    """Clean training again with fake sessions of any profiles of shape `(N, T)`; S steps, F fake sessions.

    Attributes:
        n_negatives: Items sampled per step.
        seed: Of the clean run.
        steps: Shape `(S,)`, see `CleanRun.steps`.
        anchors: Shape `(S,)`: the step of the clean run whose states stand for the genuine users.
        waypoints: Shape `(S,)`: the waypoint that the step meets.
        n_clicks: Shape `(S,)`: clicks of the step, fake ones included.
        n_genuine: Shape `(S,)`: without these.
        session_indptr: Shape `(S + 1,)`: step `s` has the fake sessions
            `session_indptr[s]:session_indptr[s + 1]`, longest first.
        starts: Shape `(F,)`: place of each session's first click in the flattened profile.
        lengths: Shape `(F,)`.
        masks: Shape `(epochs, N * T, d)`: what the vector of each fake click is multiplied by when read.
        fades: Shape `(S, 3)`, see `_fades`.
    """

    n_negatives: int
    seed: int
    steps: NDArray[np.int64]
    anchors: NDArray[np.int64]
    waypoints: NDArray[np.int64]
    n_clicks: NDArray[np.int64]
    n_genuine: NDArray[np.int64]
    session_indptr: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    masks: NDArray[np.float32]
    fades: NDArray[np.float64]
    _draws: dict[float, "_Draws"] = field(default_factory=dict)

    def negatives(
        self,
        table: SamplingTable,
        popularity: NDArray[np.int64],
        profile: NDArray[np.int64],
        *,
        alpha: float,
        new_items_as_negatives: bool,
    ) -> NDArray[np.int32]:
        """Return what full retraining samples in each step, shape `(S, n_negatives)`.

        Args:
            table: Of the clean log.
            popularity: Clicks in the clean log, shape `(n_items,)`.
            profile: Shape `(N, T)`.
            alpha: As in `sampling_table`.
            new_items_as_negatives: As in `sampling_table`.
        """
        clicked = profile.ravel()
        added = rises(clicked, popularity, alpha, first=0.0 if new_items_as_negatives else 1.0)
        ends = np.cumsum(np.concatenate([table.ends[-1:], added]))[1:]
        size = table_size(ends[-1])
        if size not in self._draws:
            self._draws[size] = _draw(table, self.steps, self.n_negatives, self.seed, size)
        draws = self._draws[size]
        items = draws.items.copy()
        hit = draws.places < ends[-1]
        slots, first = np.unique(draws.slots[hit], return_index=True)
        places = draws.places[hit][first]
        items.ravel()[slots] = clicked[np.searchsorted(ends, places, side="right")]
        return items


@dataclass(frozen=True, eq=False, slots=True)
class _Draws:
    """What the clean table gives in every step, and what a longer one would have taken before it.

    Attributes:
        items: Shape `(S, n_negatives)`.
        slots: Places in the flattened `items` that were drawn again, attempt by attempt.
        places: Where in the table the rejected draws were, shape of `slots`.
    """

    items: NDArray[np.int32]
    slots: NDArray[np.int64]
    places: NDArray[np.float64]


def _draw(table: SamplingTable, steps: NDArray[np.int64], n: int, seed: int, size: float) -> _Draws:
    """Draw like `SamplingTable.draw` for all steps, remembering what is rejected."""
    places = np.full((len(steps), n), np.inf)
    flat = places.ravel()
    rejected: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    attempt = 0
    while (again := np.flatnonzero(flat >= table.ends[-1])).size:
        counters = (steps[again // n] * MAX_TRIES + attempt) * n + again % n
        flat[again] = draw_places(counters, seed, size)
        missed = again[flat[again] >= table.ends[-1]]
        rejected.append((missed, flat[missed]))
        attempt += 1
    nothing = (np.zeros(0, dtype=np.int64), np.zeros(0))
    slots, late = (np.concatenate(arrays) for arrays in zip(nothing, *rejected, strict=True))
    items = table.items[np.searchsorted(table.ends, places, side="right")].astype(np.int32)
    return _Draws(items, slots, late)


def make_rerun(
    log: Interactions,
    profile_shape: tuple[int, int],
    run: CleanRun,
    *,
    session_length: int,
    batch_size: int,
    epochs: int,
    n_negatives: int,
    dropout: float,
    learning_rate: float,
    fading: float,
) -> Rerun:
    """Find where full retraining has the fake sessions.

    Args:
        log: The clean log.
        profile_shape: `(N, T)`.
        run: The clean run.
        session_length: Clicks of the longest session.
        batch_size: Sessions per step, about.
        epochs: Passes over the log.
        n_negatives: Items sampled per step.
        dropout: Share of the inputs that is dropped.
        learning_rate: Adam's.
        fading: See `GRU4RecConfig.finetune_fading`.
    """
    n_clicks = profile_shape[0] * profile_shape[1]
    poisoned = log.with_fake_users(np.zeros(profile_shape, dtype=np.int64))
    d = run.states.shape[2]
    steps, sizes, n_fake, n_sessions = [], [], [], []
    starts = [np.zeros(0, dtype=np.int64)]
    lengths = [np.zeros(0, dtype=np.int64)]
    masks = np.ones((epochs, n_clicks, d), dtype=np.float32)
    for epoch in range(epochs):
        drawn = draw_dropout(np.array([len(log)]), n_clicks, d, dropout, run.seed, epoch)
        if drawn is not None:
            masks[epoch] = drawn[0]
        begin, size = cut(poisoned, session_length, run.seed, epoch)
        for number, rows in bucketed(size, batch_size, run.seed, epoch):
            fakes = rows[begin[rows] >= len(log)]
            fakes = fakes[np.argsort(-size[fakes], kind="stable")]
            starts.append(begin[fakes] - len(log))
            lengths.append(size[fakes])
            steps.append((epoch << 32) + number)
            sizes.append(size[rows].sum())
            n_fake.append(size[fakes].sum())
            n_sessions.append(len(fakes))
    n_steps = len(steps)
    total = np.array(sizes, dtype=np.int64)
    order = np.argsort(run.steps)
    all_steps = np.array(steps, dtype=np.int64)
    # a batch that clean training did not have borrows the states of the next
    near = np.minimum(np.searchsorted(run.steps[order], all_steps), max(len(order) - 1, 0))
    indptr = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(n_sessions, dtype=np.int64)])
    return Rerun(
        n_negatives=n_negatives,
        seed=run.seed,
        steps=all_steps,
        anchors=order[near] if n_steps else near,
        waypoints=np.arange(n_steps) * run.n_waypoints // max(n_steps, 1),
        n_clicks=total,
        n_genuine=total - np.array(n_fake, dtype=np.int64),
        session_indptr=indptr,
        starts=np.concatenate(starts),
        lengths=np.concatenate(lengths),
        masks=masks,
        fades=_fades(np.diff(indptr) > 0, learning_rate, fading),
    )


def _fades(
    has_fakes: NDArray[np.bool_], learning_rate: float, fading: float
) -> NDArray[np.float64]:
    """Sum up, for each step with fake sessions, what happens to the recurrent weights up to the next.

    Adam's first moment `m` of the fake gradient, which has just been renewed, halves about every seven steps,
    and the deviation `x` from the clean run fades: `x = (1 - fading) x - rate m / root`, then `m = 0.9 m`.
    The clean run's `root` knows nothing of fake gradients, so `m / root` is cut off at -1 and 1 when renewed.

    Returns:
        Shape `(S, 3)`: what `x`, `m / root` and `m` are multiplied by: `x = a x - b m / root`, `m = c m`.
    """
    fades = np.zeros((len(has_fakes), 3))
    steps = np.flatnonzero(has_fakes)
    for step, after in zip(steps, np.append(steps, len(has_fakes))[1:], strict=True):
        times = np.arange(step, after)
        rates = learning_rate / (1.0 - BETA1 ** (times + 1.0))
        kept = (1.0 - fading) ** (after - 1.0 - times)
        moments = BETA1 ** (times - step).astype(np.float64)
        fades[step] = (
            (1.0 - fading) ** (after - step),
            (rates * kept * moments).sum(),
            BETA1 ** (after - step - 1.0),
        )
    return fades
