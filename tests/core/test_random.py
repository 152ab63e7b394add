"""Counter-based draws: published values, a plain-integer twin, and independence of order and stream."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recattack_gym.core.random import (
    MAX_SEED,
    counter_integers,
    counter_normal,
    counter_permutation,
    counter_words,
    draw_seed,
    mix,
    torch_generator,
)

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def mix_plainly(z: int) -> int:
    """Steele, Lea, Flood (OOPSLA 2014), the finaliser of SplitMix64, on Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def word_plainly(seed: int, stream: int, counter: int) -> int:
    key = mix_plainly((seed + stream * GOLDEN) & MASK)
    return mix_plainly((key + (counter + 1) * GOLDEN) & MASK)


def test_the_mixing_function_gives_the_published_sequence_of_splitmix64() -> None:
    # The first outputs of SplitMix64 from seed 1234567, as its public test vectors list them.
    states = np.array([(1234567 + n * GOLDEN) & MASK for n in range(1, 6)], dtype=np.uint64)
    assert mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(
    st.integers(0, MAX_SEED - 1),
    st.integers(0, 2**40),
    st.lists(st.integers(0, 2**60), max_size=5),
)
def test_words_equal_their_plain_twin(seed: int, stream: int, counters: list[int]) -> None:
    words = counter_words(seed, stream, np.array(counters, dtype=np.int64))
    assert words.tolist() == [word_plainly(seed, stream, counter) for counter in counters]


@given(st.integers(0, MAX_SEED - 1), st.integers(1, 2**31))
def test_integers_equal_their_plain_twin_and_stay_below(seed: int, below: int) -> None:
    drawn = counter_integers(seed, 3, np.arange(4), below)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == [((word_plainly(seed, 3, c) >> 32) * below) >> 32 for c in range(4)]
    assert ((drawn >= 0) & (drawn < below)).all()


def test_draws_depend_on_the_counter_and_not_on_its_neighbours() -> None:
    whole = counter_integers(5, 1, np.arange(100), 1000)
    some = np.array([[70, 3], [3, 99]])
    np.testing.assert_array_equal(counter_integers(5, 1, some, 1000), whole[some])


def test_integers_are_uniform_and_streams_and_seeds_independent() -> None:
    n, below = 20_000, 10
    columns = [
        counter_integers(seed, stream, np.arange(n), below)
        for seed, stream in ((1, 1), (1, 2), (2, 1), (1, 1 << 32))
    ]
    for column in columns:
        expected = n / below
        chi2 = ((np.bincount(column, minlength=below) - expected) ** 2 / expected).sum()
        assert chi2 < 30  # 9 degrees of freedom: p = 0.0004
    correlation = np.corrcoef(columns) - np.eye(4)
    assert np.abs(correlation).max() < 0.03  # four standard errors


def test_a_permutation_is_one_and_depends_on_seed_and_stream() -> None:
    orders = [counter_permutation(seed, stream, 50) for seed, stream in ((1, 1), (1, 2), (2, 1))]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
    assert len({order.tobytes() for order in orders}) == 3
    np.testing.assert_array_equal(counter_permutation(1, 1, 50), orders[0])
    assert counter_permutation(1, 1, 0).shape == (0,)


def test_normal_draws_have_the_moments_of_the_normal_distribution() -> None:
    x = counter_normal(4, 2, (200, 100)).astype(np.float64)
    assert counter_normal(4, 2, (200, 100)).dtype == np.float32
    assert np.isfinite(x).all()
    assert abs(x.mean()) < 4 / np.sqrt(x.size)
    assert abs(x.std() - 1) < 0.02
    assert abs((x**4).mean() - 3) < 0.25
    assert abs((np.abs(x) > 1.96).mean() - 0.05) < 0.01


def test_seeds_come_from_the_generator_and_fit_a_signed_word() -> None:
    seeds = [draw_seed(np.random.default_rng(s)) for s in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert all(0 <= seed < MAX_SEED for seed in seeds)


def test_torch_draws_follow_the_numpy_generator() -> None:
    torch = pytest.importorskip("torch")
    draws = [
        torch.rand(3, generator=torch_generator(np.random.default_rng(s))).tolist()
        for s in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
