"""`recattack train --algo poisonrec`, or a variant of it: a run in a folder, which survives being killed."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from tqdm import tqdm

from agents.options import make_environment, resolved_config
from agents.poisonrec import (
    PoisonRec,
    PoisonRecAttacker,
    PoisonRecConfig,
    WarmPoisonRecAttacker,
)
from agents.poisonrec.entropy import EntropyPoisonRecAttacker
from agents.reports import Report, Stopwatch, attack_fields, versions
from agents.training import check_gain, describe, refuse_other_run
from recattack_gym.core import ArgumentError, FakeProfiles
from recattack_gym.core.checks import as_choice, as_count
from recattack_gym.core.files import atomic_write
from recattack_gym.simulator import PlatformView

_ATTACKERS: Mapping[str, type[PoisonRecAttacker]] = MappingProxyType(
    {
        each.name: each
        for each in (PoisonRecAttacker, EntropyPoisonRecAttacker, WarmPoisonRecAttacker)
    }
)
ALGORITHMS = tuple(_ATTACKERS)
"""What this trains."""


def train_poisonrec(
    env_id: str,
    env_options: Mapping[str, object],
    settings: Mapping[str, object],
    folder: Path,
    *,
    algo: str = "poisonrec",
    total_steps: int = 128_000,
    seed: int = 0,
    eval_episodes: int = 16,
    resume: bool = False,
    show_progress: bool = False,
    side_effects: bool = True,
    log_dir: Path | None = None,
) -> Report:
    """Train PoisonRec, and report as `agents.training.train` does.

    Args:
        env_id: Environment, as `module:id`; its platform is attacked.
        env_options: Arguments of the environment that differ from its defaults.
        settings: Of the algorithm, those that differ from its defaults.
        folder: Gets `environment.json`, `checkpoint.npz` (every ten seconds), then `profiles.npz` (the best
            attack) and `result.json`.
        algo: A name from `ALGORITHMS`.
        total_steps: Clicks to train for, rounded up to whole attacks, unless `settings` say `n_queries`;
            a resumed run may be longer than it was going to be.
        seed: Seed of the agent.
        eval_episodes: Fresh attacks, sampled from the final policy, that it is judged by.
        resume: Whether to go on from the folder's checkpoint.
        show_progress: Whether to draw a progress bar on standard error.
        side_effects: Whether to measure how recommendations for genuine users suffer.
        log_dir: Folder for TensorBoard's events.

    Raises:
        ArgumentError: If the folder holds a run and `resume` is false, or it is another run's, or there is
            nothing to gain.
        ArtifactError: If there is nothing to resume, or it is damaged.
        KeyboardInterrupt: When interrupted; its message says how to go on.
    """
    as_count("eval_episodes", eval_episodes)
    checkpoint = folder / "checkpoint.npz"
    refuse_other_run(checkpoint, folder, resume=resume)
    watch = Stopwatch()
    env = make_environment(env_id, dict(env_options))
    n_queries = -(-as_count("total_steps", total_steps) // env.budget.n_clicks)
    attacker = _ATTACKERS[as_choice("algo", algo, ALGORITHMS)]
    config = attacker({"n_queries": n_queries, **settings}).config
    check_gain(env.simulator)
    view = PlatformView(env.simulator, env.budget)
    kind = attacker.agent_class
    _keep_environment(folder, env_id, env_options, resume=resume)
    agent = (
        _resumed(kind, checkpoint, view, config, seed) if resume else kind(view, config, seed=seed)
    )
    n_done = agent.n_queries
    with tqdm(
        total=max(n_done, config.n_queries),
        initial=n_done,
        unit="attack",
        disable=not show_progress,
    ) as bar:
        try:
            if not agent.is_stuck:  # a resumed run may be at the end of its patience
                agent.learn(
                    on_step=lambda step: bar.update(len(step.rec_nums)),
                    checkpoint=checkpoint,
                    log_dir=log_dir,
                )
        except KeyboardInterrupt as error:
            told = f"interrupted after {agent.n_queries} attacks; {checkpoint} has all but the last ten "
            told += f"seconds: repeat the command with --save {folder} --resume to go on"
            if not checkpoint.exists():
                told = "interrupted before the first step was done, so nothing is saved: repeat the command"
            raise KeyboardInterrupt(told) from error
    fresh = env.simulator.rec_num(agent.sample(eval_episodes))
    header = {
        **agent.plan().header,
        "env_id": env_id,
        "log_hash": env.simulator.log.content_hash,
    }
    profiles = FakeProfiles(agent.plan().item_ids, header=header)
    queries = {"training": agent.n_queries, "policy": len(fresh), "best": 1}
    data: dict[str, object] = {
        "command": "train",
        "env_id": env_id,
        "victim": env.simulator.victim.name,
        "algo": algo,
        **attack_fields(env.simulator, profiles, side_effects=side_effects),
        "best_in_training": agent.best_rec_num,
        "policy": {
            "mean_rec_num": float(fresh.mean()),
            "std_rec_num": float(fresh.std()),
            "n_attacks": len(fresh),
        },
        "n_queries": sum(queries.values()),
        "queries": queries,
        "total_steps": agent.n_queries * env.budget.n_clicks,
        "curve": np.concatenate([step.rec_nums for step in agent.history]).tolist(),
        "target_shares": [round(step.target_share, 4) for step in agent.history],
        "seed": seed,
        "config": {"training": asdict(config), "env": resolved_config(env)},
        "folder": str(folder),
        **watch.fields(),
        "versions": versions(),
    }
    profiles.save(folder / "profiles.npz")
    with atomic_write(folder / "result.json") as stream:
        stream.write(json.dumps(data, indent=1, allow_nan=False).encode())
    return Report(text=describe(data, fresh), data=data)


def _keep_environment(
    folder: Path, env_id: str, env_options: Mapping[str, object], *, resume: bool
) -> None:
    """Note what is attacked, or refuse to go on against something else.

    A checkpoint knows what its attacker sees: not the victim, nor how the platform is defended.
    """
    path = folder / "environment.json"
    now = json.loads(json.dumps({"env_id": env_id, "env_options": dict(env_options)}, default=str))
    if not resume:
        with atomic_write(path) as stream:
            stream.write(json.dumps(now).encode())
    elif path.is_file():
        before = json.loads(path.read_text())
        told = "; ".join(f"{x} {before[x]!r}, now {now[x]!r}" for x in now if before[x] != now[x])
        if told:
            raise ArgumentError(
                f"{folder} was trained with other settings ({told}): resume with the same, "
                "or save to another folder"
            )


def _resumed(
    kind: type[PoisonRec], checkpoint: Path, view: PlatformView, config: PoisonRecConfig, seed: int
) -> PoisonRec:
    """Load an agent, with a budget that may be larger than the one it began with."""
    agent = kind.load(checkpoint, view, n_queries=config.n_queries)
    stored = replace(agent.config, n_queries=config.n_queries)
    if stored != config or agent.seed != seed:
        before = {**asdict(agent.config), "seed": agent.seed}
        now = {**asdict(config), "seed": seed}
        told = "; ".join(f"{x} {before[x]!r}, now {now[x]!r}" for x in now if before[x] != now[x])
        raise ArgumentError(
            f"{checkpoint} was trained with other settings ({told}): resume with the same, "
            "or save to another folder"
        )
    return agent
