"""The generator: sizes are exact, popularity is skewed, and there is something to learn."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recattack_gym.core.errors import ArgumentError
from recattack_gym.datasets import SyntheticConfig, generate, load
from recattack_gym.datasets.statistics import describe

GOLDEN_HASH = "31bc4bf1a0644458"
TINY = SyntheticConfig(n_users=50, n_items=60, n_events=600, n_topics=3)


def test_the_same_generator_state_gives_the_same_log() -> None:
    first = generate(TINY, np.random.default_rng(5)).log
    second = generate(TINY, np.random.default_rng(5)).log
    other = generate(TINY, np.random.default_rng(6)).log
    assert first.content_hash == second.content_hash
    assert first.content_hash != other.content_hash


def test_the_default_dataset_never_changes_unnoticed() -> None:
    """Published results depend on it: a new hash means a new version of every environment."""
    assert load("synthetic").log.content_hash.startswith(GOLDEN_HASH)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(2, 30),
    st.floats(0, 3),
    st.floats(0, 3),
    st.integers(0, 2**32),
)
def test_sizes_are_exact_and_no_user_clicks_an_item_twice(
    n_users: int, n_topics: int, per_topic: int, exponent: float, spread: float, seed: int
) -> None:
    n_items = n_topics * per_topic
    config = SyntheticConfig(
        n_users=n_users,
        n_items=n_items,
        n_events=n_users * (n_items // 2),
        min_events=1,
        n_topics=n_topics,
        zipf_exponent=exponent,
        spread=spread,
    )
    log = generate(config, np.random.default_rng(seed)).log
    assert (log.n_users, log.n_items, len(log)) == (n_users, n_items, config.n_events)
    assert len(log.seen[1]) == len(log)
    assert np.diff(log.indptr).min() >= 1


def test_activity_keeps_to_its_bounds() -> None:
    config = replace(TINY, min_events=7, max_events=15, spread=2.0)
    n_events = np.diff(generate(config, np.random.default_rng(0)).log.indptr)
    assert (n_events.min(), n_events.max()) == (7, 15)


def test_a_larger_exponent_makes_popularity_more_uneven() -> None:
    flat, steep = (
        describe(generate(replace(TINY, zipf_exponent=exponent), np.random.default_rng(0))).gini
        for exponent in (0.0, 2.0)
    )
    assert steep > flat + 0.1


def test_without_taste_and_order_nothing_beats_popularity() -> None:
    config = SyntheticConfig(explore_rate=1.0, follow_rate=0.0)
    row = describe(generate(config, np.random.default_rng(0)))
    assert row.hr_neighbours < 1.2 * row.hr_popularity
    assert row.hr_next_item < 1.2 * row.hr_popularity


def test_taste_and_order_each_give_a_ranker_something_to_learn() -> None:
    taste = SyntheticConfig(explore_rate=0.0, follow_rate=0.0)
    order = SyntheticConfig(explore_rate=0.5, follow_rate=0.5)
    row = describe(generate(taste, np.random.default_rng(0)))
    assert row.hr_neighbours > 1.5 * row.hr_popularity
    row = describe(generate(order, np.random.default_rng(0)))
    assert row.hr_next_item > 2 * row.hr_popularity


def test_on_the_default_dataset_personal_rankers_beat_popularity() -> None:
    row = describe(load("synthetic"))
    assert (row.n_users, row.n_items, row.n_events) == (1_000, 500, 30_000)
    assert row.hr_neighbours > 1.5 * row.hr_popularity
    assert row.hr_next_item > 1.5 * row.hr_popularity
    assert row.top_decile > 0.3


def test_the_default_dataset_takes_less_than_a_second() -> None:
    start = time.process_time()
    load("synthetic")
    assert time.process_time() - start < 1.0


def test_items_have_names() -> None:
    names = generate(TINY, np.random.default_rng(0)).item_names
    assert names is not None
    assert names[17] == "item 17"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_users": 0}, "n_users must be a whole number >= 1, got 0"),
        ({"n_items": 5}, "n_items must be a whole number >= 6, got 5"),
        ({"n_events": 10}, "n_events must lie between .* = 250 and .* = 1500, got 10"),
        ({"n_events": 1501}, "n_events must lie between .* got 1501"),
        ({"max_events": 3}, "max_events must be a whole number >= 5, got 3"),
        ({"taste": (0.5, 0.4)}, "taste must be shares that sum to 1"),
        ({"successors": ()}, "successors must be shares that sum to 1"),
        ({"explore_rate": 0.9}, "follow_rate must be a finite number"),
        ({"zipf_shift": -1.0}, "zipf_shift must be a finite number > -1"),
        ({"spread": float("nan")}, "spread must be a finite number"),
    ],
)
def test_a_wrong_configuration_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        replace(TINY, **changes)  # type: ignore[arg-type]  # the point of the test


def test_whole_numbers_do_for_real_parameters() -> None:
    whole = replace(TINY, zipf_exponent=1, zipf_shift=10, spread=1)
    real = replace(TINY, zipf_exponent=1.0, zipf_shift=10.0, spread=1.0)
    hashes = {generate(c, np.random.default_rng(0)).log.content_hash for c in (whole, real)}
    assert len(hashes) == 1


def test_the_generator_is_an_argument_of_the_right_type() -> None:
    with pytest.raises(ArgumentError, match=r"rng must be a numpy\.random.Generator"):
        generate(TINY, 7)  # type: ignore[arg-type]  # the point of the test


def test_chunks_of_users_join_into_one_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recattack_gym.datasets.synthetic.CHUNK_USERS", 7)
    log = generate(TINY, np.random.default_rng(0)).log
    assert len(log) == TINY.n_events
    assert len(log.seen[1]) == len(log)


@pytest.mark.slow
def test_a_hundred_thousand_users_need_little_time_and_memory() -> None:
    import tracemalloc

    config = SyntheticConfig(n_users=100_000, n_items=20_000, n_events=2_000_000, n_topics=100)
    tracemalloc.start()
    start = time.process_time()
    log = generate(config, np.random.default_rng(0)).log
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(log) == config.n_events
    assert seconds < 30
    assert peak < 400e6
