"""GRU4Rec: what a user clicks next, read from what the user clicked last."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_integers, draw_seed, torch_generator
from recattack_gym.victims.base import ExposureEngine, GradientConfig, State, Victim, state_array
from recattack_gym.victims.gru4rec_run import (
    BETA1,
    BETA2,
    RECURRENT,
    CleanRun,
    Moved,
    Rerun,
    make_rerun,
    moved_items,
)
from recattack_gym.victims.gru4rec_sessions import (
    SamplingTable,
    bucketed,
    cut,
    draw_dropout,
    log_weights,
    padded,
    sampling_table,
)
from recattack_gym.victims.ranking import CandidateLists

if TYPE_CHECKING:
    import torch

ANCHOR = 18
"""Stream of the counter-based generator: which states of a step are kept."""

_SCORED_AT_ONCE = 1024
"""Users whose histories are unrolled together when scoring."""

_INITIAL_SCALE = 0.1
"""Standard deviation of untrained item vectors."""

_EPSILON = 1e-8
"""Adam's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GRU4RecConfig(GradientConfig):
    """Settings of `GRU4Rec`. An example is a session of up to `max_length + 1` clicks.

    Fine-tuning repeats the steps of clean training, so the inherited `finetune_epochs`, `finetune_replay` and
    `finetune_batch_size` have no effect.
    """

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
    finetune_learning_rate: float = 6e-3
    """Step size of fine-tuning; that of clean training, or fine-tuning does not follow full retraining.

    Who sets `learning_rate` has to set this too.
    """
    finetune_anchors: int = 32
    """Genuine users' states that clean training keeps of each step, for the negatives of fine-tuning."""
    finetune_waypoints: int = 5
    """States of clean training that fine-tuning follows, and that the victim keeps beside the last one."""
    finetune_fading: float = 0.03
    """Share of what fake sessions have changed in the recurrent weights that is lost with every step.

    It stands for the genuine sessions, which pull the weights back; 1 leaves the weights where clean
    training had them. Chosen on a platform of the generated log that is not the reported one (seed 7): less
    gives too few exposures, more too many. On Steam, where genuine steps are many, it changes little.
    """

    def __post_init__(self) -> None:
        GradientConfig.__post_init__(self)
        for name in ("max_length", "n_negatives", "finetune_anchors", "finetune_waypoints"):
            as_count(name, getattr(self, name))
        as_real("sample_alpha", self.sample_alpha, at_least=0.0)
        as_real("dropout", self.dropout, at_least=0.0, at_most=0.95)
        as_real("finetune_fading", self.finetune_fading, at_least=0.0, at_most=1.0)


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

    Fine-tuning is full retraining restricted to what the poison decides, along the way that clean training
    took: the vectors and biases of items with a fifth or more of their clicks from fake users
    (`gru4rec_run.moved_items`), above all of new ones, which start untrained. It takes every step of full
    retraining, with the same fake sessions, dropout and sampled items (`Rerun`). Of the genuine sessions
    these items only meet the negatives: where one is sampled, a few of the states that genuine users had in
    that step (`CleanRun`) stand for all of them. Other items are read from the clean run at the nearest
    waypoint. The recurrent weights get to know the fake sessions, or new items would have to learn alone
    what the network learns as well; that fades, since genuine sessions pull the weights back. It is for the
    fake sessions alone: in the end the weights are those of clean training, and so is every score of items
    that have not moved, unless one that has is in the history. `seed` decides nothing in fine-tuning, as in
    full retraining.

    What full retraining changes in the recurrent weights for genuine users is left out, and so are genuine
    clicks on items that move. Items with fewer fake clicks rest, though full retraining moves them: for
    existing targets that genuine users click use `retrain="full"`.

    Differs from the paper: a session is a piece of a user's sequence of at most `max_length + 1` clicks
    instead of a visit, unrolled as a whole instead of session-parallel; Adam instead of Adagrad; the other
    targets of a batch are no extra negatives, only the shared sample is.
    """

    name = "GRU4Rec"
    config_class = GRU4RecConfig
    config: GRU4RecConfig
    _run: CleanRun

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
        visits = list(_visits(log, config, seed))
        recorder = _Recorder(net, optimizer, config, seed, len(visits), self.n_new_items)
        with _one_thread():
            for visit in visits:
                sessions = padded(log.item_ids, visit.starts, visit.lengths)
                negatives = table.draw(config.n_negatives, seed, visit.step)
                width = max(sessions.shape[1] - 1, 1)
                d, epoch = config.embedding_size, visit.step >> 32
                mask = draw_dropout(visit.starts, width, d, config.dropout, seed, epoch)
                softmax = session_softmax(
                    net,
                    torch.from_numpy(sessions).to(self.device),
                    torch.from_numpy(negatives).to(self.device),
                    log_weight,
                    mask=None if mask is None else torch.from_numpy(mask).to(self.device),
                )
                loss = softmax.loss(config.reg)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
                optimizer.step()
                recorder.step(visit.step, softmax)
        self._net = net
        self._run = recorder.run()

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
        history = padded(self.log.item_ids, indptr[user_ids + 1] - lengths, lengths)
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

        del seed
        moved = moved_items(log, profile, self._run, _float32(self._parameters()["items"]))
        rerun = self._rerun(log, (profile.shape[0], profile.shape[1]), self._run)
        if len(moved.items) == 0 or len(rerun.steps) == 0:
            return
        vectors, bias = self._trained(log, profile, moved, rerun)
        with torch.no_grad():
            places = torch.from_numpy(moved.items).to(self.device)
            self._net.items[places], self._net.bias[places] = vectors, bias
        self._run = self._run.after(moved.items, vectors.cpu().numpy(), bias.cpu().numpy())

    def _trained(
        self, log: Interactions, profile: NDArray[np.int64], moved: Moved, rerun: Rerun
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return vectors `(R, d)` and biases `(R,)` of what moves after the steps of full retraining."""
        import torch

        config, run, device = self.config, self._run, self.device
        negatives = self._negatives(log, profile, rerun, self._sampling_table(log))
        log_weight = torch.from_numpy(self._log_weight(log, profile)).to(device)
        past, roots, end = (
            {name: torch.as_tensor(array, device=device) for name, array in arrays.items()}
            for arrays in (run.waypoints, run.roots, self._parameters())
        )
        all_states, log_totals = (
            torch.as_tensor(array, device=device) for array in (run.states, run.log_totals)
        )
        items, is_fresh, share = (
            torch.from_numpy(array).to(device)
            for array in (moved.items, moved.is_fresh, moved.share)
        )
        place_of = np.full(log.n_items, -1)
        place_of[moved.items] = np.arange(len(items))

        def clean_rows(arrays: dict[str, torch.Tensor], *where: int) -> torch.Tensor:
            """Return vectors and biases side by side, `(R, d + 1)`, zero for fresh items."""
            both = [arrays["items"][where], arrays["bias"][where]]
            rows = torch.cat([both[0][items], both[1][items, None]], dim=1)
            return rows.masked_fill(is_fresh[:, None], 0.0)

        waypoint = int(rerun.waypoints[0])
        rows = clean_rows(past, waypoint)
        rows[:, :-1] += torch.from_numpy(moved.first).to(device)
        rows.requires_grad_()
        first_moment, second_moment = torch.zeros_like(rows), torch.zeros_like(rows)
        net = _network(log.n_items, config.embedding_size, device)
        gru = dict(net.gru.named_parameters())
        changed = {name: torch.zeros_like(gru[name]) for name in RECURRENT}
        moments = {name: torch.zeros_like(gru[name]) for name in RECURRENT}
        for s in range(len(rerun.steps)):
            if rerun.waypoints[s] != waypoint:
                with torch.no_grad():
                    rows += clean_rows(past, int(rerun.waypoints[s])) - clean_rows(past, waypoint)
                waypoint = int(rerun.waypoints[s])
            rows.grad = torch.zeros_like(rows)
            held = torch.zeros_like(rows)
            sampled = place_of[negatives[s]]
            counts = np.bincount(sampled[sampled >= 0], minlength=len(items))
            pushed = torch.from_numpy(np.flatnonzero(counts)).to(device)
            states = all_states[rerun.anchors[s]]
            added = log_weight[items] + torch.from_numpy(counts).to(device).log()
            with torch.no_grad():
                share_of_genuine = rerun.n_genuine[s] / (rerun.n_clicks[s] * len(states))
                gained, pushed_before = _pushed_down(
                    states,
                    log_totals[rerun.anchors[s]],
                    rows[pushed],
                    clean_rows(past, waypoint)[pushed],
                    is_fresh[pushed],
                    added[pushed],
                )
                rows.grad[pushed] += share_of_genuine * gained
                held[pushed] = share_of_genuine * pushed_before
            first, last = rerun.session_indptr[s : s + 2]
            if last > first:
                with torch.no_grad():
                    for name, weights in gru.items():
                        weights.copy_(past[name][waypoint] + changed[name])
                        weights.grad = None
                starts, lengths = rerun.starts[first:last], rerun.lengths[first:last]
                sessions = padded(profile.ravel(), starts, lengths)
                steps = starts[:, None] + np.arange(max(sessions.shape[1] - 1, 1))
                mask = rerun.masks[rerun.steps[s] >> 32][np.minimum(steps, profile.size - 1)]
                poisoned = _Network(
                    items=past["items"][waypoint].index_put((items,), rows[:, :-1]),
                    bias=past["bias"][waypoint].index_put((items,), rows[:, -1]),
                    gru=net.gru,
                )
                softmax = session_softmax(
                    poisoned,
                    torch.from_numpy(sessions).to(device),
                    torch.from_numpy(negatives[s].astype(np.int64)).to(device),
                    log_weight,
                    mask=torch.from_numpy(mask).to(device),
                )
                loss = softmax.loss(config.reg) * (lengths.sum() / rerun.n_clicks[s])
                loss.backward()
                keep, push, pause = rerun.fades[s]
                for name, weights in gru.items():
                    slope = torch.zeros_like(weights) if weights.grad is None else weights.grad
                    moment = BETA1 * moments[name] + (1.0 - BETA1) * slope
                    ratio = (moment / (roots[name][waypoint] + _EPSILON)).clamp(-1.0, 1.0)
                    changed[name] = keep * changed[name] - push * ratio
                    moments[name] = pause * moment
            with torch.no_grad():
                first_moment = BETA1 * first_moment + (1.0 - BETA1) * rows.grad
                second_moment = BETA2 * second_moment + (1.0 - BETA2) * (rows.grad**2 + held**2)
                step = first_moment / (1.0 - BETA1 ** (s + 1))
                step /= (second_moment / (1.0 - BETA2 ** (s + 1))).sqrt() + _EPSILON
                rows -= config.finetune_learning_rate * share[:, None] * step
        with torch.no_grad():
            rows += clean_rows(end) - clean_rows(past, waypoint)
        return rows[:, :-1].detach(), rows[:, -1].detach()

    def _rerun(self, log: Interactions, profile_shape: tuple[int, int], run: CleanRun) -> Rerun:
        config = self.config
        return make_rerun(
            log,
            profile_shape,
            run,
            session_length=config.max_length + 1,
            batch_size=config.batch_size,
            epochs=config.epochs,
            n_negatives=config.n_negatives,
            dropout=config.dropout,
            learning_rate=config.finetune_learning_rate,
            fading=config.finetune_fading,
        )

    def _negatives(
        self, log: Interactions, profile: NDArray[np.int64], rerun: Rerun, table: SamplingTable
    ) -> NDArray[np.int32]:
        """Return what full retraining samples, shape `(S, n_negatives)`; `table` is of the clean log."""
        return rerun.negatives(
            table,
            log.item_popularity,
            profile,
            alpha=self.config.sample_alpha,
            new_items_as_negatives=self.config.new_items_as_negatives,
        )

    def _log_weight(self, log: Interactions, profile: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return what full retraining adds to the scores of sampled items, shape `(n_items,)`."""
        clicks = log.item_popularity + np.bincount(profile.ravel(), minlength=log.n_items)
        return log_weights(self._sampling_probability(clicks), self.config.n_negatives)

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:
        if lists.item_ids is None or self.device != "cpu":
            return None
        from recattack_gym.victims.gru4rec_kernel import GRU4RecEngine, make_contest

        log, run = lists.log, self._run  # those of today, even if the victim is fitted again
        table = self._sampling_table(log)
        return GRU4RecEngine(
            {name: _float32(array) for name, array in self._parameters().items()},
            run,
            make_contest(
                lists, self.score(np.arange(lists.n_users), lists.item_ids), self.config.max_length
            ),
            log,
            lambda shape: self._rerun(log, shape, run),
            lambda profile, rerun: (
                self._negatives(log, profile, rerun, table),
                self._log_weight(log, profile),
            ),
            learning_rate=self.config.finetune_learning_rate,
            reg=self.config.reg,
        )

    def _sampling_probability(self, clicks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how likely each item is sampled, given its clicks, shape `(n_items,)`; same shape."""
        known = np.maximum(clicks, 1) if self.config.new_items_as_negatives else clicks
        weight = np.where(known > 0, known.astype(np.float64) ** self.config.sample_alpha, 0.0)
        probability: NDArray[np.float64] = weight / weight.sum()
        return probability

    def _sampling_table(self, log: Interactions) -> SamplingTable:
        """Return what clean training draws from, with the probabilities of `_sampling_probability`."""
        config = self.config
        return sampling_table(
            log, alpha=config.sample_alpha, new_items_as_negatives=config.new_items_as_negatives
        )

    def _parameters(self) -> State:
        return {name: tensor.detach().cpu().numpy() for name, tensor in self._net.tensors.items()}

    def _state(self) -> State:
        return {**self._parameters(), **self._run.as_state()}

    def _set_state(self, state: State) -> None:
        import torch

        net = _network(self.log.n_items, self.config.embedding_size, self.device)
        shapes = {name: tuple(tensor.shape) for name, tensor in net.tensors.items()}
        with torch.no_grad():
            for name, tensor in net.tensors.items():
                array = state_array(state, name, shapes[name])
                tensor.copy_(torch.from_numpy(np.asarray(array, dtype=np.float32)))
        self._run = CleanRun.from_state(
            state,
            shapes,
            n_waypoints=self.config.finetune_waypoints,
            n_anchors=self.config.finetune_anchors,
            n_new_items=self.n_new_items,
        )
        self._net = net


class _Visit(NamedTuple):
    """One step of clean training."""

    step: int
    """See `CleanRun.steps`."""
    starts: NDArray[np.int64]
    """Shape `(B,)`: where its sessions start in the log."""
    lengths: NDArray[np.int64]
    """Shape `(B,)`."""


def _visits(log: Interactions, config: GRU4RecConfig, seed: int) -> Iterator[_Visit]:
    for epoch in range(config.epochs):
        starts, lengths = cut(log, config.max_length + 1, seed, epoch)
        for number, rows in bucketed(lengths, config.batch_size, seed, epoch):
            yield _Visit((epoch << 32) + number, starts[rows], lengths[rows])


class _Recorder:
    """Keeps what `CleanRun` needs while `net` is trained."""

    def __init__(
        self,
        net: "_Network",
        optimizer: "torch.optim.Adam",
        config: GRU4RecConfig,
        seed: int,
        n_steps: int,
        n_new_items: int,
    ) -> None:
        self._net, self._optimizer, self._config, self._seed = net, optimizer, config, seed
        n_waypoints, d = config.finetune_waypoints, config.embedding_size
        # in the middle of each of W equal parts
        self._halts = [int((w + 0.5) * n_steps / n_waypoints) for w in range(n_waypoints)]
        self._steps = np.empty(n_steps, dtype=np.int64)
        self._states = np.empty((n_steps, config.finetune_anchors, d), dtype=np.float32)
        self._log_totals = np.empty((n_steps, config.finetune_anchors), dtype=np.float32)
        start = {name: tensor.detach().cpu().numpy() for name, tensor in net.tensors.items()}
        self._first_items = start["items"][len(start["items"]) - n_new_items :].copy()
        self._waypoints = {name: np.stack([array] * n_waypoints) for name, array in start.items()}
        self._roots = {name: np.ones_like(self._waypoints[name]) for name in RECURRENT}
        self._n = 0

    def step(self, step: int, softmax: "Softmax") -> None:
        """Take notes after a step of `optimizer`."""
        import torch

        n = self._n
        counters = (n << 16) + np.arange(self._states.shape[1])
        picked = counter_integers(self._seed, ANCHOR, counters, len(softmax.states))
        with torch.no_grad():
            places = torch.from_numpy(picked).to(softmax.states.device)
            self._states[n] = softmax.states[places].cpu().numpy()
            self._log_totals[n] = softmax.log_totals[places].cpu().numpy()
        self._steps[n] = step
        for waypoint in (w for w, halt in enumerate(self._halts) if halt == n):
            for name, tensor in self._net.tensors.items():
                self._waypoints[name][waypoint] = tensor.detach().cpu().numpy()
                if name in RECURRENT:
                    second = self._optimizer.state[tensor]["exp_avg_sq"].cpu().numpy()
                    self._roots[name][waypoint] = np.sqrt(second / (1.0 - BETA2 ** (n + 1)))
        self._n += 1

    def run(self) -> CleanRun:
        """Return what has been recorded."""
        return CleanRun(
            self._seed,
            self._steps,
            self._states,
            self._log_totals,
            self._waypoints,
            self._roots,
            self._first_items,
        )


def _float32(array: NDArray[np.float32 | np.float64 | np.int64]) -> NDArray[np.float32]:
    return np.array(array, dtype=np.float32, order="C")


def _pushed_down(
    states: "torch.Tensor",
    log_totals: "torch.Tensor",
    rows: "torch.Tensor",
    clean: "torch.Tensor",
    is_fresh: "torch.Tensor",
    added: "torch.Tensor",
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return gradients of genuine clicks' cross-entropy, summed, in the rows of R sampled items.

    An item that has genuine clicks has met such gradients in the clean run, which it follows. The first
    result is what it meets in addition, the second what it met there (0 for fresh items), `(R, d + 1)` each.
    Adam divides by the size of both: by the first alone, rounding would become whole steps, and by their
    sum, which may vanish, a step would have no bound.

    Args:
        states: Shape `(K, d)`.
        log_totals: Logs of the sums over all that was sampled in clean training, shape `(K,)`.
        rows: Vectors and biases, shape `(R, d + 1)`.
        clean: What these are in the clean run.
        is_fresh: Whether clean training did not sample the item, shape `(R,)`.
        added: To the scores, shape `(R,)`.
    """
    import torch

    ones = torch.ones(len(states), 1, device=states.device)
    inputs = torch.cat([states, ones], dim=1)  # (K, d + 1)
    scores = inputs @ rows.T + added  # (K, R)
    fresh = scores.masked_fill(~is_fresh, -torch.inf)
    totals = torch.logsumexp(torch.cat([log_totals[:, None], fresh], dim=1), dim=1, keepdim=True)
    shares = torch.exp(scores - totals)
    held = torch.exp(inputs @ clean.T + added - totals).masked_fill(is_fresh, 0.0)
    return (shares - held).T @ inputs, held.T @ inputs


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


class Softmax(NamedTuple):
    """What a batch of sessions leads to; S is the number of its clicks."""

    vectors: "torch.Tensor"
    """Of the clicks, shape `(S, d)`."""
    states: "torch.Tensor"
    """Before each click, shape `(S, d)`."""
    scores: "torch.Tensor"
    """Of the clicked items, shape `(S,)`."""
    log_totals: "torch.Tensor"
    """Logs of the sums over the clicked and all sampled items, shape `(S,)`."""

    def loss(self, reg: float) -> "torch.Tensor":
        """Return the mean cross-entropy of every click given the session's earlier clicks.

        Args:
            reg: Weight of half the mean squared norm of the clicks' vectors.
        """
        loss: torch.Tensor = (self.log_totals - self.scores).mean()
        if reg:
            loss = loss + 0.5 * reg * self.vectors.square().sum(1).mean()
        return loss


def session_softmax(
    net: _Network,
    sessions: "torch.Tensor",
    negatives: "torch.Tensor",
    log_weight: "torch.Tensor",
    *,
    mask: "torch.Tensor | None" = None,
) -> Softmax:
    """Read sessions and score their clicks.

    Args:
        net: From `_network`.
        sessions: Item ids, shape `(B, W)`, -1 after the end of a session.
        negatives: Items that stand for the catalogue, shape `(n_negatives,)`; a click's own item does
            not count among them.
        log_weight: Added to the scores of sampled items, shape `(n_items,)`.
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
    log_totals = torch.logsumexp(torch.cat([own[:, None], others], dim=1), dim=1)
    return Softmax(clicks[is_click], states, own, log_totals)


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
