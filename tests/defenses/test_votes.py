"""Votes of many models: who is elected, and that what is certified holds for every change there can be."""

from itertools import combinations, permutations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError
from recattack_gym.defenses import Bagging
from recattack_gym.defenses.votes import count_votes, elected, largest_barred, largest_borne

ENDLESS = np.iinfo(np.int64).max


def votes_of(*rows: list[int]) -> NDArray[np.int64]:
    return np.array(rows, dtype=np.int64)


def all_allowed(votes: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.ones(votes.shape, dtype=np.bool_)


def stays(votes: list[int], item: int, k: int, n_models: int, e: int) -> bool:
    """The formula of the specification, by loops."""
    others = [j for j in range(len(votes)) if j != item]
    return sum(min(n_models, votes[j] + e) >= votes[item] - e for j in others) <= k - 1


def stays_out(votes: list[int], item: int, k: int, n_models: int, e: int) -> bool:
    """Its counterpart: k others stay ahead."""
    others = [j for j in range(len(votes)) if j != item]
    return sum(votes[j] - e > min(n_models, votes[item] + e) for j in others) >= k


def test_the_golden_table() -> None:
    """K = 7, N = 3: e = 0 and 1 certify all three, e = 2 only item 0, e = 3 none."""
    votes = votes_of([7, 6, 5, 2, 1, 0])
    borne = largest_borne(votes, all_allowed(votes), 3)[0]
    certified = [np.flatnonzero(borne[:3] >= e).tolist() for e in range(5)]
    assert certified == [[0, 1, 2], [0, 1, 2], [0], [], []]
    assert borne[3:].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_largest_numbers_are_those_of_the_formula(k: int) -> None:
    n_models = 5
    for table in product(range(n_models + 1), repeat=4):
        votes = votes_of(list(table))
        borne = largest_borne(votes, all_allowed(votes), k)[0]
        barred = largest_barred(votes, all_allowed(votes), k)[0]
        for item in range(4):
            for e in range(n_models + 1):
                assert (e <= borne[item]) == stays(list(table), item, k, n_models, e)
                assert (e <= barred[item]) == stays_out(list(table), item, k, n_models, e)


def winners(lists: tuple[tuple[int, ...], ...], n_items: int, k: int) -> tuple[set[int], set[int]]:
    """Return which items are shown under every order of ties, and which under some."""
    counts = [sum(item in one for one in lists) for item in range(n_items)]
    surely = {i for i in range(n_items) if sum(c >= counts[i] for c in counts) <= k}
    maybe = {i for i in range(n_items) if sum(c > counts[i] for c in counts) < k}
    return surely, maybe


@pytest.mark.parametrize(("n_models", "n_items", "k"), [(3, 4, 1), (4, 3, 1), (3, 3, 2), (5, 3, 1)])
def test_no_change_of_e_models_breaks_what_is_certified(
    n_models: int, n_items: int, k: int
) -> None:
    """By force: every table of lists, every choice of e models, everything that these could show instead."""
    every_list = list(combinations(range(n_items), k))
    for lists in product(every_list, repeat=n_models):
        votes = votes_of([sum(item in one for one in lists) for item in range(n_items)])
        borne = largest_borne(votes, all_allowed(votes), k)[0]
        barred = largest_barred(votes, all_allowed(votes), k)[0]
        for e in range(3):
            certified = set(np.flatnonzero(borne >= e).tolist())
            excluded = set(np.flatnonzero(barred >= e).tolist())
            if not certified and not excluded:
                continue
            for changed in combinations(range(n_models), e):
                for instead in product(every_list, repeat=e):
                    after = list(lists)
                    for model, one in zip(changed, instead, strict=True):
                        after[model] = one
                    surely, maybe = winners(tuple(after), n_items, k)
                    assert certified <= surely
                    assert not excluded & maybe


def test_certificates_shrink_as_more_models_change() -> None:
    rng = np.random.default_rng(0)
    votes = rng.integers(0, 21, (50, 30))
    for certified in (largest_borne, largest_barred):
        largest = certified(votes, all_allowed(votes), 5)
        shares = [(largest >= e).mean() for e in range(12)]
        assert (np.diff(shares) <= 0).all()
        assert shares[0] > shares[1] > shares[11] == 0


def test_what_may_not_be_shown_does_not_count() -> None:
    votes = votes_of([5, 4, 3, 0])
    allowed = np.array([[True, False, True, True]])
    assert largest_borne(votes, allowed, 1)[0].tolist() == [0, -1, -1, -1]  # 5 before 3
    assert largest_barred(votes, allowed, 1)[0].tolist() == [-1, ENDLESS, 0, 2]
    # With places for all nobody can be driven out, and nobody is kept out
    assert largest_borne(votes, allowed, 3)[0].tolist() == [ENDLESS, -1, ENDLESS, ENDLESS]
    assert largest_barred(votes, allowed, 3)[0].tolist() == [-1, ENDLESS, -1, -1]
    assert largest_borne(votes, allowed, 9)[0].tolist() == [ENDLESS, -1, ENDLESS, ENDLESS]
    assert largest_barred(votes, allowed, 9)[0].tolist() == [-1, ENDLESS, -1, -1]


def test_the_elected_by_loops() -> None:
    rng = np.random.default_rng(1)
    n_models, n_rows, n_items, k = 6, 40, 12, 4
    item_ids = rng.permuted(np.tile(np.arange(n_items), (n_rows, 1)), axis=1)[:, :9]
    allowed = rng.random(item_ids.shape) < 0.6
    shown = np.full((n_models, n_rows, k), -1)
    for model in range(n_models):
        for row in range(n_rows):
            some = rng.permutation(item_ids[row][allowed[row]])[:k]
            shown[model, row, : len(some)] = some
    votes = count_votes(shown, item_ids, n_items)
    best = elected(shown, item_ids, allowed, n_items)
    for row in range(n_rows):
        lists = [[i for i in one.tolist() if i >= 0] for one in shown[:, row]]
        count = {i: sum(i in one for one in lists) for i in item_ids[row].tolist()}
        assert votes[row].tolist() == list(count.values())
        place = {i: sum(k - one.index(i) for one in lists if i in one) for i in count}
        may = item_ids[row][allowed[row]].tolist()
        wanted = sorted(may, key=lambda i: (-count[i], -place[i], i))[:k]
        assert best[row].tolist() == wanted + [-1] * (k - len(wanted))


def test_places_never_outweigh_a_vote() -> None:
    """Two models put item 0 last, one puts item 1 first: two votes are more than one."""
    shown = np.array([[[2, 3, 0]], [[3, 2, 0]], [[1, 4, 5]]])
    items = np.arange(6)[None]
    assert elected(shown, items, np.ones((1, 6), dtype=np.bool_), 6)[0].tolist() == [2, 3, 0]


def test_accounts_are_dealt_by_their_number_alone() -> None:
    bagging = Bagging(7)
    accounts = np.arange(7000)
    models = bagging.models_of(accounts, 3)
    for order in list(permutations(range(3)))[:3]:
        some = accounts[list(order)]
        assert bagging.models_of(some, 3).tolist() == models[list(order)].tolist()
    assert models.tolist() != bagging.models_of(accounts, 4).tolist()
    assert abs(np.bincount(models, minlength=7) - 1000).max() < 120


@pytest.mark.parametrize("n_models", [1, 0, -3, 2.5, "many"])
def test_a_wrong_number_of_models_is_refused(n_models: object) -> None:
    with pytest.raises(ArgumentError, match="n_models must be"):
        Bagging(n_models)  # type: ignore[arg-type]
