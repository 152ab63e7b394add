"""LightGCN: embeddings that are averaged over the user-item graph, and nothing else."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_normal, draw_seed
from recattack_gym.victims.base import ExposureEngine, GradientConfig, State, Victim, state_array
from recattack_gym.victims.bpr import BPRConfig
from recattack_gym.victims.epochs import clean_epochs
from recattack_gym.victims.factors import (
    Factors,
    FactorSchedule,
    hold_back,
    make_factor_schedule,
)
from recattack_gym.victims.graph import InteractionGraph
from recattack_gym.victims.ngcf import Examples, _adjacency, _with_one
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import INITIAL, fake_share

if TYPE_CHECKING:
    import torch

_SOLVER_STEPS = 40
"""Most conjugate gradient steps that find layer 0 after fine-tuning; about 20 are taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LightGCNConfig(GradientConfig):
    """Settings of LightGCN."""

    n_layers: int = 2
    """Rounds of propagation; layers 0 to `n_layers` are averaged.

    With 2 the mean has no eigenvalue below 1/4, so that layer 0 can be solved for; with 3, the default of
    the authors' code, it annuls the eigenvalue -1, where the item bias lies. Validation HR@10 and NDCG@10 on
    Steam at a step size of 0.005: 0.416 and 0.284 with 2, 0.419 and 0.269 with 3 (30 steps of the solver).
    """
    initial_scale: float = 0.1
    """Standard deviation of the initial embeddings."""
    warm_start_epochs: int = 120
    """Passes of BPR that training starts from, all with BPR's own defaults; 0 for a random start."""
    warm_start_steps: int = 10
    """Conjugate gradient steps that fit layer 0 to the warm start."""
    epochs: int = 4
    """Passes over the log in clean training and in `retrain="full"`, after the warm start."""
    learning_rate: float = 0.002
    """Step size of clean training in its first epoch; it falls linearly towards zero.

    Validation HR@10 and NDCG@10 on Steam (BPR 0.409 and 0.289): 0.427 and 0.295 with 0.002, 0.416 and 0.284
    with 0.005, 0.417 and 0.301 without any training after the warm start.
    """
    reg: float = 1e-3
    """L2 penalty on the layer-0 embeddings of each example's user, item and negative."""
    batch_size: int = 8192
    """Examples per gradient step of clean training; each step propagates over the whole graph."""
    popular_negatives: float = 0.25
    """Share of the negatives of clean training that are drawn by popularity, in `[0, 1]`."""
    finetune_epochs: int = 120
    """Passes over the fake clicks in `retrain="finetune"`; this and the step size are those of BPR."""
    finetune_learning_rate: float = 0.05
    """Step size of stochastic gradient descent in fine-tuning."""
    finetune_replay: float = 1.5
    """How often a clicked item is a genuine user's negative in fine-tuning; 1 is clean training's rate.

    Chosen with `retrain="full"` on 40 attacks on Steam, on a platform that is not the reported one
    (`recattack bench fidelity --protocol poisonrec --seed 7 --attacks 40 --draws 1 --victims LightGCN`).
    """
    finetune_batch_size: int = 64
    """Examples per step of fine-tuning, whose gradients are summed."""

    def __post_init__(self) -> None:
        GradientConfig.__post_init__(self)
        as_count("n_layers", self.n_layers)
        as_count("warm_start_epochs", self.warm_start_epochs, at_least=0)
        as_count("warm_start_steps", self.warm_start_steps, at_least=0)
        as_real("initial_scale", self.initial_scale, above=0.0)
        as_real("popular_negatives", self.popular_negatives, at_least=0.0, at_most=1.0)


class LightGCN(Victim):
    """Light graph convolution.

    He, Deng, Wang, Li, Zhang, Wang, "LightGCN: Simplifying and Powering Graph Convolution Network for
    Recommendation", SIGIR 2020: the next layer is the sum over neighbours under the symmetric normalisation
    (Eq. 7), a node's final embedding is the mean of layers 0 to L (Eq. 8, all weights `1 / (L + 1)`), scores
    are inner products (Eq. 9), and only layer 0 is learnt, with the BPR loss (Eq. 15).

    Fine-tuning is full retraining restricted to what the poison decides, and follows its parts: the final
    embeddings of the fake users and of the items that they clicked are trained as the factors of BPR are
    (see `FactorVictim`), then layer 0 is solved for on the graph with the fake edges. So these act as in full
    retraining: what is learnt is learnt for the graph that there is. To keep the clean layer 0 and let the
    new edges shift everyone's embeddings orders attacks otherwise.

    Differs from the paper: layer 0 starts from what makes the mean of the layers nearly equal to the
    factors of BPR with an item bias (the bias is one coordinate of the item, times a coordinate of the user
    that starts at 1), where the paper starts from Xavier's distribution and takes hundreds of passes; from a
    random start, 80 passes on Steam reach a validation HR@10 of 0.394 (BPR 0.409). Training on the graph is
    short after that: on Steam 85 % of the top ten are those of the start. Two layers instead of three; the
    L2 penalty is on the examples' embeddings, as in the authors' code; a falling learning rate; some
    negatives are drawn by popularity.
    """

    name = "LightGCN"
    config_class = LightGCNConfig
    config: LightGCNConfig
    _final: NDArray[np.float32] | None = None

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        seed = draw_seed(rng)
        self._embeddings = self._first_embeddings(log, rng)
        parts = self._clean_epochs(log, seed)
        if self.device == "cpu":
            self._train_compiled(parts)
        else:
            self._train(parts)

    def _first_embeddings(self, log: Interactions, rng: np.random.Generator) -> NDArray[np.float32]:
        """Train BPR and find a layer 0 whose mean over the layers comes near; shape `(n_nodes, d)`."""
        config = self.config
        seed = draw_seed(rng)
        factors = Factors.draw(log, config.embedding_size - 1, config.initial_scale, rng)
        self._fit_factors(factors, log, seed)
        items = np.column_stack([factors.items, factors.bias])
        rows = np.concatenate([items, _with_one(factors.users)])
        if config.warm_start_epochs == 0:
            return rows
        return solve_layer0(self._mean_over(log), rows, config.warm_start_steps)

    def _fit_factors(self, factors: Factors, log: Interactions, seed: int) -> None:
        """Train the factors of the warm start in place."""
        from recattack_gym.victims.mf_kernel import fit_bpr

        config, bpr = self.config, BPRConfig()
        fit_bpr(
            factors,
            log,
            n_negative_items=config.negatives_below(log.n_items, self.n_new_items),
            popular_negatives=bpr.popular_negatives,
            epochs=config.warm_start_epochs,
            learning_rate=bpr.learning_rate,
            reg=bpr.reg,
            seed=seed,
        )

    def _mean_over(self, log: Interactions) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Return what averages the layers above any layer 0 of shape `(n_nodes, d)` on a log's graph."""
        import torch

        n_layers = self.config.n_layers
        graph = InteractionGraph.from_log(log)
        if self.device == "cpu":
            from recattack_gym.victims.lightgcn_kernel import mean_of_layers

            return partial(mean_of_layers, graph, n_layers)
        adjacency = _adjacency(graph, self.device)

        def mean(rows: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.no_grad():
                layer0 = torch.as_tensor(rows, device=self.device)
                return propagate(adjacency, layer0, n_layers).cpu().numpy()

        return mean

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
        fakes = self._first_fakes(seed, len(profile))
        layer0 = np.concatenate([self._embeddings, fakes])
        final = np.concatenate([self._mean_over(log)(self._embeddings), fakes])
        wanted = self._train_final(log, profile, seed, final)
        self._embeddings = solve_layer0(
            self._mean_over(self.log), wanted, _SOLVER_STEPS, start=layer0
        )
        self._final = None

    def _train_final(
        self, log: Interactions, profile: NDArray[np.int64], seed: int, final: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Train final embeddings on the BPR loss as far as the poison decides them; `(n_nodes, d)`.

        The users' last coordinate, which the item bias is multiplied by, is no parameter of BPR and rests.
        """
        import torch
        from torch.nn.functional import softplus

        config = self._bpr_config
        schedule = self._schedule(log, (profile.shape[0], profile.shape[1]), seed)
        share = torch.as_tensor(fake_share(log, profile), device=self.device)
        user_ids, item_ids, negatives = (
            torch.as_tensor(ids, device=self.device) for ids in schedule.examples(log, profile)
        )
        items = torch.tensor(final[: log.n_items], device=self.device).requires_grad_()
        rows = torch.tensor(final[log.n_items :], device=self.device)
        users, constant = rows[:, :-1].clone().requires_grad_(), rows[:, -1:]
        optimiser = torch.optim.SGD([users, items], lr=config.finetune_learning_rate)
        for start, end in pairwise(schedule.updates.batch_indptr):
            of_examples = user_ids[start:end]
            p = torch.cat([users[of_examples], constant[of_examples]], dim=1)
            q, r = items[item_ids[start:end]], items[negatives[start:end, 0]]
            norms = (p**2 + q**2 + r**2).sum()
            loss = softplus(-(p * (q - r)).sum(dim=1)).sum() + 0.5 * config.reg * norms
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            hold_back(share, items)
            optimiser.step()
        with torch.no_grad():
            return torch.cat([items, torch.cat([users, constant], dim=1)]).cpu().numpy()

    @property
    def _bpr_config(self) -> BPRConfig:
        """The settings of BPR that fine-tuning follows."""
        config = self.config
        return BPRConfig(
            embedding_size=config.embedding_size,
            initial_scale=config.initial_scale,
            new_items_as_negatives=config.new_items_as_negatives,
            finetune_epochs=config.finetune_epochs,
            finetune_learning_rate=config.finetune_learning_rate,
            finetune_replay=config.finetune_replay,
            finetune_batch_size=config.finetune_batch_size,
        )

    def _first_fakes(self, seed: int, n_fake_users: int) -> NDArray[np.float32]:
        """Return fake users' untrained embeddings, which depend on the seed alone; shape `(N, d)`."""
        config = self.config
        rows = counter_normal(seed, INITIAL, (n_fake_users, config.embedding_size - 1))
        return _with_one(rows * np.float32(config.initial_scale))

    def _schedule(
        self, log: Interactions, profile_shape: tuple[int, int], seed: int
    ) -> FactorSchedule:
        config = self._bpr_config
        return make_factor_schedule(
            log,
            profile_shape,
            config,
            seed=seed,
            n_negatives=1,
            popular_negatives=config.popular_negatives,
            n_new_items=self.n_new_items,
        )

    def _train(self, parts: Iterator[Examples]) -> None:
        """Take one Adam step per batch, propagating over `self.log`'s graph."""
        import torch
        from torch.nn.functional import embedding, softplus

        n_items = self.log.n_items
        adjacency = _adjacency(InteractionGraph.from_log(self.log), self.device)
        layer0 = torch.tensor(self._embeddings, device=self.device).requires_grad_()
        optimiser = torch.optim.Adam([layer0])
        for users, items, negatives, indptr, learning_rate in parts:
            optimiser.param_groups[0]["lr"] = learning_rate
            triples = np.stack([users + n_items, items, negatives]).astype(np.int64)
            on_device = torch.from_numpy(triples).to(self.device)
            for first, last in pairwise(indptr.tolist()):
                batch = on_device[:, first:last]
                final = propagate(adjacency, layer0, self.config.n_layers)
                user, item, negative = embedding(batch, final)
                margin = (user * (item - negative)).sum(dim=1)
                penalty = embedding(batch, layer0).square().sum() / (last - first)
                loss = softplus(-margin).mean() + 0.5 * self.config.reg * penalty
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        self._embeddings = layer0.detach().cpu().numpy()
        self._final = None

    def _train_compiled(self, parts: Iterator[Examples]) -> None:
        """Do what `_train` does, on one core."""
        from recattack_gym.victims.lightgcn_kernel import Trainer

        graph = InteractionGraph.from_log(self.log)
        trainer = Trainer(self._embeddings, graph, self.config.n_layers)
        for examples in parts:
            trainer.train(*examples, reg=self.config.reg)
        self._final = None

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:
        """Return the fast twin, which never looks at the graph; an odd number of layers has none.

        With an even number the mean is invertible, so that final embeddings are what fine-tuning wants.
        """
        if self.device != "cpu" or self.config.n_layers % 2 == 1:
            return None
        from recattack_gym.victims.lightgcn_engine import LightGCNEngine

        final, n_items = self._propagated(), self.log.n_items
        factors = Factors(final[n_items:], final[:n_items], np.zeros(n_items, dtype=np.float32))
        return LightGCNEngine(factors, lists, self._bpr_config, self._schedule, self._first_fakes)

    def _propagated(self) -> NDArray[np.float32]:
        """Return what items and users are scored by; shape `(n_nodes, d)`."""
        final = self._final
        if final is None:
            final = self._mean_over(self.log)(self._embeddings)
            self._final = final
        return final

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        final, n_items = self._propagated(), self.log.n_items
        factors = Factors(final[n_items:], final[:n_items], np.zeros(n_items, dtype=np.float32))
        return factors.score(user_ids, item_ids)

    def _state(self) -> State:
        return {"embeddings": self._embeddings}

    def _set_state(self, state: State) -> None:
        rows = state_array(state, "embeddings", (None, self.config.embedding_size))
        self._embeddings = np.ascontiguousarray(rows, dtype=np.float32)
        self._final = None


def propagate(
    adjacency: "torch.Tensor", embeddings: "torch.Tensor", n_layers: int
) -> "torch.Tensor":
    """Average layers 0 to `n_layers` (He et al., SIGIR 2020, Eqs. 7 and 8).

    Args:
        adjacency: Symmetrically normalised, sparse CSR, shape `(n_nodes, n_nodes)`.
        embeddings: Layer 0, shape `(n_nodes, d)`.
        n_layers: Rounds of propagation.

    Returns:
        Shape `(n_nodes, d)`.
    """
    import torch

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

    total = layer = embeddings
    for _ in range(n_layers):
        layer = cast("torch.Tensor", Neighbours.apply(layer))  # type: ignore[no-untyped-call]  # torch has no annotation
        total = total + layer
    return total / (n_layers + 1)


def solve_layer0(
    mean: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    wanted: NDArray[np.float32],
    n_steps: int,
    *,
    start: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Find a layer 0 whose mean over the layers comes near to given embeddings.

    Conjugate gradients on the normal equations of `|mean(x) - wanted|^2` (Hestenes and Stiefel, 1952).
    Directions that the mean nearly annuls stay as they are, since they need many steps.

    Args:
        mean: A symmetric linear operator on arrays of the shape of `wanted`.
        wanted: Shape `(n_nodes, d)`.
        n_steps: How many, at most: fewer where it is reached to seven digits.
        start: Where to start, of the same shape; `None` for zero.
    """
    solution = np.zeros_like(wanted) if start is None else start.copy()
    residual = wanted - mean(solution)
    slope = mean(residual)
    direction = slope.copy()
    norm = float(np.vdot(slope, slope))
    enough = 1e-14 * float(np.vdot(wanted, wanted))
    for _ in range(n_steps):
        image = mean(direction)
        length = float(np.vdot(image, image))
        if norm <= enough or length == 0.0:
            break
        step = np.float32(norm / length)
        solution += step * direction
        residual -= step * image
        slope = mean(residual)
        new_norm = float(np.vdot(slope, slope))
        direction = slope + np.float32(new_norm / norm) * direction
        norm = new_norm
    return solution
