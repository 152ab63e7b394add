"""Threads over poison sets: each set exactly once, errors are not lost, BLAS is held and let go."""

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from recattack_gym.core import ArgumentError
from recattack_gym.core.parallel import n_threads, over_sets


@pytest.mark.parametrize("threads", ["1", "2", "3", "64"])
@pytest.mark.parametrize("n_sets", [0, 1, 2, 7])
def test_every_set_is_worked_on_exactly_once(
    monkeypatch: pytest.MonkeyPatch, threads: str, n_sets: int
) -> None:
    monkeypatch.setenv("RECATTACK_NUM_THREADS", threads)
    done = np.zeros(n_sets, dtype=np.int64)
    numbers: list[int] = []

    def work(thread: int, sets: range) -> None:
        numbers.append(thread)
        for m in sets:
            done[m] += 1

    over_sets(n_sets, work)
    assert done.tolist() == [1] * n_sets
    assert sorted(numbers) == list(range(max(1, min(int(threads), n_sets))))


def test_threads_really_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECATTACK_NUM_THREADS", "2")
    meeting = threading.Barrier(2, timeout=20)

    def work(thread: int, sets: range) -> None:
        assert (thread, len(sets)) in {(0, 1), (1, 1)}
        meeting.wait()

    over_sets(2, work)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_an_error_of_one_thread_is_raised_here_after_the_others_have_ended(
    monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    monkeypatch.setenv("RECATTACK_NUM_THREADS", threads)
    ended = []

    def work(thread: int, sets: range) -> None:
        if thread == 0:
            raise ZeroDivisionError(f"set {sets[0]}")
        time.sleep(0.05)
        ended.append(thread)

    with pytest.raises(ZeroDivisionError, match="set 0"):
        over_sets(3, work)
    assert len(ended) == int(threads) - 1


def test_blas_is_held_to_one_thread_only_meanwhile() -> None:
    def blas_threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    inside: list[int] = []
    with threadpool_limits(2, user_api="blas"):
        over_sets(1, lambda *_: inside.extend(blas_threads()))
        after = blas_threads()
    assert set(inside) == {1}
    assert set(after) == {2}


def test_the_number_of_threads_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECATTACK_NUM_THREADS", "5")
    assert n_threads() == 5
    monkeypatch.delenv("RECATTACK_NUM_THREADS")
    assert n_threads() >= 1


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_threads_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("RECATTACK_NUM_THREADS", wrong)
    with pytest.raises(ArgumentError, match="RECATTACK_NUM_THREADS must be a whole number >= 1"):
        n_threads()
