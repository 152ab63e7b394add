"""MultiVAE against its formulas, its compiled twin and its restricted refit."""

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.datasets import load
from recattack_gym.metrics import hr_at_k
from recattack_gym.victims import CandidateLists, ItemPop, MultiVAE
from recattack_gym.victims.epochs import visit_batches
from recattack_gym.victims.multivae import dropped_clicks, normal_draws
from recattack_gym.victims.multivae_engine import MultiVAEEngine, log_denominators

N_NEW = 3

SMALL: dict[str, object] = {
    "embedding_size": 3,
    "hidden_size": 4,
    "epochs": 3,
    "learning_rate": 0.02,
    "batch_size": 7,
    "dropout": 0.4,
    "kl_weight": 0.3,
    "reg": 0.01,
    "finetune_epochs": 2,
    "finetune_learning_rate": 0.02,
    "finetune_draws": 2,
    "finetune_encoder_pace": 0.5,
}

Arrays = dict[str, NDArray[np.float64]]


def fitted(log: Interactions, **settings: object) -> MultiVAE:
    config = {**SMALL, **settings}
    return MultiVAE(config).fit(log, np.random.default_rng(0), n_new_items=N_NEW)


def dense_rows(log: Interactions) -> NDArray[np.float64]:
    dense = np.zeros((log.n_users, log.n_items))
    dense[log.user_ids, log.item_ids] = 1.0
    return dense


def normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.maximum(rows.sum(axis=1, keepdims=True), 1.0))
    return rows / lengths


def as_float64(state: Mapping[str, NDArray[np.generic]]) -> Arrays:
    return {name: array.astype(np.float64) for name, array in state.items()}


def encoded(
    state: Arrays, shown: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and log variance of the latent variable."""
    hidden = np.tanh(shown @ state["encoder"] + state["encoder_bias"])
    latent = hidden @ state["to_latent"] + state["to_latent_bias"]
    return latent[:, :3], latent[:, 3:]


def decoded(state: Arrays, latent: NDArray[np.float64]) -> NDArray[np.float64]:
    units: NDArray[np.float64] = np.tanh(latent @ state["from_latent"] + state["from_latent_bias"])
    return units


def loss_by_definition(
    state: Arrays,
    rows: NDArray[np.float64],
    shown: NDArray[np.float64],
    noise: NDArray[np.float64],
    kl_weight: float,
    is_met: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Negative evidence bound of each row, entry by entry; `is_met` tells what is in its softmax."""
    mean, log_variance = encoded(state, shown)
    units = decoded(state, mean + noise * np.exp(0.5 * log_variance))
    logits = units @ state["decoder"].T + state["decoder_bias"]
    log_shares = logits - logsumexp(np.where(is_met, logits, -np.inf), axis=1, keepdims=True)
    divergence = 0.5 * (mean**2 + np.exp(log_variance) - 1.0 - log_variance).sum(axis=1)
    loss: NDArray[np.float64] = kl_weight * divergence - (rows * log_shares).sum(axis=1)
    return loss


def slopes(state: Arrays, loss: Callable[[], float]) -> Arrays:
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


def adam_step(
    state: Arrays, moments: tuple[Arrays, Arrays], gradient: Arrays, step: int, rate: float
) -> None:
    """Update weights and moments in place; Kingma & Ba, ICLR 2015, Algorithm 1."""
    first, second = moments
    for name, g in gradient.items():
        first[name] = 0.9 * first.get(name, 0.0) + 0.1 * g
        second[name] = 0.999 * second.get(name, 0.0) + 0.001 * g**2
        m, v = first[name] / (1.0 - 0.9**step), second[name] / (1.0 - 0.999**step)
        state[name] -= rate * m / (np.sqrt(v) + 1e-8)


# -- the objective -----------------------------------------------------------------------------


def test_the_loss_of_one_user_is_what_comes_out_by_hand() -> None:
    # With all matrices zero the logits are the decoder's bias, log (1, 2, 5), so the shares are 1/8, 2/8
    # and 5/8. The user has clicked items 0 and 2: log likelihood log 1/8 + log 5/8 = log 5/64.
    # The latent variable has mean 1 and variance 4: divergence (1 + 4 - 1 - log 4) / 2 = 2 - log 2.
    log = Interactions(np.array([0, 0, 0]), np.array([0, 2, 0]), n_users=1, n_items=3)
    victim = MultiVAE({"embedding_size": 1, "hidden_size": 2, "epochs": 0})
    victim.fit(log, np.random.default_rng(0))
    weights = {name: torch.zeros(array.shape) for name, array in victim.state.items()}
    weights["decoder_bias"] = torch.log(torch.tensor([1.0, 2.0, 5.0]))
    weights["to_latent_bias"] = torch.tensor([1.0, np.log(4.0)], dtype=torch.float32)
    loss = victim._loss(weights, log, np.array([0]), 5, 0, 0.25)
    assert float(loss) == pytest.approx(np.log(64 / 5) + 0.25 * (2.0 - np.log(2.0)), rel=1e-6)


@pytest.mark.parametrize("new_items_as_negatives", [True, False])
def test_clean_training_is_adam_on_the_dense_bound_whose_divergence_is_annealed(
    small_log: Interactions, new_items_as_negatives: bool
) -> None:
    settings = {
        "epochs": 1,
        "batch_size": 11,
        "annealing": 0.5,
        "kl_weight": 3.0,
        "new_items_as_negatives": new_items_as_negatives,
    }
    untrained = fitted(small_log, **{**settings, "epochs": 0})
    victim = fitted(small_log, **settings)
    dense = dense_rows(small_log)
    seed = draw_seed(np.random.default_rng(untrained._fit_seed))
    order, bounds = visit_batches(seed, 0, small_log.n_users, 11)
    n_steps = len(bounds) - 1
    assert n_steps == 3
    indptr, seen = small_log.seen
    is_kept = np.zeros_like(dense)
    owners = np.repeat(np.arange(small_log.n_users), np.diff(indptr))
    is_kept[owners, seen] = ~dropped_clicks(seed, 0, np.arange(len(seen)), 0.4)
    assert 0.4 < is_kept[dense > 0.0].mean() < 0.8
    shown = normalised(dense) * is_kept / 0.6
    noise = normal_draws(seed, 0, np.arange(small_log.n_users), 3).astype(np.float64)
    is_met = np.ones(dense.shape, dtype=np.bool_)
    is_met[:, small_log.n_items - N_NEW :] = new_items_as_negatives
    state = as_float64(untrained.state)
    moments: tuple[Arrays, Arrays] = ({}, {})
    for step, (start, end) in enumerate(pairwise(bounds), start=1):
        users = order[start:end]
        kl_weight = 3.0 * min(1.0, (step - 1) / (0.5 * n_steps))

        def loss(users: NDArray[np.int64] = users, kl_weight: float = kl_weight) -> float:
            own = (dense[users], shown[users], noise[users])
            norms = sum(float((array**2).sum()) for array in state.values() if array.ndim > 1)
            each = loss_by_definition(state, *own, kl_weight, is_met[users])
            return float(each.mean()) + 0.5 * 0.01 * norms

        rate = 0.02 * (n_steps - step + 1) / n_steps
        adam_step(state, moments, slopes(state, loss), step, rate)
    for name, array in victim.state.items():
        np.testing.assert_allclose(array, state[name], atol=2e-4, err_msg=name)


def test_noise_is_standard_normal_and_belongs_to_a_users_number() -> None:
    draws = normal_draws(3, 5, np.arange(4_000), 6)
    assert abs(draws.mean()) < 0.02
    assert abs(draws.std() - 1.0) < 0.02
    assert np.abs(np.corrcoef(draws.T) - np.eye(6)).max() < 0.06
    np.testing.assert_array_equal(normal_draws(3, 5, np.array([17, 2]), 6), draws[[17, 2]])
    assert np.abs(normal_draws(3, 6, np.arange(4_000), 6) - draws).min(axis=0).max() > 0.0
    assert dropped_clicks(3, 5, np.arange(9_000), 0.3).mean() == pytest.approx(0.3, abs=0.02)
    assert not dropped_clicks(3, 5, np.arange(9_000), 0.0).any()


def test_the_score_is_the_logit_at_the_mean_of_the_latent_variable(
    small_log: Interactions,
) -> None:
    victim = fitted(small_log, epochs=8)
    state, shown = as_float64(victim.state), normalised(dense_rows(small_log))
    mean, _ = encoded(state, shown)
    logits = decoded(state, mean) @ state["decoder"].T + state["decoder_bias"]
    users = np.arange(small_log.n_users)
    items = np.tile(np.arange(small_log.n_items), (small_log.n_users, 1))
    np.testing.assert_allclose(victim.score(users, items), logits, rtol=1e-4, atol=1e-5)


def test_it_finds_held_out_items_that_popularity_does_not() -> None:
    split = load("synthetic").split
    held_out = np.where(split.evaluable("validation"), split.validation_items, -1)
    users = np.arange(split.train.n_users)
    quality = {
        victim.name: hr_at_k(
            victim.fit(split.train, np.random.default_rng(0)).recommend(users, 10), held_out
        )
        for victim in (ItemPop(), MultiVAE({"epochs": 60}))
    }
    assert quality["MultiVAE"] > 1.3 * quality["ItemPop"]


# -- fine-tuning -------------------------------------------------------------------------------


@pytest.mark.parametrize("new_items_as_negatives", [True, False])
def test_finetuning_moves_new_items_by_adam_on_fake_rows_and_genuine_denominators(
    small_log: Interactions, new_items_as_negatives: bool
) -> None:
    victim = fitted(small_log, new_items_as_negatives=new_items_as_negatives)
    profile = np.array([[24, 3, 3], [5, 26, 1], [7, 7, 2]])
    new, clicked = np.array([24, 26]), np.array([1, 2, 3, 5, 7, 24, 26])
    dense = dense_rows(victim.poisoned(profile, 9, "finetune").log)
    n_genuine, n_items = small_log.n_users, small_log.n_items
    places = np.arange(3)[:, None] * n_items + np.arange(n_items)
    is_met = np.ones(dense.shape, dtype=np.bool_)
    if not new_items_as_negatives:
        is_met[:n_genuine, -N_NEW:] = False
        is_met[-1, -N_NEW:] = False
    clean = as_float64(victim.state)
    untrained = as_float64(
        fitted(small_log, epochs=0, new_items_as_negatives=new_items_as_negatives).state
    )
    for_fakes = {name: array.copy() for name, array in clean.items()}
    for_fakes["encoder"][new] = untrained["encoder"][new]
    start = for_fakes["encoder"][clicked]
    n_fake, n_clicks = (dense[rows][:, clicked].sum(axis=0) for rows in (slice(30, 33), slice(33)))
    share = np.where(np.isin(clicked, new), 0.5, n_fake / n_clicks)[:, None]
    assert 0.0 < share.min() < 0.3
    state: Arrays = {name: untrained[name][new] for name in ("decoder", "decoder_bias")}
    state["move"] = np.zeros_like(start)
    moments: tuple[Arrays, Arrays] = ({}, {})
    fit_seed = draw_seed(np.random.default_rng(victim._fit_seed))
    indptr, seen = small_log.seen
    owners = np.repeat(np.arange(n_genuine), np.diff(indptr))
    for step in (1, 2):
        shown, noise = normalised(dense), np.empty((len(dense), 3))
        # the clean fit took epochs 0 to 2, so genuine users draw those of 3 and 4 in turn
        shown[owners, seen] *= ~dropped_clicks(fit_seed, 2 + step, np.arange(len(seen)), 0.4)
        shown[n_genuine:] *= ~dropped_clicks(9, step - 1, places, 0.4)
        shown /= 0.6
        noise[:n_genuine] = normal_draws(fit_seed, 2 + step, np.arange(n_genuine), 3)
        noise[n_genuine:] = normal_draws(9, step - 1, np.arange(3), 3)

        def loss(shown: NDArray[np.float64] = shown, noise: NDArray[np.float64] = noise) -> float:
            for name in ("decoder", "decoder_bias"):
                clean[name][new] = for_fakes[name][new] = state[name]
            for_fakes["encoder"][clicked] = start + share * state["move"]
            total = 0.0
            for weights, rows in ((clean, slice(30)), (for_fakes, slice(30, 33))):
                own = (dense[rows], shown[rows], noise[rows])
                total += float(loss_by_definition(weights, *own, 0.3, is_met[rows]).sum())
            norms = (state["decoder"] ** 2).sum() + (for_fakes["encoder"][new] ** 2).sum()
            return total / len(dense) + 0.5 * 0.01 * float(norms)

        adam_step(state, moments, slopes(state, loss), step, 0.02 if step == 1 else 0.01)
    loss()  # the last step's rows
    poisoned = victim.poisoned(profile, 9, "finetune").state
    for name in ("encoder", "decoder", "decoder_bias"):
        np.testing.assert_allclose(
            poisoned[name][new], for_fakes[name][new], atol=2e-4, err_msg=name
        )
    assert np.abs(state["move"][:5]).max() > 0.02  # old items' rows moved, which the state forgets


@pytest.mark.parametrize("new_items_as_negatives", [True, False])
def test_finetuning_moves_old_items_by_a_newton_step_that_genuine_clicks_damp(
    small_log: Interactions, new_items_as_negatives: bool
) -> None:
    victim = fitted(small_log, new_items_as_negatives=new_items_as_negatives)
    profile = np.array([[24, 3, 3], [5, 26, 1], [7, 3, 2]])
    poisoned = victim.poisoned(profile, 9, "finetune")
    before, after = as_float64(victim.state), as_float64(poisoned.state)
    dense = dense_rows(poisoned.log)
    n_clicks = dense.sum(axis=1)
    units = np.column_stack(
        [decoded(after, encoded(after, normalised(dense))[0]), np.ones(len(dense))]
    )
    decoder, moved = (np.column_stack([s["decoder"], s["decoder_bias"]]) for s in (before, after))
    # what the fake users expect comes from new items that have moved and old ones that have not
    at_step = np.where((small_log.item_popularity == 0)[:, None], moved, decoder)
    logits = units @ at_step.T
    if not new_items_as_negatives:
        logits[-1, -N_NEW:] = -np.inf
    expected = n_clicks[:, None] * np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    genuine = slice(0, small_log.n_users)
    moment = (units[genuine].T * n_clicks[genuine]) @ units[genuine] / n_clicks[genuine].sum()
    for item in (1, 2, 3, 5, 7):
        clicking = small_log.n_users + np.flatnonzero((profile == item).any(axis=1))
        curvature = dense[genuine, item].sum() * moment + np.eye(len(moment))
        curvature += units[clicking].T @ units[clicking]
        pull = (1.0 - expected[clicking, item]) @ units[clicking]
        move = moved[item] - decoder[item]
        np.testing.assert_allclose(curvature @ move, pull, atol=1e-4)
        assert np.abs(move).max() > 1e-3


def test_finetuning_draws_from_its_seed_and_leaves_the_rest_alone(small_log: Interactions) -> None:
    victim = fitted(small_log)
    profile = np.array([[24, 3, 3], [5, 26, 1]])
    before = victim.state
    after, again, other = (victim.poisoned(profile, seed, "finetune").state for seed in (1, 1, 2))
    assert not np.array_equal(after["decoder"], other["decoder"])
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], again[name])
        moving = {"encoder": [24, 26], "decoder": [1, 3, 5, 24, 26]}
        moving["decoder_bias"] = moving["decoder"]
        changed = (array != after[name]).reshape(len(array), -1).any(axis=1)
        assert np.flatnonzero(changed).tolist() == moving.get(name, []), name


@pytest.mark.parametrize("new_items_as_negatives", [True, False])
@pytest.mark.parametrize("reg", [0.0, 0.1])
def test_the_engine_gives_the_decoder_rows_of_the_plain_path(
    small_log: Interactions,
    make_lists: Callable[..., CandidateLists],
    new_items_as_negatives: bool,
    reg: float,
) -> None:
    victim = fitted(
        small_log,
        epochs=20,
        finetune_epochs=30,
        new_items_as_negatives=new_items_as_negatives,
        reg=reg,
    )
    engine = victim.engine(make_lists(small_log, [24, 25]))
    assert isinstance(engine, MultiVAEEngine)
    for profile in ([[24, 3, 3], [5, 26, 1], [7, 3, 2]], [[24, 25], [24, 24]], [[0, 1], [1, 1]]):
        items, rows = engine.rows_after(np.array(profile), 5)
        assert items.tolist() == sorted({item for own in profile for item in own})
        state = as_float64(victim.poisoned(np.array(profile), 5, "finetune").state)
        plain = np.column_stack([state["decoder"], state["decoder_bias"]])[items]
        np.testing.assert_allclose(rows.astype(np.float64), plain, atol=1e-4)


def test_denominators_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    units, decoder = (rng.normal(0.0, 30.0, (n, 4)).astype(np.float32) for n in (9, 11))
    expected = logsumexp(units.astype(np.float64) @ decoder.T, axis=1)
    np.testing.assert_allclose(log_denominators(units, decoder), expected, rtol=1e-5)
    monkeypatch.setattr("recattack_gym.victims.multivae_engine._BLOCK_CELLS", 23)
    np.testing.assert_allclose(log_denominators(units, decoder), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden_size", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("kl_weight", -1.0),
        ("annealing", 0.0),
        ("annealing", 1.5),
        ("finetune_draws", 0),
        ("finetune_encoder_pace", -0.1),
    ],
)
def test_a_setting_out_of_range_is_named(setting: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=f"{setting} must .*{value}"):
        MultiVAE({setting: value})
