"""Wrappers that let the platform adapt: a detector retrained on the attacker's past attacks."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import ArrayLike, NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.profiles import FakeProfiles, as_profile_batch
from recattack_gym.core.random import draw_seed
from recattack_gym.envs.episodes import Episodes
from recattack_gym.envs.poison_env import Info, Observation, PoisonEnv
from recattack_gym.envs.poison_vector_env import PoisonVectorEnv, VectorInfo, VectorObservation
from recattack_gym.simulator.arms_race import (
    AdaptiveDetector,
    ArmsRaceConfig,
    genuine_log,
    screened_platform,
    with_screening,
)
from recattack_gym.simulator.bagged import BaggedSimulator

_SEEDS = 41
"""Keeps the race's seed apart from the environment's own."""


class _Race:
    """What both wrappers do: rounds of a detector in front of the platform of some episodes."""

    def __init__(
        self,
        episodes: Episodes,
        every: int,
        config: ArmsRaceConfig,
        known: FakeProfiles | ArrayLike | None,
    ) -> None:
        self.every = as_count("every", every)
        if isinstance(episodes.simulator, BaggedSimulator):
            raise ArgumentError(
                "env must not be defended by bagging, beside which nothing may screen accounts, got "
                f"defense={episodes.platform.get('defense')!r}"
            )
        self.config = config
        self._known = None if known is None else as_profile_batch(known, episodes.n_items)
        self._arguments = dict(episodes.platform)
        self._platform = episodes.simulator
        self.defence: AdaptiveDetector | None = None

    def start(self, episodes: Episodes, seed: int) -> None:
        """Begin round 0."""
        genuine = genuine_log(self._platform)
        self.defence = AdaptiveDetector(genuine, self.config, known=self._known, seed=seed)
        self._enter(episodes, self.defence)

    def turn(self, episodes: Episodes) -> None:
        """Begin the next round if enough attacks have ended in this one."""
        if self.defence is not None and self.defence.n_noted >= self.every:
            self.defence.next_round()
            self._enter(episodes, self.defence)

    def _enter(self, episodes: Episodes, defence: AdaptiveDetector) -> None:
        screening = defence.screening
        given = with_screening(self._arguments, self._platform, screening)
        episodes.move_to(
            self._arguments if screening is None else given,
            screened_platform(self._arguments, self._platform, screening),
        )

    def fields(
        self, episodes: Episodes, ended: NDArray[np.int64]
    ) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
        """Judge and audit the attacks that have just ended in some copies; return info of all copies.

        Args:
            episodes: Whose.
            ended: Copies, shape `(n,)`.

        Returns:
            Arrays of shape `(M,)`.
        """
        n_copies, defence = len(episodes.copies), self.defence
        number = 0 if defence is None else defence.round
        auc, recall = np.full(n_copies, -1.0), np.full(n_copies, -1.0)
        n_flagged = np.full(n_copies, -1, dtype=np.int64)
        if len(ended) and defence is not None and episodes.last_profiles is not None:
            profiles = episodes.last_profiles[ended]
            seen = defence.visibility(profiles)
            if seen is not None:
                auc[ended], recall[ended] = seen.auc, seen.recall
            n_flagged[ended] = 0
            defence.note(profiles)
        return {
            "detector_round": np.full(n_copies, number, dtype=np.int64),
            "detector_auc": auc,
            "detector_recall": recall,
            "cost": np.zeros(n_copies, dtype=np.int64),  # of a platform that screens nobody
            "n_genuine_flagged": n_flagged,
        }


class ArmsRace(gym.Wrapper[Observation, np.int64, Observation, np.int64], RecordConstructorArgs):
    """Retrain a detector on the attacker's past attacks, every so many episodes.

    The first round has no detector, or one that has learnt from `known` fake users. After `every` attacks
    the detector learns from scratch from genuine users and from fake users of past attacks that audits
    have found (see `AdaptiveDetector` for how, and `HeldOutDetector` for what is kept apart), and screens
    the accounts of the attacks to come: the most suspicious `share` of all accounts is kept out of
    training. That comes on top of the environment's own `defense`. As for every defence, the clean
    victim of a round is fitted without the genuine users whom the detector flags in the clean log, so
    `clean_rec_num` changes with the rounds, and each round costs a fit (a file in the cache folder).

    ```python
    env = gymnasium.make("recattack_gym:RecPoison-CoVisitation-v0", n_fake_users=5, profile_size=10)
    env = ArmsRace(env, every=32)  # 32 attacks with nobody screened, then a detector that knows them
    observation, info = env.reset(seed=0)
    ```

    An attack is judged by the detector that is in force at its last click, which knows attacks of earlier
    rounds only; it is learnt from when the next round begins, before the next click or reset.

    ## Information

    `PoisonEnv`'s, always with `cost` and `n_genuine_flagged`, and

    | key | type | meaning |
    |---|---|---|
    | `detector_round` | int | rounds before this one |
    | `detector_auc` | float | of the detector on the ended attack's accounts; -1 before the end |
    | `detector_recall` | float | fake users found with 1 % of the genuine ones; -1 before the end |

    AUC and recall stay -1 in a round without a detector. These three are for researchers: a `BlackBox`
    around this wrapper does not show them.

    ## Reproducibility

    `reset(seed=...)` starts the race anew, in round 0 with nothing noted; the seed decides everything that
    audits and detectors draw. `reset()` goes on. Same seed and same clicks: same detectors, same rewards.

    Args:
        env: A `PoisonEnv`, wrapped or not; a `BlackBox` goes around this wrapper.
        every: Attacks per round, at least.
        detector: What is retrained: a key of `recattack_gym.defenses.held_out.RETRAINABLE`.
        settings: Of that detector, by name.
        share: Of all accounts, flagged.
        max_attacks: Past attacks that are learnt from, as evenly from all rounds as may be.
        audit_rate: Share of past fake users that audits find.
        known: Fake users that are known from the start: attacks, shape `(n, N, T)`, or one `(N, T)`.

    Raises:
        ArgumentError: If an argument is wrong.
        UnknownNameError: If the detector or a setting of it is unknown.
    """

    def __init__(
        self,
        env: gym.Env[Observation, np.int64],
        every: int = 32,
        *,
        detector: str = "svm-quick",
        settings: Mapping[str, object] | None = None,
        share: float = 0.01,
        max_attacks: int = 20,
        audit_rate: float = 1.0,
        known: FakeProfiles | ArrayLike | None = None,
    ) -> None:
        base = env.unwrapped
        if not isinstance(base, PoisonEnv):
            raise ArgumentError(f"env must be a PoisonEnv, wrapped or not, got {env!r}")
        RecordConstructorArgs.__init__(
            self, every=every, detector=detector, settings=settings, share=share,
            max_attacks=max_attacks, audit_rate=audit_rate, known=known,
        )  # fmt: skip
        gym.Wrapper.__init__(self, env)
        config = ArmsRaceConfig(
            detector=detector, settings=dict(settings or {}), share=share,
            max_attacks=max_attacks, audit_rate=audit_rate,
        )  # fmt: skip
        self._race = _Race(base._episodes, every, config, known)

    @property
    def defence(self) -> AdaptiveDetector | None:
        """What the platform knows, for researchers; `None` before the first reset."""
        return self._race.defence

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Start a new attack; with a seed, a new race.

        Args:
            seed: See Reproducibility.
            options: See `PoisonEnv.reset`.
        """
        episodes = self._episodes
        if seed is None and self._race.defence is not None:
            self._race.turn(episodes)
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None or self._race.defence is None:
            self._race.start(episodes, _race_seed(seed, self.unwrapped.np_random))
            info["clean_rec_num"] = episodes.clean_rec_num
        return observation, self._told(info, ended=False)

    def step(self, action: np.int64) -> tuple[Observation, Any, bool, bool, Info]:
        """See `PoisonEnv.step`."""
        self._race.turn(self._episodes)
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, self._told(info, ended=terminated)

    @property
    def _episodes(self) -> Episodes:
        base = self.unwrapped
        assert isinstance(base, PoisonEnv)  # noqa: S101  # as the constructor has checked
        return base._episodes

    def _told(self, info: Info, *, ended: bool) -> Info:
        copies = np.arange(1 if ended else 0)
        fields = self._race.fields(self._episodes, copies)
        return {**{name: values[0].item() for name, values in fields.items()}, **info}


class VectorArmsRace(VectorWrapper):
    """`ArmsRace` for `PoisonVectorEnv`: one race for all copies, which share a platform.

    Attacks of all copies count, so that a round has as many as have ended when `every` is reached. Copies
    whose attack is in progress when a round begins are judged by the new detector. `reset(seed=...)` of
    all copies starts the race anew; with a `reset_mask` that leaves out a copy it goes on.

    Args:
        env: A `PoisonVectorEnv`, wrapped or not.
        every: See `ArmsRace`.
        detector: See `ArmsRace`.
        settings: See `ArmsRace`.
        share: See `ArmsRace`.
        max_attacks: See `ArmsRace`.
        audit_rate: See `ArmsRace`.
        known: See `ArmsRace`.

    Raises:
        ArgumentError: See `ArmsRace`.
        UnknownNameError: See `ArmsRace`.
    """

    def __init__(
        self,
        env: VectorEnv[VectorObservation, NDArray[np.int64], NDArray[Any]],
        every: int = 32,
        *,
        detector: str = "svm-quick",
        settings: Mapping[str, object] | None = None,
        share: float = 0.01,
        max_attacks: int = 20,
        audit_rate: float = 1.0,
        known: FakeProfiles | ArrayLike | None = None,
    ) -> None:
        base = env.unwrapped
        if not isinstance(base, PoisonVectorEnv):
            raise ArgumentError(
                f"env must be a PoisonVectorEnv, wrapped or not (gymnasium.make_vec), got {env!r}"
            )
        super().__init__(env)
        config = ArmsRaceConfig(
            detector=detector, settings=dict(settings or {}), share=share,
            max_attacks=max_attacks, audit_rate=audit_rate,
        )  # fmt: skip
        self._base = base
        self._race = _Race(base._episodes, every, config, known)

    @property
    def defence(self) -> AdaptiveDetector | None:
        """See `ArmsRace.defence`."""
        return self._race.defence

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[VectorObservation, VectorInfo]:
        """Start new attacks; see the class, and `PoisonVectorEnv.reset`."""
        episodes = self._base._episodes
        if seed is None:
            self._race.turn(episodes)
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]  # as PoisonVectorEnv takes it
        has_info = info["_rec_num"]
        if self._race.defence is None or (seed is not None and has_info.all()):
            first = np.atleast_1d(np.asarray(seed, dtype=object))[0]
            self._race.start(episodes, _race_seed(first, self._base.np_random[0]))
            info["clean_rec_num"] = np.where(has_info, episodes.clean_rec_num, 0)
        self._tell(info, has_info, np.zeros(0, dtype=np.int64))
        return observation, info

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[VectorObservation, NDArray[Any], NDArray[Any], NDArray[Any], VectorInfo]:
        """See `PoisonVectorEnv.step`."""
        self._race.turn(self._base._episodes)
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        nobody = np.zeros(0, dtype=np.int64)
        if "final_info" in info:
            self._tell(info["final_info"], info["_final_info"], np.flatnonzero(terminated))
            self._tell(info, info["_rec_num"], nobody)
        else:
            self._tell(info, info["_rec_num"], np.flatnonzero(terminated))
        return observation, rewards, terminated, truncated, info

    def _tell(
        self, info: VectorInfo, has_info: NDArray[np.bool_], ended: NDArray[np.int64]
    ) -> None:
        """Add what the race has to say to the info of some copies, shape `(M,)`."""
        for name, values in self._race.fields(self._base._episodes, ended).items():
            if name not in info:
                values[~has_info] = 0
                info[name], info[f"_{name}"] = values, has_info.copy()


def _race_seed(seed: object, rng: np.random.Generator) -> int:
    """Return the seed of a race: from that of the environment, or drawn where there is none."""
    if seed is None:
        return draw_seed(rng)
    return draw_seed(np.random.default_rng([int(str(seed)), _SEEDS]))
