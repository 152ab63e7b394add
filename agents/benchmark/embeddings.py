"""`recattack bench embeddings`: what attacks click on a map of the items (PoisonRec's Figure 6).

Attacks are those of `recattack bench table3`: what is in `--out` is used, what is missing is made there. A
map is t-SNE of a clean victim's item embeddings, kept in the folder `embeddings` beside, so that a picture
can be drawn again from result files alone. ItemPop, CoVisitation and AutoRec are drawn on PMF's map, as in
the paper. `--agent` adds the features that PoisonRec itself learnt, from a checkpoint of `recattack train`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
from joblib import delayed
from numpy.typing import NDArray
from tqdm import tqdm

from agents.benchmark.cells import platform_simulator
from agents.benchmark.embeddings_figure import Panel, draw_embeddings
from agents.benchmark.plans import (
    Plan,
    Platform,
    add_plan_options,
    check_plan,
    plans_of,
    platform_identity,
)
from agents.benchmark.store import ResultStore
from agents.benchmark.table3 import SMOKE, datasets_here
from agents.benchmark.tables import markdown_table
from agents.benchmark.workers import share_the_machine, workers
from agents.interruption import raise_if_interrupted
from recattack_gym.core import ArgumentError, ArtifactError, FakeProfiles
from recattack_gym.core.checks import as_real
from recattack_gym.core.files import read_arrays
from recattack_gym.victims.base import Victim

ITEM_ARRAYS: Mapping[str, str] = MappingProxyType(
    {
        "PMF": "items",
        "BPR": "items",
        "NeuMF": "items",
        "GRU4Rec": "items",
        "NGCF": "embeddings",
        "LightGCN": "embeddings",
        "MF-BCE": "items",
        "APR": "items",
        "PamaCF": "items",
        "PMF-APR": "items",
        "MF-BCE-APR": "items",
        "MF-BCE-PamaCF": "items",
        "PMF-PamaCF": "items",
        "LightGCN-APR": "embeddings",
        "LightGCN-PamaCF": "embeddings",
    }
)
"""Victims with learnt item embeddings, and the array of their file that begins with them."""
STAND_IN = "PMF"
"""Whose embeddings stand for those of the other victims; footnote 10's paragraph of the paper."""
FOLDER = "embeddings"
"""Where maps are, in the folder of the cells."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench embeddings`."""
    add_plan_options(parser, datasets=("steam",), attackers=("poisonrec",), seeds=(0,))
    parser.set_defaults(figures=Path("recattack-results/figures"))
    parser.add_argument(
        "--perplexity", type=float, default=30.0, help="of t-SNE, below the number of items (30)"
    )
    parser.add_argument(
        "--agent",
        type=Path,
        metavar="FILE",
        help="also draw the item features of a PoisonRec agent: checkpoint.npz of "
        "`recattack train --algo poisonrec`, trained on the first of --datasets",
    )
    parser.add_argument("--smoke", action="store_true", help="everything, small: under a minute")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Make the attacks and maps that are missing, and draw everything that was asked for and exists."""
    tsne_class()  # before hours of work
    perplexity = as_real("--perplexity", args.perplexity, above=0.0)
    if args.smoke:
        for name, value in SMOKE.items():
            setattr(args, name, value)
    made = plans_of(args, is_full=False)
    folder = args.out.resolve() / FOLDER
    if not args.report_only:
        make_maps(made, perplexity, folder, n_jobs=args.jobs, backend=args.backend)
    store = ResultStore(folder)
    groups: dict[tuple[str, str, int], list[Panel]] = {}
    for plan in made:
        found = store.get(map_identity(map_platform(plan), perplexity))
        if found is not None:
            key = plan.cell.dataset, plan.cell.entry, plan.cell.seed
            groups.setdefault(key, []).append(panel_of(plan, found))
    if args.agent is not None:
        dataset, protocol = datasets_here(args.datasets[:1], args.protocol)[0]
        platform = dataset, protocol, "ItemPop", args.seeds[0]
        panel = agent_panel(args.agent, platform, perplexity)
        groups[dataset, "agent", args.seeds[0]] = [panel]
    pictures = []
    for (dataset, entry, seed), panels in groups.items():
        path = args.figures / f"embeddings-{dataset}-{entry}-{seed}.png"
        draw_embeddings(panels, f"What {entry} clicks on {dataset}, seed {seed}", path)
        pictures.append(path)
    rows = [
        {"dataset": dataset, "attacker": entry, "seed": seed, **panel.summary()}
        for (dataset, entry, seed), panels in groups.items()
        for panel in panels
    ]
    return {
        "table": "\n\n".join([_table(rows), *(f"drawn: {path}" for path in pictures)]),
        "panels": rows,
        "figures": [str(path) for path in pictures],
    }


def make_maps(
    made: Sequence[Plan], perplexity: float, folder: Path, *, n_jobs: int, backend: str = "loky"
) -> None:
    """Make the maps that some plans are drawn on, `n_jobs` at a time, but those that are stored.

    Args:
        made: The plans.
        perplexity: Of t-SNE.
        folder: Of the `ResultStore`.
        n_jobs: Processes, each on one thread.
        backend: As in `workers`.

    Raises:
        ArgumentError: If scikit-learn is not installed, or the perplexity is too large.
        KeyboardInterrupt: If interrupted; finished maps are kept.
    """
    store = ResultStore(folder)
    platforms = [
        platform
        for platform in dict.fromkeys(map_platform(plan) for plan in made)
        if store.get(map_identity(platform, perplexity)) is None
    ]
    with workers(n_jobs, backend) as run_tasks:
        maps = run_tasks(delayed(_make)(each, perplexity, folder, n_jobs) for each in platforms)
        for _ in tqdm(maps, total=len(platforms), desc="maps", unit="map"):
            raise_if_interrupted()


def _make(platform: Platform, perplexity: float, folder: Path, n_jobs: int) -> None:
    share_the_machine(n_jobs)
    simulator = platform_simulator(platform)
    points = on_a_plane(item_embeddings(simulator.victim), perplexity, platform[3])
    result = {
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "popularity": simulator.item_popularity.tolist(),
        "target_items": simulator.target_items.tolist(),
    }
    ResultStore(folder).put(map_identity(platform, perplexity), result)


def source_of(victim: str) -> str:
    """Return whose embeddings a victim is drawn on."""
    return victim if victim in ITEM_ARRAYS else STAND_IN


def map_platform(plan: Plan) -> Platform:
    """Return the platform whose victim has the embeddings that a plan is drawn on."""
    return plan.platform_of(source_of(plan.cell.victim))


def map_identity(platform: Platform, perplexity: float) -> dict[str, object]:
    """Return everything that decides a map, as plain JSON values."""
    dataset, _, victim, seed = platform
    return {
        "piece": f"map-{dataset}-{victim}-{seed}",
        **platform_identity(platform),
        "perplexity": perplexity,
        "scikit-learn": version("scikit-learn"),
    }


def item_embeddings(victim: Victim) -> NDArray[np.float32]:
    """Return the learnt item embeddings of a fitted victim, shape `(n_items, d)`.

    They are read from the file that `Victim.save` writes. Of NGCF they are those that enter the graph.

    Raises:
        ArgumentError: If the victim has none.
    """
    if victim.name not in ITEM_ARRAYS:
        raise ArgumentError(
            f"victim must be one with item embeddings ({', '.join(ITEM_ARRAYS)}), got {victim.name}"
        )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "victim.npz"
        victim.save(path)
        _, arrays = read_arrays(path, "victim")
    embeddings: NDArray[np.float32] = arrays[ITEM_ARRAYS[victim.name]][: victim.log.n_items]
    return embeddings


def on_a_plane(
    embeddings: NDArray[np.float32], perplexity: float, seed: int
) -> NDArray[np.float64]:
    """Return t-SNE of some rows (van der Maaten and Hinton, JMLR 2008), as scikit-learn has it.

    Args:
        embeddings: Shape `(n, d)`.
        perplexity: About how many neighbours count as near.
        seed: Of its initial plane.

    Returns:
        Shape `(n, 2)`, the same for the same arguments.

    Raises:
        ArgumentError: If scikit-learn is not installed, or the perplexity is not below `n`.
    """
    if perplexity >= len(embeddings):
        raise ArgumentError(
            f"--perplexity must be below the number of items, {len(embeddings)}, got {perplexity}"
        )
    tsne = tsne_class()(perplexity=perplexity, init="pca", random_state=seed % 2**32, n_jobs=1)
    points: NDArray[np.float64] = tsne.fit_transform(embeddings).astype(np.float64)
    return points


def tsne_class() -> Callable[..., Any]:  # a class of an optional package
    """Return scikit-learn's t-SNE.

    Raises:
        ArgumentError: If scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ArgumentError(
            "bench embeddings needs scikit-learn, which is not installed: "
            "pip install 'recattack-gym[plots]'"
        ) from error
    found: Callable[..., Any] = TSNE
    return found


def panel_of(plan: Plan, found: Mapping[str, Any]) -> Panel:  # JSON
    """Return a plan on the map that `make_maps` stored for it.

    Raises:
        ArgumentError: If the plan was made for other items or targets than the map has.
    """
    check_plan(plan.profiles, n_items=len(found["x"]), target_items=found["target_items"])
    return Panel(
        victim=plan.cell.victim,
        embeddings_of=source_of(plan.cell.victim),
        points=np.stack([found["x"], found["y"]], axis=1),
        popularity=np.array(found["popularity"]),
        target_items=np.array(found["target_items"]),
        clicks=np.bincount(plan.profiles.item_ids.ravel(), minlength=len(found["x"])),
    )


def agent_features(path: Path) -> tuple[NDArray[np.float32], FakeProfiles]:
    """Return what a PoisonRec agent learnt: features of all items, shape `(n_items, D)`, and its best plan.

    Args:
        path: `checkpoint.npz` of `recattack train --algo poisonrec`, or what `PoisonRec.save` wrote.

    Raises:
        ArtifactError: If it is not such a file, or of an agent that has not begun to learn.
    """
    header, arrays = read_arrays(path, "PoisonRec")
    try:
        platform = header["platform"]
        rows = arrays["policy.features.values"]
        profiles = FakeProfiles(arrays["best_profiles"], header=platform)
    except (KeyError, ArgumentError) as error:
        raise ArtifactError(
            f"{path} must be the checkpoint of a trained PoisonRec: {error}"
        ) from error
    return rows[len(rows) - platform["n_items"] :], profiles  # items follow the tree's inner nodes


def agent_panel(path: Path, platform: Platform, perplexity: float) -> Panel:
    """Return the best plan of a PoisonRec agent on a map of the item features that it learnt.

    Args:
        path: Of its checkpoint.
        platform: Any with the log that it was trained on.
        perplexity: Of t-SNE.

    Raises:
        ArtifactError: If the file is not the checkpoint of a trained agent.
        ArgumentError: If the platform has other items or targets than the agent's.
    """
    features, profiles = agent_features(path)
    simulator = platform_simulator(platform)
    targets = simulator.target_items
    check_plan(profiles, n_items=simulator.n_items, target_items=targets.tolist())
    return Panel(
        victim=path.parent.name,
        embeddings_of="PoisonRec",
        points=on_a_plane(features, perplexity, platform[3]),
        popularity=simulator.item_popularity,
        target_items=targets,
        clicks=np.bincount(profiles.item_ids.ravel(), minlength=simulator.n_items),
    )


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    header = (
        "dataset", "attacker", "seed", "victim", "map of", "on targets", "targets", "others",
        "their popularity rank",
    )  # fmt: skip
    return markdown_table(header, [tuple(row.values()) for row in rows])
