"""Least trimmed squares: which ratings are left out, that it is ALS where none are, and what it buys."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.gradient.ratings.adjoints import RatingGradient
from recattack_gym.core import ArgumentError, Interactions, UnknownNameError
from recattack_gym.simulator import PlatformSimulator, make_simulator
from recattack_gym.simulator.ratings import RatingGoal, RatingPlatform
from recattack_gym.victims import ALS, LTSMF
from recattack_gym.victims.least_squares import RatingMatrix, matrix_of
from recattack_gym.victims.trimming import least_trimmed, n_kept, smallest

K = 2
SETTINGS: dict[str, object] = {"embedding_size": K, "reg": 1.0, "finetune_sweeps": 2}


def rated_log(n_users: int = 40, n_items: int = 30, seed: int = 0) -> Interactions:
    """Ratings of 1 to 5 with two tastes behind them, half of all pairs."""
    rng = np.random.default_rng(seed)
    users, items = rng.standard_normal((n_users, K)), rng.standard_normal((n_items, K))
    is_rated = rng.random((n_users, n_items)) < 0.5
    ratings = np.clip(
        np.round(3.0 + users @ items.T + 0.3 * rng.standard_normal(is_rated.shape)), 1, 5
    )
    rows, columns = np.nonzero(is_rated)
    return Interactions(rows, columns, n_users, n_items, ratings=ratings[rows, columns])


def clicked_log() -> Interactions:
    rng = np.random.default_rng(3)
    items = np.stack([rng.permutation(27)[:8] for _ in range(40)])
    return Interactions(np.repeat(np.arange(40), 8), items.ravel(), 40, 30)


def errors_by_loops(
    matrix: RatingMatrix, users: NDArray[np.float64], items: NDArray[np.float64]
) -> NDArray[np.float64]:
    triples = zip(matrix.user_ids, matrix.item_ids, matrix.ratings, strict=True)
    return np.array([rating - users[user] @ items[item] for user, item, rating in triples])


# -- the loop -----------------------------------------------------------------------------------


def test_the_mean_of_four_numbers_of_which_one_is_trimmed() -> None:
    """The golden value of the specification: 1, 1.2, 0.8 and 5; the mean goes from 2 to 1 and stays."""
    data, means = np.array([1.0, 1.2, 0.8, 5.0]), []

    def fit(is_kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        means.append(data[is_kept].mean())
        losses: NDArray[np.float64] = (data - means[-1]) ** 2
        return losses

    is_kept, n_fits = least_trimmed(fit, 4, n_kept(4, 0.25), 10)
    assert is_kept.tolist() == [True, True, True, False]
    assert means == pytest.approx([2.0, 1.0])
    assert n_fits == 2


@hypothesis_settings(deadline=None)
@given(
    st.lists(st.integers(-30, 30), min_size=2, max_size=12), st.integers(1, 11), st.integers(1, 8)
)
def test_the_sum_of_the_kept_never_rises_and_the_kept_are_the_smallest(
    numbers: list[int], n_left: int, max_rounds: int
) -> None:
    data, sums, calls = np.array(numbers, dtype=np.float64), [], []
    n_left = min(n_left, len(data))

    def fit(is_kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        losses: NDArray[np.float64] = (data - data[is_kept].mean()) ** 2
        calls.append((is_kept.copy(), losses))
        sums.append(losses[is_kept].sum())
        return losses

    is_kept, n_fits = least_trimmed(fit, len(data), n_left, max_rounds)
    assert (np.diff(sums[1:]) <= 1e-9).all()
    assert n_fits == len(calls) <= max_rounds + 1
    last_kept, losses = calls[-1]
    assert is_kept.tolist() == last_kept.tolist()
    if n_fits <= max_rounds:
        assert sorted(losses[is_kept]) == pytest.approx(sorted(losses)[:n_left])


def test_counts_and_ties() -> None:
    assert [n_kept(10, share) for share in (0.0, 0.1, 0.15, 0.3, 0.99)] == [10, 9, 9, 7, 1]
    assert smallest(np.array([2.0, 1.0, 2.0, 2.0]), 3).tolist() == [True, True, True, False]


# -- the victim ---------------------------------------------------------------------------------


@pytest.mark.parametrize("trim", ["ratings", "users"])
@pytest.mark.parametrize("log", [rated_log(), clicked_log()], ids=["rated", "clicked"])
def test_nothing_trimmed_is_als_bit_for_bit(log: Interactions, trim: str) -> None:
    plain = ALS(SETTINGS).fit(log, np.random.default_rng(1))
    trimmed = LTSMF({**SETTINGS, "trim_share": 0.0, "trim": trim}).fit(
        log, np.random.default_rng(1)
    )
    assert trimmed.is_kept.all()
    profile = np.random.default_rng(2).integers(0, log.n_items, (3, 6))
    pairs: list[tuple[Any, Any]] = [(plain, trimmed)]
    pairs += [
        (plain.poisoned(profile, 0, mode), trimmed.poisoned(profile, 0, mode))
        for mode in ("finetune", "full")
    ]
    for one, other in pairs:
        for name in ("users", "items"):
            assert (one.state[name] == other.state[name]).all()
        assert len(other.is_kept) == len(matrix_of(other.log, other._negatives(0)).ratings)


@pytest.mark.parametrize("log", [rated_log(), clicked_log()], ids=["rated", "clicked"])
def test_what_is_left_out_has_the_largest_errors(log: Interactions) -> None:
    victim = LTSMF({**SETTINGS, "trim_share": 0.2}).fit(log, np.random.default_rng(1))
    matrix = matrix_of(log, victim._negatives(0))
    squares = errors_by_loops(matrix, victim.users, victim.items) ** 2
    assert victim.is_kept.sum() == np.ceil(0.8 * len(squares))
    assert squares[victim.is_kept].max() <= squares[~victim.is_kept].min()
    assert squares[~victim.is_kept].min() > 0.0


def test_of_users_those_are_left_out_who_fit_worst_and_all_get_recommendations() -> None:
    log = rated_log()
    victim = LTSMF({**SETTINGS, "trim_share": 0.2, "trim": "users"}).fit(
        log, np.random.default_rng(1)
    )
    matrix = matrix_of(log)
    squares = errors_by_loops(matrix, victim.users, victim.items) ** 2
    means = np.array([squares[matrix.user_ids == user].mean() for user in range(log.n_users)])
    kept = np.array([victim.is_kept[matrix.user_ids == user].all() for user in range(log.n_users)])
    some = np.array([victim.is_kept[matrix.user_ids == user].any() for user in range(log.n_users)])
    assert kept.tolist() == some.tolist()  # whole users
    assert kept.sum() == 32
    assert means[kept].max() <= means[~kept].min()
    for user in np.flatnonzero(~kept).tolist():  # ridge regression on the user's own ratings
        own = matrix.user_ids == user
        rows = victim.items[matrix.item_ids[own]]
        row = np.linalg.solve(np.eye(K) + rows.T @ rows, rows.T @ matrix.ratings[own])
        np.testing.assert_allclose(victim.users[user], row, atol=1e-8)


def test_the_solution_is_that_of_the_kept_ratings_alone() -> None:
    log = rated_log()
    victim = LTSMF({**SETTINGS, "trim_share": 0.2}).fit(log, np.random.default_rng(1))
    kept = log.select(victim.is_kept)  # a rated log in the matrix's order
    point = ALS(SETTINGS).solve(matrix_of(kept), victim.items)
    assert point.kkt_residual < 1e-6
    np.testing.assert_allclose(point.items, victim.items, atol=1e-5)
    np.testing.assert_allclose(point.users, victim.users, atol=1e-5)


def test_the_penalised_sum_over_the_kept_never_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[float] = []
    starts: list[NDArray[np.float64]] = []
    ends: list[NDArray[np.float64]] = []
    solve = ALS.solve

    def noted(
        self: ALS, matrix: RatingMatrix, items: NDArray[np.float64], **more: float | None
    ) -> object:
        point = solve(self, matrix, items, **more)
        values.append(point.value)
        starts.append(items.copy())
        ends.append(point.items.copy())
        return point

    monkeypatch.setattr(ALS, "solve", noted)
    LTSMF({**SETTINGS, "trim_share": 0.2}).fit(rated_log(), np.random.default_rng(1))
    assert len(values) > 3
    assert (np.diff(values) <= 1e-9).all()
    assert all((begin == end).all() for begin, end in zip(starts[1:], ends[:-1], strict=True))


@pytest.mark.parametrize("trim", ["ratings", "users"])
@pytest.mark.parametrize("log", [rated_log(), clicked_log()], ids=["rated", "clicked"])
def test_finetuning_takes_turns_as_dense_loops_do(log: Interactions, trim: str) -> None:
    """The slow twin: choose among all ratings, then ridge regressions of fake users and clicked items."""
    settings = {**SETTINGS, "trim_share": 0.15, "trim": trim, "finetune_rounds": 3}
    victim = LTSMF(settings).fit(log, np.random.default_rng(1))
    profile = np.random.default_rng(2).integers(0, log.n_items, (3, 6))
    poisoned = victim.poisoned(profile, 0, "finetune")
    matrix = matrix_of(poisoned.log, poisoned._negatives(0))
    users = np.concatenate([victim.users, np.zeros((3, K))])
    items, n = victim.items.copy(), len(matrix.ratings)
    kept = np.concatenate([victim.is_kept, np.ones(n - len(victim.is_kept), dtype=np.bool_)])
    for turn in range(3):
        if turn > 0:
            squares = errors_by_loops(matrix, users, items) ** 2
            if trim == "ratings":
                kept = np.isin(np.arange(n), np.argsort(squares, kind="stable")[: n_kept(n, 0.15)])
            else:
                means = [squares[matrix.user_ids == u].mean() for u in range(matrix.n_users)]
                best = np.argsort(means, kind="stable")[: n_kept(matrix.n_users, 0.15)]
                kept = np.isin(matrix.user_ids, best)
        for _ in range(2):
            for user in range(log.n_users, matrix.n_users):
                own = (matrix.user_ids == user) & (kept | (trim == "users"))
                rows = items[matrix.item_ids[own]]
                users[user] = np.linalg.solve(
                    np.eye(K) + rows.T @ rows, rows.T @ matrix.ratings[own]
                )
            for item in np.unique(profile):
                own = (matrix.item_ids == item) & kept
                rows = users[matrix.user_ids[own]]
                items[item] = np.linalg.solve(
                    np.eye(K) + rows.T @ rows, rows.T @ matrix.ratings[own]
                )
    np.testing.assert_allclose(poisoned.users, users, atol=1e-8)
    np.testing.assert_allclose(poisoned.items, items, atol=1e-8)
    assert poisoned.is_kept.tolist() == kept.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_on_a_contaminated_log_it_recovers_what_als_does_not(seed: int) -> None:
    """A tenth of the ratings is turned around. What that costs ALS, against the true ones, is won back."""
    log = rated_log(80, 60, seed)
    assert log.ratings is not None
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(log)) < 0.1
    ratings = np.where(wrong, np.where(log.ratings > 3, 1.0, 5.0), log.ratings)
    dirty = Interactions(log.user_ids, log.item_ids, log.n_users, log.n_items, ratings=ratings)
    truth = matrix_of(log).ratings

    def error(victim: ALS, trained_on: Interactions) -> float:
        victim.fit(trained_on, np.random.default_rng(seed))
        predicted = (victim.users[log.user_ids] * victim.items[log.item_ids]).sum(axis=1)
        return float(np.sqrt(((predicted - truth) ** 2).mean()))

    trimmed = LTSMF({**SETTINGS, "trim_share": 0.12})
    best, plain, robust = (
        error(ALS(SETTINGS), log),
        error(ALS(SETTINGS), dirty),
        error(trimmed, dirty),
    )
    assert (~trimmed.is_kept[wrong]).mean() > 0.85  # nearly all of the turned ones are left out
    assert plain > 1.25 * best
    assert robust - best < 0.15 * (plain - best)


def test_it_is_a_defence_of_als_and_of_nothing_else() -> None:
    arguments: dict[str, Any] = {"dataset": clicked_log(), "targets": 2, "n_candidates": 12, "k": 3}
    defended = make_simulator({**arguments, "victim": "ALS", "defense": "lts"})
    named = PlatformSimulator(**arguments, victim="LTS-MF")
    profile = np.random.default_rng(0).integers(0, named.n_items, (4, 6))
    assert defended.victim.name == "LTS-MF"
    assert defended.exposure(profile).tolist() == named.exposure(profile).tolist()
    with pytest.raises(UnknownNameError, match="victim with lts training 'NuclearNorm'"):
        make_simulator({**arguments, "victim": "NuclearNorm", "defense": "lts"})


def test_a_rating_platform_retrains_with_trimming_and_has_no_gradient() -> None:
    log = rated_log()
    settings = {**SETTINGS, "trim_share": 0.2}
    platform = RatingPlatform(log, "LTS-MF", victim_config=settings)
    items = np.random.default_rng(0).permuted(np.tile(np.arange(30), (4, 1)), axis=1)[:, :8]
    ratings = np.full(items.shape, 2.0)
    point = platform.retrain(items, ratings)
    whole = platform.matrix.with_fake_users(items, ratings)
    assert len(point.matrix.ratings) == n_kept(len(whole.ratings), 0.2)
    with pytest.raises(ArgumentError, match="learns from every rating"):
        RatingGradient(platform, RatingGoal())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trim_share": 1.0}, "trim_share must be below 1"),
        ({"trim_share": -0.1}, "trim_share must be"),
        ({"trim": "items"}, "trim must be one of"),
        ({"trim_rounds": 0}, "trim_rounds must be"),
        ({"finetune_rounds": 0}, "finetune_rounds must be"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        LTSMF(settings)
