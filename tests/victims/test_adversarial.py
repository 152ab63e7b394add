"""The formulas of adversarial training: fixtures, closed forms against autograd, limits."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import softplus

from recattack_gym.core import ArgumentError
from recattack_gym.victims.adversarial import (
    COEFFICIENTS,
    Adversary,
    Coefficient,
    Triples,
    bpr_loss,
    coefficients,
    margins,
    normalised_rows,
    perturb_rows,
    perturb_samples,
    perturb_tensors,
    perturbed_margins,
    table_gradients,
)

Array = NDArray[np.float64]

# Fixture F3 of the specification, derived from section 3 of He et al.: one triple, eps = 0.5.
USER, ITEM, OTHER = (np.array([row]) for row in ((1.0, 2.0), (0.5, -0.5), (-1.0, 0.5)))


def many(n: int = 50, d: int = 7, seed: int = 0) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    user, item, other = rng.standard_normal((3, n, d))
    return user, item, other


def by_autograd(user: Array, item: Array, other: Array) -> list[Array]:
    """Return the gradients of the summed BPR loss by the rows of each triple."""
    rows = [torch.tensor(x, requires_grad=True) for x in (user, item, other)]
    softplus(-(rows[0] * (rows[1] - rows[2])).sum(dim=1)).sum().backward()  # type: ignore[no-untyped-call]  # torch
    return [x.grad.numpy() for x in rows if x.grad is not None]


# -- perturbations per sample --------------------------------------------------------------------


def test_one_triple_as_in_the_specification() -> None:
    to_user, to_item, to_other = perturb_samples(USER, ITEM, OTHER, 0.5)
    np.testing.assert_allclose(to_user, [[-0.416025, 0.277350]], atol=1e-6)
    np.testing.assert_allclose(to_item, [[-0.223607, -0.447214]], atol=1e-6)
    np.testing.assert_allclose(to_other, [[0.223607, 0.447214]], atol=1e-6)
    assert margins(USER, ITEM, OTHER)[0] == -0.5
    assert bpr_loss(margins(USER, ITEM, OTHER))[0] == pytest.approx(0.974077, abs=1e-6)
    after = margins(USER + to_user, ITEM + to_item, OTHER + to_other)
    assert after[0] == pytest.approx(-3.699473, abs=1e-6)
    assert perturbed_margins(USER, ITEM, OTHER, 0.5)[0] == pytest.approx(-3.699473, abs=1e-6)
    assert bpr_loss(after)[0] == pytest.approx(3.723909, abs=1e-6)


def test_the_golden_triple_of_the_tutorial_is_perturbed_block_by_block() -> None:
    # p = q = (1, 0), r = (0, 1), eps = 0.5: normalised jointly, the margin would become 0.125.
    p, q, r = (np.array([row]) for row in ((1.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    to_user, to_item, to_other = perturb_samples(p, q, r, 0.5)
    np.testing.assert_allclose(to_user, [[-0.353553, 0.353553]], atol=1e-6)
    np.testing.assert_allclose(to_item, [[-0.5, 0.0]])
    np.testing.assert_allclose(to_other, [[0.5, 0.0]])
    loss = bpr_loss(perturbed_margins(p, q, r, 0.5))[0]
    assert loss == pytest.approx(0.885468, abs=1e-6)
    assert bpr_loss(margins(p, q, r))[0] + loss == pytest.approx(1.198730, abs=1e-6)


def test_perturbations_per_sample_are_normalised_gradients() -> None:
    triples = many()
    eps = np.linspace(0.0, 2.0, 50)
    for found, gradient in zip(perturb_samples(*triples, eps), by_autograd(*triples), strict=True):
        length = np.linalg.norm(gradient, axis=1, keepdims=True)
        np.testing.assert_allclose(found, eps[:, None] * gradient / length, atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), eps, atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.5, 3.0])
def test_the_closed_form_is_the_margin_of_perturbed_rows(eps: float) -> None:
    user, item, other = many()
    bias = np.linspace(-1.0, 1.0, 50)
    to_user, to_item, to_other = perturb_samples(user, item, other, eps)
    after = margins(user + to_user, item + to_item, other + to_other) + bias
    closed = perturbed_margins(user, item, other, eps, bias=bias)
    np.testing.assert_allclose(closed, after, atol=1e-12)


def test_a_small_perturbation_raises_every_loss_and_no_other_direction_raises_it_more() -> None:
    user, item, other = many()
    before, eps = bpr_loss(margins(user, item, other)), 1e-4
    worst = bpr_loss(perturbed_margins(user, item, other, eps))
    assert (worst > before).all()
    rng = np.random.default_rng(1)
    for _ in range(20):
        noise = [normalised_rows(rng.standard_normal(user.shape), eps) for _ in range(3)]
        after = bpr_loss(margins(*(x + y for x, y in zip((user, item, other), noise, strict=True))))
        assert (after < worst).all()


def test_rows_without_a_gradient_stay() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(normalised_rows(rows, 10.0), [[0.0, 0.0], [6.0, 8.0]])
    same = np.ones((1, 2))
    assert not perturb_samples(np.zeros((1, 2)), same, same, 0.5)[0].any()


# -- perturbations per row -----------------------------------------------------------------------


@pytest.fixture
def tables() -> tuple[Array, Array, Array, Triples]:
    """Return users, items, a bias, and triples in which users and items come several times."""
    rng = np.random.default_rng(3)
    users, items = rng.standard_normal((6, 4)), rng.standard_normal((9, 4))
    triples = Triples(*(rng.integers(0, n, 20) for n in (5, 8, 8)))
    return users, items, rng.standard_normal(9), triples


def test_gradients_of_tables_equal_autograd(tables: tuple[Array, Array, Array, Triples]) -> None:
    users, items, bias, triples = tables
    p, q = (torch.tensor(x, requires_grad=True) for x in (users, items))
    b = torch.tensor(bias)
    u, i, j = (torch.from_numpy(x) for x in triples)
    softplus(-((p[u] * (q[i] - q[j])).sum(dim=1) + b[i] - b[j])).sum().backward()  # type: ignore[no-untyped-call]  # torch
    assert p.grad is not None
    assert q.grad is not None
    to_users, to_items = table_gradients(users, items, triples, bias=bias)
    np.testing.assert_allclose(to_users, p.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(to_items, q.grad.numpy(), atol=1e-12)
    for found, gradient in zip(
        perturb_rows(users, items, triples, 0.7, bias=bias), (p.grad, q.grad), strict=True
    ):
        lengths = np.linalg.norm(found, axis=1)
        touched = np.linalg.norm(gradient.numpy(), axis=1) > 0.0
        assert not touched.all()
        np.testing.assert_allclose(lengths, np.where(touched, 0.7, 0.0), atol=1e-12)
        cosine = (found * gradient.numpy()).sum(axis=1)[touched]
        np.testing.assert_allclose(cosine, 0.7 * gradient.norm(dim=1).numpy()[touched])


def test_both_schemes_are_one_where_every_row_has_one_triple_and_two_where_not() -> None:
    user, item, other = many(n=3)
    items = np.concatenate([item, other])
    once = Triples(np.arange(3), np.arange(3), 3 + np.arange(3))
    to_users, to_items = perturb_rows(user, items, once, 0.5)
    to_user, to_item, to_other = perturb_samples(user, item, other, 0.5)
    np.testing.assert_allclose(to_users, to_user, atol=1e-12)
    np.testing.assert_allclose(to_items, np.concatenate([to_item, to_other]), atol=1e-12)
    twice = Triples(np.zeros(2, np.int64), np.arange(2), 3 + np.arange(2))
    together = perturb_rows(user, items, twice, 0.5)[0][0]
    alone = perturb_samples(user[[0, 0]], item[:2], other[:2], 0.5)[0]
    assert np.linalg.norm(together) == pytest.approx(0.5)
    assert np.abs(together - alone).max(axis=1).min() > 0.05


# -- PamaCF's coefficient ------------------------------------------------------------------------


def test_coefficients_as_in_the_specification() -> None:
    norms = np.array([0.5, 1.0, 1.5, 2.0])
    expected: dict[Coefficient, list[float]] = {
        "squared": [0.591897, 0.770811, 1.099668, 1.512907],
        "relative": [0.354344, 0.450166, 0.549834, 0.645656],
        "absolute": [0.320821, 0.437824, 0.562177, 0.679179],
        "uniform": [1.0, 1.0, 1.0, 1.0],
    }
    assert set(expected) == set(COEFFICIENTS)
    for kind, values in expected.items():
        np.testing.assert_allclose(coefficients(norms, kind), values, atol=1e-6)
    magnitudes = 0.9 * coefficients(norms)
    np.testing.assert_allclose(magnitudes, [0.532707, 0.693730, 0.989701, 1.361616], atol=1e-6)


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_equal_norms_bear_the_same_and_longer_ones_never_less(kind: Coefficient) -> None:
    equal = coefficients(np.full(5, 0.3), kind)
    np.testing.assert_allclose(equal, {"squared": 1.0, "uniform": 1.0}.get(kind, 0.5), atol=1e-6)
    norms = np.linspace(0.0, 60.0, 200)
    found = coefficients(norms, kind)
    assert (np.diff(found) >= 0.0).all()
    if kind == "squared":
        assert found[0] == pytest.approx(0.537883, abs=1e-6)  # 2 sigmoid(-1)
        assert found[-1] <= 2.0
    np.testing.assert_allclose(
        coefficients(norms[:7], kind, mean=2.0)[3:], coefficients(norms[3:7], kind, mean=2.0)
    )


def test_an_unknown_coefficient_is_refused() -> None:
    with pytest.raises(ArgumentError, match="kind must be one of 'uniform', 'squared'"):
        coefficients(np.ones(2), "cubed")  # type: ignore[arg-type]  # wrong on purpose


# -- the adversary -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_the_torch_twin_perturbs_alike_and_passes_no_gradient(kind: Coefficient) -> None:
    triples = many()
    adversary = Adversary(0.7, 1.0, 0.5, kind)
    usual = adversary.usual_size(triples[0])
    tensors = [torch.tensor(x, requires_grad=True) for x in triples]
    user, item, other = tensors
    found = perturb_tensors(user, item, other, adversary, usual)
    eps = 0.7 * coefficients(np.linalg.norm(triples[0], axis=1), kind)
    for perturbation, expected in zip(found, perturb_samples(*triples, eps), strict=True):
        assert not perturbation.requires_grad
        np.testing.assert_allclose(perturbation.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("eps", "adv_reg", "share", "plain"),
    [
        (0.5, 1.0, 0.5, 5),
        (0.5, 1.0, 0.0, 0),
        (0.5, 1.0, 1.0, 10),
        (0.0, 1.0, 0.5, 10),
        (0.5, 0.0, 0.2, 10),
    ],
)
def test_the_first_passes_are_plain_and_all_are_without_an_adversary(
    eps: float, adv_reg: float, share: float, plain: int
) -> None:
    adversary = Adversary.checked(eps, adv_reg, share)
    assert adversary.n_plain(10) == plain
    assert adversary.n_plain_batches(40, 10) == 4 * plain
    assert adversary.n_plain_batches(0, 0) == 0
    assert adversary.is_idle == (eps * adv_reg == 0.0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("eps", -0.1),
        ("eps", float("nan")),
        ("adv_reg", -1.0),
        ("adv_reg", "1"),
        ("plain_share", 1.5),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: str, value: object) -> None:
    settings: dict[str, object] = {"eps": 0.1, "adv_reg": 1.0, "plain_share": 0.5, setting: value}
    with pytest.raises(ArgumentError, match=setting):
        Adversary.checked(**settings)
    with pytest.raises(ArgumentError, match="coefficient must be one of"):
        Adversary.checked(0.1, 1.0, 0.5, "cubed")
