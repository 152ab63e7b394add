"""Stable-Baselines3 policies that choose an item by walking down PoisonRec's tree."""

from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv

from agents.poisonrec.bcbt import Tree, make_tree
from agents.sb3.features import ClickSequenceExtractor
from agents.sb3.recurrent import RecurrentClickPolicy
from agents.sb3.tree_distribution import TreeDistribution
from recattack_gym.core.checks import as_choice, as_count
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.view import AttackerView

Assignment = Literal["popular", "random"]
ASSIGNMENTS: tuple[Assignment, ...] = ("popular", "random")


def tree_policy_kwargs(source: VecEnv | AttackerView, **settings: object) -> dict[str, Any]:
    """Return `policy_kwargs` with what `TreePolicy` has to know of the platform.

    ```python
    PPO(TreePolicy, envs, policy_kwargs=tree_policy_kwargs(envs, net_arch=[64]))
    ```

    Args:
        source: Environments with the attributes `item_popularity` and `target_items`, or a view.
        **settings: Further arguments of the policy.
    """
    if isinstance(source, VecEnv):
        popularity = source.get_attr("item_popularity", indices=0)[0]
        targets = source.get_attr("target_items", indices=0)[0]
    else:
        popularity, targets = source.item_popularity, source.goal.target_items
    return {
        "item_popularity": np.asarray(popularity, dtype=np.int64),
        "target_items": np.asarray(targets, dtype=np.int64),
        **settings,
    }


class TreePolicy(ActorCriticPolicy):
    """Actor and critic whose actions are leaves of a biased complete binary tree (BCBT).

    Song et al., "PoisonRec: an adaptive data poisoning framework for attacking black-box recommender
    systems", ICDE 2020, §IV-D. The walk happens inside the policy: the action space stays
    `Discrete(n_items)`, an environment step is a click, and a click costs the tree's depth, whatever the
    size of the catalogue. At the root, left is the subtree of the targets. The untrained policy has no
    preference at any node, so that half of its clicks fall on targets.

    For PPO, A2C and what else takes an `ActorCriticPolicy` and needs no `distribution.distribution` (TRPO
    does). See `TreeDistribution` for what its entropy and its deterministic actions are.

    Args:
        observation_space: `PoisonEnv`'s, or another one with another `features_extractor_class`.
        action_space: One action per item.
        lr_schedule: See Stable-Baselines3.
        item_popularity: Clicks per item, shape `(n_items,)`; see `tree_policy_kwargs`.
        target_items: Distinct item ids, shape `(n_targets,)`; at least one item is no target.
        assignment: Which leaf is whose: `"popular"` sorts items by popularity (BCBT-Popular), `"random"`
            shuffles them (BCBT-Random).
        tree_seed: Seed of the shuffle; an argument, so that a loaded model has the same tree.
        **kwargs: Further arguments of `ActorCriticPolicy`. `features_extractor_class` is
            `ClickSequenceExtractor` if not given.

    Raises:
        ArgumentError: If an argument is wrong or every item is a target.

    Differs from the paper: an inner node has one vector, of its own, instead of the difference of its
    children's features, and items' leaves share none with the encoder of clicks; all these vectors begin
    at zero; a critic and GAE instead of returns normalised in a batch; PPO clips paths, not decisions.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        item_popularity: NDArray[np.int64],
        target_items: NDArray[np.int64],
        assignment: Assignment = "popular",
        tree_seed: int = 0,
        **kwargs: Any,  # noqa: ANN401  # SB3's own
    ) -> None:
        self._tree_arguments = {
            "item_popularity": item_popularity,
            "target_items": target_items,
            "assignment": as_choice("assignment", assignment, ASSIGNMENTS),
            "tree_seed": as_count("tree_seed", tree_seed, at_least=0),
        }
        n_items = len(item_popularity)
        if not isinstance(action_space, spaces.Discrete) or action_space.n != n_items:
            raise ArgumentError(
                f"item_popularity must have one entry per action of {action_space}, got {n_items}"
            )
        rng = np.random.default_rng(tree_seed) if assignment == "random" else None
        self._tree: Tree = make_tree(item_popularity, target_items, rng)
        kwargs.setdefault("features_extractor_class", ClickSequenceExtractor)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self.action_dist = TreeDistribution(self._tree)
        super()._build(lr_schedule)

    def _get_constructor_parameters(self) -> dict[str, Any]:  # Any: SB3's
        return {**super()._get_constructor_parameters(), **self._tree_arguments}


class RecurrentTreePolicy(TreePolicy, RecurrentClickPolicy):
    """`TreePolicy` with an LSTM over all clicks of an attack, for `sb3_contrib.RecurrentPPO`.

    Args:
        observation_space: See `TreePolicy`.
        action_space: See `TreePolicy`.
        lr_schedule: See Stable-Baselines3.
        **kwargs: Arguments of `TreePolicy` and of `sb3_contrib`'s `RecurrentActorCriticPolicy`.

    Differs from the paper: see `TreePolicy`; the LSTM goes on from one fake user to the next, where the
    paper's begins anew, so that a fake user may know what the ones before it clicked.
    """
