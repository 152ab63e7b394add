"""Stable-Baselines3: environments, a features extractor, policies that walk a tree, and attackers."""

from agents.sb3.features import ClickSequenceExtractor
from agents.sb3.recurrent import RecurrentClickPolicy
from agents.sb3.tree import RecurrentTreePolicy, TreePolicy, tree_policy_kwargs
from agents.sb3.vec_env import GymnasiumVecEnv, make_sb3_vec_env
from agents.sb3.view_env import ViewVecEnv

__all__ = [
    "ClickSequenceExtractor",
    "GymnasiumVecEnv",
    "RecurrentClickPolicy",
    "RecurrentTreePolicy",
    "TreePolicy",
    "ViewVecEnv",
    "make_sb3_vec_env",
    "tree_policy_kwargs",
]
