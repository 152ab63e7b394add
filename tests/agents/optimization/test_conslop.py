"""ConsLOP's prices, its knapsack, and whether what it buys is delivered."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.optimization import ConsLOP, conslop
from agents.optimization.conslop import (
    NEVER,
    SIMILARITIES,
    Similarity,
    best_anchors,
    covisit_counts,
    covisits_needed,
)
from recattack_gym.core import AttackBudget, AttackGoal, Interactions
from tests.agents.stub_view import StubView, random_log


@pytest.mark.parametrize(
    ("case", "product", "cosine"),
    [((0, 0, 100, 20), 1, 5), ((0, 50, 100, 20), 13, 17), ((5, 200, 100, 20), 44, 26)],
)
def test_the_smallest_number_of_covisits_is_as_worked_out_by_hand(
    case: tuple[int, int, int, int], product: int, cosine: int
) -> None:
    w_jt, w_t, w_x, w_jx = case
    for similarity, expected in zip(SIMILARITIES, (product, cosine), strict=True):
        found = covisits_needed(
            np.array([w_jt]), w_t, np.array([w_jx]), np.array([w_x]), similarity, limit=1000
        )
        assert found.tolist() == [expected]


@given(
    st.integers(0, 40), st.integers(0, 60), st.integers(1, 90), st.integers(0, 60), st.booleans()
)
@settings(max_examples=200, deadline=None)
def test_prices_are_those_of_trying_every_number(
    w_jt: int, extra: int, w_x: int, w_jx: int, has_total: bool
) -> None:
    w_t = (w_jt + 1) // 2 + extra  # a visit has at most two neighbours
    total = 70 if has_total else None
    for similarity in SIMILARITIES:
        power = 1 if similarity == "product" else 2

        def wins(q: int, power: int = power) -> bool:
            visits = w_t + (q if total is None else total)
            return bool((w_jt + q) ** power * w_x > w_jx**power * visits)

        expected = next((q for q in range(1, 121) if wins(q)), NEVER)
        found = covisits_needed(
            np.array([w_jt]),
            w_t,
            np.array([w_jx]),
            np.array([w_x]),
            similarity,
            limit=120,
            total_visits=total,
        )
        assert found[0] == expected


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=9), st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_the_knapsack_is_as_good_as_trying_every_choice(
    items: list[tuple[int, int]], budget: int
) -> None:
    worth = np.array([w for w, _ in items], dtype=np.float64)
    price = np.array([p for _, p in items], dtype=np.int64)
    chosen = best_anchors(worth, price, budget)
    assert price[chosen].sum() <= budget
    assert len(set(chosen.tolist())) == len(chosen)
    best = max(
        worth[list(some)].sum()
        for n in range(len(items) + 1)
        for some in combinations(range(len(items)), n)
        if price[list(some)].sum() <= budget
    )
    assert worth[chosen].sum() == best


def test_covisits_are_consecutive_clicks_of_one_user_on_two_items() -> None:
    log = Interactions(np.array([0, 0, 0, 0, 1, 1]), np.array([2, 0, 0, 2, 2, 1]), 2, 3)
    pairs, counts = covisit_counts(log, 4)
    table = {(int(p) // 4, int(p) % 4): int(c) for p, c in zip(pairs, counts, strict=True)}
    assert table == {(0, 2): 2, (2, 0): 2, (1, 2): 1, (2, 1): 1}


def lists_of(log: Interactions, similarity: Similarity, k: int) -> dict[int, list[int]]:
    """Return every item's list by an obvious loop."""
    covisits = np.zeros((log.n_items, log.n_items))
    for user in range(log.n_users):
        clicks = log.item_ids[log.user_ids == user]
        for a, b in pairwise(clicks):
            if a != b:
                covisits[a, b] += 1
                covisits[b, a] += 1
    power = 1.0 if similarity == "product" else 0.5
    found = {}
    for j in range(log.n_items):
        worth = covisits[j] / np.maximum(1, log.item_popularity) ** power
        ranked = [i for i in np.lexsort((np.arange(log.n_items), -worth)) if covisits[j, i] > 0]
        found[j] = [int(i) for i in ranked[:k]]
    return found


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_single_anchor_that_is_bought_shows_the_target_afterwards(similarity: Similarity) -> None:
    clean = random_log(60, 15, 900, seed=3).with_catalogue(16)
    view = StubView(
        clean, AttackGoal(target_items=(15,)), AttackBudget(n_fake_users=1, profile_size=2)
    )
    k = 4
    n_won = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        profile = ConsLOP({"similarity": similarity, "list_length": k}).plan(view, rng).item_ids
        anchor = int(profile[0, 1])
        poisoned = Interactions(
            np.concatenate([clean.user_ids, [60, 60]]),
            np.concatenate([clean.item_ids, profile[0]]),
            61,
            16,
        )
        prices = price_by_trying(clean, anchor, similarity, k)
        assert (prices <= 1) == (15 in lists_of(poisoned, similarity, k)[anchor])
        n_won += prices <= 1
    assert n_won or similarity == "cosine"  # one co-visit is enough for the product


def price_by_trying(
    log: Interactions, anchor: int, similarity: Similarity, k: int, target: int = 15
) -> int:
    """Return how many co-visits with a target put it on the anchor's list, by injecting them."""
    for q in range(1, 60):
        users = np.repeat(np.arange(log.n_users, log.n_users + q), 2)
        more = Interactions(
            np.concatenate([log.user_ids, users]),
            np.concatenate([log.item_ids, np.tile([target, anchor], q)]),
            log.n_users + q,
            16,
        )
        if target in lists_of(more, similarity, k)[anchor]:
            return q
    return 60


def test_one_target_alternates_with_the_most_visited_anchors_that_can_be_won() -> None:
    clean = random_log(200, 60, 3000, seed=1)
    view = StubView(
        clean, AttackGoal(target_items=(60, 61)), AttackBudget(n_fake_users=3, profile_size=7)
    )
    clicks = ConsLOP().plan(view, np.random.default_rng(0)).item_ids
    targets = set(clicks[:, ::2].ravel().tolist())
    anchors = clicks[:, 1::2].ravel().tolist()
    assert len(targets) == 1
    assert targets <= {60, 61}
    assert not {60, 61} & set(anchors)
    visits = clean.item_popularity
    assert len(anchors) == 9
    assert visits[anchors].mean() > 2 * visits.mean()


def prices_of(
    view: StubView, monkeypatch: pytest.MonkeyPatch, **settings: object
) -> tuple[NDArray[np.int64], int]:
    """Return what every anchor costs in a plan, and which item the plan promotes."""
    seen: list[NDArray[np.int64]] = []

    def looking(
        worth: NDArray[np.float64], price: NDArray[np.int64], budget: int
    ) -> NDArray[np.int64]:
        seen.append(price.copy())
        return best_anchors(worth, price, budget)

    monkeypatch.setattr(conslop, "best_anchors", looking)
    clicks = ConsLOP(settings).plan(view, np.random.default_rng(0)).item_ids
    return seen[0], int(clicks[0, 0])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("target", [13, 15])
def test_the_price_of_every_anchor_is_that_of_injecting_covisits_with_it(
    similarity: Similarity, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for an item that exists (13): its own co-visits count, and it is no rival of itself."""
    drawn = random_log(60, 15, 900, seed=3)
    is_target = drawn.item_ids == 13
    swapped = np.where(is_target, 14, np.where(drawn.item_ids == 14, 13, drawn.item_ids))
    clean = Interactions(drawn.user_ids, swapped, 60, 15).with_catalogue(16)
    budget = AttackBudget(n_fake_users=4, profile_size=6)  # 12 co-visits
    view = StubView(clean, AttackGoal(target_items=(target,)), budget)
    price, promoted = prices_of(view, monkeypatch, similarity=similarity, list_length=4)
    assert promoted == target
    expected = np.array(
        [
            price_by_trying(clean, anchor, similarity, 4, target) if anchor != target else 60
            for anchor in range(15)
        ]
    )
    assert np.array_equal(np.minimum(price[:15], 13), np.minimum(expected, 13))
    if (similarity, target) == ("product", 15):
        assert (expected == 1).all()  # one co-visit is enough for a new item
    else:
        assert len(np.unique(expected)) > 2


def test_with_all_visits_an_anchor_costs_what_it_takes_beside_the_whole_attack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean = random_log(60, 15, 900, seed=3).with_catalogue(16)
    budget = AttackBudget(n_fake_users=4, profile_size=6)
    view = StubView(clean, AttackGoal(target_items=(15,)), budget)
    price, _ = prices_of(view, monkeypatch, list_length=4, counts_all_visits=True)
    lists = lists_of(clean, "product", 4)
    pairs, counts = covisit_counts(clean, 16)
    table = dict(zip(pairs.tolist(), counts.tolist(), strict=True))
    for anchor in range(15):
        rival = lists[anchor][-1]
        share = table[anchor * 16 + rival] / clean.item_popularity[rival]
        wins = [
            q for q in range(1, 13) if q / 12 > share
        ]  # 12 visits of the target, q with this one
        assert price[anchor] == (wins[0] if wins else NEVER)


def test_no_anchor_is_another_target() -> None:
    clean = random_log(200, 60, 3000, seed=1)
    most_visited = np.argsort(-clean.item_popularity, kind="stable")[:8].tolist()
    goal = AttackGoal(target_items=tuple(sorted(most_visited)))
    view = StubView(clean, goal, AttackBudget(n_fake_users=3, profile_size=20))
    for seed in range(4):
        clicks = ConsLOP().plan(view, np.random.default_rng(seed)).item_ids
        assert not set(most_visited) & set(clicks[:, 1::2].ravel().tolist())
