"""Stable-Baselines3 on the RecPoison environments: vector environments and a features extractor."""

from agents.sb3.features import ClickSequenceExtractor
from agents.sb3.vec_env import GymnasiumVecEnv, make_sb3_vec_env

__all__ = ["ClickSequenceExtractor", "GymnasiumVecEnv", "make_sb3_vec_env"]
