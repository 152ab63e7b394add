"""The attackers that plan against a view, by name; a class is imported when it is asked for."""

from collections.abc import Iterator, Mapping
from importlib import import_module

from agents.base import Attacker


class _Registry(Mapping[str, type[Attacker]]):
    """Attacker classes by name, from `module:class`: some need torch, which takes a second to import."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)

    def __getitem__(self, name: str) -> type[Attacker]:
        module, _, class_name = self._places[name].partition(":")
        attacker: type[Attacker] = getattr(import_module(module), class_name)
        return attacker

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


ATTACKERS: Mapping[str, type[Attacker]] = _Registry(
    {
        "random": "agents.heuristic:Random",
        "popular": "agents.heuristic:Popular",
        "middle": "agents.heuristic:Middle",
        "power-item": "agents.heuristic:PowerItem",
        "conslop": "agents.optimization:ConsLOP",
        "appgrad": "agents.optimization:AppGrad",
        "random-search": "agents.optimization:RandomSearch",
        "cross-entropy": "agents.optimization:CrossEntropy",
        "poisonrec": "agents.poisonrec:PoisonRecAttacker",
        "poisonrec-warm": "agents.poisonrec:WarmPoisonRecAttacker",
        "sb3-ppo": "agents.sb3.attackers:SB3PPO",
        "sb3-a2c": "agents.sb3.attackers:SB3A2C",
        "sb3-recurrent-ppo": "agents.sb3.attackers:SB3RecurrentPPO",
    }
)
"""Attacker classes by the name used on the command line."""
