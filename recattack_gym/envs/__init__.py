"""Gymnasium environments over a simulated platform: the attacker is the agent."""

from recattack_gym.envs.arms_race import ArmsRace, VectorArmsRace
from recattack_gym.envs.poison_env import PoisonEnv
from recattack_gym.envs.poison_vector_env import PoisonVectorEnv
from recattack_gym.envs.rewards import REWARDS, Reward
from recattack_gym.envs.wrappers import (
    BlackBox,
    FlatObservation,
    FlatVectorObservation,
    GroupedActions,
    GroupedVectorActions,
)

__all__ = [
    "REWARDS",
    "ArmsRace",
    "BlackBox",
    "FlatObservation",
    "FlatVectorObservation",
    "GroupedActions",
    "GroupedVectorActions",
    "PoisonEnv",
    "PoisonVectorEnv",
    "Reward",
    "VectorArmsRace",
]
