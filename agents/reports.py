"""What every command reports: one JSON object per run, with enough in it to repeat the run."""

import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from recattack_gym import __version__
from recattack_gym.core import FakeProfiles

if TYPE_CHECKING:
    from recattack_gym.simulator import PlatformSimulator

REPORTED_PACKAGES = ("numpy", "scipy", "numba", "torch", "gymnasium", "stable-baselines3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The outcome of a command, for a person and for a program."""

    text: str
    """What a terminal shows."""
    data: Mapping[str, object]
    """The same as plain JSON values."""


@dataclass(slots=True)
class Stopwatch:
    """Measures a command from its construction on."""

    wall_start: float = field(default_factory=time.perf_counter)
    cpu_start: float = field(default_factory=time.process_time)

    def fields(self) -> dict[str, object]:
        """Return `cpu_seconds` (of this process on all its threads) and `wall_seconds`."""
        return {
            "cpu_seconds": round(time.process_time() - self.cpu_start, 3),
            "wall_seconds": round(time.perf_counter() - self.wall_start, 3),
        }


def versions() -> dict[str, str]:
    """Return the version of this package, of Python and of every package that decides numbers."""
    found = {"recattack-gym": __version__, "python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def attack_fields(
    simulator: "PlatformSimulator", profiles: FakeProfiles, *, side_effects: bool = True
) -> dict[str, object]:
    """Inject profiles once more and return everything that a result row says about their effect.

    Args:
        simulator: The platform.
        profiles: What is injected.
        side_effects: Whether to measure how recommendations for genuine users suffer.
    """
    from recattack_gym.simulator import BaggedSimulator, DefendedSimulator

    defense: dict[str, object] = {}
    if isinstance(simulator, BaggedSimulator):
        certificate, n_fakes = simulator.certificate(), profiles.budget.n_fake_users
        defense["certificate"] = {
            "n_models": simulator.bagging.n_models,
            "overlap": round(certificate.overlap(n_fakes), 6),
            "rec_num_bound": certificate.rec_num_bound(n_fakes),
        }
    if isinstance(simulator, DefendedSimulator):
        outcome, screened = simulator.screened_exposure(profiles)
        defense["defense"] = {
            "detectors": [
                each.detector.name + (":weight" if each.action == "weight" else "")
                for each in simulator.screening
            ],
            "n_dropped": int(screened.n_dropped[0]),
            "n_genuine_flagged": int(screened.n_genuine_flagged[0]),
            "n_genuine_dropped": int(simulator.genuine_dropped.sum()),
            "n_genuine_clicks_lost": simulator.n_genuine_clicks_lost,
        }
    else:
        outcome = simulator.exposure(profiles)
    exposure = outcome[0]
    rec_num = int(exposure.sum())
    fields: dict[str, object] = {
        "rec_num": rec_num,
        "max_rec_num": simulator.max_rec_num,
        "clean_rec_num": simulator.clean_rec_num,
        "share": rec_num / simulator.max_rec_num,
        "target_items": simulator.target_items.tolist(),
        "target_exposure": exposure.tolist(),
        "clicks": profiles.budget.n_clicks,
        "accounts": profiles.budget.n_fake_users,
        "profiles_hash": profiles.content_hash,
        **defense,
    }
    if side_effects and simulator.dataset is not None:
        quality = simulator.side_effects(profiles)
        fields["side_effects"] = {
            "k": quality.k,
            "clean_hr_at_k": _number(quality.clean_hr_at_k),
            "hr_at_k": _number(float(quality.hr_at_k[0])),
            "clean_ndcg_at_k": _number(quality.clean_ndcg_at_k),
            "ndcg_at_k": _number(float(quality.ndcg_at_k[0])),
        }
    return fields


def platform_text(data: Mapping[str, object]) -> str:
    """Return the environment's id, and the victim that is trained unless that is the one it is named after.

    Args:
        data: Of a report, with `env_id` and `victim`.
    """
    env_id, victim = data["env_id"], data["victim"]
    is_named = f"RecPoison-{victim}-" in str(env_id)  # a version follows, or a detector's name
    return f"{env_id}" if is_named else f"{env_id}, trained as {victim}"


def defense_lines(data: Mapping[str, object]) -> list[str]:
    """Return what a terminal shows of a defence that screens accounts or votes: one line, or none."""
    certificate = data.get("certificate")
    if isinstance(certificate, dict):
        return [
            f"certificate  {certificate['n_models']} models vote: as many fake users reach a RecNum of "
            f"{certificate['rec_num_bound']:,} at most, and leave {certificate['overlap']:.0%} of the lists"
        ]
    defense = data.get("defense")
    if not isinstance(defense, dict):
        return []
    return [
        f"defense      {', '.join(defense['detectors'])}: caught {defense['n_dropped']} fake users, "
        f"flagged {defense['n_genuine_flagged']} genuine ones; clicks of genuine users not learnt from: "
        f"{defense['n_genuine_clicks_lost']}"
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
