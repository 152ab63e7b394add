"""What every detector has in common: it scores every account of a log, and is not told who is fake there."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, final

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_generator
from recattack_gym.core.errors import ArgumentError, ArtifactError, StateError, UnknownNameError
from recattack_gym.core.files import read_arrays, write_arrays
from recattack_gym.core.interactions import Interactions

State = dict[str, NDArray[Any]]
"""What a detector has learnt: arrays of numbers by name."""

FORMAT_VERSION = 1
"""Rises whenever saved detectors of an earlier version would give other scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig:
    """Settings of a detector; each detector has its own subclass."""


class Detector(ABC):
    """Gives every account of a log a score, higher where it looks more like a fake one.

    One that has to learn how fake users look is a `SupervisedDetector`.

    Args:
        config: Settings, a mapping of some of them by name, or `None` for the defaults.

    Raises:
        ArgumentError: If a setting is unknown or out of range.
    """

    name: ClassVar[str]
    """The key in `DETECTORS` and on the command line."""
    config_class: ClassVar[type[DetectorConfig]] = DetectorConfig
    is_supervised: ClassVar[bool] = False
    """Whether it is a `SupervisedDetector`: `fit` before `scores`."""
    needs_ratings: ClassVar[bool] = False
    """Whether it looks at ratings; a detector that does not takes logs of clicks as well."""

    def __init__(self, config: DetectorConfig | Mapping[str, object] | None = None) -> None:
        self.config = self._as_config(config)
        self._is_fitted = not self.is_supervised

    @classmethod
    def _as_config(cls, config: DetectorConfig | Mapping[str, object] | None) -> DetectorConfig:
        if isinstance(config, DetectorConfig):
            if not isinstance(config, cls.config_class):
                raise ArgumentError(
                    f"config must be a {cls.config_class.__name__} for {cls.name}, "
                    f"got {type(config).__name__}"
                )
            return config
        if config is not None and not isinstance(config, Mapping):
            raise ArgumentError(
                f"config must be a {cls.config_class.__name__}, a mapping of settings or None, "
                f"got {config!r}"
            )
        settings = dict(config or {})
        known = [field.name for field in fields(cls.config_class)]
        for setting in settings:
            if setting not in known:
                raise UnknownNameError(f"setting of {cls.name}", setting, known)
        return cls.config_class(**settings)

    # -- scoring -------------------------------------------------------------------------------------

    @final
    def scores(self, log: Interactions) -> NDArray[np.float64]:
        """Score every account; the same log gives the same scores.

        Args:
            log: All events of the platform, those of fake users among them.

        Returns:
            Shape `(n_users,)`, finite, higher = more suspicious; ties are possible. Users without events
            have the lowest score, and those of the others do not depend on them.

        Raises:
            StateError: If a supervised detector has not been fitted.
            ArgumentError: If `log` is no log, or has no ratings and this detector needs them.
        """
        if not self._is_fitted:
            raise StateError(
                f"detector {self.name!r} has not been fitted: call fit(log, is_fake, rng) first"
            )
        self._check_log(log)
        is_active = np.diff(log.indptr) > 0
        result = np.zeros(log.n_users)
        if not is_active.any():
            return result
        found = self._scores(_only(log, is_active)).astype(np.float64, copy=False)
        if found.shape != (int(is_active.sum()),) or not np.isfinite(found).all():
            raise StateError(
                f"detector {self.name!r} must give one finite score for each user with events, "
                f"got shape {found.shape} and {int((~np.isfinite(found)).sum())} that are not finite"
            )
        result[is_active] = found
        result[~is_active] = found.min()
        return result

    @abstractmethod
    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        """Return one score per user of a log in which every user has an event; shape `(n_users,)`."""

    def _check_log(self, log: Interactions) -> None:
        if not isinstance(log, Interactions):
            raise ArgumentError(f"log must be Interactions, got {type(log).__name__}")
        if self.needs_ratings and log.ratings is None:
            raise ArgumentError(
                f"log must have ratings for detector {self.name!r}, got clicks: "
                "see which detectors have needs_ratings = False"
            )

    # -- saving --------------------------------------------------------------------------------------

    def _state(self) -> State:
        """Return what was learnt."""
        return {}

    def _restore(self, state: State) -> None:
        """Take over what was learnt; the opposite of `_state`."""
        del state  # nothing

    @final
    def save(self, path: str | Path) -> None:
        """Write settings and what was learnt to an `.npz` file, whole or not at all.

        Raises:
            StateError: If a supervised detector has not been fitted.
        """
        if not self._is_fitted:
            raise StateError(f"detector {self.name!r} has not been fitted: nothing to save")
        header = {
            "format": FORMAT_VERSION, "detector": self.name, "config": asdict(self.config),
        }  # fmt: skip
        write_arrays(Path(path), header, self._state(), compress=True)

    @final
    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a detector that `save` wrote; never unpickles.

        Raises:
            ArtifactError: If the file is missing, damaged, of another version or another detector.
        """
        header, arrays = read_arrays(Path(path), "detector")
        if header.get("format") != FORMAT_VERSION or header.get("detector") != cls.name:
            raise ArtifactError(
                f"{path} must hold a {cls.name!r} detector of format {FORMAT_VERSION}, "
                f"got {header.get('detector')!r} of format {header.get('format')!r}"
            )
        try:
            settings = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in dict(header["config"]).items()
            }
            detector = cls(settings)
            detector._restore(arrays)
        except (KeyError, TypeError, ArgumentError) as error:
            raise ArtifactError(f"{path} does not hold a {cls.name!r} detector: {error}") from error
        detector._is_fitted = True
        return detector


class SupervisedDetector(Detector):
    """A detector that learns from a log in which the fake users are known, before it scores another."""

    is_supervised = True

    @final
    def fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> Self:
        """Learn from scratch from a log in which the fake users are known.

        Args:
            log: Events of genuine users and of fake ones, best of several attacks.
            is_fake: Shape `(n_users,)`; users without events teach nothing.
            rng: Source of all randomness; the same state gives the same detector.

        Returns:
            The detector itself.

        Raises:
            ArgumentError: If shapes do not fit, or one of the two kinds of user is missing.
        """
        as_generator("rng", rng)
        self._check_log(log)
        labels = np.asarray(is_fake)
        if labels.shape != (log.n_users,) or labels.dtype != np.bool_:
            raise ArgumentError(
                f"is_fake must be a bool array of shape ({log.n_users},), "
                f"got {labels.dtype} {labels.shape}"
            )
        is_active = np.diff(log.indptr) > 0
        labels = labels[is_active]
        if labels.all() or not labels.any():
            raise ArgumentError(
                "is_fake must mark at least one user with events and leave out at least one, "
                f"got {int(labels.sum())} of {len(labels)}"
            )
        self._is_fitted = False  # half-learnt is not learnt
        self._fit(_only(log, is_active), labels, rng)
        self._is_fitted = True
        return self

    @abstractmethod
    def _fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> None:
        """Learn from a log in which every user has an event; `is_fake` of shape `(n_users,)`."""


def _only(log: Interactions, is_active: NDArray[np.bool_]) -> Interactions:
    """Return the log with users without events left out, the others renumbered in order."""
    if is_active.all():
        return log
    number = np.cumsum(is_active) - 1
    return replace(log, user_ids=number[log.user_ids], n_users=int(is_active.sum()))
