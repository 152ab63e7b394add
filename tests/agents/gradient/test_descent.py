"""PGA and RevAdv: their gradients against finite differences, and that descending helps."""

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.gradient.adversarial import adversarial_gradient
from agents.gradient.descent import ProfileDescent, initial_profiles, unit_rows
from agents.gradient.gradient_passing import GradientPassing
from agents.gradient.graph import InteractionGraph
from agents.gradient.kernels import Real
from agents.gradient.pga import PGA, click_gradient
from agents.gradient.profiles import Task, project
from agents.gradient.revadv import RevAdv, unrolled_gradient
from agents.gradient.surrogates import Surrogate, SurrogateConfig
from recattack_gym.core import ArgumentError
from recattack_gym.metrics import target_recall_at_k_unmasked
from tests.agents.gradient.cases import make_task

SMALL = {"embedding_size": 8, "epochs": 12, "attack_epochs": 6}
each_attacker = pytest.mark.parametrize("attacker", [PGA, RevAdv])


def test_the_adversarial_loss_is_the_formula_and_its_gradient_that_of_differences() -> None:
    rows = np.random.default_rng(0).normal(size=(5 + 9, 3))
    users, targets = np.array([0, 1, 2, 4]), np.array([8, 1])

    def loss(r: NDArray[np.float64]) -> float:
        scores = r[users] @ r[5:].T
        return float(-np.mean((scores - np.log(np.exp(scores).sum(axis=1))[:, None])[:, targets]))

    value, hit_rate, gradient = adversarial_gradient(users, rows, 5, targets, 4)
    assert value == pytest.approx(loss(rows))
    shown = np.argsort(-(rows[users] @ rows[5:].T), axis=1)[:, :4]
    assert hit_rate == pytest.approx(target_recall_at_k_unmasked(shown, targets))
    assert 0 < hit_rate < 1
    for place in np.ndindex(rows.shape):
        change = np.zeros_like(rows)
        change[place] = 1e-6
        slope = (loss(rows + change) - loss(rows - change)) / 2e-6
        assert gradient[place] == pytest.approx(slope, abs=1e-8)


def test_pgas_gradient_is_that_of_one_ridge_regression() -> None:
    # one item, clicked by users 0, 1 and the fake user 3 of 4; L = c . q(y)
    rng = np.random.default_rng(1)
    log = make_task(n_users=3, n_items=1, n_events=1, target_items=(0,)).log
    graph = InteractionGraph(np.array([0, 1, 2, 2, 3]), np.zeros(3, dtype=np.int32), 1, log.n_users)
    rows, c = rng.normal(size=(5, 2)), rng.normal(size=2)
    clicked = np.array([0, 1, 3])

    def loss(y: NDArray[np.float64]) -> float:
        p = rows[clicked]
        q = np.linalg.solve(p.T @ p + 0.3 * np.eye(2), p.T @ y)
        return float(c @ q)

    gradient = np.zeros_like(rows)
    gradient[4] = c
    found = click_gradient(gradient, rows, graph, 0.3)
    assert found.shape == (1, 1)
    ahead, behind = (loss(np.array([1.0, 1.0, 1.0 + sign * 1e-3])) for sign in (1, -1))
    assert found[0, 0] == pytest.approx((ahead - behind) / 2e-3, abs=1e-8)


class Relaxed:
    """A surrogate whose fake users' cells are real numbers: dense, step by step, from the definition."""

    def __init__(self, surrogate: Surrogate, n_epochs: int) -> None:
        graph = surrogate.graph
        self.start = surrogate.embeddings.copy()
        self.moments = surrogate.first.copy(), surrogate.second.copy()
        self.n_steps, self.config, self.n = surrogate.n_steps, surrogate.config, graph.n_users
        self.y = np.zeros((graph.n_users, graph.n_items))
        self.y[np.repeat(np.arange(self.n), np.diff(graph.indptr)), graph.items] = 1.0
        self.w = np.where(self.y > 0, self.config.positive_weight, 1.0)
        self.batches = []
        for _ in range(n_epochs):
            self.batches += surrogate.user_batches()
            surrogate.n_epochs += 1
        surrogate.n_epochs -= n_epochs

    def trained(self, y: NDArray[np.float64]) -> NDArray[Real]:
        e, m, v = self.start.copy(), *(each.copy() for each in self.moments)
        config, n = self.config, self.n
        for t, users in enumerate(self.batches, start=self.n_steps + 1):
            u, q = e[users], e[n:]
            error = self.w[users] * (u @ q.T - y[users])
            g = np.zeros_like(e)
            g[users] = 2 * error @ q / error.size + 2 * config.reg * u / len(users)
            g[n:] = 2 * error.T @ u / error.size + 2 * config.reg * q / len(q)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            e = e - config.learning_rate * step
        return e


@pytest.mark.parametrize(("before", "n_epochs"), [(0, 1), (2, 1), (3, 3)])
def test_the_unrolled_gradient_is_that_of_finite_differences(before: int, n_epochs: int) -> None:
    task = make_task(n_users=6, n_items=7, n_events=25, target_items=(6, 2))
    graph = task.graph([np.array([1, 6, 2]), np.array([0, 2, 6])])
    config = SurrogateConfig(
        loss="mse",
        embedding_size=3,
        batch_size=5,
        positive_weight=4.0,
        reg=0.05,
        learning_rate=0.05,
    )
    surrogate = Surrogate(graph, config, seed=3, dtype=np.float64)
    surrogate.train(before)
    relaxed = Relaxed(surrogate, n_epochs)

    def objective(rows: NDArray[Real]) -> tuple[float, NDArray[Real]]:
        value, _, gradient = adversarial_gradient(np.arange(6), rows, 8, task.target_items, 3)
        return value, gradient

    value, gradient = unrolled_gradient(surrogate, n_epochs, objective)
    assert surrogate.embeddings == pytest.approx(relaxed.trained(relaxed.y), abs=1e-12)
    assert value == pytest.approx(objective(surrogate.embeddings)[0])
    assert gradient.shape == (2, 7)
    largest = np.abs(gradient).max()
    assert largest > 1e-5
    for fake, item in np.ndindex(gradient.shape):
        change = np.zeros_like(relaxed.y)
        change[6 + fake, item] = 1e-5
        ahead, behind = (objective(relaxed.trained(relaxed.y + s * change))[0] for s in (1, -1))
        assert gradient[fake, item] == pytest.approx((ahead - behind) / 2e-5, abs=1e-4 * largest)


def test_unrolling_with_passing_trains_as_without_unrolling() -> None:
    task = make_task()
    config = SurrogateConfig(loss="mse", embedding_size=4, batch_size=16, passing=GradientPassing())
    graph = task.graph([task.target_items] * 2)
    unrolled, ordinary = (Surrogate(graph, config, seed=1) for _ in range(2))
    _, gradient = unrolled_gradient(unrolled, 3, lambda rows: (0.0, np.ones_like(rows)))
    ordinary.train(3)
    assert np.array_equal(unrolled.embeddings, ordinary.embeddings)
    assert unrolled.n_epochs == 3
    assert np.isfinite(gradient).all()
    assert gradient.any()


def test_only_a_factorisation_with_a_squared_error_can_be_unrolled() -> None:
    surrogate = Surrogate(make_task().graph([]), SurrogateConfig(loss="bce"))
    with pytest.raises(ArgumentError, match="surrogate must be a matrix factorisation"):
        unrolled_gradient(surrogate, 1, lambda rows: (0.0, rows))


def test_descending_on_clicks_lowers_the_adversarial_loss() -> None:
    losses: list[float] = []

    class Watched(RevAdv):
        def _step(self, surrogate: Surrogate, task: Task) -> tuple[float, float, NDArray[Real]]:
            result = super()._step(surrogate, task)
            losses.append(result[0])
            return result

    task = make_task(n_users=80, n_events=800, n_fake_users=12, target_items=(20, 25))
    Watched({**SMALL, "attack_epochs": 15, "click_targets": False}).attack(
        task, np.random.default_rng(0)
    )
    assert np.mean(losses[-3:]) < losses[0] - 0.01


def test_steps_have_momentum_and_every_surrogate_the_same_seed() -> None:
    task, moves = make_task(), np.random.default_rng(3).normal(size=(5, 4, 40))
    seeds, seen = list[int](), list[list[NDArray[np.int32]]]()

    class Scripted(RevAdv):
        def _step(self, surrogate: Surrogate, task: Task) -> tuple[float, float, NDArray[Real]]:
            del task
            graph = surrogate.graph
            seeds.append(surrogate.seed)
            fakes = range(graph.n_genuine, graph.n_users)
            seen.append([graph.items[graph.indptr[f] : graph.indptr[f + 1]] for f in fakes])
            return 0.0, 0.0, moves[len(seen) - 1]

    settings = {"attack_epochs": 5, "attack_momentum": 0.9, "attack_learning_rate": 2.0}
    Scripted({**SMALL, **settings, "click_targets": False}).attack(task, np.random.default_rng(0))
    assert len(set(seeds)) == 1
    velocity = np.zeros((4, 40))
    nothing = [np.empty(0, dtype=np.int64)] * 4
    for move, before, after in zip(moves[:4], seen[:4], seen[1:], strict=True):
        velocity = 0.9 * velocity + move / np.linalg.norm(move, axis=1, keepdims=True)
        values = -2.0 * velocity
        for row, own in zip(values, before, strict=True):
            row[own] += 1
        for expected, found in zip(project(values, 8, nothing), after, strict=True):
            assert np.array_equal(expected, found)


@each_attacker
@pytest.mark.parametrize("settings", [{}, {"gradient_passing": True}, {"click_targets": False}])
def test_profiles_have_exactly_the_budget_and_each_item_once(
    attacker: type[ProfileDescent], settings: dict[str, object]
) -> None:
    task = make_task()
    run = attacker({**SMALL, **settings}).attack(task, np.random.default_rng(0))
    assert run.item_ids.shape == (4, 8)
    for profile in run.item_ids:
        assert len(set(profile)) == 8
        if settings.get("click_targets", True):
            assert set(task.target_items) <= set(profile)
    assert run.n_retrainings == len(run.curve) == 6
    assert 0 < run.training_seconds <= run.total_seconds


@each_attacker
def test_with_fewer_clicks_than_targets_fake_users_take_turns(
    attacker: type[ProfileDescent],
) -> None:
    task = make_task(target_items=(30, 31, 32, 33, 34), profile_size=2, n_fake_users=5)
    run = attacker(SMALL).attack(task, np.random.default_rng(0))
    assert np.bincount(run.item_ids.ravel())[30:].tolist() == [2] * 5
    assert run.n_retrainings == 0


@each_attacker
def test_in_a_tiny_catalogue_profiles_repeat_their_items(attacker: type[ProfileDescent]) -> None:
    task = make_task(n_items=4, target_items=(3,), profile_size=9, n_events=30)
    run = attacker(SMALL).attack(task, np.random.default_rng(0))
    for profile in run.item_ids:
        assert set(np.bincount(profile, minlength=4)) == {2, 3}


def test_profiles_begin_as_genuine_users_with_few_items() -> None:
    task = make_task(n_users=40, n_events=250, profile_size=8, n_fake_users=30)
    nothing = [np.empty(0, dtype=np.int64)] * 30
    indptr, items = task.log.seen
    owned = [set(items[indptr[u] : indptr[u + 1]]) for u in range(40)]
    few = [own for own in owned if 0 < len(own) <= 8]
    for profile in initial_profiles(task, nothing, np.random.default_rng(0)):
        assert len(profile) == 8
        assert any(own <= set(profile) for own in few)


def test_rows_of_length_one_leave_forced_items_alone() -> None:
    gradient = np.array([[3.0, 4.0, 100.0], [0.0, 0.0, 5.0]])
    rows = unit_rows(gradient, [np.array([2]), np.array([2])])
    assert rows == pytest.approx(np.array([[0.6, 0.8, 0], [0, 0, 0]]))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("attack_epochs", 0), ("attack_momentum", 1.0), ("click_targets", 1), ("unrolled_epochs", 51)],
)
def test_settings_are_checked(setting: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=f"{setting} must"):
        RevAdv({setting: value})
