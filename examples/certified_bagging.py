"""How many fake accounts can a platform bear for certain, and what does that cost?

Accounts are dealt out to several models that vote (`defense="bagging"`). Printed for each number of models:
how good the lists are, the share of them that e fake accounts cannot change whatever they click, the most
that they could reach, and what a rule of thumb with as many accounts reaches, with and without the votes.

    python examples/certified_bagging.py --dataset ml-100k
"""

import argparse
import json
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from agents.benchmark.tables import markdown_table
from agents.heuristic import HEURISTICS
from recattack_gym.core import AttackBudget, Knowledge
from recattack_gym.defenses import Bagging
from recattack_gym.simulator import (
    BaggedSimulator,
    PlatformSimulator,
    PlatformView,
    make_simulator,
)


class Result(TypedDict):
    """What a platform is worth. Lists over the numbers of fake accounts; shares are of the largest RecNum."""

    clean_hr_at_k: float
    clean_share: float
    """RecNum without any attack."""
    overlap: list[float]
    """Certified share of the lists, 0 without votes."""
    bound: list[float]
    """The largest RecNum that is not excluded, 1 without votes."""
    reached: list[float]
    """RecNum of the rule of thumb."""


def measure(
    simulator: PlatformSimulator, attacker: str, n_fakes: Sequence[int], seed: int
) -> Result:
    """Measure a platform under attacks of several sizes, one plan each."""
    reached = []
    for n in n_fakes:
        view = PlatformView(simulator, AttackBudget(n_fake_users=n), Knowledge.GRAY_BOX)
        plan = HEURISTICS[attacker]().plan(view, np.random.default_rng(seed))
        reached.append(int(simulator.rec_num(plan)[0]) / simulator.max_rec_num)
    certificate = simulator.certificate() if isinstance(simulator, BaggedSimulator) else None
    nothing = np.array([[0]])  # one account, one click: only what is clean is read
    return Result(
        clean_hr_at_k=simulator.side_effects(nothing).clean_hr_at_k,
        clean_share=simulator.clean_rec_num / simulator.max_rec_num,
        overlap=[0.0 if certificate is None else certificate.overlap(n) for n in n_fakes],
        bound=[
            1.0 if certificate is None else certificate.rec_num_bound(n) / simulator.max_rec_num
            for n in n_fakes
        ],
        reached=reached,
    )


def main(
    dataset: str = "ml-100k",
    victims: Sequence[str] = ("ItemPop", "ItemKNN", "CoVisitation"),
    n_models: Sequence[int] = (10, 50, 100),
    n_fakes: Sequence[int] = (1, 5, 20),
    attacker: str = "popular",
    seed: int = 0,
) -> dict[str, dict[str, Result]]:
    """Print and return what a platform is worth: victim -> number of models, or "none" -> result."""
    results: dict[str, dict[str, Result]] = {}
    for victim in victims:
        results[victim] = {}
        for models in (None, *n_models):
            defense = None if models is None else Bagging(models)
            simulator = make_simulator(
                {"dataset": dataset, "victim": victim, "seed": seed, "defense": defense}
            )
            label = "none" if models is None else str(models)
            results[victim][label] = measure(simulator, attacker, n_fakes, seed)
    fakes = ", ".join(map(str, n_fakes))
    header = (
        "victim",
        "models",
        "HR@10",
        f"certified share of lists, e = {fakes}",
        "RecNum at most, % of the largest",
        f"{attacker} reaches, %",
    )
    rows = [
        (
            victim,
            label,
            f"{found['clean_hr_at_k']:.3f}",
            ", ".join(f"{value:.2f}" for value in found["overlap"]),
            ", ".join(f"{100 * value:.1f}" for value in found["bound"]),
            ", ".join(f"{100 * value:.1f}" for value in found["reached"]),
        )
        for victim, by_models in results.items()
        for label, found in by_models.items()
    ]
    print(markdown_table(header, rows))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--victims", nargs="+", default=["ItemPop", "ItemKNN", "CoVisitation"])
    parser.add_argument("--n-models", nargs="+", type=int, default=[10, 50, 100])
    parser.add_argument("--n-fakes", nargs="+", type=int, default=[1, 5, 20])
    parser.add_argument("--attacker", default="popular", help=", ".join(HEURISTICS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    given = vars(parser.parse_args())
    as_json = given.pop("json")
    measured = main(**given)
    if as_json:
        print(json.dumps({**given, "results": measured}))
