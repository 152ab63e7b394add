"""The table of robust victims names victims that there are, and refuses others."""

import pytest

from recattack_gym.core import UnknownNameError
from recattack_gym.victims import VICTIMS
from recattack_gym.victims.robust import ROBUST, TRAININGS, robust_victim


@pytest.mark.parametrize(("training", "plain"), sorted(ROBUST))
def test_a_robust_victim_is_its_plain_one_without_an_adversary(training: str, plain: str) -> None:
    robust = VICTIMS[robust_victim(training, plain)]
    assert issubclass(robust, VICTIMS[plain])
    assert training in robust.name.lower()
    assert TRAININGS == ("apr", "pamacf", "lts")


def test_what_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(UnknownNameError, match="robust training 'vat'"):
        robust_victim("vat", "BPR")
    with pytest.raises(UnknownNameError, match="victim with apr training 'ItemPop'") as caught:
        robust_victim("apr", "ItemPop")
    assert str(caught.value).endswith("Known: BPR, LightGCN, MF-BCE, PMF.")
