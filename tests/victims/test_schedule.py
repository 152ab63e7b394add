"""The fine-tuning schedule against a twin that draws one integer at a time, and its compiled form."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recattack_gym.core import Interactions
from recattack_gym.victims.kernels import fill_examples
from recattack_gym.victims.schedule import (
    MAX_TRIES,
    NEGATIVE,
    ORDER,
    REPLAY,
    UpdateSchedule,
    fake_share,
    make_schedule,
)

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
Example = tuple[int, int, list[int]]


def word(seed: int, stream: int, counter: int) -> int:
    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    key = mix((seed + stream * GOLDEN) & MASK)
    return mix((key + (counter + 1) * GOLDEN) & MASK)


def below(seed: int, stream: int, counter: int, n: int) -> int:
    return ((word(seed, stream, counter) >> 32) * n) >> 32


def examples_plainly(
    log: Interactions,
    profile: list[list[int]],
    *,
    seed: int,
    epochs: int,
    replay: float,
    n_negatives: int,
    n_genuine_negatives: int,
) -> list[Example]:
    """Write down every (user, item, negatives) in training order, one draw after another."""
    size = len(profile[0])
    fake = [(log.n_users + f, item) for f, row in enumerate(profile) for item in row]
    genuine = list(zip(log.user_ids.tolist(), log.item_ids.tolist(), strict=True))
    n_replayed = min(round(replay * len(fake)), len(genuine))
    examples: list[Example] = []
    for epoch in range(epochs):
        if n_replayed == len(genuine):
            replayed = genuine
        else:
            places = [epoch * n_replayed + r for r in range(n_replayed)]
            replayed = [genuine[below(seed, REPLAY, place, len(genuine))] for place in places]
        events = fake + replayed
        stream = (ORDER << 32) + epoch
        for e in sorted(range(len(events)), key=lambda e: word(seed, stream, e)):
            user, item = events[e]
            is_fake = e < len(fake)
            own = profile[e // size] if is_fake else log.items_of(user).tolist()
            n_allowed = n_genuine_negatives
            negatives = []
            for j in range(n_negatives):
                place = (len(examples) * n_negatives + j) * MAX_TRIES
                drawn = -1
                for attempt in range(MAX_TRIES):
                    drawn = below(seed, NEGATIVE, place + attempt, n_allowed)
                    if drawn not in own:
                        break
                negatives.append(drawn)
            examples.append((user, item, negatives))
    return examples


def filled_by_kernel(
    schedule: UpdateSchedule, profile: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    items, negatives = np.empty_like(schedule.item_ids), np.empty_like(schedule.negatives)
    fill_examples(
        schedule.clicks,
        schedule.item_ids,
        schedule.negatives,
        profile,
        schedule.seed,
        schedule.n_items,
        items,
        negatives,
    )
    return items, negatives


@pytest.fixture(scope="module")
def log() -> Interactions:
    """Four users on six items; user 3 has seen all but item 5, and item 5 is new."""
    users = np.array([0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 3])
    items = np.array([0, 1, 2, 2, 4, 3, 0, 1, 2, 3, 4])
    return Interactions(users, items, n_users=4, n_items=6)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    epochs=st.integers(0, 3),
    replay=st.sampled_from([0.0, 0.3, 1.0, 1.5, 50.0]),
    n_negatives=st.integers(0, 3),
    n_genuine_negatives=st.sampled_from([5, 6]),
)
def test_schedule_and_kernel_equal_the_plain_twin(
    log: Interactions,
    seed: int,
    shape: tuple[int, int],
    epochs: int,
    replay: float,
    n_negatives: int,
    n_genuine_negatives: int,
) -> None:
    profile = np.random.default_rng(seed).integers(0, 6, shape)
    schedule = make_schedule(
        log,
        shape,
        seed=seed,
        epochs=epochs,
        replay=replay,
        batch_size=4,
        n_negatives=n_negatives,
        n_genuine_negatives=n_genuine_negatives,
    )
    expected = examples_plainly(
        log,
        profile.tolist(),
        seed=seed,
        epochs=epochs,
        replay=replay,
        n_negatives=n_negatives,
        n_genuine_negatives=n_genuine_negatives,
    )
    users, items, negatives = schedule.examples(profile)
    assert users.tolist() == [user for user, _, _ in expected]
    assert items.tolist() == [item for _, item, _ in expected]
    assert negatives.tolist() == [drawn for _, _, drawn in expected]
    assert negatives.shape == (len(expected), n_negatives)
    kernel_items, kernel_negatives = filled_by_kernel(schedule, profile)
    np.testing.assert_array_equal(kernel_items, items)
    np.testing.assert_array_equal(kernel_negatives, negatives)


def test_batches_cover_each_epoch_and_never_cross_it(log: Interactions) -> None:
    schedule = make_schedule(
        log,
        (2, 3),
        seed=1,
        epochs=3,
        replay=0.5,
        batch_size=4,
        n_negatives=1,
        n_genuine_negatives=5,
    )
    # 6 fake + 3 replayed clicks per epoch: batches of 4, 4 and 1.
    assert np.diff(schedule.batch_indptr).tolist() == [4, 4, 1] * 3
    assert len(schedule.clicks) == schedule.batch_indptr[-1] == 27


def test_every_epoch_has_every_fake_click_once_and_fresh_replay(log: Interactions) -> None:
    schedule = make_schedule(
        log,
        (2, 3),
        seed=1,
        epochs=4,
        replay=1.0,
        batch_size=100,
        n_negatives=0,
        n_genuine_negatives=5,
    )
    replays = []
    for epoch in range(4):
        rows = slice(schedule.batch_indptr[epoch], schedule.batch_indptr[epoch + 1])
        clicks = schedule.clicks[rows]
        assert sorted(clicks[clicks >= 0].tolist()) == list(range(6))
        genuine = clicks < 0
        assert log.has(schedule.user_ids[rows][genuine], schedule.item_ids[rows][genuine]).all()
        replays.append(
            (schedule.user_ids[rows][genuine].tolist(), schedule.item_ids[rows][genuine].tolist())
        )
    assert len({str(replay) for replay in replays}) > 1


def test_replay_beyond_the_log_is_the_whole_log_once_per_epoch(log: Interactions) -> None:
    schedule = make_schedule(
        log,
        (1, 2),
        seed=1,
        epochs=2,
        replay=1000.0,
        batch_size=100,
        n_negatives=0,
        n_genuine_negatives=5,
    )
    genuine = schedule.clicks < 0
    pairs = zip(
        schedule.user_ids[genuine].tolist(), schedule.item_ids[genuine].tolist(), strict=True
    )
    whole = zip(log.user_ids.tolist(), log.item_ids.tolist(), strict=True)
    assert Counter(pairs) == {pair: 2 * n for pair, n in Counter(whole).items()}


def test_negatives_are_unseen_wherever_that_is_possible() -> None:
    log = Interactions(np.repeat([0, 1], 3), np.arange(6), n_users=2, n_items=60)
    profile = np.arange(20).reshape(2, 10)
    schedule = make_schedule(
        log,
        (2, 10),
        seed=3,
        epochs=20,
        replay=1.0,
        batch_size=64,
        n_negatives=3,
        n_genuine_negatives=50,
    )
    users, _, negatives = schedule.examples(profile)
    genuine = users < 2
    assert not log.has(users[genuine, None], negatives[genuine]).any()
    assert negatives[genuine].max() == 49
    own = profile[users[~genuine] - 2]
    assert not (negatives[~genuine][:, :, None] == own[:, None, :]).any()
    assert negatives[~genuine].max() == 49


def test_only_a_sets_own_clicks_differ_between_sets(log: Interactions) -> None:
    schedule = make_schedule(
        log,
        (2, 3),
        seed=1,
        epochs=2,
        replay=1.0,
        batch_size=5,
        n_negatives=2,
        n_genuine_negatives=5,
    )
    one = schedule.examples(np.zeros((2, 3), np.int64))
    two = schedule.examples(np.full((2, 3), 5))
    genuine = schedule.clicks < 0
    np.testing.assert_array_equal(one[0], two[0])
    for a, b in zip(one[1:], two[1:], strict=True):
        np.testing.assert_array_equal(a[genuine], b[genuine])
    assert (one[1][~genuine] != two[1][~genuine]).all()


def test_the_poison_decides_an_item_as_far_as_its_clicks_are_fake() -> None:
    log = Interactions(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]), n_users=3, n_items=4)
    share = fake_share(log, np.array([[1, 3], [3, 3]]))
    assert share.dtype == np.float32
    np.testing.assert_array_equal(share, np.array([0.0, 0.25, 0.0, 1.0], dtype=np.float32))
