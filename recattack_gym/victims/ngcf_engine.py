"""Evaluates poison sets against NGCF, one per thread: BPR beside the clean run, Adam, propagation, counting.

The plain path in `ngcf` is the reference. This stands apart from the kernels because machine code is kept by
file, and takes those of several files (`kernels.SHARED_SOURCES`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.parallel import n_threads, over_sets
from recattack_gym.victims.graph import InteractionGraph, touched_nodes
from recattack_gym.victims.graph_kernel import (
    Contest,
    count_exposure,
    graph_arrays,
    inject_edges,
    room_for_fakes,
    with_neighbours,
)
from recattack_gym.victims.kernels import check_finite
from recattack_gym.victims.mf_bce_kernel import fill_logits
from recattack_gym.victims.ngcf_kernel import Parameters, finetune, make_workspace, propagate_all
from recattack_gym.victims.ngcf_warm import PairSchedule, WarmRun
from recattack_gym.victims.ngcf_warm_kernel import fill_triples, train_beside
from recattack_gym.victims.schedule import fake_share

if TYPE_CHECKING:
    from recattack_gym.victims.ngcf import FinetunePlan

MakePlan = Callable[[tuple[int, int], int], "FinetunePlan"]
"""Lays out the fine-tuning of profiles of shape `(N, T)` under a seed."""


class _Filled:
    """Room for the triples of one schedule, filled in for one poison set after the other."""

    def __init__(self, schedule: PairSchedule, log: Interactions) -> None:
        n = len(schedule.positives)
        self._schedule, self._log = schedule, log
        self._rows, self._users, self._items, self._negatives = (
            np.zeros(n, dtype=np.int32) for _ in range(4)
        )
        self._bounds = np.zeros_like(schedule.rows.batch_indptr)

    def fill(
        self,
        profile: NDArray[np.int64],
        events: NDArray[np.int64],
        is_learnt: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """Return what `PairSchedule.examples` returns; overwritten by the next call.

        Args:
            profile: Shape `(N, T)`.
            events: Items of all events, the fake ones last.
            is_learnt: Shape `(n_items,)`.
        """
        rows = self._schedule.rows
        fill_logits(
            rows.user_ids,
            rows.kinds,
            rows.clicks,
            rows.item_ids,
            rows.seed,
            rows.below,
            rows.popular_negatives,
            *self._log.seen,
            profile,
            events,
            self._rows,
        )
        fill_triples(
            rows.user_ids,
            rows.kinds,
            self._rows,
            self._schedule.positives,
            rows.batch_indptr,
            is_learnt,
            self._users,
            self._items,
            self._negatives,
            self._bounds,
        )
        n = self._bounds[-1]
        return self._users[:n], self._items[:n], self._negatives[:n], self._bounds


class _Thread:
    """What one thread writes to.

    Args:
        plan: Of the poison sets to come.
        log: The clean log.
        graph: Its graph.
        shape: Of a poison set, `(N, T)`.
        n_layers: Rounds of propagation.
    """

    def __init__(
        self,
        plan: "FinetunePlan",
        log: Interactions,
        graph: InteractionGraph,
        shape: tuple[int, int],
        n_layers: int,
    ) -> None:
        n_fake_users, profile_size = shape
        n_nodes, size = graph.n_nodes + n_fake_users, plan.fakes.shape[1]
        n_moving = n_fake_users * (profile_size + 1)
        self.embeddings = np.zeros((n_nodes, size), dtype=np.float32)
        self.graph = room_for_fakes(graph, n_fake_users, profile_size)
        self.work = make_workspace(n_nodes, n_layers, size, n_moving)
        self.nodes = np.zeros(n_nodes, dtype=np.int32)
        self.everyone = np.arange(n_nodes, dtype=np.int32)
        self.warm, self.last = _Filled(plan.warm, log), _Filled(plan.last, log)
        self.events = np.concatenate(
            [log.item_ids, np.zeros(n_fake_users * profile_size, np.int64)]
        )
        self.fakes, self.items, self.moved = (
            np.zeros((n, size), dtype=np.float32) for n in (n_fake_users, log.n_items, log.n_users)
        )
        self.gradients = [np.zeros_like(rows) for rows in (self.fakes, self.items, self.moved)]


class NGCFEngine:
    """Fine-tuning, propagation and counting of every poison set, one set per thread.

    Args:
        clean: The clean victim's parameters; never written.
        graph: The genuine graph.
        contest: The platform's lists.
        log: The clean log.
        run: What clean training's BPR stage went through; never written.
        make_plan: Lays out fine-tuning.
        warm_rate: Step size of the BPR stage.
        warm_reg: L2 penalty in the BPR stage.
        learning_rate: Of the steps of Adam.
        reg: L2 penalty on layer 0 in these.
    """

    def __init__(
        self,
        clean: Parameters,
        graph: InteractionGraph,
        contest: Contest,
        log: Interactions,
        run: WarmRun,
        make_plan: MakePlan,
        *,
        warm_rate: float,
        warm_reg: float,
        learning_rate: float,
        reg: float,
    ) -> None:
        self._clean, self._graph, self._contest = clean, graph, contest
        self._log, self._run, self._make_plan = log, run, make_plan
        self._warm_rate, self._warm_reg = warm_rate, warm_reg
        self._learning_rate, self._reg = learning_rate, reg
        self._key: tuple[int, int, int] | None = None
        self._plan: FinetunePlan | None = None
        self._threads: list[_Thread] = []
        n_layers, size = clean.biases.shape
        work = make_workspace(graph.n_nodes, n_layers, size, 0)
        everyone = np.arange(graph.n_nodes, dtype=np.int32)
        propagate_all(clean, graph_arrays(graph), everyone, work)
        self._clean_sums, self._clean_layer = work.sums[0].copy(), work.layers[0].copy()

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        n_sets, n_fake_users, profile_size = profiles.shape
        plan = self._prepare(seed, (n_fake_users, profile_size), min(n_threads(), n_sets))
        counts = np.zeros((n_sets, len(self._contest.targets)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            own = self._threads[thread]
            for m in sets:
                self._finetune(plan, profiles[m], own)
                count_exposure(own.work.final, self._graph.n_items, self._contest, counts[m])

        over_sets(n_sets, work)
        return counts

    def _finetune(self, plan: "FinetunePlan", profile: NDArray[np.int64], own: _Thread) -> None:
        """Leave in `own.embeddings` and `own.work.final` what fine-tuning on one poison set gives."""
        clean, n_items, n_clean = self._clean, self._graph.n_items, self._graph.n_nodes
        share = fake_share(self._log, profile)
        is_scratch = (share > 0) & (self._log.item_popularity == 0)
        scratch, follows = np.flatnonzero(is_scratch), np.flatnonzero((share > 0) & ~is_scratch)
        own.events[len(self._log) :] = profile.ravel()
        self._beside(plan, profile, share, scratch, follows, own)
        own.embeddings[:n_clean], own.embeddings[n_clean:] = clean.embeddings, own.fakes
        own.embeddings[scratch] = own.items[scratch]
        own.embeddings[follows] += own.items[follows]

        inject_edges(graph_arrays(self._graph), profile, own.graph)
        own.work.sums[0, :n_clean] = self._clean_sums
        own.work.layers[0, :n_clean] = self._clean_layer
        model = Parameters(own.embeddings, clean.weights, clean.biases)
        touched = touched_nodes(profile, n_clean)
        n_around = with_neighbours(own.graph, touched, len(touched), own.work.mark, own.nodes)
        fake_nodes = np.arange(n_clean, n_clean + len(profile))
        finetune(
            model,
            own.graph,
            *own.last.fill(profile, own.events, is_scratch),
            n_items,
            self._learning_rate,
            self._reg,
            np.concatenate([scratch, fake_nodes]).astype(np.int32),
            own.nodes[:n_around],
            own.work,
        )
        own.embeddings[n_items:n_clean] += own.moved
        check_finite(own.embeddings)
        propagate_all(model, own.graph, own.everyone, own.work)

    def _beside(
        self,
        plan: "FinetunePlan",
        profile: NDArray[np.int64],
        share: NDArray[np.float32],
        scratch: NDArray[np.int64],
        follows: NDArray[np.int64],
        own: _Thread,
    ) -> None:
        """Do what `NGCF._beside` does, and leave it in `own`."""
        past, waypoints = self._run.past, plan.warm.rows.waypoints
        first, last = (waypoints[0], waypoints[-1]) if len(waypoints) else (0, 0)
        own.fakes[:], own.moved[:] = plan.fakes, 0.0
        own.items[scratch], own.items[follows] = self._run.first[scratch], past[follows, first]
        if len(waypoints):
            train_beside(
                own.fakes,
                own.items,
                own.moved,
                share,
                follows,
                past,
                *own.warm.fill(profile, own.events, share > 0),
                waypoints,
                self._warm_rate,
                self._warm_reg,
                *own.gradients,
            )
        own.items[follows] -= past[follows, last]

    def _prepare(self, seed: int, shape: tuple[int, int], n_own: int) -> "FinetunePlan":
        key = (seed, *shape)
        if self._plan is None or self._key != key:
            self._key, self._plan = key, self._make_plan(shape, seed)
            self._threads.clear()
        n_layers = len(self._clean.biases)
        while len(self._threads) < n_own:
            self._threads.append(_Thread(self._plan, self._log, self._graph, shape, n_layers))
        return self._plan
