"""A view of a platform as a vector environment, so that Stable-Baselines3 learns under a query budget."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from agents.search import Trials
from recattack_gym.core.attack import AttackBudget, AttackGoal
from recattack_gym.core.checks import as_count
from recattack_gym.core.errors import StateError
from recattack_gym.core.view import AttackerView


class ViewVecEnv(VecEnv):
    """M attacks on the platform behind a view, click by click and all in step.

    Spaces and observations are those of the `RecPoison` environments. The last click of the attacks asks
    `trials` once for all of them.

    **Reward.** 0 for every click but the last. A view shows neither the largest possible RecNum nor that
    without attack, so the last click is paid what the attacker maximises (RecNum, or minus RecNum where
    targets are demoted) relative to all answers so far, these included: less their mean, over their
    standard deviation, 1 where all are equal. Episodes are equally long and undiscounted, so a constant
    in the reward changes nothing for the agent.

    **Budget.** If fewer queries are left than there are attacks, only the first of them are evaluated;
    the others are paid 0 and their info has no `rec_num`.

    Args:
        view: The platform as the attacker sees it.
        n_envs: M.
        trials: What counts queries and keeps the best set.
        items: Turns cells into items: a table of item ids, for actions (row, column) of a `MultiDiscrete`
            space, see `group_items`; `None`: an action is an item id.
    """

    def __init__(
        self,
        view: AttackerView,
        n_envs: int,
        trials: Trials,
        items: NDArray[np.int64] | None = None,
    ) -> None:
        self.budget: AttackBudget = view.budget
        self.goal: AttackGoal = view.goal
        self.item_popularity = view.item_popularity
        self.target_items = np.array(view.goal.target_items, dtype=np.int64)
        self.items = items
        self.render_mode: str | None = None
        self._trials = trials
        self._sign = 1 if view.goal.direction == "push" else -1
        self._n_items = view.n_items
        self._answers = np.zeros(0)
        self._actions: NDArray[np.int64] | None = None
        shape = (as_count("n_envs", n_envs), self.budget.n_fake_users, self.budget.profile_size)
        self._clicks = np.full(shape, view.n_items, dtype=np.int64)
        self._n_clicks = 0
        observation = spaces.Dict(
            {
                "clicks": spaces.Box(0, view.n_items, (self.budget.profile_size,), np.int64),
                "fake_user": spaces.Discrete(self.budget.n_fake_users),
                "step": spaces.Discrete(self.budget.profile_size),
            }
        )
        action = (
            spaces.Discrete(view.n_items)
            if items is None
            else spaces.MultiDiscrete(list(items.shape))
        )
        super().__init__(n_envs, observation, action)

    @property
    def n_steps(self) -> int:
        """Clicks of an attack, N x T."""
        return self.budget.n_clicks

    def reset(self) -> VecEnvObs:
        """Begin new attacks; those in progress are dropped without a query."""
        self._clicks[:] = self._n_items
        self._n_clicks = 0
        return self._observe()

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Take the actions of the next step, shape `(M,)` or `(M, 2)`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Click once in every attack; after the last click new ones have begun.

        Raises:
            StateError: If there are no actions, or if no query is left for the last click.
        """
        if self._actions is None:
            raise StateError("step_wait was called without actions: call step_async(actions) first")
        actions, self._actions = self._actions, None
        chosen = actions if self.items is None else self.items[actions[:, 0], actions[:, 1]]
        self._clicks.reshape(self.num_envs, -1)[:, self._n_clicks] = chosen
        self._n_clicks += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if self._n_clicks < self.n_steps:
            none = np.zeros(self.num_envs, dtype=np.bool_)
            return self._observe(), np.zeros(self.num_envs, dtype=np.float32), none, infos
        last, rewards = self._observe(), self._evaluate(infos)
        assert isinstance(last, dict)  # noqa: S101  # _observe returns one
        for copy, info in enumerate(infos):
            info["terminal_observation"] = {name: values[copy] for name, values in last.items()}
            info["TimeLimit.truncated"] = False
        return self.reset(), rewards, np.ones(self.num_envs, dtype=np.bool_), infos

    def _evaluate(self, infos: Sequence[dict[str, Any]]) -> NDArray[np.float32]:
        """Query, write RecNum into the infos and return the rewards, shape `(M,)`."""
        if self._trials.is_spent:
            raise StateError("no query is left of the attacker's budget")
        n_asked = min(self.num_envs, self._trials.n_left)
        worth = self._trials.query(self._clicks[:n_asked])
        for info, answer in zip(infos, worth, strict=False):
            info["rec_num"] = int(self._sign * answer)
        self._answers = np.concatenate([self._answers, worth])
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        rewards[:n_asked] = (worth - self._answers.mean()) / (self._answers.std() or 1.0)
        return rewards

    def _observe(self) -> VecEnvObs:
        """Return fresh arrays; after the last click the last fake user's profile, as `PoisonEnv`."""
        position = min(self._n_clicks, self.n_steps - 1)
        fake_user, step = divmod(position, self.budget.profile_size)
        return {
            "clicks": self._clicks[:, fake_user].copy(),
            "fake_user": np.full(self.num_envs, fake_user, dtype=np.int64),
            "step": np.full(self.num_envs, step, dtype=np.int64),
        }

    # -- what the copies share ------------------------------------------------------------------

    def close(self) -> None:
        """Do nothing: the view is not this environment's own."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute, once per copy: all copies share it."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Refuse: copies have no attributes of their own to set."""
        del indices
        raise StateError(f"set_attr({attr_name!r}, {value!r}) cannot change copies of a view")

    def env_method(
        self,
        method_name: str,
        *method_args: object,
        indices: VecEnvIndices = None,
        **method_kwargs: object,
    ) -> list[Any]:
        """Call a method once; return its result, once per copy."""
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Tell that nothing is around the copies."""
        del wrapper_class
        return [False for _ in self._get_indices(indices)]
