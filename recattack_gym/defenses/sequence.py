"""A recurrent network that reads what an account clicked, in order: the detector for click trajectories."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.defenses.base import DetectorConfig, State, SupervisedDetector
from recattack_gym.defenses.pairs import UserItems

if TYPE_CHECKING:
    import torch

N_BANDS = 20
"""Bands of popularity: an item is in band b if about one user in 2^b has it."""
_SCORE_BATCH = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceConfig(DetectorConfig):
    """Settings of `SequenceDetector`; sizes are ours, since the paper's are not known."""

    embedding_size: int = 64
    """Of an item and of its band of popularity."""
    hidden_size: int = 64
    """Of the recurrent state."""
    max_length: int = 50
    """Clicks that are read, the last ones of an account."""
    uses_items: bool = True
    """Whether it knows items by their ids; if not, only how popular each is, and repeated."""
    unknown_rate: float = 0.2
    """Share of items hidden in training, so that it has an idea of items that it has never seen."""
    dropout: float = 0.3
    """Of embeddings and of what is classified."""
    learning_rate: float = 1e-3
    """Of Adam."""
    batch_size: int = 64
    """Half genuine, half fake users."""
    epochs: int = 20
    """Each with as many batches as it takes to show every fake user four times."""
    validation_share: float = 0.2
    """Of both kinds of user, kept aside to choose the best epoch by."""

    def __post_init__(self) -> None:
        for name in ("embedding_size", "hidden_size", "max_length", "epochs"):
            as_count(name, getattr(self, name))
        as_count("batch_size", self.batch_size, at_least=2)
        as_real("learning_rate", self.learning_rate, above=0.0)
        for name in ("unknown_rate", "dropout", "validation_share"):
            as_real(name, getattr(self, name), at_least=0.0, at_most=0.9)
        if not isinstance(self.uses_items, bool):
            raise ArgumentError(f"uses_items must be True or False, got {self.uses_items!r}")


class SequenceDetector(SupervisedDetector):
    """Suspect accounts by the order of what they click: a GRU, and attention over its states.

    Cao, Chen, Yao, Wang and Zhang, "Adversarial attacks and detection on reinforcement learning-based
    interactive recommender systems", SIGIR 2020: an encoder reads the sequence; attention weighs its states
    by item, state and the encoder's last state; a classifier sees the weighted mean and the last state.
    Trained on attacks of one kind it is meant for others. Scores are logits.

    Differs from the paper: it reads clicks of users instead of actions of a recommender; an item is the sum
    of an embedding of its id and of its band of popularity in the log that is scored, and of whether it is
    repeated, since targets and items of another log have ids that it has never seen; all sizes.
    """

    name = "gru-attention"
    config: SequenceConfig
    config_class = SequenceConfig

    def _fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> None:
        import torch

        self._n_items = log.n_items
        read = self._read(log)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(rng))
            network = _Network(self._n_items, self.config)
            self._train(network, read, is_fake, rng)
        self._weights: State = {
            name: value.numpy().copy() for name, value in network.module.state_dict().items()
        }

    def _train(
        self,
        network: "_Network",
        read: NDArray[np.int64],
        is_fake: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> None:
        """Train, and leave the network as it was after its best epoch."""
        import torch

        config = self.config
        fake, genuine = (rng.permutation(np.flatnonzero(part)) for part in (is_fake, ~is_fake))
        n_kept = [int(config.validation_share * len(part)) for part in (fake, genuine)]
        kept = np.concatenate([part[:n] for part, n in zip((fake, genuine), n_kept, strict=True)])
        fake, genuine = fake[n_kept[0] :], genuine[n_kept[1] :]
        optimizer = torch.optim.Adam(network.module.parameters(), lr=config.learning_rate)
        half = config.batch_size // 2
        targets = torch.cat([torch.ones(half), torch.zeros(half)])
        best, best_weights = -np.inf, {}
        for _ in range(config.epochs):
            network.module.train()
            for _ in range(max(1, -(-4 * len(fake) // half))):
                chosen = np.concatenate([rng.choice(part, half) for part in (fake, genuine)])
                optimizer.zero_grad()
                logits = network.logits(torch.from_numpy(read[chosen]))
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
                torch.nn.utils.clip_grad_norm_(network.module.parameters(), 5.0)
                optimizer.step()
            quality = _auc(network.scores(read[kept]), is_fake[kept]) if min(n_kept) else 0.0
            if quality >= best:
                best = quality
                best_weights = {k: v.clone() for k, v in network.module.state_dict().items()}
        network.module.load_state_dict(best_weights)

    def _read(self, log: Interactions) -> NDArray[np.int64]:
        """Return what the network reads: item, band and whether repeated, plus 1, 0 where nothing is.

        The item is 0 where it is unknown, too: the embedding of 0 is zero, as are those of items that
        training never met.

        Shape `(n_users, max_length, 3)`; sequences start at the left.
        """
        config = self.config
        lengths = np.diff(log.indptr)
        place = np.arange(len(log)) - log.indptr[log.user_ids]
        start = np.maximum(lengths - config.max_length, 0)[log.user_ids]
        is_read = place >= start
        pairs = UserItems.of(log)
        share = np.maximum(pairs.n_raters, 1) / log.n_users
        band = np.clip(np.round(-np.log2(share)), 0, N_BANDS - 1).astype(np.int64)
        keys = log.user_ids * np.int64(log.n_items) + log.item_ids
        is_repeat = np.ones(len(log), dtype=np.int64)
        is_repeat[np.unique(keys, return_index=True)[1]] = 0
        is_known = (log.item_ids < self._n_items) & config.uses_items
        read = np.zeros((log.n_users, config.max_length, 3), dtype=np.int64)
        where = log.user_ids[is_read], (place - start)[is_read]
        columns = np.where(is_known, log.item_ids + 1, 0), band[log.item_ids] + 1, is_repeat + 1
        for column, values in enumerate(columns):
            read[(*where, column)] = values[is_read]
        return read

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        return self._network().scores(self._read(log))

    def _network(self) -> "_Network":
        import torch

        with torch.random.fork_rng(devices=[]):
            network = _Network(self._n_items, self.config)
        network.module.load_state_dict(
            {name: torch.from_numpy(value.copy()) for name, value in self._weights.items()}
        )
        return network

    def attention(self, log: Interactions) -> NDArray[np.float64]:
        """Return how much each click that was read counts, shape `(n_users, max_length)`; rows sum to 1."""
        import torch

        network = self._network()
        network.module.eval()
        with torch.no_grad():
            weights = network.states(torch.from_numpy(self._read(log)))[2]
        result: NDArray[np.float64] = weights.numpy().astype(np.float64)
        return result

    def _state(self) -> State:
        return {"n_items": np.array(self._n_items), **self._weights}

    def _restore(self, state: State) -> None:
        self._n_items = int(state["n_items"])
        self._weights = {name: value for name, value in state.items() if name != "n_items"}
        names = set(_Network(1, self.config).module.state_dict())
        if names != set(self._weights):
            raise KeyError(", ".join(sorted(names ^ set(self._weights))))


class _Network:
    """The parameters, and how they read sequences."""

    def __init__(self, n_items: int, config: SequenceConfig) -> None:
        from torch import nn

        size, hidden = config.embedding_size, config.hidden_size
        self.config = config
        items = nn.Embedding(n_items + 1, size, padding_idx=0)
        nn.init.zeros_(items.weight)
        self.module = nn.ModuleDict(
            {
                "item": items,
                "band": nn.Embedding(N_BANDS + 1, size, padding_idx=0),
                "repeat": nn.Embedding(3, size, padding_idx=0),
                "gru": nn.GRU(size, hidden, batch_first=True),
                "of_item": nn.Linear(size, hidden, bias=False),
                "of_state": nn.Linear(hidden, hidden, bias=False),
                "of_last": nn.Linear(hidden, hidden, bias=False),
                "weight": nn.Linear(hidden, 1, bias=False),
                "out": nn.Linear(2 * hidden, 1),
            }
        )
        self.dropout = nn.Dropout(config.dropout)

    def states(self, read: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Return states `(n, length, hidden)`, the last of each `(n, hidden)`, attention `(n, length)`."""
        import torch

        part, is_training = self.module, self.module.training
        items = read[..., 0]
        if is_training:
            items = items * (torch.rand(items.shape) >= self.config.unknown_rate)
        embedded = part["item"](items) + part["band"](read[..., 1]) + part["repeat"](read[..., 2])
        self.dropout.train(is_training)
        embedded = self.dropout(embedded)
        states, _ = part["gru"](embedded)
        is_there = read[..., 1] > 0
        end = is_there.sum(dim=1) - 1
        last = states[torch.arange(len(read)), end]
        mixed = part["of_item"](embedded) + part["of_state"](states)
        score = part["weight"](torch.tanh(mixed + part["of_last"](last)[:, None]))[..., 0]
        return states, last, torch.softmax(score.masked_fill(~is_there, -torch.inf), dim=1)

    def logits(self, read: "torch.Tensor") -> "torch.Tensor":
        """Return the decision for each sequence, shape `(n,)`."""
        import torch

        states, last, attention = self.states(read)
        context = (attention[..., None] * states).sum(dim=1)
        both = self.dropout(torch.cat([context, last], dim=1))
        result: torch.Tensor = self.module["out"](both)[:, 0]
        return result

    def scores(self, read: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return logits without dropout, shape `(n,)`; sequences of like length are read together."""
        import torch

        self.module.eval()
        result = np.empty(len(read))
        lengths = (read[..., 1] > 0).sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        with torch.no_grad():
            for start in range(0, len(read), _SCORE_BATCH):
                rows = order[start : start + _SCORE_BATCH]
                cut = read[rows][:, : lengths[rows].max()]
                result[rows] = self.logits(torch.from_numpy(cut)).numpy()
        return result


def _auc(scores: NDArray[np.float64], is_fake: NDArray[np.bool_]) -> float:
    """Return the share of (fake, genuine) pairs in the right order; ties count half."""
    fake, genuine = scores[is_fake][:, None], scores[~is_fake]
    return float(((fake > genuine) + 0.5 * (fake == genuine)).mean())
