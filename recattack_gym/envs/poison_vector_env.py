"""The vector environment: M attacks on one platform, evaluated together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from recattack_gym.core.attack import Direction
from recattack_gym.core.checks import as_count, as_ids
from recattack_gym.core.errors import ArgumentError, StateError
from recattack_gym.core.interactions import Interactions
from recattack_gym.datasets import Dataset
from recattack_gym.envs.episodes import (
    Episodes,
    PlatformAttributes,
    as_seed,
    check_options,
)
from recattack_gym.envs.rendering import RENDER_FPS, RENDER_MODES, Screen
from recattack_gym.envs.rewards import Reward, StealthReward
from recattack_gym.simulator import Defense
from recattack_gym.victims.base import Retrain, Victim, VictimConfig

VectorObservation = dict[str, NDArray[np.int64]]
VectorInfo = dict[str, Any]  # Any: arrays with one row per copy, and dicts of such arrays


class PoisonVectorEnv(
    PlatformAttributes, VectorEnv[VectorObservation, NDArray[np.int64], NDArray[Any]]
):
    """Run M attacks side by side and evaluate all that end together in one call of the simulator.

    ## Description

    `PoisonEnv` M times on one platform, in one process, without M environments: what `gymnasium.make_vec`
    returns for every `RecPoison-<victim>-v0`.

    ```python
    envs = gymnasium.make_vec("recattack_gym:RecPoison-BPR-v0", num_envs=32, autoreset_mode="SameStep")
    ```

    Every observation, reward and info equals that of a `SyncVectorEnv` of M `PoisonEnv`s in the same
    autoreset mode.

    ## Action Space

    `MultiDiscrete([n_items] * M)`: one item per copy. `action_masks()` is `(M, n_items)`, all true.

    ## Observation Space

    `PoisonEnv`'s, batched: `clicks (M, T)`, `fake_user (M,)`, `step (M,)`.

    ## Starting State

    Fake user 0 without clicks in every copy.

    ## Rewards

    `PoisonEnv`'s, float64 `(M,)`.

    ## Episode End

    A copy's attack is over after `n_fake_users * profile_size` clicks. What follows depends on
    `autoreset_mode`:

    * `"NextStep"` (Gymnasium's default; RLlib): the last click returns the observation of the ended
      attack. The next step resets the copy, ignores its action and pays 0, so an episode takes one
      step more than it has clicks.
    * `"SameStep"` (Stable-Baselines3, TorchRL): the last click returns the first observation of the new
      attack; what belongs to the ended one is in `info["final_obs"]` and `info["final_info"]`.
    * `"Disabled"` (TorchRL): the copy cannot click until `reset(options={"reset_mask": mask})`, where
      `mask` is a bool array of shape `(M,)`.

    ## Information

    `PoisonEnv`'s keys, each with M rows, and a bool mask `_<key>` of the copies that reported it.

    ## Arguments

    Args:
        num_envs: Copies, M.
        autoreset_mode: `"NextStep"`, `"SameStep"`, `"Disabled"`, or Gymnasium's `AutoresetMode`. Use the
            text where the spec has to survive JSON.
        victim: This and all other arguments are `PoisonEnv`'s.
        dataset: See `PoisonEnv`.
        protocol: See `PoisonEnv`.
        n_fake_users: See `PoisonEnv`.
        profile_size: See `PoisonEnv`.
        targets: See `PoisonEnv`.
        direction: See `PoisonEnv`.
        k: See `PoisonEnv`.
        n_candidates: See `PoisonEnv`.
        resample_candidates: See `PoisonEnv`; copies then draw from generators of their own, and are
            evaluated one by one.
        retrain: See `PoisonEnv`.
        reward: See `PoisonEnv`.
        defense: See `PoisonEnv`.
        victim_config: See `PoisonEnv`.
        platform_seed: See `PoisonEnv`.
        device: See `PoisonEnv`.
        data_dir: See `PoisonEnv`.
        cache_dir: See `PoisonEnv`.
        render_mode: See `PoisonEnv`; `render()` returns one picture per copy, `"human"` shows the first.

    Raises:
        ArgumentError: If an argument is wrong; unknown names suggest the nearest.
        DatasetNotFoundError: If the dataset is not on this machine and cannot be fetched.

    ## References

    See `PoisonEnv`. Farama Foundation, Vector environments, autoreset modes:
    https://farama.org/Vector-Autoreset-Mode

    ## Version History

    * v0: first version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  # an instance variable of VectorEnv
        "render_modes": list(RENDER_MODES),
        "render_fps": RENDER_FPS,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }
    per_copy_attributes = (
        "action_masks",
        "last_profiles",
        "n_queries",
        "np_random",
        "np_random_seed",
    )
    """Attributes and methods whose values have one row per copy; all others are shared."""

    def __init__(
        self,
        *,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        victim: str | type[Victim] = "BPR",
        dataset: str | Dataset | Interactions = "synthetic",
        protocol: str | None = None,
        n_fake_users: int = 20,
        profile_size: int = 20,
        targets: int | Sequence[int] = 8,
        direction: Direction = "push",
        k: int = 10,
        n_candidates: int | None = 100,
        resample_candidates: bool = False,
        retrain: Retrain = "finetune",
        reward: str | Reward | StealthReward = "rec_num",
        defense: Defense = None,
        victim_config: VictimConfig | Mapping[str, object] | None = None,
        platform_seed: int = 0,
        device: str = "cpu",
        data_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.num_envs = as_count("num_envs", num_envs)
        self.autoreset_mode = _as_autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self._screen = Screen(render_mode)
        self._episodes = Episodes(
            self.num_envs,
            n_fake_users=n_fake_users,
            profile_size=profile_size,
            reward=reward,
            resample_candidates=resample_candidates,
            platform_seed=platform_seed,
            victim=victim,
            dataset=dataset,
            protocol=protocol,
            targets=targets,
            direction=direction,
            k=k,
            n_candidates=n_candidates,
            retrain=retrain,
            defense=defense,
            victim_config=victim_config,
            device=device,
            data_dir=data_dir,
            cache_dir=cache_dir,
        )
        self.single_observation_space, self.single_action_space = self._episodes.spaces()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rngs: list[np.random.Generator | None] = [None] * self.num_envs
        self._rng_seeds: list[int | None] = [None] * self.num_envs

    @property
    def n_queries(self) -> NDArray[np.int64]:
        """Attacks evaluated in each copy since it was made, shape `(M,)`."""
        return self._episodes.n_queries.copy()

    @property
    def last_profiles(self) -> NDArray[np.int64] | None:
        """Clicks of each copy's last finished attack, shape `(M, N, T)`, read-only.

        `None` before any copy has finished one; a copy that has not is filled with `n_items`, as
        unused places of an observation are.
        """
        return self._episodes.last_profiles

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which items may be clicked, shape `(M, n_items)`: always all, repeats included."""
        return np.ones((self.num_envs, self._episodes.n_items), dtype=np.bool_)

    # -- randomness ------------------------------------------------------------------------------

    @property  # type: ignore[misc]  # as in SyncVectorEnv: several generators, none to be set
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]  # as above
        """The generator of each copy."""
        return tuple(self._rng(copy) for copy in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]  # as SyncVectorEnv
        """What each copy's generator was seeded with."""
        _ = self.np_random
        return tuple(self._rng_seeds)

    def _rng(self, copy: int) -> np.random.Generator:
        rng = self._rngs[copy]
        if rng is None:
            rng, self._rng_seeds[copy] = seeding.np_random()
            self._rngs[copy] = rng
        return rng

    # -- the interface of Gymnasium --------------------------------------------------------------

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[VectorObservation, VectorInfo]:
        """Start new attacks, in all copies or in some.

        Args:
            seed: `seed + i` for copy `i`; or one seed, or `None`, per copy.
            options: `{"reset_mask": ...}`, a bool array of shape `(M,)` with at least one `True`, resets
                those copies only. The dict is not changed.

        Returns:
            Observations of all copies, and the info of the copies that were reset.

        Raises:
            ArgumentError: If a seed or an option is wrong; nothing has changed then.
            StateError: If the first reset leaves out a copy.
        """
        seeds = self._as_seeds(seed)
        copies = self._as_copies(check_options(options, known=("reset_mask",)))
        for copy in copies.tolist():
            if seeds[copy] is not None:
                self._rngs[copy], self._rng_seeds[copy] = seeding.np_random(seeds[copy])
        self._episodes.begin(copies)
        self._screen.follow(self._episodes, 0)
        return self._episodes.observe(), self._info(copies)

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[
        VectorObservation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], VectorInfo
    ]:
        """Let the current fake user of every copy click one item.

        What happens at the end of an attack depends on `autoreset_mode`: see the class.

        Args:
            actions: One item id per copy, shape `(M,)`.

        Returns:
            Observations, rewards `(M,)`, which attacks are over `(M,)`, `False` `(M,)`, info.

        Raises:
            ArgumentError: If an action is no item id, or the reward function pays nonsense.
            StateError: Before the first reset, if retraining diverged, or, if resetting is disabled,
                after the end of an attack.

        If an evaluation raises, no copy has clicked: the step may be repeated with other actions.
        """
        episodes = self._episodes
        waits = episodes.is_over & (self.autoreset_mode is AutoresetMode.NEXT_STEP)
        clicking = np.flatnonzero(~waits)
        episodes.check_running(clicking)
        item_ids = self._as_actions(actions, waits)[clicking]
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        rewards[clicking] = episodes.click(item_ids, clicking, self._rng)
        if waits.any():
            episodes.begin(np.flatnonzero(waits))
        terminated = episodes.is_over
        final: VectorInfo = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and terminated.any():
            final = self._final(np.flatnonzero(terminated))
            episodes.begin(np.flatnonzero(terminated))
        self._screen.follow(self._episodes, 0)
        info = {**final, **self._info(episodes.copies)}
        return episodes.observe(), rewards, terminated, np.zeros_like(terminated), info

    def render(self) -> tuple[str | NDArray[np.uint8], ...] | None:
        """Show every copy's attack so far; see `PoisonEnv.render`. `"human"` shows the first copy."""
        if self.render_mode == "human":
            self._screen.show(self._episodes, 0)
            return None
        frames = (self._screen.show(self._episodes, copy) for copy in range(self.num_envs))
        return tuple(frame for frame in frames if frame is not None)

    def close_extras(self) -> None:
        """Close the window, if there is one."""
        self._screen.close()

    # -- parts -----------------------------------------------------------------------------------

    def _as_seeds(self, seed: object) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str | bytes):
            if len(seed) != self.num_envs:
                raise ArgumentError(
                    f"seed must have one entry per copy, {self.num_envs}, got {len(seed)}"
                )
            return [as_seed(f"seed[{copy}]", value) for copy, value in enumerate(seed)]
        first = as_count("seed", seed, at_least=0)
        return [first + copy for copy in range(self.num_envs)]

    def _as_copies(self, options: Mapping[str, Any]) -> NDArray[np.int64]:
        mask = options.get("reset_mask")
        if mask is None:
            return self._episodes.copies
        if (
            not isinstance(mask, np.ndarray)
            or mask.dtype != np.bool_
            or mask.shape != (self.num_envs,)
            or not mask.any()
        ):
            raise ArgumentError(
                f"options['reset_mask'] must be a bool array of shape ({self.num_envs},) with at least "
                f"one True, got {mask!r}"
            )
        if (self._episodes.n_clicks[~mask] < 0).any():
            raise StateError("the first reset must reset every copy: call reset() without a mask")
        return np.flatnonzero(mask)

    def _as_actions(self, actions: object, waits: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Check the actions of all copies but those that wait for their reset and ignore theirs."""
        given = np.asarray(actions)
        if waits.any() and given.shape == waits.shape:
            given = np.where(waits, np.zeros_like(given), given)
        return as_ids("actions", given, below=self._episodes.n_items, shape=(self.num_envs,))

    def _final(self, copies: NDArray[np.int64]) -> VectorInfo:
        """Return what SAME_STEP reports of the attacks that have just ended in these copies."""
        ended = np.zeros(self.num_envs, dtype=np.bool_)
        ended[copies] = True
        observed = self._episodes.observe()
        final_obs = np.full(self.num_envs, None, dtype=object)
        for copy in copies:
            final_obs[copy] = {
                name: np.copy(values[copy]) if values.ndim > 1 else values[copy]
                for name, values in observed.items()
            }
        return {
            "final_obs": final_obs,
            "_final_obs": ended,
            "final_info": self._info(copies),
            "_final_info": ended.copy(),
        }

    def _info(self, copies: NDArray[np.int64]) -> VectorInfo:
        """Return the info of these copies; rows of others are zero and masked, as in SyncVectorEnv."""
        has_info = np.zeros(self.num_envs, dtype=np.bool_)
        has_info[copies] = True
        info: VectorInfo = {}
        for name, values in self._episodes.info().items():
            values[~has_info] = 0
            info[name], info[f"_{name}"] = values, has_info.copy()
        return info


def _as_autoreset_mode(mode: object) -> AutoresetMode:
    for known in AutoresetMode:
        if mode in (known, known.value):
            return known
    names = ", ".join(repr(known.value) for known in AutoresetMode)
    raise ArgumentError(f"autoreset_mode must be one of {names}, got {mode!r}")
