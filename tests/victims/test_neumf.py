"""NeuMF against its formula and its compiled twin."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.victims import CandidateLists, NeuMF
from recattack_gym.victims.neumf import checkpoint_epochs, fake_rows, make_refit_schedule
from recattack_gym.victims.neumf_engine import NeuMFEngine
from recattack_gym.victims.schedule import fake_share

N_NEW = 3

SMALL: dict[str, object] = {
    "embedding_size": 6,
    "epochs": 3,
    "batch_size": 16,
    "n_negatives": 2,
    "initial_scale": 0.3,
    "finetune_epochs": 3,
    "finetune_batch_size": 50,
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


def slopes_by_definition(
    state: dict[str, NDArray[np.float64]],
    examples: list[tuple[int, int, bool]],
    reg: float,
    rows: list[tuple[str, int]],
) -> list[NDArray[np.float64]]:
    """Numeric gradient of the loss by some rows of the embeddings."""
    slopes = []
    for table, row in rows:
        place = {"users": 0, "items": 1}[table]
        own = [example for example in examples if example[place] == row]
        array = state[table][row]
        slope = np.zeros_like(array)
        for j in range(len(array)):
            kept, sides = array[j], []
            for shift in (1e-6, -1e-6):
                array[j] = kept + shift
                sides.append(loss_by_definition(state, own, reg))
            array[j] = kept
            slope[j] = (sides[0] - sides[1]) / 2e-6
        slopes.append(slope)
    return slopes


def test_finetuning_is_adam_on_fake_users_and_clicked_items_along_clean_training(
    small_log: Interactions,
) -> None:
    victim = fitted(small_log)
    profile, seed = np.array([[24, 3, 3], [5, 26, 1]]), 9
    clean = {name: array.astype(np.float64) for name, array in victim.state.items()}
    n_users, clicked = small_log.n_users, np.unique(profile)
    share = fake_share(small_log, profile)[clicked]
    schedule = make_refit_schedule(small_log, (2, 3), victim.config, n_new_items=N_NEW, seed=seed)
    per_epoch = schedule.batches_per_epoch
    assert per_epoch > 1
    assert checkpoint_epochs(victim.config) == [1, 2]
    free = np.concatenate(
        [fake_rows(2, seed, victim.config), np.zeros((len(clicked), 12))], dtype=np.float64
    )
    first, second = np.zeros_like(free), np.zeros_like(free)
    rows = [("users", n_users), ("users", n_users + 1), *(("items", int(i)) for i in clicked)]

    def beside(suffix: str) -> dict[str, NDArray[np.float64]]:
        state = {name: array.copy() for name, array in clean.items()}
        for name in ("users", "items", "item_layer", "user_layer", "layer2", "layer3", "bias1"):
            state[name] = clean[name + suffix].copy()
        for name in ("bias2", "bias3", "gmf_output", "mlp_output", "output_bias"):
            state[name] = clean[name + suffix].copy()
        state["users"] = np.concatenate([state["users"], free[:2]])
        for c, item in enumerate(clicked):
            if item >= 24:
                state["items"][item] = clean["untrained"][item - 24]
            state["items"][item] += share[c] * free[2 + c]
        return state

    for batch, (users, items, is_click) in enumerate(schedule.batches(profile)):
        state = beside(["_1", "_2", ""][batch // per_epoch])
        examples = list(zip(users.tolist(), items.tolist(), is_click.tolist(), strict=True))
        slope = np.stack(slopes_by_definition(state, examples, 0.01, rows))
        slope[2:] *= share[:, None]
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        unbiased = first / (1 - 0.9 ** (batch + 1))
        spread = np.sqrt(second / (1 - 0.999 ** (batch + 1)))
        free -= 0.02 * unbiased / (spread + 1e-8)
    expected = beside("")
    poisoned = victim.poisoned(profile, seed, "finetune")
    for name, learnt in poisoned.state.items():
        if name in expected and not name[-1].isdigit():
            np.testing.assert_allclose(learnt, expected[name], atol=2e-4, err_msg=name)


def test_clicked_new_items_meet_genuine_users_as_often_as_in_clean_training(
    small_log: Interactions,
) -> None:
    config = fitted(small_log, finetune_epochs=2, finetune_batch_size=30).config
    schedule = make_refit_schedule(small_log, (2, 3), config, n_new_items=N_NEW, seed=1)
    rate = round(len(small_log) * 2 / small_log.n_items)
    assert schedule.batches_per_epoch == round(len(small_log) / 30)
    profile = np.array([[24, 3, 3], [5, 26, 24]])
    batches = list(schedule.batches(profile))
    assert len(batches) == 2 * schedule.batches_per_epoch
    users, items, is_click = (np.concatenate(x) for x in zip(*batches, strict=True))
    genuine = users < small_log.n_users
    assert not is_click[genuine].any()
    assert np.bincount(items[genuine]).tolist() == [0] * 24 + [2 * rate, 0, 2 * rate]
    visitors = [sorted(users[genuine & (items == item)]) for item in (24, 26)]
    assert visitors[0] != visitors[1]
    clicks = sorted(zip(users[is_click] - small_log.n_users, items[is_click], strict=True))
    assert clicks == sorted([(0, 24), (0, 3), (0, 3), (1, 5), (1, 26), (1, 24)] * 2)
    assert (~is_click & ~genuine).sum() == 2 * 6 * 2


@pytest.mark.parametrize("off", [{"new_items_as_negatives": False}, {"finetune_replay": 0.0}])
def test_without_negatives_of_genuine_users_only_fake_users_are_visited(
    small_log: Interactions, off: dict[str, object]
) -> None:
    config = fitted(small_log, **off).config
    schedule = make_refit_schedule(small_log, (1, 2), config, n_new_items=N_NEW, seed=1)
    for users, _, _ in schedule.batches(np.array([[24, 3]])):
        assert (users == small_log.n_users).all()


def test_checkpoints_are_denser_at_the_start_and_end_before_the_last_epoch() -> None:
    config = NeuMF({"epochs": 15, "finetune_checkpoints": 8}).config
    assert checkpoint_epochs(config) == [1, 2, 3, 5, 7, 10, 12]
    assert checkpoint_epochs(NeuMF({"epochs": 3, "finetune_checkpoints": 9}).config) == [1, 2]
    assert checkpoint_epochs(NeuMF({"epochs": 0}).config) == []
    assert checkpoint_epochs(NeuMF({"finetune_checkpoints": 1}).config) == []


def test_a_checkpoint_is_what_a_shorter_clean_training_leaves(small_log: Interactions) -> None:
    long, short = fitted(small_log).state, fitted(small_log, epochs=2).state
    for name in ("users", "items", "layer2", "output_bias"):
        np.testing.assert_array_equal(long[f"{name}_2"], short[name])
    untrained = fitted(small_log, epochs=0).state
    np.testing.assert_array_equal(long["untrained"], untrained["items"][-N_NEW:])


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


@pytest.mark.parametrize("embedding_size", [1, 6])
@pytest.mark.parametrize("reg", [0.0, 0.01])
@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (40, 10)])
def test_compiled_finetuning_gives_the_parameters_of_the_plain_path(
    small_log: Interactions,
    make_lists: Callable[..., CandidateLists],
    embedding_size: int,
    reg: float,
    shape: tuple[int, int],
) -> None:
    victim = fitted(small_log, embedding_size=embedding_size, reg=reg, finetune_epochs=5)
    engine = victim.engine(make_lists(small_log, [24, 25, 26]))
    assert isinstance(engine, NeuMFEngine)
    rng = np.random.default_rng(0)
    for profile in (rng.integers(0, 27, shape), np.full(shape, 25), rng.integers(0, 9, shape)):
        fakes, items = engine.rows_after(profile, 5)
        after = victim.poisoned(profile, 5, "finetune").state
        np.testing.assert_allclose(fakes, after["users"][small_log.n_users :], atol=1e-4)
        np.testing.assert_allclose(items, after["items"][np.unique(profile)], atol=1e-4)


def test_without_passes_a_poisoned_platform_shows_what_the_clean_one_shows(
    small_log: Interactions, make_lists: Callable[..., CandidateLists]
) -> None:
    victim = fitted(small_log, finetune_epochs=0)
    targets = np.arange(small_log.n_items - N_NEW, small_log.n_items)
    lists = make_lists(small_log, targets, k=5)
    profiles = np.broadcast_to(targets, (1, 4, N_NEW)).copy()
    clean = victim.exposure(lists)
    for backend in ("auto", "plain"):
        engine = victim.engine(lists, backend=backend)
        np.testing.assert_array_equal(engine.exposure(profiles, 1)[0], clean)
    users, items = np.arange(small_log.n_users), np.tile(targets, (small_log.n_users, 1))
    np.testing.assert_array_equal(
        victim.poisoned(profiles[0], 1, "finetune").score(users, items), victim.score(users, items)
    )


def test_finetuning_moves_fake_users_and_clicked_items_only(small_log: Interactions) -> None:
    victim = fitted(small_log)
    before = victim.state
    after = victim.poisoned(np.array([[24, 3], [5, 3]]), 5, "finetune").state
    moved = (after["items"] != before["items"]).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [3, 5, 24]
    for name, array in before.items():
        if name != "items":
            np.testing.assert_array_equal(after[name][: len(array)], array, err_msg=name)


def test_new_items_are_trained_only_as_negatives(small_log: Interactions) -> None:
    untrained = fitted(small_log, epochs=0).state["items"][-N_NEW:]
    for as_negatives in (False, True):
        victim = fitted(small_log, new_items_as_negatives=as_negatives)
        assert np.array_equal(victim.state["items"][-N_NEW:], untrained) != as_negatives


@pytest.mark.parametrize("setting", ["n_negatives", "initial_scale", "finetune_checkpoints"])
def test_a_setting_out_of_range_is_named(setting: str) -> None:
    with pytest.raises(ArgumentError, match=setting):
        NeuMF({setting: 0})
