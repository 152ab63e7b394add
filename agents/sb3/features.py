"""What a Stable-Baselines3 policy sees of a click sequence."""

from typing import Literal

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from recattack_gym.core.checks import as_choice, as_count
from recattack_gym.core.errors import ArgumentError

Summary = Literal["mean", "gru", "lstm"]
SUMMARIES: tuple[Summary, ...] = ("mean", "gru", "lstm")


class ClickSequenceExtractor(BaseFeaturesExtractor):
    """Embed the clicks so far and put who clicks and when beside them.

    Stable-Baselines3 turns every `Discrete` part of an observation into a one-hot vector, as long as the
    catalogue if it were an item. So environments give item ids as numbers in a `Box`, and this looks
    them up in an embedding. The features are the summary of all clicks of the fake user so far, the
    embedding of its last click, the fake user and the step, both as one-hot.

    ```python
    PPO("MultiInputPolicy", envs, policy_kwargs={"features_extractor_class": ClickSequenceExtractor})
    ```

    Args:
        observation_space: `PoisonEnv`'s.
        embedding_size: Width of an item's embedding.
        summary: `"mean"` averages the embeddings; `"gru"` reads them in order, and costs about T times
            as much; `"lstm"` does so too and reads an embedding of the fake user first, as PoisonRec's
            policy does (Song et al., ICDE 2020, §IV-C).

    Raises:
        ArgumentError: If the space is another one, or an argument is wrong.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        embedding_size: int = 32,
        summary: Summary = "mean",
    ) -> None:
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        clicks, fake_user, step = (parts.get(name) for name in ("clicks", "fake_user", "step"))
        if not (
            isinstance(clicks, spaces.Box)
            and isinstance(fake_user, spaces.Discrete)
            and isinstance(step, spaces.Discrete)
        ):
            raise ArgumentError(
                "observation_space must be PoisonEnv's Dict of clicks, fake_user and step, "
                f"got {observation_space}"
            )
        width = as_count("embedding_size", embedding_size)
        self._summary: Summary = as_choice("summary", summary, SUMMARIES)
        super().__init__(observation_space, int(2 * width + fake_user.n + step.n))
        self._nothing = int(clicks.high.max())
        self.embedding = nn.Embedding(self._nothing + 1, width, padding_idx=self._nothing)
        self.gru = nn.GRU(width, width, batch_first=True) if summary == "gru" else None
        self.lstm = nn.LSTM(width, width, batch_first=True) if summary == "lstm" else None
        self.users = nn.Linear(int(fake_user.n), width, bias=False) if summary == "lstm" else None

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the features, shape `(B, features_dim)`.

        Args:
            observations: `clicks (B, T)` as floats; `fake_user` and `step` one-hot, `(B, n)` while
                Stable-Baselines3 collects and `(B, 1, n)` while it trains.
        """
        clicks = observations["clicks"].long()  # (B, T), exact: ids are far below 2**24
        embedded = self.embedding(clicks)  # (B, T, d)
        n_clicks = (clicks != self._nothing).sum(1)  # (B,)
        rows = torch.arange(len(clicks), device=clicks.device)
        last = (n_clicks - 1).clamp(min=0)
        others = (observations["fake_user"].flatten(1), observations["step"].flatten(1))
        if self.lstm is not None and self.users is not None:
            sequence = torch.cat(
                [self.users(others[0]).unsqueeze(1), embedded], dim=1
            )  # (B, 1 + T, d)
            summary = self.lstm(sequence)[0][rows, n_clicks]
        elif self.gru is not None:
            summary = self.gru(embedded)[0][rows, last] * (n_clicks > 0).unsqueeze(1)
        else:
            summary = embedded.sum(1) / n_clicks.clamp(min=1).unsqueeze(1)
        return torch.cat([summary, embedded[rows, last], *others], dim=1)
