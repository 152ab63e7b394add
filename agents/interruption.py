"""Ctrl-C is never lost, wherever in a long computation it arrives.

Python turns SIGINT into a `KeyboardInterrupt` that is raised wherever the program happens to be. Inside a
callback from C (numba's compiler has several) it cannot propagate: Python prints it and goes on. So
the command line remembers it, and long loops ask.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_arrived = threading.Event()


@contextmanager
def remembering_interrupts() -> Iterator[None]:
    """Remember SIGINT besides raising `KeyboardInterrupt`, until the block ends.

    Only the main thread can handle signals; elsewhere, and where somebody ignores SIGINT on purpose, this
    does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or before is not signal.default_int_handler:
        yield
        return

    def remember(number: int, frame: FrameType | None) -> None:
        _arrived.set()
        signal.default_int_handler(number, frame)

    _arrived.clear()
    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _arrived.clear()


def raise_if_interrupted() -> None:
    """Raise the `KeyboardInterrupt` that arrived where it could not be raised; else do nothing.

    Raises:
        KeyboardInterrupt: If SIGINT arrived inside `remembering_interrupts()`.
    """
    if _arrived.is_set():
        _arrived.clear()
        raise KeyboardInterrupt
