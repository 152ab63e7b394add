"""RecNum of a poisoned NeuMF; the fast twin of `NeuMF._finetune` and of ranking.

Genuine users and the layers rest, so the users' halves of the first layer are computed once for all
poison sets; only clicked items are scored again to count.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.parallel import over_sets
from recattack_gym.victims.kernels import (
    adam_rows,
    best_target,
    check_finite,
    compiled,
    count_shown,
    fill_examples,
    is_better,
)
from recattack_gym.victims.neumf_kernel import (
    Layers,
    Weights,
    make_layers,
    score_pair,
    upper_layers,
)
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import fake_share

if TYPE_CHECKING:
    from recattack_gym.victims.neumf import RefitSchedule

TILE = 32
"""Users that are ranked together."""


class Updates(Protocol):
    """What the engine asks its victim for; see `NeuMF`."""

    def __call__(self, n_fake_users: int, profile_size: int, seed: int) -> "Update":
        """Return what all poison sets of one shape and seed share."""
        ...


class Update(NamedTuple):
    """What fine-tuning on any poison set of one shape and seed shares."""

    schedule: "RefitSchedule"
    fake_rows: NDArray[np.float32]
    """Shape `(N, 2d)`: untrained rows of the fake users."""


class Beside(NamedTuple):
    """What rests while fine-tuning passes over the clicks once."""

    weights: Weights
    user_halves: NDArray[np.float32]
    """Shape `(n_users, d)`: the users' half of the first layer, with its bias."""
    item_halves: NDArray[np.float32]
    """Shape `(n_items, d)`."""


class Free(NamedTuple):
    """What fine-tuning changes for one poison set, and Adam's moments of it."""

    fakes: NDArray[np.float32]
    """Shape `(N, 2d)`: rows of the fake users; the next two alike."""
    fakes_first: NDArray[np.float32]
    fakes_second: NDArray[np.float32]
    moves: NDArray[np.float32]
    """Shape `(n_clicked, 2d)`: how far each clicked item would be from its start if all its clicks were
    fake; the next two alike."""
    moves_first: NDArray[np.float32]
    moves_second: NDArray[np.float32]


class Clicked(NamedTuple):
    """The items that one poison set clicks."""

    ids: NDArray[np.int64]
    """Shape `(n_clicked,)`."""
    place: NDArray[np.int32]
    """Shape `(n_items,)`: where each item is in `ids`, or -1."""
    share: NDArray[np.float32]
    """Shape `(n_clicked,)`: of their clicks, those that are fake."""
    n_original_items: int
    """Items from here on are new."""
    untrained: NDArray[np.float32]
    """Shape `(n_new_items, 2d)`: where new items start."""


class Buffers(NamedTuple):
    """What fine-tuning one poison set needs besides; the size of a batch is `B` pairs."""

    users: NDArray[np.int32]
    """Shape `(B,)`: the next two alike."""
    items: NDArray[np.int32]
    is_click: NDArray[np.bool_]
    fakes_gradient: NDArray[np.float32]
    """Shape `(N, 2d)`; zero between steps."""
    moves_gradient: NDArray[np.float32]
    """Shape `(n_clicked, 2d)`; zero between steps."""
    rows: NDArray[np.float32]
    """Shape `(n_clicked, 2d)`: where the clicked items of a batch are."""
    inputs: NDArray[np.float32]
    """Shape `(max(N, n_clicked), d)`: the MLP's part of some rows, or its gradient."""
    fake_halves: NDArray[np.float32]
    """Shape `(N, d)`: the next one alike."""
    fake_halves_gradient: NDArray[np.float32]
    item_halves: NDArray[np.float32]
    """Shape `(n_clicked, d)`: by place in the batch; the next one alike."""
    item_halves_gradient: NDArray[np.float32]
    slot: NDArray[np.int32]
    """Shape `(n_clicked,)`: where each clicked item is in the batch, or -1."""
    in_batch: NDArray[np.int32]
    """Shape `(n_clicked,)`: places in `Clicked.ids` of those in the batch."""
    layers: Layers


def _make_buffers(
    weights: Weights, n_fake_users: int, n_clicked: int, batch_size: int, layers: Layers
) -> Buffers:
    d = len(weights.gmf_output)

    def zeros(*shape: int) -> NDArray[np.float32]:
        return np.zeros(shape, dtype=np.float32)

    return Buffers(
        users=np.zeros(batch_size, dtype=np.int32),
        items=np.zeros(batch_size, dtype=np.int32),
        is_click=np.zeros(batch_size, dtype=np.bool_),
        fakes_gradient=zeros(n_fake_users, 2 * d),
        moves_gradient=zeros(n_clicked, 2 * d),
        rows=zeros(n_clicked, 2 * d),
        inputs=zeros(max(n_fake_users, n_clicked), d),
        fake_halves=zeros(n_fake_users, d),
        fake_halves_gradient=zeros(n_fake_users, d),
        item_halves=zeros(n_clicked, d),
        item_halves_gradient=zeros(n_clicked, d),
        slot=np.full(n_clicked, -1, dtype=np.int32),
        in_batch=np.zeros(n_clicked, dtype=np.int32),
        layers=layers,
    )


class NeuMFEngine:
    """Fine-tunes and ranks one poison set per thread at a time; the clean victim is never written to.

    Args:
        weights: Of the clean victim, by the names of `Weights`.
        course: Beside which parameters each pass of fine-tuning runs, likewise.
        untrained: Shape `(n_new_items, 2d)`: where clicked new items start.
        candidates: Shape `(U, C)`: of each user, best first by clean score.
        lists: Targets, who may see them, and the length of a list.
        scores: Clean scores of the candidates, shape `(U, C)`, and of the targets, `(U, n_targets)`.
        updates: Schedule and fake users' rows; the last answer is kept.
        reg: L2 penalty.
        learning_rate: Of fine-tuning.
    """

    def __init__(
        self,
        weights: dict[str, NDArray[np.float32]],
        course: list[dict[str, NDArray[np.float32]]],
        untrained: NDArray[np.float32],
        candidates: NDArray[np.int32],
        lists: CandidateLists,
        scores: tuple[NDArray[np.float32], NDArray[np.float32]],
        updates: Updates,
        *,
        reg: float,
        learning_rate: float,
    ) -> None:
        self._candidates = candidates
        self._candidate_scores, self._target_scores = scores
        self._log: Interactions = lists.log
        self._targets = lists.target_items
        self._eligible = lists.eligible
        self._k = lists.k
        known: dict[int, Beside] = {}
        for stage in (weights, *course):
            if id(stage) not in known:
                arrays = Weights(**stage)
                known[id(stage)] = Beside(
                    arrays,
                    _halves(arrays.users, arrays.user_layer) + arrays.bias1,
                    _halves(arrays.items, arrays.item_layer),
                )
        self._clean = known[id(weights)]
        self._course = [known[id(stage)] for stage in course]
        self._untrained = untrained
        self._updates = lru_cache(maxsize=1)(updates)
        self._reg = reg
        self._learning_rate = learning_rate

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        update = self._updates(profiles.shape[1], profiles.shape[2], seed)
        exposure = np.zeros((len(profiles), len(self._targets)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread  # each call has its own buffers
            layers = make_layers(self._clean.weights, 1)
            for m in sets:
                clicked = self._clicked(profiles[m])
                free = self._finetuned(update, profiles[m], clicked, layers)
                check_finite(free.fakes, free.moves)
                _count(
                    self._clean,
                    clicked,
                    free.moves,
                    layers,
                    self._candidates,
                    self._candidate_scores,
                    self._targets,
                    self._target_scores,
                    self._eligible,
                    self._k,
                    exposure[m],
                )

        over_sets(len(profiles), work)
        return exposure

    def rows_after(
        self, profile: NDArray[np.int64], seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what fine-tuning makes of the fake users' rows and of the clicked items' rows.

        Args:
            profile: Shape `(N, T)`.
            seed: See `exposure`.

        Returns:
            Shapes `(N, 2d)` and `(n_clicked, 2d)`, the latter in the order of ids.
        """
        clicked = self._clicked(profile)
        layers = make_layers(self._clean.weights, 1)
        update = self._updates(*profile.shape, seed)
        free = self._finetuned(update, profile, clicked, layers)
        rows = np.empty_like(free.moves)
        for c in range(len(rows)):
            _place_item(self._clean.weights.items, clicked, free.moves, c, rows[c])
        return free.fakes, rows

    def _clicked(self, profile: NDArray[np.int64]) -> Clicked:
        ids = np.unique(profile)
        place = np.full(self._log.n_items, -1, dtype=np.int32)
        place[ids] = np.arange(len(ids))
        share = fake_share(self._log, profile)[ids]
        n_original_items = self._log.n_items - len(self._untrained)
        return Clicked(ids, place, share, n_original_items, self._untrained)

    def _finetuned(
        self, update: Update, profile: NDArray[np.int64], clicked: Clicked, layers: Layers
    ) -> Free:
        schedule, fake_rows = update
        fills = schedule.updates
        items, negatives = (np.empty_like(x) for x in (fills.item_ids, fills.negatives))
        fill_examples(
            fills.clicks,
            fills.item_ids,
            fills.negatives,
            profile,
            fills.seed,
            fills.n_items,
            items,
            negatives,
        )
        n_fakes, width = fake_rows.shape
        n_new = int((clicked.ids >= clicked.n_original_items).sum())
        batch_size = int(np.diff(fills.batch_indptr).max(initial=0)) * (1 + negatives.shape[1])
        batch_size += int(np.diff(schedule.visit_indptr).max(initial=0)) * n_new
        buffers = _make_buffers(
            self._clean.weights, n_fakes, len(clicked.ids), max(batch_size, 1), layers
        )
        moves = np.zeros((len(clicked.ids), width), dtype=np.float32)
        free = Free(
            fake_rows.copy(),
            np.zeros_like(fake_rows),
            np.zeros_like(fake_rows),
            moves,
            np.zeros_like(moves),
            np.zeros_like(moves),
        )
        per_epoch = schedule.batches_per_epoch
        for number, beside in enumerate(self._course):
            _pass(
                beside,
                free,
                clicked,
                buffers,
                fills.user_ids,
                items,
                negatives,
                schedule.visitors,
                fills.batch_indptr[number * per_epoch : (number + 1) * per_epoch + 1],
                schedule.visit_indptr[number * per_epoch : (number + 1) * per_epoch + 1],
                self._reg,
                self._learning_rate,
                number * per_epoch,
            )
        return free


@compiled
def _place_item(
    items: NDArray[np.float32],
    clicked: Clicked,
    moves: NDArray[np.float32],
    c: int,
    row: NDArray[np.float32],
) -> None:
    """Write where a clicked item is: its start and its share of the way."""
    item = clicked.ids[c]
    start = items[item]
    if item >= clicked.n_original_items:
        start = clicked.untrained[item - clicked.n_original_items]
    for j in range(len(row)):
        row[j] = start[j] + clicked.share[c] * moves[c, j]


@compiled
def _pass(
    beside: Beside,
    free: Free,
    clicked: Clicked,
    buffers: Buffers,
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
    visitors: NDArray[np.int32],
    batches: NDArray[np.int64],
    visits: NDArray[np.int64],
    reg: float,
    learning_rate: float,
    n_steps: int,
) -> None:
    """Pass over the fake clicks once.

    Args:
        beside: What rests.
        free: Changed.
        clicked: The items of the poison set.
        buffers: Overwritten.
        users: Shape `(S,)`, filled in, as the next two.
        items: Shape `(S,)`.
        negatives: Shape `(S, n_negatives)`.
        visitors: Shape `(V, n_new_items)`.
        batches: Shape `(n_batches + 1,)`: bounds in `users`.
        visits: Shape `(n_batches + 1,)`: bounds in `visitors`.
        reg: L2 penalty on the rows of each example.
        learning_rate: Adam's.
        n_steps: How many steps have been taken before.
    """
    weights = beside.weights
    d = len(weights.gmf_output)
    n_fakes = len(free.fakes)
    inputs = buffers.inputs
    for b in range(len(batches) - 1):
        n, n_in_batch = 0, 0
        for s in range(batches[b], batches[b + 1]):
            for j in range(1 + negatives.shape[1]):
                buffers.users[n] = users[s]
                buffers.items[n] = items[s] if j == 0 else negatives[s, j - 1]
                buffers.is_click[n] = j == 0
                n += 1
        for c in range(len(clicked.ids)):
            z = clicked.ids[c] - clicked.n_original_items
            if z >= 0:
                for visit in range(visits[b], visits[b + 1]):
                    buffers.users[n] = visitors[visit, z]
                    buffers.items[n] = clicked.ids[c]
                    buffers.is_click[n] = False
                    n += 1
        for x in range(n):
            c = clicked.place[buffers.items[x]]
            if c >= 0 and buffers.slot[c] < 0:
                buffers.slot[c] = n_in_batch
                buffers.in_batch[n_in_batch] = c
                n_in_batch += 1
        for r in range(n_fakes):
            for j in range(d):
                inputs[r, j] = free.fakes[r, d + j]
        np.dot(inputs[:n_fakes], weights.user_layer, buffers.fake_halves)
        for r in range(n_fakes):
            for j in range(d):
                buffers.fake_halves[r, j] += weights.bias1[j]
        for r in range(n_in_batch):
            _place_item(weights.items, clicked, free.moves, buffers.in_batch[r], buffers.rows[r])
            for j in range(d):
                inputs[r, j] = buffers.rows[r, d + j]
        np.dot(inputs[:n_in_batch], weights.item_layer, buffers.item_halves[:n_in_batch])
        for start in range(0, n, len(buffers.layers.hidden1)):
            stop = min(start + len(buffers.layers.hidden1), n)
            _pairs_gradient(beside, free, clicked, buffers, start, stop, reg)
        np.dot(buffers.fake_halves_gradient, weights.user_layer.T, inputs[:n_fakes])
        for r in range(n_fakes):
            for j in range(d):
                buffers.fakes_gradient[r, d + j] += inputs[r, j]
                buffers.fake_halves_gradient[r, j] = np.float32(0.0)
        np.dot(buffers.item_halves_gradient[:n_in_batch], weights.item_layer.T, inputs[:n_in_batch])
        for r in range(n_in_batch):
            c = buffers.in_batch[r]
            buffers.slot[c] = -1
            for j in range(d):
                buffers.moves_gradient[c, d + j] += inputs[r, j]
                buffers.item_halves_gradient[r, j] = np.float32(0.0)
            for j in range(2 * d):
                buffers.moves_gradient[c, j] *= clicked.share[c]
        step = n_steps + b + 1
        adam_rows(
            free.fakes.reshape(-1),
            buffers.fakes_gradient.reshape(-1),
            free.fakes_first.reshape(-1),
            free.fakes_second.reshape(-1),
            free.fakes.size,
            learning_rate,
            step,
        )
        adam_rows(
            free.moves.reshape(-1),
            buffers.moves_gradient.reshape(-1),
            free.moves_first.reshape(-1),
            free.moves_second.reshape(-1),
            free.moves.size,
            learning_rate,
            step,
        )


@compiled
def _pairs_gradient(
    beside: Beside,
    free: Free,
    clicked: Clicked,
    buffers: Buffers,
    start: int,
    stop: int,
    reg: float,
) -> None:
    """Add the gradient of some pairs of a batch, up to the first layer's halves."""
    weights, layers = beside.weights, buffers.layers
    n_users = len(weights.users)
    n = stop - start
    d, h2 = weights.layer2.shape
    h3 = len(weights.mlp_output)
    zero, one, decay = np.float32(0.0), np.float32(1.0), np.float32(reg)
    gradient1, gradient2, gradient3 = (
        layers.gradient1[:n],
        layers.gradient2[:n],
        layers.gradient3[:n],
    )
    for x in range(n):
        user, item = buffers.users[start + x], buffers.items[start + x]
        c = clicked.place[item]
        p = beside.user_halves[user] if user < n_users else buffers.fake_halves[user - n_users]
        q = beside.item_halves[item] if c < 0 else buffers.item_halves[buffers.slot[c]]
        for j in range(d):
            layers.hidden1[x, j] = max(p[j] + q[j], zero)
    upper_layers(weights, layers, n)
    for x in range(n):
        user, item = buffers.users[start + x], buffers.items[start + x]
        c = clicked.place[item]
        p = weights.users[user] if user < n_users else free.fakes[user - n_users]
        q = weights.items[item] if c < 0 else buffers.rows[buffers.slot[c]]
        logit = score_pair(weights, layers.hidden3[x], p, q)
        bound = np.float32(80.0)  # exp(89) is not a float32
        error = one / (one + np.exp(-min(max(logit, -bound), bound)))
        if buffers.is_click[start + x]:
            error -= one
        if user >= n_users:
            p_gradient = buffers.fakes_gradient[user - n_users]
            for j in range(d):
                p_gradient[j] += error * weights.gmf_output[j] * q[j]
            for j in range(2 * d):
                p_gradient[j] += decay * p[j]
        if c >= 0:
            q_gradient = buffers.moves_gradient[c]
            for j in range(d):
                q_gradient[j] += error * weights.gmf_output[j] * p[j]
            for j in range(2 * d):
                q_gradient[j] += decay * q[j]
        for j in range(h3):
            gradient3[x, j] = error * weights.mlp_output[j] if layers.hidden3[x, j] > zero else zero
    np.dot(gradient3, weights.layer3.T, gradient2)
    for x in range(n):
        for j in range(h2):
            gradient2[x, j] = gradient2[x, j] if layers.hidden2[x, j] > zero else zero
    np.dot(gradient2, weights.layer2.T, gradient1)
    for x in range(n):
        user = buffers.users[start + x]
        c = clicked.place[buffers.items[start + x]]
        for j in range(d):
            gradient1[x, j] = gradient1[x, j] if layers.hidden1[x, j] > zero else zero
        if user >= n_users:
            p_back = buffers.fake_halves_gradient[user - n_users]
            for j in range(d):
                p_back[j] += gradient1[x, j]
        if c >= 0:
            q_back = buffers.item_halves_gradient[buffers.slot[c]]
            for j in range(d):
                q_back[j] += gradient1[x, j]


@compiled
def _count(
    clean: Beside,
    clicked: Clicked,
    moves: NDArray[np.float32],
    layers: Layers,
    candidates: NDArray[np.int32],
    clean_scores: NDArray[np.float32],
    targets: NDArray[np.int64],
    clean_target_scores: NDArray[np.float32],
    eligible: NDArray[np.bool_],
    k: int,
    counts: NDArray[np.int64],
) -> None:
    """Add the exposure of every target over all genuine users.

    Only clicked items are scored again, a tile of users at a time: targets first, and other items for
    users with fewer than k unclicked candidates above their best target.
    """
    n_users, n_candidates = candidates.shape
    n_targets, d = len(targets), len(clean.weights.gmf_output)
    rows = np.empty((len(clicked.ids), 2 * d), np.float32)
    for c in range(len(rows)):
        _place_item(clean.weights.items, clicked, moves, c, rows[c])
    halves = _halves(rows, clean.weights.item_layer)
    width = max(n_targets, n_candidates)
    users, places = np.empty(TILE * width, np.int64), np.empty(TILE * width, np.int64)
    pair_scores = np.empty(TILE * width, np.float32)
    scores = np.empty((TILE, n_targets), np.float32)
    candidate_scores = np.empty((TILE, n_candidates), np.float32)
    active = np.empty(TILE, np.int64)
    for first in range(0, n_users, TILE):
        n_tile = min(TILE, n_users - first)
        n = 0
        for r in range(n_tile):
            for z in range(n_targets):
                if clicked.place[targets[z]] >= 0:
                    users[n], places[n] = first + r, clicked.place[targets[z]]
                    n += 1
        _pair_scores(clean, rows, halves, layers, users[:n], places[:n], pair_scores)
        n, n_active = 0, 0
        for r in range(n_tile):
            u = first + r
            for z in range(n_targets):
                scores[r, z] = clean_target_scores[u, z]
                if clicked.place[targets[z]] >= 0:
                    scores[r, z] = pair_scores[n]
                    n += 1
            best = best_target(scores[r], targets, eligible[u])
            if best < 0:
                continue
            n_better = 0
            for c in range(n_candidates):
                if clicked.place[candidates[u, c]] >= 0:
                    continue
                if n_better >= k or not is_better(
                    clean_scores[u, c], candidates[u, c], scores[r, best], targets[best]
                ):
                    break  # the candidates that follow are no better
                n_better += 1
            if n_better < k:
                active[n_active] = r
                n_active += 1
        n = 0
        for a in range(n_active):
            u = first + active[a]
            for c in range(n_candidates):
                if clicked.place[candidates[u, c]] >= 0:
                    users[n], places[n] = u, clicked.place[candidates[u, c]]
                    n += 1
        _pair_scores(clean, rows, halves, layers, users[:n], places[:n], pair_scores)
        n = 0
        for a in range(n_active):
            r = active[a]
            u = first + r
            for c in range(n_candidates):
                candidate_scores[r, c] = clean_scores[u, c]
                if clicked.place[candidates[u, c]] >= 0:
                    candidate_scores[r, c] = pair_scores[n]
                    n += 1
            count_shown(
                candidate_scores[r], candidates[u], scores[r], targets, eligible[u], k, counts
            )


@compiled
def _halves(table: NDArray[np.float32], layer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the first layer's halves of all rows of a table, shape `(n_rows, d)`."""
    halves: NDArray[np.float32] = np.dot(np.ascontiguousarray(table[:, len(layer) :]), layer)
    return halves


@compiled
def _pair_scores(
    clean: Beside,
    rows: NDArray[np.float32],
    halves: NDArray[np.float32],
    layers: Layers,
    users: NDArray[np.int64],
    places: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    """Write the scores of genuine users for clicked items; `users`, `places` and `scores` alike."""
    zero = np.float32(0.0)
    d = halves.shape[1]
    size = len(layers.hidden1)
    for start in range(0, len(users), size):
        n = min(size, len(users) - start)
        for x in range(n):
            p, q = clean.user_halves[users[start + x]], halves[places[start + x]]
            for j in range(d):
                layers.hidden1[x, j] = max(p[j] + q[j], zero)
        upper_layers(clean.weights, layers, n)
        for x in range(n):
            p, q = clean.weights.users[users[start + x]], rows[places[start + x]]
            scores[start + x] = score_pair(clean.weights, layers.hidden3[x], p, q)
