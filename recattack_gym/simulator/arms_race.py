"""The platform's side of an arms race: a detector that is retrained on the attacks that audits have found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.profiles import FakeProfiles, as_profile_batch
from recattack_gym.defenses import Screening
from recattack_gym.defenses.held_out import HeldOutDetector, Snapshot
from recattack_gym.simulator.defended import DefendedSimulator, make_simulator
from recattack_gym.simulator.platform import PlatformSimulator
from recattack_gym.simulator.visibility import Visibility, visibility

_AUDIT, _LEARN = range(2)
"""Uses of a seed."""


@dataclass(frozen=True, kw_only=True)
class ArmsRaceConfig:
    """How a platform adapts to the attacks that it finds."""

    detector: str = "svm-quick"
    """What is retrained: a key of `defenses.held_out.RETRAINABLE`."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of that detector."""
    share: float = 0.01
    """Of all accounts, flagged; see `Screening`."""
    max_attacks: int = 20
    """Past attacks that are learnt from, as evenly from all rounds as may be."""
    audit_rate: float = 1.0
    """Share of the fake users of a past attack that audits find, in `(0, 1]`."""

    def __post_init__(self) -> None:
        HeldOutDetector(self.detector, self.settings)
        as_real("share", self.share, above=0.0, at_most=0.5)
        as_count("max_attacks", self.max_attacks)
        as_real("audit_rate", self.audit_rate, above=0.0, at_most=1.0)


class AdaptiveDetector:
    """What a platform knows of past attacks, and the detector that it has learnt from them.

    After an attack an audit finds fake users: complaints about the promoted items, payment trails, accounts
    that log in from one place, a person who reads. All that comes too late for the attack itself. Of each
    fake user it finds out with probability `audit_rate`, once, whether the detector had flagged it or not;
    it never takes a genuine user for a fake one. Those that it misses stay unknown and are not learnt from.
    `audit_rate=1` is what favours the platform most.

    *Rounds* count detectors. Attacks that are noted in a round are learnt from when the next one begins,
    and judged by the detector of their own round, which has not seen them.

    Args:
        genuine: Events of all genuine users, over a catalogue that has the target items.
        config: Settings, `None` for the defaults.
        known: Fake users that are known from the start, such as those of hand-made attacks: one or more
            attacks, shape `(n, N, T)` or `(N, T)`. With none, nobody is screened in round 0.
        seed: Of audits and of learning.

    Raises:
        ArgumentError: If an argument is wrong.
    """

    def __init__(
        self,
        genuine: Interactions,
        config: ArmsRaceConfig | None = None,
        *,
        known: FakeProfiles | ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        self.genuine = genuine
        self.config = ArmsRaceConfig() if config is None else config
        self.seed = as_count("seed", seed, at_least=0)
        self.round = 0
        """Detectors that came before the present one, no detector at all included."""
        self.detector: HeldOutDetector | None = None
        """The detector of this round; `None`: nobody is screened."""
        self._by_round: list[list[Snapshot]] = [[]]  # what is known from the start comes first
        if known is not None:
            batch = as_profile_batch(known, genuine.n_items)
            everyone = np.ones(batch.shape[1], dtype=np.bool_)
            self._by_round[0] = [Snapshot(profiles, everyone) for profiles in batch]
            self._learn()
        self._by_round.append([])

    @property
    def screening(self) -> Screening | None:
        """What flags accounts in this round, or `None`."""
        return None if self.detector is None else Screening(self.detector, self.config.share)

    @property
    def n_noted(self) -> int:
        """Attacks of this round, which no detector has learnt from yet."""
        return len(self._by_round[-1])

    def note(self, profiles: FakeProfiles | ArrayLike) -> None:
        """Audit attacks that have ended.

        Args:
            profiles: Item ids, shape `(M, N, T)`, or `(N, T)` for one.
        """
        for attack in as_profile_batch(profiles, self.genuine.n_items):
            rng = np.random.default_rng([self.seed, _AUDIT, self.round, self.n_noted])
            is_known = rng.random(len(attack)) < self.config.audit_rate
            self._by_round[-1].append(Snapshot(attack.copy(), is_known))

    def next_round(self) -> None:
        """Learn from everything that has been noted, and begin the next round.

        Where audits have found nobody at all, the detector stays as it is.
        """
        self.round += 1
        self._learn()
        self._by_round.append([])

    def visibility(self, profiles: FakeProfiles | ArrayLike) -> Visibility | None:
        """Return how far fake users stand out to the present detector; `None` without one."""
        return None if self.detector is None else visibility(self.genuine, profiles, self.detector)

    def _learn(self) -> None:
        rng = np.random.default_rng([self.seed, _LEARN, self.round])
        found = [
            [attack for attack in attacks if attack.is_known.any()] for attacks in self._by_round
        ]
        chosen = evenly(found, self.config.max_attacks, rng)
        # What will never be chosen again need not be kept: later rounds come first.
        self._by_round = [attacks for attacks in found if attacks][-self.config.max_attacks :]
        if chosen:
            detector = HeldOutDetector(self.config.detector, self.config.settings)
            self.detector = detector.learn(self.genuine, chosen, rng)


def evenly(
    by_round: Sequence[Sequence[Snapshot]], n: int, rng: np.random.Generator
) -> list[Snapshot]:
    """Choose attacks at random, as many from every round as may be; of equals later rounds come first.

    Args:
        by_round: Attacks of each round.
        n: How many; all where there are fewer.
        rng: Source of all randomness.
    """
    places = [
        (turn, -number, attack)
        for number, attacks in enumerate(by_round)
        for turn, attack in enumerate(rng.permutation(len(attacks)).tolist())
    ]
    return [by_round[-number][attack] for _, number, attack in sorted(places)[:n]]


def genuine_log(simulator: PlatformSimulator) -> Interactions:
    """Return the events of all genuine users, over a catalogue with the targets, screened or not."""
    if isinstance(simulator, DefendedSimulator):
        return simulator.unscreened_log
    return simulator.log.with_catalogue(simulator.n_items)


def with_screening(
    arguments: Mapping[str, object], platform: PlatformSimulator, screening: Screening | None
) -> dict[str, object]:
    """Return the arguments of a platform that screens accounts in one way more.

    Args:
        arguments: Of `make_simulator`, those of `platform`.
        platform: Whose dataset is taken over, so that it is not loaded again.
        screening: What to add to its defence; nothing if `None`.
    """
    defense = arguments.get("defense")
    before = defense if isinstance(defense, list | tuple) else (defense,)
    both = (*(each for each in before if each is not None), *((screening,) if screening else ()))
    given: dict[str, object] = {**arguments, "defense": both or None}
    if platform.dataset is not None:
        given |= {"dataset": platform.dataset, "protocol": None}
    return given


def screened_platform(
    arguments: Mapping[str, object], platform: PlatformSimulator, screening: Screening | None
) -> PlatformSimulator:
    """Return the platform of `with_screening`, or `platform` itself if nothing is added.

    Its clean victim is fitted without the genuine users who are flagged now, as for every defence.
    """
    if screening is None:
        return platform
    return make_simulator(with_screening(arguments, platform, screening))
