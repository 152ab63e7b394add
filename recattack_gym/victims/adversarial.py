"""Adversarial training of pairwise recommenders (APR, PamaCF): the formulas, without any training.

The adversary of He, He, Du, Chua, "Adversarial Personalized Ranking for Recommendation", SIGIR 2018, adds to
embeddings what raises the BPR loss most to first order, each row by a Euclidean length of its own, `eps`. For
one triple (user p, click q, item r that was not clicked) with margin `x = p . (q - r) + b_q - b_r`, the
gradients of `softplus(-x)` are `-c (q - r)`, `-c p` and `c p` with `c = sigmoid(-x)`. Normalised they do not
depend on c:

    user  -eps (q - r) / |q - r|        click  -eps p / |p|        other  +eps p / |p|

and the margin becomes `x - eps |q - r| - 2 eps |p| + 2 eps^2 cos(q - r, p)`. Biases are not perturbed.

There are two schemes, and both are called APR. Per sample (code of PamaCF): every triple of a batch has
perturbations of its own, as above. Per row (code of APR's authors): the gradients of a batch are summed in
the tables first, so that a user with several triples has one perturbation along their sum. They are the same
where a batch is one triple.
"""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_choice, as_real

if TYPE_CHECKING:
    import torch

Coefficient = Literal["uniform", "squared", "relative", "absolute"]
"""How a user's share of `eps` follows from the user's norm; see `coefficients`."""

COEFFICIENTS: tuple[Coefficient, ...] = ("uniform", "squared", "relative", "absolute")
"""Compiled code takes the place in this tuple for the name."""

_TINY = 1e-9
"""Added to what is divided by, as in PamaCF's code."""

_BLOCK = 1 << 16
"""Triples whose rows are gathered at once."""

Rows = NDArray[np.floating[Any]]  # of any precision


class Triples(NamedTuple):
    """What a BPR loss is of; all of shape `(B,)`."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    """Clicked."""
    others: NDArray[np.int64]
    """Not clicked."""


def margins(user: Rows, item: Rows, other: Rows) -> Rows:
    """Return by how much clicks are scored above the other items; shape `(B,)`.

    Args:
        user: Shape `(B, d)`.
        item: Clicked, shape `(B, d)`.
        other: Not clicked, shape `(B, d)`.
    """
    product: Rows = np.einsum("bd,bd->b", user, item - other)
    return product


def bpr_loss(margin: Rows) -> Rows:
    """Return `softplus(-margin)`, of any shape."""
    loss: Rows = np.logaddexp(0.0, -margin)
    return loss


def normalised_rows(rows: Rows, length: float | Rows) -> Rows:
    """Scale rows to a Euclidean length; rows of zeros stay.

    Args:
        rows: Shape `(n, d)`.
        length: One for all, or of shape `(n,)`.
    """
    norms = np.linalg.norm(rows, axis=1)
    scale = np.asarray(length) / np.where(norms > 0.0, norms, 1.0)
    scaled: Rows = rows * scale[:, None].astype(rows.dtype)
    return scaled


def perturb_samples(
    user: Rows, item: Rows, other: Rows, eps: float | Rows
) -> tuple[Rows, Rows, Rows]:
    """Return the perturbations of each triple's user, click and other item, one set per triple.

    Args:
        user: Shape `(B, d)`.
        item: Clicked, shape `(B, d)`.
        other: Not clicked, shape `(B, d)`.
        eps: Length of each perturbation, at least 0: one for all, or of shape `(B,)`.

    Returns:
        Three arrays of shape `(B, d)`; the last two are opposite.
    """
    to_other = normalised_rows(user, eps)
    return normalised_rows(other - item, eps), -to_other, to_other


def perturbed_margins(
    user: Rows, item: Rows, other: Rows, eps: float | Rows, *, bias: float | Rows = 0.0
) -> Rows:
    """Return the margins after `perturb_samples`, in closed form; shape `(B,)`.

    Args:
        user: Shape `(B, d)`, not zero.
        item: Clicked, shape `(B, d)`.
        other: Not clicked, shape `(B, d)`, other than `item`.
        eps: One for all, or of shape `(B,)`.
        bias: What the click's bias is above the other's, for all or of shape `(B,)`.
    """
    apart = item - other
    length, norm = np.linalg.norm(apart, axis=1), np.linalg.norm(user, axis=1)
    along = margins(user, item, other)
    closed: Rows = along + bias - eps * (length + 2.0 * norm)
    closed += 2.0 * np.square(eps) * along / (length * norm)
    return closed


def triple_margins(users: Rows, items: Rows, triples: Triples, *, bias: Rows | None = None) -> Rows:
    """Return the margins of triples, gathered a block at a time; shape `(B,)`.

    Args:
        users: Shape `(n_users, d)`.
        items: Shape `(n_items, d)`.
        triples: Ids below the lengths of the tables.
        bias: Of the items, shape `(n_items,)`; `None` for zero.
    """
    margin: Rows = np.empty(len(triples.users), dtype=users.dtype)
    for start in range(0, len(margin), _BLOCK):
        user, item, other = (ids[start : start + _BLOCK] for ids in triples)
        margin[start : start + _BLOCK] = margins(users[user], items[item], items[other])
    if bias is not None:
        margin += bias[triples.items] - bias[triples.others]
    return margin


def table_gradients(
    users: Rows, items: Rows, triples: Triples, *, bias: Rows | None = None
) -> tuple[Rows, Rows]:
    """Return the gradients of the summed BPR loss of triples by both tables.

    Args:
        users: Shape `(n_users, d)`.
        items: Shape `(n_items, d)`.
        triples: See `triple_margins`.
        bias: See `triple_margins`.

    Returns:
        Arrays of the shapes of `users` and `items`.
    """
    from scipy.sparse import csr_array

    margin = triple_margins(users, items, triples, bias=bias)
    slope = 1.0 / (1.0 + np.exp(np.minimum(margin, 80.0)))
    both = np.concatenate([triples.items, triples.others])
    cells = (np.tile(triples.users, 2), both)
    pulls = csr_array(
        (np.concatenate([-slope, slope]).astype(users.dtype), cells),
        shape=(len(users), len(items)),
    )
    return pulls @ items, pulls.T @ users


def perturb_rows(
    users: Rows, items: Rows, triples: Triples, eps: float, *, bias: Rows | None = None
) -> tuple[Rows, Rows]:
    """Return the perturbations of both tables, one per row, along the summed gradient of the triples.

    Args:
        users: Shape `(n_users, d)`.
        items: Shape `(n_items, d)`.
        triples: A batch; rows that are not in it have a perturbation of zero.
        eps: Length of each perturbation, at least 0.
        bias: See `triple_margins`.
    """
    to_users, to_items = table_gradients(users, items, triples, bias=bias)
    return normalised_rows(to_users, eps), normalised_rows(to_items, eps)


def coefficients(
    norms: Rows, kind: Coefficient = "squared", *, mean: float | None = None
) -> NDArray[np.float64]:
    """Return PamaCF's personal shares of `eps`: users with long embeddings bear more.

    `"squared"` is the released code: `2 sigmoid(|p|^2 / mean |p|^2 - 1)`, in (0.53, 2), 1 where all norms are
    equal. `"relative"` is how the paper is usually read: `sigmoid((|p| - mean |p|) / mean |p|)`, 0.5 where
    they are equal. `"absolute"` is its summary: `sigmoid(|p| - mean |p|)`. So an `eps` of one kind is
    about twice that of another. `"uniform"` is APR: 1.

    Args:
        norms: Of users' embeddings, at least 0, shape `(n,)`.
        kind: One of `COEFFICIENTS`.
        mean: What to compare with, of norms or, for `"squared"`, of their squares; `None` for the mean of
            `norms`, as the code does in every batch.
    """
    as_choice("kind", kind, COEFFICIENTS)
    if kind == "uniform":
        return np.ones(len(norms))
    sizes = np.square(norms) if kind == "squared" else norms
    usual = float(np.mean(sizes)) if mean is None else mean
    if kind == "absolute":
        return 1.0 / (1.0 + np.exp(usual - sizes))
    scale = 2.0 if kind == "squared" else 1.0
    return scale / (1.0 + np.exp(1.0 - sizes / (usual + _TINY)))


class Adversary(NamedTuple):
    """What adversarial training adds to plain training.

    Attributes:
        eps: Length of the perturbations, before a user's coefficient.
        adv_reg: Weight of the loss of perturbed embeddings relative to that of the clean ones.
        plain_share: Share of the passes that are plain and come first.
        coefficient: See `coefficients`.
    """

    eps: float
    adv_reg: float
    plain_share: float
    coefficient: Coefficient = "uniform"

    @classmethod
    def checked(
        cls, eps: object, adv_reg: object, plain_share: object, coefficient: object = "uniform"
    ) -> Self:
        """Make one from settings.

        Raises:
            ArgumentError: If a setting is out of range.
        """
        return cls(
            as_real("eps", eps, at_least=0.0),
            as_real("adv_reg", adv_reg, at_least=0.0),
            as_real("plain_share", plain_share, at_least=0.0, at_most=1.0),
            as_choice("coefficient", coefficient, COEFFICIENTS),
        )

    @property
    def is_idle(self) -> bool:
        """Whether there is no adversary, so that all passes are plain."""
        return self.eps == 0.0 or self.adv_reg == 0.0

    @property
    def weight(self) -> float:
        """Return the weight of the perturbed loss, `adv_reg / (1 + adv_reg)`; the clean one has the rest."""
        return self.adv_reg / (1.0 + self.adv_reg)

    def n_plain(self, n_passes: int) -> int:
        """Return how many of `n_passes` are plain."""
        return n_passes if self.is_idle else round(self.plain_share * n_passes)

    def n_plain_batches(self, n_batches: int, n_passes: int) -> int:
        """Return how many of the batches of `n_passes` passes of equal length are plain."""
        return self.n_plain(n_passes) * (n_batches // max(n_passes, 1))

    def usual_size(self, users: Rows) -> float:
        """Return what users' norms are compared with.

        Args:
            users: Embeddings, shape `(n, d)`.
        """
        if self.coefficient == "uniform":
            return 1.0
        squares = np.square(users, dtype=np.float64).sum(axis=1)
        return float(np.mean(squares if self.coefficient == "squared" else np.sqrt(squares)))

    @property
    def kind(self) -> int:
        """The coefficient as compiled code takes it."""
        return COEFFICIENTS.index(self.coefficient)


def perturb_tensors(
    user: "torch.Tensor",
    item: "torch.Tensor",
    other: "torch.Tensor",
    adversary: Adversary,
    usual_size: float,
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Return what `perturb_samples` does, with each user's own coefficient, as constants.

    Args:
        user: Shape `(B, d)`.
        item: Clicked, shape `(B, d)`.
        other: Not clicked, shape `(B, d)`.
        adversary: How strong.
        usual_size: From `Adversary.usual_size`.
    """
    import torch
    from torch.nn.functional import normalize

    with torch.no_grad():
        norms = user.norm(dim=1).double().cpu().numpy()
        own = coefficients(norms, adversary.coefficient, mean=usual_size)
        eps = torch.as_tensor(adversary.eps * own, dtype=user.dtype, device=user.device)[:, None]
        to_user = eps * normalize(other - item, dim=1, eps=1e-30)
        to_other = eps * normalize(user, dim=1, eps=1e-30)
        return to_user, -to_other, to_other


def adversarial_losses(
    user: "torch.Tensor",
    item: "torch.Tensor",
    other: "torch.Tensor",
    above: "torch.Tensor",
    adversary: Adversary,
    usual_size: float,
) -> "torch.Tensor":
    """Return the BPR losses of triples, averaged with those of their perturbed rows; shape `(B,)`.

    Args:
        user: Shape `(B, d)`.
        item: Clicked, shape `(B, d)`.
        other: Not clicked, shape `(B, d)`.
        above: What the click's bias is above the other's, shape `(B,)`.
        adversary: How strong, and the weight of its loss.
        usual_size: From `Adversary.usual_size`.
    """
    import torch
    from torch.nn.functional import softplus

    to_user, to_item, to_other = perturb_tensors(user, item, other, adversary, usual_size)
    pushed = ((user + to_user) * (item + to_item - other - to_other)).sum(dim=1)
    clean = softplus(-(user * (item - other)).sum(dim=1) - above)
    return torch.lerp(clean, softplus(-pushed - above), adversary.weight)
