"""Spread the rows of one compiled kernel over threads that live as long as a training step."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

from recattack_gym.core.parallel import n_threads


class Blocks:
    """Runs kernels of the form `kernel(start, stop, *arguments)` over blocks of a range.

    Args:
        pool: Threads, or `None` to run everything in the caller's.
        n_blocks: Into how many blocks a range is cut.
    """

    def __init__(self, pool: ThreadPoolExecutor | None, n_blocks: int) -> None:
        self._pool = pool
        self._n_blocks = n_blocks

    def run(self, n: int, kernel: Callable[..., None], *arguments: object) -> None:
        """Call `kernel` on blocks that together cover `range(n)`, and wait for all of them."""
        if self._pool is None or n < 2:
            kernel(0, n, *arguments)
            return
        cuts = [n * i // self._n_blocks for i in range(self._n_blocks + 1)]
        jobs = [
            self._pool.submit(kernel, start, stop, *arguments)
            for start, stop in pairwise(cuts)
            if stop > start
        ]
        for job in jobs:
            job.result()


@contextmanager
def blocks() -> Iterator[Blocks]:
    """Hold threads, as many as compiled code may use, until the block ends.

    They are made anew for every training step, because threads do not survive `fork`.
    """
    n = n_threads()
    if n == 1:
        yield Blocks(None, 1)
        return
    with ThreadPoolExecutor(n, thread_name_prefix="poisonrec") as pool:
        yield Blocks(pool, n)
