"""Does adversarial training make a recommender's embeddings harder to disturb?

The notebook of the RecSys 2020 tutorial on adversarial machine learning: train BPR, push its embeddings along
the gradient and at random, train APR, and push again. NDCG is of the validation item among all unseen items.

    python examples/attack_embeddings.py --dataset ml-1m
"""

import argparse
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.benchmark.tables import markdown_table
from agents.gradient.embeddings import BUDGETS, Perturbation, Tables, bim, fgsm, pgd, random_noise
from recattack_gym.datasets import Split, load
from recattack_gym.metrics import ndcg_at_k
from recattack_gym.victims import VICTIMS
from recattack_gym.victims.adversarial import Triples
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import draw_negatives
from recattack_gym.victims.ranking import seen_mask, top_k


class Result(NamedTuple):
    """What an attack does to a victim."""

    ndcg: float
    drop: float
    """Relative to NDCG without attack."""
    loss: float
    """Mean BPR loss of the triples that the attack follows."""


def one_negative_per_click(split: Split, seed: int) -> Triples:
    """Return every click with an item that its user has not clicked."""
    log = split.train
    negatives = np.empty((len(log), 1), dtype=np.int32)
    order = np.arange(len(log))
    draw_negatives(
        order, log.user_ids, log.item_ids, *log.seen, seed, 0, log.n_items, 0.0, negatives
    )
    return Triples(log.user_ids, log.item_ids, negatives[:, 0].astype(np.int64))


def ndcg(tables: Tables, split: Split, k: int) -> float:
    """Return NDCG@k of the validation items."""
    log = split.train
    factors = Factors(*(array.astype(np.float32) for array in tables))
    held_out = np.where(split.evaluable("validation"), split.validation_items, -1)
    shown = np.empty((log.n_users, k), dtype=np.int64)
    for start in range(0, log.n_users, 512):
        users = np.arange(start, min(start + 512, log.n_users))
        items = np.broadcast_to(np.arange(log.n_items), (len(users), log.n_items))
        shown[users] = top_k(factors.score(users, items), items, ~seen_mask(log, users), k)
    return ndcg_at_k(shown, held_out)


def main(
    dataset: str = "synthetic",
    victims: Sequence[str] = ("BPR", "APR", "PamaCF"),
    eps: Sequence[float] = (0.5, 1.0),
    n_steps: int = 10,
    k: int = 100,
    seed: int = 0,
) -> dict[str, dict[str, Result]]:
    """Print and return what each attack does: victim -> attack -> result."""
    split = load(dataset).split
    triples = one_negative_per_click(split, seed)
    results: dict[str, dict[str, Result]] = {}
    norms = {}
    for name in victims:
        state = VICTIMS[name]().fit(split.train, np.random.default_rng(seed)).state
        tables = Tables(*(state[part].astype(np.float32) for part in ("users", "items", "bias")))
        norms[name] = np.linalg.norm(tables.users, axis=1).mean()
        zero = Perturbation(np.zeros_like(tables.users), np.zeros_like(tables.items))
        attacks = {"none": zero}
        for length in eps:
            rng = np.random.default_rng(seed)
            attacks[f"random, {length:g}"] = random_noise(tables, length, rng)
            attacks[f"FGSM, {length:g}"] = fgsm(tables, triples, length)
            attacks[f"BIM l2, {length:g}"] = bim(tables, triples, length, n_steps=n_steps)
            for budget in BUDGETS:
                attacks[f"PGD {budget}, {length:g}"] = pgd(
                    tables, triples, length, rng, n_steps=n_steps, budget=budget
                )
        clean = ndcg(tables, split, k)
        results[name] = {}
        for attack, perturbation in attacks.items():
            pushed = tables.plus(perturbation)
            quality = ndcg(pushed, split, k)
            results[name][attack] = Result(quality, 1.0 - quality / clean, pushed.loss(triples))
    rows = [
        (
            attack,
            *(_quality(results[name][attack], is_clean=attack == "none") for name in victims),
            *(f"{results[name][attack].loss:.3f}" for name in victims),
        )
        for attack in results[victims[0]]
    ]
    header = (
        "attack, eps",
        *(f"NDCG@{k} {name}" for name in victims),
        *(f"loss {name}" for name in victims),
    )
    print(markdown_table(header, rows))
    print("mean norm of users:", ", ".join(f"{name} {norm:.2f}" for name, norm in norms.items()))
    return results


def _quality(result: Result, *, is_clean: bool) -> str:
    return f"{result.ndcg:.4f} ({'clean' if is_clean else f'{-result.drop:+.1%}'})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--victims", nargs="+", default=["BPR", "APR", "PamaCF"])
    parser.add_argument("--eps", nargs="+", type=float, default=[0.5, 1.0])
    parser.add_argument("--n-steps", type=int, default=10, help="of BIM and PGD")
    parser.add_argument("--k", type=int, default=100, help="length of the lists")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    settings = vars(parser.parse_args())
    as_json = settings.pop("json")
    found = main(**settings)
    if as_json:
        results = {n: {a: r._asdict() for a, r in of.items()} for n, of in found.items()}
        print(json.dumps({**settings, "results": results}))
