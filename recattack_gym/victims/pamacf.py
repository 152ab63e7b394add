"""PamaCF: adversarial training that pushes hardest at users with long embeddings."""

from dataclasses import dataclass

from recattack_gym.victims.adversarial import Adversary, Coefficient
from recattack_gym.victims.apr import APR, APRConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PamaCFConfig(APRConfig):
    """Settings of PamaCF."""

    reg: float = 0.01
    """L2 penalty on the rows of each example, bias included; that of BPR."""
    eps: float = 0.2
    """Euclidean length of the perturbation of an embedding, of a user of the usual norm; 0 is plain BPR.

    The code has 0.5 to 0.9, on other logs. Validation HR@10 on ml-100k and Steam, where BPR has 0.136 and
    0.411: 0.143 and 0.395 with 0.2, 0.133 and 0.374 with 0.3; with APR's penalty of 0.005, 0.122 and 0.398
    with 0.2 and 0.136 and 0.385 with 0.3.
    """
    coefficient: Coefficient = "squared"
    """How a user's share of `eps` follows from the user's norm: `"squared"` as in the released code,
    `"relative"` or `"absolute"` as in readings of the paper; `"uniform"` is APR."""

    def __post_init__(self) -> None:
        super(PamaCFConfig, self).__post_init__()  # slots: see APRConfig
        Adversary.checked(self.eps, self.adv_reg, self.plain_share, self.coefficient)


class PamaCF(APR):
    """Collaborative filtering trained against perturbations of personal magnitude.

    Zhang, Cao, Wu, Sun, Shen, Cheng, "Understanding and Improving Adversarial Collaborative Filtering for
    Robust Recommendation", NeurIPS 2024: APR in which the perturbations of a triple have the length `c_u
    eps`, and c grows with the norm of the user's embedding (see `adversarial.coefficients`); the theory is
    that a user with a longer embedding bears a larger perturbation. The coefficient of the triple's user
    holds for its items, too.

    With `eps = 0` or `adv_reg = 0` the victim is BPR of the same settings, and with `coefficient="uniform"`
    it is APR, bit for bit.

    Differs from the paper: as APR does; and norms are compared with their mean over all users at the
    beginning of an epoch (in fine-tuning: in the clean state), where the code takes the mean over a batch of
    2048 users, drawn uniformly; `coefficient` offers the code's form and two of the paper's.
    """

    name = "PamaCF"
    config_class = PamaCFConfig
    config: PamaCFConfig

    @property
    def _coefficient(self) -> Coefficient:
        return self.config.coefficient
