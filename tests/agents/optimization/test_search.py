"""AppGrad, random search and the cross-entropy method."""

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.attackers import ATTACKERS
from agents.optimization.appgrad import estimated_gradient, singular_directions, whole_counts
from agents.recording import RecordingView
from agents.search import SearchAttacker, Trials
from recattack_gym.core import AttackBudget, AttackGoal
from recattack_gym.core.attack import Direction
from tests.agents.stub_view import StubView, random_log


def test_for_a_linear_goal_the_estimate_is_the_projection_on_the_directions() -> None:
    rng = np.random.default_rng(0)
    counts, weight = rng.random((6, 9)), rng.standard_normal((6, 9))
    directions = singular_directions(counts, 4)
    assert directions.shape == (4, 6, 9)
    gram = np.einsum("kij,lij->kl", directions, directions)
    assert np.allclose(gram, np.eye(4), atol=1e-12)
    expected = sum((weight * z).sum() * z for z in directions)
    for probe in (0.1, 50.0):
        above, below = (
            np.array([(weight * m).sum() for m in counts + sign * probe * directions])
            for sign in (1, -1)
        )
        found = estimated_gradient(directions, above, below, np.full(4, probe))
        assert np.allclose(found, expected)


def test_singular_directions_are_the_leading_ones_and_none_of_nothing() -> None:
    counts = np.outer([3.0, 4.0], [1.0, 0.0, 0.0])
    assert np.allclose(np.abs(singular_directions(counts, 5)), [counts / 5.0])
    assert singular_directions(np.zeros((2, 3)), 2).shape == (0, 2, 3)


def test_whole_counts_spend_exactly_the_budget_near_what_was_asked_for() -> None:
    rng = np.random.default_rng(1)
    wanted = rng.normal(0.5, 2.0, size=(50, 12))
    whole = whole_counts(wanted, 20)
    assert (whole.sum(axis=1) == 20).all()
    assert (whole >= 0).all()
    positive = np.maximum(wanted, 0)
    shares = positive / positive.sum(axis=1, keepdims=True) * 20
    assert (np.abs(whole - shares) < 1).all()
    assert (whole[positive == 0] == 0).all()
    exact = np.array([[3.0, 0.0, 17.0]])
    assert whole_counts(exact, 20).tolist() == [[3, 0, 17]]
    assert whole_counts(np.array([[-1.0, -2.0, 0.0]]), 4).tolist() == [[2, 1, 1]]


class LinearView(StubView):
    """Pays clicks on item 3 with 3, on target 40 with 2, and on popular items with 1."""

    def __init__(self, direction: Direction = "push") -> None:
        log = random_log(200, 40, 4000)
        goal = AttackGoal(target_items=(40, 41), direction=direction)
        super().__init__(log, goal, AttackBudget(n_fake_users=5, profile_size=8))
        self.pay = np.zeros(42, dtype=np.int64)
        self.pay[np.argsort(-log.item_popularity)[:4]] = 1
        self.pay[40] = 2
        self.best = 2 * 40

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        self.n_queries += len(profiles)
        answers: NDArray[np.int64] = self.pay[profiles].sum(axis=(1, 2))
        return answers


@pytest.mark.parametrize(
    ("name", "share"), [("random-search", 0.75), ("cross-entropy", 0.9), ("evolution", 0.95)]
)
def test_searching_finds_what_pays(name: str, share: float) -> None:
    for seed in range(3):
        view = LinearView()
        attacker = ATTACKERS[name]({"n_queries": 600})
        assert isinstance(attacker, SearchAttacker)
        plan = attacker.plan(view, np.random.default_rng(seed))
        assert view.query(plan.item_ids[None])[0] >= share * view.best


def test_evolution_goes_on_from_what_it_has_recombined() -> None:
    view = LinearView()
    by_popularity = np.argsort(-view.item_popularity[:40], kind="stable")
    view.pay[:] = 0
    view.pay[by_popularity[[7, 13, 19, 25]]] = 1  # no set of the first generation clicks only these
    for seed in range(3):
        attacker = ATTACKERS["evolution"]({"n_queries": 600})
        plan = attacker.plan(view, np.random.default_rng(seed))
        # of 40; children of the first generation alone reach 9 to 35
        assert view.query(plan.item_ids[None])[0] >= 38


def test_appgrad_climbs_from_where_it_starts() -> None:
    """Not far: it stays in the span of five directions that a step does not turn."""
    gains = []
    for seed in range(6):
        view = RecordingView(LinearView())
        ATTACKERS["appgrad"]({"n_queries": 600}).plan(view, np.random.default_rng(seed))
        gains.append(np.mean(view.rec_nums[-10:]) / np.mean(view.rec_nums[:10]))
    assert np.mean(gains) > 1.15


def test_searching_can_demote() -> None:
    for name in ("random-search", "cross-entropy", "evolution"):
        view = LinearView("nuke")
        plan = ATTACKERS[name]({"n_queries": 600}).plan(view, np.random.default_rng(0))
        start = view.query(np.full((1, 5, 8), 40))[0]
        assert view.query(plan.item_ids[None])[0] <= 0.3 * start


def test_cross_entropy_finds_that_even_and_odd_places_differ() -> None:
    view = LinearView()
    values = np.zeros((8, 42), dtype=np.int64)
    values[::2, 41] = 1
    values[1::2, np.argsort(-view.item_popularity)[:1]] = 1

    class Alternating(LinearView):
        def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
            self.n_queries += len(profiles)
            answers: NDArray[np.int64] = values[np.arange(8), profiles].sum(axis=(1, 2))
            return answers

    platform = Alternating()
    plan = ATTACKERS["cross-entropy"]({"n_queries": 960}).plan(platform, np.random.default_rng(0))
    assert platform.query(plan.item_ids[None])[0] >= 36  # of 40


@pytest.mark.parametrize("name", ["random-search", "cross-entropy", "evolution", "appgrad"])
@pytest.mark.parametrize("n_queries", [1, 7, 50])
def test_a_budget_that_fits_no_batch_is_spent_exactly(name: str, n_queries: int) -> None:
    view = LinearView()
    ATTACKERS[name]({"n_queries": n_queries}).plan(view, np.random.default_rng(0))
    assert view.n_queries == n_queries


@pytest.mark.parametrize("name", ["cross-entropy", "appgrad"])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_the_share_of_targets_at_the_beginning_is_the_one_asked_for(
    name: str, share: float
) -> None:
    shares = []
    for seed in range(8):
        view = RecordingView(LinearView())
        attacker = ATTACKERS[name]({"n_queries": 10, "target_share": share})
        attacker.plan(view, np.random.default_rng(seed))
        shares += view.target_shares
    # 80 sets of 40 clicks; those of appgrad are ten probes of one draw, so 8 x 40 clicks count
    assert np.mean(shares) == pytest.approx(share, abs=0.1)


def test_of_equally_good_sets_the_first_is_kept() -> None:
    view = LinearView()
    sets = np.zeros((3, 2, 5, 8), dtype=np.int64)
    sets[0, 1, 0, 0] = sets[1, 0, 1, 1] = 40  # equal, in another batch
    sets[2] = sets[0]
    sets[2, 0, 2, 2:4] = 40  # better
    trials = Trials(view, 6)
    for batch in sets[:2]:
        trials.query(batch)
        assert np.array_equal(trials.best_profiles, sets[0, 1])
    trials.query(sets[2])
    assert np.array_equal(trials.best_profiles, sets[2, 0])
