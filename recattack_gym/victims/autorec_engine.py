"""RecNum of a poisoned AutoRec; the fast twin of `AutoRec._finetune` and of ranking.

What rests in fine-tuning comes into its squared error only by second moments: of all genuine hidden
states and of the whole decoder, both computed once for a platform. A step costs O(N d^2 + clicks d),
whatever the number of users and items, and only clicked items are scored anew.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.parallel import over_sets
from recattack_gym.victims.autorec_kernel import Objective, Weights
from recattack_gym.victims.kernels import (
    adam_rows,
    best_target,
    check_finite,
    compiled,
    count_shown,
    dot,
    is_better,
)
from recattack_gym.victims.ranking import CandidateLists


class Moving(NamedTuple):
    """What fine-tuning moves by steps: the rows of clicked items without genuine clicks."""

    decoder: NDArray[np.float32]
    """Shape `(n, d + 1)`, bias last."""
    encoder: NDArray[np.float32]
    """Shape `(n, d)`."""


class AutoRecEngine:
    """Fine-tunes and counts one poison set per thread at a time, and undoes it.

    Args:
        weights: Its parameters, by the names of `Weights`; not changed.
        hidden: Of all genuine users, shape `(U, d)`.
        lists: Targets, candidates, who may see them, and the length of a list.
        rates: Adam's step sizes in fine-tuning.
        objective: What is minimised.
    """

    def __init__(
        self,
        weights: dict[str, NDArray[np.float32]],
        hidden: NDArray[np.float32],
        lists: CandidateLists,
        rates: NDArray[np.float64],
        objective: Objective,
    ) -> None:
        if lists.item_ids is None:
            raise ArgumentError("lists must have candidates, got the whole catalogue")
        self._clean = Weights(**weights)
        self._hidden = with_one(hidden)
        self._decoder = np.column_stack([weights["decoder"], weights["decoder_bias"]])
        self._lists, self._rates, self._objective = lists, rates, objective
        self._n_known = len(self._decoder) - objective.n_unclickable
        rows = self._hidden[np.diff(lists.log.seen[0]) > 0]
        self._n_rows = len(rows)
        self._genuine = rows.T @ rows
        known, other = self._decoder[: self._n_known], self._decoder[self._n_known :]
        self._catalogue = np.stack([known.T @ known, other.T @ other])
        self._candidates = lists.item_ids.astype(np.int32)
        self._scores = np.empty(self._candidates.shape, dtype=np.float32)
        score_candidates(self._hidden, self._decoder, self._candidates, self._scores)
        order = np.argsort(-self._scores, axis=1)
        self._candidates = np.take_along_axis(self._candidates, order, axis=1)
        self._scores = np.take_along_axis(self._scores, order, axis=1)

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        del seed  # nothing is drawn
        lists = self._lists
        exposure = np.zeros((len(profiles), len(lists.target_items)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread  # each call has its own buffers
            decoder = self._decoder.copy()
            has_moved = np.zeros(len(decoder), dtype=np.bool_)
            for m in sets:
                clicked, rows = self.rows_after(profiles[m])
                decoder[clicked], has_moved[clicked] = rows, True
                count(
                    self._hidden,
                    decoder,
                    has_moved,
                    self._candidates,
                    self._scores,
                    lists.target_items,
                    lists.eligible,
                    lists.k,
                    exposure[m],
                )
                decoder[clicked], has_moved[clicked] = self._decoder[clicked], False

        with threadpool_limits(limits=1, user_api="blas"):
            over_sets(len(profiles), work)
        return exposure

    def rows_after(
        self, profile: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Fine-tune on one poison set.

        Args:
            profile: Shape `(N, T)`.

        Returns:
            The clicked items, ascending, and their decoder rows with the bias last, `(n, d + 1)`.

        Raises:
            StateError: If fine-tuning diverged.
        """
        clean, unclicked_weight = self._clean, self._objective.unclicked_weight
        clicked = np.unique(profile)
        clicks = (profile.T[:, None, :] == clicked[:, None]).any(axis=0).astype(np.float32)
        is_new = self._lists.log.item_popularity[clicked] == 0
        new, old = clicked[is_new], clicked[~is_new]
        n_met = int(np.searchsorted(new, self._n_known))
        has_other = clicks[clicked >= self._n_known].any(axis=0)
        weight = np.where(clicks > 0.0, np.float32(1.0), np.float32(unclicked_weight))
        weight[np.ix_(clicked >= self._n_known, ~has_other)] = 0.0
        rows = self._decoder[clicked]
        known, other = rows[is_new][:n_met], rows[is_new][n_met:]
        moving = Moving(rows[is_new], clean.encoder[new])
        hidden = with_one(np.zeros((len(profile), clean.encoder.shape[1]), dtype=np.float32))
        refit(
            moving,
            hidden,
            clean.encoder_bias + clicks[~is_new].T @ clean.encoder[old],
            clicks[is_new],
            weight[is_new],
            has_other,
            rows[~is_new],
            clicks[~is_new] > 0.0,
            self._genuine,
            self._catalogue - np.stack([known.T @ known, other.T @ other]),
            n_met,
            self._rates,
            unclicked_weight,
            self._objective.reg,
            1.0 / (self._n_rows + len(profile)),
        )
        check_finite(moving.decoder, moving.encoder)
        rows[is_new] = moving.decoder
        if len(old):
            rows[~is_new] += old_moves(
                rows[~is_new], clicks[~is_new] > 0.0, hidden, self._genuine, unclicked_weight
            )
        return clicked, rows


def with_one(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """Append the constant unit that the decoder's bias belongs to; shape `(n, d + 1)`."""
    return np.column_stack([hidden, np.ones(len(hidden), dtype=np.float32)])


def old_moves(
    decoder: NDArray[np.float32],
    clicks: NDArray[np.bool_],
    hidden: NDArray[np.float32],
    genuine: NDArray[np.float32],
    unclicked_weight: float,
) -> NDArray[np.float64]:
    """Solve for the moves of old items; the twin of `AutoRec._refit_old`.

    An item's equations differ from the others' only by its clicks, so they are solved in the space of
    the fake users: the move is `sum_f beta_f h_f M^-1` for the matrix M that all items share.

    Args:
        decoder: Clean rows, bias last, shape `(n, d + 1)`.
        clicks: Who clicked which, shape `(n, N)`.
        hidden: Of the fake users, ending in one, shape `(N, d + 1)`.
        genuine: Second moments of the genuine users', shape `(d + 1, d + 1)`.
        unclicked_weight: Weight of an unclicked entry.

    Returns:
        Shape `(n, d + 1)`.
    """
    fakes = hidden.astype(np.float64)
    shared = unclicked_weight * (genuine + np.eye(len(genuine)) + fakes.T @ fakes)
    directions = np.linalg.solve(shared, fakes.T).T
    scores = decoder @ fakes.T
    betas = np.where(clicks, 1.0 - scores, -unclicked_weight * scores)
    solve_clicks(fakes @ directions.T, clicks, 1.0 - unclicked_weight, betas)
    moves: NDArray[np.float64] = betas @ directions
    return moves


@compiled
def solve_clicks(
    kernel: NDArray[np.float64],
    clicks: NDArray[np.bool_],
    extra: float,
    betas: NDArray[np.float64],
) -> None:
    """Solve `(I + extra diag(clicks_i) kernel) beta_i = betas_i` for every item, in place.

    Args:
        kernel: Shape `(N, N)`.
        clicks: Shape `(n, N)`.
        extra: What a click adds to the weight of an entry.
        betas: Shape `(n, N)`.
    """
    for i in range(len(clicks)):
        own, rest = np.flatnonzero(clicks[i]), np.flatnonzero(~clicks[i])
        system, right = np.empty((len(own), len(own))), np.empty(len(own))
        for a in range(len(own)):
            right[a] = betas[i, own[a]]
            for f in rest:
                right[a] -= extra * kernel[own[a], f] * betas[i, f]
            for b in range(len(own)):
                system[a, b] = extra * kernel[own[a], own[b]]
            system[a, a] += 1.0
        solved = np.linalg.solve(system, right)
        for a in range(len(own)):
            betas[i, own[a]] = solved[a]


@compiled
def refit(
    moving: Moving,
    hidden: NDArray[np.float32],
    resting_sum: NDArray[np.float32],
    clicks: NDArray[np.float32],
    weight: NDArray[np.float32],
    has_other: NDArray[np.bool_],
    resting: NDArray[np.float32],
    resting_clicks: NDArray[np.bool_],
    genuine: NDArray[np.float32],
    catalogue: NDArray[np.float32],
    n_met: int,
    rates: NDArray[np.float64],
    unclicked_weight: float,
    reg: float,
    share: float,
) -> None:
    """Take Adam steps on the rows of new items, over all fake users and all genuine zeros at once.

    Args:
        moving: `n` new items that fake users clicked, ascending; changed.
        hidden: Of the fake users, written but for the ones at the end, shape `(N, d + 1)`.
        resting_sum: What a fake user's hidden units get from everything else, shape `(N, d)`.
        clicks: 1 where a fake user clicked a new item, shape `(n, N)`.
        weight: Of these entries in the loss, shape `(n, N)`.
        has_other: Whether a fake user's row says something about unknown items, shape `(N,)`.
        resting: Decoder rows of the other clicked items, shape `(n_old, d + 1)`.
        resting_clicks: Who clicked these, shape `(n_old, N)`.
        genuine: Second moments of genuine users' hidden states, shape `(d + 1, d + 1)`.
        catalogue: Second moments of the decoder rows that rest, shape `(2, d + 1, d + 1)`: of known
            items, which every row says something about, and of the others.
        n_met: How many of the `n` are in genuine users' rows.
        rates: Adam's step sizes.
        unclicked_weight: Weight of an unclicked entry.
        reg: L2 penalty, once per click.
        share: Of one user in the loss.
    """
    (n, n_fakes), d = clicks.shape, resting_sum.shape[1]
    decoder, encoder = moving
    first, second = (
        Moving(np.zeros_like(decoder), np.zeros_like(encoder)),
        Moving(np.zeros_like(decoder), np.zeros_like(encoder)),
    )
    to_decoder = np.zeros_like(decoder)
    to_encoder = np.zeros_like(encoder)
    to_sum = np.empty_like(resting_sum)
    factor, zero = np.float32(2.0 * share), np.float32(unclicked_weight)
    one, decay = np.float32(1.0), np.float32(reg * share)
    fake_encode(resting_sum, encoder, clicks, hidden)
    for step in range(len(rates) if n > 0 else 0):
        errors = weight * (np.dot(decoder, hidden.T) - clicks)
        to_decoder[:] = np.dot(errors, hidden)
        to_decoder[:n_met] += zero * np.dot(decoder[:n_met], genuine)
        to_hidden = np.dot(errors.T, decoder) + zero * np.dot(hidden, catalogue[0])
        if has_other.any():
            others = np.dot(hidden, catalogue[1])
            for f in range(n_fakes):
                if has_other[f]:
                    to_hidden[f] += zero * others[f]
        for i in range(len(resting)):
            for f in range(n_fakes):
                if resting_clicks[i, f]:
                    score = np.float32(0.0)
                    for j in range(d + 1):
                        score += resting[i, j] * hidden[f, j]
                    error = (one - zero) * score - one
                    for j in range(d + 1):
                        to_hidden[f, j] += error * resting[i, j]
        for f in range(n_fakes):
            for j in range(d):
                to_sum[f, j] = factor * to_hidden[f, j] * hidden[f, j] * (one - hidden[f, j])
        to_encoder[:] = np.dot(clicks, to_sum)
        for i in range(n):
            pull = decay * clicks[i].sum()
            for j in range(d):
                to_decoder[i, j] = factor * to_decoder[i, j] + pull * decoder[i, j]
                to_encoder[i, j] += pull * encoder[i, j]
            to_decoder[i, d] *= factor
        adam_rows(
            decoder.reshape(-1),
            to_decoder.reshape(-1),
            first.decoder.reshape(-1),
            second.decoder.reshape(-1),
            decoder.size,
            rates[step],
            step + 1,
        )
        adam_rows(
            encoder.reshape(-1),
            to_encoder.reshape(-1),
            first.encoder.reshape(-1),
            second.encoder.reshape(-1),
            encoder.size,
            rates[step],
            step + 1,
        )
        fake_encode(resting_sum, encoder, clicks, hidden)


@compiled
def fake_encode(
    resting_sum: NDArray[np.float32],
    encoder: NDArray[np.float32],
    clicks: NDArray[np.float32],
    hidden: NDArray[np.float32],
) -> None:
    """Write the hidden units of the fake users, shape `(N, d + 1)`, but for the ones at the end."""
    sums = resting_sum + np.dot(clicks.T, encoder)
    for f in range(len(sums)):
        for j in range(sums.shape[1]):
            hidden[f, j] = sigmoid(sums[f, j])


@compiled
def score_candidates(
    hidden: NDArray[np.float32],
    decoder: NDArray[np.float32],
    candidates: NDArray[np.int32],
    scores: NDArray[np.float32],
) -> None:
    """Write the score of each candidate, shape `(U, C)`."""
    for u in range(len(candidates)):
        for c in range(candidates.shape[1]):
            scores[u, c] = dot(hidden[u], decoder[candidates[u, c]])


@compiled
def sigmoid(x: np.float32) -> np.float32:
    """Return the logistic function, for any finite number."""
    one, bound = np.float32(1.0), np.float32(80.0)  # exp(89) is not a float32
    return np.float32(one / (one + np.exp(-min(max(x, -bound), bound))))


@compiled
def count(
    hidden: NDArray[np.float32],
    decoder: NDArray[np.float32],
    has_moved: NDArray[np.bool_],
    candidates: NDArray[np.int32],
    clean_scores: NDArray[np.float32],
    targets: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    k: int,
    counts: NDArray[np.int64],
) -> None:
    """Add the exposure of every target over all genuine users.

    A user's candidates come best first by clean score; as soon as k of them beat the best target, no
    target is shown and the rest need no look.
    """
    n_users, n_candidates = candidates.shape
    scores = np.empty(len(targets), dtype=np.float32)
    own = np.empty(n_candidates, dtype=np.float32)
    for u in range(n_users):
        for z in range(len(targets)):
            scores[z] = dot(hidden[u], decoder[targets[z]])
        best = best_target(scores, targets, eligible[u])
        if best < 0:
            continue
        n_better = 0
        for c in range(n_candidates):
            item = candidates[u, c]
            own[c] = dot(hidden[u], decoder[item]) if has_moved[item] else clean_scores[u, c]
            n_better += int(is_better(own[c], item, scores[best], targets[best]))
            if n_better == k:
                break
        if n_better < k:
            count_shown(own, candidates[u], scores, targets, eligible[u], k, counts)
