"""The baseline that every detector must beat: whose items does nobody else have?"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.defenses.base import Detector
from recattack_gym.defenses.features import popularity
from recattack_gym.defenses.pairs import UserItems


class Popularity(Detector):
    """Suspect users whose items have, on average, few other users (low MUD).

    Needs no training, no ratings and no settings, and still finds every attack that draws its filler items
    uniformly. Fake users who choose items as genuine ones do it cannot find.

    Differs from the paper: there is none; the statistic is the first feature of DegreeSAD.
    """

    name = "popularity"

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        return -popularity(UserItems.of(log))
