"""A view that is watched shows no more and no less than the view itself."""

import numpy as np
import pytest

from agents.recording import RecordingView
from recattack_gym.core import ArgumentError, Knowledge, KnowledgeError
from recattack_gym.simulator import PlatformSimulator, PlatformView
from tests.agents.stub_view import random_log


def test_every_query_is_kept_in_order_with_its_share_of_target_clicks() -> None:
    simulator = PlatformSimulator(random_log(40, 30, 400), "ItemPop", targets=2, n_candidates=20)
    plain = PlatformView(simulator)
    counted: list[int] = []
    view = RecordingView(PlatformView(simulator), counted.append)
    rng = np.random.default_rng(0)
    first, second = rng.integers(32, size=(3, 20, 20)), rng.integers(32, size=(1, 20, 20))
    second[0, :, :5] = 31
    observed = [*view.query(first).tolist(), *view.query(second).tolist()]
    assert view.rec_nums == observed == plain.query(np.concatenate([first, second])).tolist()
    assert view.batch_sizes == counted == [3, 1]
    assert view.n_queries == 4
    expected = [float((each >= 30).mean()) for each in (*first, *second)]
    assert view.target_shares == pytest.approx(expected)
    with pytest.raises(ArgumentError):
        view.query(first[:, :3])
    assert view.n_queries == len(view.rec_nums) == 4


@pytest.mark.parametrize("knowledge", list(Knowledge))
def test_what_the_view_hides_stays_hidden(knowledge: Knowledge) -> None:
    simulator = PlatformSimulator(random_log(40, 30, 400), "ItemPop", n_candidates=20)
    plain = PlatformView(simulator, knowledge=knowledge)
    view = RecordingView(plain)
    for name in ("knowledge", "budget", "goal", "n_items"):
        assert getattr(view, name) == getattr(plain, name)
    assert np.array_equal(view.item_popularity, plain.item_popularity)
    for name in ("log", "victim_name", "victim_config"):
        try:
            expected = getattr(plain, name)
        except KnowledgeError as error:
            with pytest.raises(KnowledgeError, match=str(error)):
                getattr(view, name)
        else:
            assert getattr(view, name) is expected or getattr(view, name) == expected
