"""Leave-one-out: which event of a user tests a recommender, which tunes it, what it learns from."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_choice
from recattack_gym.core.interactions import Interactions

MIN_EVENTS = 3
"""Users with fewer events keep them all for training: each of the three parts needs one."""


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """A log in three parts; immutable.

    Args:
        train: All events but the held-out ones, over the same users and items as the log.
        validation_items: Shape `(n_users,)`: the last but one item of each user, for choosing
            hyper-parameters; -1 for users who have fewer than three events.
        test_items: Shape `(n_users,)`: the last item of each user, for reporting; -1 likewise.
        before_test: The training events and the validation events: all that comes before the test
            items. A sequential ranker that is asked for the test item may see the validation item.
    """

    train: Interactions
    validation_items: NDArray[np.int64]
    test_items: NDArray[np.int64]
    before_test: Interactions

    def evaluable(self, which: Literal["validation", "test"]) -> NDArray[np.bool_]:
        """Tell for which users a held-out item says something about a ranker; shape `(n_users,)`.

        A user counts if the held-out item exists and is not among the user's earlier items, which a
        ranker never recommends: one user can click one item several times (a purchase and its play
        on Steam). For the test item the validation item is an earlier item too, also where a ranker
        learned from `train` alone: otherwise hyper-parameters would be chosen on the answer.
        """
        as_choice("which", which, ("validation", "test"))
        held_out, earlier = (
            (self.validation_items, self.train)
            if which == "validation"
            else (self.test_items, self.before_test)
        )
        users = np.flatnonzero(held_out >= 0)
        mask = np.zeros(len(held_out), dtype=np.bool_)
        mask[users] = ~earlier.has(users, held_out[users])
        return mask


def leave_one_out(log: Interactions) -> Split:
    """Hold out the last event of each user for testing and the one before for validation.

    "Last" is the order of the log: time where the source has time (equal times keep the order of
    the source's file), else the order of the file. Users with fewer than three events keep all of
    them in the training part. An item that a user clicks several times may be both held out and
    in the training part; `Split.evaluable` leaves such users out of an evaluation.
    """
    n_events = np.diff(log.indptr)
    users = np.flatnonzero(n_events >= MIN_EVENTS)
    last = log.indptr[users + 1] - 1
    keep = np.ones(len(log), dtype=np.bool_)
    keep[last] = False
    before_test = log.select(keep)
    keep[last - 1] = False
    test_items = np.full(log.n_users, -1, dtype=np.int64)
    validation_items = test_items.copy()
    test_items[users] = log.item_ids[last]
    validation_items[users] = log.item_ids[last - 1]
    test_items.flags.writeable = False
    validation_items.flags.writeable = False
    return Split(log.select(keep), validation_items, test_items, before_test)
