"""Speed of surrogates: compiled beside autograd, with and without passing, beside `implicit`'s BPR."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.gp_platform import Lab, quality
from agents.benchmark.timing import interleaved
from agents.gradient.gradient_passing import GradientPassing
from agents.gradient.graph import InteractionGraph
from agents.gradient.surrogates import Model, Surrogate, SurrogateConfig
from agents.gradient.torch_twin import TorchTwin

BATCH_SIZES = (1 << 12, 1 << 14, 1 << 16, 1 << 18)
"""The published ones are 2^12 on Gowalla and 2^16 on Tenrec."""
SURROGATES: dict[str, Model] = {"MF": "mf", "LightGCN": "lightgcn"}
"""Whose steps are timed."""
QUALITY_EPOCHS = 30
"""Epochs after which MF-BPR and `implicit`'s BPR are compared."""
RATES = (0.001, 0.003, 0.01)
"""Learning rates of MF-BPR (Adam), of which the comparison takes the best on validation."""
IMPLICIT_RATES = (0.003, 0.01, 0.03)
"""Likewise of `implicit`'s BPR (plain gradient descent; its default is 0.01)."""
K = 50
"""Length of the lists whose quality is compared."""


def measure_speed(lab_: Lab, seed: int, repetitions: int = 3) -> dict[str, object]:
    """Time steps and epochs of surrogates on a log, all sides in turn.

    Args:
        lab_: What to train on, and what says how good a model is.
        seed: Of the draws.
        repetitions: Runs per median.

    Returns:
        `{"speed": {what: CPU seconds or a ratio}}`.
    """
    graph = InteractionGraph.of(lab_.train)
    found: dict[str, object] = {}
    for size in BATCH_SIZES:
        if size > 2 * graph.n_edges and size > BATCH_SIZES[0]:
            continue
        for name, model in SURROGATES.items():
            config = SurrogateConfig(model=model, batch_size=size)
            sides = {
                "plain": _step(graph, config, seed),
                "passing": _step(graph, replace(config, passing=GradientPassing()), seed),
            }
            times = interleaved(sides, repetitions)
            plain, passing = times["plain"].cpu_seconds, times["passing"].cpu_seconds
            what = f"{name}-BCE step of {size} draws"
            found[f"{what}, ms"] = 1000 * plain
            found[f"{what} with GP, ms"] = 1000 * passing
            found[f"{what}, ratio with GP"] = passing / plain
    found |= _against_torch(graph, seed, repetitions)
    found |= _against_implicit(graph, InteractionGraph.of(lab_.validation), seed, repetitions)
    return {"speed": found}


def _step(graph: InteractionGraph, config: SurrogateConfig, seed: int) -> Callable[[], object]:
    """Return what takes one step of a surrogate on its own draws."""
    model = Surrogate(graph, config, seed=seed)

    def run() -> None:
        model.train_step(0, config.batch_size)

    return run


def _against_torch(graph: InteractionGraph, seed: int, repetitions: int) -> dict[str, object]:
    """Time a step, and one with passing, beside autograd on the same draws."""
    found: dict[str, object] = {}
    for passing, suffix in ((None, ""), (GradientPassing(), " with GP")):
        config = SurrogateConfig(passing=passing)
        model = Surrogate(graph, config, seed=seed)
        twin = TorchTwin(model)
        users, positives, negatives = model.draw(0, config.batch_size)
        batch = tuple(ids.astype(np.int64) for ids in (users, positives, negatives))

        def autograd(twin: TorchTwin = twin, batch: tuple[NDArray[np.int64], ...] = batch) -> float:
            return twin.train_step(batch)

        sides = {"compiled": _step(graph, config, seed), "torch": autograd}
        times = interleaved(sides, repetitions)
        theirs = times["torch"].cpu_seconds
        found[f"MF-BCE step of {config.batch_size} draws{suffix} in torch, ms"] = 1000 * theirs
        found[f"torch over compiled{suffix}"] = theirs / times["compiled"].cpu_seconds
    return found


def _against_implicit(
    graph: InteractionGraph, wanted: InteractionGraph, seed: int, repetitions: int
) -> dict[str, object]:
    """Compare MF-BPR with `implicit`'s BPR, if that is installed: time on one thread, and quality.

    Both draw as many examples per epoch as there are pairs, and have rows of 64 numbers. Quality is that of
    the learning rate with the best NDCG on validation, after equally many epochs.
    """
    try:
        from implicit.bpr import BayesianPersonalizedRanking
    except ImportError:
        return {}
    from scipy.sparse import csr_matrix

    config = SurrogateConfig(loss="bpr", reg=1e-3, batch_size=1 << 14)
    shape = (graph.n_users, graph.n_items)
    ones = np.ones(graph.n_edges, dtype=np.float32)
    matrix = csr_matrix((ones, graph.items.copy(), graph.indptr.copy()), shape=shape)

    def theirs(iterations: int, rate: float) -> Surrogate:
        model = BayesianPersonalizedRanking(
            factors=config.embedding_size - 1,  # it adds a bias
            learning_rate=rate,
            iterations=iterations,
            random_state=seed,
            num_threads=1,
        )
        model.fit(matrix, show_progress=False)
        rows = np.concatenate([model.user_factors, model.item_factors])
        return Surrogate(graph, config, initial=rows)

    def ours(epochs: int, rate: float) -> Surrogate:
        model = Surrogate(graph, replace(config, learning_rate=rate), seed=seed)
        model.train(epochs)
        return model

    few, more = 1, 6
    sides = {
        "ours": Surrogate(graph, config, seed=seed).train_epoch,
        "few": lambda: theirs(few, IMPLICIT_RATES[1]),
        "more": lambda: theirs(more, IMPLICIT_RATES[1]),
    }
    times = interleaved(sides, repetitions)
    own = times["ours"].cpu_seconds
    other = (times["more"].cpu_seconds - times["few"].cpu_seconds) / (more - few)
    found: dict[str, object] = {
        "MF-BPR epoch, s": own,
        "implicit BPR iteration, s": other,
        "implicit over ours": other / own,
        "MF-BPR, ns per interaction": 1e9 * own / graph.n_edges,
        "implicit BPR, ns per interaction": 1e9 * other / graph.n_edges,
    }
    k = min(K, graph.n_items)
    for name, fitted, rates in (("MF-BPR", ours, RATES), ("implicit BPR", theirs, IMPLICIT_RATES)):
        by_rate = {rate: quality(fitted(QUALITY_EPOCHS, rate), wanted, k) for rate in rates}
        rate = max(by_rate, key=lambda each: by_rate[each][1])
        found[f"{name}, best learning rate of {len(rates)}"] = rate
        found[f"{name}, HR@{k} after {QUALITY_EPOCHS} epochs"] = by_rate[rate][0]
        found[f"{name}, NDCG@{k} after {QUALITY_EPOCHS} epochs"] = by_rate[rate][1]
    return found
