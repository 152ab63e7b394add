"""A recurrent policy for episodes of hundreds of clicks."""

from typing import cast

import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import nn


class RecurrentClickPolicy(RecurrentActorCriticPolicy):
    """`RecurrentActorCriticPolicy` that runs its LSTM over whole sequences.

    `sb3_contrib` steps through a minibatch click by click in Python as soon as an episode starts anywhere
    in it. Its buffer cuts sequences at episode starts, so an episode starts at the beginning of a sequence or
    not at all: there it is enough to clear the state once. The result is the same.
    """

    @staticmethod
    def _process_sequence(
        features: torch.Tensor,
        lstm_states: tuple[torch.Tensor, torch.Tensor],
        episode_starts: torch.Tensor,
        lstm: nn.LSTM,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n_sequences = lstm_states[0].shape[1]
        starts = episode_starts.reshape(n_sequences, -1)
        if not bool((starts[:, 1:] == 0).all()):
            return RecurrentActorCriticPolicy._process_sequence(
                features, lstm_states, episode_starts, lstm
            )
        kept = (1.0 - starts[:, 0]).view(1, -1, 1)
        by_time = features.reshape(n_sequences, -1, lstm.input_size).swapaxes(0, 1)
        output, states = lstm(by_time, (kept * lstm_states[0], kept * lstm_states[1]))
        # sb3_contrib's annotation says a tensor where it returns the pair of states
        return output.transpose(0, 1).flatten(0, 1), cast("torch.Tensor", states)
