"""The command `recattack`; also `python -m agents.cli`.

Exit codes: 0 success, 1 something unexpected, 2 a mistake of the caller (one line says which), 130
interrupted. With `--json` the last line of standard output is one JSON object and everything else goes
to standard error.
"""

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import NoReturn, Protocol, cast

import numpy as np
from tqdm import tqdm

from agents.attackers import ATTACKERS
from agents.benchmark.tables import markdown_table
from agents.interruption import remembering_interrupts
from agents.options import (
    add_environment_options,
    environment_options,
    key_value,
    make_environment,
    qualified_id,
    resolved_config,
)
from agents.recording import RecordingView
from agents.reports import (
    Report,
    Stopwatch,
    attack_fields,
    defense_lines,
    effect_lines,
    platform_text,
    versions,
)
from agents.search import SearchAttacker
from envs_registry import ENVIRONMENTS
from recattack_gym import __version__
from recattack_gym.core import ArgumentError, FakeProfiles, RecAttackError, UnknownNameError
from recattack_gym.core.checks import as_count
from recattack_gym.core.errors import nearest_name

Handler = Callable[[argparse.Namespace], Report]

EXIT_OK, EXIT_UNEXPECTED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

BENCHMARKS = {
    "speed": "seconds per evaluated attack, plain against compiled, per victim",
    "quality": "HR@10 and NDCG@10 of the clean victims, against references",
    "fidelity": "agreement of fine-tuning with full retraining, and PoisonRec's Table III",
    "cost": "seconds per evaluated attack against users, items and batch size",
    "policy": "seconds per training step of PoisonRec's policy against the size of the catalogue",
    "table3": "every attacker against every victim at one query budget, beside PoisonRec's Table III",
    "transfer": "attacks made against one victim, injected into the others",
    "defense": "which defence helps against what, at what price: detectors, robust training",
    "armsrace": "an attacker and a detector that learn in turns, round by round",
    "embeddings": "what attacks click on a map of the items, as in PoisonRec's Figure 6 (needs scikit-learn)",
    "gp": "attacks through surrogates with and without Gradient Passing: strength, time, likeness",
    "kkt": "attacks on predicted ratings: PGA, SGLD, uniform against ALS and NuclearNorm",
    "detect": "which detectors find which attacks, learnt on others",
    "peers": "one attack iteration in the unit in which other toolkits were measured",
}
"""Benchmarks, each in `agents/benchmark/<name>.py`, imported when one is run."""


AGENT_SETTINGS = {
    "target_identity": "weight of which target an item is, beside that it is one: 0 treats all targets "
    "alike; try 1 against CoVisitation",
    "target_share": "share of clicks on targets before training",
    "popularity_weight": "how much the untrained policy prefers popular items",
    "n_epochs": "PPO's passes over a rollout",
    "n_minibatches": "PPO's minibatches per pass",
    "clip_range": "PPO's clip range",
    "ent_coef": "weight of the entropy bonus",
    "embedding_size": "with --policy embedding: width of an item's embedding",
    "hidden_size": "width of the hidden layer",
}
"""Fields of `TrainingConfig` that are options of `recattack train`, and what its help says of them."""
POISONREC = ("poisonrec", "poisonrec-entropy", "poisonrec-warm")
"""Algorithms of `recattack train` that are not Stable-Baselines3's."""
NO_SIDE_EFFECTS = "do not measure recommendation quality before and after"


class Benchmark(Protocol):
    """What a module of `agents.benchmark` that the command line can run offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""

    def run(self, args: argparse.Namespace) -> Mapping[str, object]:
        """Measure; the value under "table" is what a person reads."""


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one line instead of the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake, with the nearest right word, and leave with exit code 2."""
        wrong = re.search(r"invalid choice: '(.+?)' \(choose from (.+)\)", message)
        if wrong:
            near = nearest_name(wrong[1], re.findall(r"[^\s',]+", wrong[2]))
            message += f"; did you mean {near!r}?" if near else ""
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see `{self.prog} --help`)\n")


class _BesideProgressBars(logging.Handler):
    """Writes to standard error, on lines of its own where a progress bar is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        tqdm.write(self.format(record), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; `None` takes those of the process.

    Returns:
        The exit code.
    """
    args = _parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s" if args.verbose else "recattack: %(message)s",
        handlers=[_BesideProgressBars()],
    )
    handler: Handler = args.handler
    try:
        with remembering_interrupts():
            report = handler(args)
        _print(report, as_json=args.json)
    except RecAttackError as error:
        return _fail(EXIT_USAGE, str(error))
    except KeyboardInterrupt as error:
        return _fail(EXIT_INTERRUPTED, str(error) or "interrupted")
    except BrokenPipeError:
        # The reader of our output left (`recattack envs | head`): not an error worth a message. What
        # Python flushes at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _fail(EXIT_UNEXPECTED, str(error))
    except MemoryError as error:
        return _fail(EXIT_UNEXPECTED, f"not enough memory for this: {error}")
    return EXIT_OK


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(report.text, file=sys.stderr)
        print(json.dumps(report.data, allow_nan=False))
    else:
        print(report.text)
    sys.stdout.flush()


def _fail(code: int, message: str) -> int:
    print(f"recattack: {' '.join(message.split())}", file=sys.stderr)
    return code


# -- parsing ---------------------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    args, rest = _build_parser(argv).parse_known_args(argv)
    if rest:
        command: argparse.ArgumentParser = args.parser
        options = re.findall(r"--[a-z][a-z-]*", command.format_help())
        near = nearest_name(rest[0], options)
        hint = f"; did you mean {near!r}?" if near else ""
        if rest[0] in options:
            hint = f": options come after `{command.prog}`"
        command.error(f"unknown argument {rest[0]!r}{hint}")
    return args


def _build_parser(argv: Sequence[str]) -> _Parser:
    """Return the parser; only the benchmark that the arguments name is imported."""
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object as last line")
    common.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    parser = _Parser(
        prog="recattack",
        description="Attack simulated recommenders, to learn how to defend real ones.",
        epilog="`recattack COMMAND --help` shows options and examples.",
    )
    parser.add_argument("--version", action="version", version=f"recattack {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str,
        handler: Handler | None,
        text: str,
        examples: str = "",
        where: "argparse._SubParsersAction[_Parser]" = commands,
    ) -> _Parser:
        added = where.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[common] if handler else [],
            allow_abbrev=False,
        )
        if handler:
            added.set_defaults(handler=handler, parser=added)
        return added

    command("envs", _envs, "list the environments", "  recattack envs")

    data = command("data", None, "list, describe and fetch datasets", "  recattack data list")
    actions = data.add_subparsers(title="actions", metavar="ACTION", required=True)
    command("list", _data_list, "list the datasets", "  recattack data list", actions)
    for name, handler, text in (
        ("info", _data_info, "describe one dataset: size, source, licence"),
        ("fetch", _data_fetch, "download a dataset from its publisher into the user cache"),
    ):
        added = command(name, handler, text, f"  recattack data {name} ml-100k", actions)
        added.add_argument("name", metavar="NAME", help="see `recattack data list`")
        added.add_argument("--data-dir", metavar="DIR", help="folder to look in first")
        if name == "info":
            added.add_argument("--protocol", metavar="NAME", help="preprocessing preset")

    attack = command(
        "attack",
        _attack,
        "plan an attack and measure what it does",
        "  recattack attack RecPoison-BPR-v0 --attacker popular\n"
        "  recattack attack RecPoison-BPR-v0 --attacker poisonrec --attacker-config n_queries=960\n"
        "  recattack attack RecPoison-ALS-v0 --attacker power-item --draws 10 --json\n"
        "  recattack attack RecPoison-ItemPop-v0 --attacker random --save profiles.npz",
    )
    attack.add_argument("env_id", metavar="ENV_ID", help="see `recattack envs`")
    attack.add_argument("--attacker", required=True, help=", ".join(ATTACKERS))
    attack.add_argument(
        "--attacker-config",
        nargs="+",
        type=key_value,
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings of the attacker, e.g. popular_rate=0.2 or n_queries=640",
    )
    attack.add_argument("--seed", type=int, default=0, help="seed of the attacker (default: 0)")
    attack.add_argument(
        "--draws", type=int, default=1, help="independent attacks to measure (default: 1)"
    )
    attack.add_argument("--save", type=Path, metavar="FILE", help="write the profiles (.npz)")
    attack.add_argument("--no-side-effects", action="store_true", help=NO_SIDE_EFFECTS)
    attack.add_argument("--quiet", action="store_true", help="no progress bar")
    add_environment_options(attack)

    _add_training(command)

    bench = command("bench", None, "measure speed, quality, fidelity and cost")
    kinds = bench.add_subparsers(title="benchmarks", metavar="NAME", required=True)
    for name, text in BENCHMARKS.items():
        added = command(name, _bench, text, f"  recattack bench {name} --json", kinds)
        added.set_defaults(benchmark=name)
        if list(argv[:2]) == ["bench", name]:
            _benchmark(name).add_arguments(added)
    return parser


def _add_training(command: Callable[..., _Parser]) -> None:
    from agents.training import ALGORITHMS, POLICIES, TrainingConfig

    defaults = TrainingConfig()
    train = command(
        "train",
        _train,
        "train an attacker with Stable-Baselines3, or PoisonRec",
        "  recattack train RecPoison-BPR-v0 --algo poisonrec --save runs/poisonrec\n"
        "  recattack train RecPoison-BPR-v0 --algo ppo --save runs/bpr\n"
        "  recattack train RecPoison-BPR-v0 --algo ppo --save runs/bpr --resume\n"
        "  recattack train RecPoison-CoVisitation-v0 --target-identity 1\n"
        "  recattack train RecPoison-ALS-v0 --algo a2c --total-steps 64000 --dataset ml-100k --json",
    )
    train.add_argument("env_id", metavar="ENV_ID", help="see `recattack envs`")
    train.add_argument(
        "--algo", default=defaults.algo, help=f"{', '.join(ALGORITHMS)}, {' or '.join(POISONREC)}"
    )
    train.add_argument("--resume", action="store_true", help="go on where --save DIR was stopped")
    train.add_argument("--save", type=Path, metavar="DIR", help="where checkpoints and results go")
    train.add_argument("--seed", type=int, default=defaults.seed, help="seed of the agent")
    for name, text in (
        ("total_steps", "clicks to train for, rounded up to whole rollouts"),
        ("n_envs", "attacks that are evaluated together"),
        ("eval_episodes", "fresh attacks that the trained policy is judged by"),
    ):
        default = getattr(defaults, name)
        train.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"{text} ({default})"
        )
    train.add_argument(
        "--policy", default=defaults.policy, help=f"{' or '.join(POLICIES)} ({defaults.policy})"
    )
    agent = train.add_argument_group(
        "agent (docs/training.md)", "What an untrained agent knows, and how fast it learns."
    )
    agent.add_argument("--learning-rate", type=float, help=f"default: {_learning_rates()}")
    for name, text in AGENT_SETTINGS.items():
        default = getattr(defaults, name)
        agent.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"{text} ({default})",
        )
    own = train.add_argument_group(
        " and ".join(POISONREC),
        "The paper's settings, unless said otherwise; the options above have no part in it.",
    )
    own.add_argument(
        "--agent-config",
        nargs="+",
        type=key_value,
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="e.g. action_space=plain batch_size=16 patience=20",
    )
    own.add_argument("--log-dir", type=Path, metavar="DIR", help="write events for TensorBoard")
    train.add_argument("--no-side-effects", action="store_true", help=NO_SIDE_EFFECTS)
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    add_environment_options(train, for_training=True)

    demo = command(
        "demo",
        _demo,
        "train attackers in two minutes and compare them with rules of thumb",
        "  recattack demo\n  recattack demo --out my-folder --seeds 0 1 2 --json",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("recattack-demo"),
        metavar="DIR",
        help="where the picture and the results go (recattack-demo)",
    )
    demo.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        metavar="SEED",
        help="platforms, each with an agent of its own (0 1 2)",
    )
    demo.add_argument(
        "--queries",
        type=int,
        help=f"attacks that the agent may try per seed, a multiple of {defaults.n_envs} (640)",
    )
    demo.add_argument("--cache-dir", type=Path, metavar="DIR", help="folder of fitted victims")


# -- commands --------------------------------------------------------------------------------------


def _envs(args: argparse.Namespace) -> Report:
    del args
    rows = [{"id": env_id, "defense": None, **given} for env_id, given in ENVIRONMENTS.items()]
    table = markdown_table(
        ("environment", "gymnasium.make(...)", "defense"),
        [(row["id"], f"recattack_gym:{row['id']}", row["defense"] or "-") for row in rows],
    )
    return Report(text=table, data={"environments": rows})


def _data_list(args: argparse.Namespace) -> Report:
    del args
    from recattack_gym.datasets import DATASETS, SyntheticSource

    rows = []
    for source in DATASETS.values():
        counts, path = source.counts[None], source.locate()
        is_generated = isinstance(source, SyntheticSource)
        where = str(path) if path else "generated" if is_generated else "not on this machine"
        protocols = [name for name in source.counts if name]
        rows.append(
            (source.name, counts.n_users, counts.n_items, counts.n_events, protocols, where)
        )
    columns = ("name", "n_users", "n_items", "n_events", "protocols", "location")
    table = markdown_table(
        ("dataset", "users", "items", "events", "protocols", "location"),
        [(*row[:4], ", ".join(row[4]) or "-", row[5]) for row in rows],
    )
    return Report(
        text=table, data={"datasets": [dict(zip(columns, row, strict=True)) for row in rows]}
    )


def _data_info(args: argparse.Namespace) -> Report:
    from recattack_gym.datasets import load

    dataset = load(args.name, data_dir=args.data_dir, protocol=args.protocol)
    fields: dict[str, object] = {
        "name": dataset.name,
        "protocol": dataset.protocol,
        "n_users": dataset.log.n_users,
        "n_items": dataset.log.n_items,
        "n_events": len(dataset.log),
        "n_samples": dataset.n_samples,
        "description": dataset.description,
        "provenance": dataset.provenance,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "content_hash": dataset.log.content_hash,
    }
    width = max(map(len, fields))
    text = "\n".join(f"{name:<{width}}  {'-' if x is None else x}" for name, x in fields.items())
    return Report(text=text, data=fields)


def _data_fetch(args: argparse.Namespace) -> Report:
    from recattack_gym.datasets import DATASETS, load

    if args.name not in DATASETS:
        raise UnknownNameError("dataset", args.name, DATASETS)
    dataset = load(args.name, data_dir=args.data_dir)
    path = DATASETS[args.name].locate(args.data_dir)
    data = {
        "name": args.name,
        "path": None if path is None else str(path),
        "n_events": len(dataset.log),
    }
    return Report(text=f"{args.name}: {len(dataset.log):,} events, {dataset.provenance}", data=data)


def _attack(args: argparse.Namespace) -> Report:
    from recattack_gym.simulator import PlatformView

    if args.attacker not in ATTACKERS:
        raise UnknownNameError("attacker", args.attacker, ATTACKERS)
    attacker = ATTACKERS[args.attacker](dict(args.attacker_config))
    seed = as_count("--seed", args.seed, at_least=0)
    n_draws = as_count("--draws", args.draws)
    if args.save is not None and args.save.is_dir():
        raise ArgumentError(f"--save must name a file, got the folder {args.save}")
    watch = Stopwatch()
    env = make_environment(args.env_id, environment_options(args))
    simulator = env.simulator
    n_wanted = attacker.config.n_queries if isinstance(attacker, SearchAttacker) else 0
    with tqdm(total=n_draws * n_wanted, unit="query", disable=args.quiet or n_wanted == 0) as bar:
        view = RecordingView(PlatformView(simulator, env.budget, attacker.knowledge), bar.update)
        plans = [attacker.plan(view, rng) for rng in np.random.default_rng(seed).spawn(n_draws)]
    n_queries = view.n_queries
    rec_nums = simulator.rec_num(np.stack([plan.item_ids for plan in plans])).tolist()
    header = {
        **plans[0].header,
        "env_id": qualified_id(args.env_id),
        "seed": seed,
        "log_hash": simulator.log.content_hash,
    }
    profiles = FakeProfiles(plans[0].item_ids, header=header)
    if args.save is not None:
        profiles.save(args.save)
    data: dict[str, object] = {
        "command": "attack",
        "env_id": qualified_id(args.env_id),
        "victim": simulator.victim.name,
        "attacker": attacker.name,
        **attack_fields(simulator, profiles, side_effects=not args.no_side_effects),
        "n_queries": n_queries,
        "curve": view.rec_nums,
        "draws": rec_nums,
        "mean_rec_num": float(np.mean(rec_nums)),
        "best_rec_num": max(rec_nums),
        "seed": seed,
        "config": {"env": resolved_config(env), "attacker": asdict(attacker.config)},
        "profiles": None if args.save is None else str(args.save),
        **watch.fields(),
        "versions": versions(),
    }
    return Report(text=_describe_attack(data), data=data)


def _describe_attack(data: Mapping[str, object]) -> str:
    share = float(str(data["share"]))
    lines = [
        f"{data['attacker']} on {platform_text(data)}, seed {data['seed']}",
        f"RecNum       {data['rec_num']} of at most {data['max_rec_num']} ({share:.1%}); "
        f"without attack {data['clean_rec_num']}",
        f"per target   {data['target_exposure']}",
        f"cost         {data['accounts']} accounts, {data['clicks']} clicks, {data['n_queries']} queries",
    ]
    draws = data["draws"]
    if isinstance(draws, list) and len(draws) > 1:
        lines.append(
            f"{len(draws)} draws     mean {data['mean_rec_num']}, best {data['best_rec_num']}"
        )
    lines += defense_lines(data)
    lines += effect_lines(data)
    if data["profiles"]:
        lines.append(f"profiles     {data['profiles']}")
    return "\n".join(lines)


def _train(args: argparse.Namespace) -> Report:
    from agents.training import ALGORITHMS, TrainingConfig, default_folder, train

    env_id = qualified_id(args.env_id)
    folder = default_folder(env_id, args.algo, args.seed) if args.save is None else args.save
    if args.algo in POISONREC:
        return _train_poisonrec(args, env_id, folder)
    if args.algo not in ALGORITHMS:
        raise UnknownNameError("algorithm", args.algo, (*ALGORITHMS, *POISONREC))
    for name in ("agent_config", "log_dir"):
        if getattr(args, name):
            raise ArgumentError(
                f"--{name.replace('_', '-')} goes with --algo {' or '.join(POISONREC)}, "
                f"got --algo {args.algo}"
            )
    config = TrainingConfig(
        env_id=env_id,
        env_options=environment_options(args),
        algo=args.algo,
        policy=args.policy,
        total_steps=args.total_steps,
        n_envs=args.n_envs,
        seed=args.seed,
        eval_episodes=args.eval_episodes,
        learning_rate=args.learning_rate,
        **{name: getattr(args, name) for name in AGENT_SETTINGS},
    )
    return train(
        config,
        folder,
        resume=args.resume,
        show_progress=not args.quiet,
        side_effects=not args.no_side_effects,
    )


def _train_poisonrec(args: argparse.Namespace, env_id: str, folder: Path) -> Report:
    from agents.poisonrec_training import train_poisonrec

    return train_poisonrec(
        env_id,
        environment_options(args),
        dict(args.agent_config),
        folder,
        algo=args.algo,
        total_steps=args.total_steps,
        seed=args.seed,
        eval_episodes=args.eval_episodes,
        resume=args.resume,
        show_progress=not args.quiet,
        side_effects=not args.no_side_effects,
        log_dir=args.log_dir,
    )


def _bench(args: argparse.Namespace) -> Report:
    result = dict(_benchmark(args.benchmark).run(args))
    table = str(result.pop("table", ""))
    return Report(text=table, data={"benchmark": args.benchmark, **result, "versions": versions()})


def _benchmark(name: str) -> Benchmark:
    return cast(Benchmark, import_module(f"agents.benchmark.{name}"))


def _learning_rates() -> str:
    from agents.training import LEARNING_RATES

    return ", ".join(f"{rate} for --policy {name}" for name, rate in LEARNING_RATES.items())


def _demo(args: argparse.Namespace) -> Report:
    from agents.demo import DemoConfig, run_demo

    config = DemoConfig() if args.queries is None else DemoConfig(n_queries=args.queries)
    return run_demo(args.out, seeds=args.seeds, config=config, cache_dir=args.cache_dir)


if __name__ == "__main__":
    sys.exit(main())
