"""Ctrl-C waits while a file is being written."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def holding_interrupts() -> Iterator[None]:
    """Let a SIGINT that arrives in the block interrupt only when the block has ended, such as short writing.

    Does nothing outside the main thread, which alone can handle signals, and where SIGINT is ignored.

    Raises:
        KeyboardInterrupt: At the end, if SIGINT arrived.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(before):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(*held[0])
