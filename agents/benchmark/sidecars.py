"""What is measured of a cell beside its result: how visible its plan is, and what it does to everyone else.

It is in a file of its own, `NAME.effects.json` beside `NAME.json` and `NAME.npz`, with an identity of its
own: the platform, the plan and the code that measures. So it can be measured of plans that are there already,
and again when that code changes, without attacking anew.
"""

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from agents.benchmark.store import read_result
from agents.reports import DETECTORS, MEASURED
from recattack_gym.core.files import atomic_write
from recattack_gym.core.sources import imported_files, source_digest

logger = logging.getLogger(__name__)

SUFFIX = ".effects.json"
"""Of the files, in place of `.json`."""
PLATFORM_PARTS = (
    "version",
    "victim",
    "victim_code",
    "platform_code",
    "victim_config",
    "dataset",
    "protocol",
    "log",
    "seed",
)
"""What of a cell's identity decides its platform."""
_MEASURING = 1
"""Of what `agents.reports.measured_fields` measures; to be raised when that changes."""


def sidecar_path(result: Path) -> Path:
    """Return where the effects of a cell are kept.

    Args:
        result: The file of its result.
    """
    return result.with_suffix(SUFFIX)


def is_sidecar(path: Path) -> bool:
    """Tell whether a file is no result, but what was measured beside one."""
    return path.name.endswith(SUFFIX)


def sidecar_identity(cell: Mapping[str, object], profiles_hash: object) -> dict[str, object]:
    """Return everything that decides the effects of a plan, as plain JSON values; not who made it.

    Args:
        cell: `cells.identity` of a cell on that platform.
        profiles_hash: Of the plan.
    """
    return {
        **{name: cell[name] for name in PLATFORM_PARTS},
        "profiles": profiles_hash,
        "effects_code": _code(),
        "detectors": list(DETECTORS),
        "measuring": _MEASURING,
    }


def write_sidecar(
    result: Path, identity: Mapping[str, object], effects: Mapping[str, object]
) -> None:
    """Keep the effects of a cell, whole or not at all.

    Args:
        result: The file of its result.
        identity: From `sidecar_identity`.
        effects: From `agents.reports.measured_fields`.
    """
    measured = {name: effects[name] for name in MEASURED if name in effects}
    text = json.dumps({"identity": identity, "result": measured}, indent=1)
    with atomic_write(sidecar_path(result)) as stream:
        stream.write(text.encode())


def read_sidecar(
    result: Path, identity: Mapping[str, object]
) -> tuple[dict[str, object], bool] | None:
    """Return the effects of a cell, and whether they are what would be measured now.

    Those that were measured by other code are still of this plan, those of another plan are not.

    Args:
        result: The file of the cell's result.
        identity: From `sidecar_identity`.

    Returns:
        `None` if there are none of this plan on this data.
    """
    path = sidecar_path(result)
    try:
        known, effects = read_result(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read and will be measured again: %s", path, error)
        return None
    wanted = json.loads(json.dumps(identity))
    about = ("profiles", "log", "victim", "seed")
    if any(known.get(name) != wanted[name] for name in about) or set(effects) != set(MEASURED):
        return None
    return effects, known == wanted


@lru_cache(maxsize=1)
def _code() -> str:
    """Return a digest of the sources that decide effects beyond the platform's: lists, bands, detectors."""
    roots = (
        "recattack_gym.simulator.effects",
        "recattack_gym.simulator.visibility",
        "recattack_gym.metrics.bands",
        "recattack_gym.metrics.detection",
        *_detector_modules(),
    )
    helpers = ("base", "features", "pairs")
    packages = (*roots, *(f"recattack_gym.defenses.{name}" for name in helpers))
    files: set[Path] = set()
    for root in roots:
        files |= imported_files(root, packages)
    return source_digest(files)[:16]


def _detector_modules() -> list[str]:
    import recattack_gym.simulator.effects
    import recattack_gym.simulator.visibility  # noqa: F401  # `imported_files` asks for what is imported
    from recattack_gym.defenses import DETECTORS as KNOWN

    return [KNOWN[name].__module__ for name in DETECTORS]
