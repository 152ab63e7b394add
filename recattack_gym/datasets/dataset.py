"""A named log together with what a paper has to say about it: source, licence, citation."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.datasets.split import Split, leave_one_out


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A log, how it splits, and where it comes from; immutable."""

    name: str
    """What `load` calls it, or the name of the file."""
    log: Interactions
    """Every event that the protocol keeps, the held-out ones included."""
    item_names: tuple[str, ...] | None = field(default=None, repr=False)
    """One name per item of the catalogue, or `None` where the source has none."""
    protocol: str | None = None
    """Which paper's preprocessing was applied; `None` keeps every event of the file."""
    provenance: str = ""
    """Where the events come from: the file that was read, or the formula and its seed."""
    licence: str = ""
    """The publisher's terms in one or two sentences."""
    citation: str = ""
    """What the publisher asks a publication to cite."""
    description: str = ""
    """What the events are."""

    def __post_init__(self) -> None:
        if self.item_names is not None and len(self.item_names) != self.log.n_items:
            raise ArgumentError(
                f"item_names must have one name for each of the {self.log.n_items} items, "
                f"got {len(self.item_names)}"
            )

    @cached_property
    def split(self) -> Split:
        """The log split by `leave_one_out`; computed once."""
        return leave_one_out(self.log)

    @property
    def n_samples(self) -> int:
        """Training samples as PoisonRec's Table II counts them: one event of every user is held out."""
        return len(self.log) - int(np.count_nonzero(np.diff(self.log.indptr)))


def from_interactions(
    log: Interactions,
    *,
    name: str = "custom",
    item_names: tuple[str, ...] | None = None,
    provenance: str = "given by the caller",
    licence: str = "",
    citation: str = "",
    description: str = "",
) -> Dataset:
    """Wrap a log of one's own, so that it can be used wherever a named dataset can.

    Raises:
        ArgumentError: If `log` is no `Interactions`, or the names do not fit its catalogue.
    """
    if not isinstance(log, Interactions):
        raise ArgumentError(
            f"log must be an Interactions(user_ids, item_ids, n_users, n_items), got {type(log).__name__}"
        )
    return Dataset(
        name=name,
        log=log,
        item_names=item_names,
        provenance=provenance,
        licence=licence,
        citation=citation,
        description=description,
    )
