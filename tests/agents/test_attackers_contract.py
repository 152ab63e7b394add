"""What holds for every attacker in the registry."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.attackers import ATTACKERS
from agents.base import Attacker
from recattack_gym.core import (
    ArgumentError,
    AttackGoal,
    FakeProfiles,
    Knowledge,
    KnowledgeError,
    UnknownNameError,
)
from recattack_gym.core.view import AttackerView
from tests.agents.stub_view import make_view

each_attacker = pytest.mark.parametrize("name", sorted(ATTACKERS))


@each_attacker
@given(
    n_items=st.integers(1, 60),
    n_targets=st.integers(1, 9),
    n_fake_users=st.integers(1, 7),
    profile_size=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_spends_exactly_the_budget_on_items_of_the_catalogue(
    name: str, n_items: int, n_targets: int, n_fake_users: int, profile_size: int, seed: int
) -> None:
    view = make_view(
        n_items=n_items,
        n_targets=n_targets,
        n_fake_users=n_fake_users,
        profile_size=profile_size,
    )
    profiles = ATTACKERS[name]().plan(view, np.random.default_rng(seed))
    assert profiles.item_ids.shape == (n_fake_users, profile_size)
    assert profiles.item_ids.dtype == np.int64
    assert profiles.item_ids.min() >= 0
    assert profiles.item_ids.max() < n_items + n_targets


@each_attacker
def test_the_same_seed_gives_the_same_profiles_and_another_seed_others(name: str) -> None:
    view = make_view(n_fake_users=20, profile_size=20)
    first, again, other = (
        ATTACKERS[name]().plan(view, np.random.default_rng(seed)).item_ids for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@each_attacker
def test_every_target_is_clicked(name: str) -> None:
    view = make_view(n_fake_users=20, profile_size=20, n_targets=8)
    clicks = ATTACKERS[name]().plan(view, np.random.default_rng(0)).item_ids
    assert set(view.goal.target_items) <= set(clicks.ravel().tolist())


@each_attacker
def test_a_view_that_shows_less_than_needed_is_refused(name: str) -> None:
    view = make_view(knowledge=Knowledge.BLACK_BOX)
    if ATTACKERS[name].knowledge is Knowledge.BLACK_BOX:
        ATTACKERS[name]().plan(view, np.random.default_rng(0))
    else:
        with pytest.raises(KnowledgeError, match=f"'{name}' needs knowledge gray_box.*black_box"):
            ATTACKERS[name]().plan(view, np.random.default_rng(0))


@each_attacker
def test_existing_items_can_be_targets(name: str) -> None:
    view = make_view(n_fake_users=20, profile_size=20)
    view.goal = AttackGoal(target_items=(7, 0))
    clicks = ATTACKERS[name]().plan(view, np.random.default_rng(0)).item_ids
    assert {0, 7} <= set(clicks.ravel().tolist())
    assert clicks.max() < view.clean_log.n_items


@each_attacker
def test_a_goal_without_an_answer_is_refused(name: str) -> None:
    view = make_view()
    view.goal = AttackGoal(target_items=(7,), direction="nuke")
    with pytest.raises(
        ArgumentError, match=r"direction must be 'push' for .*, got 'nuke': .*rate the"
    ):
        ATTACKERS[name]().plan(view, np.random.default_rng(0))


@each_attacker
def test_an_rng_that_is_a_number_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"rng must be a numpy\.random\.Generator"):
        ATTACKERS[name]().plan(make_view(), 0)  # type: ignore[arg-type]  # the subject of the test


@each_attacker
def test_profiles_survive_saving_and_say_what_made_them(name: str, tmp_path: Path) -> None:
    profiles = ATTACKERS[name]().plan(make_view(), np.random.default_rng(0))
    profiles.save(tmp_path / "profiles.npz")
    loaded = FakeProfiles.load(tmp_path / "profiles.npz")
    assert loaded.content_hash == profiles.content_hash
    assert loaded.header == profiles.header
    assert loaded.header["attacker"] == name
    assert loaded.header["target_items"] == [40, 41, 42]
    assert loaded.header["n_queries"] == 0


@each_attacker
def test_settings_are_checked_by_name_and_documented(name: str) -> None:
    attacker = ATTACKERS[name]
    with pytest.raises(UnknownNameError, match=f"unknown setting of {name} 'popular_rte'"):
        attacker({"popular_rte": 0.5})
    defaults = dataclasses.asdict(attacker().config)
    assert attacker(defaults).config == attacker().config


def test_the_config_of_another_attacker_is_refused() -> None:
    with pytest.raises(ArgumentError, match="config must be a PopularConfig for popular"):
        ATTACKERS["popular"](ATTACKERS["random"]().config)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("popular", "popular_rate", 0.0),
        ("middle", "popular_rate", 1.5),
        ("power-item", "n_neighbours", 0),
        ("power-item", "power_rate", float("nan")),
        ("power-item", "significance", 2.5),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, setting: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=f"{setting} must be"):
        ATTACKERS[name]({setting: value})


class Overspender(Attacker):
    """Clicks once more than allowed, or an item that does not exist."""

    name = "overspender"

    def __init__(self, clicks: NDArray[np.int64]) -> None:
        super().__init__()
        self.clicks = clicks

    def _plan(self, view: AttackerView, rng: np.random.Generator) -> NDArray[np.int64]:
        del view, rng
        return self.clicks


@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        (np.zeros((5, 7), dtype=np.int64), r"must have shape \(5, 6\), got \(5, 7\)"),
        (np.full((5, 6), 43), r"must lie in \[0, 43\), got 43"),
        (np.zeros((5, 6)), "must hold whole numbers"),
    ],
)
def test_the_base_class_catches_an_attack_that_breaks_its_budget(
    clicks: NDArray[np.int64], message: str
) -> None:
    with pytest.raises(ArgumentError, match=f"profiles of 'overspender' {message}"):
        Overspender(clicks).plan(make_view(), np.random.default_rng(0))
