"""Distances of histograms and tests of groups of profiles: by hand, scipy as oracle, known blind spots."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.metrics import (
    holm,
    jensen_shannon,
    paired_t,
    stealth_tests,
    total_variation,
)

FIRST, SECOND = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])


def test_distances_of_two_histograms() -> None:
    """shared/specs/tutorial_systems.md, H.3."""
    assert total_variation(FIRST, SECOND) == pytest.approx(0.3)
    assert jensen_shannon(FIRST, SECOND) == pytest.approx(0.066414, abs=1e-6)
    assert jensen_shannon(FIRST, SECOND) / math.log(2) == pytest.approx(0.095816, abs=1e-6)
    assert total_variation(10 * FIRST, SECOND) == pytest.approx(0.3)
    apart = np.array([1.0, 0.0]), np.array([0.0, 3.0])
    assert total_variation(*apart) == 1.0
    assert jensen_shannon(*apart) == pytest.approx(math.log(2))
    assert jensen_shannon(FIRST, FIRST) == 0.0
    for distance in (total_variation, jensen_shannon):
        assert math.isnan(distance(FIRST, np.zeros(3)))
        with pytest.raises(ArgumentError, match="must be histograms over the same bins"):
            distance(FIRST, SECOND[:2])
        with pytest.raises(ArgumentError, match="must be histograms"):
            distance(FIRST, -SECOND)


def test_the_paired_t_test_is_scipys_and_has_limits() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(9), rng.random(9)
    assert paired_t(a, b) == pytest.approx(float(stats.ttest_rel(a, b).pvalue))
    assert paired_t(a, a) == 1.0
    assert paired_t(a + 2, a) == 0.0
    with pytest.raises(ArgumentError, match="at least two numbers"):
        paired_t(a[:1], b[:1])
    with pytest.raises(ArgumentError, match=r"must be pairs, .*got shapes \(9,\), \(1,\)"):
        paired_t(a, b[:1])


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .03, .04 times 4, 3, 2, 1: .04, .06, .06, .06 after taking running maxima
    given = np.array([0.03, 0.01, np.nan, 0.04, 0.02])
    np.testing.assert_allclose(holm(given), [0.06, 0.04, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1.0, 1.0])


def groups(popular: bool, seed: int = 0) -> tuple[Interactions, NDArray[np.bool_]]:
    """Return 200 genuine users who follow popularity and 200 fake ones of equal length, who may, too."""
    rng = np.random.default_rng(seed)
    weights = (1.0 + np.arange(20)) ** -1.0
    weights /= weights.sum()
    rows = [
        rng.choice(20, 6, replace=False, p=weights if user < 200 or popular else None)
        for user in range(400)
    ]
    users = np.repeat(np.arange(400), 6)
    return Interactions(users, np.concatenate(rows), 400, 20), np.arange(400) >= 200


def test_the_paper_s_test_is_blind_to_uniform_items_and_the_others_are_not() -> None:
    """B.14: equal lengths give t = 0 whoever the users are."""
    log, is_fake = groups(popular=False)
    found = stealth_tests(log, is_fake, np.random.default_rng(0))
    assert found.t_frequency > 0.999
    assert found.ks_length == 1.0
    assert found.ks_popularity < 1e-20
    assert found.welch_popularity < 1e-20
    assert found.chi_square == 1 / 200
    assert math.isnan(found.t_rating)
    assert found.corrected().ks_popularity == pytest.approx(5 * found.ks_popularity, rel=1.0)
    assert math.isnan(found.corrected().ks_rating)


def test_fake_users_who_follow_popularity_pass_all() -> None:
    p_values = []
    for seed in range(5):
        found = stealth_tests(*groups(popular=True, seed=seed), np.random.default_rng(0))
        p_values.append((found.chi_square, found.ks_popularity, found.welch_popularity))
    assert np.mean(np.array(p_values) > 0.05) > 0.8


def test_users_who_choose_alike_pass_where_hardly_anybody_shares_an_item() -> None:
    """Fake users are not in the counts; genuine ones must not be in their own."""
    rng = np.random.default_rng(0)
    users, items = np.repeat(np.arange(400), 6), rng.integers(3000, size=2400)
    log, is_fake = Interactions(users, items, 400, 3000), np.arange(400) >= 200
    found = stealth_tests(log, is_fake, rng, n_permutations=9)
    assert found.ks_popularity > 0.05
    assert found.welch_popularity > 0.05


def test_a_permutation_that_changes_nothing_counts_against_a_difference() -> None:
    log = Interactions(np.repeat(np.arange(8), 2), np.tile([0, 1], 8), 8, 2)
    assert stealth_tests(log, np.arange(8) >= 4, np.random.default_rng(0)).chi_square == 1.0


def test_ratings_and_lengths_are_seen() -> None:
    rng = np.random.default_rng(0)
    log, is_fake = groups(popular=True)
    ratings = rng.integers(1, 6, len(log)).astype(np.float64)
    rated = Interactions(log.user_ids, log.item_ids, 400, 20, ratings=ratings)
    alike = stealth_tests(rated, is_fake, rng, n_permutations=9)
    assert alike.t_rating > 0.01
    assert alike.ks_rating > 0.01
    high = np.where(is_fake[log.user_ids], 5.0, ratings)
    odd = stealth_tests(
        Interactions(log.user_ids, log.item_ids, 400, 20, ratings=high),
        is_fake,
        rng,
        n_permutations=9,
    )
    assert odd.t_rating < 1e-6
    assert odd.ks_rating < 1e-20
    shorter = log.select(~is_fake[log.user_ids] | (np.arange(len(log)) % 6 < 4))
    assert stealth_tests(shorter, is_fake, rng, n_permutations=9).ks_length < 1e-20
    assert stealth_tests(shorter, is_fake, rng, n_permutations=9).t_frequency < 0.05


def test_mistakes_are_named() -> None:
    log, is_fake = groups(popular=True)
    rng = np.random.default_rng(0)
    with pytest.raises(ArgumentError, match=r"is_fake must be a bool array of shape \(400,\)"):
        stealth_tests(log, is_fake[:5], rng)
    with pytest.raises(ArgumentError, match="is_fake must mark at least two users"):
        stealth_tests(log, np.arange(400) == 0, rng)
    with pytest.raises(ArgumentError, match="n_permutations must be"):
        stealth_tests(log, is_fake, rng, n_permutations=0)
