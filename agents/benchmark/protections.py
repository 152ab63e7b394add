"""What `recattack bench defense` compares: screening by detectors, robust training, and both together."""

from dataclasses import asdict, dataclass
from functools import lru_cache

from recattack_gym.core import UnknownNameError
from recattack_gym.core.checks import as_real
from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.defenses import DETECTORS, Screening
from recattack_gym.victims.robust import ROBUST

OF_RATINGS = ("lts",)
"""Robust training of victims that complete ratings, measured where it is asked for."""
NONE = "none"
"""The label of no defence."""
WEIGHTED = ":weight"
"""What stands behind the name of a detector whose suspects are weighed down."""
CLICK_DETECTORS = tuple(
    name
    for name, detector in DETECTORS.items()
    if not detector.is_supervised and not detector.needs_ratings
)
"""Detectors that a platform can switch on: they need neither ratings nor examples of attacks."""


def trainings() -> tuple[str, ...]:
    """Return the names of the robust trainings that there are."""
    return tuple(dict.fromkeys(training for training, _ in ROBUST))


def default_labels() -> tuple[str, ...]:
    """Return no defence, every click detector, every robust training of victims that rank clicks."""
    return (NONE, *CLICK_DETECTORS, *(name for name in trainings() if name not in OF_RATINGS))


@dataclass(frozen=True, kw_only=True)
class Protection:
    """One defence of a platform, in any combination."""

    label: str
    """What reports call it."""
    detectors: tuple[str, ...] = ()
    """Keys of `DETECTORS` that screen accounts; their flags add up. With `:weight` after it a detector flags
    twice the share, and accounts have weights from 0 to 1, which costs as many genuine users."""
    training: str | None = None
    """Robust training, or `None` for the victim's own."""
    share: float = 0.01
    """Of all accounts, flagged by each detector."""

    def victim(self, plain: str) -> str | None:
        """Return the victim that a platform with a plain one runs; `None` if it has no such form."""
        return plain if self.training is None else ROBUST.get((self.training, plain))

    @property
    def screenings(self) -> tuple[Screening, ...]:
        """What flags accounts before training."""
        return tuple(
            Screening(DETECTORS[plain](), 2.0 * self.share, "weight")
            if is_weighted
            else Screening(DETECTORS[plain](), self.share)
            for plain, is_weighted in map(_split, self.detectors)
        )

    def identity(self) -> dict[str, object] | None:
        """Return everything that decides who is flagged, as plain JSON values; `None` for nobody.

        Robust training is not in it: that is another victim.
        """
        if not self.detectors:
            return None
        return {
            "share": self.share,
            "screening_code": _code("recattack_gym.defenses.screening"),
            "detectors": {
                name: detector_identity(_split(name)[0]) for name in sorted(self.detectors)
            },
        }


def protections_of(labels: list[str], share: float) -> list[Protection]:
    """Return the defences that labels ask for, each once, no defence first.

    Args:
        labels: `"none"`, names of `CLICK_DETECTORS` (maybe with `:weight`) and of `trainings()`, or several
            of these joined by `+`.
        share: Of all accounts, flagged by each detector.

    Raises:
        UnknownNameError: If a name is unknown.
        ArgumentError: If the share is out of range.
    """
    as_real("--share", share, above=0.0, at_most=0.5)
    found = {NONE: Protection(label=NONE, share=share)}  # what all others are measured against
    for label in labels:
        if label != NONE:
            found[label] = _protection(label, share)
    return list(found.values())


def _split(name: str) -> tuple[str, bool]:
    """Return a detector's key and whether it weighs accounts down instead of dropping them."""
    plain, colon, _ = name.partition(WEIGHTED)
    return plain, bool(colon)


def _protection(label: str, share: float) -> Protection:
    detectors: list[str] = []
    robust = None
    for name in label.split("+"):
        plain = name.removesuffix(WEIGHTED)
        if plain in CLICK_DETECTORS and plain not in {_split(known)[0] for known in detectors}:
            detectors.append(name)
        elif name in trainings() and robust is None:
            robust = name
        else:  # unknown, or twice: a platform trains one way, and flags nobody twice
            raise UnknownNameError("defense", name, (NONE, *CLICK_DETECTORS, *trainings()))
    return Protection(label=label, detectors=tuple(detectors), training=robust, share=share)


@lru_cache(maxsize=32)
def detector_identity(name: str) -> dict[str, object]:
    """Return everything that decides a detector's scores, as plain JSON values."""
    detector = DETECTORS[name]()
    return {"config": asdict(detector.config), "code": _code(type(detector).__module__)}


@lru_cache(maxsize=32)
def _code(module: str) -> str:
    packages = ("recattack_gym.defenses", "recattack_gym.core.random")
    return source_digest(imported_files(module, packages))[:16]


def defended_code() -> str:
    """Return a digest of what makes a defended platform of a platform and flags."""
    module = "recattack_gym.simulator.defended"
    packages = (module, "recattack_gym.simulator.known_users")
    return source_digest(imported_files(module, packages))[:16]
