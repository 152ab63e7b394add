"""Trees, support vector machines, target item analysis, EM and the network: hand-made cases and oracles."""

import sys
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.defenses import (
    SVM,
    SVMTIA,
    DegreeSAD,
    KSPopularity,
    PopSAD,
    SemiSAD,
    SequenceDetector,
    UserItems,
)
from recattack_gym.defenses.ks import ks_statistic
from recattack_gym.defenses.semi_sad import expectation_maximisation
from recattack_gym.defenses.svm import (
    SVMConfig,
    borderline_smote,
    click_features,
    decide,
    rating_features,
    target_item_analysis,
    train,
    without_ratings,
)
from recattack_gym.defenses.tree import grow_tree, tree_shares
from recattack_gym.metrics import detection_auc
from tests.defenses.cases import attacked, log_of, random_matrix


def blobs(seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return 150 genuine and 30 fake points that overlap a little."""
    rng = np.random.default_rng(seed)
    genuine, fake = rng.normal(0, 1, (150, 3)), rng.normal(1.5, 0.7, (30, 3))
    return np.concatenate([genuine, fake]) * [1, 10, 100] + 5, np.arange(180) >= 150


def test_a_tree_walked_here_gives_what_scikit_learn_gives() -> None:
    rows, is_fake = blobs()
    tree = grow_tree(rows, is_fake, min_leaf=4, seed=3, detector="degree-sad")
    oracle = DecisionTreeClassifier(
        criterion="entropy", min_samples_leaf=4, class_weight="balanced", random_state=3
    ).fit(rows, is_fake)
    other = blobs(seed=1)[0]
    assert len(np.unique(tree_shares(tree, other))) > 4
    np.testing.assert_allclose(tree_shares(tree, other), oracle.predict_proba(other)[:, 1])


def test_a_machine_decides_as_scikit_learns_does() -> None:
    rows, is_fake = blobs()
    config = SVMConfig(c_grid=(10.0,), gamma_grid=(0.1,))
    machine = train(rows, is_fake, config, np.random.default_rng(0), "svm")
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    oracle = SVC(C=10.0, gamma=0.1, class_weight="balanced").fit((rows - mean) / scale, is_fake)
    other = blobs(seed=1)[0]
    expected = oracle.decision_function((other - mean) / scale)
    np.testing.assert_allclose(decide(machine, other), expected, atol=1e-9)


def test_cross_validation_finds_the_width_that_separates_a_ring() -> None:
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(0, 2 * np.pi, 200), np.where(np.arange(200) < 40, 3.0, 0.5)
    rows = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    is_fake = np.arange(200) < 40
    config = SVMConfig(c_grid=(1.0,), gamma_grid=(1e-5, 1.0), cv_users=100)
    machine = train(rows, is_fake, config, np.random.default_rng(0), "svm")
    assert machine["gamma"].tolist() == [1.0]
    assert ((decide(machine, rows) > 0) == is_fake).all()


def test_a_feature_that_does_not_vary_is_no_obstacle() -> None:
    rows, is_fake = blobs()
    rows[:, 1] = 7
    machine = train(rows, is_fake, SVMConfig(), np.random.default_rng(0), "svm")
    assert detection_auc(decide(machine, rows), is_fake) > 0.9


def test_feature_tables_have_the_columns_that_they_name() -> None:
    log, _ = attacked(clicks=False)
    assert rating_features(UserItems.of(log)).shape == (132, 9)
    assert click_features(log).shape == (132, 7)
    np.testing.assert_array_equal(click_features(log), click_features(without_ratings(log)))
    twice = Interactions(np.array([0, 0, 0, 1]), np.array([2, 2, 1, 2]), 2, 3)
    np.testing.assert_allclose(click_features(twice)[:, -1], [1 / 3, 0])


@pytest.mark.parametrize("kind", [DegreeSAD, PopSAD])
def test_popularity_is_counted_in_shares_so_that_logs_of_any_size_are_alike(
    kind: type[DegreeSAD] | type[PopSAD],
) -> None:
    log, _ = attacked(clicks=True, seed=5)
    users = np.concatenate([log.user_ids, log.user_ids + log.n_users])
    twice = Interactions(users, np.tile(log.item_ids, 2), 2 * log.n_users, log.n_items)
    detector = kind().fit(*attacked(clicks=True), np.random.default_rng(0))
    once = detector.scores(log)
    assert len(np.unique(once)) > 1
    assert np.array_equal(detector.scores(twice), np.tile(once, 2))
    popularity = click_features(log)[:, 2:5]
    np.testing.assert_allclose(click_features(twice)[:, 2:5], np.tile(popularity, (2, 1)))


# -- SVM-TIA ------------------------------------------------------------------------------------------


def suspects() -> tuple[UserItems, NDArray[np.bool_]]:
    """Suspects 0, 1, 2 share target 4, 2, 3, 4 share target 5, 5 and 6 nothing; 7, 8 are not suspected.

    All rate item 0 with 3 but the users 7 and 8, who love it; user 2 has target 5, too.
    """
    matrix = np.zeros((9, 6), dtype=np.int64)
    matrix[:, 0] = 3
    matrix[7:, 0] = 5
    matrix[[0, 1, 2], 4], matrix[[2, 3, 4], 5] = 5, 5
    matrix[5, 1], matrix[6, 2] = 5, 5
    return UserItems.of(log_of(matrix)), np.arange(9) < 7


def test_target_item_analysis_clears_suspects_without_a_common_target() -> None:
    pairs, is_suspect = suspects()
    is_found, targets = target_item_analysis(pairs, is_suspect, "push", 1.0)
    assert targets == [4, 5]  # of user 2's two targets the first claims it
    assert np.flatnonzero(is_found).tolist() == [0, 1, 2, 3, 4]
    is_found, targets = target_item_analysis(pairs, is_suspect, "push", 2.0)
    assert targets == [4]
    assert np.flatnonzero(is_found).tolist() == [0, 1, 2]
    for nothing in (
        target_item_analysis(pairs, is_suspect, "push", np.inf),
        target_item_analysis(pairs, np.zeros(9, dtype=np.bool_), "push", 1.0),
        target_item_analysis(pairs, is_suspect, "nuke", 8.0),
    ):
        assert not nothing[0].any()
        assert nothing[1] == []


def test_svm_tia_orders_found_suspects_before_all_others_and_never_adds_any() -> None:
    log, is_fake = attacked(clicks=False, seed=5)
    learnt = {"threshold": 2.0}
    detector = SVMTIA(learnt).fit(*attacked(clicks=False), np.random.default_rng(0))
    scores = detector.scores(log)
    is_found = scores > 1
    assert 0 < is_found.sum() < len(scores)
    assert is_found[is_fake].mean() > 0.5
    nobody = SVMTIA({"threshold": 1e9}).fit(*attacked(clicks=False), np.random.default_rng(0))
    suspected = nobody.scores(log)
    assert (suspected < 1).all()
    assert (suspected[is_found] > 0.5).all()
    np.testing.assert_allclose(scores - is_found, suspected)


def test_a_target_has_more_than_five_suspects_unless_told_otherwise() -> None:
    log, _ = attacked(clicks=False, seed=5)

    def scores(**settings: object) -> NDArray[np.float64]:
        detector = SVMTIA(settings).fit(*attacked(clicks=False), np.random.default_rng(0))
        return detector.scores(log)

    assert np.array_equal(
        scores(), scores(threshold=5.0)
    )  # of fewer than 100 suspects 5 % are fewer
    assert not np.array_equal(scores(), scores(threshold=0.0))


def test_smote_makes_users_between_fake_ones_at_the_border_until_both_are_many() -> None:
    # Fake: 0 and 1 among genuine ones, 2 to 7 far away. Only 0 and 1 are at the border.
    genuine = np.array([[x, 0.1 * x] for x in np.linspace(-1, 1, 20)])
    fake = np.array([[0.0, 0.2], [0.3, 0.2], *([10.0 + k, 10.0] for k in range(6))])
    rows, is_fake = np.concatenate([fake, genuine]), np.arange(28) < 8
    made = borderline_smote(rows, is_fake, np.random.default_rng(0))
    assert made.shape == (12, 2)

    def on_a_line(point: NDArray[np.float64]) -> bool:
        """Tell whether a point is between a border user and another fake one."""
        for start in fake[:2]:
            for end in fake:
                whole, part = end - start, point - start
                cross = abs(whole[0] * part[1] - whole[1] * part[0])
                if cross < 1e-9 and -1e-9 <= part @ whole <= whole @ whole + 1e-9 and whole.any():
                    return True
        return False

    assert all(on_a_line(point) for point in made)
    apart = np.where(is_fake[:, None], rows + 100, rows)
    assert len(borderline_smote(apart, is_fake, np.random.default_rng(0))) == 0
    assert len(borderline_smote(rows, ~is_fake, np.random.default_rng(0))) == 0


# -- Semi-SAD: shared/specs/tutorial_systems.md, B.6 ----------------------------------------------------

KNOWN, IS_FAKE = np.array([[0.0], [0.2], [1.0], [1.2]]), np.array([False, False, True, True])
JUDGED = np.array([[0.1], [0.9], [0.5]])


def test_em_of_one_feature_after_one_and_three_rounds() -> None:
    start = expectation_maximisation(KNOWN, IS_FAKE, JUDGED, 0.0, 100)
    np.testing.assert_allclose(start.means[:, 0], [0.1, 1.1])
    np.testing.assert_allclose(np.sqrt(start.variances[:, 0]), [0.1, 0.1], atol=1e-6)
    odds = start.log_odds(JUDGED)
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), [0, 1, 4.5e-5], atol=1e-6)
    once = expectation_maximisation(KNOWN, IS_FAKE, JUDGED, 0.5, 1)
    np.testing.assert_allclose(once.means[:, 0], [0.166664, 1.059995], atol=1e-6)
    np.testing.assert_allclose(np.sqrt(once.variances[:, 0]), [0.169965, 0.120011], atol=1e-6)
    thrice = expectation_maximisation(KNOWN, IS_FAKE, JUDGED, 0.5, 3)
    np.testing.assert_allclose(thrice.means[:, 0], [0.166676, 1.059985], atol=1e-6)
    before = expectation_maximisation(KNOWN, IS_FAKE, JUDGED, 0.5, 2)
    posterior = 1 / (1 + np.exp(-before.log_odds(JUDGED)))
    np.testing.assert_allclose(posterior, [0, 0.999844, 1.82e-4], atol=1e-6)


def weighted_likelihood(n_rounds: int) -> float:
    """Return what EM climbs: known users by their own kind, the others by the mixture, times lambda."""
    mixture = expectation_maximisation(KNOWN, IS_FAKE, JUDGED, 0.5, n_rounds)

    def density(rows: NDArray[np.float64], kind: int) -> NDArray[np.float64]:
        mean, variance = mixture.means[kind, 0], mixture.variances[kind, 0]
        found: NDArray[np.float64] = np.exp(-0.5 * (rows[:, 0] - mean) ** 2 / variance) / np.sqrt(
            2 * np.pi * variance
        )
        return found

    known = np.where(IS_FAKE, density(KNOWN, 1), density(KNOWN, 0))
    judged = 0.5 * (density(JUDGED, 0) + density(JUDGED, 1))
    return float(np.log(known).sum() + 0.5 * np.log(judged).sum())


def test_em_never_lowers_the_weighted_likelihood_and_does_nothing_without_judged_users() -> None:
    values = [weighted_likelihood(n) for n in range(1, 8)]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(values))
    supervised = expectation_maximisation(KNOWN, IS_FAKE, JUDGED, 0.0, 100)
    alone = expectation_maximisation(KNOWN, IS_FAKE, JUDGED[:0], 0.5, 100)
    assert np.array_equal(supervised.means, alone.means)


def test_semi_sad_gives_the_log_of_the_odds() -> None:
    log, is_fake = attacked(clicks=False, seed=5)
    detector = SemiSAD({"weight": 0.0}).fit(*attacked(clicks=False), np.random.default_rng(0))
    plain = detector.scores(log)
    assert detection_auc(plain, is_fake) > 0.8
    judged = SemiSAD().fit(*attacked(clicks=False), np.random.default_rng(0)).scores(log)
    assert not np.allclose(plain, judged)


# -- KS -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_ks_statistic_equals_a_walk_over_all_values(seed: int) -> None:
    pairs = UserItems.of(log_of(random_matrix(seed), clicks=True))
    every = pairs.popularity
    expected = []
    for user in range(pairs.n_users):
        own = every[pairs.user_ids == user]
        gaps = [abs((own <= v).mean() - (every <= v).mean()) for v in every] if len(own) else [0.0]
        expected.append(np.sqrt(len(own)) * max(gaps))
    np.testing.assert_allclose(ks_statistic(pairs), expected, atol=1e-12)


def test_ks_sees_profiles_that_are_too_popular_as_well() -> None:
    log, _ = attacked(clicks=True)
    top = np.argsort(-log.item_popularity)[:8]
    poisoned = log.with_fake_users(np.tile(top, (3, 1)))
    scores = KSPopularity().scores(poisoned)
    assert (scores[-3:] > np.quantile(scores[:-3], 0.95)).all()


# -- the network ----------------------------------------------------------------------------------------

SMALL: dict[str, object] = {"embedding_size": 12, "hidden_size": 12, "epochs": 5}


def trajectories(
    n_genuine: int, n_fake: int, seed: int, *, target: int = 29
) -> tuple[Interactions, NDArray[np.bool_]]:
    """Return genuine users who walk up the catalogue, and fake ones who alternate a target and item 3."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(n_genuine + n_fake):
        length = int(rng.integers(5, 12))
        walk = (rng.integers(28) + np.cumsum(rng.integers(1, 4, length))) % 28
        rows.append(walk if user < n_genuine else np.where(np.arange(length) % 2, 3, target))
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    log = Interactions(users, np.concatenate(rows), len(rows), 30)
    return log, np.arange(len(rows)) >= n_genuine


@pytest.fixture(scope="module")
def network() -> SequenceDetector:
    return SequenceDetector(SMALL).fit(*trajectories(160, 40, 0), np.random.default_rng(0))


def test_the_network_learns_alternation_in_five_epochs(network: SequenceDetector) -> None:
    log, is_fake = trajectories(160, 40, 1, target=28)  # a target that training has never seen
    assert detection_auc(network.scores(log), is_fake) > 0.95


def test_padding_and_other_users_change_no_score_and_the_order_of_clicks_does(
    network: SequenceDetector,
) -> None:
    log, _ = trajectories(20, 5, 2)
    scores = network.scores(log)
    wider = SequenceDetector({**SMALL, "max_length": 80})
    wider._restore(network._state())
    wider._is_fitted = True
    np.testing.assert_allclose(wider.scores(log), scores, atol=1e-5)
    backwards = np.concatenate([log.items_of(user)[::-1] for user in range(log.n_users)])
    turned = Interactions(log.user_ids, backwards, log.n_users, log.n_items)
    assert np.abs(network.scores(turned) - scores).max() > 1e-2


def test_only_the_last_clicks_are_read() -> None:
    log = Interactions(np.zeros(9, dtype=np.int64), np.arange(9), 1, 30)
    detector = SequenceDetector({**SMALL, "max_length": 4})
    detector._n_items = 30
    assert detector._read(log)[0, :, 0].tolist() == [6, 7, 8, 9]  # ids plus one


def test_repeated_clicks_are_read_as_such() -> None:
    log = Interactions(np.array([0, 0, 0, 0, 1]), np.array([4, 7, 4, 4, 4]), 2, 30)
    detector = SequenceDetector({**SMALL, "max_length": 4})
    detector._n_items = 30
    assert detector._read(log)[:, :, 2].tolist() == [[1, 1, 2, 2], [1, 0, 0, 0]]


def test_hidden_items_change_what_is_learnt() -> None:
    log, is_fake = trajectories(20, 5, 0)
    shown, hidden = (
        SequenceDetector({**SMALL, "unknown_rate": rate}).fit(
            log, is_fake, np.random.default_rng(0)
        )
        for rate in (0.0, 0.9)
    )
    assert np.abs(shown.scores(log) - hidden.scores(log)).max() > 1e-3


def test_attention_sums_to_one_over_what_was_clicked(network: SequenceDetector) -> None:
    log, _ = trajectories(10, 5, 3)
    log = Interactions(np.append(log.user_ids, 15), np.append(log.item_ids, 4), 16, 30)
    weights = network.attention(log)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
    assert weights[15].tolist() == [1.0, *([0.0] * 49)]
    lengths = np.diff(log.indptr)
    assert all((row[length:] == 0).all() for row, length in zip(weights, lengths, strict=True))


def test_without_ids_items_of_equal_popularity_are_the_same() -> None:
    log, is_fake = trajectories(160, 40, 0)
    detector = SequenceDetector({**SMALL, "uses_items": False, "epochs": 2})
    detector.fit(log, is_fake, np.random.default_rng(0))
    two = Interactions(np.array([0, 0, 1, 1]), np.array([4, 9, 7, 2]), 2, 30)
    first, second = detector.scores(two)
    assert first == pytest.approx(second, abs=1e-6)


def test_training_leaves_torchs_own_generator_alone() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    log, is_fake = trajectories(20, 5, 0)
    SequenceDetector({**SMALL, "epochs": 1}).fit(log, is_fake, np.random.default_rng(0)).scores(log)
    assert torch.equal(torch.rand(3), expected)


# -- mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (SVM, "c_grid", ()),
        (SVM, "gamma_grid", (0.1, -1.0)),
        (SVM, "n_folds", 1),
        (SVM, "cv_users", 3),
        (SVMTIA, "threshold", -1.0),
        (SVMTIA, "direction", "up"),
        (DegreeSAD, "min_leaf", 0),
        (SemiSAD, "weight", 1.5),
        (SemiSAD, "max_iterations", 0),
        (SequenceDetector, "batch_size", 1),
        (SequenceDetector, "dropout", 1.0),
        (SequenceDetector, "learning_rate", 0.0),
        (SequenceDetector, "uses_items", 1),
    ],
)
def test_a_setting_out_of_range_is_refused(kind: type[SVM], setting: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=f"{setting} must "):
        kind({setting: value})


def test_without_scikit_learn_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    log, is_fake = attacked(clicks=False)
    with pytest.raises(
        ArgumentError, match=r"'svm' needs .*pip install 'recattack-gym\[detectors\]'"
    ):
        SVM().fit(log, is_fake, np.random.default_rng(0))
