"""The best poison sets so far, and what is made of them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import recombination
from agents.recombination import Elites
from recattack_gym.core import ArgumentError
from tests.agents.stub_view import make_view


def elites_of(*worth: float, n_elites: int = 3) -> Elites:
    """Return elites among sets whose clicks are all on the item of their place in `worth`."""
    elites = Elites(make_view(n_items=10, n_fake_users=2, profile_size=3), n_elites)
    item_ids = np.broadcast_to(np.arange(len(worth))[:, None, None], (len(worth), 2, 3))
    elites.add(item_ids.astype(np.int64), np.array(worth))
    return elites


def test_the_best_distinct_sets_are_kept_best_first_and_the_earlier_of_equals() -> None:
    elites = elites_of(1.0, 5.0, 2.0, 5.0)
    assert elites.item_ids[:, 0, 0].tolist() == [1, 3, 2]
    assert elites.worth.tolist() == [5.0, 5.0, 2.0]
    again = np.stack([np.full((2, 3), 1), np.full((2, 3), 7)]).astype(np.int64)
    elites.add(again, np.array([5.0, 3.0]))
    assert elites.item_ids[:, 0, 0].tolist() == [1, 3, 7]
    first_when_sorted = np.zeros((1, 2, 3), dtype=np.int64)
    elites.add(first_when_sorted, np.array([5.0]))
    assert elites.item_ids[:, 0, 0].tolist() == [1, 3, 0]


@given(
    n_items=st.integers(1, 12),
    n_targets=st.integers(1, 4),
    n_fake_users=st.integers(1, 5),
    profile_size=st.integers(1, 6),
    n_known=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_new_sets_spend_the_budget_and_known_ones_stay_as_they_are(
    n_items: int, n_targets: int, n_fake_users: int, profile_size: int, n_known: int, seed: int
) -> None:
    view = make_view(
        n_items=n_items, n_targets=n_targets, n_fake_users=n_fake_users, profile_size=profile_size
    )
    rng = np.random.default_rng(seed)
    elites = Elites(view, 4)
    elites.add(
        rng.integers(view.n_items, size=(n_known, n_fake_users, profile_size)), rng.random(n_known)
    )
    before = elites.item_ids.copy()
    made = elites.recombine(7, rng)
    assert made.shape == (7, n_fake_users, profile_size)
    assert made.min() >= 0
    assert made.max() < view.n_items
    assert np.array_equal(elites.item_ids, before)


def test_every_kind_of_change_occurs_and_better_parents_are_used_more_often() -> None:
    view = make_view(n_items=40, n_targets=4, n_fake_users=6, profile_size=10)
    elites = Elites(view, 4)
    sets = np.arange(4)[:, None, None] * 10 + np.zeros((4, 6, 10), dtype=np.int64)
    sets[:, :, ::2] = np.array([40, 41, 42, 43])[:, None, None]
    elites.add(sets, np.array([4.0, 3.0, 2.0, 1.0]))
    made = elites.recombine(600, np.random.default_rng(0))
    is_target = made >= 40
    assert (is_target[:, :, ::2].mean(axis=(1, 2)) > 0.75).all()  # an item gives way to its kind
    counts = [(made == 40 + number).mean() for number in range(4)]
    assert counts[0] > counts[1] > counts[3]
    fresh = np.setdiff1d(np.unique(made), np.unique(sets))
    assert len(fresh) > 10  # from the whole catalogue
    n_parents = np.array([len(np.unique(each[:, 0])) for each in made])
    assert (n_parents > 1).any()  # profiles of two parents
    one_item = np.array([(each[:, 1::2] == each[0, 1]).all() for each in made])
    assert one_item.any()


def test_a_count_of_none_is_refused() -> None:
    with pytest.raises(ArgumentError, match="n_elites must be"):
        elites_of(1.0, n_elites=0)
    with pytest.raises(ArgumentError, match="n_sets must be"):
        elites_of(1.0).recombine(0, np.random.default_rng(0))


class OneKindOfChange:
    """A generator that always draws the same kind of change, and is one otherwise."""

    def __init__(self, change: int) -> None:
        self._rng = np.random.default_rng(0)
        self._change = change

    def integers(self, high: int, size: int | None = None) -> Any:  # noqa: ANN401  # as NumPy's
        if high == 3 and size is None:
            return self._change
        return self._rng.integers(high, size=size)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # of many types
        return getattr(self._rng, name)


@pytest.mark.parametrize("change", [0, 1, 2])
def test_each_kind_of_change_does_what_it_says(
    change: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recombination, "CROSSOVER_RATE", 0.0)
    monkeypatch.setattr(recombination, "FRESH_RATE", 0.0)
    n_users, n_clicks = 5, 8
    elites = Elites(make_view(n_items=40, n_fake_users=n_users, profile_size=n_clicks), 2)
    own = np.arange(n_users * n_clicks).reshape(n_users, n_clicks) // 4  # items 0 to 9
    elites.add(np.stack([own, own + 20]), np.array([2.0, 1.0]))
    made = elites.recombine(300, OneKindOfChange(change))  # type: ignore[arg-type]  # stands in for one
    n_of_other = []
    for each in made:
        parent = own if (each < 20).mean() > 0.5 else own + 20
        is_changed = each != parent
        n_of_other.append(int(((each < 20) != (parent[0, 0] < 20)).sum()))
        if change == 0:  # one item gives way to one other
            assert len(np.unique(parent[is_changed])) <= 1
            assert len(np.unique(each[is_changed])) <= 1
        elif change == 1:  # at most 1 + a tenth of the clicks
            assert is_changed.sum() <= 1 + n_users * n_clicks // 10
        else:  # profiles are whole ones of the parent
            assert set(map(tuple, each.tolist())) <= set(map(tuple, parent.tolist()))
    n_changed = (made != own).all(axis=(1, 2)).sum()
    assert 0 < n_changed < 150  # the better parent is taken more often
    assert (max(n_of_other) > 0) == (change != 2)
    if change == 2:
        assert min(len(np.unique(each, axis=0)) for each in made) < n_users
