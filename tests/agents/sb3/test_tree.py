"""The tree policy is a distribution over items, the same in rollouts and in training, and it learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents.poisonrec.bcbt import Tree, leaf_log_probabilities, make_tree
from agents.sb3 import RecurrentTreePolicy, TreePolicy, make_sb3_vec_env, tree_policy_kwargs
from agents.sb3.tree_distribution import TreeDistribution
from agents.sb3.view_env import ViewVecEnv
from agents.search import Trials
from recattack_gym.core import ArgumentError
from tests.agents.stub_view import make_view

POPULARITY = np.array([3, 9, 1, 7, 0, 0, 2, 5, 0, 4, 8])
TARGETS = np.array([4, 5, 8])
TREE = make_tree(POPULARITY, TARGETS)
LATENT = 3
ENV_ID = "recattack_gym:RecPoison-ItemPop-v0"
ALGORITHMS: dict[str, tuple[type[OnPolicyAlgorithm], type[TreePolicy], dict[str, Any]]] = {
    "ppo": (PPO, TreePolicy, {"batch_size": 12, "n_epochs": 2}),
    "a2c": (A2C, TreePolicy, {}),
    "recurrent": (RecurrentPPO, RecurrentTreePolicy, {"batch_size": 12, "n_epochs": 2}),
}


def distribution(query_seed: int = 0, n_rows: int = 1) -> TreeDistribution:
    """Return a distribution with preferences: random vectors of nodes, random queries."""
    generator = torch.Generator().manual_seed(query_seed)
    made = TreeDistribution(TREE)
    head = made.proba_distribution_net(LATENT)
    with torch.no_grad():
        head.nodes.normal_(generator=generator)
    return made.proba_distribution(head(torch.randn(n_rows, LATENT, generator=generator)))


def walk_by_hand(tree: Tree, logits: NDArray[np.float64]) -> dict[int, float]:
    """Return the probability of every item by walking all ways down the tree."""
    found: dict[int, float] = {}
    ways = [(0, 1.0)]
    while ways:
        node, p = ways.pop()
        if node >= tree.n_inner:
            found[int(node) - tree.n_inner] = p
            continue
        left = 1 / (1 + np.exp(-logits[node]))
        ways += [(tree.left[node], p * left), (tree.right[node], p * (1 - left))]
    return found


def logits_of(made: TreeDistribution) -> NDArray[np.float64]:
    """Return every node's log-odds of left for the first query, shape `(n_inner,)`."""
    logits = made._query[0] @ made._head.nodes.T
    return logits.detach().numpy().astype(np.float64)


def all_items(made: TreeDistribution) -> torch.Tensor:
    """Return log P of every item for the only query, shape `(n_items,)`."""
    n_items = len(POPULARITY)
    made.proba_distribution(made._query[:1].expand(n_items, -1))
    return made.log_prob(torch.arange(n_items))


def test_probabilities_are_those_of_walking_by_hand_and_sum_to_one() -> None:
    made = distribution()
    by_hand = walk_by_hand(TREE, logits_of(made))
    p = all_items(made).exp().detach().numpy()
    assert p == pytest.approx([by_hand[item] for item in range(len(POPULARITY))], rel=1e-5)
    assert np.log(p) == pytest.approx(leaf_log_probabilities(TREE, logits_of(made)), rel=1e-5)
    assert p.sum() == pytest.approx(1.0, abs=1e-6)
    assert p.max() > 3 * p.min()


def test_samples_come_as_often_as_their_probability_says() -> None:
    made = distribution()
    p = all_items(made).exp().detach().numpy()
    n = 40_000
    torch.manual_seed(0)
    made.proba_distribution(made._query[:1].expand(n, -1))
    frequency = np.bincount(made.sample().numpy(), minlength=len(p)) / n
    assert np.abs(frequency - p).max() < 5 * np.sqrt(0.25 / n)


def test_entropy_over_visited_nodes_has_the_exact_entropy_as_its_mean() -> None:
    made = distribution()
    log_p = all_items(made).detach()
    exact = -(log_p.exp() * log_p).sum().item()
    assert (log_p.exp() * made.entropy().detach()).sum().item() == pytest.approx(exact, rel=1e-5)
    assert made.entropy().std().item() > 0.01  # it is an estimate, not the entropy itself


def test_entropy_without_given_actions_is_that_of_fresh_samples() -> None:
    made = distribution(n_rows=4)
    made.log_prob(torch.zeros(4))  # of an earlier state, so not for the next one's entropy
    made.proba_distribution(made._query)
    torch.manual_seed(3)
    fresh = made.entropy()
    torch.manual_seed(3)
    actions = made.proba_distribution(made._query).sample()
    made.log_prob(actions)
    assert torch.equal(fresh, made.entropy())


def test_mode_takes_the_likelier_branch_at_every_node() -> None:
    for seed in range(8):
        made = distribution(seed)
        logits, node = logits_of(made), 0
        while node < TREE.n_inner:
            node = int(TREE.left[node] if logits[node] >= 0 else TREE.right[node])
        assert made.mode().tolist() == [node - TREE.n_inner]


def test_gradients_equal_those_of_plain_pytorch() -> None:
    made = distribution(n_rows=6)
    nodes = made._head.nodes
    query = made._query.detach().requires_grad_()
    items = [0, 5, 10, 4, 0, 7]
    ours = made.proba_distribution(query).log_prob(torch.tensor(items)).square().sum()
    ours.backward()  # type: ignore[no-untyped-call]  # torch
    found = query.grad, nodes.grad
    query.grad, nodes.grad = None, None
    logits = query @ nodes.T
    total = torch.zeros(())
    for row, item in enumerate(items):
        log_p, node = torch.zeros(()), TREE.n_inner + item
        while node != 0:
            above = int(TREE.parent[node])
            sign = 1.0 if TREE.left[above] == node else -1.0
            log_p = log_p + torch.nn.functional.logsigmoid(sign * logits[row, above])
            node = above
        total = total + log_p.square()
    total.backward()  # type: ignore[no-untyped-call]  # torch
    for one, other in zip(found, (query.grad, nodes.grad), strict=True):
        assert one is not None
        assert other is not None
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


# -- policies ------------------------------------------------------------------------------------


def make_envs(n_envs: int = 4) -> VecEnv:
    return make_sb3_vec_env(ENV_ID, n_envs, seed=0, n_fake_users=2, profile_size=3)


def make_model(name: str, envs: VecEnv, seed: int = 0, **settings: object) -> OnPolicyAlgorithm:
    algorithm, policy, arguments = ALGORITHMS[name]
    kwargs = tree_policy_kwargs(envs, **settings)
    return algorithm(
        policy, envs, n_steps=6, seed=seed, policy_kwargs=kwargs, device="cpu", **arguments
    )


@pytest.mark.parametrize("assignment", ["popular", "random"])
@pytest.mark.parametrize("name", ["ppo", "recurrent"])
def test_half_of_the_untrained_clicks_fall_on_targets(name: str, assignment: str) -> None:
    envs = make_envs()
    observation: Any = envs.reset()
    model = make_model(name, envs, assignment=assignment)
    n_items = len(envs.get_attr("item_popularity")[0])
    targets = envs.get_attr("target_items")[0]
    head: Any = model.policy.action_net
    tensors, _ = model.policy.obs_to_tensor(observation)
    with torch.no_grad():
        features: Any = model.policy.extract_features(tensors)
        width = head.nodes.shape[1] - 1
        made: Any = model.policy.action_dist.proba_distribution(head(torch.ones(n_items, width)))
        p = made.log_prob(torch.arange(n_items)).exp().numpy()
    assert features.shape[0] == 4
    assert p[targets].sum() == pytest.approx(0.5, abs=1e-6)
    assert len(targets) < n_items / 2
    actions = [model.predict(observation)[0] for _ in range(50)]
    assert 0.3 < np.isin(actions, targets).mean() < 0.7


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_what_training_evaluates_is_what_the_rollout_returned(name: str) -> None:
    envs = make_envs()
    model = make_model(name, envs)
    model.learn(48)
    policy = model.policy
    assert isinstance(policy, TreePolicy)
    tensors, _ = policy.obs_to_tensor(envs.reset())  # type: ignore[arg-type]  # SB3
    with torch.no_grad():
        actions, values, log_prob = policy(tensors)
        again_values, again_log_prob, entropy = policy.evaluate_actions(tensors, actions)
    assert torch.equal(values, again_values)
    assert torch.equal(log_prob, again_log_prob)
    assert entropy is not None
    assert entropy.shape == log_prob.shape == (4,)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_same_seed_gives_the_same_run_and_another_seed_another(name: str) -> None:
    runs = []
    for seed in (0, 0, 1):
        model = make_model(name, make_envs(), seed=seed)
        model.learn(96)
        runs.append(torch.cat([p.flatten() for p in model.policy.parameters()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("assignment", ["popular", "random"])
def test_trains_saves_loads_and_goes_on(name: str, assignment: str, tmp_path: Path) -> None:
    envs = make_envs()
    model = make_model(name, envs, assignment=assignment, tree_seed=7)
    model.learn(96)
    model.save(tmp_path / "model.zip")
    loaded = ALGORITHMS[name][0].load(tmp_path / "model.zip", envs, device="cpu")
    observation: Any = envs.reset()
    for is_deterministic in (True, False):
        actions = []
        for one in (model, loaded):
            set_random_seed(5)
            actions.append(one.predict(observation, deterministic=is_deterministic)[0].tolist())
        assert actions[0] == actions[1]
    assert torch.equal(parameters(model), parameters(loaded))
    assert np.array_equal(tree_of(model).left, tree_of(loaded).left)
    loaded.learn(48)
    assert not torch.equal(parameters(model), parameters(loaded))


def tree_of(model: OnPolicyAlgorithm) -> Tree:
    distribution_of: Any = model.policy.action_dist
    tree: Tree = distribution_of._tree
    return tree


def parameters(model: OnPolicyAlgorithm) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


def test_a_policy_alone_is_saved_with_its_tree(tmp_path: Path) -> None:
    model = make_model("ppo", make_envs(), assignment="random", tree_seed=7)
    path = str(tmp_path / "policy.zip")
    model.policy.save(path)
    loaded: Any = TreePolicy.load(path)
    assert np.array_equal(loaded._tree.left, tree_of(model).left)
    assert not np.array_equal(
        loaded._tree.left, tree_of(make_model("ppo", make_envs(), assignment="random")).left
    )


def test_the_recurrent_policy_treats_sequences_as_sb3_contrib_does() -> None:
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    torch.manual_seed(0)
    lstm = torch.nn.LSTM(3, 5)
    features = torch.randn(4 * 6, 3)
    states = torch.randn(1, 4, 5), torch.randn(1, 4, 5)
    begins, inside = torch.zeros(4, 6), torch.zeros(4, 6)
    begins[:3, 0] = 1.0
    inside[1, 2] = 1.0
    for starts in (begins, inside, torch.zeros(4, 6)):
        ours: Any = RecurrentTreePolicy._process_sequence(features, states, starts.flatten(), lstm)
        theirs: Any = RecurrentActorCriticPolicy._process_sequence(
            features, states, starts.flatten(), lstm
        )
        assert torch.allclose(ours[0], theirs[0], atol=1e-6)
        for one, other in zip(ours[1], theirs[1], strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def test_kwargs_come_from_environments_and_views_alike() -> None:
    view = make_view(n_items=8, n_targets=2)
    envs = ViewVecEnv(view, 2, Trials(view, 4))
    for found in (tree_policy_kwargs(view, net_arch=[4]), tree_policy_kwargs(envs, net_arch=[4])):
        assert found["item_popularity"].tolist() == view.item_popularity.tolist()
        assert found["target_items"].tolist() == [8, 9]
        assert found["net_arch"] == [4]


# -- learning ------------------------------------------------------------------------------------


class OneItemPays(VecEnv):
    """Ten copies of a bandit: item 6, which is no target, pays 1."""

    def __init__(self) -> None:
        self.render_mode = None
        super().__init__(10, spaces.Box(0.0, 1.0, (1,)), spaces.Discrete(len(POPULARITY)))

    def reset(self) -> NDArray[np.float32]:
        return np.ones((10, 1), dtype=np.float32)

    def step_async(self, actions: NDArray[np.int64]) -> None:
        self.rewards = (actions == 6).astype(np.float32)

    def step_wait(self) -> VecEnvStepReturn:
        return self.reset(), self.rewards, np.ones(10, dtype=np.bool_), [{} for _ in range(10)]

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: object = None) -> list[Any]:
        del indices
        return [getattr(self, attr_name)] * 10

    def set_attr(self, attr_name: str, value: object, indices: object = None) -> None: ...

    def env_method(self, method_name: str, *args: object, **kwargs: object) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: object, indices: object = None) -> list[bool]:
        del wrapper_class, indices
        return [False] * 10


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_learns_the_item_that_pays(name: str) -> None:
    algorithm, policy, arguments = ALGORITHMS[name]
    minibatches: dict[str, Any] = {} if name == "a2c" else {"batch_size": 80, "n_epochs": 4}
    model = algorithm(
        policy,
        OneItemPays(),
        n_steps=8,
        learning_rate=3e-2 if name == "a2c" else 1e-2,
        seed=0,
        device="cpu",
        policy_kwargs={
            "item_popularity": POPULARITY,
            "target_items": TARGETS,
            "features_extractor_class": FlattenExtractor,
            **({"lstm_hidden_size": 16} if name == "recurrent" else {}),
        },
        **{**arguments, **minibatches},
    )
    observation = np.ones((200, 1), dtype=np.float32)
    assert (model.predict(observation)[0] == 6).mean() < 0.2
    model.learn(2_400)
    assert (model.predict(observation)[0] == 6).mean() > 0.9
    assert model.predict(observation[:1], deterministic=True)[0].tolist() == [6]


# -- misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"assignment": "alphabetic"}, "assignment must be one of 'popular', 'random'"),
        ({"tree_seed": -1}, "tree_seed must be"),
        ({"item_popularity": POPULARITY[:3]}, r"one entry per action of Discrete\(11\), got 3"),
        ({"target_items": np.arange(11)}, "target_items and other_items must each hold an item"),
        ({"target_items": np.array([11])}, "target_items must lie in"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"item_popularity": POPULARITY, "target_items": TARGETS}
    with pytest.raises(ArgumentError, match=message):
        TreePolicy(
            spaces.Box(0.0, 1.0, (1,)),
            spaces.Discrete(11),
            lambda _: 1e-3,
            features_extractor_class=FlattenExtractor,
            **{**right, **wrong},
        )
