"""Fake profiles: what an attack injects, and the file in which attacks, detectors and defences swap it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recattack_gym.core.attack import AttackBudget
from recattack_gym.core.checks import as_ids, as_numbers
from recattack_gym.core.errors import ArgumentError, ArtifactError
from recattack_gym.core.files import read_arrays, write_arrays

FORMAT_VERSION = 1
MAX_ITEM_ID = 2**31


@dataclass(frozen=True, eq=False)
class FakeProfiles:
    """The clicks of all fake users of one attack; immutable.

    Args:
        item_ids: Shape `(n_fake_users, profile_size)`: row = fake user, in order of clicking.
        ratings: Shape `(n_fake_users, profile_size)`, or `None` for clicks.
        header: What made them: plain JSON values such as `dataset_hash`, `target_items`, `seed`,
            `attacker`, `config`.

    Raises:
        ArgumentError: If a shape or dtype is wrong, or the header is not JSON.
    """

    item_ids: NDArray[np.int64]
    ratings: NDArray[np.float64] | None = None
    header: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        items = as_ids("item_ids", self.item_ids, below=MAX_ITEM_ID, shape=(None, None)).copy()
        if items.size == 0:
            raise ArgumentError(f"item_ids must hold at least one click, got shape {items.shape}")
        items.flags.writeable = False
        object.__setattr__(self, "item_ids", items)
        if self.ratings is not None:
            ratings = as_numbers("ratings", self.ratings)
            if ratings.shape != items.shape:
                raise ArgumentError(f"ratings must have shape {items.shape}, got {ratings.shape}")
            ratings.flags.writeable = False
            object.__setattr__(self, "ratings", ratings)
        try:
            header = json.loads(json.dumps(dict(self.header)))
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"header must hold plain JSON values: {error}") from error
        object.__setattr__(self, "header", header)

    @property
    def budget(self) -> AttackBudget:
        """What these profiles spend."""
        n_fake_users, profile_size = self.item_ids.shape
        return AttackBudget(n_fake_users=n_fake_users, profile_size=profile_size)

    @property
    def content_hash(self) -> str:
        """A hex digest of the clicks and ratings (not of the header)."""
        digest = hashlib.sha256(f"profiles-{FORMAT_VERSION} {self.item_ids.shape}".encode())
        digest.update(np.ascontiguousarray(self.item_ids).tobytes())
        digest.update(
            b"-" if self.ratings is None else np.ascontiguousarray(self.ratings).tobytes()
        )
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the profiles to an `.npz` file, whole or not at all."""
        header = {"format": FORMAT_VERSION, "content_hash": self.content_hash, **self.header}
        arrays: dict[str, NDArray[np.int64] | NDArray[np.float64]] = {"item_ids": self.item_ids}
        if self.ratings is not None:
            arrays["ratings"] = self.ratings
        write_arrays(Path(path), header, arrays, compress=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read profiles that `save` wrote; never unpickles.

        Raises:
            ArtifactError: If the file is missing, damaged, of another version, or altered.
        """
        header, arrays = read_arrays(Path(path), "profiles")
        if header.pop("format", None) != FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has another format version; this is version {FORMAT_VERSION}"
            )
        stored_hash = header.pop("content_hash", None)
        try:
            profiles = cls(arrays["item_ids"], arrays.get("ratings"), header)
        except (KeyError, ArgumentError) as error:
            raise ArtifactError(f"{path} does not hold fake profiles: {error}") from error
        if profiles.content_hash != stored_hash:
            raise ArtifactError(f"{path} was altered: its content does not match its hash")
        return profiles


def as_profile_batch(profiles: "FakeProfiles | ArrayLike", n_items: int) -> NDArray[np.int64]:
    """Return one attack or a batch of attacks as an array of shape `(M, N, T)`.

    Args:
        profiles: `FakeProfiles`, or item ids of shape `(N, T)` or `(M, N, T)`.
        n_items: Size of the catalogue, target items included.

    Raises:
        ArgumentError: If shape, dtype or an item id is wrong, or there is no click at all.
    """
    try:
        clicks = profiles.item_ids if isinstance(profiles, FakeProfiles) else np.asarray(profiles)
    except ValueError as error:  # rows of different lengths
        raise ArgumentError(f"profiles must be an array of whole numbers: {error}") from error
    if clicks.ndim == 2:
        clicks = clicks[None]
    batch = as_ids("profiles", clicks, below=n_items, shape=(None, None, None))
    if batch.size == 0:
        raise ArgumentError(f"profiles must hold at least one click, got shape {batch.shape}")
    return np.ascontiguousarray(batch)
