"""The attackers that plan against a view, by name; a class is imported when it is asked for."""

from collections.abc import Iterator, Mapping
from importlib import import_module

from agents.base import Attacker
from recattack_gym.core import ArgumentError

_OF_SB3 = ("stable_baselines3", "sb3_contrib")
"""Packages of the extra `sb3`."""


class _Registry(Mapping[str, type[Attacker]]):
    """Attacker classes by name, from `module:class`: some need torch, which takes a second to import."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)

    def __getitem__(self, name: str) -> type[Attacker]:
        module, _, class_name = self._places[name].partition(":")
        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _OF_SB3:
                raise
            raise ArgumentError(
                f"attacker {name!r} needs Stable-Baselines3, which is not installed: "
                "pip install 'recattack-gym[sb3]'"
            ) from error
        attacker: type[Attacker] = getattr(found, class_name)
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
        "shilling-random": "agents.shilling:ShillingRandom",
        "shilling-bandwagon": "agents.shilling:ShillingBandwagon",
        "shilling-popular": "agents.shilling:ShillingPopular",
        "shilling-segment": "agents.shilling:ShillingSegment",
        "shilling-aop": "agents.shilling:ShillingAverageOverPopular",
        "shilling-copy": "agents.shilling:ShillingCopy",
        "conslop": "agents.optimization:ConsLOP",
        "appgrad": "agents.optimization:AppGrad",
        "random-search": "agents.optimization:RandomSearch",
        "cross-entropy": "agents.optimization:CrossEntropy",
        "evolution": "agents.optimization:Evolution",
        "dpa2dl": "agents.gradient.dpa2dl:DPA2DL",
        "rapu-r": "agents.gradient.rapu_r:RAPUR",
        "pga-implicit": "agents.gradient.pga:PGA",
        "revadv": "agents.gradient.revadv:RevAdv",
        "poisonrec": "agents.poisonrec.agent:PoisonRecAttacker",
        "poisonrec-entropy": "agents.poisonrec.entropy:EntropyPoisonRecAttacker",
        "poisonrec-warm": "agents.poisonrec.warm:WarmPoisonRecAttacker",
        "sb3-ppo": "agents.sb3.attackers:SB3PPO",
        "sb3-a2c": "agents.sb3.attackers:SB3A2C",
        "sb3-recurrent-ppo": "agents.sb3.attackers:SB3RecurrentPPO",
    }
)
"""Attacker classes by the name used on the command line."""
