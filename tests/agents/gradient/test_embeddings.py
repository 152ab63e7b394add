"""Attacks on embeddings: budgets, limits and the order of their harm, on tables with known answers."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.gradient.embeddings import (
    BUDGETS,
    Budget,
    Perturbation,
    Tables,
    bim,
    fgsm,
    pgd,
    random_noise,
    within,
)
from recattack_gym.core import ArgumentError
from recattack_gym.victims.adversarial import Triples

# One triple: p = q = (1, 0), r = (0, 1). The exact maximum of its loss at eps = 0.5 is 1.0505.
LONE = Tables(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros(2))
TRIPLE = Triples(np.array([0]), np.array([0]), np.array([1]))


def random_tables(d: int = 64, seed: int = 0) -> tuple[Tables, Triples]:
    """Return users who prefer items of their own colour, and their clicks against the other colour."""
    rng = np.random.default_rng(seed)
    colours = rng.standard_normal((2, d)) / np.sqrt(d)
    users, items = (
        1.5 * colours[np.arange(n) % 2] + 0.5 * rng.standard_normal((n, d)) / np.sqrt(d)
        for n in (41, 31)  # the last of each are in no triple
    )
    of_user = np.repeat(np.arange(40), 20)
    half = rng.integers(0, 15, (2, 800))
    triples = Triples(of_user, 2 * half[0] + of_user % 2, 2 * half[1] + 1 - of_user % 2)
    return Tables(users, items, rng.standard_normal(31) / 10), triples


def lengths(found: Perturbation) -> NDArray[np.float64]:
    return np.concatenate([np.linalg.norm(rows, axis=1) for rows in found])


def test_a_row_moves_by_eps_along_its_gradient_or_not_at_all() -> None:
    tables, triples = random_tables()
    found = fgsm(tables, triples, 0.5)
    assert found.users.shape == tables.users.shape
    assert found.items.shape == tables.items.shape
    np.testing.assert_allclose(lengths(Perturbation(found.users[:-1], found.items[:-1])), 0.5)
    assert not found.users[-1].any()
    assert not found.items[-1].any()
    noise = random_noise(tables, 0.5, np.random.default_rng(0))
    np.testing.assert_allclose(lengths(noise), 0.5)


def test_the_golden_triple() -> None:
    assert LONE.loss(TRIPLE) == pytest.approx(0.313262, abs=1e-6)
    assert LONE.plus(fgsm(LONE, TRIPLE, 0.5)).loss(TRIPLE) == pytest.approx(0.885468, abs=1e-6)
    ten = {b: LONE.plus(bim(LONE, TRIPLE, 0.5, budget=b)).loss(TRIPLE) for b in BUDGETS}
    assert ten["l2"] == pytest.approx(1.0465, abs=1e-4)
    assert ten["linf"] == pytest.approx(1.3076, abs=1e-4)
    forty = pgd(LONE, TRIPLE, 0.5, np.random.default_rng(0), n_steps=40)
    assert LONE.plus(forty).loss(TRIPLE) == pytest.approx(1.0505, abs=1e-4)


def test_one_step_of_eps_is_fgsm() -> None:
    tables, triples = random_tables()
    for first, second in zip(
        bim(tables, triples, 0.5, n_steps=1, step=0.5), fgsm(tables, triples, 0.5), strict=True
    ):
        np.testing.assert_allclose(first, second, atol=1e-12)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("eps", [0.01, 0.5])
def test_no_step_leaves_the_budget(budget: Budget, eps: float) -> None:
    tables, triples = random_tables()
    for found in (
        bim(tables, triples, eps, n_steps=30, budget=budget),
        pgd(tables, triples, eps, np.random.default_rng(1), n_steps=3, budget=budget),
    ):
        if budget == "l2":
            assert lengths(found).max() <= eps * (1.0 + 1e-9)
        else:
            assert max(np.abs(rows).max() for rows in found) <= eps
            assert lengths(found).max() > 0.4 * eps  # longer than FGSM's after some steps
    rows = np.array([[3.0, 4.0], [0.1, 0.0], [0.0, 0.0]])
    nearest = within(rows, 1.0, budget)
    expected = [[0.6, 0.8], [0.1, 0.0], [0.0, 0.0]] if budget == "l2" else np.minimum(rows, 1.0)
    np.testing.assert_allclose(nearest, expected)


def test_many_steps_of_the_papers_budget_make_longer_rows_than_fgsm() -> None:
    tables, triples = random_tables()
    paper = lengths(bim(tables, triples, 0.5, n_steps=25, budget="linf"))
    assert np.median(paper) > 2.0 * 0.5
    fair = lengths(bim(tables, triples, 0.5, n_steps=25))
    assert np.median(fair) == pytest.approx(0.5)


def test_the_loss_rises_step_by_step_and_noise_of_the_same_length_does_little() -> None:
    tables, triples = random_tables()
    clean = tables.loss(triples)
    climbed = [
        tables.plus(bim(tables, triples, 0.4, n_steps=n, step=0.02)).loss(triples)
        for n in (1, 3, 6, 12)
    ]
    assert (np.diff([clean, *climbed]) > 0.0).all()
    harm = [tables.plus(fgsm(tables, triples, eps)).loss(triples) for eps in (0.1, 0.2, 0.4)]
    assert (np.diff([clean, *harm]) > 0.0).all()
    rng = np.random.default_rng(2)
    noise = [tables.plus(random_noise(tables, 0.4, rng)).loss(triples) for _ in range(20)]
    # The mean |cosine| of a random direction is sqrt(2 / (pi d)) = 0.1, and its sign is random.
    assert max(noise) - clean < 0.2 * (harm[-1] - clean)
    directions = rng.standard_normal((20_000, 64))
    cosines = directions[:, 0] / np.linalg.norm(directions, axis=1)
    assert np.abs(cosines).mean() == pytest.approx(0.0997, abs=0.002)


def test_the_direction_of_noise_is_truncated_normal() -> None:
    # A single row of many numbers has nearly the length of its expectation: 0.7737 is the variance of a
    # standard normal number that is within two, so the largest is about 2 / sqrt(0.7737 n) of the length.
    lone = Tables(np.ones((1, 10_000)), np.ones((1, 10_000)), np.zeros(1))
    noise = random_noise(lone, 1.0, np.random.default_rng(0))
    for row in noise:
        assert np.abs(row).max() * np.sqrt(0.7737 * 10_000) == pytest.approx(2.0, rel=0.02)


def test_the_bias_counts_but_stays() -> None:
    tables, triples = random_tables()
    pushed = tables.plus(fgsm(tables, triples, 0.5))
    np.testing.assert_array_equal(pushed.bias, tables.bias)
    high = tables._replace(bias=np.where(np.arange(31) % 2 == 0, 3.0, 0.0))
    assert np.abs(fgsm(high, triples, 0.5).items - fgsm(tables, triples, 0.5).items).max() > 1e-3


def test_the_same_seed_gives_the_same_perturbation_and_single_precision_stays() -> None:
    tables, triples = random_tables()
    single = Tables(*(x.astype(np.float32) for x in tables))
    draws: list[Callable[[int], Perturbation]] = [
        lambda seed: random_noise(single, 0.5, np.random.default_rng(seed)),
        lambda seed: pgd(single, triples, 0.5, np.random.default_rng(seed), n_steps=2),
    ]
    for draw in draws:
        np.testing.assert_array_equal(draw(3).items, draw(3).items)
        assert np.abs(draw(3).items - draw(4).items).max() > 0.0
        assert draw(3).users.dtype == np.float32


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="eps"):
        fgsm(LONE, TRIPLE, -0.1)
    with pytest.raises(ArgumentError, match="eps"):
        bim(LONE, TRIPLE, 0.0)
    with pytest.raises(ArgumentError, match="n_steps"):
        bim(LONE, TRIPLE, 0.1, n_steps=0)
    with pytest.raises(ArgumentError, match="step"):
        bim(LONE, TRIPLE, 0.1, step=0.0)
    with pytest.raises(ArgumentError, match="budget must be one of 'l2', 'linf'"):
        bim(LONE, TRIPLE, 0.1, budget="l1")  # type: ignore[arg-type]  # wrong on purpose
