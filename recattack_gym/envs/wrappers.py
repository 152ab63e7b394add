"""Other action and observation spaces for the same attack, and the attacker's side of an environment."""

from collections.abc import Callable
from typing import Any, Never, SupportsIndex

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorActionWrapper, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from recattack_gym.core.attack import AttackBudget, AttackGoal
from recattack_gym.core.errors import ArgumentError, KnowledgeError
from recattack_gym.core.groups import group_items as group_items  # part of this module, too
from recattack_gym.envs.poison_env import Info, Observation, PoisonEnv
from recattack_gym.envs.poison_vector_env import PoisonVectorEnv, VectorInfo, VectorObservation
from recattack_gym.envs.rendering import Frame

# -- grouped actions -----------------------------------------------------------------------------


class GroupedActions(
    gym.ActionWrapper[Observation, NDArray[np.int64], np.int64], RecordConstructorArgs
):
    """Click by group and place: `MultiDiscrete([n_groups, size])` instead of `Discrete(n_items)`.

    A policy with two small heads instead of one as wide as the catalogue is much cheaper and can tell
    targets from popular and from unpopular items; see `group_items` for the groups.

    Args:
        env: A `PoisonEnv`, wrapped or not, or a `BlackBox`.
        n_bands: How many bands of popularity; `None` makes about as many as a band has items.

    Raises:
        ArgumentError: If the environment is another one, or there are fewer items than bands.
    """

    def __init__(self, env: gym.Env[Observation, np.int64], n_bands: int | None = None) -> None:
        RecordConstructorArgs.__init__(self, n_bands=n_bands)
        gym.ActionWrapper.__init__(self, env)
        base = _base(env)
        self.items = group_items(base.item_popularity, base.target_items, n_bands)
        self.items.flags.writeable = False
        self.action_space = spaces.MultiDiscrete(list(self.items.shape))

    def action(self, action: ArrayLike) -> np.int64:
        """Return the item id at (group, place).

        Raises:
            ArgumentError: If the group or the place does not exist.
        """
        group, place = _as_cells(action, self.items, shape=(2,))
        return np.int64(self.items[group, place])

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which groups and places may be chosen, shape `(n_groups + size,)`: always all."""
        return np.ones(sum(self.items.shape), dtype=np.bool_)


class GroupedVectorActions(VectorActionWrapper):
    """`GroupedActions` for `PoisonVectorEnv`: actions of shape `(M, 2)`.

    Args:
        env: A `PoisonVectorEnv`, wrapped or not.
        n_bands: See `GroupedActions`.

    Raises:
        ArgumentError: See `GroupedActions`.
    """

    per_copy_attributes = ("action_masks",)
    """See `PoisonVectorEnv`."""

    def __init__(
        self,
        env: VectorEnv[VectorObservation, NDArray[np.int64], NDArray[Any]],
        n_bands: int | None = None,
    ) -> None:
        super().__init__(env)
        base = _vector_base(env)
        self.items = group_items(base.item_popularity, base.target_items, n_bands)
        self.items.flags.writeable = False
        self.single_action_space = spaces.MultiDiscrete(list(self.items.shape))
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def actions(self, actions: ArrayLike) -> NDArray[np.int64]:
        """Return the item ids at (group, place), shape `(M,)`; `actions` is `(M, 2)`."""
        cells = _as_cells(actions, self.items, shape=(self.num_envs, 2))
        return self.items[cells[:, 0], cells[:, 1]]

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which groups and places may be chosen, `(M, n_groups + size)`: always all."""
        return np.ones((self.num_envs, sum(self.items.shape)), dtype=np.bool_)


def _as_cells(
    action: ArrayLike, table: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    cells = np.asarray(action)
    if (
        cells.shape != shape
        or not np.issubdtype(cells.dtype, np.integer)
        or (cells < 0).any()
        or (cells >= table.shape).any()
    ):
        raise ArgumentError(
            f"action must be whole numbers (group, place) below {table.shape}, of shape {shape}, "
            f"got {action!r}"
        )
    return cells.astype(np.int64, copy=False)


# -- flat observations ---------------------------------------------------------------------------


def flat_space(n_fake_users: int, profile_size: int) -> "spaces.Box[np.float32]":
    """Return the space of `flatten_observation` for one copy."""
    return spaces.Box(0.0, 1.0, (profile_size + n_fake_users + 1,), np.float32)


def flatten_observation(
    observation: VectorObservation, n_items: int, n_fake_users: int
) -> NDArray[np.float32]:
    """Turn batched observations into vectors of floats in `[0, 1]`.

    Args:
        observation: `clicks (M, T)`, `fake_user (M,)`, `step (M,)`.
        n_items: Size of the catalogue, which is also what unused places hold.
        n_fake_users: N.

    Returns:
        Shape `(M, T + N + 1)`: each click as `(item id + 1) / n_items`, 0 where there is none yet; the
        fake user as one-hot; the share of its clicks that are made.
    """
    clicks = observation["clicks"]
    n_copies, profile_size = clicks.shape
    flat = np.zeros((n_copies, profile_size + n_fake_users + 1), dtype=np.float32)
    flat[:, :profile_size] = np.where(clicks == n_items, 0.0, (clicks + 1) / n_items)
    flat[np.arange(n_copies), profile_size + observation["fake_user"]] = 1.0
    flat[:, -1] = (clicks != n_items).sum(axis=1) / profile_size
    return flat


class FlatObservation(
    gym.ObservationWrapper[NDArray[np.float32], np.int64, Observation], RecordConstructorArgs
):
    """Observe a vector of floats, for `MlpPolicy`, CleanRL and RLlib's default encoder.

    Its size, `profile_size + n_fake_users + 1`, does not depend on the catalogue; see
    `flatten_observation` for what it holds. An id scaled to a float says little about the item: where
    a policy can embed ids, give it the original observation.

    Args:
        env: A `PoisonEnv`, wrapped or not, or a `BlackBox`.

    Raises:
        ArgumentError: If the environment is another one.
    """

    def __init__(self, env: gym.Env[Observation, np.int64]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        base = _base(env)
        self._n_items, self._n_fake_users = len(base.item_popularity), base.budget.n_fake_users
        self.observation_space = flat_space(self._n_fake_users, base.budget.profile_size)

    def observation(self, observation: Observation) -> NDArray[np.float32]:
        """Return the observation as a vector."""
        batch = {name: np.asarray(value)[None] for name, value in observation.items()}
        flat: NDArray[np.float32] = flatten_observation(batch, self._n_items, self._n_fake_users)[0]
        return flat


class FlatVectorObservation(VectorWrapper):
    """`FlatObservation` for `PoisonVectorEnv`, in every autoreset mode.

    Args:
        env: A `PoisonVectorEnv`, wrapped or not.

    Raises:
        ArgumentError: If the environment is another one.
    """

    def __init__(self, env: VectorEnv[VectorObservation, NDArray[np.int64], NDArray[Any]]) -> None:
        super().__init__(env)
        base = _vector_base(env)
        self._n_items, self._n_fake_users = len(base.item_popularity), base.budget.n_fake_users
        self.single_observation_space = flat_space(self._n_fake_users, base.budget.profile_size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], VectorInfo]:
        """See `PoisonVectorEnv.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._flatten(observation), info

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], VectorInfo]:
        """See `PoisonVectorEnv.step`; final observations are flattened too."""
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        if "final_obs" in info:
            final = np.full(self.num_envs, None, dtype=object)
            for copy in np.flatnonzero(info["_final_obs"]):
                last = {
                    name: np.asarray(value)[None] for name, value in info["final_obs"][copy].items()
                }
                final[copy] = self._flatten(last)[0]
            info = {**info, "final_obs": final}
        return self._flatten(observation), rewards, terminated, truncated, info

    def _flatten(self, observation: VectorObservation) -> NDArray[np.float32]:
        return flatten_observation(observation, self._n_items, self._n_fake_users)


# -- the attacker's side -------------------------------------------------------------------------

PLATFORM_INFO = ("detector_round", "detector_auc", "detector_recall")
"""What `ArmsRace` adds to info for researchers; a platform would not tell an attacker."""


class BlackBox(gym.Env[Observation, np.int64]):
    """What a black-box attacker may have of an environment; nothing leads from it to the platform.

    To everything outside, this is the innermost environment: `unwrapped` returns the black box itself
    (Gymnasium and Stable-Baselines3 ask for it), and `unwrapped.simulator` raises. There is no spec,
    since that names the victim. It cannot be copied or pickled. Pictures show neither the victim nor the
    dataset nor what each target had before the attack; `env.render()` does not either from then on, since
    it may draw the attacker's window.

    Args:
        env: A `PoisonEnv`, wrapped or not.

    Raises:
        ArgumentError: If the environment is another one.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        base = env.unwrapped
        if not isinstance(base, PoisonEnv):
            raise ArgumentError(f"env must be a PoisonEnv, wrapped or not, got {env!r}")
        base.hide_platform()
        self.action_space, self.observation_space = env.action_space, env.observation_space
        self.metadata, self.render_mode = env.metadata, env.render_mode
        self.budget: AttackBudget = base.budget
        self.goal: AttackGoal = base.goal
        self.target_items = base.target_items
        self.item_popularity = base.item_popularity
        # Closures and not attributes, so that no attribute of a black box is an environment.
        self._step: Callable[[Any], tuple[Any, ...]] = lambda action: _told(env.step(action))
        self._reset: Callable[[Any, Any], tuple[Any, Any]] = lambda seed, options: _told(
            env.reset(seed=seed, options=options)
        )
        self._render: Callable[[], Any] = lambda: env.render()
        self._close: Callable[[], None] = lambda: env.close()
        self._n_queries: Callable[[], int] = lambda: base.n_queries
        self._last_profiles: Callable[[], NDArray[np.int64] | None] = lambda: base.last_profiles
        self._action_masks: Callable[[], NDArray[np.bool_]] = lambda: env.get_wrapper_attr(
            "action_masks"
        )()

    @property
    def simulator(self) -> Never:
        """Raise `KnowledgeError`."""
        raise KnowledgeError(
            "the simulator is the platform's side: an attacker sees observations, rewards, info, "
            "item_popularity, target_items, budget and goal"
        )

    @property
    def n_queries(self) -> int:
        """See `PoisonEnv.n_queries`."""
        return self._n_queries()

    @property
    def last_profiles(self) -> NDArray[np.int64] | None:
        """See `PoisonEnv.last_profiles`."""
        return self._last_profiles()

    def action_masks(self) -> NDArray[np.bool_]:
        """See `PoisonEnv.action_masks`."""
        return self._action_masks()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """See `PoisonEnv.reset`."""
        started: tuple[Observation, Info] = self._reset(seed, options)
        super().reset(seed=seed)
        return started

    def step(self, action: int | np.int64) -> tuple[Observation, float, bool, bool, Info]:
        """See `PoisonEnv.step`."""
        observation, reward, terminated, truncated, info = self._step(action)
        return observation, float(reward), terminated, truncated, info

    def render(self) -> Frame:
        """See `PoisonEnv.render`."""
        frame: Frame = self._render()
        return frame

    def close(self) -> None:
        """See `PoisonEnv.close`."""
        self._close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> Never:
        raise KnowledgeError(
            "a BlackBox cannot be copied or pickled, since that would open it: wrap a copy instead"
        )


def _told(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what `reset` or `step` answered without `PLATFORM_INFO`; info comes last."""
    *others, info = answer
    return *others, {name: value for name, value in info.items() if name not in PLATFORM_INFO}


def _base(env: gym.Env[Any, Any]) -> PoisonEnv | BlackBox:
    base = env.unwrapped
    if isinstance(base, PoisonEnv | BlackBox):
        return base
    raise ArgumentError(f"env must be a PoisonEnv or a BlackBox, wrapped or not, got {env!r}")


def _vector_base(env: VectorEnv[Any, Any, Any]) -> PoisonVectorEnv:
    base = env.unwrapped
    if isinstance(base, PoisonVectorEnv):
        return base
    raise ArgumentError(
        f"env must be a PoisonVectorEnv, wrapped or not (gymnasium.make_vec), got {env!r}"
    )
