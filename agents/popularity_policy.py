"""A Stable-Baselines3 policy that knows items by what everybody can see: targets and popularity.

It has a few hundred parameters whatever the size of the catalogue, so that it learns from a few hundred
attacks: what it learns about one popular item holds for all.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from recattack_gym.core import ArgumentError


def item_features(
    item_popularity: NDArray[np.int64],
    target_items: NDArray[np.int64],
    target_identity: float = 0.0,
) -> NDArray[np.float32]:
    """Describe every item by what a black-box attacker sees of it.

    Args:
        item_popularity: Clicks of each item, shape `(n_items,)`.
        target_items: Distinct item ids, shape `(n_targets,)`.
        target_identity: Weight of which target it is, beside that it is one; 0 leaves this out.

    Returns:
        Shape `(n_items, n_features)`: whether it is a target; for other items the standardised logarithm
        of its popularity and the square of that, less its mean; then, unless `target_identity` is 0, one
        column per target with this weight.
    """
    is_target = np.isin(np.arange(len(item_popularity)), target_items)
    logarithm = np.log1p(item_popularity.astype(np.float64))
    others = logarithm[~is_target]
    level = (logarithm - others.mean()) / max(float(others.std()), 1e-8)
    square = level**2 - float((level[~is_target] ** 2).mean())
    n_columns = 3 + (len(target_items) if target_identity else 0)
    features = np.zeros((len(item_popularity), n_columns), dtype=np.float32)
    features[:, 0] = is_target
    features[~is_target, 1] = level[~is_target]
    features[~is_target, 2] = square[~is_target]
    if target_identity:
        features[target_items, 3 + np.arange(len(target_items))] = target_identity
    return features


def platform_features(
    env_id: str,
    target_identity: float = 0.0,
    **env_kwargs: Any,  # noqa: ANN401  # the environment checks them
) -> NDArray[np.float32]:
    """Return `item_features` of an environment that is given by name, as in a configuration file.

    Args:
        env_id: Any id of `envs_registry`, with or without `recattack_gym:` before it.
        target_identity: See `item_features`.
        **env_kwargs: Arguments of the environment; those of the one to train on, or items may differ.
    """
    env = gym.make(env_id, **env_kwargs)
    popularity = env.get_wrapper_attr("item_popularity")
    features = item_features(popularity, env.get_wrapper_attr("target_items"), target_identity)
    env.close()
    return features


class ClickFeatures(BaseFeaturesExtractor):
    """Describe the clicks so far by the last one, their mean, and how many there are.

    Args:
        observation_space: `PoisonEnv`'s.
        table: Item features, shape `(n_items, n_features)`.
    """

    def __init__(self, observation_space: spaces.Dict, table: NDArray[np.float32]) -> None:
        super().__init__(observation_space, 2 * table.shape[1] + 1)
        nothing = np.zeros((1, table.shape[1]), dtype=np.float32)
        self.table: torch.Tensor
        self.register_buffer("table", torch.from_numpy(np.concatenate([table, nothing])))

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the features, shape `(B, 2 * n_features + 1)`."""
        clicks = observations["clicks"].long()  # (B, T)
        n_clicks = (clicks < len(self.table) - 1).sum(dim=1, keepdim=True)  # (B, 1)
        described = self.table[clicks]  # (B, T, n_features)
        rows = torch.arange(len(clicks), device=clicks.device)
        last = described[rows, (n_clicks[:, 0] - 1).clamp(min=0)]
        mean = described.sum(dim=1) / n_clicks.clamp(min=1)
        return torch.cat([last, mean, n_clicks / clicks.shape[1]], dim=1)


class ItemScores(nn.Module):
    """Score items by their features, with weights that depend on the state.

    Args:
        latent_size: Width of what describes the state.
        table: Item features, shape `(n_items, n_features)`.
    """

    def __init__(self, latent_size: int, table: NDArray[np.float32]) -> None:
        super().__init__()
        self.weights = nn.Linear(latent_size, table.shape[1])
        self.table: torch.Tensor
        self.register_buffer("table", torch.from_numpy(table.copy()))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the logits of all items, shape `(B, n_items)`; `latent` is `(B, latent_size)`."""
        logits: torch.Tensor = self.weights(latent) @ self.table.T
        return logits


class ItemDistribution(CategoricalDistribution):
    """A categorical distribution over items whose logits come from `ItemScores`."""

    def __init__(self, table: NDArray[np.float32]) -> None:
        super().__init__(len(table))
        self._table = table

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """Return the layer that gives the logits."""
        return ItemScores(latent_dim, self._table)


class PopularityPolicy(MultiInputActorCriticPolicy):
    """Actor and critic on `ClickFeatures`, with `ItemScores` as the actor's last layer.

    Args:
        observation_space: `PoisonEnv`'s.
        action_space: One action per item.
        lr_schedule: See Stable-Baselines3.
        table: `item_features(...)`, shape `(n_items, n_features)`.
        target_share: Share of clicks on targets that the untrained policy makes, in `(0, 1)`.
        popularity_weight: The untrained policy's logits of other items: so many standard deviations of
            their log popularity. 0 draws them uniformly, and about 1 in proportion to popularity.
        **kwargs: Further arguments of `MultiInputActorCriticPolicy`.

    Raises:
        ArgumentError: If the table does not have one row per action.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        table: NDArray[np.float32],
        target_share: float = 0.5,
        popularity_weight: float = 0.0,
        **kwargs: Any,  # noqa: ANN401  # SB3's own
    ) -> None:
        if not isinstance(action_space, spaces.Discrete) or action_space.n != len(table):
            raise ArgumentError(
                f"table must have one row per action of {action_space}, got {len(table)} rows"
            )
        self._table = table
        self._target_share = target_share
        self._popularity_weight = popularity_weight
        kwargs["features_extractor_class"] = ClickFeatures
        kwargs["features_extractor_kwargs"] = {"table": table}
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self.action_dist = ItemDistribution(self._table)
        super()._build(lr_schedule)
        is_target = self._table[:, 0] == 1.0
        odds = self._target_share / (1.0 - self._target_share)
        others = np.exp(self._popularity_weight * self._table[~is_target, 1].astype(np.float64))
        head = self.action_net
        assert isinstance(head, ItemScores)  # noqa: S101  # ItemDistribution made it
        with torch.no_grad():
            head.weights.bias[0] = float(np.log(odds * others.sum() / is_target.sum()))
            head.weights.bias[1] = self._popularity_weight

    def _get_constructor_parameters(self) -> dict[str, Any]:  # Any: SB3's
        return {
            **super()._get_constructor_parameters(),
            "table": self._table,
            "target_share": self._target_share,
            "popularity_weight": self._popularity_weight,
        }
