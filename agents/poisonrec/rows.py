"""A table of features of which a training step touches few rows, and Adam on it at that cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.poisonrec.kernel import adam_rows
from agents.poisonrec.threads import Blocks

BETA1, BETA2 = 0.9, 0.999
"""Decay of Adam's moments: the defaults of Kingma and Ba, ICLR 2015."""
HORIZON = 110
"""Adam steps after which a row that is not touched stands still: its first moment is 1e-5 of what it was."""
_SWEEP = 16
"""Adam steps between two looks for rows that stand still."""


class RowTable:
    """Features of nodes or items, with the state of Adam (Kingma and Ba, ICLR 2015) for each row.

    Adam moves a row for a while after its last gradient, because the first moment decays slowly. So all
    rows with a gradient in the last `HORIZON` steps are updated. The others are not visited: what they
    would still move is below 1e-5 of what they have moved. The second moment of a row that comes back is
    decayed for the steps that it missed. So the result is that of Adam on the whole table.

    Args:
        values: Initial features, shape `(n_rows, D)`; taken over, not copied.
        learning_rate: Adam's step size.
        epsilon: Added to the root of the second moment.
    """

    def __init__(
        self, values: NDArray[np.float32], *, learning_rate: float, epsilon: float
    ) -> None:
        self.values = values
        self.learning_rate = learning_rate
        self.epsilon = epsilon
        self._n_steps = 0
        self._first_moment = np.zeros_like(values)
        self._second_moment = np.zeros_like(values)
        self._last_touch = np.zeros(len(values), dtype=np.int64)  # in Adam steps
        self._left_at = np.full(len(values), -1, dtype=np.int64)  # -1: never updated
        self._is_active = np.zeros(len(values), dtype=np.bool_)
        self._active = np.zeros(0, dtype=np.int64)
        self._place = np.full(len(values), -1, dtype=np.int32)  # scratch

    @property
    def n_active(self) -> int:
        """Rows that a step updates at present."""
        return len(self._active)

    def adam_step(
        self, rows: NDArray[np.int64], gradient: NDArray[np.float32], blocks: Blocks
    ) -> None:
        """Take one step of Adam; rows that are not named have a gradient of zero.

        Args:
            rows: Distinct rows with a gradient, shape `(n_touched,)`.
            gradient: Shape `(n_touched, D)`.
            blocks: Threads to spread the rows over.
        """
        if self._n_steps % _SWEEP == 0:
            self._let_go()
        self._take_in(rows)
        self._n_steps += 1
        step = self._n_steps
        self._last_touch[rows] = step
        self._place[rows] = np.arange(len(rows), dtype=np.int32)
        place = self._place[self._active]
        self._place[rows] = -1
        blocks.run(
            len(self._active),
            adam_rows,
            self._active,
            place,
            gradient,
            self.values,
            self._first_moment,
            self._second_moment,
            self.learning_rate / (1 - BETA1**step),
            BETA1,
            BETA2,
            float(np.sqrt(1 - BETA2**step)),
            self.epsilon,
        )

    def state(self) -> dict[str, NDArray[Any]]:  # Any: floats, ids and flags
        """Return everything that decides what comes next, as arrays by name; not copied."""
        return {
            "values": self.values,
            "first_moment": self._first_moment,
            "second_moment": self._second_moment,
            "last_touch": self._last_touch,
            "left_at": self._left_at,
            "active": self._active,
            "n_steps": np.array(self._n_steps),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        self.values[...] = state["values"]
        self._first_moment[...] = state["first_moment"]
        self._second_moment[...] = state["second_moment"]
        self._last_touch[...] = state["last_touch"]
        self._left_at[...] = state["left_at"]
        self._active = state["active"].copy()
        self._is_active[...] = False
        self._is_active[self._active] = True
        self._n_steps = int(state["n_steps"])

    def _let_go(self) -> None:
        """Stop updating rows that stand still."""
        stands_still = self._n_steps - self._last_touch[self._active] > HORIZON
        left = self._active[stands_still]
        self._is_active[left] = False
        self._left_at[left] = self._n_steps
        self._first_moment[left] = 0
        self._active = self._active[~stands_still]

    def _take_in(self, rows: NDArray[np.int64]) -> None:
        """Update `rows` from now on, and first bring those up to date that were let go."""
        new = rows[~self._is_active[rows]]
        if not len(new):
            return
        back = new[self._left_at[new] >= 0]
        missed = self._n_steps - self._left_at[back]
        self._second_moment[back] *= (BETA2**missed)[:, None].astype(np.float32)
        self._is_active[new] = True
        self._active = np.concatenate([self._active, new])
