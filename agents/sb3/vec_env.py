"""Let Stable-Baselines3 train on a native Gymnasium vector environment."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

import recattack_gym
from recattack_gym.core.checks import as_count
from recattack_gym.core.errors import ArgumentError, StateError

recattack_gym.register_envs()

AnyVectorEnv = VectorEnv[Any, Any, Any]  # Any: adapts whatever observations the environment has


class GymnasiumVecEnv(VecEnv):
    """A Gymnasium vector environment in the shape that Stable-Baselines3 wants.

    Stable-Baselines3 has its own `VecEnv` and refuses Gymnasium's. One step of this adapter is one step
    of the vector environment: all copies together, without a Python loop over environments. Its
    observations, rewards, ends and infos equal those of a `DummyVecEnv` of single environments.

    Args:
        env: A vector environment that resets in the same step, like
            `gymnasium.make_vec(env_id, n_envs, autoreset_mode="SameStep")`.

    Raises:
        ArgumentError: If it is no vector environment or resets in another way.
    """

    def __init__(self, env: AnyVectorEnv) -> None:
        if not isinstance(env, VectorEnv):
            raise ArgumentError(f"env must be a gymnasium VectorEnv, got {type(env).__name__}")
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ArgumentError(
                "env must reset in the same step (autoreset_mode='SameStep'), "
                f"got {env.metadata.get('autoreset_mode')}"
            )
        self.env = env
        self._copies = list(range(env.num_envs))
        self._actions: NDArray[Any] | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start new episodes in all copies, with what `seed` and `set_options` gave."""
        if any(options != self._options[0] for options in self._options):
            raise ArgumentError("options must be the same for all copies of a vector environment")
        observation, info = self.env.reset(
            seed=cast("int", list(self._seeds)),  # Gymnasium annotates int, and takes one per copy
            options=self._options[0] or None,
        )
        self.reset_infos = _rows(info, self._copies)
        self._reset_seeds()
        self._reset_options()
        return cast("VecEnvObs", observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all copies; one whose episode ends is already in its next one."""
        if self._actions is None:
            raise StateError("step_wait was called without actions: call step_async(actions) first")
        actions, self._actions = self._actions, None
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        dones = terminated | truncated
        final_obs, final_info = info.pop("final_obs", None), info.pop("final_info", {})
        infos = _rows(info, self._copies)
        ended = np.flatnonzero(dones).tolist()
        for copy, last in zip(ended, _rows(final_info, ended), strict=True):
            self.reset_infos[copy] = infos[copy]
            infos[copy] = {**last, "terminal_observation": final_obs[copy]}
        for copy in range(self.num_envs):
            infos[copy]["TimeLimit.truncated"] = bool(truncated[copy] and not terminated[copy])
        return cast("VecEnvObs", observation), rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()

    def get_images(self) -> list[NDArray[np.uint8] | None]:
        """Return a picture of each copy, `None` without `render_mode="rgb_array"`."""
        if self.env.render_mode != "rgb_array":
            return [None] * self.num_envs
        return list(cast("Iterable[NDArray[np.uint8]]", self.env.render()))

    # -- attributes of the copies, which the vector environment has for all of them together -----

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of each copy: its own row, or what all share."""
        owner = self._owner(attr_name)
        return self._per_copy(owner, attr_name, getattr(owner, attr_name), indices)

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Refuse: copies of a vector environment have no attributes of their own to set."""
        del indices
        raise StateError(
            f"set_attr({attr_name!r}, {value!r}) cannot change copies of a vector environment: "
            "make a new one with other arguments"
        )

    def env_method(
        self,
        method_name: str,
        *method_args: object,
        indices: VecEnvIndices = None,
        **method_kwargs: object,
    ) -> list[Any]:
        """Call a method of the vector environment once; return each copy's row, or what all share."""
        owner = self._owner(method_name)
        result = getattr(owner, method_name)(*method_args, **method_kwargs)
        return self._per_copy(owner, method_name, result, indices)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Tell whether a vector wrapper of this class is around the environment, for each copy."""
        is_wrapped = any(isinstance(layer, wrapper_class) for layer in self._layers())
        return [is_wrapped for _ in self._get_indices(indices)]

    def _layers(self) -> list[AnyVectorEnv]:
        layers = [self.env]
        while isinstance(layers[-1], VectorWrapper):
            layers.append(layers[-1].env)
        return layers

    def _owner(self, name: str) -> AnyVectorEnv:
        """Return the outermost layer that has an attribute of this name."""
        for layer in self._layers():
            if hasattr(layer, name):
                return layer
        raise AttributeError(f"no layer of {self.env} has an attribute {name!r}")

    def _per_copy(
        self,
        owner: AnyVectorEnv,
        name: str,
        value: Any,  # noqa: ANN401  # whatever the attribute is
        indices: VecEnvIndices,
    ) -> list[Any]:
        copies = self._get_indices(indices)
        if value is None or name not in getattr(owner, "per_copy_attributes", ()):
            return [value for _ in copies]
        rows = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
        return [rows[copy] for copy in copies]


def make_sb3_vec_env(
    env_id: str,
    n_envs: int = 1,
    *,
    seed: int | None = None,
    monitor: bool = True,
    wrapper: Callable[[AnyVectorEnv], AnyVectorEnv] | None = None,
    **env_kwargs: Any,  # noqa: ANN401  # the environment checks them
) -> VecEnv:
    """Make copies of an environment that Stable-Baselines3 trains on, all evaluated together.

    ```python
    envs = make_sb3_vec_env("recattack_gym:RecPoison-BPR-v0", n_envs=32, seed=0)
    PPO("MultiInputPolicy", envs, n_steps=400, gamma=1.0, gae_lambda=1.0).learn(128_000)
    ```

    Args:
        env_id: Any id of `envs_registry`, with or without `recattack_gym:` before it, or any other id
            with a native vector environment that takes `autoreset_mode`.
        n_envs: Copies.
        seed: Copy `i` is reset with `seed + i`; `None` leaves the seeds to chance.
        monitor: Whether to add `VecMonitor`, which gives `rollout/ep_rew_mean`.
        wrapper: A vector wrapper to put around the environment, such as `FlatVectorObservation`.
        **env_kwargs: Arguments of the environment.

    Raises:
        ArgumentError: If an argument is wrong.
    """
    first = None if seed is None else as_count("seed", seed, at_least=0)
    native = gym.make_vec(
        env_id,
        num_envs=as_count("n_envs", n_envs),
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.SAME_STEP.value,
        **env_kwargs,
    )
    envs: VecEnv = GymnasiumVecEnv(native if wrapper is None else wrapper(native))
    if first is not None:
        envs.seed(first)
        envs.action_space.seed(first)
    return VecMonitor(envs) if monitor else envs


def _rows(info: dict[str, Any], copies: Sequence[int]) -> list[dict[str, Any]]:
    """Split a batched info, with its masks `_key`, into one dict per copy in `copies`."""
    rows: list[dict[str, Any]] = [{} for _ in copies]
    for key in info:
        if f"_{key}" not in info:
            continue
        values, reported = info[key], info[f"_{key}"]
        if isinstance(values, dict):
            cells: Sequence[Any] = _rows(values, copies)
        elif values.ndim == 1:
            cells = values[copies].tolist()
        else:
            cells = [values[copy].copy() for copy in copies]
        for row, copy, cell in zip(rows, copies, cells, strict=True):
            if reported[copy]:
                row[key] = cell
    return rows
