"""PoisonRec with an entropy bonus: what is added, and that it finds what the paper's agent misses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.attackers import ATTACKERS
from agents.poisonrec import PoisonRec, PoisonRecConfig
from agents.poisonrec.entropy import EntropyPoisonRec, EntropyPoisonRecConfig, mean_entropy
from recattack_gym.core import ArgumentError
from recattack_gym.datasets import load
from recattack_gym.simulator import PlatformSimulator, PlatformView
from tests.agents.poisonrec.test_agent import item_pop
from tests.agents.poisonrec.test_warm import optimum

SMALL: dict[str, Any] = {
    "n_queries": 32,
    "batch_size": 8,
    "n_examples": 8,
    "size": 8,
}  # Any: of many types


def rec_nums(agent: PoisonRec) -> list[list[int]]:
    return [step.rec_nums.tolist() for step in agent.history]


def test_entropy_is_that_of_every_decision_below_the_root() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, size=(4, 3, 5))
    mask = np.arange(5) < rng.integers(1, 6, size=(4, 3, 1))
    total: Any = 0.0
    n = 0
    for place in np.ndindex(p.shape):
        if mask[place]:
            n += 1
            if place[-1] > 0:
                q = p[place]
                total += -q * np.log(q) - (1 - q) * np.log(1 - q)
    found = mean_entropy(torch.from_numpy(np.log(p)), torch.from_numpy(mask))
    assert found.item() == pytest.approx(total / n, rel=1e-9)


def test_a_certain_decision_has_no_entropy_and_a_finite_gradient() -> None:
    log_p = torch.tensor([[0.0, 0.0, -40.0]], requires_grad=True)
    value = mean_entropy(log_p, torch.ones((1, 3), dtype=torch.bool))
    value.backward()  # type: ignore[no-untyped-call]  # torch
    assert value.item() == pytest.approx(0.0, abs=1e-4)
    assert log_p.grad is not None
    assert torch.isfinite(log_p.grad).all()


def test_the_weight_falls_in_a_parabola_to_nothing() -> None:
    config = EntropyPoisonRecConfig(**SMALL, entropy_weight=4.0, entropy_until=0.75)
    agent = EntropyPoisonRec(item_pop(), config, seed=1)
    weights = [agent.entropy_weight]
    while agent.n_queries < 32:
        agent.step()
        weights.append(agent.entropy_weight)
    assert weights == pytest.approx([4.0, 4.0 * 4 / 9, 4.0 / 9, 0.0, 0.0])


@pytest.mark.parametrize("n_examples", [8, 3])
def test_without_a_bonus_it_is_the_papers_agent(n_examples: int) -> None:
    settings = {**SMALL, "n_examples": n_examples}
    paper = PoisonRec(item_pop(), PoisonRecConfig(**settings), seed=3).learn()
    same = EntropyPoisonRec(
        item_pop(), EntropyPoisonRecConfig(**settings, entropy_weight=0.0), seed=3
    ).learn()
    other = EntropyPoisonRec(item_pop(), EntropyPoisonRecConfig(**settings), seed=3).learn()
    assert rec_nums(same) == rec_nums(paper)
    assert np.array_equal(same.sample(2), paper.sample(2))
    assert not np.array_equal(other.sample(2), paper.sample(2))


def test_a_saved_agent_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    config = EntropyPoisonRecConfig(**SMALL)
    whole = EntropyPoisonRec(item_pop(), config, seed=5).learn()
    EntropyPoisonRec(item_pop(), config, seed=5).learn(2).save(tmp_path / "agent.npz")
    resumed = EntropyPoisonRec.load(tmp_path / "agent.npz", item_pop()).learn()
    assert rec_nums(resumed) == rec_nums(whole)
    assert np.array_equal(resumed.sample(2), whole.sample(2))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("action_space", "plain", "action_space must be .*bcbt-popular.*'plain'"),
        ("action_space", "bplain", "action_space must be"),
        ("entropy_weight", -1.0, "entropy_weight must be"),
        ("entropy_until", 0.0, "entropy_until must be"),
        ("entropy_until", 1.5, "entropy_until must be"),
        ("n_examples", 9, "n_examples must be at most batch_size"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: str, value: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        EntropyPoisonRecConfig(**{**SMALL, setting: value})


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_on_steam_it_learns_the_optimum_of_item_pop(seed: int) -> None:
    """The paper's agent ends at 0.7 of it; see the test of the warm start."""
    dataset = load("steam", protocol="poisonrec")
    view = PlatformView(PlatformSimulator(dataset, "ItemPop", seed=seed))
    best = optimum(view)
    plan = ATTACKERS["poisonrec-entropy"]({"n_queries": 3200}).plan(
        view, np.random.default_rng(seed)
    )
    assert view.query(plan.item_ids[None])[0] >= 0.95 * best
