"""Learners of Stable-Baselines3 as attackers: what they start from, spend and learn."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.sb3.attackers import SB3A2C, SB3PPO, SB3Attacker, SB3RecurrentPPO
from agents.sb3.view_env import ViewVecEnv
from agents.search import Trials
from recattack_gym.core import ArgumentError, AttackBudget, AttackGoal
from recattack_gym.core.groups import group_items
from recattack_gym.core.view import AttackerView
from tests.agents.stub_view import StubView, make_view, random_log

ATTACKERS: tuple[type[SB3Attacker], ...] = (SB3PPO, SB3A2C, SB3RecurrentPPO)
SMALL = {"embedding_size": 4, "hidden_size": 8}
each_attacker = pytest.mark.parametrize("attacker", ATTACKERS)
each_kind = pytest.mark.parametrize("actions", ["tree", "grouped", "flat"])


class ClickCounter(StubView):
    """RecNum is the number of clicks on items 0 to 3, which are popular and no targets."""

    def __init__(self) -> None:
        goal = AttackGoal(target_items=(40, 41))
        budget = AttackBudget(n_fake_users=2, profile_size=4)
        super().__init__(random_log(30, 40, 400), goal, budget)
        self.batches: list[int] = []
        self.answers: list[int] = []

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        self.n_queries += len(profiles)
        answers = (profiles < 4).sum(axis=(1, 2))
        self.batches.append(len(profiles))
        self.answers.extend(answers.tolist())
        return np.asarray(answers, dtype=np.int64)


@pytest.mark.parametrize(
    ("attacker", "actions", "n_queries"),
    [
        (SB3PPO, "tree", 640),
        (SB3PPO, "grouped", 640),
        (SB3PPO, "flat", 640),
        (SB3A2C, "tree", 1600),
        (SB3RecurrentPPO, "tree", 480),
    ],
)
def test_learns_which_clicks_pay(attacker: type[SB3Attacker], actions: str, n_queries: int) -> None:
    view = ClickCounter()
    attacker({"n_queries": n_queries, "actions": actions, **SMALL}).plan(
        view, np.random.default_rng(0)
    )
    # All policies begin with a half of the 8 clicks on targets, which do not pay. At the end the mean is
    # above the 4 that a policy gets which has only learnt how to spend the other half.
    assert np.mean(view.answers[:16]) < 2.5
    assert np.mean(view.answers[-32:]) > 4.0


@each_kind
@each_attacker
def test_half_of_the_untrained_clicks_fall_on_targets(
    attacker: type[SB3Attacker], actions: str
) -> None:
    view = make_view(n_items=300, n_targets=3, n_fake_users=10, profile_size=10)
    profiles = SetKeeper(view)
    attacker({"n_queries": 8, "batch_size": 8, "actions": actions}).plan(
        profiles, np.random.default_rng(0)
    )
    clicks = np.concatenate(profiles.sets)
    assert clicks.shape == (8, 10, 10)
    assert np.isin(clicks, view.goal.target_items).mean() == pytest.approx(0.5, abs=0.08)
    for target in view.goal.target_items:
        assert (clicks == target).mean() > 0.08


class SetKeeper(StubView):
    """A view that remembers the sets it was asked about."""

    def __init__(self, view: StubView) -> None:
        super().__init__(view.clean_log, view.goal, view.budget)
        self.sets: list[NDArray[np.int64]] = []

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        self.sets.append(profiles.copy())
        return super().query(profiles)


@pytest.mark.parametrize(
    ("n_queries", "batches"), [(1, [1]), (3, [3]), (4, [4]), (8, [4, 4]), (10, [4, 4, 2])]
)
@each_attacker
def test_the_last_rollout_is_what_is_left(
    attacker: type[SB3Attacker], n_queries: int, batches: list[int]
) -> None:
    view = ClickCounter()
    attacker({"n_queries": n_queries, "batch_size": 4, **SMALL}).plan(
        view, np.random.default_rng(0)
    )
    assert view.batches == batches


@each_attacker
def test_nothing_is_learnt_from_the_last_rollout(
    attacker: type[SB3Attacker], monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[OnPolicyAlgorithm] = []
    made = attacker.make_model

    def keep(self: SB3Attacker, envs: ViewVecEnv, *, seed: int) -> OnPolicyAlgorithm:
        models.append(made(self, envs, seed=seed))
        return models[-1]

    monkeypatch.setattr(attacker, "make_model", keep)
    attacker({"n_queries": 10, "batch_size": 4, **SMALL}).plan(
        ClickCounter(), np.random.default_rng(0)
    )
    assert models[0].num_timesteps == 2 * 4 * 8


@each_attacker
def test_global_random_states_are_left_alone(attacker: type[SB3Attacker]) -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  # the subject of the test
    torch.manual_seed(1)
    expected = global_states()
    attacker({"n_queries": 4, "batch_size": 2, **SMALL}).plan(make_view(), np.random.default_rng(0))
    assert global_states() == expected


def global_states() -> tuple[object, object, object]:
    numpy_state = str(np.random.get_state())  # noqa: NPY002  # the subject of the test
    return random.getstate(), numpy_state, torch.get_rng_state().tolist()


@each_kind
def test_the_smallest_platform_is_attacked(actions: str) -> None:
    view = make_view(n_items=1, n_targets=1, n_fake_users=1, profile_size=1)
    for attacker in ATTACKERS:
        for batch_size in (1, 3):
            settings: dict[str, object] = {"batch_size": batch_size, "actions": actions, **SMALL}
            if attacker is not SB3A2C:
                settings["n_minibatches"] = 2
            before = view.n_queries
            plan = attacker({"n_queries": 3, **settings}).plan(view, np.random.default_rng(0))
            assert plan.item_ids.shape == (1, 1)
            assert view.n_queries - before == plan.header["n_queries"] == 3


@each_kind
@each_attacker
def test_a_catalogue_of_targets_is_refused(attacker: type[SB3Attacker], actions: str) -> None:
    view = make_view(n_items=3)
    view.goal = AttackGoal(target_items=(0, 1, 2))
    with pytest.raises(ArgumentError, match="must leave an item that is no target, got all 3"):
        attacker({"actions": actions}).plan(view, np.random.default_rng(0))


def test_the_learner_is_made_with_the_settings() -> None:
    view: AttackerView = make_view(n_fake_users=2, profile_size=3)
    config = {
        "learning_rate": 0.5,
        "ent_coef": 0.1,
        "n_epochs": 3,
        "n_minibatches": 5,  # 24 clicks cannot be cut into 5, but into 4
        "clip_range": 0.3,
        "summary": "lstm",
        "lstm_size": 7,
    }
    envs = ViewVecEnv(view, 4, Trials(view, 8))
    model: Any = SB3RecurrentPPO(config).make_model(envs, seed=3)
    assert (model.learning_rate, model.ent_coef, model.n_epochs) == (0.5, 0.1, 3)
    assert (model.batch_size, model.n_steps, model.n_envs) == (6, 6, 4)
    assert (model.gamma, model.gae_lambda, model.clip_range(1.0), model.seed) == (1, 1, 0.3, 3)
    assert model.policy.lstm_actor.hidden_size == 7
    assert model.policy.features_extractor.lstm is not None


def test_grouped_actions_are_a_table_of_the_catalogue() -> None:
    view = make_view(n_items=60, n_targets=3)
    items = group_items(view.item_popularity, np.array(view.goal.target_items))
    model: Any = SB3PPO({"actions": "grouped"}).make_model(
        ViewVecEnv(view, 2, Trials(view, 2), items), seed=0
    )
    assert model.action_space.nvec.tolist() == list(items.shape)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("actions", "bushes"),
        ("summary", "sum"),
        ("learning_rate", 0.0),
        ("ent_coef", -0.1),
        ("vf_coef", float("nan")),
        ("max_grad_norm", 0),
        ("embedding_size", 0),
        ("hidden_size", 1.5),
        ("n_epochs", 0),
        ("n_minibatches", 0),
        ("clip_range", 1.5),
        ("lstm_size", 0),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=f"{setting} must be"):
        SB3RecurrentPPO({setting: value})
