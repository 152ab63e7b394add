"""What holds for every attacker in the registry."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.attackers import ATTACKERS
from agents.base import Attacker
from agents.search import SearchAttacker
from recattack_gym.core import (
    ArgumentError,
    AttackGoal,
    FakeProfiles,
    Knowledge,
    KnowledgeError,
    UnknownNameError,
)
from recattack_gym.core.attack import Direction
from recattack_gym.core.view import AttackerView
from tests.agents.stub_view import StubView, make_view, random_log

SEARCHING = sorted(name for name in ATTACKERS if issubclass(ATTACKERS[name], SearchAttacker))
NOT_SEARCHING = sorted(set(ATTACKERS) - set(SEARCHING))

each_attacker = pytest.mark.parametrize("name", sorted(ATTACKERS))
each_searching = pytest.mark.parametrize("name", SEARCHING)
each_other = pytest.mark.parametrize("name", NOT_SEARCHING)


def make(name: str, **settings: object) -> Attacker:
    """Return an attacker that is done soon."""
    if name in SEARCHING:
        settings = {"n_queries": 10, "batch_size": 4, **settings}
    if name.startswith("poisonrec"):
        settings = {"n_examples": 4, "size": 8, **settings}
    if name == "poisonrec-warm":
        settings = {"warm_up": 4, "imitation_epochs": 3, **settings}
    if name == "evolution":
        settings = {"first_generation": 4, **settings}
    if name in ("pga-implicit", "revadv"):
        settings = {"epochs": 6, "attack_epochs": 3, **settings}
    if name.startswith("sb3-"):
        settings = {"embedding_size": 4, "hidden_size": 4, **settings}
    return ATTACKERS[name](settings)


@each_attacker
@given(
    n_items=st.integers(1, 60),
    n_targets=st.integers(1, 9),
    n_fake_users=st.integers(1, 7),
    profile_size=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=15, deadline=None)
def test_spends_exactly_the_budget_on_items_of_the_catalogue(
    name: str, n_items: int, n_targets: int, n_fake_users: int, profile_size: int, seed: int
) -> None:
    view = make_view(
        n_items=n_items,
        n_targets=n_targets,
        n_fake_users=n_fake_users,
        profile_size=profile_size,
    )
    profiles = make(name).plan(view, np.random.default_rng(seed))
    assert profiles.item_ids.shape == (n_fake_users, profile_size)
    assert profiles.item_ids.dtype == np.int64
    assert profiles.item_ids.min() >= 0
    assert profiles.item_ids.max() < n_items + n_targets


@each_attacker
def test_the_same_seed_gives_the_same_profiles_and_another_seed_others(name: str) -> None:
    view = make_view(n_fake_users=20, profile_size=20)
    first, again, other = (
        make(name).plan(view, np.random.default_rng(seed)).item_ids for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", ["random", "popular", "middle", "power-item"])
def test_every_target_is_clicked(name: str) -> None:
    view = make_view(n_fake_users=20, profile_size=20, n_targets=8)
    clicks = make(name).plan(view, np.random.default_rng(0)).item_ids
    assert set(view.goal.target_items) <= set(clicks.ravel().tolist())


@each_attacker
def test_a_view_that_shows_less_than_needed_is_refused(name: str) -> None:
    view = make_view(knowledge=Knowledge.BLACK_BOX)
    if ATTACKERS[name].knowledge is Knowledge.BLACK_BOX:
        make(name).plan(view, np.random.default_rng(0))
    else:
        with pytest.raises(KnowledgeError, match=f"'{name}' needs knowledge gray_box.*black_box"):
            make(name).plan(view, np.random.default_rng(0))


@each_attacker
def test_existing_items_can_be_targets(name: str) -> None:
    view = make_view(n_fake_users=20, profile_size=20)
    view.goal = AttackGoal(target_items=(7, 0))
    clicks = make(name).plan(view, np.random.default_rng(0)).item_ids
    assert {0, 7} & set(clicks.ravel().tolist())
    assert clicks.max() < view.clean_log.n_items


@each_other
def test_a_goal_without_an_answer_is_refused(name: str) -> None:
    view = make_view()
    view.goal = AttackGoal(target_items=(7,), direction="nuke")
    with pytest.raises(
        ArgumentError, match=r"direction must be 'push' for .*, got 'nuke': .*(rate the|demotion)"
    ):
        make(name).plan(view, np.random.default_rng(0))


@each_attacker
def test_an_rng_that_is_a_number_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"rng must be a numpy\.random\.Generator"):
        make(name).plan(make_view(), 0)  # type: ignore[arg-type]  # the subject of the test


@each_attacker
def test_profiles_survive_saving_and_say_what_made_them(name: str, tmp_path: Path) -> None:
    profiles = make(name).plan(make_view(), np.random.default_rng(0))
    profiles.save(tmp_path / "profiles.npz")
    loaded = FakeProfiles.load(tmp_path / "profiles.npz")
    assert loaded.content_hash == profiles.content_hash
    assert loaded.header == profiles.header
    assert loaded.header["attacker"] == name
    assert loaded.header["target_items"] == [40, 41, 42]
    assert loaded.header["n_queries"] == (10 if name in SEARCHING else 0)


@each_searching
@pytest.mark.parametrize("direction", ["push", "nuke"])
def test_searching_spends_its_queries_exactly_and_plans_the_best_set_that_it_tried(
    name: str, direction: Direction
) -> None:
    view = RememberingView(direction)
    profiles = make(name).plan(view, np.random.default_rng(0))
    assert view.n_queries == 10
    best = max(view.answers) if direction == "push" else min(view.answers)
    assert view.answers[view.sets.index(profiles.item_ids.tobytes())] == best


class RememberingView(StubView):
    """Answers with a number that depends on every click, and remembers what it was asked."""

    def __init__(self, direction: Direction) -> None:
        goal = AttackGoal(target_items=(3, 40), direction=direction)
        super().__init__(random_log(30, 40, 400), goal, make_view().budget)
        self.sets: list[bytes] = []
        self.answers: list[int] = []

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        self.n_queries += len(profiles)
        answers = (profiles * np.arange(1, 7)).sum(axis=(1, 2)) % 1009
        self.sets.extend(each.tobytes() for each in profiles)
        self.answers.extend(answers.tolist())
        return np.asarray(answers, dtype=np.int64)


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
        ("random-search", "n_queries", 0),
        ("appgrad", "n_directions", 0),
        ("appgrad", "probe", 0.0),
        ("appgrad", "step", float("inf")),
        ("cross-entropy", "elite_rate", 1.5),
        ("cross-entropy", "smoothing", 0.0),
        ("cross-entropy", "bin_growth", 1.0),
        ("cross-entropy", "batch_size", 2.5),
        ("conslop", "similarity", "jaccard"),
        ("conslop", "list_length", 0),
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


def test_an_attacker_of_stable_baselines3_says_what_to_install_where_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in [m for m in sys.modules if m.startswith(("agents.sb3", "sb3_contrib"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(
        ArgumentError, match=r"'sb3-ppo' needs .*pip install 'recattack-gym\[sb3\]'"
    ):
        ATTACKERS["sb3-ppo"]
    assert "sb3-ppo" in ATTACKERS
