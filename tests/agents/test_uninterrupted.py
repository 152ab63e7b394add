"""SIGINT while a file is being written."""

import signal
import threading
from collections.abc import Iterator

import pytest

from agents.uninterrupted import holding_interrupts


@pytest.fixture(autouse=True)
def as_in_the_foreground() -> Iterator[None]:
    """Handle SIGINT as Python does by default; a shell makes what it runs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_until_the_block_has_ended() -> None:
    done = []
    before = signal.getsignal(signal.SIGINT)

    def write() -> None:
        with holding_interrupts():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is before
    with holding_interrupts():
        pass  # nothing is left over


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    done = []
    with holding_interrupts():
        signal.raise_signal(signal.SIGINT)
        done.append(signal.getsignal(signal.SIGINT))
    assert done == [signal.SIG_IGN]


def test_an_error_in_the_block_is_that_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="full"), holding_interrupts():
        raise OSError("full")
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_is_not_lost_to_an_error_in_the_block() -> None:
    def write() -> None:
        with holding_interrupts():
            signal.raise_signal(signal.SIGINT)
            raise OSError("full")

    with pytest.raises(KeyboardInterrupt) as caught:
        write()
    assert isinstance(caught.value.__context__, OSError)


def test_elsewhere_than_in_the_main_thread_nothing_happens() -> None:
    done = []

    def write() -> None:
        with holding_interrupts():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=write)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert done == [before]
