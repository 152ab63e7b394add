"""Interrupts are never lost."""

import ctypes
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from agents.interruption import raise_if_interrupted, remembering_interrupts

CALLBACK = ctypes.CFUNCTYPE(None)


@pytest.fixture(autouse=True)
def hear_interrupts() -> Iterator[None]:
    """Undo what a shell does to commands in the background: they ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_inside_a_callback_from_c_is_raised_later() -> None:
    with remembering_interrupts():
        CALLBACK(interrupt)()  # Python prints "Exception ignored" and goes on
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
        raise_if_interrupted()  # only once


def test_an_interrupt_elsewhere_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), remembering_interrupts():
        interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    raise_if_interrupted()  # forgotten with the block


def test_another_handler_and_other_threads_are_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with remembering_interrupts():
            interrupt()
            raise_if_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with remembering_interrupts():
                pass
        except BaseException as error:  # noqa: BLE001  # what the test is about
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
