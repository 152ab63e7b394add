"""Which victim is the robustly trained form of which: what `defense="apr"` means on a platform."""

from collections.abc import Mapping
from types import MappingProxyType

from recattack_gym.core.errors import UnknownNameError

ROBUST: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("apr", "BPR"): "APR",
        ("apr", "LightGCN"): "LightGCN-APR",
        ("apr", "PMF"): "PMF-APR",
        ("apr", "MF-BCE"): "MF-BCE-APR",
        ("pamacf", "BPR"): "PamaCF",
        ("pamacf", "LightGCN"): "LightGCN-PamaCF",
        ("pamacf", "PMF"): "PMF-PamaCF",
        ("pamacf", "MF-BCE"): "MF-BCE-PamaCF",
        ("lts", "ALS"): "LTS-MF",
    }
)
"""Training by name and plain victim -> robust victim, a key of `VICTIMS`."""

TRAININGS = tuple(dict.fromkeys(training for training, _ in ROBUST))
"""Names of robust trainings."""


def robust_victim(training: str, victim: str) -> str:
    """Return the robust form of a victim.

    Args:
        training: One of `TRAININGS`.
        victim: A plain victim's name.

    Raises:
        UnknownNameError: If there is no such training, or the victim has no such form.
    """
    if training not in TRAININGS:
        raise UnknownNameError("robust training", training, TRAININGS)
    if (training, victim) not in ROBUST:
        known = [plain for name, plain in ROBUST if name == training]
        raise UnknownNameError(f"victim with {training} training", victim, known)
    return ROBUST[training, victim]
