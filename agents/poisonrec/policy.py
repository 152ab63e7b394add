"""PoisonRec's policy: an LSTM over a fake user and its clicks, an MLP, and an action space."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from agents.poisonrec.bcbt import make_tree
from agents.poisonrec.rows import RowTable
from agents.poisonrec.softmax_space import BPlainSpace, PlainSpace
from agents.poisonrec.spaces import ActionSpace
from agents.poisonrec.threads import Blocks
from agents.poisonrec.tree_space import TreeSpace
from recattack_gym.core.random import torch_generator

ActionSpaceName = Literal["bcbt-popular", "bcbt-random", "bplain", "plain"]
ACTION_SPACES: tuple[ActionSpaceName, ...] = ("bcbt-popular", "bcbt-random", "bplain", "plain")


def make_action_space(
    name: ActionSpaceName,
    item_popularity: NDArray[np.int64],
    target_items: NDArray[np.int64],
    rng: np.random.Generator,
) -> ActionSpace:
    """Return the action space of this name.

    Args:
        name: One of `ACTION_SPACES`.
        item_popularity: Clicks per item, shape `(n_items,)`.
        target_items: Distinct ids, shape `(n_targets,)`; at least one item is no target.
        rng: Assigns items to leaves in BCBT-Random, else not used.
    """
    if name == "plain":
        return PlainSpace(len(item_popularity))
    if name == "bplain":
        return BPlainSpace(len(item_popularity), target_items)
    is_random = name == "bcbt-random"
    return TreeSpace(make_tree(item_popularity, target_items, rng if is_random else None))


class Network(nn.Module):
    """From a fake user and its clicks so far to a query vector.

    Args:
        n_fake_users: N; each has an embedding of its own, all share the rest.
        size: Width of everything, D.
    """

    def __init__(self, n_fake_users: int, size: int) -> None:
        super().__init__()
        self.users = nn.Parameter(torch.zeros(n_fake_users, size))
        self.lstm = nn.LSTM(size, size)
        self.first = nn.Linear(size, size)
        self.second = nn.Linear(size, size)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters: those of layers as PyTorch does by default, users from N(0, 0.1)."""
        bound = float(self.users.shape[1]) ** -0.5
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
            self.users.normal_(std=0.1, generator=generator)

    def forward(self, clicked: torch.Tensor) -> torch.Tensor:
        """Return the query before every click.

        Args:
            clicked: Features of all clicks but the last, shape `(T - 1, M * N, D)`, fake users fastest.

        Returns:
            Shape `(T, M * N, D)`.
        """
        n_sets = clicked.shape[1] // len(self.users)
        inputs = torch.cat([self.users.repeat(n_sets, 1)[None], clicked])
        hidden, _ = self.lstm(inputs)
        return self.head(hidden)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the query for hidden states, both of shape `(..., D)`."""
        query: torch.Tensor = self.second(functional.relu(self.first(hidden)))
        return query


@dataclass(frozen=True)
class Rollout:
    """Poison sets that the policy made, and how likely each decision was."""

    item_ids: NDArray[np.int64]
    """Shape `(M, N, T)`."""
    log_p: NDArray[np.float32]
    """Log-probability of every decision when it was taken, 0 for none, shape `(M, N, T, depth)`."""

    def __getitem__(self, sets: NDArray[np.int64]) -> "Rollout":
        """Return some of the poison sets."""
        return Rollout(self.item_ids[sets], self.log_p[sets])


class Policy:
    """A distribution over poison sets that can be sampled, evaluated and improved.

    Runs on the CPU: its layers are too small to gain from another device.

    Args:
        space: How items are chosen.
        n_fake_users: N.
        profile_size: T.
        size: Width of features and layers, D.
        learning_rate: Adam's.
        adam_epsilon: Adam's.
        feature_std: Standard deviation of initial features.
        rng: Source of the initial parameters.
    """

    def __init__(
        self,
        space: ActionSpace,
        *,
        n_fake_users: int,
        profile_size: int,
        size: int,
        learning_rate: float,
        adam_epsilon: float,
        feature_std: float,
        rng: np.random.Generator,
    ) -> None:
        self.space = space
        self.n_fake_users = n_fake_users
        self.profile_size = profile_size
        self.network = Network(n_fake_users, size)
        self.network.initialise(torch_generator(rng))
        values = rng.standard_normal((space.n_rows, size), dtype=np.float32)
        values *= np.float32(feature_std)
        self.features = RowTable(values, learning_rate=learning_rate, epsilon=adam_epsilon)
        self._adam = torch.optim.Adam(
            self.network.parameters(), lr=learning_rate, eps=adam_epsilon, foreach=True
        )

    @property
    def item_features(self) -> NDArray[np.float32]:
        """Features of all items, shape `(n_items, D)`; a view."""
        return self.features.values[self.space.first_item_row :]

    @torch.no_grad()
    def sample(self, n_sets: int, rng: np.random.Generator, blocks: Blocks) -> Rollout:
        """Make poison sets, all profiles in step: T sequential choices whatever M and N.

        Args:
            n_sets: M.
            rng: Source of randomness.
            blocks: Threads.
        """
        network, n_rows = self.network, n_sets * self.n_fake_users
        weight_in, weight_hidden, bias_in, bias_hidden = network.lstm.all_weights[0]
        bias = bias_in + bias_hidden
        inputs: torch.Tensor = network.users.repeat(n_sets, 1)
        hidden = torch.zeros_like(inputs)
        cell = torch.zeros_like(inputs)
        items = np.zeros((self.profile_size, n_rows), dtype=np.int64)
        log_p = np.zeros((self.profile_size, n_rows, self.space.depth), dtype=np.float32)
        table = torch.from_numpy(self.item_features)
        for t in range(self.profile_size):
            gates = torch.addmm(bias, inputs, weight_in.T).addmm_(hidden, weight_hidden.T)
            hidden, cell = _lstm_cell(gates, cell)
            query = network.head(hidden).numpy()
            items[t], log_p[t] = self.space.sample(query, self.features.values, rng, blocks)
            inputs = table[torch.from_numpy(items[t])]
        shape = (n_sets, self.n_fake_users, self.profile_size)
        return Rollout(
            np.ascontiguousarray(items.T).reshape(shape),
            np.ascontiguousarray(log_p.swapaxes(0, 1)).reshape(*shape, self.space.depth),
        )

    def evaluate(self, item_ids: NDArray[np.int64], blocks: Blocks) -> "Evaluation":
        """Return an object that gives log-probabilities of these poison sets, shape `(M, N, T)`."""
        return Evaluation(self, item_ids, blocks)

    def state(self) -> dict[str, NDArray[Any]]:  # Any: floats, ids and flags
        """Return parameters and the optimisers' state as arrays by name."""
        arrays = {f"features.{name}": array for name, array in self.features.state().items()}
        moments = self._adam.state_dict()["state"]
        for number, (name, parameter) in enumerate(self.network.named_parameters()):
            arrays[f"network.{name}"] = parameter.detach().numpy()
            for key, value in moments.get(number, {}).items():
                arrays[f"adam.{number}.{key}"] = value.numpy()
        return arrays

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        self.features.restore({k[9:]: v for k, v in state.items() if k.startswith("features.")})
        moments: dict[int, dict[str, torch.Tensor]] = {}
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(torch.from_numpy(state[f"network.{name}"]))
        for key, value in state.items():
            if key.startswith("adam."):
                _, number, name = key.split(".")
                moments.setdefault(int(number), {})[name] = torch.from_numpy(value.copy())
        self._adam.load_state_dict({**self._adam.state_dict(), "state": moments})

    def step(self, rows: NDArray[np.int64], gradient: torch.Tensor, blocks: Blocks) -> None:
        """Take one step of Adam: on the network, and on the touched rows of the table."""
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.features.adam_step(rows, np.ascontiguousarray(gradient.numpy()), blocks)


class Evaluation:
    """Log-probabilities of given poison sets under a policy that changes from step to step.

    Which features they touch is worked out once.

    Args:
        policy: The policy.
        item_ids: Shape `(M, N, T)`.
        blocks: Threads.
    """

    def __init__(self, policy: Policy, item_ids: NDArray[np.int64], blocks: Blocks) -> None:
        self._policy = policy
        self._blocks = blocks
        n_sets, n_fake_users, profile_size = item_ids.shape
        self._shape = (profile_size, n_sets * n_fake_users)
        by_time = np.ascontiguousarray(item_ids.reshape(-1, profile_size).T)  # (T, M * N)
        self._decisions = policy.space.decisions(by_time.reshape(-1), blocks)
        places = torch.from_numpy(self._decisions.item_places).view(self._shape)
        self._clicked = places[:-1]
        self._features: torch.Tensor | None = None
        self.mask = self._decisions.mask.view(*self._shape, -1)
        """Whether there is a decision, shape `(T, M * N, depth)`."""

    def log_p(self) -> torch.Tensor:
        """Return the log-probability of every decision, shape `(T, M * N, depth)`, differentiable."""
        values = self._policy.features.values[self._decisions.rows]
        self._features = torch.from_numpy(values).requires_grad_()
        clicked = functional.embedding(self._clicked, self._features)
        query = self._policy.network(clicked)
        flat = self._decisions.log_p(query.reshape(-1, query.shape[-1]), self._features)
        return flat.view(*self._shape, -1)

    def improve(self, objective: torch.Tensor) -> None:
        """Take one step of Adam up `objective`, which was made from the last `log_p`."""
        features = self._features
        if features is None:
            raise AssertionError("log_p() comes before improve()")
        (-objective).backward()  # type: ignore[no-untyped-call]  # torch
        gradient = torch.zeros_like(features) if features.grad is None else features.grad
        self._policy.step(self._decisions.rows, gradient, self._blocks)
        self._features = None

    def by_time(self, values: NDArray[np.float32]) -> torch.Tensor:
        """Bring `(M, N, T, ...)` into the order of `log_p`, `(T, M * N, ...)`."""
        flat = values.reshape(-1, self._shape[0], *values.shape[3:])
        return torch.from_numpy(np.ascontiguousarray(flat.swapaxes(0, 1)))


def _lstm_cell(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the next hidden state and cell; gates of shape `(B, 4 D)` in PyTorch's order."""
    enter, forget, candidate, leave = gates.chunk(4, dim=1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
    return leave.sigmoid() * cell.tanh(), cell
