"""PoisonRec's PPO as pure functions: no critic, rewards normalised over the batch, one clip per node."""

import torch

from recattack_gym.core import ArgumentError


def normalise_rewards(rewards: torch.Tensor) -> torch.Tensor:
    """Return `(R - mean) / std`, or zeros where all rewards are equal.

    PoisonRec (Song et al., ICDE 2020), §IV-C: the rewards of a batch of poison sets take the place of
    advantages.

    Args:
        rewards: One per poison set, shape `(B,)`.

    Returns:
        Shape `(B,)`.

    Differs from the paper: it does not say which standard deviation; here that of the population, so
    that one poison set alone gives 0.
    """
    centred = rewards - rewards.mean()
    std = centred.square().mean().sqrt()
    if std <= 1e-6 * rewards.abs().max():
        return torch.zeros_like(rewards)
    return centred / std


def clipped_surrogate(
    log_p: torch.Tensor,
    old_log_p: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_range: float,
    per_path: bool = False,
) -> torch.Tensor:
    """Return the objective of PPO, to be maximised: the mean of `min(rho A, clip(rho) A)`.

    PoisonRec (Song et al., ICDE 2020), Eq. (9): every decision at a node of the tree has a ratio `rho` and a
    clip of its own. PPO: Schulman et al., "Proximal policy optimization algorithms", 2017, Eq. (7).

    Args:
        log_p: Log-probabilities of the decisions under the present policy, shape `(..., depth)`.
        old_log_p: Under the policy that took them, same shape.
        mask: Whether there is a decision, same shape.
        advantages: Shape `(...)`.
        clip_range: epsilon; the ratio is clipped to `[1 - epsilon, 1 + epsilon]`.
        per_path: Whether a whole click has one ratio, the product over its decisions, and one clip.

    Returns:
        A scalar.

    Raises:
        ArgumentError: If shapes differ.

    Differs from the paper: the mean is over decisions, so that depth does not reweight clicks (the paper
    sums). Eq. (7) and (9) as printed multiply the clipped term by the gradient of log pi, which is not
    PPO's gradient; this is the surrogate, to be differentiated.
    """
    if log_p.shape != old_log_p.shape or log_p.shape != mask.shape:
        raise ArgumentError(
            "log_p, old_log_p and mask must have equal shapes, "
            f"got {tuple(log_p.shape)}, {tuple(old_log_p.shape)} and {tuple(mask.shape)}"
        )
    if advantages.shape != log_p.shape[:-1]:
        raise ArgumentError(
            f"advantages must have shape {tuple(log_p.shape[:-1])}, got {tuple(advantages.shape)}"
        )
    difference = torch.where(mask, log_p - old_log_p, torch.zeros_like(log_p))
    if per_path:
        difference = difference.sum(dim=-1, keepdim=True)
        mask = mask.any(dim=-1, keepdim=True)
    ratio = difference.exp()
    weight = advantages[..., None]
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    surrogate = torch.minimum(ratio * weight, clipped * weight) * mask
    return surrogate.sum() / mask.sum()


def mean_log_p(log_p: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean log-probability of the decisions that there are, to be maximised for imitation.

    Args:
        log_p: Shape `(..., depth)`.
        mask: Whether there is a decision, same shape.

    Returns:
        A scalar.
    """
    return (log_p * mask).sum() / mask.sum()
