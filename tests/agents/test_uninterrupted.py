"""SIGINT while a file is being written."""

import signal
import threading

import pytest

from agents.uninterrupted import holding_interrupts


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


def test_an_error_in_the_block_is_that_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="full"), holding_interrupts():
        raise OSError("full")
    assert signal.getsignal(signal.SIGINT) is before


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
