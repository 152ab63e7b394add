"""Attacks that optimise a plan: by what they know (ConsLOP), or by what queries tell them (the others)."""

from agents.optimization.appgrad import AppGrad, AppGradConfig
from agents.optimization.conslop import ConsLOP, ConsLOPConfig
from agents.optimization.cross_entropy import CrossEntropy, CrossEntropyConfig
from agents.optimization.evolution import Evolution, EvolutionConfig
from agents.optimization.random_search import RandomSearch

__all__ = [
    "AppGrad",
    "AppGradConfig",
    "ConsLOP",
    "ConsLOPConfig",
    "CrossEntropy",
    "CrossEntropyConfig",
    "Evolution",
    "EvolutionConfig",
    "RandomSearch",
]
