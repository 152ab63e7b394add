"""How do I attack a recommender on my own log?

Writes a small CSV file (yours goes in its place), reads it, and measures one attack on it.
"""

import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np

from agents.benchmark.tables import markdown_table
from agents.heuristic import Popular
from recattack_gym.datasets import read_csv
from recattack_gym.envs import PoisonEnv
from recattack_gym.simulator import PlatformView


def main(path: Path | None = None, victim: str = "BPR", seed: int = 0) -> dict[str, int]:
    """Print and return RecNum and its bounds on the log in `path`, or on an invented one."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = read_csv(path or write_invented_log(Path(folder) / "clicks.csv"))
    env = gym.make(f"recattack_gym:RecPoison-{victim}-v0", dataset=dataset, n_candidates=50)
    platform = env.unwrapped
    assert isinstance(platform, PoisonEnv)  # noqa: S101  # tells the type checker what make returned
    view = PlatformView(platform.simulator, platform.budget)
    profiles = Popular().plan(view, np.random.default_rng(seed))
    result = {
        "users": dataset.log.n_users,
        "items": dataset.log.n_items,
        "events": len(dataset.log),
        "RecNum without attack": platform.simulator.clean_rec_num,
        "RecNum after Popular": int(view.query(profiles.item_ids)[0]),
        "largest RecNum": platform.simulator.max_rec_num,
    }
    print(markdown_table(("", "number"), list(result.items())))
    return result


def write_invented_log(path: Path, n_users: int = 200, n_items: int = 120) -> Path:
    """Write who bought what, as a shop would export it: text as ids, one line per purchase."""
    rng = np.random.default_rng(0)
    lines = ["user,item"]
    for user in range(n_users):
        basket = rng.permutation(np.unique(rng.geometric(0.04, size=20) % n_items))
        lines += [f"customer-{user},article-{item}" for item in basket]
    path.write_text("\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    main()
