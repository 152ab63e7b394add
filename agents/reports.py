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
    from recattack_gym.simulator.effects import EffectsMeter

DETECTORS = ("popularity", "ks-popularity", "pca-varselect")
"""Whom every result row is shown to: those that read clicks and need no examples of attacks."""
MEASURED = ("detectors", "side_effects", "exposure")
"""Fields that `measured_fields` may return."""
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
        side_effects: Whether to measure how recommendations for genuine users suffer; a platform that was
            made from a bare log has no held-out items to measure that with.

    Returns:
        Plain JSON values, those of `measured_fields` among them.
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
    meter = None
    if side_effects and simulator.dataset is not None:
        from recattack_gym.simulator.bagged_effects import effects_meter

        meter = effects_meter(simulator)
    return {**fields, **measured_fields(simulator, profiles, meter)}


def measured_fields(
    simulator: "PlatformSimulator", profiles: FakeProfiles, meter: "EffectsMeter | None"
) -> dict[str, object]:
    """Return how visible an attack is, and what it does to everyone else.

    Args:
        simulator: The platform.
        profiles: What is injected.
        meter: Of this platform; `None` leaves out what needs a poisoned victim.

    Returns:
        Plain JSON values. `detectors`: of each of `DETECTORS` the AUC, and the share of fake users found with
        1 % of the genuine ones flagged (`recall`), in the log as it would be without any screening.
        `side_effects`: HR@k and NDCG@k before and after. `exposure`: of each group of items (targets, and
        others by clicks) how many items it has, and its places in the same lists before and after.
    """
    from recattack_gym.defenses import DETECTORS as KNOWN
    from recattack_gym.simulator import DefendedSimulator
    from recattack_gym.simulator.visibility import visibility

    log = simulator.victim.log
    if isinstance(simulator, DefendedSimulator):
        log = simulator.unscreened_log
    seen = {name: visibility(log, profiles, KNOWN[name]()) for name in DETECTORS}
    fields: dict[str, object] = {
        "detectors": {
            name: {"auc": _number(float(one.auc[0])), "recall": _number(float(one.recall[0]))}
            for name, one in seen.items()
        }
    }
    if meter is None:
        return fields
    found = meter.measure(profiles)
    quality = found.quality
    fields["side_effects"] = {
        "k": quality.k,
        "clean_hr_at_k": _number(quality.clean_hr_at_k),
        "hr_at_k": _number(float(quality.hr_at_k[0])),
        "clean_ndcg_at_k": _number(quality.clean_ndcg_at_k),
        "ndcg_at_k": _number(float(quality.ndcg_at_k[0])),
    }
    columns = zip(
        found.names,
        found.n_items.tolist(),
        found.clean_exposure.tolist(),
        found.exposure[0].tolist(),
        strict=True,
    )
    fields["exposure"] = {
        "n_users": found.n_users,
        "groups": {
            name: {"n_items": n_items, "clean": clean, "poisoned": poisoned}
            for name, n_items, clean, poisoned in columns
        },
    }
    return fields


def effect_lines(data: Mapping[str, object]) -> list[str]:
    """Return what a terminal shows of `measured_fields`; only of what was measured."""
    lines = []
    detectors, quality, shown = (data.get(name) for name in MEASURED)
    if isinstance(detectors, dict):
        each = (f"{name} {one['auc']:.2f}" for name, one in detectors.items())
        lines.append(f"detectors    AUC of {', '.join(each)} (0.5 is chance)")
    if isinstance(quality, dict) and quality["hr_at_k"] is None:
        lines.append("side effect  not measured: no genuine user has a held-out item")
        return lines
    if isinstance(quality, dict):
        lines.append(
            f"side effect  HR@{quality['k']} {quality['clean_hr_at_k']} -> {quality['hr_at_k']}, "
            f"NDCG@{quality['k']} {quality['clean_ndcg_at_k']} -> {quality['ndcg_at_k']}"
        )
    if isinstance(shown, dict):
        each = (
            f"{name} {one['clean']} -> {one['poisoned']}" for name, one in shown["groups"].items()
        )
        lines.append(f"shown        {', '.join(each)} (places, whole catalogue)")
    return lines


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
