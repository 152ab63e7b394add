"""Keep fitted clean victims on disk, so that the second use of the same thing is fast."""

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from recattack_gym._version import __version__
from recattack_gym.core.errors import ArtifactError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.victims.base import STATE_VERSION, Victim

logger = logging.getLogger(__name__)

_DECISIVE = ("recattack_gym.victims", "recattack_gym.core.random")
"""Packages and modules that decide what a victim learns."""


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Return where victims are kept: the argument, `RECATTACK_CACHE`, or the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir)
    if "RECATTACK_CACHE" in os.environ:
        return Path(os.environ["RECATTACK_CACHE"])
    from platformdirs import user_cache_path

    return user_cache_path("recattack-gym")


def code_hash(victim: type[Victim]) -> str | None:
    """Return a digest of the sources that decide what a victim learns: its own, and what they import.

    A version number does not move while someone edits a victim; a stale cache would then answer for
    code that is no longer there.

    Returns:
        `None` if the victim has no source file, as a class that was typed into an interpreter.
    """
    files: set[Path] = set()
    for each in victim.__mro__:
        if issubclass(each, Victim):
            own = imported_files(each.__module__, _DECISIVE)
            if not own:
                return None
            files |= own
    return source_digest(files)


def fit_cached(
    victim: Victim,
    log: Interactions,
    *,
    n_new_items: int,
    seed: int,
    cache_dir: str | Path | None = None,
) -> Victim:
    """Fit `victim`, or load what an earlier call fitted from the same log, settings, seed and version.

    A cached file that cannot be trusted is reported in the log and replaced; a folder that cannot be
    written to costs only the caching. A victim without a source file is never cached, since nothing would
    tell when it changes.

    Returns:
        A fitted victim, not always the one passed in.
    """
    code = code_hash(type(victim))
    if code is None:
        return victim.fit(log, np.random.default_rng(seed), n_new_items=n_new_items)
    identity = {
        "version": __version__,
        "code": code,
        "format": STATE_VERSION,
        "victim": victim.name,
        "class": f"{type(victim).__module__}.{type(victim).__qualname__}",
        "config": asdict(victim.config),
        "device": victim.device,
        "log": log.content_hash,
        "n_new_items": n_new_items,
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder(cache_dir) / "victims" / f"{victim.name}-{digest}.npz"
    if path.exists():
        try:
            return type(victim).load(path, log, device=victim.device)
        except ArtifactError as error:
            logger.warning(
                "fitting %s again, because its cached state is unusable: %s", victim.name, error
            )
    logger.info("fitting %s on %d events", victim.name, len(log))
    victim.fit(log, np.random.default_rng(seed), n_new_items=n_new_items)
    try:
        victim.save(path)
    except OSError as error:
        logger.warning("could not cache %s in %s: %s", victim.name, path.parent, error)
    return victim
