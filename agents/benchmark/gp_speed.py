"""Speed of surrogates: compiled beside autograd, with and without passing, beside `implicit`'s BPR."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.timing import interleaved
from agents.gradient.gradient_passing import GradientPassing
from agents.gradient.graph import InteractionGraph
from agents.gradient.surrogates import Surrogate, SurrogateConfig
from agents.gradient.torch_twin import TorchTwin
from recattack_gym.core import Interactions

BATCH_SIZES = (1 << 12, 1 << 14, 1 << 16, 1 << 18)
"""The published ones are 2^12 on Gowalla and 2^16 on Tenrec."""


def measure_speed(log: Interactions, seed: int, repetitions: int = 3) -> dict[str, object]:
    """Time steps and epochs of surrogates on a log, all sides in turn.

    Args:
        log: What to train on.
        seed: Of the draws.
        repetitions: Runs per median.

    Returns:
        `{"speed": {what: CPU seconds or a ratio}}`.
    """
    graph = InteractionGraph.of(log)
    found: dict[str, object] = {}
    for size in BATCH_SIZES:
        if size > 2 * graph.n_edges and size > BATCH_SIZES[0]:
            continue
        config = SurrogateConfig(batch_size=size)
        sides = {
            "plain": _step(graph, config, seed),
            "passing": _step(graph, replace(config, passing=GradientPassing()), seed),
        }
        times = interleaved(sides, repetitions)
        plain, passing = times["plain"].cpu_seconds, times["passing"].cpu_seconds
        found[f"MF-BCE step of {size} draws, ms"] = 1000 * plain
        found[f"MF-BCE step of {size} draws with GP, ms"] = 1000 * passing
        found[f"ratio with GP, {size} draws"] = passing / plain
    found |= _against_torch(graph, seed, repetitions)
    found |= _against_implicit(graph, seed, repetitions)
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


def _against_implicit(graph: InteractionGraph, seed: int, repetitions: int) -> dict[str, object]:
    """Time an epoch of MF-BPR and an iteration of `implicit`'s BPR, if that is installed, on one thread."""
    try:
        from implicit.bpr import BayesianPersonalizedRanking
    except ImportError:
        return {}
    from scipy.sparse import csr_matrix

    ours = Surrogate(
        graph,
        SurrogateConfig(loss="bpr", reg=1e-3, batch_size=1 << 14),
        seed=seed,
    )
    shape = (graph.n_users, graph.n_items)
    ones = np.ones(graph.n_edges, dtype=np.float32)
    matrix = csr_matrix((ones, graph.items.copy(), graph.indptr.copy()), shape=shape)
    few, more = 1, 6

    def theirs(iterations: int) -> Callable[[], object]:
        def run() -> None:
            model = BayesianPersonalizedRanking(
                factors=63,  # it adds a bias: rows of 64, as ours
                iterations=iterations,
                random_state=seed,
                num_threads=1,
            )
            model.fit(matrix, show_progress=False)

        return run

    times = interleaved(
        {"ours": ours.train_epoch, "few": theirs(few), "more": theirs(more)}, repetitions
    )
    own = times["ours"].cpu_seconds
    other = (times["more"].cpu_seconds - times["few"].cpu_seconds) / (more - few)
    return {
        "MF-BPR epoch, s": own,
        "implicit BPR iteration, s": other,
        "implicit over ours": other / own,
    }
