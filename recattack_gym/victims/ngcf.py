"""NGCF: embeddings that are propagated over the user-item graph."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_normal, counter_words, draw_seed
from recattack_gym.victims.base import ExposureEngine, GradientConfig, State, Victim, state_array
from recattack_gym.victims.bpr import BPRConfig
from recattack_gym.victims.epochs import clean_epochs
from recattack_gym.victims.factors import Factors, hold_back
from recattack_gym.victims.graph import InteractionGraph
from recattack_gym.victims.ngcf_warm import (
    PairSchedule,
    Triples,
    WarmRun,
    fit_warm,
    layer_zero,
    make_pair_schedule,
)
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import INITIAL, fake_share

if TYPE_CHECKING:
    import torch


Ids = NDArray[np.int32] | NDArray[np.int64]


class Examples(NamedTuple):
    """What to train on; batch `b` is `batch_indptr[b]:batch_indptr[b + 1]`."""

    users: Ids
    """Shape `(S,)`."""
    items: Ids
    """Clicked items, shape `(S,)`."""
    negatives: Ids
    """Items that were not clicked, shape `(S,)`."""
    batch_indptr: NDArray[np.int64]
    """Shape `(n_batches + 1,)`."""
    learning_rate: float
    """Step size of these batches."""


class FinetunePlan(NamedTuple):
    """What all poison sets of one seed and shape have in common."""

    warm: PairSchedule
    """Examples of the BPR stage."""
    last: PairSchedule
    """Examples of the steps of Adam; a pass is a batch."""
    fakes: NDArray[np.float32]
    """Fake users' untrained rows, shape `(N, d)`."""


SLOPE = 0.2
"""Of LeakyReLU below zero."""

_LAST = 28
"""Stream of the seed that the steps of Adam draw from."""

_WHOLE_PASS = 1 << 62
"""More examples than a pass has."""

_SCORE_CELLS = 2_000_000
"""Numbers that scoring holds at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NGCFConfig(GradientConfig):
    """Settings of NGCF."""

    n_layers: int = 3
    """Rounds of propagation."""
    initial_scale: float = 0.1
    """Standard deviation of the initial embeddings."""
    warm_start_epochs: int = 60
    """Passes of BPR, with its own default settings, that layer 0 starts from; 0 for a random start."""
    epochs: int = 20
    """Passes over the log in clean training and in `retrain="full"`, after the warm start."""
    learning_rate: float = 5e-3
    """Step size of clean training in its first epoch; it falls linearly towards zero."""
    reg: float = 5e-3
    """L2 penalty on the layer-0 embeddings of each example's user, item and negative."""
    batch_size: int = 8192
    """Examples per gradient step of clean training; each step propagates over the whole graph."""
    popular_negatives: float = 0.1
    """Share of the negatives of clean training that are drawn by popularity, in `[0, 1]`."""
    finetune_epochs: int = 4
    """Passes over the fake clicks in fine-tuning after those of the BPR stage, each one step of Adam.

    The BPR stage has `warm_start_epochs` of them, at clean training's step size. Without this second part the
    order of attacks agrees less with full retraining, and RecNum is too high.
    """
    finetune_learning_rate: float = 0.04
    """Step size of Adam in fine-tuning. Chosen, with the number of steps, on a platform that is not the
    reported one (`recattack bench fidelity --seed 7`)."""
    finetune_replay: float = 1.0
    """How often a clicked item is a genuine user's negative in fine-tuning; 1 is clean training's rate."""
    finetune_batch_size: int = 32
    """Examples per step of fine-tuning's BPR stage, whose gradients are summed; clean training takes one
    example at a time."""
    finetune_waypoints: int = 4
    """States of clean training's BPR stage that fine-tuning follows, and that the victim keeps."""

    def __post_init__(self) -> None:
        GradientConfig.__post_init__(self)
        as_count("n_layers", self.n_layers)
        as_count("finetune_waypoints", self.finetune_waypoints)
        as_count("warm_start_epochs", self.warm_start_epochs, at_least=0)
        as_real("initial_scale", self.initial_scale, above=0.0)
        as_real("popular_negatives", self.popular_negatives, at_least=0.0, at_most=1.0)


class NGCF(Victim):
    """Neural graph collaborative filtering.

    Wang, He, Wang, Feng, Chua, "Neural Graph Collaborative Filtering", SIGIR 2019. A node's embedding
    `e` and the sum `s` of its neighbours' under the symmetric normalisation give the next layer
    `LeakyReLU((s + e) W1 + (s * e) W2 + b)` (Eq. 7); all layers are concatenated (Eq. 9), scored by inner
    product (Eq. 10) and trained with the BPR loss (Eq. 11).

    Fine-tuning is full retraining restricted to what the poison decides at layer 0, which the graph with
    the fake edges carries to everyone; the weights rest. Full retraining first makes layer 0 by BPR. So fake
    users, and clicked items without genuine clicks, are learnt by BPR from scratch, beside genuine users
    and items that stand where clean training had them at the nearest waypoint (`WarmRun`). Examples are
    the fake clicks with their negatives and, at the rate of full retraining, genuine users' negatives
    that fall on what was clicked (`PairSchedule`). Such a negative stands in for another one: it pushes its
    user away from the clicked item, and all else about the user stays as it was. These pushes add up
    and are part of the result. Other clicked items move with the clean run, plus steps scaled with
    `fake_share`. Then fake users and items from scratch take a few steps of Adam on the loss of the whole
    model. Left out is how genuine users and items pull each other along, and how the weights answer. Nor
    do uniform negatives push a clicked item with genuine clicks down the more, the more it rises, as they do
    in full retraining: attacks on existing targets are overestimated, above all on rarely clicked ones.
    There use `retrain="full"`.

    Differs from the paper: layers 1 to L are divided by their L2 norm before concatenation, as in the
    authors' code. Layer 0 starts from BPR with an item bias (the bias is one coordinate of the item,
    times a coordinate of the user that starts at 1), where the paper starts from Xavier's distribution
    and the code offers to start from given embeddings; from a random start, 60 epochs on Steam end
    below BPR. No node or message dropout; one bias per layer; the L2 penalty covers
    layer 0 and not the weights; a falling learning rate; some negatives are drawn by popularity.
    """

    name = "NGCF"
    config_class = NGCFConfig
    config: NGCFConfig
    _run: WarmRun
    _final: NDArray[np.float32] | None = None

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        config, size = self.config, self.config.embedding_size
        seed = draw_seed(rng)
        bound = np.sqrt(6.0 / (2 * size))
        shape = (config.n_layers, 2 * size, size)
        self._weights = rng.uniform(-bound, bound, shape).astype(np.float32)
        self._biases = np.zeros((config.n_layers, size), dtype=np.float32)
        self._embeddings = self._first_embeddings(log, rng)
        parts = self._clean_epochs(log, seed)
        if self.device == "cpu":
            self._train_compiled(parts)
        else:
            self._train(parts)

    def _first_embeddings(self, log: Interactions, rng: np.random.Generator) -> NDArray[np.float32]:
        """Train BPR, keep its run, and fold its item bias into one more dimension; shape `(n_nodes, d)`."""
        config, bpr = self.config, BPRConfig()
        seed = draw_seed(rng)
        factors = Factors.draw(log, config.embedding_size - 1, config.initial_scale, rng)
        self._run = fit_warm(
            factors,
            log,
            n_negative_items=config.negatives_below(log.n_items, self.n_new_items),
            popular_negatives=bpr.popular_negatives,
            epochs=config.warm_start_epochs,
            learning_rate=bpr.learning_rate,
            reg=bpr.reg,
            seed=seed,
            n_waypoints=config.finetune_waypoints,
        )
        return layer_zero(factors)

    def _clean_epochs(self, log: Interactions, seed: int) -> Iterator[Examples]:
        """Yield every event once per epoch, each with an item that its user has not seen."""
        config = self.config
        epochs = clean_epochs(
            log,
            seed,
            epochs=config.epochs,
            batch_size=config.batch_size,
            n_negatives=1,
            below=config.negatives_below(log.n_items, self.n_new_items),
            popular=config.popular_negatives,
        )
        for epoch, (users, items, negatives, batch_indptr) in enumerate(epochs):
            rate = config.learning_rate * (1.0 - epoch / config.epochs)
            yield Examples(users, items, negatives[:, 0], batch_indptr, rate)

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        config, n_items, n_clean = self.config, log.n_items, log.n_items + log.n_users
        plan = self._plan(log, (profile.shape[0], profile.shape[1]), seed)
        share = fake_share(log, profile)
        is_scratch = (share > 0) & (log.item_popularity == 0)
        fakes, items, moved = self._beside(
            plan.warm.examples(log, profile, share > 0), plan, share, is_scratch
        )
        follows = (share > 0) & ~is_scratch
        self._embeddings = np.concatenate([self._embeddings, fakes])
        self._embeddings[:n_items][is_scratch] = items[is_scratch]
        self._embeddings[:n_items][follows] += items[follows]
        triples = plan.last.examples(log, profile, is_scratch)
        fake_nodes = np.arange(n_clean, n_clean + len(profile))
        moving = np.concatenate([np.flatnonzero(is_scratch), fake_nodes])
        self._train(iter([Examples(*triples, config.finetune_learning_rate)]), moving)
        self._embeddings[n_items:n_clean] += moved
        self._run = self._run.after(self._embeddings, np.flatnonzero(share))

    def _beside(
        self,
        triples: Triples,
        plan: "FinetunePlan",
        share: NDArray[np.float32],
        is_scratch: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Learn by BPR what the poison decides, beside the clean run.

        Args:
            triples: What to train on.
            plan: Waypoints and first fakes.
            share: `fake_share`, shape `(n_items,)`.
            is_scratch: Clicked items that are learnt from scratch, shape `(n_items,)`.

        Returns:
            Rows of fake users, shape `(N, d)`; rows of items, shape `(n_items, d)`, for others than
            `is_scratch` less what the clean run has; and how far genuine users are from the clean run.
        """
        import torch
        from torch.nn.functional import softplus

        bpr, run, waypoints = BPRConfig(), self._run, plan.warm.rows.waypoints.tolist()
        n_items, n_users = len(run.first), len(run.past) - len(run.first)
        past, scale, scratch = (
            torch.as_tensor(x, device=self.device) for x in (run.past, share, is_scratch)
        )
        rests = (scale == 0)[:, None]
        fakes = torch.tensor(plan.fakes, device=self.device, requires_grad=True)
        moved = torch.zeros_like(past[n_items:, 0], requires_grad=True)
        place = waypoints[0] if waypoints else 0
        first = torch.as_tensor(run.first, device=self.device)
        items = torch.where(scratch[:, None], first, past[:n_items, place]).requires_grad_()
        ids = [torch.as_tensor(x.astype(np.int64), device=self.device) for x in triples[:3]]
        optimiser = torch.optim.SGD([fakes, items, moved], lr=bpr.learning_rate)
        for (start, end), after in zip(pairwise(triples.batch_indptr), waypoints, strict=True):
            if after != place:
                with torch.no_grad():
                    step = past[:n_items, after] - past[:n_items, place]
                    items += torch.where(scratch[:, None], 0.0, step)
                place = after
            user, item, other = (x[start:end] for x in ids)
            is_fake = user >= n_users
            rows = torch.where(rests, past[:n_items, place], items)
            q, r = rows[item], rows[other]
            p = fakes[user[is_fake] - n_users]
            margin = (p * (q[is_fake] - r[is_fake])).sum(dim=1)
            norms = p[:, :-1].square().sum() + q[is_fake].square().sum() + r.square().sum()
            genuine, clicked = user[~is_fake], q[~is_fake].detach()
            stands = past[n_items + genuine, place] + moved[genuine]
            other_margin = (stands.detach() * clicked).sum(dim=1) - (stands * r[~is_fake]).sum(
                dim=1
            )
            loss = softplus(-margin).sum() + softplus(-other_margin).sum() + 0.5 * bpr.reg * norms
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            for tensor in (fakes, moved):
                if tensor.grad is not None:
                    tensor.grad[:, -1] = 0.0  # what multiplies the bias
            hold_back(scale, items)
            optimiser.step()
        with torch.no_grad():
            items -= torch.where(scratch[:, None], 0.0, past[:n_items, place])
        fake_rows, item_rows, steps = (x.detach().cpu().numpy() for x in (fakes, items, moved))
        return fake_rows, item_rows, steps

    def _first_fakes(self, seed: int, n_fake_users: int) -> NDArray[np.float32]:
        """Return fake users' untrained embeddings, which depend on the seed alone; shape `(N, d)`."""
        config = self.config
        rows = counter_normal(seed, INITIAL, (n_fake_users, config.embedding_size - 1))
        return _with_one(rows * np.float32(config.initial_scale))

    def _plan(self, log: Interactions, profile_shape: tuple[int, int], seed: int) -> "FinetunePlan":
        config = self.config
        below = config.negatives_below(log.n_items, self.n_new_items)
        lay_out = partial(
            make_pair_schedule, log, profile_shape, replay=config.finetune_replay, below=below
        )
        return FinetunePlan(
            warm=lay_out(
                seed=seed,
                epochs=config.warm_start_epochs,
                batch_size=config.finetune_batch_size,
                popular_negatives=BPRConfig().popular_negatives,
                n_waypoints=config.finetune_waypoints,
            ),
            last=lay_out(
                seed=int(
                    counter_words(seed, _LAST, np.zeros(1, dtype=np.int64))[0] >> np.uint64(1)
                ),
                epochs=config.finetune_epochs,
                batch_size=_WHOLE_PASS,
                popular_negatives=config.popular_negatives,
                n_waypoints=1,
            ),
            fakes=self._first_fakes(seed, profile_shape[0]),
        )

    def _train(self, parts: Iterator[Examples], moving: NDArray[np.int64] | None = None) -> None:
        """Take one Adam step per batch, propagating over `self.log`'s graph.

        Args:
            parts: What to train on.
            moving: The only nodes whose embeddings move, with the weights fixed; `None` to move all.
        """
        import torch
        from torch.nn.functional import embedding, softplus

        n_items = self.log.n_items
        adjacency = _adjacency(InteractionGraph.from_log(self.log), self.device)
        embeddings, weights, biases = (
            torch.tensor(array, device=self.device)
            for array in (self._embeddings, self._weights, self._biases)
        )
        nodes = torch.arange(len(embeddings), device=self.device)
        if moving is not None:
            nodes = torch.as_tensor(moving, device=self.device)
        rows = embeddings[nodes].requires_grad_()
        learnt = [rows]
        if moving is None:
            learnt += [weights.requires_grad_(), biases.requires_grad_()]
        optimiser = torch.optim.Adam(learnt)
        for users, items, negatives, indptr, learning_rate in parts:
            optimiser.param_groups[0]["lr"] = learning_rate
            triples = np.stack([users + n_items, items, negatives]).astype(np.int64)
            on_device = torch.from_numpy(triples).to(self.device)
            for start, end in pairwise(indptr.tolist()):
                batch = on_device[:, start:end]
                layer0 = embeddings.index_copy(0, nodes, rows)
                final = propagate(adjacency, layer0, weights, biases)
                user, item, negative = embedding(batch, final)
                margin = (user * (item - negative)).sum(dim=1)
                penalty = embedding(batch, layer0).square().sum() / (end - start)
                loss = softplus(-margin).mean() + 0.5 * self.config.reg * penalty
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        layer0 = embeddings.index_copy(0, nodes, rows)
        self._embeddings, self._weights, self._biases = (
            tensor.detach().cpu().numpy() for tensor in (layer0, weights, biases)
        )
        self._final = None

    def _train_compiled(self, parts: Iterator[Examples]) -> None:
        """Do what `_train` does, on one core."""
        from recattack_gym.victims.ngcf_kernel import Parameters, Trainer

        parameters = Parameters(self._embeddings, self._weights, self._biases)
        trainer = Trainer(parameters, InteractionGraph.from_log(self.log), self.log.n_items)
        for examples in parts:
            trainer.train(*examples, reg=self.config.reg)
        self._final = None

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:
        if self.device != "cpu":
            return None
        from recattack_gym.victims.graph_kernel import make_contest
        from recattack_gym.victims.ngcf_engine import NGCFEngine
        from recattack_gym.victims.ngcf_kernel import Parameters

        log, config, bpr = self.log, self.config, BPRConfig()
        return NGCFEngine(
            Parameters(self._embeddings, self._weights, self._biases),
            InteractionGraph.from_log(log),
            make_contest(lists, self._score),
            log,
            self._run,
            partial(self._plan, log),
            warm_rate=bpr.learning_rate,
            warm_reg=bpr.reg,
            learning_rate=config.finetune_learning_rate,
            reg=config.reg,
        )

    def _propagated(self) -> NDArray[np.float32]:
        """Return what items and users are scored by; shape `(n_nodes, (n_layers + 1) * d)`."""
        import torch

        final = self._final
        if final is None:
            arrays = (self._embeddings, self._weights, self._biases)
            with torch.no_grad():
                adjacency = _adjacency(InteractionGraph.from_log(self.log), self.device)
                parameters = [torch.tensor(array, device=self.device) for array in arrays]
                final = propagate(adjacency, *parameters).cpu().numpy()
            self._final = final
        return final

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        final, n_items = self._propagated(), self.log.n_items
        width = item_ids.shape[1]
        scores = np.empty(item_ids.shape, dtype=np.float32)
        whole = width * 16 > n_items  # one matrix product is then cheaper than gathering rows
        step = max(1, _SCORE_CELLS // (n_items if whole else max(1, width * final.shape[1])))
        for start in range(0, len(user_ids), step):
            rows = slice(start, start + step)
            users, items = final[n_items + user_ids[rows]], item_ids[rows]
            if whole:
                scores[rows] = np.take_along_axis(users @ final[:n_items].T, items, axis=1)
            else:
                scores[rows] = (final[items] @ users[:, :, None])[:, :, 0]
        return scores

    def _state(self) -> State:
        return {
            "embeddings": self._embeddings,
            "weights": self._weights,
            "biases": self._biases,
            **self._run.as_state(),
        }

    def _set_state(self, state: State) -> None:
        size, n_layers = self.config.embedding_size, self.config.n_layers
        shapes: dict[str, tuple[int | None, ...]] = {
            "embeddings": (None, size),
            "weights": (n_layers, 2 * size, size),
            "biases": (n_layers, size),
        }
        self._embeddings, self._weights, self._biases = (
            np.ascontiguousarray(state_array(state, key, shape), dtype=np.float32)
            for key, shape in shapes.items()
        )
        of_run = (len(self._embeddings), self.config.finetune_waypoints, size)
        self._run = WarmRun.from_state(state, of_run, self.log.n_items)
        self._final = None


def propagate(
    adjacency: "torch.Tensor",
    embeddings: "torch.Tensor",
    weights: "torch.Tensor",
    biases: "torch.Tensor",
) -> "torch.Tensor":
    """Propagate over the graph and concatenate the layers (Wang et al., SIGIR 2019, Eqs. 7-9).

    Args:
        adjacency: Symmetrically normalised, sparse CSR, shape `(n_nodes, n_nodes)`.
        embeddings: Shape `(n_nodes, d)`.
        weights: Shape `(n_layers, 2 * d, d)`: for the sum and, below, for the product.
        biases: Shape `(n_layers, d)`.

    Returns:
        Shape `(n_nodes, (n_layers + 1) * d)`; layers after the first have unit rows.
    """
    import torch
    from torch.nn.functional import leaky_relu, normalize

    class Neighbours(torch.autograd.Function):
        """Multiply by the adjacency; it is symmetric, so its backward is itself."""

        @staticmethod
        def forward(context: object, rows: torch.Tensor) -> torch.Tensor:
            del context
            return adjacency @ rows

        @staticmethod
        def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
            del context
            return adjacency @ gradient

    layers, rows = [embeddings], embeddings
    for weight, bias in zip(weights, biases, strict=True):
        neighbours = cast("torch.Tensor", Neighbours.apply(rows))  # type: ignore[no-untyped-call]  # torch has no annotation
        both = torch.cat([neighbours + rows, neighbours * rows], dim=1)
        rows = leaky_relu(both @ weight + bias, SLOPE)
        layers.append(normalize(rows, dim=1))
    return torch.cat(layers, dim=1)


def _adjacency(graph: InteractionGraph, device: str) -> "torch.Tensor":
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(graph.indptr),
            torch.from_numpy(graph.neighbours.astype(np.int64)),
            torch.from_numpy(graph.normalised),
            (graph.n_nodes, graph.n_nodes),
            device=device,
            check_invariants=False,
        )


def _with_one(users: NDArray[np.float32]) -> NDArray[np.float32]:
    """Append the coordinate that multiplies the items' bias."""
    return np.column_stack([users, np.ones(len(users), dtype=np.float32)])
