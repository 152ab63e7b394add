"""The features extractor embeds ids, in rollouts and in training, and learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs

from agents.sb3 import ClickSequenceExtractor, make_sb3_vec_env
from agents.sb3.features import Summary
from recattack_gym.core import ArgumentError, Interactions

N, T, N_ITEMS = 3, 4, 6
SPACE = spaces.Dict(
    {
        "clicks": spaces.Box(0, N_ITEMS, (T,), np.int64),
        "fake_user": spaces.Discrete(N),
        "step": spaces.Discrete(T),
    }
)


def features(extractor: ClickSequenceExtractor, clicks: list[list[int]], step: int) -> torch.Tensor:
    observation = {
        "clicks": torch.tensor(clicks),
        "fake_user": torch.full((len(clicks),), 1),
        "step": torch.full((len(clicks),), step),
    }
    prepared = preprocess_obs(observation, SPACE)
    assert isinstance(prepared, dict)
    with torch.no_grad():
        return extractor.forward(prepared)


def test_features_are_mean_last_click_fake_user_and_step() -> None:
    extractor = ClickSequenceExtractor(SPACE, embedding_size=2)
    with torch.no_grad():
        extractor.embedding.weight[:N_ITEMS] = torch.arange(12.0).reshape(6, 2)
    row = features(extractor, [[1, 5, 6, 6]], step=2)[0].tolist()
    assert row == [6.0, 7.0, 10.0, 11.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert extractor.features_dim == len(row)


@pytest.mark.parametrize("summary", ["mean", "gru"])
def test_no_clicks_give_zeros(summary: Summary) -> None:
    extractor = ClickSequenceExtractor(SPACE, embedding_size=4, summary=summary)
    assert not features(extractor, [[6, 6, 6, 6]], step=0)[0, :8].any()


def test_the_lstm_reads_the_fake_user_and_then_its_clicks() -> None:
    extractor = ClickSequenceExtractor(SPACE, embedding_size=4, summary="lstm")
    assert extractor.lstm is not None
    assert extractor.users is not None
    user = extractor.users.weight[:, 1]  # `features` is about fake user 1
    for clicks in ([], [5], [5, 2, 0]):
        read = torch.stack([user, *extractor.embedding.weight[clicks]])
        expected = extractor.lstm(read)[0][-1].detach()
        padded = clicks + [N_ITEMS] * (T - len(clicks))
        row = features(extractor, [padded], step=len(clicks))[0]
        assert torch.allclose(row[:4], expected, atol=1e-6)


def test_recurrent_summaries_read_the_order_and_the_mean_does_not() -> None:
    cases: tuple[tuple[Summary, bool], ...] = (("mean", True), ("gru", False), ("lstm", False))
    for summary, is_equal in cases:
        extractor = ClickSequenceExtractor(SPACE, embedding_size=4, summary=summary)
        one, other = features(extractor, [[1, 2, 3, 6], [2, 1, 3, 6]], step=3)[:, :4]
        assert torch.allclose(one, other) is is_equal


def test_both_shapes_that_stable_baselines3_gives_are_understood() -> None:
    extractor = ClickSequenceExtractor(SPACE, embedding_size=4)
    rollout = {
        "clicks": torch.tensor([[1.0, 2.0, 6.0, 6.0]]),
        "fake_user": torch.eye(N)[1:2],
        "step": torch.eye(T)[2:3],
    }
    training = {**rollout, "fake_user": torch.eye(N)[1:2, None], "step": torch.eye(T)[2:3, None]}
    assert torch.equal(extractor(rollout), extractor(training))


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("summary", ["mean", "gru", "lstm"])
def test_trains_saves_and_loads(
    algorithm: type[OnPolicyAlgorithm], summary: str, tmp_path: Path
) -> None:
    envs = make_sb3_vec_env(
        "recattack_gym:RecPoison-ItemPop-v0", 4, seed=0, n_fake_users=2, profile_size=3
    )
    options = {"embedding_size": 4, "summary": summary}
    policy = {
        "features_extractor_class": ClickSequenceExtractor,
        "features_extractor_kwargs": options,
    }
    settings: dict[str, Any] = {"batch_size": 12, "n_epochs": 2} if algorithm is PPO else {}
    model = algorithm(
        "MultiInputPolicy", envs, n_steps=6, policy_kwargs=policy, device="cpu", **settings
    )
    model.learn(96)
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    observation: Any = envs.reset()
    actions = [one.predict(observation, deterministic=True)[0] for one in (model, loaded)]
    assert actions[0].tolist() == actions[1].tolist()


def test_ppo_learns_to_click_the_target() -> None:
    # Ten items with 1 to 10 clicks; the new target is shown to all 10 users once it has 11 clicks.
    users = np.repeat(np.arange(10), np.arange(1, 11))
    items = np.concatenate([np.arange(n) for n in range(1, 11)])
    envs = make_sb3_vec_env(
        "recattack_gym:RecPoison-ItemPop-v0",
        8,
        seed=0,
        dataset=Interactions(users, items, 10, 11),
        targets=1,
        k=1,
        n_candidates=None,
        n_fake_users=1,
        profile_size=6,
        reward="normalized",
    )
    model = PPO(
        "MultiInputPolicy",
        envs,
        n_steps=24,
        batch_size=96,
        n_epochs=8,
        gamma=1.0,
        gae_lambda=1.0,
        learning_rate=3e-3,
        seed=0,
        device="cpu",
        policy_kwargs={"features_extractor_class": ClickSequenceExtractor},
    )
    model.learn(24 * 8 * 25)
    observation: Any = envs.reset()
    for _ in range(6):
        actions, _ = model.predict(observation, deterministic=True)
        observation, _, _, infos = envs.step(actions)
    profiles = envs.get_attr("last_profiles")[0]
    assert infos[0]["rec_num"] >= 5
    assert (profiles == 11).mean() > 0.8


@pytest.mark.parametrize(
    ("space", "wrong", "message"),
    [
        (SPACE["clicks"], {}, "observation_space must be PoisonEnv's Dict"),
        (
            spaces.Dict({"clicks": SPACE["clicks"]}),
            {},
            "observation_space must be PoisonEnv's Dict",
        ),
        (SPACE, {"embedding_size": 0}, "embedding_size must be a whole number >= 1, got 0"),
        (SPACE, {"summary": "sum"}, "summary must be one of 'mean', 'gru', 'lstm', got 'sum'"),
    ],
)
def test_wrong_arguments_are_named(space: spaces.Dict, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ClickSequenceExtractor(space, **wrong)
