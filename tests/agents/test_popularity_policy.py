"""The policy that knows items by popularity and target: its features, its start, and its shapes."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from agents.popularity_policy import (
    ClickFeatures,
    ItemScores,
    PopularityPolicy,
    item_features,
    platform_features,
)
from agents.sb3 import make_sb3_vec_env
from recattack_gym.core import ArgumentError

POPULARITY = np.array([9, 99, 0, 9, 0])
TARGETS = np.array([4, 2])


def space_of(n_items: int, profile_size: int = 3) -> spaces.Dict:
    return spaces.Dict(
        {
            "clicks": spaces.Box(0, n_items, (profile_size,), np.int64),
            "fake_user": spaces.Discrete(2),
            "step": spaces.Discrete(profile_size),
        }
    )


def test_items_are_described_by_target_and_standardised_popularity() -> None:
    # log(1 + clicks) of the others 0, 1, 3 is log 10 = x, 2x, x: mean 4x/3, deviation sqrt(2)x/3.
    table = item_features(POPULARITY, TARGETS, target_identity=0.2)
    assert table.shape == (5, 5)
    assert table[:, 0].tolist() == [0, 0, 1, 0, 1]
    assert np.allclose(table[[0, 1, 3], 1], [-np.sqrt(0.5), np.sqrt(2), -np.sqrt(0.5)])
    assert np.allclose(table[[0, 1, 3], 2], [-0.5, 1.0, -0.5])
    assert np.allclose(table[4], [1, 0, 0, 0.2, 0])
    assert np.allclose(table[2], [1, 0, 0, 0, 0.2])


def test_targets_are_alike_unless_asked_for() -> None:
    told_apart = item_features(POPULARITY, TARGETS, target_identity=0.2)
    assert np.array_equal(item_features(POPULARITY, TARGETS), told_apart[:, :3])


def test_an_environment_given_by_name_has_the_features_of_that_platform() -> None:
    options: dict[str, Any] = {"targets": 3, "n_fake_users": 2}
    env = gym.make("recattack_gym:RecPoison-ItemPop-v0", **options)
    popularity = env.get_wrapper_attr("item_popularity")
    expected = item_features(popularity, env.get_wrapper_attr("target_items"), 0.5)
    found = platform_features("recattack_gym:RecPoison-ItemPop-v0", 0.5, **options)
    assert found.shape == (503, 6)
    assert np.array_equal(found, expected)


def test_equally_popular_items_give_finite_features() -> None:
    assert np.isfinite(item_features(np.array([5, 5, 0]), np.array([2]))).all()


def test_clicks_are_described_by_the_last_their_mean_and_their_number() -> None:
    table = item_features(POPULARITY, TARGETS)
    extractor = ClickFeatures(space_of(5), table)
    described = extractor({"clicks": torch.tensor([[4.0, 1.0, 5.0], [5.0, 5.0, 5.0]])}).numpy()
    assert np.allclose(described[0, :3], table[1])
    assert np.allclose(described[0, 3:6], (table[4] + table[1]) / 2)
    assert described[0, 6] == pytest.approx(2 / 3)
    assert not described[1].any()


def test_scores_are_the_weighted_features() -> None:
    table = item_features(POPULARITY, TARGETS)
    scores = ItemScores(4, table)
    latent = torch.randn(3, 4)
    assert torch.allclose(scores(latent), scores.weights(latent) @ torch.from_numpy(table).T)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_untrained_policy_makes_the_asked_share_of_clicks_on_targets(share: float) -> None:
    table = item_features(np.arange(200), np.arange(195, 200))
    policy = PopularityPolicy(
        space_of(200), spaces.Discrete(200), lambda _: 0.0, table=table, target_share=share
    )
    observation = {
        "clicks": torch.full((1, 3), 200.0),
        "fake_user": torch.zeros((1, 2)),
        "step": torch.zeros((1, 3)),
    }
    with torch.no_grad():
        distribution = policy.get_distribution(observation)
        on_targets = sum(
            float(distribution.log_prob(torch.tensor([item])).exp()) for item in range(195, 200)
        )
    assert on_targets == pytest.approx(share, abs=0.02)


def test_the_untrained_policy_prefers_popular_items_as_much_as_asked() -> None:
    table = item_features(np.arange(200), np.arange(195, 200))
    observation = {
        "clicks": torch.full((1, 3), 200.0),
        "fake_user": torch.zeros((1, 2)),
        "step": torch.zeros((1, 3)),
    }
    for weight in (0.0, 1.0):
        policy = PopularityPolicy(
            space_of(200),
            spaces.Discrete(200),
            lambda _: 0.0,
            table=table,
            popularity_weight=weight,
        )
        with torch.no_grad():
            distribution = policy.get_distribution(observation)
            often, seldom = (float(distribution.log_prob(torch.tensor([x]))) for x in (194, 10))
        asked = weight * float(table[194, 1] - table[10, 1])
        assert often - seldom == pytest.approx(asked, abs=0.1)


def test_its_size_does_not_depend_on_the_catalogue() -> None:
    sizes = []
    for n_items in (50, 5000):
        table = item_features(np.arange(n_items), np.array([0, 1]))
        policy = PopularityPolicy(
            space_of(n_items), spaces.Discrete(n_items), lambda _: 0.0, table=table, net_arch=[]
        )
        sizes.append(sum(x.numel() for x in policy.parameters()))
    assert sizes[0] == sizes[1]


def test_a_table_for_another_catalogue_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"one row per action of Discrete\(6\), got 5 rows"):
        PopularityPolicy(
            space_of(6), spaces.Discrete(6), lambda _: 0.0, table=item_features(POPULARITY, TARGETS)
        )


def test_it_is_saved_and_loaded_with_its_table(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("model") / "model.zip"
    envs = make_sb3_vec_env(
        "recattack_gym:RecPoison-ItemPop-v0", 2, seed=0, n_fake_users=2, profile_size=3
    )
    table = item_features(envs.get_attr("item_popularity")[0], envs.get_attr("target_items")[0])
    model = PPO(
        PopularityPolicy, envs, n_steps=6, batch_size=12, policy_kwargs={"table": table}, seed=0
    )
    model.learn(12)
    model.save(path)
    loaded = PPO.load(path, device="cpu")
    single = gym.make("recattack_gym:RecPoison-ItemPop-v0", n_fake_users=2, profile_size=3)
    observation, _ = single.reset(seed=0)
    expected, _ = model.predict(observation, deterministic=True)
    assert loaded.predict(observation, deterministic=True)[0] == expected
