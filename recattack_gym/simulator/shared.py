"""One simulator per platform and process: environments that simulate the same thing share it."""

import json
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

from recattack_gym.simulator.platform import PlatformSimulator

_simulators: "WeakValueDictionary[str, PlatformSimulator]" = WeakValueDictionary()
_lock = Lock()


def shared_simulator(arguments: Mapping[str, object]) -> PlatformSimulator:
    """Return a simulator for these arguments, the one that is alive already if there is one.

    Sharing is safe because nothing that is called on a simulator changes it. Arguments that are not
    plain JSON values (a log, a victim class, a config object) are never shared.

    Args:
        arguments: Keyword arguments of `PlatformSimulator`.
    """
    plain = {
        name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()
    }
    try:
        key = json.dumps(plain, sort_keys=True)
    except TypeError:
        return PlatformSimulator(**arguments)  # type: ignore[arg-type]  # checked by the constructor
    with _lock:
        simulator = _simulators.get(key)
        if simulator is None:
            simulator = PlatformSimulator(**arguments)  # type: ignore[arg-type]  # as above
            _simulators[key] = simulator
    return simulator
