"""AutoRec against its formula, its compiled twin and its row-wise schedule."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import AutoRec, CandidateLists
from recattack_gym.victims.autorec import AutoRecConfig, row_schedule

N_NEW = 3

SMALL: dict[str, object] = {
    "embedding_size": 5,
    "epochs": 3,
    "batch_size": 7,
    "finetune_epochs": 2,
    "finetune_replay": 2.0,
    "finetune_batch_size": 4,
    "finetune_learning_rate": 0.02,
    "reg": 0.01,
    "unclicked_weight": 0.2,
}


def fitted(log: Interactions, **settings: object) -> AutoRec:
    config = {**SMALL, **settings}
    return AutoRec(config).fit(log, np.random.default_rng(0), n_new_items=N_NEW)


def loss_by_definition(
    state: dict[str, NDArray[np.float64]],
    rows: NDArray[np.float64],
    weight: NDArray[np.float64],
    shares: NDArray[np.float64],
    reg: float,
) -> float:
    """Weighted mean over users of the weighted squared error of whole rows, with dense matrices."""
    hidden = 1.0 / (1.0 + np.exp(-(rows @ state["encoder"] + state["encoder_bias"])))
    error = hidden @ state["decoder"].T + state["decoder_bias"] - rows
    norms = (state["encoder"] ** 2).sum(axis=1) + (state["decoder"] ** 2).sum(axis=1)
    return float(shares @ ((weight * error**2).sum(axis=1) + 0.5 * reg * (rows @ norms)))


@pytest.mark.parametrize("new_items_as_negatives", [True, False])
def test_finetuning_is_adam_on_the_dense_loss(
    small_log: Interactions, new_items_as_negatives: bool
) -> None:
    victim = fitted(small_log, epochs=1, new_items_as_negatives=new_items_as_negatives)
    profile = np.array([[24, 3, 3], [5, 26, 1], [7, 7, 2]])
    rows, batches, genuine_weight = row_schedule(small_log, 3, 9, victim.config)
    poisoned = victim.poisoned(profile, 9, "finetune")
    log = poisoned.log
    assert genuine_weight == 5.0
    dense = np.zeros((log.n_users, log.n_items))
    dense[log.user_ids, log.item_ids] = 1.0
    weight = np.where(dense > 0.0, 1.0, 0.2)
    if not new_items_as_negatives:
        weight[~dense[:, -N_NEW:].any(axis=1), -N_NEW:] = 0.0
    state = {name: array.astype(np.float64) for name, array in victim.state.items()}
    first = {name: np.zeros_like(array) for name, array in state.items()}
    second = {name: np.zeros_like(array) for name, array in state.items()}
    for step, (start, end) in enumerate(pairwise(batches), start=1):
        users = rows[start:end]
        shares = np.where(users < small_log.n_users, genuine_weight, 1.0)
        shares /= shares.sum()
        gradient = numerical_gradient(state, dense[users], weight[users], shares, 0.01)
        for name, g in gradient.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            m, v = first[name] / (1.0 - 0.9**step), second[name] / (1.0 - 0.999**step)
            state[name] -= 0.02 * m / (np.sqrt(v) + 1e-8)
    for name, array in poisoned.state.items():
        np.testing.assert_allclose(array, state[name], atol=2e-4, err_msg=name)


def numerical_gradient(
    state: dict[str, NDArray[np.float64]],
    rows: NDArray[np.float64],
    weight: NDArray[np.float64],
    shares: NDArray[np.float64],
    reg: float,
) -> dict[str, NDArray[np.float64]]:
    """Central differences in every weight."""
    gradient = {}
    for name, array in state.items():
        slope = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            kept, sides = array[place], []
            for shift in (1e-5, -1e-5):
                array[place] = kept + shift
                sides.append(loss_by_definition(state, rows, weight, shares, reg))
            array[place] = kept
            slope[place] = (sides[0] - sides[1]) / 2e-5
        gradient[name] = np.where(np.abs(slope) < 1e-9, 0.0, slope)
    return gradient


@pytest.mark.parametrize("new_items_as_negatives", [True, False])
@pytest.mark.parametrize("reg", [0.0, 0.01])
def test_compiled_training_gives_the_parameters_of_the_plain_path(
    small_log: Interactions, new_items_as_negatives: bool, reg: float
) -> None:
    log = small_log.with_fake_users(np.array([[24, 3, 3], [5, 26, 1]]))
    config = {**SMALL, "new_items_as_negatives": new_items_as_negatives, "reg": reg}
    compiled = AutoRec(config).fit(log, np.random.default_rng(0))
    plain = AutoRec(config)
    plain.device = "cpu:0"  # what is not called "cpu" takes the plain path
    plain.fit(log, np.random.default_rng(0))
    for name, array in plain.state.items():
        np.testing.assert_allclose(compiled.state[name], array, atol=1e-5, err_msg=name)


def test_the_score_is_the_decoded_row_of_clicks(small_log: Interactions) -> None:
    victim = fitted(small_log)
    state = victim.state
    row = np.zeros(small_log.n_items)
    row[small_log.items_of(4)] = 1.0
    hidden = 1.0 / (1.0 + np.exp(-(row @ state["encoder"] + state["encoder_bias"])))
    score = hidden @ state["decoder"].T + state["decoder_bias"]
    items = np.arange(small_log.n_items)
    np.testing.assert_allclose(victim.score(np.array([4]), items[None])[0], score, rtol=1e-4)


def test_new_items_stay_untrained_in_the_rows_of_users_who_clicked_none(
    small_log: Interactions,
) -> None:
    untrained = fitted(small_log, epochs=0).state
    for as_negatives in (False, True):
        state = fitted(small_log, new_items_as_negatives=as_negatives).state
        is_same = np.array_equal(state["decoder"][-N_NEW:], untrained["decoder"][-N_NEW:])
        assert is_same != as_negatives
        assert np.array_equal(state["encoder"][-N_NEW:], untrained["encoder"][-N_NEW:])


def test_every_fake_row_comes_once_per_epoch_among_as_many_genuine_rows_as_replayed(
    small_log: Interactions,
) -> None:
    config = AutoRecConfig(finetune_epochs=4, finetune_replay=2.5, finetune_batch_size=3)
    rows, batches, genuine_weight = row_schedule(small_log, 4, 1, config)
    assert rows.shape == (4 * 14,)
    assert batches.tolist() == [e * 14 + s for e in range(4) for s in (0, 3, 6, 9, 12)] + [56]
    assert genuine_weight == 30 / 10
    for epoch in rows.reshape(4, 14):
        assert np.sort(epoch[epoch >= 30]).tolist() == [30, 31, 32, 33]
    assert not np.array_equal(*np.sort(rows.reshape(4, 14)[:2], axis=1))
    other_rows, *_ = row_schedule(small_log, 4, 2, config)
    assert not np.array_equal(rows, other_rows)


def test_a_replay_of_everyone_takes_every_user_with_a_click_once() -> None:
    log = Interactions(np.array([0, 2, 2]), np.array([1, 0, 1]), n_users=4, n_items=3)
    rows, _, weight = row_schedule(log, 1, 1, AutoRecConfig(finetune_epochs=2, finetune_replay=9.0))
    assert np.sort(rows.reshape(2, 3), axis=1).tolist() == [[0, 2, 4], [0, 2, 4]]
    assert weight == 1.0


def test_an_attack_on_one_target_brings_it_into_more_lists(
    small_log: Interactions, make_lists: Callable[..., CandidateLists]
) -> None:
    victim = fitted(small_log, epochs=20, finetune_epochs=10)
    lists = make_lists(small_log, [24, 25, 26])
    profile = np.full((4, 5), 25)
    profile[:, 1:] = np.argsort(-small_log.item_popularity)[:4]
    before, after = victim.exposure(lists), victim.engine(lists).exposure(profile[None], 0)[0]
    assert after[1] > before[1] + 5
    assert after[1] > after[[0, 2]].max() + 5


@pytest.mark.parametrize("setting", ["unclicked_weight", "initial_scale"])
def test_a_setting_out_of_range_is_named(setting: str) -> None:
    with pytest.raises(ArgumentError, match=setting):
        AutoRec({setting: 0.0})


@pytest.mark.real_data
@pytest.mark.parametrize("dataset", ["steam", "ml-100k"])
def test_the_engine_counts_what_the_plain_path_counts_on_real_data(dataset: str) -> None:
    # Other rounding may swap two items of nearly equal score at the end of a list, and targets that
    # the same fake users click have nearly equal scores: so RecNum may differ by a few lists.
    original = load(dataset).log
    log = original.with_catalogue(original.n_items + N_NEW)
    config = {"epochs": 2, "new_items_as_negatives": False}
    victim = AutoRec(config).fit(log, np.random.default_rng(0), n_new_items=N_NEW)
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
