"""Each feature against numbers worked out by hand and against a loop over users and items."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.core.attack import Direction
from recattack_gym.defenses import UserItems
from recattack_gym.defenses import features as f
from tests.defenses.cases import SIX_BY_FIVE, log_of, random_matrix, six_by_five

Feature = Callable[[UserItems], NDArray[np.float64]]
Profile = dict[int, float]

GOLDEN: dict[str, tuple[Feature, list[float]]] = {
    "rdma": (f.rdma, [0.090370, 0.133704, 0.136667, 0.240741, 0.339259, 0.204444]),
    "wdma": (f.wdma, [0.023012, 0.035846, 0.031500, 0.066358, 0.102420, 0.066815]),
    "wda": (f.wda, [0.271111, 0.401111, 0.410000, 0.722222, 1.017778, 0.817778]),
    "length_var": (f.length_var, [0.2, 0.2, 0.2, 0.2, 0.2, 1.0]),
    "deg_sim": (lambda p: f.deg_sim(p, 2), [1, 1, 1, 0, 1, 1]),
    "entropy": (f.entropy, [1.584963, 1.584963, 1.584963, 0.918296, 1.584963, 1.5]),
    "unrap": (f.unrap, [0.093889, 0.094286, 0.520000, 0.875000, 1.631111, 1.648889]),
    "mud": (f.popularity, [4, 4, 4.333333, 3.666667, 3.666667, 4]),
    "rud": (lambda p: f.popularity(p, "range"), [2, 2, 1, 1, 2, 2]),
    "qud": (lambda p: f.popularity(p, "quartile"), [3, 3, 4, 3, 3, 3]),
    "push fmtd": (lambda p: f.fmtd(p, "push"), [3, 0, 1.5, 0, 0, 1.666667]),
    "push mean_var": (
        lambda p: f.mean_var(p, "push"),
        [0.055556, 0.383704, 0.5, 0.814815, 1.554074, 0.013333],
    ),
    "push tmf": (lambda p: f.tmf(p, "push"), [0.666667, 0, 0.666667, 0, 0, 0.333333]),
    "nuke fmtd": (lambda p: f.fmtd(p, "nuke"), [3, 2, 0, 0, 1.5, 0]),
    "nuke mean_var": (
        lambda p: f.mean_var(p, "nuke"),
        [0.32, 0.52, 0.546667, 0.814815, 0.942222, 1.371111],
    ),
    "nuke tmf": (lambda p: f.tmf(p, "nuke"), [0.666667, 0.666667, 0, 0, 0.333333, 0]),
}
"""shared/specs/tutorial_systems.md, L.1; `push fmtd` of user 0 by hand: |5 - (3 + 1) / 2| = 3."""


@pytest.mark.parametrize("name", GOLDEN)
def test_feature_of_the_six_by_five_matrix(name: str) -> None:
    function, expected = GOLDEN[name]
    np.testing.assert_allclose(function(six_by_five()), expected, atol=6e-7)


def test_pairs_of_the_six_by_five_matrix() -> None:
    pairs = six_by_five()
    assert pairs.lengths.tolist() == [3, 3, 3, 3, 3, 4]
    assert pairs.n_raters.tolist() == [5, 4, 4, 3, 3]
    np.testing.assert_allclose(pairs.item_means, [4.2, 3, 3, 4 / 3, 8 / 3])
    assert pairs.given.mean() == 3.0
    assert pairs.given.std() == pytest.approx(1.297771, abs=1e-6)
    assert np.array_equal(pairs.matrix(pairs.given).toarray(), SIX_BY_FIVE)


def test_pop_sad_histograms_of_the_six_by_five_matrix() -> None:
    pairs = six_by_five()
    width = f.popularity(pairs)[:5].min()
    edges = f.pop_sad_edges(width, pairs.n_raters.max())
    np.testing.assert_allclose(edges, np.array([0, 11 / 3, 5]))
    third = 1 / 3
    expected = np.array([third, third, 0.0, third, 1 - third, 0.25])
    found = f.popularity_histogram(pairs, edges)
    np.testing.assert_allclose(found, np.stack([expected, 1 - expected], axis=1), atol=1e-12)


# -- loops ----------------------------------------------------------------------------------------


class Loop:
    """The obvious way: one dictionary per user."""

    def __init__(self, matrix: NDArray[np.int64]) -> None:
        self.users: list[Profile] = [
            {i: float(r) for i, r in enumerate(row) if r} for row in matrix
        ]
        raters: dict[int, list[float]] = {i: [] for i in range(matrix.shape[1])}
        for user in self.users:
            for i, r in user.items():
                raters[i].append(r)
        self.count = {i: len(given) for i, given in raters.items()}
        self.mean = {i: sum(given) / len(given) if given else 0.0 for i, given in raters.items()}
        self.all = [r for user in self.users for r in user.values()]

    def each(self, function: Callable[[Profile], float]) -> list[float]:
        return [function(user) if user else 0.0 for user in self.users]

    def parts(self, user: Profile, direction: Direction) -> tuple[Profile, Profile]:
        extreme = max(self.all) if direction == "push" else min(self.all)
        target = {i: r for i, r in user.items() if r == extreme}
        return target, {i: r for i, r in user.items() if i not in target}


def mean(values: Iterator[float] | list[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def loop_rdma(loop: Loop, user: Profile, power: int) -> float:
    return mean(abs(r - loop.mean[i]) / loop.count[i] ** power for i, r in user.items())


def loop_unrap(loop: Loop, user: Profile) -> float:
    own, overall = mean(iter(user.values())), mean(loop.all)
    top = sum((r - loop.mean[i] - own + overall) ** 2 for i, r in user.items())
    bottom = sum((r - own) ** 2 for r in user.values())
    return top / bottom if bottom else 0.0


def loop_entropy(user: Profile) -> float:
    values = list(user.values())
    shares = [values.count(v) / len(values) for v in set(values)]
    return -sum(p * math.log2(p) for p in shares)


def loop_fmtd(loop: Loop, user: Profile, direction: Direction) -> float:
    target, rest = loop.parts(user, direction)
    if not target or not rest:
        return 0.0
    return abs(mean(iter(target.values())) - mean(iter(rest.values())))


def loop_fac(loop: Loop, user: Profile, direction: Direction) -> float:
    rest = loop.parts(user, direction)[1]
    x, y = list(rest.values()), [loop.mean[i] for i in rest]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def loop_tmf(loop: Loop, user: Profile, direction: Direction) -> float:
    parts = [loop.parts(other, direction)[0] for other in loop.users]
    total = sum(len(part) for part in parts)
    own = loop.parts(user, direction)[0]
    return max((sum(i in part for part in parts) / total for i in own), default=0.0)


def loop_similarity(a: Profile, b: Profile, significance: int | None, least: int) -> float:
    shared = sorted(set(a) & set(b))
    x, y = [a[i] for i in shared], [b[i] for i in shared]
    if len(shared) < least or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    weight = 1.0 if significance is None else min(len(shared), significance) / significance
    return float(np.corrcoef(x, y)[0, 1]) * weight


def loop_deg_sim(
    loop: Loop, user: Profile, k: int, significance: int | None, least: int = 2
) -> float:
    others = [other for other in loop.users if other is not user]
    similarities = sorted(loop_similarity(user, other, significance, least) for other in others)
    return mean(similarities[-k:])


@pytest.mark.parametrize("seed", range(4))
def test_every_feature_equals_its_loop(seed: int) -> None:
    matrix = random_matrix(seed)
    pairs, loop = UserItems.of(log_of(matrix)), Loop(matrix)
    n_mean = mean([float(len(user)) for user in loop.users])
    spread = sum((len(user) - n_mean) ** 2 for user in loop.users)
    expected: list[tuple[NDArray[np.float64], Callable[[Profile], float]]] = [
        (f.rdma(pairs), lambda u: loop_rdma(loop, u, 1)),
        (f.wdma(pairs), lambda u: loop_rdma(loop, u, 2)),
        (f.wda(pairs), lambda u: len(u) * loop_rdma(loop, u, 1)),
        (f.length_var(pairs), lambda u: abs(len(u) - n_mean) / spread),
        (f.unrap(pairs), lambda u: loop_unrap(loop, u)),
        (f.entropy(pairs), loop_entropy),
        (f.popularity(pairs), lambda u: mean(float(loop.count[i]) for i in u)),
        (
            f.popularity(pairs, "range"),
            lambda u: max(loop.count[i] for i in u) - min(loop.count[i] for i in u),
        ),
        (
            f.popularity(pairs, "quartile"),
            lambda u: sorted(loop.count[i] for i in u)[(len(u) - 1) // 4],
        ),
        (f.deg_sim(pairs, 5), lambda u: loop_deg_sim(loop, u, 5, None)),
        (f.deg_sim(pairs, 5, significance=6), lambda u: loop_deg_sim(loop, u, 5, 6)),
        (f.deg_sim(pairs, 5, min_common=4), lambda u: loop_deg_sim(loop, u, 5, None, 4)),
        (f.deg_sim(pairs, 99), lambda u: loop_deg_sim(loop, u, 99, None)),
    ]
    for direction in ("push", "nuke"):
        d: Direction = direction
        expected += [
            (f.fmtd(pairs, d), lambda u, d=d: loop_fmtd(loop, u, d)),  # type: ignore[misc]
            (
                f.mean_var(pairs, d),
                lambda u, d=d: mean(  # type: ignore[misc]
                    (r - loop.mean[i]) ** 2 for i, r in loop.parts(u, d)[1].items()
                ),
            ),
            (
                f.fmd(pairs, d),
                lambda u, d=d: mean(  # type: ignore[misc]
                    abs(r - loop.mean[i]) for i, r in loop.parts(u, d)[1].items()
                ),
            ),
            (f.fac(pairs, d), lambda u, d=d: loop_fac(loop, u, d)),  # type: ignore[misc]
            (f.tmf(pairs, d), lambda u, d=d: loop_tmf(loop, u, d)),  # type: ignore[misc]
        ]
    for number, (found, function) in enumerate(expected):
        np.testing.assert_allclose(found, loop.each(function), atol=1e-9, err_msg=str(number))


def test_blocks_of_users_give_the_same_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = UserItems.of(log_of(random_matrix(0)))
    whole = f.deg_sim(pairs, 3)
    monkeypatch.setattr(f, "_BLOCK_CELLS", 5 * pairs.n_users)
    np.testing.assert_allclose(f.deg_sim(pairs, 3), whole, atol=1e-12)


def test_similarity_of_clicks_is_the_cosine_of_the_sets() -> None:
    # u0 and u1 share {1, 2}: 2 / sqrt(3 * 2); u0 and u2 share {0}: 1 / sqrt(3); u1 and u2 nothing
    log = Interactions(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 1, 2, 0]), 3, 3)
    first, second = 2 / math.sqrt(6), 1 / math.sqrt(3)
    np.testing.assert_allclose(f.deg_sim(UserItems.of(log), 1), [first, first, second])
    half = [(first + second) / 2, first / 2, second / 2]
    np.testing.assert_allclose(f.deg_sim(UserItems.of(log), 2), half)


def test_of_clicks_every_item_may_be_the_target() -> None:
    # item 0 has two of four clicks, items 1 and 2 one each
    log = Interactions(np.array([0, 0, 1, 2]), np.array([0, 1, 0, 2]), 3, 3)
    pairs = UserItems.of(log)
    assert f.tmf(pairs, "push").tolist() == [0.5, 0.5, 0.25]
    assert f.tmf(pairs, "nuke").tolist() == [0, 0, 0]


def test_the_last_rating_of_an_item_counts_and_repeated_clicks_count_once() -> None:
    users, items = np.array([0, 0, 0, 1]), np.array([2, 1, 2, 2])
    log = Interactions(users, items, 3, 4, ratings=np.array([1.0, 3.0, 5.0, 2.0]))
    pairs = UserItems.of(log)
    assert pairs.matrix(pairs.given).toarray().tolist() == [[0, 3, 5, 0], [0, 0, 2, 0], [0] * 4]
    assert pairs.n_raters.tolist() == [0, 1, 2, 0]


def test_features_of_ratings_refuse_clicks() -> None:
    pairs = UserItems.of(log_of(SIX_BY_FIVE, clicks=True))
    for feature in (f.rdma, f.entropy, f.unrap):
        with pytest.raises(ArgumentError, match="pairs must have ratings, got clicks"):
            feature(pairs)


def test_a_user_without_items_has_zeros() -> None:
    matrix = np.concatenate([SIX_BY_FIVE, np.zeros((1, 5), dtype=np.int64)])
    pairs = UserItems.of(log_of(matrix))
    for name, (feature, _) in GOLDEN.items():
        if name != "length_var":  # whose mean it changes
            assert feature(pairs)[6] == 0, name
