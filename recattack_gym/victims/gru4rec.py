"""GRU4Rec: what a user clicks next, read from what the user clicked last."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.errors import ArtifactError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import (
    counter_integers,
    counter_permutation,
    counter_words,
    draw_seed,
    torch_generator,
)
from recattack_gym.victims.base import ExposureEngine, GradientConfig, State, Victim
from recattack_gym.victims.epochs import visit_batches
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import MAX_TRIES

if TYPE_CHECKING:
    import torch

OFFSET, SESSION_ORDER, SESSION_REPLAY, SESSION_NEGATIVE, DROPOUT = 1 << 21, 17, 18, 19, 20
"""Streams of the counter-based generator."""

_SCORED_AT_ONCE = 1024
"""Users whose histories are unrolled together when scoring."""

_RECURRENT = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""What torch calls the parts of a recurrent layer."""

_INITIAL_SCALE = 0.1
"""Standard deviation of untrained item vectors."""

_BUCKET = 16
"""Clean training sorts this many batches at a time by length, so that little is padded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GRU4RecConfig(GradientConfig):
    """Settings of `GRU4Rec`. An example is a session of up to `max_length + 1` clicks."""

    epochs: int = 10
    """Passes over the log in clean training and in `retrain="full"`."""
    learning_rate: float = 6e-3
    """Step size of clean training."""
    batch_size: int = 128
    """Sessions per gradient step of clean training."""
    max_length: int = 20
    """How many of a user's last clicks are read."""
    n_negatives: int = 256
    """Items that stand for the catalogue in the softmax; drawn for each batch and shared by it."""
    sample_alpha: float = 0.5
    """Items are drawn in proportion to their clicks to this power: 0 is uniform, 1 by popularity."""
    new_items_as_negatives: bool = False
    """Whether items without clicks are drawn too, as if they had one click.

    A new item is drawn from the first click on, be it a fake one: the softmax is over all items that
    the platform has in its log.
    """
    dropout: float = 0.1
    """Share of the input vectors' numbers that clean training drops."""
    reg: float = 0.0
    """L2 penalty on the vectors of a batch's clicks."""
    finetune_epochs: int = 5
    """Passes over the fake sessions in `retrain="finetune"`."""
    finetune_learning_rate: float = 0.03
    """Step size of fine-tuning, few and large steps.

    Among recipes of this cost, best agreement with full retraining over varied attacks on Steam.
    """
    finetune_replay: float = 1.0
    """Genuine clicks mixed in per fake click in every epoch, as whole sessions."""
    finetune_batch_size: int = 64
    """Sessions per gradient step of fine-tuning."""
    finetune_n_negatives: int = 128
    """As `n_negatives`, in fine-tuning."""

    def __post_init__(self) -> None:
        GradientConfig.__post_init__(self)
        for name in ("max_length", "n_negatives", "finetune_n_negatives"):
            as_count(name, getattr(self, name))
        as_real("sample_alpha", self.sample_alpha, at_least=0.0)
        as_real("dropout", self.dropout, at_least=0.0, at_most=0.95)


class GRU4Rec(Victim):
    """A gated recurrent network over each user's clicks; the next item is a softmax over its state.

    Hidasi, Karatzoglou, Baltrunas, Tikk, "Session-based Recommendations with Recurrent Neural
    Networks", ICLR 2016; Hidasi, Karatzoglou, "Recurrent Neural Networks with Top-k Gains for
    Session-based Recommendations", CIKM 2018: cross-entropy over additional negatives shared by a
    batch and drawn from popularity to a power, and one embedding for input and output ("constrained
    embedding"). With state `h` after the last clicks, item `i` scores `h . e_i + b_i`. Before the
    first click `h = 0`, so a user without history gets the biases' order, which is popularity.

    Sampled items count with weight 1 / (expected draws), so that the sum estimates the softmax over
    the whole catalogue (Bengio & Senecal 2008; "logq" in the authors' later code).

    Fake sessions leave the cuts, the dropout and nearly all sampled items of clean training as they were;
    batches, which are of like lengths, exchange a few sessions with their neighbours.

    Fine-tuning was fitted to attacks on Steam. It overestimates the plans of `recattack bench table3` there
    (3.4 times), and on ML-1M and on the generated log it says nothing: Spearman 0.20 and -0.10 with full
    retraining, 42 and 10 times its RecNum. There use `retrain="full"`.

    Differs from the paper: a session is a piece of a user's sequence of at most `max_length + 1` clicks
    instead of a visit, unrolled as a whole instead of session-parallel; Adam instead of Adagrad; the other
    targets of a batch are no extra negatives, only the shared sample is.
    """

    name = "GRU4Rec"
    config_class = GRU4RecConfig
    config: GRU4RecConfig

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        import torch

        config = self.config
        seed = draw_seed(rng)
        generator = torch_generator(rng)
        net = _initial_network(log.n_items, config.embedding_size, generator, self.device)
        probability = self._sampling_probability(log.item_popularity)
        log_weight = torch.from_numpy(log_weights(probability, config.n_negatives)).to(self.device)
        table = self._sampling_table(log)
        optimizer = _adam(net, config.learning_rate)
        with _one_thread():
            for epoch in range(config.epochs):
                starts, lengths = cut(log, config.max_length + 1, seed, epoch)
                for number, rows in _bucketed(lengths, config.batch_size, seed, epoch):
                    sessions = _padded(log.item_ids, starts[rows], lengths[rows])
                    step = (epoch << 32) + number
                    negatives = table.draw(config.n_negatives, seed, step)
                    width = max(sessions.shape[1] - 1, 1)
                    mask = _draw_dropout(starts[rows], width, config, seed, epoch)
                    loss = session_loss(
                        net,
                        torch.from_numpy(sessions).to(self.device),
                        torch.from_numpy(negatives).to(self.device),
                        log_weight,
                        reg=config.reg,
                        mask=None if mask is None else torch.from_numpy(mask).to(self.device),
                    )
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
                    optimizer.step()
        self._net = net

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        import torch

        scores = np.empty(item_ids.shape, dtype=np.float32)
        with torch.no_grad():
            items, bias = self._net.items, self._net.bias
            for start in range(0, len(user_ids), _SCORED_AT_ONCE):
                block = slice(start, start + _SCORED_AT_ONCE)
                states = self._states(user_ids[block])
                wanted = torch.tensor(item_ids[block], device=self.device)
                if wanted.shape[1] * 4 < len(items):
                    product = torch.einsum("ud,ucd->uc", states, items[wanted]) + bias[wanted]
                else:
                    product = (states @ items.T + bias).gather(1, wanted)
                scores[block] = product.cpu().numpy()
        return scores

    def _states(self, user_ids: NDArray[np.int64]) -> "torch.Tensor":
        """Read the users' last clicks; shape `(U, embedding_size)`, zero where there are none."""
        import torch

        indptr = self.log.indptr
        lengths = np.minimum(np.diff(indptr)[user_ids], self.config.max_length)
        history = _padded(self.log.item_ids, indptr[user_ids + 1] - lengths, lengths)
        states = torch.zeros(len(user_ids), self.config.embedding_size, device=self.device)
        if history.shape[1]:
            read = np.flatnonzero(lengths)
            clicks = self._net.items[torch.from_numpy(history[read]).clamp(min=0).to(self.device)]
            steps, _ = self._net.gru(clicks)
            last = torch.from_numpy(lengths[read] - 1).to(self.device)
            states[read] = steps[torch.arange(len(read), device=self.device), last]
        return states

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        import torch

        config = self.config
        schedule = self._schedule(log, (profile.shape[0], profile.shape[1]), seed)
        items = schedule.items(profile)
        optimizer = _adam(self._net, config.finetune_learning_rate)
        probability = self._sampling_probability(self.log.item_popularity)
        log_weight = torch.from_numpy(log_weights(probability, config.finetune_n_negatives))
        for batch in range(len(schedule.batch_indptr) - 1):
            first, last = schedule.batch_indptr[batch : batch + 2]
            bounds = schedule.indptr[first : last + 1]
            sessions = _padded(items, bounds[:-1], np.diff(bounds))
            loss = session_loss(
                self._net,
                torch.from_numpy(sessions).to(self.device),
                torch.from_numpy(pick(probability, schedule.uniform[batch])).to(self.device),
                log_weight.to(self.device),
                reg=config.reg,
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
            optimizer.step()

    def _schedule(
        self, log: Interactions, profile_shape: tuple[int, int], seed: int
    ) -> "SessionSchedule":
        config = self.config
        return make_session_schedule(
            log,
            profile_shape,
            seed=seed,
            session_length=config.max_length + 1,
            epochs=config.finetune_epochs,
            replay=config.finetune_replay,
            batch_size=config.finetune_batch_size,
            n_negatives=config.finetune_n_negatives,
        )

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:
        if lists.item_ids is None or self.device != "cpu":
            return None
        from recattack_gym.victims.gru4rec_kernel import (
            GRU4RecEngine,
            Parameters,
            Recurrent,
            Rows,
            make_contest,
        )

        def sample(
            profile: NDArray[np.int64], uniform: NDArray[np.float64]
        ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            clicks = lists.log.item_popularity + np.bincount(
                profile.ravel(), minlength=lists.log.n_items
            )
            probability = self._sampling_probability(clicks)
            return pick(probability, uniform), log_weights(probability, uniform.shape[1])

        state = self._state()
        clean = Parameters(
            Recurrent(*(_float32(state[f"{name}_l0"]) for name in _RECURRENT)),
            Rows(_float32(state["items"]), _float32(state["bias"])),
        )
        scores = self.score(np.arange(lists.n_users), lists.item_ids)
        return GRU4RecEngine(
            clean,
            make_contest(lists, scores, self.config.max_length),
            lambda shape, seed: self._schedule(lists.log, shape, seed),
            sample,
            learning_rate=self.config.finetune_learning_rate,
            reg=self.config.reg,
        )

    def _sampling_probability(self, clicks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how likely each item is sampled, given its clicks, shape `(n_items,)`; same shape."""
        known = np.maximum(clicks, 1) if self.config.new_items_as_negatives else clicks
        weight = np.where(known > 0, known.astype(np.float64) ** self.config.sample_alpha, 0.0)
        probability: NDArray[np.float64] = weight / weight.sum()
        return probability

    def _sampling_table(self, log: Interactions) -> "SamplingTable":
        """Return what clean training draws from, with the probabilities of `_sampling_probability`."""
        by_item = np.argsort(log.item_ids, kind="stable")
        earlier = np.empty(len(log), dtype=np.int64)  # clicks on the item before this one
        clicks_before = np.cumsum(log.item_popularity) - log.item_popularity
        earlier[by_item] = np.arange(len(log)) - clicks_before[log.item_ids[by_item]]
        everything = self.config.new_items_as_negatives
        power, first = self.config.sample_alpha, 0.0 if everything else 1.0
        rises = np.where(earlier > 0, (earlier + 1.0) ** power - earlier**power, first)
        items = log.item_ids
        if everything:
            items = np.concatenate([np.arange(log.n_items), items])
            rises = np.concatenate([np.ones(log.n_items), rises])
        return SamplingTable(items, np.cumsum(rises))

    def _state(self) -> State:
        return {name: tensor.detach().cpu().numpy() for name, tensor in self._net.tensors.items()}

    def _set_state(self, state: State) -> None:
        import torch

        net = _network(self.log.n_items, self.config.embedding_size, self.device)
        with torch.no_grad():
            for name, tensor in net.tensors.items():
                shape = tuple(tensor.shape)
                if name not in state or state[name].shape != shape:
                    raise ArtifactError(f"the state must have an array {name!r} of shape {shape}")
                tensor.copy_(torch.from_numpy(np.asarray(state[name], dtype=np.float32)))
        self._net = net


@dataclass(frozen=True, eq=False)
class SessionSchedule:
    """The sessions of one fine-tuning run of any profiles of shape `(N, T)`, in training order.

    Attributes:
        clicks: All sessions one after another: an item id of a replayed session, or `-1 - c` for click
            `c` of the flattened profile.
        indptr: Shape `(n_sessions + 1,)`: session `s` is `clicks[indptr[s]:indptr[s + 1]]`.
        batch_indptr: Shape `(n_batches + 1,)`: batch `b` is the sessions
            `batch_indptr[b]:batch_indptr[b + 1]`, longest first.
        uniform: Shape `(n_batches, n_negatives)`, in (0, 1): where the items that stand for the catalogue
            are picked; which ones these are depends on what the profile makes popular.
    """

    clicks: NDArray[np.int64]
    indptr: NDArray[np.int64]
    batch_indptr: NDArray[np.int64]
    uniform: NDArray[np.float64]

    def items(self, profile: NDArray[np.int64]) -> NDArray[np.int64]:
        """Fill in one poison set, shape `(N, T)`; the result has the shape of `clicks`."""
        items = self.clicks.copy()
        fake = np.flatnonzero(items < 0)
        items[fake] = profile.ravel()[-1 - items[fake]]
        return items


def make_session_schedule(
    log: Interactions,
    profile_shape: tuple[int, int],
    *,
    seed: int,
    session_length: int,
    epochs: int,
    replay: float,
    batch_size: int,
    n_negatives: int,
) -> SessionSchedule:
    """Lay out a fine-tuning run: in each epoch every fake session once, and replayed genuine ones.

    Args:
        log: The clean log.
        profile_shape: `(N, T)`; profiles longer than a session are cut into several.
        seed: In `[0, 2**63)`.
        session_length: Clicks of the longest session.
        epochs: Passes over the fake sessions.
        replay: Genuine clicks per fake click: sessions are drawn afresh with replacement in each
            epoch until there are as many clicks; where that reaches `len(log)` every genuine session
            is used exactly once per epoch.
        batch_size: Sessions per gradient step; batches do not cross epochs.
        n_negatives: Items sampled per batch.
    """
    n_clicks = profile_shape[0] * profile_shape[1]
    fake = np.arange(n_clicks)
    fake_starts = fake[fake % profile_shape[1] % session_length == 0]
    fake_lengths = np.diff(fake_starts, append=n_clicks)
    genuine_starts, genuine_lengths = cut(log, session_length)
    wanted = replay * n_clicks
    clicks, lengths, n_sessions = [], [], []
    for epoch in range(epochs):
        if wanted >= len(log):
            picked = np.arange(len(genuine_starts))
        else:
            counters = (epoch << 32) + np.arange(int(np.ceil(wanted)))
            picked = counter_integers(seed, SESSION_REPLAY, counters, len(genuine_starts))
            reached = np.cumsum(genuine_lengths[picked])
            picked = picked[: np.searchsorted(reached, wanted) + 1] if wanted else picked[:0]
        starts = np.concatenate([-1 - fake_starts, genuine_starts[picked]])
        sizes = np.concatenate([fake_lengths, genuine_lengths[picked]])
        order = counter_permutation(seed, (SESSION_ORDER << 32) + epoch, len(starts))
        batch = np.arange(len(starts)) // batch_size
        order = order[np.lexsort((-sizes[order], batch))]
        for start, size in zip(starts[order], sizes[order], strict=True):
            if start < 0:
                clicks.append(start - np.arange(size))
            else:
                clicks.append(log.item_ids[start : start + size])
        lengths.append(sizes[order])
        n_sessions.append(np.bincount(batch))
    batches = np.concatenate([np.zeros(1, dtype=np.int64), *n_sessions])
    n_batches = len(batches) - 1
    return SessionSchedule(
        clicks=np.concatenate([np.zeros(0, dtype=np.int64), *clicks]),
        indptr=np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *lengths])),
        batch_indptr=np.cumsum(batches),
        uniform=_draw_uniform(n_batches * n_negatives, seed, 0).reshape(n_batches, n_negatives),
    )


def cut(
    log: Interactions, session_length: int, seed: int = 0, epoch: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut every user's sequence into sessions; return where they start in the log, and their lengths.

    Cuts are counted from the end of each sequence, so that the last session is the one that is read when
    scoring; with an epoch, longer sequences are cut at places that differ from epoch to epoch.
    """
    sizes = np.diff(log.indptr)
    shift = -sizes % session_length
    if epoch is not None:
        users = np.arange(log.n_users) + (epoch << 32)
        drawn = counter_integers(seed, OFFSET, users, session_length)
        shift = np.where(sizes > session_length, drawn, shift)
    places = np.arange(len(log)) - log.indptr[log.user_ids] + shift[log.user_ids]
    is_start = (places % session_length == 0) | (np.diff(log.user_ids, prepend=-1) != 0)
    starts = np.flatnonzero(is_start)
    return starts, np.diff(starts, append=len(log))


def _bucketed(
    lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield batches of sessions in random order, with sessions of like length together.

    A batch comes with a number that it keeps if sessions are added; then its first and its last sessions
    may change places with the neighbouring batches of like lengths.
    """
    order, groups = visit_batches(seed, epoch, len(lengths), batch_size * _BUCKET)
    batches: dict[int, NDArray[np.int64]] = {}
    for group, (start, end) in enumerate(pairwise(groups)):
        rows = order[start:end]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        n_batches = max(1, round(len(rows) / batch_size))
        bounds = np.arange(n_batches + 1) * len(rows) // n_batches
        for b, (first, last) in enumerate(pairwise(bounds)):
            batches[(group << 12) + b] = rows[first:last]
    numbers = np.array(list(batches))
    words = counter_words(seed, (SESSION_ORDER << 32) + epoch, numbers)
    return ((number, batches[number]) for number in numbers[np.argsort(words)].tolist())


@dataclass(frozen=True, eq=False)
class SamplingTable:
    """Draws items in proportion to a power of their clicks, such that added clicks change few draws.

    Every click adds what the power rises by, in the order of the log. Draws are places below a power
    of two, again until they lie in the table: so clicks at its end take nothing but places that would
    have been drawn again, unless the table outgrows the power of two.

    Attributes:
        items: Shape `(n_entries,)`.
        ends: Shape `(n_entries,)`: entry `e` has the places from `ends[e - 1]` to `ends[e]`.
    """

    items: NDArray[np.int64]
    ends: NDArray[np.float64]

    def draw(self, n: int, seed: int, step: int) -> NDArray[np.int64]:
        """Draw the `n` items of a step."""
        size = 2.0 ** np.ceil(np.log2(self.ends[-1]))
        places = np.full(n, np.inf)
        attempt = 0
        while (again := np.flatnonzero(places >= self.ends[-1])).size:
            counters = (step * MAX_TRIES + attempt) * n + again
            words = counter_words(seed, SESSION_NEGATIVE << 32, counters) >> np.uint64(11)
            places[again] = words.astype(np.float64) * (size * 2.0**-53)
            attempt += 1
        return self.items[np.searchsorted(self.ends, places, side="right")]


def _draw_dropout(
    starts: NDArray[np.int64], width: int, config: GRU4RecConfig, seed: int, epoch: int
) -> NDArray[np.float32] | None:
    """Draw what the inputs of sessions are multiplied by, click by click; shape `(B, width, d)`."""
    if not config.dropout:
        return None
    d = config.embedding_size
    n_words = -(-d // 4)  # a word has four draws
    clicks = starts[:, None, None] + np.arange(width)[:, None]
    counters = clicks * n_words + np.arange(n_words)
    draws = counter_words(seed, (DROPOUT << 32) + epoch, counters).view(np.uint16)[:, :, :d]
    is_kept = draws >= round(config.dropout * 2**16)
    return is_kept * np.float32(1.0 / (1.0 - config.dropout))


def _padded(
    item_ids: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the slices of `item_ids` as rows, filled up with -1; shape `(n, longest)`."""
    columns = np.arange(lengths.max(initial=0))
    places = np.minimum(starts[:, None] + columns, len(item_ids) - 1)
    return np.where(columns < lengths[:, None], item_ids[places], -1)


def _float32(array: NDArray[np.float32 | np.float64 | np.int64]) -> NDArray[np.float32]:
    return np.array(array, dtype=np.float32, order="C")


def pick(probability: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the items at these places, in (0, 1), of the cumulative distribution; same shape."""
    below = np.cumsum(probability)
    items: NDArray[np.int64] = np.searchsorted(below, uniform * below[-1], side="right")
    return items


def log_weights(probability: NDArray[np.float64], n_negatives: int) -> NDArray[np.float32]:
    """Return minus the log of how often each item is expected in a sample; 0 if never."""
    expected = np.where(probability > 0.0, n_negatives * probability, 1.0)
    return -np.log(expected).astype(np.float32)


def _draw_uniform(n_draws: int, seed: int, step: int) -> NDArray[np.float64]:
    counters = step * n_draws + np.arange(n_draws)
    drawn = counter_integers(seed, SESSION_NEGATIVE, counters, 2**31).astype(np.float64)
    return (drawn + 0.5) * 2.0**-31


@dataclass(frozen=True, eq=False)
class _Network:
    """The learnt parameters; `items` is both what is read and what is scored."""

    items: "torch.Tensor"  # (n_items, d)
    bias: "torch.Tensor"  # (n_items,)
    gru: "torch.nn.GRU"

    @property
    def tensors(self) -> "dict[str, torch.Tensor]":
        """All parameters by name; the gates of `gru` are in the order reset, update, new."""
        return {"items": self.items, "bias": self.bias, **dict(self.gru.named_parameters())}


def _network(n_items: int, embedding_size: int, device: str) -> _Network:
    import torch

    return _Network(
        items=torch.zeros(n_items, embedding_size, device=device, requires_grad=True),
        bias=torch.zeros(n_items, device=device, requires_grad=True),
        gru=torch.nn.GRU(embedding_size, embedding_size, batch_first=True, device=device),
    )


def _initial_network(
    n_items: int, embedding_size: int, generator: "torch.Generator", device: str
) -> _Network:
    import torch

    net = _network(n_items, embedding_size, device)
    with torch.no_grad():
        for parameter in net.gru.parameters():
            uniform = torch.rand(parameter.shape, generator=generator)
            parameter.copy_((2.0 * uniform - 1.0) * embedding_size**-0.5)
        normal = torch.randn(n_items, embedding_size, generator=generator)
        net.items.copy_(_INITIAL_SCALE * normal)
    return net


def _adam(net: _Network, learning_rate: float) -> "torch.optim.Adam":
    import torch

    return torch.optim.Adam(net.tensors.values(), lr=learning_rate, fused=True)


def session_loss(
    net: _Network,
    sessions: "torch.Tensor",
    negatives: "torch.Tensor",
    log_weight: "torch.Tensor",
    *,
    reg: float,
    mask: "torch.Tensor | None" = None,
) -> "torch.Tensor":
    """Return the mean cross-entropy of every click given the session's earlier clicks.

    Args:
        net: From `_network`.
        sessions: Item ids, shape `(B, W)`, -1 after the end of a session.
        negatives: Items that stand for the catalogue, shape `(n_negatives,)`; a click's own item does
            not count among them.
        log_weight: Added to the scores of sampled items, shape `(n_items,)`.
        reg: Weight of half the mean squared norm of the clicks' vectors.
        mask: What the input vectors are multiplied by, shape `(B, W - 1, d)`.
    """
    import torch

    is_click = sessions >= 0  # (B, W)
    targets = sessions[is_click]  # (clicks,)
    clicks = torch.nn.functional.embedding(sessions.clamp(min=0), net.items)  # (B, W, d)
    inputs = clicks[:, : max(sessions.shape[1] - 1, 1)]
    if mask is not None:
        inputs = inputs * mask
    steps, _ = net.gru(inputs)
    states = torch.cat([torch.zeros_like(steps[:, :1]), steps], dim=1)[:, : sessions.shape[1]]
    states = states[is_click]  # (clicks, d)
    own = (states * clicks[is_click]).sum(1) + net.bias[targets]
    others = states @ net.items[negatives].T + (net.bias + log_weight)[negatives]
    others = others.masked_fill(negatives == targets[:, None], -torch.inf)
    all_scores = torch.cat([own[:, None], others], dim=1)
    loss: torch.Tensor = (torch.logsumexp(all_scores, dim=1) - own).mean()
    if reg:
        loss = loss + 0.5 * reg * clicks[is_click].square().sum(1).mean()
    return loss


@contextmanager
def _one_thread() -> Iterator[None]:
    """Hold torch to one thread, so that what is trained does not depend on the number of CPUs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
