"""DPA2DL and RAPU-R: their losses by hand and by finite differences, and what they put into profiles."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.gradient.attack import FillerChooser, GroupAttacker, SurrogateAttackerConfig
from agents.gradient.dpa2dl import (
    DPA2DL,
    DPA2DLConfig,
    SelectionByScore,
    promotion_gradient,
    promotion_terms,
    suppression_gradient,
)
from agents.gradient.gradient_passing import GradientPassing
from agents.gradient.profiles import Task, as_clicks, project, top_items
from agents.gradient.rapu_r import RAPUR, NearestPopular, RAPURConfig
from agents.gradient.surrogates import Surrogate, SurrogateConfig
from recattack_gym.core import ArgumentError
from tests.agents.gradient.cases import make_task

SMALL = {"embedding_size": 8, "batch_size": 64}

each_attacker = pytest.mark.parametrize("attacker", [DPA2DL, RAPUR])


def test_the_terms_of_the_fixture() -> None:
    # specs/algorithms.md, F2
    scores = np.array([[2.0, 1.0, 0.5, -1.0, 0.0]])
    terms, last = promotion_terms(scores, np.array([3, 4]), list_length=2, margin=1.0)
    assert last.tolist() == [1]
    assert terms[0] == pytest.approx([1.0, 0.379885], abs=1e-6)
    assert terms.mean() == pytest.approx(0.689943, abs=1e-6)
    high, _ = promotion_terms(-4 * scores, np.array([3, 4]), list_length=4, margin=1.0)
    assert high[0, 0] == -1.0  # only values below -kappa are clipped


def slopes(
    loss: Callable[[NDArray[np.float64]], float], rows: NDArray[np.float64]
) -> NDArray[np.float64]:
    found = np.zeros_like(rows)
    for place in np.ndindex(rows.shape):
        change = np.zeros_like(rows)
        change[place] = 1e-6
        found[place] = (loss(rows + change) - loss(rows - change)) / 2e-6
    return found


def test_the_promotion_gradient_is_that_of_finite_differences() -> None:
    rows = np.random.default_rng(0).normal(size=(6 + 9, 3))
    users, targets = np.array([4, 0, 2]), np.array([8, 1])

    def loss(r: NDArray[np.float64]) -> float:
        return promotion_gradient(users, r, 6, targets, list_length=3, margin=0.05)[0]

    terms, _ = promotion_terms(rows[users] @ rows[6:].T, targets, list_length=3, margin=0.05)
    assert (terms == -0.05).any()  # some are clipped
    assert (terms > -0.05).any()
    assert loss(rows) == pytest.approx(terms.mean())
    gradient = promotion_gradient(users, rows, 6, targets, list_length=3, margin=0.05)[1]
    assert gradient == pytest.approx(slopes(loss, rows), abs=1e-7)


def test_the_suppression_gradient_is_that_of_finite_differences() -> None:
    rows = np.random.default_rng(1).normal(size=(6 + 9, 3))
    is_filler = np.arange(9) % 4 != 0

    def loss(r: NDArray[np.float64]) -> float:
        return suppression_gradient(np.array([5, 3]), r, 6, is_filler)[0]

    shares = 1 / (1 + np.exp(-(rows[[5, 3]] @ rows[6:].T)))
    assert loss(rows) == pytest.approx((shares[:, is_filler] ** 2).mean())
    gradient = suppression_gradient(np.array([5, 3]), rows, 6, is_filler)[1]
    assert gradient == pytest.approx(slopes(loss, rows), abs=1e-8)


def test_selection_probabilities_decay_and_are_reset_when_all_have() -> None:
    task = make_task(n_items=10, target_items=(0, 9), profile_size=6)  # 4 fillers of 8 items
    chooser = SelectionByScore(task, DPA2DLConfig(selection_decay=0.5))
    scores = -np.arange(10.0) / 10
    assert chooser.choose(scores).tolist() == [1, 2, 3, 4]
    assert chooser.selection.tolist() == [1, 0.5, 0.5, 0.5, 0.5, 1, 1, 1, 1, 1]
    assert chooser.choose(scores).tolist() == [5, 6, 7, 8]  # sigma(-.8) 1 > sigma(-.1) .5
    assert chooser.selection.tolist() == [1] * 10
    assert chooser.choose(np.where(np.arange(10) == 3, 5.0, scores))[0] == 3


def test_poisoning_without_training_moves_targets_up_and_fake_users_down() -> None:
    task = make_task(n_fake_users=2)
    config = DPA2DLConfig(poison_scale=1.0, learning_rate=0.05, embedding_size=8)
    surrogate = Surrogate(task.graph([task.target_items] * 2), config.surrogate_config())
    genuine, fakes = np.arange(30), np.array([30, 31])
    targets = task.target_items
    before, own = (
        surrogate.scores(genuine)[:, targets].mean(),
        surrogate.scores(fakes)[:, :37].mean(),
    )
    chooser = SelectionByScore(task, config)
    for _ in range(5):
        chooser._poison(surrogate, fakes, np.random.default_rng(0))
    assert surrogate.scores(genuine)[:, targets].mean() > before + 0.05
    assert surrogate.scores(fakes)[:, :37].mean() < own


def test_rapu_r_takes_the_popular_items_nearest_to_user_and_target() -> None:
    task = make_task(profile_size=5)
    surrogate = Surrogate(task.graph([task.target_items]), SurrogateConfig(embedding_size=8))
    chooser = NearestPopular(task, RAPURConfig(popular_rate=0.2))
    popular = np.argsort(-task.log.item_popularity, kind="stable")[:8]
    assert set(np.flatnonzero(chooser.is_candidate)) == set(popular)
    rows = surrogate.representations()
    rows[30] = -20 * rows[:30].mean(axis=0)  # the fake user is no part of the average
    for fake, chosen in enumerate(chooser.fillers(surrogate, range(4), np.random.default_rng(0))):
        query = rows[:30].mean(axis=0) + rows[31 + task.target_items[fake % 3]]
        expected = sorted(popular, key=lambda item: -(rows[31 + item] @ query))[:2]
        assert chosen.tolist() == expected


def test_a_poisoning_is_followed_by_an_epoch_of_training() -> None:
    task = make_task(n_fake_users=2)
    config = DPA2DLConfig(rounds=3, embedding_size=8)
    surrogate = Surrogate(task.graph([task.target_items] * 2), config.surrogate_config())
    SelectionByScore(task, config).fillers(surrogate, range(2), np.random.default_rng(0))
    assert surrogate.n_epochs == 3


def test_a_group_is_trained_on_with_its_target_clicks_and_all_of_the_others() -> None:
    seen: list[tuple[list[int], list[list[int]]]] = []

    class Watching(FillerChooser):
        def fillers(
            self, surrogate: Surrogate, fake_users: range, rng: np.random.Generator
        ) -> list[NDArray[np.int64]]:
            del rng
            graph = surrogate.graph
            fakes = range(graph.n_genuine, graph.n_users)
            profiles = [graph.items[graph.indptr[f] : graph.indptr[f + 1]].tolist() for f in fakes]
            seen.append((list(fake_users), profiles))
            return [np.arange(5) + fake for fake in fake_users]

    class Watched(RAPUR):
        def _chooser(self, task: Task) -> FillerChooser:  # type: ignore[override]  # the subject of the test
            del task
            return Watching()

    run = Watched({**SMALL, "group_size": 2}).attack(make_task(), np.random.default_rng(0))
    targets = [37, 38, 39]
    first, second = ([*range(fake, fake + 5), *targets] for fake in (0, 1))
    assert seen == [([0, 1], [targets] * 2), ([2, 3], [first, second, targets, targets])]
    assert sorted(run.item_ids[3]) == [3, 4, 5, 6, 7, *targets]


@each_attacker
@pytest.mark.parametrize("settings", [{}, {"gradient_passing": True}, {"surrogate": "lightgcn"}])
def test_profiles_hold_all_targets_and_fillers_that_are_none(
    attacker: type[GroupAttacker], settings: dict[str, object]
) -> None:
    task = make_task()
    run = attacker({**SMALL, **settings}).attack(task, np.random.default_rng(0))
    assert run.item_ids.shape == (4, 8)
    for profile in run.item_ids:
        assert len(set(profile)) == 8
        assert set(task.target_items) <= set(profile)
    assert run.n_retrainings == 4
    assert 0 < run.training_seconds <= run.total_seconds


@each_attacker
def test_with_fewer_clicks_than_targets_fake_users_take_turns(
    attacker: type[GroupAttacker],
) -> None:
    task = make_task(target_items=(30, 31, 32, 33, 34), profile_size=2, n_fake_users=5)
    run = attacker(SMALL).attack(task, np.random.default_rng(0))
    assert np.bincount(run.item_ids.ravel())[30:].tolist() == [2] * 5
    assert all(len(set(profile)) == 2 for profile in run.item_ids)
    assert run.n_retrainings == 0


@each_attacker
def test_in_a_tiny_catalogue_profiles_repeat_their_items(attacker: type[GroupAttacker]) -> None:
    task = make_task(n_items=4, target_items=(3,), profile_size=9, n_events=30)
    run = attacker(SMALL).attack(task, np.random.default_rng(0))
    for profile in run.item_ids:
        counts = np.bincount(profile, minlength=4)
        assert counts.sum() == 9
        assert set(counts) == {2, 3}


@each_attacker
def test_groups_share_a_retraining(attacker: type[GroupAttacker]) -> None:
    run = attacker({**SMALL, "group_size": 3}).attack(make_task(), np.random.default_rng(0))
    assert run.n_retrainings == 2


@each_attacker
def test_pretraining_and_sampling_make_retrainings_short(attacker: type[GroupAttacker]) -> None:
    task = make_task(n_users=300, n_events=6000)
    short = {**SMALL, "pretrain_epochs": 3, "genuine_rate": 0.1}
    run = attacker(short).attack(task, np.random.default_rng(0))
    assert run.pretraining_seconds > 0
    assert attacker(SMALL).attack(task, np.random.default_rng(0)).pretraining_seconds == 0
    with pytest.raises(ArgumentError, match="genuine_rate must be 1 without pre-training"):
        attacker({"genuine_rate": 0.1})


def test_rapu_r_makes_equal_sets_for_equal_targets_of_one_group() -> None:
    task = make_task(n_fake_users=6)
    run = RAPUR({**SMALL, "group_size": 6}).attack(task, np.random.default_rng(0))
    sets = [frozenset(profile) for profile in run.item_ids.tolist()]
    assert sets[:3] == sets[3:]


def test_settings_of_passing_reach_the_surrogate() -> None:
    assert SurrogateAttackerConfig().surrogate_config().passing is None
    config = SurrogateAttackerConfig(gradient_passing=True, passing_weight_even=100.0)
    passing = config.surrogate_config().passing
    assert passing == GradientPassing(weight_even=100.0)


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("epochs", 0, "epochs"), ("gradient_passing", 1, "gradient_passing"), ("passing_order", 0, "order"),
        ("passing_weight_even", -1.0, "weight_even"), ("group_size", 0, "group_size"),
        ("margin", 0.0, "margin"),
        ("selection_decay", 1.5, "selection_decay"), ("learning_rate", 0.0, "learning_rate"),
    ],
)  # fmt: skip
def test_settings_are_checked(setting: str, value: object, named: str) -> None:
    with pytest.raises(ArgumentError, match=f"{named} must be"):
        DPA2DL({setting: value})


def test_projection_keeps_the_largest_entries_and_what_is_forced() -> None:
    values = np.array([[0.1, 0.9, 0.5, 0.5, -1.0]])
    assert project(values, 2, [np.array([], dtype=np.int64)])[0].tolist() == [1, 2]
    assert project(values, 3, [np.array([4])])[0].tolist() == [1, 2, 4]
    assert project(values, 9, [np.array([4])])[0].tolist() == [0, 1, 2, 3, 4]
    chosen = project(values, 3, [np.array([4])])[0]
    again = np.zeros((1, 5))
    again[0, chosen] = 1.0
    assert project(again, 3, [np.array([4])])[0].tolist() == chosen.tolist()


def test_sets_become_clicks_in_random_order() -> None:
    clicks = as_clicks([np.array([3, 1]), np.arange(5)], 5, np.random.default_rng(0))
    assert np.sort(clicks).tolist() == [[1, 1, 3, 3, 3], [0, 1, 2, 3, 4]]
    other = as_clicks([np.array([3, 1]), np.arange(5)], 5, np.random.default_rng(1))
    assert clicks.tolist() != other.tolist()


def test_top_items_are_allowed_ones() -> None:
    worth = np.array([5.0, 1.0, 5.0, 9.0])
    assert top_items(worth, np.array([True, True, True, False]), 2).tolist() == [0, 2]
    assert top_items(worth, np.array([False, True, False, False]), 2).tolist() == [1]


def test_a_task_is_checked() -> None:
    log = make_task().log
    with pytest.raises(ArgumentError, match="target_items must be distinct"):
        Task(log=log, target_items=np.array([1, 1]), n_fake_users=1, profile_size=1)
    with pytest.raises(ArgumentError, match="target_items must lie in"):
        Task(log=log, target_items=np.array([40]), n_fake_users=1, profile_size=1)
