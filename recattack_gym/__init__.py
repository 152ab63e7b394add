"""Gymnasium environments in which the attacker of a recommender system is the agent.

Importing the package registers the environment ids and nothing else: victims, simulators and
environments are imported when they are first made.
"""

from envs_registry import register_envs
from recattack_gym._version import __version__

register_envs()

__all__ = ["__version__", "register_envs"]
