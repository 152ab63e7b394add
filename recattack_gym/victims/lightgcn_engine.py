"""Evaluates poison sets against LightGCN, one set per thread; see `lightgcn_kernel` for how."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.parallel import over_sets
from recattack_gym.victims.factors import FactorSchedule
from recattack_gym.victims.graph import InteractionGraph, touched_nodes
from recattack_gym.victims.graph_kernel import (
    Contest,
    GraphArrays,
    count_exposure,
    graph_arrays,
    inject_edges,
    room_for_fakes,
)
from recattack_gym.victims.kernels import check_finite, fill_examples
from recattack_gym.victims.lightgcn import node_shares
from recattack_gym.victims.lightgcn_kernel import Moving, average_layers, finetune
from recattack_gym.victims.mf_kernel import take_first_negatives
from recattack_gym.victims.schedule import fake_share

MakeSchedule = Callable[[tuple[int, int], int], FactorSchedule]
"""Lays out the fine-tuning of profiles of shape `(N, T)` under a seed."""


@dataclass(frozen=True, eq=False, slots=True)
class _Prepared:
    """What all poison sets of one seed and shape have in common."""

    key: tuple[int, int, int]
    schedule: FactorSchedule
    fakes: NDArray[np.float32]  # (N, d) untrained


@dataclass(frozen=True, eq=False, slots=True)
class _Thread:
    """What one thread writes to; V nodes, fake users included."""

    graph: GraphArrays
    embeddings: NDArray[np.float32]  # (V, d) layer 0
    final: NDArray[np.float32]  # (V, d)
    layer: NDArray[np.float32]  # (V, d)
    next_layer: NDArray[np.float32]  # (V, d)
    unit: NDArray[np.float32]  # (V, d) zero
    examples: NDArray[np.int32]  # (S, 2) clicked item, negative


class LightGCNEngine:
    """Fine-tuning, propagation and counting of every poison set; see `ExposureEngine`.

    Args:
        embeddings: The clean layer 0, shape `(n_nodes, d)`; never written.
        log: The clean log.
        contest: The platform's lists.
        make_schedule: The examples to fine-tune on.
        first_fakes: Gives, for a seed and N, fake users' first embeddings, shape `(N, d)`.
        n_layers: Rounds of propagation.
        learning_rate: Of fine-tuning.
        reg: L2 penalty on layer 0.
    """

    def __init__(
        self,
        embeddings: NDArray[np.float32],
        log: Interactions,
        contest: Contest,
        make_schedule: MakeSchedule,
        first_fakes: Callable[[int, int], NDArray[np.float32]],
        *,
        n_layers: int,
        learning_rate: float,
        reg: float,
    ) -> None:
        self._embeddings, self._log, self._contest = embeddings, log, contest
        self._graph = InteractionGraph.from_log(log)
        self._make_schedule, self._first_fakes = make_schedule, first_fakes
        self._n_layers, self._learning_rate, self._reg = n_layers, learning_rate, reg
        self._prepared: _Prepared | None = None

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        prepared = self._prepare((profiles.shape[1], profiles.shape[2]), seed)
        counts = np.zeros((len(profiles), len(self._contest.targets)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread  # each call has buffers of its own
            own = self._room(prepared, profiles.shape[2])
            for m in sets:
                self._update(profiles[m], prepared, own)
                check_finite(own.embeddings)
                everyone = np.arange(len(own.final), dtype=np.int32)
                self._average(own, everyone, own.embeddings)
                count_exposure(own.final, self._graph.n_items, self._contest, counts[m])

        over_sets(len(profiles), work)
        return counts

    def embeddings_after(self, profile: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
        """Return the layer 0 that one poison set leads to, fake users included; shape `(V, d)`.

        Args:
            profile: Shape `(N, T)`.
            seed: What fine-tuning draws from.
        """
        prepared = self._prepare((profile.shape[0], profile.shape[1]), seed)
        own = self._room(prepared, profile.shape[1])
        self._update(profile, prepared, own)
        return own.embeddings

    def _prepare(self, shape: tuple[int, int], seed: int) -> _Prepared:
        prepared = self._prepared
        if prepared is None or prepared.key != (seed, *shape):
            schedule = self._make_schedule(shape, seed)
            prepared = _Prepared((seed, *shape), schedule, self._first_fakes(seed, shape[0]))
            self._prepared = prepared
        return prepared

    def _room(self, prepared: _Prepared, profile_size: int) -> _Thread:
        n_fakes, size = prepared.fakes.shape
        shape = (self._graph.n_nodes + n_fakes, size)
        n_examples = len(prepared.schedule.updates.clicks)
        embeddings, final, layer, next_layer, unit = (
            np.zeros(shape, dtype=np.float32) for _ in range(5)
        )
        return _Thread(
            graph=room_for_fakes(self._graph, n_fakes, profile_size),
            embeddings=embeddings,
            final=final,
            layer=layer,
            next_layer=next_layer,
            unit=unit,
            examples=np.zeros((n_examples, 2), dtype=np.int32),
        )

    def _average(self, own: _Thread, needed: NDArray[np.int32], rows: NDArray[np.float32]) -> None:
        """Write the mean of the layers to `own.final`."""
        average_layers(
            own.graph, self._n_layers, needed, rows, own.layer, own.next_layer, own.final
        )

    def _update(self, profile: NDArray[np.int64], prepared: _Prepared, own: _Thread) -> None:
        """Fine-tune on one poison set: writes `own.graph` and `own.embeddings`."""
        n_clean = self._graph.n_nodes
        inject_edges(graph_arrays(self._graph), profile, own.graph)
        own.embeddings[:n_clean], own.embeddings[n_clean:] = self._embeddings, prepared.fakes
        users, items, negatives = self._examples(profile, prepared.schedule, own)
        nodes = touched_nodes(profile, n_clean)
        looked_at, places = np.unique(
            np.concatenate([users, items, negatives]), return_inverse=True
        )
        of_users, of_items, of_negatives = places.reshape(3, -1)
        looked_at = looked_at.astype(np.int32)
        self._average(own, looked_at, own.embeddings)
        base = own.final[looked_at]
        place = np.searchsorted(nodes, looked_at)
        is_moving = nodes[np.minimum(place, len(nodes) - 1)] == looked_at
        moving = Moving(
            start=own.embeddings[nodes],
            share=node_shares(fake_share(self._log, profile), nodes),
            base=base,
            columns=self._columns(own, looked_at, nodes),
            place=np.where(is_moving, place, -1),
        )
        moves = np.empty_like(moving.start)
        finetune(
            moving,
            of_users,
            of_items,
            of_negatives,
            prepared.schedule.updates.batch_indptr,
            self._learning_rate,
            self._reg,
            moves,
        )
        own.embeddings[nodes] += moves

    def _examples(
        self, profile: NDArray[np.int64], schedule: FactorSchedule, own: _Thread
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Fill in one poison set; returns the nodes of each example's user, item and negative."""
        updates, examples = schedule.updates, own.examples
        fill_examples(
            updates.clicks,
            updates.item_ids,
            updates.negatives,
            profile,
            updates.seed,
            updates.n_items,
            examples[:, 0],
            examples[:, 1:],
        )
        take_first_negatives(
            updates.clicks,
            updates.user_ids,
            schedule.popular,
            schedule.pushed,
            *self._log.seen,
            profile,
            examples,
        )
        nodes = examples.astype(np.int64)
        return updates.user_ids + np.int64(self._graph.n_items), nodes[:, 0], nodes[:, 1]

    def _columns(
        self, own: _Thread, looked_at: NDArray[np.int32], nodes: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Return how final embeddings depend on layer 0, shape `(len(looked_at), len(nodes))`."""
        columns = np.empty((len(looked_at), len(nodes)), dtype=np.float32)
        width = own.unit.shape[1]
        for start in range(0, len(nodes), width):
            some = nodes[start : start + width]
            own.unit[some, np.arange(len(some))] = 1.0
            self._average(own, looked_at, own.unit)
            columns[:, start : start + width] = own.final[looked_at, : len(some)]
            own.unit[some] = 0.0
        return columns
