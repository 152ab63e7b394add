"""Attacks on learnt embeddings: how far does a ranking bear that its parameters are pushed?

A probe of stability, not an attack that somebody without access to the model could carry out. It moves the
tables of a factorisation with score `p . q + b` so that the BPR loss of given triples, `J`, rises: FGSM as
in He, He, Du, Chua, "Adversarial Personalized Ranking for Recommendation", SIGIR 2018, and the iterated BIM
and PGD of Anelli, Deldjoo, Di Noia, Merra, "Multi-Step Adversarial Perturbations on Recommender Systems
Embeddings", FLAIRS 2021. Pure functions; the triples, one negative per click, are an argument, because
another draw of negatives is another direction.

Two budgets, since the papers' are not comparable. `"l2"`: no row of the perturbation is longer than `eps`,
as in FGSM. `"linf"`: no number in it is larger than `eps`, as in the code of BIM and PGD; rows may be `eps *
sqrt(d)` long, 8 times as much at d = 64, so "more harmful at the same eps" is partly a matter of length.
Steps are rows of length `step` under both.

Differs from the papers: an item bias, if there is one, counts in the loss and is not perturbed; under
`"l2"`, which the code lacks, rows that have become too long are scaled back.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_choice, as_count, as_real
from recattack_gym.victims.adversarial import (
    Rows,
    Triples,
    bpr_loss,
    normalised_rows,
    perturb_rows,
    table_gradients,
    triple_margins,
)

Budget = Literal["l2", "linf"]
BUDGETS: tuple[Budget, ...] = ("l2", "linf")

_START = 0.05
"""PGD's first perturbation is uniform below this, whatever `eps` is, as in the authors' code."""


class Tables(NamedTuple):
    """The parameters of a factorisation."""

    users: Rows
    """Shape `(n_users, d)`."""
    items: Rows
    """Shape `(n_items, d)`."""
    bias: Rows
    """Shape `(n_items,)`; zero in models without one."""

    def plus(self, perturbation: "Perturbation") -> "Tables":
        """Return the perturbed parameters."""
        return Tables(self.users + perturbation.users, self.items + perturbation.items, self.bias)

    def loss(self, triples: Triples) -> float:
        """Return the mean BPR loss of triples."""
        margin = triple_margins(self.users, self.items, triples, bias=self.bias)
        return float(bpr_loss(margin).mean())


class Perturbation(NamedTuple):
    """What is added to the embeddings."""

    users: Rows
    """Shape `(n_users, d)`."""
    items: Rows
    """Shape `(n_items, d)`."""


def fgsm(tables: Tables, triples: Triples, eps: float) -> Perturbation:
    """Move each row by `eps` along the gradient (the name says sign, but no paper on rankings takes it).

    Args:
        tables: What is attacked.
        triples: Whose loss is raised; rows that are in none stay.
        eps: Euclidean length, at least 0.
    """
    as_real("eps", eps, at_least=0.0)
    return Perturbation(*perturb_rows(tables.users, tables.items, triples, eps, bias=tables.bias))


def random_noise(tables: Tables, eps: float, rng: np.random.Generator) -> Perturbation:
    """Move each row by `eps` in a random direction: what a perturbation of that length does by itself.

    As in the papers' code the direction is that of truncated normal noise.

    Args:
        tables: What is attacked.
        eps: Euclidean length, at least 0.
        rng: Source of the noise.
    """
    as_real("eps", eps, at_least=0.0)
    return Perturbation(
        *(
            normalised_rows(_truncated_normal(table.shape, rng).astype(table.dtype), eps)
            for table in (tables.users, tables.items)
        )
    )


def bim(
    tables: Tables,
    triples: Triples,
    eps: float,
    *,
    n_steps: int = 10,
    step: float | None = None,
    budget: Budget = "l2",
) -> Perturbation:
    """Take several steps along the gradient of the perturbed loss, held within the budget.

    Args:
        tables: What is attacked.
        triples: Whose loss is raised.
        eps: The budget, above 0.
        n_steps: Steps.
        step: Length of each row of a step; `None` for `eps / 4`, as in the paper.
        budget: `"l2"` bounds the length of rows, `"linf"` each number.
    """
    start = Perturbation(np.zeros_like(tables.users), np.zeros_like(tables.items))
    return _climb(tables, triples, start, eps, n_steps, step, budget)


def pgd(
    tables: Tables,
    triples: Triples,
    eps: float,
    rng: np.random.Generator,
    *,
    n_steps: int = 10,
    step: float | None = None,
    budget: Budget = "l2",
) -> Perturbation:
    """Do what `bim` does from a random start, uniform in [-0.05, 0.05) as in the authors' code.

    Args:
        tables: See `bim`, like all but the next one.
        triples: Whose loss is raised.
        eps: The budget, above 0.
        rng: Source of the start, which is held within the budget.
        n_steps: Steps.
        step: Length of each row of a step.
        budget: `"l2"` or `"linf"`.
    """
    users, items = (
        rng.uniform(-_START, _START, table.shape).astype(table.dtype)
        for table in (tables.users, tables.items)
    )
    return _climb(tables, triples, Perturbation(users, items), eps, n_steps, step, budget)


def within(rows: Rows, eps: float, budget: Budget) -> Rows:
    """Return the rows nearest to those given that are within the budget; shape `(n, d)`."""
    as_choice("budget", budget, BUDGETS)
    if budget == "linf":
        return np.clip(rows, -eps, eps)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Rows = rows * np.minimum(1.0, eps / np.maximum(length, 1e-30)).astype(rows.dtype)
    return scaled


def _climb(
    tables: Tables,
    triples: Triples,
    start: Perturbation,
    eps: float,
    n_steps: int,
    step: float | None,
    budget: Budget,
) -> Perturbation:
    as_real("eps", eps, above=0.0)
    as_count("n_steps", n_steps)
    length = eps / 4.0 if step is None else as_real("step", step, above=0.0)
    found = Perturbation(*(within(rows, eps, budget) for rows in start))
    for _ in range(n_steps):
        now = tables.plus(found)
        gradients = table_gradients(now.users, now.items, triples, bias=now.bias)
        found = Perturbation(
            *(
                within(rows + normalised_rows(gradient, length), eps, budget)
                for rows, gradient in zip(found, gradients, strict=True)
            )
        )
    return found


def _truncated_normal(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw normal numbers, again where they are beyond two standard deviations."""
    drawn = rng.standard_normal(shape)
    while (far := np.abs(drawn) > 2.0).any():
        drawn[far] = rng.standard_normal(int(far.sum()))
    return drawn
