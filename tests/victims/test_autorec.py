"""AutoRec against its formula, its compiled twin and its restricted refit."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.victims import AutoRec, CandidateLists
from recattack_gym.victims.autorec_engine import AutoRecEngine
from recattack_gym.victims.epochs import visit_batches

N_NEW = 3

SMALL: dict[str, object] = {
    "embedding_size": 5,
    "epochs": 3,
    "batch_size": 7,
    "finetune_epochs": 2,
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
def test_finetuning_moves_new_items_by_adam_on_fake_rows_and_genuine_zeros(
    small_log: Interactions, new_items_as_negatives: bool
) -> None:
    victim = fitted(small_log, epochs=1, new_items_as_negatives=new_items_as_negatives)
    profile = np.array([[24, 3, 3], [5, 26, 1], [7, 7, 2]])
    new = np.array([24, 26])
    dense = dense_rows(victim.poisoned(profile, 9, "finetune").log)
    genuine, fakes = np.split(dense, [small_log.n_users])
    fake_weight = np.where(fakes > 0.0, 1.0, 0.2)
    genuine_weight = np.zeros_like(genuine)
    if new_items_as_negatives:
        genuine_weight[:, new] = 0.2
    else:
        fake_weight[2, -N_NEW:] = 0.0
    clean = {name: array.astype(np.float64) for name, array in victim.state.items()}
    state = {name: array[new] for name, array in clean.items() if name != "encoder_bias"}
    first = {name: np.zeros_like(array) for name, array in state.items()}
    second = {name: np.zeros_like(array) for name, array in state.items()}

    def loss() -> float:
        for name, array in state.items():
            clean[name][new] = array
        share = np.full(len(dense), 1.0 / len(dense))
        weight = np.concatenate([genuine_weight, fake_weight])
        # of genuine rows nothing but what they say of the new items; their penalty rests
        return loss_by_definition(clean, dense, weight, share, 0.0) + loss_by_definition(
            clean, fakes, np.zeros_like(fakes), share[-3:], 0.01
        )

    for step in (1, 2):
        adam_step(state, first, second, slopes(state, loss), step, 0.02 if step == 1 else 0.01)
    poisoned = victim.poisoned(profile, 9, "finetune").state
    for name, array in state.items():
        np.testing.assert_allclose(poisoned[name][new], array, atol=2e-4, err_msg=name)


def test_finetuning_leaves_old_items_between_fake_entries_and_genuine_scores(
    small_log: Interactions,
) -> None:
    victim = fitted(small_log)
    profile = np.array([[24, 3, 3], [5, 26, 1], [7, 3, 2]])
    before = {name: array.astype(np.float64) for name, array in victim.state.items()}
    poisoned = victim.poisoned(profile, 9, "finetune")
    after = {name: array.astype(np.float64) for name, array in poisoned.state.items()}
    dense = dense_rows(poisoned.log)
    hidden = 1.0 / (1.0 + np.exp(-(dense @ after["encoder"] + after["encoder_bias"])))
    hidden = np.column_stack([hidden, np.ones(len(hidden))])
    wanted = dense.copy()
    decoder, moved = (
        np.column_stack([state["decoder"], state["decoder_bias"]]) for state in (before, after)
    )
    wanted[: small_log.n_users] = hidden[: small_log.n_users] @ decoder.T
    weight = np.where(dense > 0.0, 1.0, 0.2)
    weight[: small_log.n_users] = 0.2
    for item in (1, 2, 3, 5, 7):
        error = weight[:, item] * (hidden @ moved[item] - wanted[:, item])
        gradient = error @ hidden + 0.2 * (moved[item] - decoder[item])
        np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
        assert np.abs(moved[item] - decoder[item]).max() > 1e-3


def test_finetuning_draws_nothing_and_leaves_the_rest_alone(small_log: Interactions) -> None:
    victim = fitted(small_log)
    profile = np.array([[24, 3, 3], [5, 26, 1]])
    before, after, again = (
        victim.state,
        victim.poisoned(profile, 1, "finetune").state,
        victim.poisoned(profile, 2, "finetune").state,
    )
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], again[name])
        moving = {"encoder": [24, 26], "encoder_bias": []}.get(name, [1, 3, 5, 24, 26])
        changed = (array != after[name]).reshape(len(array), -1).any(axis=1)
        assert np.flatnonzero(changed).tolist() == moving, name


@pytest.mark.parametrize("new_items_as_negatives", [True, False])
@pytest.mark.parametrize("reg", [0.0, 0.1])
def test_the_engine_gives_the_decoder_rows_of_the_plain_path(
    small_log: Interactions,
    make_lists: Callable[..., CandidateLists],
    new_items_as_negatives: bool,
    reg: float,
) -> None:
    settings = {"new_items_as_negatives": new_items_as_negatives, "reg": reg}
    victim = fitted(small_log, epochs=20, finetune_epochs=30, **settings)
    engine = victim.engine(make_lists(small_log, [24, 25]))
    assert isinstance(engine, AutoRecEngine)
    for profile in ([[24, 3, 3], [5, 26, 1], [7, 3, 2]], [[24, 25], [24, 24]], [[0, 1], [1, 1]]):
        items, rows = engine.rows_after(np.array(profile))
        assert items.tolist() == sorted({item for own in profile for item in own})
        state = victim.poisoned(np.array(profile), 5, "finetune").state
        plain = np.column_stack([state["decoder"], state["decoder_bias"]])[items]
        np.testing.assert_allclose(rows.astype(np.float64), plain.astype(np.float64), atol=1e-4)


def dense_rows(log: Interactions) -> NDArray[np.float64]:
    dense = np.zeros((log.n_users, log.n_items))
    dense[log.user_ids, log.item_ids] = 1.0
    return dense


def slopes(
    state: dict[str, NDArray[np.float64]], loss: Callable[[], float]
) -> dict[str, NDArray[np.float64]]:
    """Central differences of a loss in every number of `state`, which is changed and restored."""
    gradient = {}
    for name, array in state.items():
        slope = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            kept, sides = array[place], []
            for shift in (1e-5, -1e-5):
                array[place] = kept + shift
                sides.append(loss())
            array[place] = kept
            slope[place] = (sides[0] - sides[1]) / 2e-5
        gradient[name] = np.where(np.abs(slope) < 1e-9, 0.0, slope)
    return gradient


def test_clean_training_is_adam_with_falling_steps_on_the_dense_loss(
    small_log: Interactions,
) -> None:
    settings = {"epochs": 1, "learning_rate": 0.02, "batch_size": 11}
    untrained = fitted(small_log, epochs=0)
    victim = fitted(small_log, **settings)
    dense = dense_rows(small_log)
    seed = draw_seed(np.random.default_rng(untrained._fit_seed))
    order, bounds = visit_batches(seed, 0, small_log.n_users, 11)
    n_steps = len(bounds) - 1
    assert n_steps == 3
    state = {name: array.astype(np.float64) for name, array in untrained.state.items()}
    first = {name: np.zeros_like(array) for name, array in state.items()}
    second = {name: np.zeros_like(array) for name, array in state.items()}
    for step, (start, end) in enumerate(pairwise(bounds), start=1):
        users = order[start:end]
        weight = np.where(dense[users] > 0.0, 1.0, 0.2)
        shares = np.full(len(users), 1.0 / len(users))
        loss = partial(loss_by_definition, state, dense[users], weight, shares, 0.01)
        gradient = slopes(state, loss)
        adam_step(state, first, second, gradient, step, 0.02 * (n_steps - step + 1) / n_steps)
    for name, array in victim.state.items():
        np.testing.assert_allclose(array, state[name], atol=2e-4, err_msg=name)


def adam_step(
    state: dict[str, NDArray[np.float64]],
    first: dict[str, NDArray[np.float64]],
    second: dict[str, NDArray[np.float64]],
    gradient: dict[str, NDArray[np.float64]],
    step: int,
    learning_rate: float,
) -> None:
    """Update weights and moments in place; Kingma & Ba, ICLR 2015, Algorithm 1."""
    for name, g in gradient.items():
        first[name] = 0.9 * first[name] + 0.1 * g
        second[name] = 0.999 * second[name] + 0.001 * g**2
        m, v = first[name] / (1.0 - 0.9**step), second[name] / (1.0 - 0.999**step)
        state[name] -= learning_rate * m / (np.sqrt(v) + 1e-8)


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


@pytest.mark.parametrize("setting", ["unclicked_weight", "initial_scale"])
def test_a_setting_out_of_range_is_named(setting: str) -> None:
    with pytest.raises(ArgumentError, match=setting):
        AutoRec({setting: 0.0})
