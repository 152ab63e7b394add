"""The shared solver of ALS and NuclearNorm against loops that anyone can check."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.victims import ALS, NuclearNorm
from recattack_gym.victims.least_squares import (
    Linearised,
    Negatives,
    RatingMatrix,
    minimise,
    shifted,
)

REG = 0.7


def random_matrix(
    n_users: int = 14, n_items: int = 11, share: float = 0.4, seed: int = 0
) -> RatingMatrix:
    rng = np.random.default_rng(seed)
    users, items = np.nonzero(rng.random((n_users, n_items)) < share)
    return RatingMatrix(users, items, rng.uniform(-2, 2, len(users)), n_users, n_items)


def entries(matrix: RatingMatrix) -> list[tuple[int, int, float]]:
    return list(
        zip(
            matrix.user_ids.tolist(), matrix.item_ids.tolist(), matrix.ratings.tolist(), strict=True
        )
    )


def sweep_by_loops(
    matrix: RatingMatrix, items: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One alternation of ALS, row by row."""
    k = items.shape[1]
    users, moved = np.zeros((matrix.n_users, k)), np.zeros((matrix.n_items, k))
    for i in range(matrix.n_users):
        own = [(j, r) for u, j, r in entries(matrix) if u == i]
        system = REG * np.eye(k) + sum((np.outer(items[j], items[j]) for j, _ in own), 0.0)
        users[i] = np.linalg.solve(system, sum((r * items[j] for j, r in own), np.zeros(k)))
    for j in range(matrix.n_items):
        own = [(i, r) for i, v, r in entries(matrix) if v == j]
        system = REG * np.eye(k) + sum((np.outer(users[i], users[i]) for i, _ in own), 0.0)
        moved[j] = np.linalg.solve(system, sum((r * users[i] for i, r in own), np.zeros(k)))
    return users, moved


def dense_hessian(point: Linearised) -> NDArray[np.float64]:
    """The Hessian of f in (U, V), block by block as in the specification of the adjoint."""
    matrix, k = point.matrix, point.items.shape[1]
    m, n = matrix.n_users, matrix.n_items
    h = np.zeros(((m + n) * k, (m + n) * k))

    def block(a: int, b: int) -> tuple[slice, slice]:
        return slice(a * k, (a + 1) * k), slice(b * k, (b + 1) * k)

    for row in range(m + n):
        h[block(row, row)] += REG * np.eye(k)
    for i, j, r in entries(matrix):
        u, v = point.users[i], point.items[j]
        error = r - u @ v
        h[block(i, i)] += np.outer(v, v)
        h[block(m + j, m + j)] += np.outer(u, u)
        h[block(i, m + j)] += np.outer(v, u) - error * np.eye(k)
        h[block(m + j, i)] += np.outer(u, v) - error * np.eye(k)
    return h


def reduced_hessian(point: Linearised) -> NDArray[np.float64]:
    h, size = dense_hessian(point), point.users.size
    uu, uv, vv = h[:size, :size], h[:size, size:], h[size:, size:]
    reduced: NDArray[np.float64] = vv - uv.T @ np.linalg.solve(uu, uv)
    return reduced


def test_a_sweep_is_what_loops_give() -> None:
    matrix = random_matrix()
    start = np.random.default_rng(1).standard_normal((matrix.n_items, 3))
    users, moved = sweep_by_loops(matrix, start)
    point = Linearised.at(matrix, start, REG)
    np.testing.assert_allclose(point.users, users, atol=1e-12)
    np.testing.assert_allclose(point.item_systems()[1], moved, atol=1e-12)
    errors = [r - users[i] @ start[j] for i, j, r in entries(matrix)]
    np.testing.assert_allclose(point.errors, errors, atol=1e-12)
    value = 0.5 * (np.square(errors).sum() + REG * ((users**2).sum() + (start**2).sum()))
    assert point.value == pytest.approx(value)


def test_rows_without_entries_are_zero() -> None:
    matrix = RatingMatrix(np.array([1]), np.array([2]), np.array([1.5]), 3, 4)
    point = Linearised.at(matrix, np.ones((4, 2)), REG)
    moved = point.item_systems()[1]
    assert not point.users[[0, 2]].any()
    assert not moved[[0, 1, 3]].any()
    assert moved[2].all()


def test_gradient_and_hessian_of_phi_are_those_of_dense_algebra() -> None:
    matrix = random_matrix()
    point = Linearised.at(matrix, np.random.default_rng(2).standard_normal((11, 3)), REG)
    step = 1e-6
    for place in [(0, 0), (4, 2), (10, 1)]:
        moved = [point.items.copy() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (Linearised.at(matrix, items, REG).value for items in moved)
        assert point.gradient()[place] == pytest.approx((up - down) / (2 * step), rel=1e-6)
    z = np.random.default_rng(3).standard_normal(point.items.shape)
    product = point.product(z)
    np.testing.assert_allclose(product.ravel(), reduced_hessian(point) @ z.ravel(), atol=1e-11)
    w = np.random.default_rng(4).standard_normal(point.users.shape)
    size = point.users.size
    coupling = dense_hessian(point)[size:, :size]
    np.testing.assert_allclose(point.push(w).ravel(), coupling @ w.ravel(), atol=1e-11)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_hessian_of_a_solution_has_one_null_direction_per_rotation(k: int) -> None:
    matrix = random_matrix(20, 16, 0.6)
    start = np.random.default_rng(0).standard_normal((16, k))
    point = minimise(matrix, start, REG, sweeps=10, tolerance=1e-11, max_steps=100)
    values = np.linalg.eigvalsh(dense_hessian(point))
    assert (np.abs(values) < 1e-7).sum() == k * (k - 1) // 2
    assert values.min() > -1e-7


def test_conjugate_gradients_solve_with_the_singular_hessian() -> None:
    matrix = random_matrix(20, 16, 0.6)
    start = np.random.default_rng(0).standard_normal((16, 3))
    point = minimise(matrix, start, REG, sweeps=10, tolerance=1e-11, max_steps=100)
    hessian, right = reduced_hessian(point), np.zeros_like(point.items)
    right += point.matrix.sparse(np.ones(len(matrix.ratings))).T @ point.users  # of predictions
    push = dense_hessian(point)[point.users.size :, : point.users.size]
    to_users = matrix.sparse(np.ones(len(matrix.ratings))) @ point.items
    right -= (push @ point.solve_users(to_users).ravel()).reshape(right.shape)
    lower, _ = point.item_systems()
    z = point.solve(right, lower, tolerance=1e-12, max_iterations=500)
    np.testing.assert_allclose(hessian @ z.ravel(), right.ravel(), atol=1e-8)


def settled(k: int = 3) -> Linearised:
    matrix = random_matrix(20, 16, 0.6)
    start = np.random.default_rng(0).standard_normal((16, k))
    return minimise(matrix, start, REG, sweeps=10, tolerance=1e-11, max_steps=100)


def test_of_a_good_guess_conjugate_gradients_take_the_best_multiple() -> None:
    point = settled()
    blocks, _ = point.item_systems()
    wanted = point.solve(
        point.product(point.items), blocks, tolerance=1e-12, max_iterations=500
    )  # fmt: skip
    right = point.product(wanted)
    got = point.solve(right, blocks, tolerance=1e-9, max_iterations=1, start=-0.2 * wanted)
    np.testing.assert_allclose(got, wanted, atol=1e-8)
    rough = np.random.default_rng(1).standard_normal(wanted.shape)
    once = point.solve(right, blocks, tolerance=1e-9, max_iterations=1, start=rough)
    length = (rough * right).sum() / (rough * point.product(rough)).sum()
    np.testing.assert_allclose(point.product(once), length * point.product(rough), atol=1e-8)
    cold = point.solve(right, blocks, tolerance=1e-9, max_iterations=1)
    assert np.abs(cold - wanted).max() > 0.01 * np.abs(wanted).max()


def test_a_useless_guess_costs_no_exactness() -> None:
    point = settled()
    blocks, _ = point.item_systems()
    right = point.product(np.random.default_rng(1).standard_normal(point.items.shape))
    wanted = point.solve(right, blocks, tolerance=1e-12, max_iterations=500)
    for guess in (np.random.default_rng(2).standard_normal(right.shape), np.zeros_like(right)):
        got = point.solve(right, blocks, tolerance=1e-12, max_iterations=500, start=guess)
        np.testing.assert_allclose(point.product(got), point.product(wanted), atol=1e-8)


def test_training_leaves_blocks_that_precondition_as_well_as_exact_ones() -> None:
    point = settled()
    exact, _ = point.item_systems()
    assert point.nearby_blocks is not None
    near, own = (np.tril(blocks) for blocks in (point.nearby_blocks, exact))
    np.testing.assert_allclose(near, own, atol=1e-3)


def test_training_ends_where_alternation_alone_would() -> None:
    matrix = random_matrix(20, 16, 0.6)
    start = np.random.default_rng(0).standard_normal((16, 2))
    fast = minimise(matrix, start, REG, sweeps=10, tolerance=1e-10, max_steps=100)
    assert fast.kkt_residual < 1e-10
    items = start
    for _ in range(3000):
        items = Linearised.at(matrix, items, REG).item_systems()[1]
    slow = Linearised.at(matrix, items, REG)
    np.testing.assert_allclose(fast.users @ fast.items.T, slow.users @ slow.items.T, atol=1e-6)


def test_where_every_pair_is_rated_it_is_implicits_als() -> None:
    """With confidence 1 everywhere, implicit fits clicked pairs to 1 and all others to 0."""
    als = pytest.importorskip("implicit.cpu.als")
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    clicks = (rng.random((40, 25)) < 0.3).astype(np.float64)
    model = als.AlternatingLeastSquares(
        factors=3, regularization=0.5, iterations=400, use_cg=False, num_threads=1,
        dtype=np.float64, random_state=0,
    )  # fmt: skip
    model.fit(csr_matrix(clicks), show_progress=False)
    users, items = np.divmod(np.arange(clicks.size), 25)
    matrix = RatingMatrix(users, items, clicks.ravel(), 40, 25)
    start = rng.standard_normal((25, 3))
    point = minimise(matrix, start, 0.5, sweeps=20, tolerance=1e-10, max_steps=100)
    theirs = model.user_factors @ model.item_factors.T
    np.testing.assert_allclose(point.users @ point.items.T, theirs, atol=1e-4)


def test_the_scales_ends_become_minus_and_plus_two_and_the_last_rating_counts() -> None:
    log = Interactions(
        np.array([0, 0, 0, 1]), np.array([2, 1, 2, 0]), 2, 3, ratings=np.array([1.0, 2.0, 5.0, 3.0])
    )
    assert shifted(log).tolist() == [-2.0, -1.0, 2.0, 0.0]
    matrix = RatingMatrix.from_log(log)
    assert entries(matrix) == [(0, 1, -1.0), (0, 2, 2.0), (1, 0, 0.0)]
    clicks = Interactions(log.user_ids, log.item_ids, 2, 3)
    assert {r for _, _, r in entries(RatingMatrix.from_log(clicks))} == {2.0}


def test_clicks_are_set_beside_what_was_not_clicked(small_log: Interactions) -> None:
    matrix = RatingMatrix.from_log(small_log, Negatives(5, 2, 24))
    clicked = {
        (int(u), int(i)) for u, i in zip(small_log.user_ids, small_log.item_ids, strict=True)
    }
    assert {(u, i) for u, i, r in entries(matrix) if r == 2.0} == clicked
    negatives = {(u, i) for u, i, r in entries(matrix) if r == -2.0}
    assert len(clicked) < len(negatives) <= 2 * len(small_log)  # few fall on clicked ones, or twice
    assert len(entries(matrix)) == len(clicked) + len(negatives)
    assert max(i for _, i in negatives) < 24


def test_negatives_of_genuine_users_stay_when_fake_ones_follow(small_log: Interactions) -> None:
    clicks = np.array([[3, 1, 2, 26]])
    whole = RatingMatrix.from_log(small_log.with_fake_users(clicks), Negatives(5, 1, 24))
    clean = RatingMatrix.from_log(small_log, Negatives(5, 1, 24))
    assert entries(whole)[: len(entries(clean))] == entries(clean)
    alone = Interactions(np.zeros(4, dtype=np.int64), clicks[0], 1, 27)
    fakes = RatingMatrix.from_log(alone, Negatives(5, 1, 24, first_event=len(small_log)))
    assert [(u - 30, i, r) for u, i, r in entries(whole)[len(entries(clean)) :]] == entries(fakes)


@pytest.mark.parametrize("kind", [ALS, NuclearNorm])
def test_negatives_are_for_logs_without_ratings(
    kind: type[ALS | NuclearNorm], small_log: Interactions
) -> None:
    rated = replace(small_log, ratings=np.resize([1.0, 2.0, 5.0], len(small_log)))
    with_and_without = [
        kind({"reg": 1.0, "negatives_per_click": n}).fit(rated, np.random.default_rng(0))
        for n in (0, 3)
    ]
    np.testing.assert_array_equal(with_and_without[0].items, with_and_without[1].items)


def test_fake_users_of_a_matrix_are_those_of_a_log() -> None:
    log = Interactions(
        np.array([0, 0, 1]), np.array([2, 1, 0]), 2, 4, ratings=np.array([1.0, 2.0, 5.0])
    )
    clicks, given = np.array([[3, 0, 3]]), np.array([[1.0, 5.0, 3.0]])
    whole = RatingMatrix.from_log(log.with_fake_users(clicks, given))
    added = RatingMatrix.from_log(log).with_fake_users(clicks, given - 3.0)
    assert entries(whole) == entries(added)
    assert entries(whole)[-2:] == [(2, 0, 2.0), (2, 3, 0.0)]


def test_training_on_ratings_differs_from_training_on_clicks(small_log: Interactions) -> None:
    rng = np.random.default_rng(0)
    rated = Interactions(
        small_log.user_ids,
        small_log.item_ids,
        30,
        27,
        ratings=rng.integers(1, 6, len(small_log)).astype(np.float64),
    )
    for kind in (ALS, NuclearNorm):
        ours = kind({"reg": 1.0}).fit(rated, np.random.default_rng(0))
        theirs = kind({"reg": 1.0}).fit(small_log, np.random.default_rng(0))
        user, item = rated.user_ids[0], rated.item_ids[0]
        pair = np.array([user]), np.array([[item]])
        assert ours.score(*pair) != theirs.score(*pair)


@pytest.mark.parametrize("kind", [ALS, NuclearNorm])
def test_finetuning_is_block_solves_of_fakes_and_clicked_items(
    kind: type[ALS | NuclearNorm], small_log: Interactions
) -> None:
    victim = kind({"reg": REG, "finetune_sweeps": 2})
    victim.fit(small_log, np.random.default_rng(0), n_new_items=3)
    profile = np.array([[24, 3, 25, 3], [8, 26, 1, 0]])
    poisoned = victim.poisoned(profile, 0, "finetune")
    whole = RatingMatrix.from_log(poisoned.log, poisoned._negatives(0))
    assert {r for user, _, r in entries(whole) if user >= small_log.n_users} == {-2.0, 2.0}
    items = victim.items.copy()
    users = np.concatenate([victim.users, np.zeros((2, items.shape[1]))])
    clicked = np.unique(profile)
    for _ in range(2):
        point = Linearised.at(whole, items, REG)
        users[-2:] = point.users[-2:]
        both = Linearised(whole, REG, users, items, point.errors, point.user_lower, point.value)
        items[clicked] = both.item_systems()[1][clicked]
    np.testing.assert_allclose(poisoned.items, items, atol=1e-10)
    np.testing.assert_allclose(poisoned.users, users, atol=1e-10)


def test_too_few_steps_are_warned_of(
    small_log: Interactions, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ALS({"max_steps": 1, "sweeps": 0}).fit(small_log, np.random.default_rng(0))
    assert "ALS stopped after max_steps = 1 with a KKT residual of" in caplog.text


@pytest.mark.parametrize(
    ("setting", "value"),
    [("reg", 0.0), ("tolerance", -1.0), ("max_steps", 0), ("finetune_sweeps", 0), ("reg", "1")],
)
def test_settings_out_of_range_are_refused(setting: str, value: object) -> None:
    for kind in (ALS, NuclearNorm):
        with pytest.raises(ArgumentError, match=setting):
            kind({setting: value})


def test_settings_of_one_victim_are_checked_too() -> None:
    for setting in ({"embedding_size": 0}, {"sweeps": -1}):
        with pytest.raises(ArgumentError, match=next(iter(setting))):
            ALS(setting)
    with pytest.raises(ArgumentError, match="max_rank"):
        NuclearNorm({"max_rank": 0})
