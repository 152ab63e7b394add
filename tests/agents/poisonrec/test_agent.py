"""The learner: budgets, checkpoints, and what it learns."""

import json
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.poisonrec import PoisonRec, PoisonRecConfig
from agents.poisonrec.agent import Step
from agents.poisonrec.policy import Evaluation, Rollout
from agents.poisonrec.threads import Blocks
from agents.search import Trials
from recattack_gym.core import (
    ArgumentError,
    ArtifactError,
    AttackBudget,
    AttackGoal,
    Interactions,
    StateError,
)
from recattack_gym.core.attack import Direction
from recattack_gym.simulator import PlatformSimulator, PlatformView
from tests.agents.stub_view import StubView, make_view, random_log

ROOT = Path(__file__).parents[3]


def item_pop(n_users: int = 120, n_items: int = 60, seed: int = 0, **options: Any) -> PlatformView:  # noqa: ANN401  # of many types
    """Return a platform that ranks by clicks and that 20 x 20 clicks can move."""
    rng = np.random.default_rng(seed)
    n_events = n_users * 12
    log = Interactions(
        np.repeat(np.arange(n_users), 12), rng.integers(n_items, size=n_events), n_users, n_items
    )
    simulator = PlatformSimulator(log, "ItemPop", n_candidates=40, **options)
    return PlatformView(simulator)


class CountingView(StubView):
    """A platform that counts clicks on items 5 and 6: the answer is known, and costs nothing."""

    def __init__(self, direction: Direction) -> None:
        log = random_log(30, 20, 200)
        goal = AttackGoal(target_items=(5, 6, 20), direction=direction)
        super().__init__(log, goal, AttackBudget(n_fake_users=4, profile_size=5))

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        self.n_queries += len(profiles)
        counts: NDArray[np.int64] = np.isin(profiles, (5, 6)).sum(axis=(1, 2))
        return counts


def small(**settings: Any) -> PoisonRecConfig:  # noqa: ANN401  # of many types
    return PoisonRecConfig(
        **{"n_queries": 24, "batch_size": 8, "n_examples": 8, "size": 8, **settings}
    )


def test_every_query_is_counted_and_the_budget_is_never_exceeded() -> None:
    view = item_pop()
    agent = PoisonRec(view, small(n_queries=19), seed=1).learn()
    assert [len(step.rec_nums) for step in agent.history] == [8, 8, 3]
    assert view.n_queries == agent.n_queries == 19
    with pytest.raises(StateError, match="at most 0 queries are left"):
        agent.step()


def test_the_plan_is_the_best_set_that_was_tried() -> None:
    view = item_pop()
    agent = PoisonRec(view, small(), seed=1).learn()
    plan = agent.plan()
    assert view.query(plan.item_ids[None])[0] == agent.best_rec_num
    assert agent.best_rec_num == max(int(step.rec_nums.max()) for step in agent.history)
    assert plan.header["n_queries"] == 24
    assert plan.budget == view.budget
    with pytest.raises(StateError, match="no poison set has been tried"):
        PoisonRec(view, small()).plan()


@pytest.mark.parametrize("space", ["bcbt-popular", "bcbt-random", "bplain", "plain"])
@pytest.mark.parametrize("direction", ["push", "nuke"])
def test_it_learns_what_is_rewarded_in_every_action_space(space: str, direction: Direction) -> None:
    view = CountingView(direction)
    agent = PoisonRec(
        view,
        small(
            n_queries=16 * 25, batch_size=16, n_examples=16, learning_rate=0.02, action_space=space
        ),
        seed=0,
    ).learn()
    first, last = agent.history[0], agent.history[-1]
    if direction == "push":
        assert last.rec_nums.mean() > 2 * first.rec_nums.mean() + 2
        assert agent.best_rec_num == max(int(step.rec_nums.max()) for step in agent.history)
    else:
        assert last.rec_nums.mean() < 0.5 * first.rec_nums.mean()
        assert agent.best_rec_num == min(int(step.rec_nums.min()) for step in agent.history)


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    view = item_pop()
    runs = [PoisonRec(view, small(), seed=seed).learn() for seed in (3, 3, 4)]
    observed = [np.concatenate([s.rec_nums for s in run.history]).tolist() for run in runs]
    assert observed[0] == observed[1]
    assert observed[0] != observed[2]


def test_it_stops_where_nothing_better_is_found() -> None:
    view = make_view(n_fake_users=2, profile_size=3)  # answers 0 to everything
    agent = PoisonRec(view, small(n_queries=8 * 30, patience=4)).learn()
    assert len(agent.history) == 5


@pytest.mark.parametrize("n_examples", [8, 3])
def test_an_agent_that_was_saved_goes_on_as_if_nothing_had_happened(
    n_examples: int, tmp_path: Path
) -> None:
    config = small(n_queries=60, n_examples=n_examples)
    view = item_pop()
    whole = PoisonRec(view, config, seed=5).learn()
    half = PoisonRec(view, config, seed=5).learn(3)
    half.save(tmp_path / "agent.npz")
    resumed = PoisonRec.load(tmp_path / "agent.npz", view).learn()
    assert [s.rec_nums.tolist() for s in resumed.history] == [
        s.rec_nums.tolist() for s in whole.history
    ]
    assert [s.target_share for s in resumed.history] == [s.target_share for s in whole.history]
    assert np.array_equal(resumed.plan().item_ids, whole.plan().item_ids)
    assert np.array_equal(resumed.sample(2), whole.sample(2))
    assert resumed.n_queries == 60


def test_a_checkpoint_of_an_agent_that_has_not_begun_is_one_too(tmp_path: Path) -> None:
    view = item_pop()
    PoisonRec(view, small(), seed=5).save(tmp_path / "agent.npz")
    resumed = PoisonRec.load(tmp_path / "agent.npz", view).learn()
    fresh = PoisonRec(view, small(), seed=5).learn()
    assert resumed.history[-1].rec_nums.tolist() == fresh.history[-1].rec_nums.tolist()


SCRIPT = """
import sys
from pathlib import Path
from tests.agents.poisonrec.test_agent import item_pop, small
from agents.poisonrec import PoisonRec
import agents.poisonrec.agent as module
module._SECONDS_BETWEEN_CHECKPOINTS = 0.0
PoisonRec(item_pop(), small(n_queries=8 * 10_000), seed=2).learn(checkpoint=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_an_agent_that_was_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "agent.npz"
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], cwd=ROOT) as process:  # noqa: S603  # our own
        for _ in range(1200):
            if path.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    view = item_pop()
    resumed = PoisonRec.load(path, view)
    n_done = len(resumed.history)
    assert n_done >= 1
    resumed.learn(3)
    fresh = PoisonRec(view, small(n_queries=8 * 10_000), seed=2).learn(n_done + 3)
    assert [s.rec_nums.tolist() for s in resumed.history] == [
        s.rec_nums.tolist() for s in fresh.history
    ]


def test_a_checkpoint_of_another_platform_or_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.npz"
    PoisonRec(item_pop(), small()).save(path)
    with pytest.raises(ArgumentError, match="view must show the platform that"):
        PoisonRec.load(path, item_pop(n_items=61))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match=r"agent\.npz"):
        PoisonRec.load(path, item_pop())
    with pytest.raises(ArtifactError, match="readable PoisonRec file"):
        PoisonRec.load(tmp_path / "missing.npz", item_pop())


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("action_space", "bcbt", "action_space must be one of"),
        ("clip", "none", "clip must be one of"),
        ("n_examples", 9, "n_examples must be at most batch_size, 8, got 9"),
        ("n_epochs", 0, "n_epochs must be"),
        ("clip_range", 0.0, "clip_range must"),
        ("learning_rate", float("nan"), "learning_rate must"),
        ("patience", 0, "patience must be"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: str, value: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        small(**{setting: value})


def test_a_catalogue_of_targets_only_is_refused() -> None:
    view = make_view(n_items=3, n_targets=2)
    view.goal = AttackGoal(target_items=(0, 1, 2, 3, 4))
    with pytest.raises(ArgumentError, match="must leave an item that is no target, got all 5"):
        PoisonRec(view, small())


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ArgumentError, match=r"pip install 'recattack-gym\[tensorboard\]'"):
        PoisonRec(item_pop(), small()).learn(log_dir=tmp_path)


def test_trials_refuse_what_is_over_the_budget_before_anything_is_evaluated() -> None:
    view = item_pop()
    trials = Trials(view, 5)
    sets = np.zeros((6, 20, 20), dtype=np.int64)
    with pytest.raises(StateError, match=r"at most 5 queries are left .*, got 6 sets"):
        trials.query(sets)
    assert view.n_queries == 0
    trials.query(sets[:5])
    assert trials.is_spent


def test_the_header_of_a_checkpoint_is_plain_json(tmp_path: Path) -> None:
    agent = PoisonRec(item_pop(), small()).learn(1)
    agent.save(tmp_path / "agent.npz")
    with np.load(tmp_path / "agent.npz") as archive:
        header = json.loads(archive["header"].tobytes())
    assert header["batch_sizes"] == [8]
    assert header["config"]["action_space"] == "bcbt-popular"


@pytest.mark.parametrize(("n_examples", "n_choices"), [(3, 5), (8, 1)])
def test_every_update_is_made_from_examples_of_its_own(n_examples: int, n_choices: int) -> None:
    view = CountingView("push")
    agent = PoisonRec(view, small(n_queries=8, n_examples=n_examples, n_epochs=5), seed=1)
    tried: list[set[bytes]] = []
    chosen: list[list[bytes]] = []
    sample, evaluate = agent.policy.sample, agent.policy.evaluate

    def sampling(n_sets: int, rng: np.random.Generator, blocks: Blocks) -> Rollout:
        rollout = sample(n_sets, rng, blocks)
        tried.append({each.tobytes() for each in rollout.item_ids})
        return rollout

    def evaluating(item_ids: NDArray[np.int64], blocks: Blocks) -> Evaluation:
        chosen.append([each.tobytes() for each in item_ids])
        return evaluate(item_ids, blocks)

    agent.policy.sample = sampling  # type: ignore[method-assign]  # to watch it
    agent.policy.evaluate = evaluating  # type: ignore[method-assign]  # to watch it
    agent.step()
    assert len(chosen) == n_choices
    for sets in chosen:
        assert len(sets) == len(set(sets)) == n_examples
        assert set(sets) <= tried[0]
    assert len({frozenset(sets) for sets in chosen}) > min(1, n_choices - 1)


@pytest.mark.parametrize(
    ("direction", "rec_nums", "is_stuck"),
    [
        ("push", [3, 4, 5], False),
        ("push", [5, 4, 3], True),
        ("nuke", [5, 4, 3], False),
        ("nuke", [3, 4, 5], True),
        ("nuke", [3, 4], False),  # as many steps as patience: nothing to compare with
    ],
)
def test_better_is_less_where_targets_are_demoted(
    direction: Direction, rec_nums: list[int], *, is_stuck: bool
) -> None:
    agent = PoisonRec(CountingView(direction), small(patience=2))
    agent.history = [Step(n, np.array([r, r]), 0.5) for n, r in enumerate(rec_nums)]
    assert agent.is_stuck == is_stuck


def test_tensorboard_gets_every_step_once_and_a_resumed_run_goes_on_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, float, int]] = []
    folders: list[str] = []
    n_closed = 0

    class Writer:
        def __init__(self, folder: str) -> None:
            folders.append(folder)

        def add_scalar(self, name: str, value: float, number: int) -> None:
            written.append((name, value, number))

        def close(self) -> None:
            nonlocal n_closed
            n_closed += 1

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]  # stands in for the package
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    view = item_pop()
    agent = PoisonRec(view, small(n_queries=32), seed=5).learn(2, log_dir=tmp_path / "log")
    agent.save(tmp_path / "agent.npz")
    agent = PoisonRec.load(tmp_path / "agent.npz", view).learn(log_dir=tmp_path / "log")
    bests = np.maximum.accumulate([step.rec_nums.max() for step in agent.history])
    assert written == [
        scalar
        for number, step in enumerate(agent.history)
        for scalar in (
            ("rec_num/mean", float(step.rec_nums.mean()), number),
            ("rec_num/batch_max", float(step.rec_nums.max()), number),
            ("rec_num/best", float(bests[number]), number),
            ("target_share", step.target_share, number),
        )
    ]
    assert len(agent.history) == 4
    assert folders == [str(tmp_path / "log")] * 2
    assert n_closed == 2
