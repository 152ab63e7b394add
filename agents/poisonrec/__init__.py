"""PoisonRec: an LSTM policy that walks a tree of items, trained with PPO."""

from agents.poisonrec.agent import PoisonRec, PoisonRecAttacker, PoisonRecConfig, Step
from agents.poisonrec.warm import WarmPoisonRec, WarmPoisonRecAttacker, WarmPoisonRecConfig

__all__ = [
    "PoisonRec",
    "PoisonRecAttacker",
    "PoisonRecConfig",
    "Step",
    "WarmPoisonRec",
    "WarmPoisonRecAttacker",
    "WarmPoisonRecConfig",
]
