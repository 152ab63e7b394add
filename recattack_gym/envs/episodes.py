"""What the single and the vector environment have in common: M attacks in progress on one platform."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from recattack_gym.core.attack import AttackBudget, AttackGoal
from recattack_gym.core.checks import as_count
from recattack_gym.core.errors import ArgumentError, StateError, UnknownNameError
from recattack_gym.envs.rewards import Reward, StealthReward, as_reward
from recattack_gym.simulator import DefendedSimulator, PlatformSimulator, shared_simulator

Rng = Callable[[int], np.random.Generator]


class Episodes:
    """Clicks, progress and results of M copies of an attack that share one platform.

    A copy is *idle* (before its first reset), *running*, or *over* (its budget is spent). A call that
    raises changes nothing.

    Args:
        n_copies: M.
        n_fake_users: Accounts per attack.
        profile_size: Clicks per account.
        reward: A name from `REWARDS`, or a function like those.
        resample_candidates: Whether every attack is evaluated with fresh candidate lists and retraining.
        platform_seed: The seed of the platform.
        **platform: The other arguments of `simulator.make_simulator`.

    Raises:
        ArgumentError: If an argument is wrong.
    """

    def __init__(
        self,
        n_copies: int,
        *,
        n_fake_users: int,
        profile_size: int,
        reward: str | Reward | StealthReward,
        resample_candidates: bool,
        platform_seed: int,
        **platform: object,
    ) -> None:
        if not isinstance(resample_candidates, bool):
            raise ArgumentError(
                f"resample_candidates must be True or False, got {resample_candidates!r}"
            )
        self.budget = AttackBudget(n_fake_users=n_fake_users, profile_size=profile_size)
        self.reward = as_reward(reward)
        self.resample_candidates = resample_candidates
        seed = as_count("platform_seed", platform_seed, at_least=0)
        for name in ("data_dir", "cache_dir"):
            if not isinstance(platform.get(name), str | Path | None):
                raise ArgumentError(f"{name} must be a path or None, got {platform[name]!r}")
        self._platform = {**platform, "seed": seed}
        self.simulator = shared_simulator(self._platform)
        if isinstance(self.reward, StealthReward) and not isinstance(
            self.simulator, DefendedSimulator
        ):
            raise ArgumentError(
                f"reward {reward!r} needs a defense that screens accounts, such as "
                f"'pca-varselect', got defense={platform.get('defense')!r}"
            )
        self.copies = np.arange(n_copies)
        self.max_rec_num = self.simulator.max_rec_num
        self.clean_rec_num = self.simulator.clean_rec_num
        self.n_items = self.simulator.n_items
        shape = (n_copies, n_fake_users, profile_size)
        self.clicks = np.full(shape, self.n_items, dtype=np.int64)
        self.n_clicks = np.full(n_copies, -1, dtype=np.int64)
        self.n_queries = np.zeros(n_copies, dtype=np.int64)
        self.last_profiles: NDArray[np.int64] | None = None
        self._rec_num = np.full(n_copies, -1, dtype=np.int64)
        self._exposure = np.zeros((n_copies, len(self.simulator.target_items)), dtype=np.int64)
        self._n_dropped = np.zeros(n_copies, dtype=np.int64)
        self._n_genuine_flagged = np.full(n_copies, -1, dtype=np.int64)

    @property
    def goal(self) -> AttackGoal:
        """Which items the attacks are about, and in which direction."""
        return self.simulator.goal

    @property
    def is_over(self) -> NDArray[np.bool_]:
        """Which copies have spent their budget, shape `(M,)`."""
        over: NDArray[np.bool_] = self.n_clicks == self.budget.n_clicks
        return over

    def spaces(self) -> "tuple[spaces.Dict, spaces.Discrete[np.int64]]":
        """Return the observation and the action space of one copy."""
        n_fake_users, profile_size = self.budget.n_fake_users, self.budget.profile_size
        observation = spaces.Dict(
            {
                "clicks": spaces.Box(0, self.n_items, (profile_size,), np.int64),
                "fake_user": spaces.Discrete(n_fake_users),
                "step": spaces.Discrete(profile_size),
            }
        )
        return observation, spaces.Discrete(self.n_items)

    @property
    def platform(self) -> Mapping[str, object]:
        """Arguments of `make_simulator` that the present platform was made with."""
        return self._platform

    def move_to(self, platform: Mapping[str, object], simulator: PlatformSimulator) -> None:
        """Evaluate attacks elsewhere from now on, also those in progress.

        Args:
            platform: Arguments of `make_simulator` that `simulator` was made with.
            simulator: With the same users, items and goal as the present one.
        """
        self._platform = dict(platform)
        self.simulator = simulator
        self.clean_rec_num = simulator.clean_rec_num

    def begin(self, copies: NDArray[np.int64]) -> None:
        """Start a new attack in these copies, shape `(n,)`; an attack in progress is dropped."""
        self.clicks[copies] = self.n_items
        self.n_clicks[copies] = 0
        self._rec_num[copies] = self._n_genuine_flagged[copies] = -1
        self._exposure[copies] = self._n_dropped[copies] = 0

    def check_running(self, copies: NDArray[np.int64]) -> None:
        """Raise `StateError` if one of these copies, shape `(n,)`, cannot take a click."""
        if (self.n_clicks[copies] < 0).any():
            raise StateError("step was called before the first reset: call reset() first")
        if self.is_over[copies].any():
            raise StateError(
                f"the attack is over (all {self.budget.n_clicks} clicks are spent): call reset() first"
            )

    def click(
        self, item_ids: NDArray[np.int64], copies: NDArray[np.int64], rng: Rng
    ) -> NDArray[np.float64]:
        """Let each of these running copies click once; evaluate those whose budget is then spent.

        Args:
            item_ids: Checked item ids, shape `(n,)`.
            copies: Distinct, shape `(n,)`.
            rng: Gives a copy's generator; asked only with `resample_candidates`.

        Returns:
            Rewards, shape `(n,)`: 0 for copies whose attack goes on.

        Raises:
            Exception: Whatever an evaluation raises. None of the copies has clicked then, and their
                generators have drawn nothing, so the click may be repeated or another one tried.
        """
        rewards = np.zeros(len(copies), dtype=np.float64)
        ends = self.n_clicks[copies] == self.budget.n_clicks - 1
        if ends.any():
            profiles = self.clicks[copies[ends]]
            profiles[:, -1, -1] = item_ids[ends]
            rewards[ends] = self._evaluate(profiles, copies[ends], rng)
        fake_users, steps = np.divmod(self.n_clicks[copies], self.budget.profile_size)
        self.clicks[copies, fake_users, steps] = item_ids
        self.n_clicks[copies] += 1
        return rewards

    def _evaluate(
        self, profiles: NDArray[np.int64], copies: NDArray[np.int64], rng: Rng
    ) -> NDArray[np.float64]:
        """Score the profiles of some copies, shape `(n, N, T)`, and only then note the result."""
        drawing: dict[int, np.random.Generator] = {}
        if self.resample_candidates:
            drawing = {copy: deepcopy(rng(copy)) for copy in copies.tolist()}
            outcomes = [
                self._outcome(profile[None], generator)
                for profile, generator in zip(profiles, drawing.values(), strict=True)
            ]
            exposure, n_dropped, n_genuine_flagged = map(
                np.concatenate, zip(*outcomes, strict=True)
            )
        else:
            exposure, n_dropped, n_genuine_flagged = self._outcome(profiles, None)
        rec_num = exposure.sum(axis=1)
        screened = (
            {"caught_share": n_dropped / self.budget.n_fake_users}
            if isinstance(self.reward, StealthReward)
            else {}
        )
        rewards = np.asarray(
            self.reward(
                rec_num,
                clean_rec_num=self.clean_rec_num,
                max_rec_num=self.max_rec_num,
                direction=self.goal.direction,
                **screened,
            ),
            dtype=np.float64,
        )
        if rewards.shape != rec_num.shape or not np.isfinite(rewards).all():
            raise ArgumentError(
                f"reward must return one finite number per attack, shape {rec_num.shape}, "
                f"got {rewards.tolist()}"
            )
        last = np.full_like(self.clicks, self.n_items)
        if self.last_profiles is not None:
            last[:] = self.last_profiles
        last[copies] = profiles
        last.flags.writeable = False
        self.last_profiles = last
        self._exposure[copies], self._rec_num[copies] = exposure, rec_num
        self._n_dropped[copies], self._n_genuine_flagged[copies] = n_dropped, n_genuine_flagged
        self.n_queries[copies] += 1
        for copy, generator in drawing.items():
            rng(copy).bit_generator.state = generator.bit_generator.state
        return rewards

    def _outcome(
        self, profiles: NDArray[np.int64], rng: np.random.Generator | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return exposure `(n, n_targets)`, fake users dropped and genuine users flagged, `(n,)` each."""
        if isinstance(self.simulator, DefendedSimulator):
            exposure, screened = self.simulator.screened_exposure(profiles, rng=rng)
            return exposure, screened.n_dropped, screened.n_genuine_flagged
        nobody = np.zeros(len(profiles), dtype=np.int64)
        return self.simulator.exposure(profiles, rng=rng), nobody, nobody

    def observe(self) -> dict[str, NDArray[np.int64]]:
        """Return what the copies see, as fresh arrays: `clicks (M, T)`, `fake_user (M,)`, `step (M,)`."""
        position = np.minimum(self.n_clicks, self.budget.n_clicks - 1)
        fake_user, step = np.divmod(position, self.budget.profile_size)
        clicks = self.clicks[self.copies, fake_user]
        return {"clicks": clicks, "fake_user": fake_user, "step": step}

    def info(self) -> dict[str, NDArray[np.int64]]:
        """Return the results of all copies as fresh arrays; every value has M rows."""
        n_copies = len(self.copies)
        screened = (
            {"cost": self._n_dropped.copy(), "n_genuine_flagged": self._n_genuine_flagged.copy()}
            if isinstance(self.simulator, DefendedSimulator)
            else {}
        )
        return {
            "rec_num": self._rec_num.copy(),
            "max_rec_num": np.full(n_copies, self.max_rec_num, dtype=np.int64),
            "clean_rec_num": np.full(n_copies, self.clean_rec_num, dtype=np.int64),
            "target_exposure": self._exposure.copy(),
            "n_queries": self.n_queries.copy(),
            **screened,
        }

    # -- copies of this object: the platform is shared or made again, never copied --------------------

    def __getstate__(self) -> dict[str, Any]:  # Any: the values of __dict__
        return {name: value for name, value in self.__dict__.items() if name != "simulator"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.simulator = shared_simulator(self._platform)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        for shared in (self.simulator, self._platform):
            memo[id(shared)] = shared
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy


class PlatformAttributes:
    """What both environments show of the platform and of the attack; read-only."""

    _episodes: Episodes

    @property
    def simulator(self) -> PlatformSimulator:
        """The simulated platform: for researchers, not for attackers (see `BlackBox`)."""
        return self._episodes.simulator

    @property
    def budget(self) -> AttackBudget:
        """What an attack spends."""
        return self._episodes.budget

    @property
    def goal(self) -> AttackGoal:
        """Which items an attack is about, and in which direction."""
        return self._episodes.goal

    @property
    def target_items(self) -> NDArray[np.int64]:
        """Ids of the target items, shape `(n_targets,)`."""
        targets = self._episodes.simulator.target_items.view()
        targets.flags.writeable = False
        return targets

    @property
    def item_popularity(self) -> NDArray[np.int64]:
        """Clicks of each item before any attack, shape `(n_items,)`."""
        return self._episodes.simulator.item_popularity


def as_seed(name: str, seed: object) -> int | None:
    """Return a seed as an int or `None`, or raise `ArgumentError`."""
    return None if seed is None else as_count(name, seed, at_least=0)


def check_options(options: object, known: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the options of a reset as a mapping, or raise `ArgumentError` if one is unknown."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ArgumentError(f"options must be a dict or None, got {options!r}")
    for name in options:
        if name not in known:
            raise UnknownNameError("option of reset", name, known)
    return options
