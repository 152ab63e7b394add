"""NeuMF against its formula and its compiled twin."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import CandidateLists, NeuMF
from recattack_gym.victims.neumf_kernel import Weights, clean_epochs, make_workspace, train
from recattack_gym.victims.schedule import make_schedule

N_NEW = 3

SMALL: dict[str, object] = {
    "embedding_size": 6,
    "epochs": 3,
    "batch_size": 16,
    "n_negatives": 2,
    "initial_scale": 0.3,
    "finetune_epochs": 2,
    "finetune_batch_size": 8,
    "finetune_replay": 1.0,
    "finetune_learning_rate": 0.02,
    "reg": 0.01,
}


def fitted(log: Interactions, **settings: object) -> NeuMF:
    config = {**SMALL, **settings}
    return NeuMF(config).fit(log, np.random.default_rng(0), n_new_items=N_NEW)


def score_by_definition(state: dict[str, NDArray[np.float64]], user: int, item: int) -> float:
    """Equation 12 of the paper for one pair, without the sigmoid."""
    d = len(state["gmf_output"])
    p, q = state["users"][user], state["items"][item]
    hidden = np.concatenate([p[d:], q[d:]])
    for layer, bias in (
        (np.concatenate([state["user_layer"], state["item_layer"]]), state["bias1"]),
        (state["layer2"], state["bias2"]),
        (state["layer3"], state["bias3"]),
    ):
        hidden = np.maximum(hidden @ layer + bias, 0.0)
    output = np.concatenate([state["gmf_output"], state["mlp_output"]])
    both = np.concatenate([p[:d] * q[:d], hidden])
    return float(output @ both + state["output_bias"][0])


def loss_by_definition(
    state: dict[str, NDArray[np.float64]], examples: list[tuple[int, int, bool]], reg: float
) -> float:
    """Summed log loss over (user, item, clicked), with the L2 penalty of every example."""
    total = 0.0
    for user, item, is_click in examples:
        score = score_by_definition(state, user, item)
        norms = (state["users"][user] ** 2).sum() + (state["items"][item] ** 2).sum()
        total += np.log1p(np.exp(-score if is_click else score)) + 0.5 * reg * norms
    return float(total)


def test_the_score_is_equation_12(small_log: Interactions) -> None:
    victim = fitted(small_log)
    state = {name: array.astype(np.float64) for name, array in victim.state.items()}
    expected = [score_by_definition(state, 4, item) for item in range(small_log.n_items)]
    scores = victim.score(np.array([4]), np.arange(small_log.n_items)[None])[0]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_finetuning_is_gradient_descent_on_the_summed_log_loss(small_log: Interactions) -> None:
    victim = fitted(small_log, finetune_epochs=1, finetune_batch_size=6)
    profile = np.array([[24, 3, 3], [5, 26, 1]])
    schedule = make_schedule(
        small_log,
        (2, 3),
        seed=9,
        epochs=1,
        replay=1.0,
        batch_size=6,
        n_negatives=2,
        n_genuine_negatives=small_log.n_items,
    )
    users, items, negatives = schedule.examples(profile)
    poisoned = victim.poisoned(profile, 9, "finetune")
    untrained = fitted(small_log, finetune_epochs=0).poisoned(profile, 9, "finetune")
    state = {name: array.astype(np.float64) for name, array in untrained.state.items()}
    assert state["users"].shape == (32, 12)
    assert len(schedule.batch_indptr) == 3
    for start, end in pairwise(schedule.batch_indptr):
        examples = [
            (int(users[s]), int(item), c == 0)
            for s in range(start, end)
            for c, item in enumerate((items[s], *negatives[s]))
        ]
        slopes = {name: np.zeros_like(array) for name, array in state.items()}
        for name, array in state.items():
            for place in np.ndindex(array.shape):
                used = {"users": 0, "items": 1}.get(name)
                if used is not None and place[0] not in {e[used] for e in examples}:
                    continue
                kept, sides = array[place], []
                for shift in (1e-6, -1e-6):
                    array[place] = kept + shift
                    sides.append(loss_by_definition(state, examples, 0.01))
                array[place] = kept
                slopes[name][place] = (sides[0] - sides[1]) / 2e-6
        for name in state:
            state[name] -= 0.02 * slopes[name]
    for name, learnt in poisoned.state.items():
        np.testing.assert_allclose(learnt, state[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("embedding_size", [1, 6])
@pytest.mark.parametrize("reg", [0.0, 0.01])
def test_compiled_training_gives_the_parameters_of_the_plain_path(
    small_log: Interactions, embedding_size: int, reg: float
) -> None:
    log = small_log.with_fake_users(np.array([[24, 3, 3], [5, 26, 1]]))
    config = {**SMALL, "embedding_size": embedding_size, "reg": reg}
    compiled = NeuMF(config).fit(log, np.random.default_rng(0))
    plain = NeuMF(config)
    plain.device = "cpu:0"  # what is not called "cpu" takes the plain path
    plain.fit(log, np.random.default_rng(0))
    for name, array in plain.state.items():
        np.testing.assert_allclose(compiled.state[name], array, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("reg", [0.0, 0.01])
def test_compiled_gradient_descent_gives_the_parameters_of_the_plain_path(
    small_log: Interactions, reg: float
) -> None:
    victim = fitted(small_log, reg=reg)
    clean = victim.state
    epochs = clean_epochs(small_log, 5, epochs=1, n_negatives=2, below=small_log.n_items)
    users, items, negatives = next(epochs)
    weights = Weights(**{name: clean[name].astype(np.float32) for name in Weights._fields})
    space = make_workspace(weights, 10, 2, is_adam=False)
    batches = np.append(np.arange(0, len(users), 10), len(users))
    n_users, n_items = train(weights, space, users, items, negatives, batches, reg, 0.01, -1)
    batched = ((users[a:b], items[a:b], negatives[a:b]) for a, b in pairwise(batches))
    victim._train(batched, 0.01, is_adam=False)
    for name, learnt in victim.state.items():
        np.testing.assert_allclose(getattr(weights, name), learnt, atol=1e-5, err_msg=name)
    moved = np.flatnonzero((victim.state["users"] != clean["users"]).any(axis=1))
    assert set(moved) <= set(space.user_part.touched[:n_users].tolist())
    moved = np.flatnonzero((victim.state["items"] != clean["items"]).any(axis=1))
    assert set(moved) <= set(space.item_part.touched[:n_items].tolist())


def test_an_epoch_has_every_click_once_with_negatives_that_its_user_has_not_seen(
    small_log: Interactions,
) -> None:
    below = small_log.n_items - N_NEW
    epochs = list(clean_epochs(small_log, 5, epochs=2, n_negatives=4, below=below))
    for users, items, negatives in epochs:
        pairs = np.lexsort((items, users))
        expected = np.lexsort((small_log.item_ids, small_log.user_ids))
        np.testing.assert_array_equal(users[pairs], small_log.user_ids[expected])
        np.testing.assert_array_equal(items[pairs], small_log.item_ids[expected])
        assert negatives.shape == (len(small_log), 4)
        assert not small_log.has(users[:, None], negatives).any()
        assert set(np.unique(negatives)) == set(range(below))
    assert not np.array_equal(epochs[0][0], epochs[1][0])


def test_new_items_are_trained_only_as_negatives(small_log: Interactions) -> None:
    untrained = fitted(small_log, epochs=0).state["items"][-N_NEW:]
    for as_negatives in (False, True):
        victim = fitted(small_log, new_items_as_negatives=as_negatives)
        assert np.array_equal(victim.state["items"][-N_NEW:], untrained) != as_negatives


def test_an_attack_on_one_target_brings_it_into_more_lists(
    small_log: Interactions, make_lists: Callable[..., CandidateLists]
) -> None:
    victim = fitted(small_log, epochs=40, finetune_epochs=40)
    lists = make_lists(small_log, [24, 25, 26])
    profile = np.full((4, 5), 25)
    profile[:, 1:] = np.argsort(-small_log.item_popularity)[:4]
    before, after = victim.exposure(lists), victim.engine(lists).exposure(profile[None], 0)[0]
    assert after[1] > before[1] + 5
    assert after[1] > after[[0, 2]].max() + 5


@pytest.mark.parametrize("setting", ["n_negatives", "initial_scale"])
def test_a_setting_out_of_range_is_named(setting: str) -> None:
    with pytest.raises(ArgumentError, match=setting):
        NeuMF({setting: 0})


@pytest.mark.real_data
@pytest.mark.parametrize("dataset", ["steam", "ml-100k"])
def test_the_engine_counts_what_the_plain_path_counts_on_real_data(dataset: str) -> None:
    # Other rounding may swap two items of nearly equal score at the end of a list, and targets that
    # the same fake users click have nearly equal scores: so RecNum may differ by a few lists.
    original = load(dataset).log
    log = original.with_catalogue(original.n_items + N_NEW)
    config = {
        "epochs": 2,
        "finetune_learning_rate": 0.01,
        "new_items_as_negatives": False,
    }
    victim = NeuMF(config).fit(log, np.random.default_rng(0), n_new_items=N_NEW)
    rng = np.random.default_rng(4)
    users = np.arange(log.n_users)
    items = np.stack([rng.choice(original.n_items, 150, replace=False) for _ in users])
    seen = log.has(users[:, None], items)
    width = min(92, int((~seen).sum(axis=1).min()))
    items = np.take_along_axis(items, np.argsort(seen, axis=1, kind="stable")[:, :width], axis=1)
    popular = np.argsort(-log.item_popularity, kind="stable")
    targets = np.array([log.n_items - 3, popular[3], log.n_items - 1, log.n_items - 2])
    items = np.where(items == popular[3], popular[-N_NEW - 1], items)
    lists = CandidateLists(log, items, targets, 10)
    clicks = np.arange(60).reshape(6, 10)
    profiles = np.stack(
        [
            np.full((6, 10), log.n_items - 1),
            log.n_items - 1 - clicks % N_NEW,
            np.where(clicks % 2, log.n_items - 2, popular[clicks % 7]),
            popular[clicks % 20],
            rng.integers(0, log.n_items, (6, 10)),
        ]
    )
    assert len(np.unique(victim.engine(lists).exposure(profiles, 8))) > 4
    for chosen in (profiles, profiles[:, :1, :1]):
        counted = victim.engine(lists).exposure(chosen, 8).sum(axis=1)
        plain = victim.engine(lists, backend="plain").exposure(chosen, 8).sum(axis=1)
        np.testing.assert_allclose(counted, plain, atol=max(2.0, 1e-3 * log.n_users))
