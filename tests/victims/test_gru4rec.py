"""GRU4Rec: sessions, the sampled softmax, what a state reads, and the compiled engine against autograd."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, ArtifactError, Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import CandidateLists, GRU4Rec
from recattack_gym.victims.gru4rec import _pushed_down, _visits, session_softmax
from recattack_gym.victims.gru4rec_kernel import GRU4RecEngine, exponential, make_contest, plant
from recattack_gym.victims.gru4rec_run import _fades, moved_items
from recattack_gym.victims.gru4rec_sessions import (
    bucketed,
    cut,
    draw_dropout,
    log_weights,
    padded,
)
from recattack_gym.victims.kernels import compiled

N_NEW = 3
TARGETS = [24, 25, 26]
SETTINGS: dict[str, object] = {
    "embedding_size": 8,
    "epochs": 20,
    "batch_size": 16,
    "max_length": 4,
    "n_negatives": 30,
    "learning_rate": 0.02,
    "finetune_learning_rate": 0.02,
    "finetune_anchors": 7,
    "finetune_waypoints": 3,
}
MakeLists = Callable[..., CandidateLists]


@pytest.fixture(scope="module")
def victim(small_log: Interactions) -> GRU4Rec:
    """Return a victim that has learnt something, with large steps so that attacks matter."""
    return GRU4Rec(SETTINGS).fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)


def fitted(log: Interactions, **changes: object) -> GRU4Rec:
    victim = GRU4Rec({**SETTINGS, **changes})
    return victim.fit(log, np.random.default_rng(3), n_new_items=N_NEW)


def profiles(log: Interactions, m: int, n: int, t: int, seed: int = 0) -> NDArray[np.int64]:
    """Half of the clicks on the new items; shape `(m, n, t)`."""
    rng = np.random.default_rng(seed)
    new = rng.integers(log.n_items - N_NEW, log.n_items, (m, n, t))
    return np.where(rng.random((m, n, t)) < 0.5, new, rng.integers(0, log.n_items, (m, n, t)))


# -- sessions ------------------------------------------------------------------------------------


def log_of(lengths: list[int]) -> Interactions:
    """Return users with so many clicks on items 0, 1, 2, ..., each item clicked once."""
    users = np.repeat(np.arange(len(lengths)), lengths)
    return Interactions(users, np.arange(len(users)), n_users=len(lengths), n_items=len(users) + 1)


def test_sequences_are_cut_from_their_end() -> None:
    starts, lengths = cut(log_of([2, 0, 7, 3]), 3)
    # the seven clicks 2..8 of the third user: a rest of one, then two whole sessions
    assert starts.tolist() == [0, 2, 3, 6, 9]
    assert lengths.tolist() == [2, 1, 3, 3, 3]


def test_longer_sequences_are_cut_elsewhere_in_every_epoch_and_shorter_ones_never() -> None:
    log = log_of([3, 20])
    seen = set()
    for epoch in range(20):
        starts, lengths = cut(log, 5, 1, epoch)
        assert starts[0] == 0
        assert lengths[0] == 3
        assert lengths.sum() == len(log)
        assert lengths.max() <= 5
        seen.add(tuple(starts.tolist()))
    assert len(seen) == 5


# -- the softmax ---------------------------------------------------------------------------------


def test_items_are_sampled_by_clicks_to_a_power_and_new_ones_only_once_they_are_clicked() -> None:
    clicks = np.array([0, 1, 4, 0])
    victim = GRU4Rec({"sample_alpha": 0.5})
    np.testing.assert_allclose(victim._sampling_probability(clicks), [0, 1 / 3, 2 / 3, 0])
    clicks[3] = 1  # a fake click
    np.testing.assert_allclose(victim._sampling_probability(clicks), [0, 0.25, 0.5, 0.25])
    everything = GRU4Rec({"sample_alpha": 0.5, "new_items_as_negatives": True})
    np.testing.assert_allclose(everything._sampling_probability(clicks), [0.2, 0.2, 0.4, 0.2])


def test_clean_training_draws_items_by_clicks_to_a_power() -> None:
    clicked = np.array([1, 2, 2, 3, 2, 2])
    log = Interactions(np.zeros(6, np.int64), clicked, n_users=1, n_items=5)
    for everything in (False, True):
        for alpha in (0.0, 0.5, 1.5):
            config = {"sample_alpha": alpha, "new_items_as_negatives": everything}
            victim = GRU4Rec(config)
            drawn = victim._sampling_table(log).draw(40_000, 3, 1)
            share = np.bincount(drawn, minlength=5) / 40_000
            expected = victim._sampling_probability(log.item_popularity)
            np.testing.assert_allclose(share, expected, atol=0.01)


def test_fake_clicks_leave_what_clean_training_draws_as_it_was(small_log: Interactions) -> None:
    log = small_log.with_fake_users(np.array([[24, 24, 3]]))
    victim = GRU4Rec()
    before, after = (
        np.stack([victim._sampling_table(some).draw(200, 3, step) for step in range(5)])
        for some in (small_log, log)
    )
    assert not np.array_equal(before[0], before[1])
    changed = before != after
    assert 0.0 < changed.mean() < 0.1
    assert set(np.unique(after[changed])) == {3, 24}


@pytest.mark.parametrize(("n_added", "same"), [(1, 0.9), (20, 0.7)])
def test_added_sessions_leave_most_of_the_others_in_their_batches(
    n_added: int, same: float
) -> None:
    lengths = np.random.default_rng(0).integers(1, 9, 1_900)
    longer = np.append(lengths, np.full(n_added, 5))
    batch_of = []
    for sizes in (lengths, longer):
        numbers = np.full(len(sizes), -1)
        visits = list(bucketed(sizes, 10, 3, 1))
        for number, rows in visits:
            assert 5 < len(rows) < 20
            assert (numbers[rows] == -1).all()
            numbers[rows] = number
        assert (numbers >= 0).all()
        batch_of.append(numbers[:1_900])
    assert (batch_of[0] == batch_of[1]).mean() > same


def test_dropout_belongs_to_a_click_whatever_the_batch() -> None:
    together = draw_dropout(np.array([4, 90, 17]), 5, 6, 0.25, 3, 1)
    alone = draw_dropout(np.array([17]), 3, 6, 0.25, 3, 1)
    assert together is not None
    assert alone is not None
    assert together.shape == (3, 5, 6)
    np.testing.assert_array_equal(together[2, :3], alone[0])
    many = draw_dropout(np.arange(0, 4_000, 4), 4, 6, 0.25, 3, 1)
    assert many is not None
    assert set(np.unique(many)) == {0.0, np.float32(4 / 3)}
    assert many.mean() == pytest.approx(1.0, abs=0.01)
    other = draw_dropout(np.arange(0, 4_000, 4), 4, 6, 0.25, 3, 2)
    assert other is not None
    assert not np.array_equal(many, other)
    assert draw_dropout(np.arange(3), 4, 6, 0.0, 3, 1) is None


def test_a_sampled_item_counts_as_often_as_it_is_missed() -> None:
    weights = np.exp(log_weights(np.array([0.5, 0.25, 0.25, 0.0]), 8))
    np.testing.assert_allclose(weights, [1 / 4, 1 / 2, 1 / 2, 1], rtol=1e-6)


def test_the_loss_over_all_items_is_the_cross_entropy_of_a_gru_step_by_step(
    victim: GRU4Rec,
) -> None:
    net = victim._net
    sessions = [[3, 7, 3], [5], [1, 2]]
    expected = []
    for session in sessions:
        state = torch.zeros(8)
        for item in session:
            scores = net.items @ state + net.bias
            expected.append(torch.nn.functional.cross_entropy(scores, torch.tensor(item)))
            w_in, w_state, b_in, b_state = net.gru.parameters()
            a, b = w_in @ net.items[item] + b_in, w_state @ state + b_state
            reset, update = torch.sigmoid(a[:8] + b[:8]), torch.sigmoid(a[8:16] + b[8:16])
            new = torch.tanh(a[16:] + reset * b[16:])
            state = (1 - update) * new + update * state
    softmax = session_softmax(
        net,
        torch.tensor([[3, 7, 3], [5, -1, -1], [1, 2, -1]]),
        torch.arange(27),
        torch.zeros(27),
    )
    loss = softmax.loss(0.0)
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_the_sampled_loss_estimates_the_full_one(victim: GRU4Rec) -> None:
    sessions = torch.tensor([[3, 7, 3, 9, 1], [5, 4, 2, -1, -1]])
    full = session_softmax(victim._net, sessions, torch.arange(27), torch.zeros(27)).loss(0.0)
    probability = GRU4Rec({"new_items_as_negatives": True})._sampling_probability(
        victim.log.item_popularity
    )
    drawn = np.random.default_rng(0).choice(27, 20_000, p=probability)
    weight = torch.from_numpy(log_weights(probability, len(drawn)))
    estimate = session_softmax(victim._net, sessions, torch.from_numpy(drawn), weight).loss(0.0)
    assert estimate.item() == pytest.approx(full.item(), rel=0.01)


def test_the_penalty_is_half_the_mean_squared_norm_of_the_clicked_vectors(victim: GRU4Rec) -> None:
    sessions = torch.tensor([[3, 7], [5, -1]])
    softmax = session_softmax(victim._net, sessions, torch.arange(27), torch.zeros(27))
    penalty = softmax.loss(0.5) - softmax.loss(0.0)
    squares = victim._net.items[[3, 7, 5]].square().sum(1)
    assert penalty.item() == pytest.approx(0.25 * squares.mean().item(), rel=1e-4)


# -- what a state reads --------------------------------------------------------------------------


def test_learns_which_item_follows_which() -> None:
    # everybody walks round a ring of 10 items from somewhere: 6 clicks, so the next is unseen
    users = np.repeat(np.arange(40), 6)
    items = (users % 10 + np.tile(np.arange(6), 40)) % 10
    log = Interactions(users, items, n_users=40, n_items=10)
    settings = {"embedding_size": 8, "epochs": 60, "learning_rate": 0.02, "batch_size": 16}
    victim = GRU4Rec(settings).fit(log, np.random.default_rng(0))
    shown = victim.recommend(np.arange(40), 1)[:, 0]
    assert (shown == (np.arange(40) % 10 + 6) % 10).mean() > 0.95


def test_only_the_last_clicks_count(victim: GRU4Rec, small_log: Interactions) -> None:
    items = np.arange(small_log.n_items)[None, :]
    sequences = np.array([[1, 2, 3, 4, 5], [9, 2, 3, 4, 5], [9, 2, 3, 5, 4]])
    log = Interactions(np.repeat([0, 1, 2], 5), sequences.ravel(), 3, small_log.n_items)
    reader = GRU4Rec({**SETTINGS, "epochs": 0}).fit(
        log, np.random.default_rng(0), n_new_items=N_NEW
    )
    reader._set_state(victim.state)
    first, second, swapped = (reader.score(np.array([user]), items) for user in range(3))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, swapped)


def test_a_user_without_history_gets_the_biases(victim: GRU4Rec) -> None:
    log = Interactions(np.array([1]), np.array([0]), n_users=3, n_items=victim.log.n_items)
    reader = GRU4Rec({**SETTINGS, "epochs": 0}).fit(
        log, np.random.default_rng(0), n_new_items=N_NEW
    )
    reader._set_state(victim.state)
    items = np.tile(np.arange(log.n_items), (2, 1))
    scores = reader.score(np.array([0, 2]), items)
    np.testing.assert_array_equal(scores, np.tile(victim.state["bias"], (2, 1)))


def test_popular_items_have_the_larger_biases(victim: GRU4Rec, small_log: Interactions) -> None:
    bias, clicks = victim.state["bias"], small_log.item_popularity
    assert bias[np.argsort(-clicks)[:3]].min() > bias[:24][clicks[:24] <= 2].max()


# -- the clean run, and going through it again ---------------------------------------------------


@pytest.mark.parametrize(
    ("n", "t", "changes"),
    [
        (2, 3, {}),
        (1, 11, {"dropout": 0.3, "batch_size": 4}),
        (60, 9, {}),  # more fake clicks than genuine ones: the table outgrows its power of two
        (3, 4, {"new_items_as_negatives": True, "sample_alpha": 1.3}),
    ],
)
def test_a_rerun_has_what_full_retraining_draws(
    small_log: Interactions, n: int, t: int, changes: dict[str, object]
) -> None:
    clean = fitted(small_log, epochs=3, **changes)
    profile = profiles(small_log, 1, n, t)[0]
    poisoned = small_log.with_fake_users(profile)
    table, config = clean._sampling_table(poisoned), clean.config
    rerun = clean._rerun(small_log, (n, t), clean._run)
    visits = list(_visits(poisoned, config, clean._run.seed))
    assert rerun.steps.tolist() == [visit.step for visit in visits]
    found = clean._negatives(small_log, profile, rerun, clean._sampling_table(small_log))
    assert np.isin(found, TARGETS).any()
    n_fakes = 0
    for s, visit in enumerate(visits):
        expected = table.draw(config.n_negatives, clean._run.seed, visit.step)
        np.testing.assert_array_equal(found[s], expected)
        assert rerun.n_clicks[s] == visit.lengths.sum()
        is_fake = visit.starts >= len(small_log)
        assert rerun.n_genuine[s] == visit.lengths[~is_fake].sum()
        mine = slice(*rerun.session_indptr[s : s + 2])
        sessions = zip(rerun.starts[mine], rerun.lengths[mine], strict=True)
        starts = visit.starts[is_fake] - len(small_log)
        assert sorted(sessions) == sorted(zip(starts, visit.lengths[is_fake], strict=True))
        assert (np.diff(rerun.lengths[mine]) <= 0).all()
        n_fakes += rerun.lengths[mine].sum()
        d, epoch = config.embedding_size, visit.step >> 32
        mask = draw_dropout(visit.starts[is_fake], t, d, config.dropout, clean._run.seed, epoch)
        assert mask is not None
        for row, start, length in zip(mask, starts, visit.lengths[is_fake], strict=True):
            np.testing.assert_array_equal(rerun.masks[epoch, start : start + length], row[:length])
    assert n_fakes == 3 * n * t


def test_a_rerun_meets_each_waypoint_and_the_states_of_its_own_steps(
    small_log: Interactions,
) -> None:
    clean = fitted(small_log, epochs=9)
    rerun = clean._rerun(small_log, (1, 2), clean._run)
    shares = np.bincount(rerun.waypoints) / len(rerun.waypoints)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.05)
    assert (np.diff(rerun.waypoints) >= 0).all()
    known = np.isin(rerun.steps, clean._run.steps)
    assert known.mean() > 0.9
    np.testing.assert_array_equal(clean._run.steps[rerun.anchors[known]], rerun.steps[known])


@pytest.mark.parametrize("fading", [0.0, 0.03, 1.0])
def test_what_is_summed_up_between_fake_sessions_is_what_happens_step_by_step(
    fading: float,
) -> None:
    has_fakes = np.array([False, True, True, False, False, False, True, False])
    fades = _fades(has_fakes, 0.1, fading)
    gradients = np.random.default_rng(0).normal(size=len(has_fakes)) * has_fakes
    change = moment = 0.0
    quick = quick_moment = 0.0
    for step, gradient in enumerate(gradients):
        moment = 0.9 * moment + 0.1 * gradient
        change = (1.0 - fading) * change - 0.1 * moment / (1.0 - 0.9 ** (step + 1))
        if has_fakes[step]:
            quick_moment = 0.9 * quick_moment + 0.1 * gradient
            keep, push, pause = fades[step]
            quick, quick_moment = keep * quick - push * quick_moment, pause * quick_moment
    assert change != 0.0
    assert quick == pytest.approx(change, rel=1e-9)
    assert quick_moment == pytest.approx(moment, rel=1e-9)


def test_the_step_size_of_fine_tuning_is_that_of_the_recurrent_weights_too(
    small_log: Interactions,
) -> None:
    victims = (fitted(small_log, epochs=2, finetune_learning_rate=rate) for rate in (0.01, 0.03))
    slow, quick = (each._rerun(small_log, (3, 4), each._run).fades for each in victims)
    assert slow[:, 1].any()
    np.testing.assert_allclose(quick, slow * [1.0, 3.0, 1.0])


def test_the_run_keeps_states_of_each_step_and_what_their_softmax_was_divided_by(
    small_log: Interactions,
) -> None:
    clean = fitted(small_log, epochs=1, batch_size=100)  # one step, from the untrained network
    untrained = fitted(small_log, epochs=0)
    visit = next(_visits(small_log, clean.config, clean._run.seed))
    seed, width = clean._run.seed, int(visit.lengths.max()) - 1
    mask = draw_dropout(visit.starts, width, 8, clean.config.dropout, seed, 0)
    assert mask is not None
    drawn = clean._sampling_table(small_log).draw(30, seed, visit.step)
    probability = clean._sampling_probability(small_log.item_popularity)
    softmax = session_softmax(
        untrained._net,
        torch.from_numpy(padded(small_log.item_ids, visit.starts, visit.lengths)),
        torch.from_numpy(drawn),
        torch.from_numpy(log_weights(probability, 30)),
        mask=torch.from_numpy(mask),
    )
    states, totals = softmax.states.detach().numpy(), softmax.log_totals.detach().numpy()
    assert clean._run.states.shape == (1, 7, 8)
    for state, total in zip(clean._run.states[0], clean._run.log_totals[0], strict=True):
        distance = np.abs(states - state).max(axis=1) + np.abs(totals - total)
        assert distance.min() < 1e-5
    assert len(np.unique(clean._run.log_totals[0])) > 3
    softmax.loss(0.0).backward()  # type: ignore[no-untyped-call]
    # after one step, Adam's root is the size of the gradient
    for name, roots in clean._run.roots.items():
        slope = dict(untrained._net.gru.named_parameters())[name].grad
        assert slope is not None
        assert slope.any()
        np.testing.assert_allclose(roots, np.abs(np.stack([slope] * 3)), rtol=1e-3, atol=1e-7)


def test_waypoints_are_in_the_middle_of_equal_parts_of_clean_training(
    small_log: Interactions,
) -> None:
    run = fitted(small_log, epochs=9, batch_size=100)._run  # nine steps, one per epoch
    assert len(run.steps) == 9
    for waypoint, epochs in enumerate((2, 5, 8)):
        shorter = fitted(small_log, epochs=epochs, batch_size=100).state
        for name, array in run.waypoints.items():
            np.testing.assert_array_equal(array[waypoint], shorter[name], err_msg=name)


def test_states_are_kept_from_anywhere_in_a_step_and_elsewhere_in_each() -> None:
    log = log_of([4] * 20)
    settings = {**SETTINGS, "batch_size": 100, "epochs": 6, "finetune_anchors": 200}
    run = GRU4Rec(settings).fit(log, np.random.default_rng(0))._run
    # (6, 200): before the first of four clicks nothing is read
    is_first: NDArray[np.bool_] = (run.states == 0.0).all(axis=2)
    np.testing.assert_allclose(is_first.mean(axis=1), 0.25, atol=0.12)
    assert len({row.tobytes() for row in is_first}) == 6


def test_what_pushes_an_item_down_is_the_gradient_of_genuine_users_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    states, totals = (torch.randn(size, generator=generator) for size in ((5, 4), (5,)))
    rows, clean = (torch.randn(3, 5, generator=generator) for _ in range(2))
    added, is_fresh = torch.tensor([0.3, -1.0, 0.5]), torch.tensor([True, True, False])
    rows.requires_grad_()
    scores = states @ rows[:, :4].T + rows[:, 4] + added
    everything = torch.cat([totals[:, None], scores[:, is_fresh]], dim=1)
    torch.logsumexp(everything, dim=1).sum().backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    with torch.no_grad():
        gained, held = _pushed_down(states, totals, rows, clean, is_fresh, added)
        unmoved, _ = _pushed_down(states, totals, clean, clean, is_fresh, added)
    np.testing.assert_allclose(gained[:2], rows.grad[:2], rtol=1e-5)
    assert not held[:2].any()
    assert held[2].any()
    assert not unmoved[2].any()


def test_items_that_fake_users_click_much_move_and_new_ones_start_untrained(
    small_log: Interactions,
) -> None:
    clean = fitted(small_log, epochs=2, new_items_as_negatives=True)  # so the new ones are trained
    clicks = small_log.item_popularity[:24]
    rested = np.flatnonzero(clicks >= 6)[-1]  # gets just less than a fifth of its clicks
    rare, popular = np.argmin(np.where(clicks > 0, clicks, clicks.max())), np.argmax(clicks)
    n = int(clicks[rare])
    fakes = [24, popular, *[rare] * n, *[rested] * int((clicks[rested] - 1) // 4)]
    profile = np.array([fakes, [26] * len(fakes)])
    moved = moved_items(
        small_log, profile, clean._run, np.asarray(clean.state["items"], np.float32)
    )
    assert moved.items.tolist() == [rare, 24, 26]
    assert moved.is_fresh.tolist() == [False, True, True]
    np.testing.assert_allclose(moved.share, [0.5, 1.0, 1.0])
    untrained = fitted(small_log, epochs=0).state["items"]
    np.testing.assert_array_equal(moved.first, [np.zeros(8), untrained[24], untrained[26]])
    assert not np.array_equal(clean.state["items"][24], untrained[24])


def test_fine_tuning_follows_full_retraining_and_spares_everything_else() -> None:
    rng = np.random.default_rng(0)
    weights = 1.0 / np.arange(1, 61)
    clicks = rng.choice(60, 8_000, p=weights / weights.sum())
    users = np.repeat(np.arange(800), 10)
    log = Interactions(users, 2 * clicks + users % 2, n_users=800, n_items=122)
    victim = GRU4Rec({"embedding_size": 16, "n_negatives": 64})
    victim.fit(log, np.random.default_rng(1), n_new_items=2)
    profile = np.array([[120, 0, 2, 120, 4, 0, 120, 2]] * 8)  # what even users click
    cheap = victim.poisoned(profile, 0, "finetune")
    full = victim.poisoned(profile, 0, "full")
    everyone = np.arange(800)
    scores = {
        name: each.score(everyone, np.tile(np.arange(122), (800, 1)))
        for name, each in (("clean", victim), ("cheap", cheap), ("full", full))
    }
    np.testing.assert_array_equal(scores["cheap"][:, :120], scores["clean"][:, :120])
    np.testing.assert_array_equal(scores["cheap"][:, 121], scores["clean"][:, 121])
    target = {name: each[:, 120] - each[:, :120].mean(axis=1) for name, each in scores.items()}
    changes = target["full"] - target["clean"], target["cheap"] - target["clean"]
    assert np.abs(changes[0]).mean() > 0.3
    assert np.corrcoef(*changes)[0, 1] > 0.8
    assert changes[1].std() == pytest.approx(float(changes[0].std()), rel=0.4)
    assert changes[1].mean() == pytest.approx(float(changes[0].mean()), rel=0.25)


def test_without_epochs_there_is_nothing_to_go_through_again(small_log: Interactions) -> None:
    clean = fitted(small_log, epochs=0)
    profile = np.array([[24, 25, 24]])
    poisoned = clean.poisoned(profile, 0, "finetune")
    for name, array in clean.state.items():
        np.testing.assert_array_equal(poisoned.state[name], array)


def test_an_engine_stays_with_the_run_that_it_was_made_for(
    small_log: Interactions, make_lists: MakeLists
) -> None:
    clean = fitted(small_log, epochs=2)
    lists = make_lists(small_log, TARGETS)
    profile = profiles(small_log, 8, 3, 4)
    expected = clean.engine(lists).exposure(profile, 0)
    engine = clean.engine(lists)
    clean.fit(small_log, np.random.default_rng(99), n_new_items=N_NEW)
    assert engine.exposure(profile, 0).tolist() == expected.tolist()


def test_the_run_survives_a_file_and_the_seed_of_fine_tuning_decides_nothing(
    victim: GRU4Rec, tmp_path: Path
) -> None:
    victim.save(tmp_path / "victim.npz")
    loaded = GRU4Rec.load(tmp_path / "victim.npz", victim.log)
    assert loaded._run.seed == victim._run.seed
    profile = profiles(victim.log, 1, 3, 4)[0]
    first, second = (v.poisoned(profile, s, "finetune") for v, s in ((victim, 1), (loaded, 2)))
    assert first.state.keys() == second.state.keys()
    for name, array in first.state.items():
        np.testing.assert_array_equal(second.state[name], array, err_msg=name)
    past = first.state["past_items"]
    np.testing.assert_array_equal(past[:, 24:], np.stack([first.state["items"][24:]] * 3))
    bias = first.state["past_bias"]
    np.testing.assert_array_equal(bias[:, 24:], np.stack([first.state["bias"][24:]] * 3))
    np.testing.assert_array_equal(bias[:, :10], victim.state["past_bias"][:, :10])
    np.testing.assert_array_equal(past[:, :10], victim.state["past_items"][:, :10])


# -- fine-tuning and the engine ------------------------------------------------------------------


def hostile(log: Interactions, n: int, t: int) -> list[NDArray[np.int64]]:
    """Return profiles that a recipe made for mixed ones might not survive; shape `(n, t)` each."""
    rare = np.argsort(log.item_popularity[: log.n_items - N_NEW], kind="stable")[0]
    popular = np.argmax(log.item_popularity)
    alternating = np.full((n, t), TARGETS[1])
    alternating[:, 1::2] = popular
    return [np.full((n, t), item) for item in (TARGETS[0], rare, popular)] + [alternating]


@pytest.mark.parametrize(
    ("n", "t", "changes"),
    [
        (4, 5, {}),
        (4, 5, {"reg": 0.3}),
        (1, 1, {}),
        (3, 1, {"dropout": 0.0}),
        (1, 13, {"finetune_fading": 0.0}),
        (40, 7, {"epochs": 4, "finetune_fading": 0.5}),
        (4, 5, {"epochs": 3, "finetune_waypoints": 200, "finetune_anchors": 1}),
        (4, 5, {"epochs": 5, "new_items_as_negatives": True, "sample_alpha": 0.0}),
        (2, 3, {"epochs": 5, "max_length": 1, "n_negatives": 1}),
    ],
)
def test_compiled_fine_tuning_gives_the_parameters_of_autograd(
    small_log: Interactions, make_lists: MakeLists, n: int, t: int, changes: dict[str, object]
) -> None:
    clean = fitted(small_log, **changes)
    engine = clean.engine(make_lists(clean.log, TARGETS))
    assert isinstance(engine, GRU4RecEngine)
    n_changed = 0
    for profile in (*profiles(small_log, 2, n, t), *hostile(small_log, n, t)):
        expected = clean.poisoned(profile, 9, "finetune").state
        found = engine.parameters(profile)
        n_changed += not np.array_equal(expected["bias"], clean.state["bias"])
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-3, err_msg=name)
    assert n_changed >= 3, n_changed


def test_the_engine_counts_as_the_plain_path_does_in_every_shape(
    victim: GRU4Rec, make_lists: MakeLists
) -> None:
    seen = set()
    for targets, k, n_candidates in (([24, 25, 26], 3, 8), ([2, 26, 0], 1, 5), ([24], 30, 8)):
        lists = make_lists(victim.log, targets, k=k, n_candidates=n_candidates)
        fast, plain = victim.engine(lists), victim.engine(lists, backend="plain")
        for n, t in ((4, 5), (1, 1), (2, 9)):
            batch = profiles(victim.log, 3, n, t, seed=n)
            batch[0] = targets[0]
            counts = fast.exposure(batch, 7)
            np.testing.assert_array_equal(counts, plain.exposure(batch, 7))
            seen.update(counts.ravel().tolist())
    assert len(seen) > 10


def test_histories_are_read_again_where_an_item_in_them_has_moved(make_lists: MakeLists) -> None:
    # everybody walks six steps on a ring of 20 items, fake users all the way round the other way
    users = np.repeat(np.arange(40), 6)
    items = (users % 20 + np.tile(np.arange(6), 40)) % 20
    log = Interactions(users, items, n_users=40, n_items=22)
    victim = GRU4Rec(SETTINGS).fit(log, np.random.default_rng(0), n_new_items=2)
    lists = make_lists(log, [20, 3, 8, 13], k=2)
    batch = np.stack([np.tile(np.arange(20)[::-1], (20, 1)), np.full((20, 20), 3)])
    engine = victim.engine(lists)
    assert isinstance(engine, GRU4RecEngine)
    counts = engine.exposure(batch, 1)
    np.testing.assert_array_equal(counts, victim.engine(lists, backend="plain").exposure(batch, 1))
    everyone, targets = np.arange(40), np.tile(lists.target_items, (40, 1))
    poisoned = victim.poisoned(batch[0], 1, "finetune")
    unread = victim.poisoned(batch[0], 1, "finetune")
    unread._states = victim._states  # type: ignore[method-assign]
    assert not np.allclose(poisoned.score(everyone, targets), unread.score(everyone, targets))
    assert (counts[0] != unread.exposure(lists)).any()


def test_users_without_history_are_counted(make_lists: MakeLists) -> None:
    users = np.array([1, 1, 1, 3, 3, 3, 3, 3])
    log = Interactions(users, np.array([0, 1, 2, 0, 1, 2, 3, 0]), n_users=6, n_items=15)
    victim = GRU4Rec(SETTINGS).fit(log, np.random.default_rng(0), n_new_items=2)
    lists = make_lists(log, [13, 14], k=2)
    batch = np.array([[[13, 13], [0, 13]], [[3, 4], [14, 13]]])
    fast, plain = victim.engine(lists), victim.engine(lists, backend="plain")
    counts = fast.exposure(batch, 1)
    np.testing.assert_array_equal(counts, plain.exposure(batch, 1))
    assert counts.any()


def test_equal_beginnings_share_a_node_and_every_history_can_be_read_back() -> None:
    histories = [[4, 2], [], [4, 2, 1], [3], [4, 2], [4, 5, 1, 1], [4, 2, 1, 0]] * 80
    lengths = np.array([len(h) for h in histories])
    rows = np.full((len(histories), 4), -1)
    for row, history in zip(rows, histories, strict=True):
        row[: len(history)] = history
    forest, users, levels, nodes = plant(rows, lengths)
    assert sorted(users.tolist()) == list(range(len(histories)))
    for user, level, place in zip(users, levels, nodes, strict=True):
        history = []
        while level >= 0 and len(history) < lengths[user]:
            node = forest.indptr[level] + place
            history.append(int(forest.items[node]))
            place, level = forest.parents[node], level - 1
        assert history[::-1] == histories[user]
    # per block at most the seven beginnings [3] [4] [4 2] [4 2 1] [4 2 1 0] [4 5] [4 5 1] [4 5 1 1]
    n_blocks = len(forest.n_parents) // 4
    assert 8 <= forest.indptr[-1] <= 8 * n_blocks
    for level in range(len(forest.n_parents) - 1):
        children = slice(forest.indptr[level + 1], forest.indptr[level + 2])
        used = set(forest.parents[children].tolist()) if (level + 1) % 4 else set()
        assert used == set(range(forest.n_parents[level]))


def test_the_engine_survives_another_shape_seed_and_order(
    victim: GRU4Rec, make_lists: MakeLists
) -> None:
    engine = victim.engine(make_lists(victim.log, TARGETS))
    batch = profiles(victim.log, 4, 3, 4)
    first = engine.exposure(batch, 1)
    engine.exposure(batch[:, :1], 1)
    np.testing.assert_array_equal(engine.exposure(batch[::-1], 2), first[::-1])
    assert (first != first[0]).any()


def test_a_set_leaves_nothing_behind_for_the_next_on_its_thread(
    small_log: Interactions, make_lists: MakeLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECATTACK_NUM_THREADS", "1")
    clean = fitted(small_log, epochs=30)
    engine = clean.engine(make_lists(clean.log, TARGETS))
    batch = np.array([[[24] * 4] * 8, [[26, 25] * 2] * 8, [[24] * 4] * 8, [[5, 6] * 2] * 8])
    together = engine.exposure(batch, 1)
    alone = [engine.exposure(profile[None], 1)[0] for profile in batch]
    np.testing.assert_array_equal(together, alone)
    assert (together[0] > together[3]).any()


@compiled
def _fill_exponential(x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
    for j in range(len(x)):
        y[j] = exponential(x[j])


def test_the_exponential_is_right_to_rounding() -> None:
    x = np.linspace(-87, 87, 20_001, dtype=np.float32)
    y = np.empty_like(x)
    _fill_exponential(x, y)
    np.testing.assert_allclose(y, np.exp(x.astype(np.float64)), rtol=4e-7)


@pytest.mark.real_data
@pytest.mark.parametrize("dataset", ["steam", "ml-100k"])
def test_the_engine_equals_the_plain_path_on_real_data(dataset: str) -> None:
    log = load(dataset, protocol="poisonrec" if dataset == "steam" else None).log
    n_items = log.n_items
    log = log.with_catalogue(n_items + 8)
    rng = np.random.default_rng(0)
    settings = {"epochs": 2, "max_length": 10}
    victim = GRU4Rec(settings).fit(log, rng, n_new_items=8)
    candidates = np.stack(
        [
            rng.choice(np.setdiff1d(np.arange(n_items), log.items_of(user)), 92, replace=False)
            for user in range(log.n_users)
        ]
    )
    targets = np.arange(n_items, n_items + 8)
    lists = CandidateLists(log, candidates, targets, 10)
    popular = np.argsort(-log.item_popularity, kind="stable")
    batch = np.stack(
        [
            np.full((20, 20), targets[0]),
            targets[np.arange(400).reshape(20, 20) % 8],
            popular[rng.integers(0, 20, (20, 20))],
            np.where(rng.random((20, 20)) < 0.5, targets[3], popular[0]),
            rng.integers(0, n_items + 8, (20, 20)),
        ]
    )
    expected = victim.engine(lists, backend="plain").exposure(batch, 3).sum(axis=1)
    found = victim.engine(lists).exposure(batch, 3).sum(axis=1)
    assert len(set(expected.tolist())) > 2
    # users whose tenth candidate and target score equally but for rounding
    assert (np.abs(found - expected) <= np.maximum(1, 0.001 * expected)).all()


# -- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_length", 0),
        ("n_negatives", 1.5),
        ("finetune_anchors", 0),
        ("finetune_waypoints", 0),
        ("finetune_fading", 1.1),
        ("sample_alpha", -0.1),
        ("dropout", 1.0),
    ],
)
def test_a_wrong_setting_is_named(setting: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=setting):
        GRU4Rec({setting: value})


def test_a_state_without_an_array_is_refused(victim: GRU4Rec) -> None:
    state = victim.state
    del state["weight_hh_l0"]
    with pytest.raises(ArtifactError, match="weight_hh_l0"):
        GRU4Rec(SETTINGS).fit(victim.log, np.random.default_rng(0), n_new_items=N_NEW)._set_state(
            state
        )


def test_a_contest_needs_candidate_lists(victim: GRU4Rec, make_lists: MakeLists) -> None:
    lists = make_lists(victim.log, TARGETS, n_candidates=None)
    with pytest.raises(ArgumentError, match="item_ids"):
        make_contest(lists, np.zeros((0, 0), dtype=np.float32), 4)


def test_a_config_is_a_value() -> None:
    config = GRU4Rec({}).config
    assert replace(config, max_length=5).max_length == 5
    assert config == GRU4Rec().config


def test_no_step_of_adam_is_without_bound_where_old_and_new_gradients_cancel(
    small_log: Interactions, make_lists: MakeLists
) -> None:
    # What a moved item with genuine clicks gains may be the opposite of what it had in the clean run.
    clean = fitted(small_log, epochs=10, finetune_learning_rate=0.02)
    clicks = small_log.item_popularity[:24]
    known = np.argsort(np.where(clicks > 0, clicks, clicks.max()))[:6]
    farthest = np.abs(clean.state["items"]).max()
    engine = clean.engine(make_lists(small_log, TARGETS))
    for profile in np.random.default_rng(4).choice(known, (20, 4, 6)):
        for moved in (clean.poisoned(profile, 0, "finetune").state, engine.parameters(profile)):  # type: ignore[attr-defined]
            assert np.abs(moved["items"]).max() < 2.0 * farthest
