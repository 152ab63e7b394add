"""`recattack bench policy`: what a training step of PoisonRec's policy costs as the catalogue grows.

A step is sampling M poison sets and K updates; the platform answers at once, with random numbers. Compared
in one run, interleaved: BCBT as the suite runs it, the same in plain PyTorch (gathers of features and
autograd through them), and Plain, the softmax over the catalogue.
"""

import argparse
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from agents.benchmark.tables import markdown_table
from agents.benchmark.timing import interleaved
from agents.poisonrec import PoisonRec, PoisonRecConfig
from agents.poisonrec.bcbt import walks
from agents.poisonrec.policy import ActionSpaceName
from agents.poisonrec.spaces import Decisions
from agents.poisonrec.threads import Blocks, blocks
from agents.poisonrec.tree_space import TreeSpace
from recattack_gym.core import AttackBudget, AttackGoal, Interactions, Knowledge, KnowledgeError
from recattack_gym.core.checks import as_count

N_TARGETS = 8
"""New target items beside the catalogue, as in PoisonRec."""
MAX_PLAIN_ITEMS = 60_000
"""Plain is measured up to this catalogue; a step takes minutes beyond."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench policy`."""
    parser.add_argument("--items", nargs="+", type=int, default=[3000, 30000, 300000])
    parser.add_argument("--sets", type=int, default=32, help="poison sets per step, M (32)")
    parser.add_argument(
        "--repetitions", type=int, default=5, help="steps that medians are over (5)"
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure every catalogue, print a table, and return it with the ratios."""
    as_count("--sets", args.sets)
    as_count("--repetitions", args.repetitions)
    measured: dict[int, dict[str, dict[str, float | None]]] = {}
    for n_items in args.items:
        measured[as_count("--items", n_items)] = _measure(n_items, args.sets, args.repetitions)
    rows = [
        (
            f"{n_items:,}",
            *(
                side[name]["wall_seconds"] if name in side else None
                for name in ("bcbt", "bcbt, all rows", "bcbt in torch", "plain")
            ),
            side["bcbt"]["difference"],
        )
        for n_items, side in measured.items()
    ]
    header = (
        "items",
        "BCBT s",
        "all rows moving s",
        "in torch s",
        "Plain s",
        "gradients differ by",
    )
    return {
        "table": markdown_table(header, rows),
        "steps": {str(n): side for n, side in measured.items()},
        "ratios": _ratios(measured),
    }


def _measure(n_items: int, n_sets: int, repetitions: int) -> dict[str, dict[str, float | None]]:
    """Return wall and CPU seconds per step of each side."""
    agents = {
        "bcbt": _agent(n_items, n_sets, "bcbt-popular"),
        "bcbt, all rows": _agent(n_items, n_sets, "bcbt-popular"),
        "bcbt in torch": _agent(n_items, n_sets, "bcbt-popular"),
    }
    if n_items <= MAX_PLAIN_ITEMS:
        agents["plain"] = _agent(n_items, n_sets, "plain")
    twin = agents["bcbt in torch"]
    twin.policy.space = TorchTreeSpace(cast(TreeSpace, twin.policy.space).tree)
    difference = gradient_difference(agents["bcbt"], twin)
    _move_all_rows(agents["bcbt, all rows"])
    timings = interleaved({name: agent.step for name, agent in agents.items()}, repetitions)
    return {
        name: {
            "wall_seconds": timing.wall_seconds,
            "cpu_seconds": timing.cpu_seconds,
            "difference": difference if name == "bcbt" else None,
        }
        for name, timing in timings.items()
    }


def _ratios(
    measured: Mapping[int, Mapping[str, Mapping[str, float | None]]],
) -> dict[str, float]:
    """Return growth from the first catalogue on, and what the other two cost against BCBT; wall time."""

    def wall(n_items: int, side: str) -> float:
        return float(measured[n_items][side]["wall_seconds"] or 0.0)

    first, *others = measured
    ratios = {f"bcbt {n} / {first}": wall(n, "bcbt") / wall(first, "bcbt") for n in others}
    for n_items, side in measured.items():
        for name in side:
            if name != "bcbt":
                ratios[f"{name} / bcbt, {n_items}"] = wall(n_items, name) / wall(n_items, "bcbt")
    return {name: round(value, 2) for name, value in ratios.items()}


class RandomAnswers:
    """An `AttackerView` that answers at once, with random numbers.

    Args:
        n_items: Size of the catalogue without targets.
    """

    knowledge = Knowledge.BLACK_BOX
    n_queries = 0

    def __init__(self, n_items: int) -> None:
        self._rng = np.random.default_rng(0)
        self.budget = AttackBudget()
        self.goal = AttackGoal(target_items=tuple(range(n_items, n_items + N_TARGETS)))
        self.n_items = n_items + N_TARGETS
        popularity = self._rng.zipf(1.5, self.n_items) % 10_000
        popularity[n_items:] = 0
        self.item_popularity: NDArray[np.int64] = popularity.astype(np.int64)

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return one random number per poison set."""
        return self._rng.integers(1_000, size=len(profiles))

    @property
    def log(self) -> Interactions:
        """There is none."""
        raise KnowledgeError("there is no platform behind this view")

    @property
    def victim_name(self) -> str:
        """There is none."""
        raise KnowledgeError("there is no platform behind this view")

    @property
    def victim_config(self) -> Mapping[str, object]:
        """There is none."""
        raise KnowledgeError("there is no platform behind this view")


def _agent(n_items: int, n_sets: int, action_space: ActionSpaceName) -> PoisonRec:
    config = PoisonRecConfig(
        n_queries=10**9, batch_size=n_sets, n_examples=n_sets, action_space=action_space
    )
    return PoisonRec(RandomAnswers(n_items), config)


def _move_all_rows(agent: PoisonRec) -> None:
    """Give every row of the table a gradient once, so that Adam moves all of them for a while."""
    table = agent.policy.features
    with blocks() as threads:
        gradient = np.full_like(table.values, 1e-6)
        table.adam_step(np.arange(len(table.values)), gradient, threads)


# -- the slow twin ---------------------------------------------------------------------------------


class TorchTreeSpace(TreeSpace):
    """BCBT in plain PyTorch: every decision gathers the features of two children."""

    def sample(
        self,
        query: NDArray[np.float32],
        features: NDArray[np.float32],
        rng: np.random.Generator,
        blocks: Blocks,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `ActionSpace.sample`."""
        del blocks
        table, q = torch.from_numpy(features), torch.from_numpy(query)
        left = torch.from_numpy(self.tree.left).long()
        right = torch.from_numpy(self.tree.right).long()
        uniform = torch.from_numpy(rng.random((len(query), self.depth), dtype=np.float32))
        node = torch.zeros(len(query), dtype=torch.long)
        log_p = torch.zeros(len(query), self.depth)
        for level in range(self.depth):
            is_inner = node < self.tree.n_inner
            at = torch.where(is_inner, node, 0)
            score = (q * table[left[at]]).sum(dim=1) - (q * table[right[at]]).sum(dim=1)
            goes_left = uniform[:, level] < score.sigmoid()
            taken = functional.logsigmoid(torch.where(goes_left, score, -score))
            log_p[:, level] = torch.where(is_inner, taken, 0.0)
            node = torch.where(is_inner, torch.where(goes_left, left[at], right[at]), node)
        return (node - self.tree.n_inner).numpy(), log_p.numpy()

    def decisions(self, item_ids: NDArray[np.int64], blocks: Blocks) -> "TorchTreeDecisions":  # type: ignore[override]  # another kind
        """See `ActionSpace.decisions`."""
        del blocks
        return TorchTreeDecisions(self, item_ids)


class TorchTreeDecisions(Decisions):
    """Walks down a tree; the whole table of features takes part.

    Args:
        space: The tree.
        item_ids: Shape `(R,)`.
    """

    def __init__(self, space: TreeSpace, item_ids: NDArray[np.int64]) -> None:
        nodes, turns = walks(space.tree, item_ids)
        self.rows = np.arange(space.n_rows)
        self.item_places = space.first_item_row + item_ids
        self.mask = torch.from_numpy(turns != 0)
        at = np.maximum(nodes, 0)
        self._left = torch.from_numpy(space.tree.left[at]).long()
        self._right = torch.from_numpy(space.tree.right[at]).long()
        self._turns = torch.from_numpy(turns)

    def log_p(self, query: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """See `Decisions.log_p`."""
        left = torch.einsum("rd,rld->rl", query, features[self._left])
        right = torch.einsum("rd,rld->rl", query, features[self._right])
        return functional.logsigmoid((left - right) * self._turns)


def gradient_difference(fast: PoisonRec, slow: PoisonRec) -> float:
    """Return the largest difference of gradients of the same clicks, relative to the largest gradient.

    Args:
        fast: An agent whose action space is a `TreeSpace`.
        slow: One with equal features and a `TorchTreeSpace`.
    """
    rng = np.random.default_rng(1)
    items = rng.integers(fast.policy.space.n_rows - fast.policy.space.first_item_row, size=500)
    start = torch.from_numpy(rng.standard_normal((500, fast.config.size)).astype(np.float32))
    weight = torch.from_numpy(
        rng.standard_normal((500, fast.policy.space.depth)).astype(np.float32)
    )
    gradients = []
    with blocks() as threads:
        for agent in (fast, slow):
            decisions = agent.policy.space.decisions(items, threads)
            query = start.clone().requires_grad_()
            touched = torch.from_numpy(fast.policy.features.values[decisions.rows])
            touched.requires_grad_()
            log_p = torch.where(decisions.mask, decisions.log_p(query, touched), 0.0)
            (log_p * weight).sum().backward()  # type: ignore[no-untyped-call]  # torch
            if query.grad is None or touched.grad is None:
                raise AssertionError("both take part in every decision")
            dense = torch.zeros(agent.policy.space.n_rows, fast.config.size)
            dense[torch.from_numpy(decisions.rows)] = touched.grad
            gradients.append(torch.cat([query.grad, dense]))
    difference = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    return float(difference)
