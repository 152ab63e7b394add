"""Adversarial training of recommenders that score pairs one by one: the formulas, without any training.

What `adversarial` has for triples. A pair of user p and item q has the score `x = p . q + b`, what it should
be is y, and the loss l depends on x and y alone. The gradients of the loss by the rows are `l'(x) q` and
`l'(x) p`. To first order a move `(u, v)` of the rows raises the loss by `l'(x) (q . u + p . v)`, and of all
moves with `|u|, |v| <= eps` the one that raises it most is, with s the sign of `l'(x)`,

    user  s eps q / |q|        item  s eps p / |p|

The score becomes `x + s eps (|p| + |q|) + eps^2 cos(p, q)`. Biases are not perturbed.

- Squared error: `l' = x - y`, so s is the opposite of the error's sign.
- Log loss of a click (He et al., WWW 2017): `l' = sigmoid(x) - y`, so s is -1 for a click and +1 for an item
  that was not clicked, whatever the score is.

Where one row moves and the other stays, this is the worst move of that length, not just to first order: x is
linear in either row, and both losses grow with `s x` from there on. Where both move, no move gets further
than `x + s (eps (|p| + |q|) + eps^2)`, so what is missed is `eps^2 (1 - s cos(p, q))` in x at most.
"""

from typing import TYPE_CHECKING

from recattack_gym.victims.adversarial import Adversary, coefficients

if TYPE_CHECKING:
    import torch


def perturb_points(
    user: "torch.Tensor",
    item: "torch.Tensor",
    sign: "torch.Tensor",
    eps: "float | torch.Tensor",
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return the perturbations of each pair's user and item that raise its loss most, as constants.

    Args:
        user: Shape `(..., d)`; where `item` has a different length, 1.
        item: Shape `(..., d)`.
        sign: Of the loss's derivative by the score, `(...)`.
        eps: Length of each perturbation, at least 0: one for all, or of a shape like that of `sign`.

    Returns:
        Two tensors of shape `(..., d)`; rows of zeros move nobody.
    """
    import torch
    from torch.nn.functional import normalize

    with torch.no_grad():
        step = (eps * sign)[..., None]
        return step * normalize(item, dim=-1, eps=1e-30), step * normalize(user, dim=-1, eps=1e-30)


def own_lengths(
    user: "torch.Tensor", adversary: Adversary, usual_size: float
) -> "float | torch.Tensor":
    """Return how far each pair's rows are moved: `eps` times the coefficient of its user.

    Args:
        user: Shape `(..., d)`.
        adversary: How strong.
        usual_size: From `Adversary.usual_size`.

    Returns:
        A number if all users have the same coefficient, otherwise a tensor of shape `(...)`.
    """
    import torch

    if adversary.coefficient == "uniform":
        return adversary.eps
    with torch.no_grad():
        norms = user.norm(dim=-1).double().cpu().numpy()
        own = coefficients(norms.ravel(), adversary.coefficient, mean=usual_size)
        lengths = adversary.eps * own.reshape(norms.shape)
        return torch.as_tensor(lengths, dtype=user.dtype, device=user.device)
