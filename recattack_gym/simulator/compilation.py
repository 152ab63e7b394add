"""Tell the user, once, why the first evaluation on a machine takes longer."""

import logging
from functools import cache

logger = logging.getLogger(__name__)


@cache
def announce_compilation() -> None:
    """Log one line when numba begins to compile a kernel of this package, in this process from now on.

    Machine code that is found on disk is not compiled and not announced. The level is that of a warning,
    because Python shows these on standard error unless logging is set up otherwise.
    """
    from numba.core import event

    class Announcer(event.Listener):
        is_done = False

        def on_start(self, event: event.Event) -> None:
            kernel = event.data["dispatcher"].py_func
            if not self.is_done and kernel.__module__.startswith("recattack_gym."):
                self.is_done = True
                logger.warning(
                    "compiling machine code, once on this machine: this may take a minute"
                )

        def on_end(self, event: event.Event) -> None:
            """Say nothing."""

    event.register("numba:compile", Announcer())  # type: ignore[no-untyped-call]  # numba is not typed
