"""The policy against obvious loops, for all four action spaces."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from agents.poisonrec import softmax_space
from agents.poisonrec.bcbt import leaf_log_probabilities
from agents.poisonrec.kernel import push_back_scores, score_decisions
from agents.poisonrec.policy import ACTION_SPACES, ActionSpaceName, Policy, make_action_space
from agents.poisonrec.ppo import clipped_surrogate
from agents.poisonrec.softmax_space import BPlainSpace
from agents.poisonrec.threads import Blocks, blocks
from agents.poisonrec.tree_space import TreeSpace

ALONE = Blocks(None, 1)
TARGETS = np.array([2, 11, 30])
N_ITEMS = 37

each_space = pytest.mark.parametrize("name", ACTION_SPACES)


def make_policy(name: ActionSpaceName, seed: int = 0, size: int = 6) -> Policy:
    rng = np.random.default_rng(seed)
    space = make_action_space(name, rng.integers(99, size=N_ITEMS), TARGETS, rng)
    return Policy(
        space,
        n_fake_users=3,
        profile_size=4,
        size=size,
        learning_rate=0.05,
        adam_epsilon=1e-8,
        feature_std=1.0,  # far from uniform, so that mistakes show
        rng=rng,
    )


def query_of(policy: Policy, user: int, clicks: list[int]) -> torch.Tensor:
    """Return the query after some clicks by PyTorch's own cell, one at a time."""
    network = policy.network
    size = network.users.shape[1]
    cell = torch.nn.LSTMCell(size, size)
    weights = network.lstm.all_weights[0]
    for own, shared in zip(cell.parameters(), weights, strict=True):
        own.data = shared.data
    state = None
    inputs = [network.users[user], *(torch.from_numpy(policy.item_features[a]) for a in clicks)]
    for x in inputs:
        state = cell(x[None], state)
    assert state is not None
    hidden = state[0][0]
    first, second = network.first, network.second
    return second.weight @ torch.relu(first.weight @ hidden + first.bias) + second.bias


def item_log_p(policy: Policy, query: torch.Tensor) -> NDArray[np.float64]:
    """Return log P of every item, worked out over the whole catalogue."""
    features = torch.from_numpy(policy.features.values)
    space = policy.space
    if isinstance(space, TreeSpace):
        tree = space.tree
        difference = features[tree.left.astype(np.int64)] - features[tree.right.astype(np.int64)]
        return leaf_log_probabilities(tree, (difference @ query).detach().double().numpy())
    if isinstance(space, BPlainSpace):
        set_p = functional.log_softmax(features[:2] @ query, dim=0)
        found = torch.zeros(N_ITEMS)
        for number, members in enumerate(space.sets):
            within = functional.log_softmax(features[2 + members] @ query, dim=0)
            found[members] = set_p[number] + within
        return found.detach().double().numpy()
    return functional.log_softmax(features @ query, dim=0).detach().double().numpy()


@each_space
def test_stored_and_evaluated_log_probabilities_are_those_of_an_obvious_loop(
    name: ActionSpaceName,
) -> None:
    policy = make_policy(name)
    rollout = policy.sample(2, np.random.default_rng(1), ALONE)
    evaluation = policy.evaluate(rollout.item_ids, ALONE)
    evaluated = torch.where(evaluation.mask, evaluation.log_p(), torch.zeros(()))
    assert torch.allclose(evaluated, evaluation.by_time(rollout.log_p), atol=2e-5)
    assert rollout.item_ids.shape == (2, 3, 4)
    for number in range(2):
        for user in range(3):
            profile = rollout.item_ids[number, user].tolist()
            for t, item in enumerate(profile):
                expected = item_log_p(policy, query_of(policy, user, profile[:t]))[item]
                stored = rollout.log_p[number, user, t].sum()
                assert stored == pytest.approx(expected, abs=2e-4)


@each_space
def test_items_are_drawn_as_often_as_their_probability_says(name: ActionSpaceName) -> None:
    policy = make_policy(name)
    policy.features.values *= np.float32(0.5)
    n_draws = 40_000
    query = np.random.default_rng(2).standard_normal(6).astype(np.float32)
    items, log_p = policy.space.sample(
        np.repeat(query[None], n_draws, axis=0),
        policy.features.values,
        np.random.default_rng(3),
        ALONE,
    )
    expected = np.exp(item_log_p(policy, torch.from_numpy(query)))
    counts = np.bincount(items, minlength=N_ITEMS)
    chi2 = ((counts - n_draws * expected) ** 2 / (n_draws * expected)).sum()
    assert chi2 < 36 + 5 * np.sqrt(2 * 36)  # mean and five deviations of chi-square, 36 degrees
    assert np.allclose(log_p.sum(axis=1), np.log(expected)[items], atol=1e-4)


def test_in_double_precision_gradients_of_the_walk_are_equal_to_1e_9() -> None:
    """What is left between the two in single precision is rounding."""
    rng = np.random.default_rng(5)
    query: Any = rng.standard_normal((40, 6))  # Any: the kernels are annotated for single precision
    difference: Any = rng.standard_normal((11, 6))
    pairs = rng.integers(11, size=(40, 5)).astype(np.int32)
    pairs[np.arange(5) >= rng.integers(1, 6, size=40)[:, None]] = -1
    gradient: Any = rng.standard_normal(pairs.shape)

    scores: Any = np.full(pairs.shape, np.nan)
    score_decisions(0, 40, query, difference, pairs, scores)
    query_gradient: Any = np.full_like(query, np.nan)
    difference_gradient: Any = np.zeros_like(difference)
    for start, stop in ((0, 4), (4, 6)):  # two threads
        push_back_scores(
            start, stop, gradient, query, difference, pairs, query_gradient, difference_gradient
        )

    q, f = (torch.from_numpy(x).clone().requires_grad_() for x in (query, difference))
    is_decision = torch.from_numpy(pairs >= 0)
    plain = (q[:, None, :] * f[torch.from_numpy(pairs).long().clamp(min=0)]).sum(dim=2)
    plain = torch.where(is_decision, plain, torch.zeros((), dtype=torch.float64))
    (plain * torch.from_numpy(gradient)).sum().backward()  # type: ignore[no-untyped-call]  # torch
    assert q.grad is not None
    assert f.grad is not None
    for found, expected in (
        (scores, plain),
        (query_gradient, q.grad),
        (difference_gradient, f.grad),
    ):
        assert np.allclose(found, expected.detach().numpy(), rtol=0.0, atol=1e-9)


@each_space
def test_gradients_are_those_of_plain_autograd(name: ActionSpaceName) -> None:
    policy = make_policy(name)
    rng = np.random.default_rng(4)
    items = rng.integers(N_ITEMS, size=9)
    decisions = policy.space.decisions(items, ALONE)
    weights = torch.from_numpy(rng.standard_normal((9, policy.space.depth)).astype(np.float32))
    start = torch.from_numpy(rng.standard_normal((9, 6)).astype(np.float32))

    query = start.clone().requires_grad_()
    touched = torch.from_numpy(policy.features.values[decisions.rows]).requires_grad_()
    log_p = decisions.log_p(query, touched)
    (torch.where(decisions.mask, log_p, torch.zeros(())) * weights).sum().backward()  # type: ignore[no-untyped-call]  # torch

    plain_query = start.double().requires_grad_()
    table = torch.from_numpy(policy.features.values).double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for r, item in enumerate(items.tolist()):
        for level, term in enumerate(obvious_decisions(policy, plain_query[r], table, item)):
            total = total + term * weights[r, level].double()
    total.backward()  # type: ignore[no-untyped-call]  # torch

    assert query.grad is not None
    assert touched.grad is not None
    assert plain_query.grad is not None
    assert table.grad is not None
    assert torch.allclose(query.grad.double(), plain_query.grad, atol=1e-4)
    dense = torch.zeros_like(table)
    dense[torch.from_numpy(decisions.rows)] = touched.grad.double()
    assert torch.allclose(dense, table.grad, atol=1e-4)
    rows = policy.space.first_item_row + items
    assert np.array_equal(decisions.rows[decisions.item_places], rows)


def obvious_decisions(
    policy: Policy, query: torch.Tensor, table: torch.Tensor, item: int
) -> list[torch.Tensor]:
    """Return log P of each decision that leads to an item, one by one."""
    space = policy.space
    if isinstance(space, TreeSpace):
        tree, found, node = space.tree, [], space.tree.n_inner + item
        while node != 0:
            above = int(tree.parent[node])
            children = torch.stack([table[int(tree.left[above])], table[int(tree.right[above])]])
            both = functional.log_softmax(children @ query, dim=0)
            found.append(both[0 if int(tree.left[above]) == node else 1])
            node = above
        return found[::-1]
    if isinstance(space, BPlainSpace):
        number = 0 if item in TARGETS else 1
        members = space.sets[number]
        within = functional.log_softmax(table[2 + members] @ query, dim=0)
        place = int(np.flatnonzero(members == item)[0])
        return [functional.log_softmax(table[:2] @ query, dim=0)[number], within[place]]
    return [functional.log_softmax(table @ query, dim=0)[item]]


@each_space
def test_the_first_update_follows_reinforce_with_the_given_advantages(
    name: ActionSpaceName,
) -> None:
    policy = make_policy(name)
    rollout = policy.sample(4, np.random.default_rng(5), ALONE)
    advantages = torch.tensor([1.0, -0.5, 0.25, -0.75]).repeat_interleave(3).expand(4, 12)
    evaluation = policy.evaluate(rollout.item_ids, ALONE)
    old = evaluation.by_time(rollout.log_p)
    gradients = []
    for objective in ("surrogate", "reinforce"):
        log_p, mask = evaluation.log_p(), evaluation.mask
        if objective == "surrogate":
            value = clipped_surrogate(log_p, old, mask, advantages, clip_range=0.1)
        else:
            value = (log_p * advantages[..., None] * mask).sum() / mask.sum()
        parameters = list(policy.network.parameters())
        gradients.append(torch.autograd.grad(value, parameters))
    for first, second in zip(*gradients, strict=True):
        assert torch.allclose(first, second, atol=1e-5)


@each_space
def test_what_is_rewarded_becomes_more_likely(name: ActionSpaceName) -> None:
    policy = make_policy(name)
    item_ids = policy.sample(1, np.random.default_rng(6), ALONE).item_ids
    evaluation = policy.evaluate(item_ids, ALONE)
    before = (evaluation.log_p() * evaluation.mask).sum().item()
    for _ in range(10):
        evaluation.improve((evaluation.log_p() * evaluation.mask).sum())
    after = (evaluation.log_p() * evaluation.mask).sum().item()
    assert after > before + 5


@pytest.mark.parametrize("chunk", [1, 100, 8_000_000])
def test_the_softmax_by_blocks_is_the_softmax(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_space, "_CHUNK_SCORES", chunk)
    policy = make_policy("plain")
    test_gradients_are_those_of_plain_autograd("plain")
    rollout = policy.sample(2, np.random.default_rng(1), ALONE)
    evaluation = policy.evaluate(rollout.item_ids, ALONE)
    assert torch.allclose(evaluation.log_p(), evaluation.by_time(rollout.log_p), atol=2e-5)


@each_space
def test_threads_and_batch_size_do_not_change_probabilities(
    name: ActionSpaceName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECATTACK_NUM_THREADS", "3")
    policy = make_policy(name)
    item_ids = np.random.default_rng(7).integers(N_ITEMS, size=(4, 3, 4))
    with blocks() as threads:
        whole = policy.evaluate(item_ids, threads).log_p()
    for number in range(4):
        one = policy.evaluate(item_ids[number : number + 1], ALONE).log_p()
        mask = policy.evaluate(item_ids[number : number + 1], ALONE).mask
        part = whole[:, 3 * number : 3 * number + 3]
        assert torch.allclose(one * mask, part * mask, atol=1e-5)


@each_space
def test_a_policy_that_was_saved_goes_on_bit_for_bit(name: ActionSpaceName) -> None:
    item_ids = np.random.default_rng(8).integers(N_ITEMS, size=(2, 3, 4))

    def improve(policy: Policy, n: int) -> None:
        evaluation = policy.evaluate(item_ids, ALONE)
        for _ in range(n):
            evaluation.improve((evaluation.log_p() * evaluation.mask).sum())

    whole = make_policy(name)
    improve(whole, 7)
    half = make_policy(name)
    improve(half, 3)
    other = make_policy(name)
    other.restore({key: array.copy() for key, array in half.state().items()})
    improve(other, 4)
    assert np.array_equal(other.features.values, whole.features.values)
    for first, second in zip(other.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["plain", "bplain"])
def test_every_row_of_a_block_has_a_draw_of_its_own(
    name: ActionSpaceName, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(name)
    drawn = []
    for chunk in (100, 8_000_000):
        monkeypatch.setattr(softmax_space, "_CHUNK_SCORES", chunk)
        drawn.append(policy.sample(4, np.random.default_rng(1), ALONE).item_ids)
    assert np.array_equal(drawn[0], drawn[1])
    assert len(np.unique(drawn[0].reshape(-1, 4), axis=0)) > 6  # of 12 profiles
