"""The simulated platform and what an attacker sees of it."""

from recattack_gym.simulator.bagged import BaggedSimulator, Certificate
from recattack_gym.simulator.defended import DefendedSimulator, Defense, Screened, make_simulator
from recattack_gym.simulator.platform import PlatformSimulator, SideEffects
from recattack_gym.simulator.ratings import RatingGoal, RatingOutcome, RatingPlatform
from recattack_gym.simulator.shared import shared_simulator
from recattack_gym.simulator.view import PlatformView

__all__ = [
    "BaggedSimulator",
    "Certificate",
    "DefendedSimulator",
    "Defense",
    "PlatformSimulator",
    "PlatformView",
    "RatingGoal",
    "RatingOutcome",
    "RatingPlatform",
    "Screened",
    "SideEffects",
    "make_simulator",
    "shared_simulator",
]
