"""One simulator per platform and process: environments that simulate the same thing share it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

from recattack_gym.datasets.source import ENVIRONMENT_VARIABLE
from recattack_gym.simulator.defended import make_simulator
from recattack_gym.simulator.platform import PlatformSimulator

_simulators: "WeakValueDictionary[str, PlatformSimulator]" = WeakValueDictionary()
_lock = Lock()


def shared_simulator(arguments: Mapping[str, object]) -> PlatformSimulator:
    """Return a simulator for these arguments, the one that is alive already if there is one.

    Sharing is safe because nothing that is called on a simulator changes it. Arguments that are not
    plain JSON values (a log, a victim class, a config object, a fitted detector) are never shared, and
    neither are platforms on another data folder or on a file that has changed.

    Args:
        arguments: Of `make_simulator`.
    """
    plain = {
        name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()
    }
    try:
        key = json.dumps([plain, _data_source(arguments)], sort_keys=True)
    except TypeError:
        return make_simulator(arguments)
    with _lock:
        simulator = _simulators.get(key)
        if simulator is None:
            simulator = make_simulator(arguments)
            _simulators[key] = simulator
    return simulator


def _data_source(arguments: Mapping[str, object]) -> list[object]:
    """Return what decides, beside the arguments, which data a dataset's name stands for."""
    folders = (arguments.get("data_dir"), os.environ.get(ENVIRONMENT_VARIABLE))
    source: list[object] = [
        str(Path(str(folder)).resolve()) if folder else None for folder in folders
    ]
    name = arguments.get("dataset")
    if isinstance(name, str) and os.path.isfile(name):  # noqa: PTH113  # Path raises for a long text
        state = Path(name).stat()
        source += [str(Path(name).resolve()), state.st_mtime_ns, state.st_size]
    return source
