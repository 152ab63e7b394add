"""RecNum of a poisoned MultiVAE; the fast twin of `MultiVAE._finetune` and of ranking.

What rests in fine-tuning is computed once for a platform: a few draws of the decoder's units of genuine
users and the logarithms of their softmaxes' denominators, from which a set takes out the items that move.
A step then has two products with the decoder for the N fake users and two with the few items that move for
all genuine ones; gradients are by hand. The moves of old items are solved in the space of fake users.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.parallel import over_sets
from recattack_gym.victims import autorec_engine
from recattack_gym.victims.kernels import check_finite, compiled
from recattack_gym.victims.multivae import dropped_clicks, normal_draws
from recattack_gym.victims.ranking import CandidateLists

Floats = NDArray[np.float32]

_BLOCK_CELLS = 4_000_000
"""Scores that are held at once while the denominators are summed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What is minimised."""

    n_known: int
    """Items from here on compete in a row's softmax only if the row has one of them."""
    dropout: float
    """Share of a fake user's clicks that is hidden in a step."""
    kl_weight: float
    """Weight of the divergence."""
    reg: float
    """L2 penalty on matrices, once per step."""
    encoder_pace: float
    """Size of the steps of new items' encoder rows beside those of decoder rows."""


class MultiVAEEngine:
    """Fine-tunes and counts one poison set per thread at a time, and undoes it.

    Args:
        weights: The parameters, by the names of `MultiVAE.state`; not changed.
        untrained: What new items' rows start from, by the same names.
        decoded: The decoder's hidden units of all genuine users, shape `(U, h)`.
        drawn: Those of genuine users with a click, as passes of training draw them, `(U', h)` each.
        moment: Their second moment over clicks with a one appended, shape `(h + 1, h + 1)`.
        lists: Targets, candidates, who may see them, and the length of a list.
        rates: Adam's step sizes in fine-tuning.
        objective: What is minimised.
    """

    def __init__(
        self,
        weights: dict[str, Floats],
        untrained: dict[str, Floats],
        decoded: Floats,
        drawn: list[Floats],
        moment: NDArray[np.float64],
        lists: CandidateLists,
        rates: NDArray[np.float64],
        objective: Objective,
    ) -> None:
        if lists.item_ids is None:
            raise ArgumentError("lists must have candidates, got the whole catalogue")
        self._weights, self._lists = weights, lists
        self._rates, self._objective = rates, objective
        self._decoder = np.column_stack([weights["decoder"], weights["decoder_bias"]])
        self._untrained = np.column_stack([untrained["decoder"], untrained["decoder_bias"]])
        self._untrained_encoder = untrained["encoder"]
        self._units = np.column_stack([decoded, np.ones(len(decoded), dtype=np.float32)])
        counts = np.diff(lists.log.seen[0])
        self._popularity = np.bincount(lists.log.seen[1], minlength=len(self._decoder))
        self._counts = counts[counts > 0].astype(np.float32)
        ones = np.ones(len(self._counts), dtype=np.float32)
        self._draws = [np.column_stack([units, ones]) for units in drawn]
        known = self._decoder[: objective.n_known]
        self._log_totals = [log_denominators(units, known) for units in self._draws]
        self._eigenvalues, self._axes = np.linalg.eigh(moment)
        self._candidates = lists.item_ids.astype(np.int32)
        self._scores = np.empty(self._candidates.shape, dtype=np.float32)
        autorec_engine.score_candidates(self._units, self._decoder, self._candidates, self._scores)
        order = np.argsort(-self._scores, axis=1)
        self._candidates = np.take_along_axis(self._candidates, order, axis=1)
        self._scores = np.take_along_axis(self._scores, order, axis=1)

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        lists = self._lists
        exposure = np.zeros((len(profiles), len(lists.target_items)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread  # each call has its own buffers
            decoder = self._decoder.copy()
            has_moved = np.zeros(len(decoder), dtype=np.bool_)
            for m in sets:
                clicked, rows = self.rows_after(profiles[m], seed)
                decoder[clicked], has_moved[clicked] = rows, True
                autorec_engine.count(
                    self._units,
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

    def rows_after(self, profile: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], Floats]:
        """Fine-tune on one poison set.

        Args:
            profile: Shape `(N, T)`.
            seed: What is drawn from.

        Returns:
            The clicked items, ascending, and their decoder rows with the bias last, `(n, h + 1)`.

        Raises:
            StateError: If fine-tuning diverged.
        """
        clicked = np.unique(profile)
        clicks = (profile[:, :, None] == clicked).any(axis=1)  # (N, n)
        is_new = self._popularity[clicked] == 0
        rows = self._decoder[clicked]
        refit = _Refit(self, clicked, clicks, is_new)
        with np.errstate(
            over="ignore", divide="ignore", invalid="ignore"
        ):  # checked as a whole below
            rows[is_new], units, log_totals = refit.run(self._rates, seed)
        check_finite(rows[is_new], units)
        old = clicked[~is_new]
        if len(old):
            n_clicks = clicks.sum(axis=1)
            shares = np.exp(rows[~is_new] @ units.T - log_totals)  # (n, N)
            coefficients = newton_moves(
                units.astype(np.float64) @ self._axes,
                self._eigenvalues,
                self._popularity[old].astype(np.float64),
                np.ascontiguousarray(clicks[:, ~is_new].T),
                (1.0 - n_clicks * shares).astype(np.float64),
            )
            rows[~is_new] += (coefficients @ self._axes.T).astype(np.float32)
        return clicked, rows


class _Refit:
    """Adam on the rows of a set's new items, all fake users and all genuine ones at once.

    Args:
        engine: What rests.
        clicked: Shape `(n,)`, ascending.
        clicks: Who clicked which, shape `(N, n)`.
        is_new: Which of these move, shape `(n,)`.
    """

    def __init__(
        self,
        engine: MultiVAEEngine,
        clicked: NDArray[np.int64],
        clicks: NDArray[np.bool_],
        is_new: NDArray[np.bool_],
    ) -> None:
        weights, objective = engine._weights, engine._objective
        self._engine, self._weights, self._objective = engine, weights, objective
        new, n_known = clicked[is_new], objective.n_known
        self._n_met = int(np.searchsorted(new, n_known))
        self._decoder, self._encoder = engine._untrained[new], weights["encoder"][clicked]
        self._encoder[is_new] = engine._untrained_encoder[new]
        entries = clicks.astype(np.float32)
        self._counts = entries.sum(axis=1)
        self._shown = entries / np.sqrt(self._counts)[:, None]
        self._is_new = is_new
        n_fake, n_genuine = entries.sum(axis=0), engine._popularity[clicked].astype(np.float32)
        self._share = (n_fake / (n_fake + n_genuine))[:, None]
        self._share[is_new] = objective.encoder_pace
        self._move = np.zeros_like(self._encoder)
        self._places = np.arange(len(clicks))[:, None] * len(engine._decoder) + clicked
        self._clicks = entries[:, is_new]
        self._is_silent = ~clicks[:, clicked >= n_known].any(axis=1)
        self._old = engine._decoder[clicked[~is_new]]
        self._old_clicks = entries[:, ~is_new]
        rests = np.ones(len(engine._decoder), dtype=np.bool_)
        rests[new] = False
        self._resting = engine._decoder[rests]
        self._n_resting_known = n_known - self._n_met
        self._log_rests = []
        for drawn, log_total in zip(engine._draws, engine._log_totals, strict=True):
            met = drawn @ engine._decoder[new[: self._n_met]].T
            taken = np.exp(met - log_total[:, None]).sum(axis=1)
            self._log_rests.append(log_total + np.log1p(-taken))

    def run(self, rates: NDArray[np.float64], seed: int) -> tuple[Floats, Floats, Floats]:
        """Take the steps.

        Returns:
            The new items' decoder rows, `(n_new, h + 1)`, and of the fake users then the decoder's units,
            ending in one, `(N, h + 1)`, and the logarithm of the softmax's denominator, `(N,)`.
        """
        weights, d = self._weights, len(self._weights["from_latent"])
        moving = (self._decoder, self._move)
        first, second = ([np.zeros_like(array) for array in moving] for _ in range(2))
        if len(self._decoder):
            for step, rate in enumerate(rates, start=1):
                for x, gradient in enumerate(self._gradients(seed, step - 1)):
                    first[x] += np.float32(0.1) * (gradient - first[x])
                    second[x] += np.float32(0.001) * (gradient * gradient - second[x])
                    unbiased = np.sqrt(second[x] / np.float32(1.0 - 0.999**step))
                    size = np.float32(rate / (1.0 - 0.9**step))
                    moving[x][:] -= size * first[x] / (unbiased + np.float32(1e-8))
        self._move[~self._is_new] = 0.0
        hidden = self._hidden(self._shown)
        units = self._units(hidden @ weights["to_latent"][:, :d] + weights["to_latent_bias"][:d])
        return self._decoder, units, self._fake_softmax(units)[2]

    def _hidden(self, shown: Floats) -> Floats:
        """Return the encoder's hidden units `(N, h)` for what it sees of the clicked items, `(N, n)`."""
        sums = shown @ (self._encoder + self._share * self._move)
        hidden: Floats = np.tanh(sums + self._weights["encoder_bias"])
        return hidden

    def _units(self, latent: Floats) -> Floats:
        """Return the decoder's hidden units, ending in one, for latent variables `(N, d)`."""
        sums = latent @ self._weights["from_latent"] + self._weights["from_latent_bias"]
        return np.column_stack([np.tanh(sums), np.ones(len(sums), dtype=np.float32)])

    def _fake_softmax(self, units: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the shares of resting and of moving items, and the logarithm of their denominator."""
        resting, moving = units @ self._resting.T, units @ self._decoder.T
        resting[self._is_silent, self._n_resting_known :] = -np.inf
        moving[self._is_silent, self._n_met :] = -np.inf
        top = np.maximum(resting.max(axis=1), moving.max(axis=1, initial=-np.inf))[:, None]
        np.exp(resting - top, out=resting)
        np.exp(moving - top, out=moving)
        total = resting.sum(axis=1, keepdims=True) + moving.sum(axis=1, keepdims=True)
        resting /= total
        moving /= total
        return resting, moving, (top + np.log(total))[:, 0]

    def _gradients(self, seed: int, step: int) -> tuple[Floats, Floats]:
        """Return a step's gradients.

        Returns:
            Of the new items' decoder rows, `(n_new, h + 1)`, and of the moves of encoder rows, `(n, h)`.
        """
        weights, objective, d = self._weights, self._objective, len(self._weights["from_latent"])
        draw = step % len(self._log_rests)
        genuine, counts = self._engine._draws[draw], self._engine._counts
        is_kept = ~dropped_clicks(seed, step, self._places, objective.dropout)
        shown = self._shown * is_kept * np.float32(1.0 / (1.0 - objective.dropout))
        hidden = self._hidden(shown)
        latent = hidden @ weights["to_latent"] + weights["to_latent_bias"]
        mean, deviation = latent[:, :d], np.exp(np.float32(0.5) * latent[:, d:])
        noise = normal_draws(seed, step, np.arange(len(hidden)), d)
        units = self._units(mean + noise * deviation)
        resting, moving, _ = self._fake_softmax(units)
        errors = self._counts[:, None] * moving - self._clicks  # (N, n_new)
        to_units = self._counts[:, None] * (resting @ self._resting)
        to_units += errors @ self._decoder - self._old_clicks @ self._old
        to_decoder = errors.T @ units
        rivals = np.exp(genuine @ self._decoder[: self._n_met].T - self._log_rests[draw][:, None])
        rivals *= (counts / (1.0 + rivals.sum(axis=1)))[:, None]
        to_decoder[: self._n_met] += rivals.T @ genuine
        to_sample = (to_units * (1.0 - units**2))[:, :-1] @ weights["from_latent"].T
        kl, half = np.float32(objective.kl_weight), np.float32(0.5)
        to_log_variance = half * (to_sample * noise * deviation + kl * (deviation**2 - 1.0))
        to_latent = np.concatenate([to_sample + kl * mean, to_log_variance], axis=1)
        to_sums = (to_latent @ weights["to_latent"].T) * (1.0 - hidden**2)
        share = np.float32(1.0 / (len(genuine) + len(hidden)))
        to_decoder *= share
        to_decoder[:, :-1] += np.float32(objective.reg) * self._decoder[:, :-1]
        to_encoder = share * (shown.T @ to_sums)
        new = self._encoder[self._is_new] + (self._share * self._move)[self._is_new]
        to_encoder[self._is_new] += np.float32(objective.reg) * new
        return to_decoder, self._share * to_encoder


def log_denominators(units: Floats, decoder: Floats) -> Floats:
    """Return the logarithm of each user's sum of exponentiated scores.

    Args:
        units: Shape `(U, h + 1)`, ending in one.
        decoder: Shape `(n_items, h + 1)`, bias last.

    Returns:
        Shape `(U,)`.
    """
    step = max(1, _BLOCK_CELLS // max(len(decoder), 1))
    totals = np.empty(len(units), dtype=np.float32)
    for start in range(0, len(units), step):
        scores = units[start : start + step] @ decoder.T
        top = scores.max(axis=1)
        totals[start : start + step] = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
    return totals


@compiled
def newton_moves(
    fakes: NDArray[np.float64],
    eigenvalues: NDArray[np.float64],
    popularity: NDArray[np.float64],
    clicks: NDArray[np.bool_],
    wanted: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Solve for the moves of old items; the twin of `MultiVAE._refit_old`.

    An item's system is `popularity moment + I + sum h_f h_f^T` over the fake users who clicked it. Along the
    axes of the moment its first two terms are diagonal; what is left is a system as large as these are many.

    Args:
        fakes: The decoder's units of the fake users along the moment's axes, shape `(N, h + 1)`.
        eigenvalues: Of the moment, shape `(h + 1,)`.
        popularity: Genuine users who clicked each, shape `(n,)`.
        clicks: Who clicked which, shape `(n, N)`.
        wanted: One minus the expected clicks, shape `(n, N)`; read where there is a click.

    Returns:
        The moves along the axes, shape `(n, h + 1)`.
    """
    n_axes = fakes.shape[1]
    moves = np.zeros((len(clicks), n_axes))
    for i in range(len(clicks)):
        own = np.flatnonzero(clicks[i])
        system, right = np.empty((len(own), len(own))), np.empty(len(own))
        scale = 1.0 / (popularity[i] * eigenvalues + 1.0)
        for a in range(len(own)):
            right[a] = wanted[i, own[a]]
            for b in range(len(own)):
                total = 1.0 if a == b else 0.0
                for j in range(n_axes):
                    total += fakes[own[a], j] * scale[j] * fakes[own[b], j]
                system[a, b] = total
        beta = np.linalg.solve(system, right)
        for a in range(len(own)):
            for j in range(n_axes):
                moves[i, j] += beta[a] * scale[j] * fakes[own[a], j]
    return moves
