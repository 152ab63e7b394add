"""PCA-VarSelect, the popularity statistic and FAP's propagation against numbers and obvious code."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.defenses import FAP, PCAVarSelect, Popularity, UserItems
from recattack_gym.defenses.fap import edge_weights, propagate
from recattack_gym.defenses.pca import squared_loadings
from tests.defenses.cases import SIX_BY_FIVE, attacked, log_of, random_matrix, six_by_five

SEED_OF_SIX = np.arange(6) == 5


def obvious_pca(matrix: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    rows = matrix.astype(np.float64)
    spread = rows.std(axis=1, keepdims=True)
    z = np.where(
        spread > 0, (rows - rows.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-9), 0
    )
    values, vectors = np.linalg.eigh(z @ z.T)
    result: NDArray[np.float64] = -(vectors[:, np.argsort(values)[-k:]] ** 2).sum(axis=1)
    return result


@pytest.mark.parametrize("k", [1, 3, 5])
def test_pca_equals_a_dense_decomposition_with_absent_cells_counted_as_zero(k: int) -> None:
    matrix = random_matrix(1)[2:]
    scores = PCAVarSelect({"n_components": k}).scores(log_of(matrix))
    np.testing.assert_allclose(scores, obvious_pca(matrix, k), atol=1e-9)
    binary = PCAVarSelect({"n_components": k, "is_binary": True}).scores(log_of(matrix))
    np.testing.assert_allclose(binary, obvious_pca((matrix > 0).astype(np.int64), k), atol=1e-9)
    clicks = PCAVarSelect({"n_components": k}).scores(log_of(matrix, clicks=True))
    np.testing.assert_allclose(clicks, binary, atol=1e-12)


@pytest.mark.parametrize("clicks", [False, True])
def test_pca_iterated_equals_dense(clicks: bool) -> None:
    pairs = UserItems.of(attacked(clicks=clicks)[0])
    dense, iterated = (
        squared_loadings(pairs, pairs.ratings, 3, is_dense=is_dense) for is_dense in (True, False)
    )
    np.testing.assert_allclose(iterated, dense, atol=1e-6)


def test_pca_ignores_the_order_of_items_and_the_scale_of_a_row() -> None:
    matrix = random_matrix(2)[2:]
    rng = np.random.default_rng(0)
    expected = obvious_pca(matrix, 3)
    mixed = (matrix * rng.integers(1, 4, (len(matrix), 1)))[:, rng.permutation(matrix.shape[1])]
    np.testing.assert_allclose(PCAVarSelect().scores(log_of(mixed)), expected, atol=1e-9)


def test_users_with_equal_profiles_have_equal_pca_scores() -> None:
    matrix = random_matrix(3)[2:]
    scores = PCAVarSelect().scores(log_of(np.concatenate([matrix, matrix[:4]])))
    np.testing.assert_allclose(scores[-4:], scores[:4], atol=1e-9)


def test_popularity_is_minus_the_mean_number_of_raters() -> None:
    scores = Popularity().scores(log_of(SIX_BY_FIVE, clicks=True))
    np.testing.assert_allclose(scores, [-4, -4, -13 / 3, -11 / 3, -11 / 3, -4])


# -- FAP: shared/specs/tutorial_systems.md, L.2 ------------------------------------------------------


def test_fap_weights_of_the_six_by_five_matrix() -> None:
    pairs = six_by_five()
    weights = pairs.matrix(edge_weights(pairs, is_polished=False)).toarray()
    np.testing.assert_allclose(weights[0], [2.523810, 1, 0, 2.583333, 0], atol=6e-7)
    np.testing.assert_allclose(weights[5], [1.447619, 1.2, 1.2, 0, 2.875], atol=6e-7)


@pytest.mark.parametrize(
    ("n_rounds", "is_polished", "expected"),
    [
        (1, False, [0.094042, 0.100494, 0.176264, 0.254377, 0.207417, 0.265606]),
        (2, False, [0.221689, 0.230858, 0.313493, 0.400926, 0.337558, 0.404438]),
        (1, True, [0.079846, 0.086908, 0.160368, 0.223769, 0.194663, 0.245696]),
        (2, True, [0.197363, 0.206607, 0.289903, 0.359651, 0.315266, 0.376468]),
        (5, True, [0.494571, 0.501662, 0.561167, 0.608041, 0.571459, 0.616535]),
        (200, False, [1.0] * 6),
        (200, True, [1.0] * 6),
    ],
)
def test_fap_propagates_over_the_six_by_five_matrix(
    n_rounds: int, is_polished: bool, expected: list[float]
) -> None:
    found = propagate(six_by_five(), SEED_OF_SIX, n_rounds, is_polished=is_polished)
    np.testing.assert_allclose(found, expected, atol=6e-7)


def test_fap_rises_with_rounds_and_seeds_and_items_of_seeds_alone_are_certain() -> None:
    pairs = UserItems.of(log_of(random_matrix(4)))
    one, two = np.zeros(pairs.n_users, dtype=np.bool_), np.zeros(pairs.n_users, dtype=np.bool_)
    one[[5]], two[[5, 9]] = True, True
    rounds = [propagate(pairs, one, n) for n in (1, 2, 3, 8)]
    others = ~two
    for earlier, later in pairwise(rounds):
        assert (later >= earlier - 1e-12)[others].all()
    assert (propagate(pairs, two, 3) >= propagate(pairs, one, 3) - 1e-12)[others].all()
    only_seed = Interactions(np.array([0, 1]), np.array([0, 0]), 2, 1)
    assert propagate(UserItems.of(only_seed), np.array([True, False]), 1).tolist() == [0.5, 0.5]
    alone = Interactions(np.array([0, 1]), np.array([0, 1]), 2, 2)
    assert propagate(UserItems.of(alone), np.array([True, False]), 1).tolist() == [1.0, 0.0]


def test_damped_fap_has_a_fixed_point_below_one() -> None:
    found = propagate(six_by_five(), SEED_OF_SIX, 2000, damping=0.85)
    again = propagate(six_by_five(), SEED_OF_SIX, 4000, damping=0.85)
    np.testing.assert_allclose(found, again, atol=1e-12)
    assert (found[:5] < 0.9).all()
    assert (found[:5] > 0.1).all()


def test_fap_scores_a_log_as_if_the_known_fake_users_were_in_it() -> None:
    matrix = SIX_BY_FIVE
    first, second = log_of(matrix), log_of(matrix[:5])
    detector = FAP({"n_rounds": 2}).fit(first, SEED_OF_SIX, np.random.default_rng(0))
    expected = [0.221689, 0.230858, 0.313493, 0.400926, 0.337558]
    np.testing.assert_allclose(detector.scores(second), expected, atol=6e-7)
    with pytest.raises(ArgumentError, match="log must have ratings like the one"):
        detector.scores(log_of(matrix, clicks=True))
    wider = second.with_catalogue(9)
    np.testing.assert_allclose(detector.scores(wider), expected, atol=6e-7)


def test_fap_keeps_at_most_so_many_seeds() -> None:
    log, is_fake = attacked(clicks=True)
    detector = FAP({"max_seeds": 3}).fit(log, is_fake, np.random.default_rng(0))
    assert len(np.unique(detector._state()["user_ids"])) == 3
