"""The patterns of the four heuristics: which items, in which order, in which shares."""

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.attackers import ATTACKERS
from agents.heuristic.clicks import top_share
from agents.heuristic.power_item import in_degrees
from recattack_gym.core import AttackBudget, Interactions
from tests.agents.stub_view import StubView, make_view, random_log

N_CLICKS = 100 * 20


def plan(name: str, view: StubView, **config: object) -> NDArray[np.int64]:
    return ATTACKERS[name](config).plan(view, np.random.default_rng(0)).item_ids


@pytest.fixture
def view() -> StubView:
    return make_view(n_items=100, n_targets=4, n_fake_users=100, profile_size=20)


@pytest.mark.parametrize("name", ["random", "popular", "power-item"])
def test_targets_and_others_alternate_with_the_target_first(name: str, view: StubView) -> None:
    clicks = plan(name, view)
    assert (clicks[:, 0::2] >= 100).all()
    assert (clicks[:, 1::2] < 100).all()


@pytest.mark.parametrize("name", ["random", "popular", "middle", "power-item"])
def test_targets_are_drawn_uniformly(name: str, view: StubView) -> None:
    clicks = plan(name, view)
    counts = np.bincount(clicks[clicks >= 100] - 100, minlength=4)
    expected, n_drawn = counts.sum() / 4, counts.sum()
    assert np.abs(counts - expected).max() < 5 * np.sqrt(n_drawn * 0.25 * 0.75)


def test_random_clicks_any_other_item(view: StubView) -> None:
    others = plan("random", view)[:, 1::2]
    assert len(np.unique(others)) == 100


def test_popular_clicks_only_the_most_popular_tenth(view: StubView) -> None:
    best = np.argsort(-view.item_popularity[:100], kind="stable")[:10]
    assert set(np.unique(plan("popular", view)[:, 1::2])) == set(best)


def test_popular_has_at_least_one_popular_item() -> None:
    view = make_view(n_items=7)
    most_clicked = int(np.argmax(view.item_popularity))
    assert set(np.unique(plan("popular", view)[:, 1::2])) == {most_clicked}


def test_middle_takes_a_third_from_each_set_within_binomial_error(view: StubView) -> None:
    clicks = plan("middle", view)
    best = np.argsort(-view.item_popularity[:100], kind="stable")[:10]
    n_targets, n_popular = int((clicks >= 100).sum()), int(np.isin(clicks, best).sum())
    error = 5 * np.sqrt(N_CLICKS * (1 / 3) * (2 / 3))
    assert abs(n_targets - N_CLICKS / 3) < error
    assert abs(n_popular - N_CLICKS / 3) < error
    assert len(np.unique(clicks)) == 104


def test_middle_lets_targets_follow_each_other(view: StubView) -> None:
    is_target = plan("middle", view) >= 100
    assert (is_target[:, 1:] & is_target[:, :-1]).any()


def test_middle_without_unpopular_items_uses_the_other_two_sets(view: StubView) -> None:
    clicks = plan("middle", view, popular_rate=1.0)
    assert abs(int((clicks >= 100).sum()) - N_CLICKS / 2) < 5 * np.sqrt(N_CLICKS / 4)


def brute_force_in_degrees(
    log: Interactions, n_neighbours: int, significance: int
) -> NDArray[np.int64]:
    """Say `in_degrees` again with sets and sorted lists."""
    users_of = [set(log.user_ids[log.item_ids == item].tolist()) for item in range(log.n_items)]
    degrees = np.zeros(log.n_items, dtype=np.int64)
    for item, users in enumerate(users_of):
        similar = []
        for other, other_users in enumerate(users_of):
            n_both = len(users & other_users)
            if other != item and n_both:
                cosine = n_both / np.sqrt(float(len(users)) * float(len(other_users)))
                similar.append((-(cosine * min(n_both, significance) / significance), other))
        for _, other in sorted(similar)[:n_neighbours]:
            degrees[other] += 1
    return degrees


@pytest.mark.parametrize(("n_neighbours", "significance"), [(1, 1), (3, 50), (5, 4), (200, 50)])
@pytest.mark.parametrize("block_pairs", [1, 500, 4_000_000])
def test_in_degrees_equal_brute_force_for_any_block_size(
    n_neighbours: int, significance: int, block_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.heuristic.power_item._BLOCK_PAIRS", block_pairs)
    log = random_log(40, 60, 500, seed=3)
    degrees = in_degrees(log, n_neighbours=n_neighbours, significance=significance)
    assert np.array_equal(degrees, brute_force_in_degrees(log, n_neighbours, significance))


def test_in_degree_of_a_star_is_at_its_centre() -> None:
    # User u clicks items u and 4: item 4 shares a user with each of 0..3, which share none.
    log = Interactions(np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.array([0, 4, 1, 4, 2, 4, 3, 4]), 4, 5)
    assert in_degrees(log, n_neighbours=1).tolist() == [1, 0, 0, 0, 4]


def test_an_item_that_nobody_clicked_has_no_in_degree_and_repeats_count_once() -> None:
    log = Interactions(np.array([0, 0, 0, 0]), np.array([1, 1, 1, 2]), 1, 4)
    assert in_degrees(log).tolist() == [0, 1, 1, 0]


def test_power_item_clicks_the_items_with_the_largest_in_degree(view: StubView) -> None:
    degrees = brute_force_in_degrees(view.clean_log, 5, 50)
    best = np.argsort(-degrees, kind="stable")[:10]
    clicked = np.unique(plan("power-item", view, n_neighbours=5)[:, 1::2])
    assert set(clicked) == set(best)


@pytest.mark.parametrize(("n_items", "n_popular"), [(9, 1), (19, 1), (20, 2), (39, 3)])
def test_a_tenth_is_rounded_down(n_items: int, n_popular: int) -> None:
    item_ids, worth = np.arange(n_items), np.arange(n_items)
    assert top_share(item_ids, worth, 0.1).tolist() == item_ids[::-1][:n_popular].tolist()


def test_power_items_are_those_of_the_log_at_hand_whatever_came_before() -> None:
    attacker = ATTACKERS["power-item"]({"n_neighbours": 5})
    for seed in (0, 1, 0):
        clean = random_log(30, 40, 400, seed)
        view = StubView(
            Interactions(clean.user_ids, (clean.item_ids + 7 * seed) % 40, 30, 40),
            make_view().goal,
            AttackBudget(n_fake_users=100, profile_size=20),
        )
        clicked = np.unique(attacker.plan(view, np.random.default_rng(0)).item_ids[:, 1::2])
        degrees = brute_force_in_degrees(view.clean_log, 5, 50)
        assert set(clicked) == set(np.argsort(-degrees, kind="stable")[:4])
