"""Command-line options that describe an environment, and the environment they describe."""

import argparse
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from envs_registry import DEFENDED, ENV_IDS, VICTIM_NAMES
from recattack_gym.core import ArgumentError, UnknownNameError

if TYPE_CHECKING:
    from recattack_gym.envs import PoisonEnv


def add_environment_options(parser: argparse.ArgumentParser, *, for_training: bool = False) -> None:
    """Declare one option per argument of the environments; what is not given keeps its default.

    Args:
        parser: Gets the options.
        for_training: Whether to declare those, too, that only matter where attacks follow each other.
    """
    group = parser.add_argument_group("environment (defaults: those of the environment)")

    def option(name: str, **settings: object) -> None:
        group.add_argument(name, default=argparse.SUPPRESS, **settings)  # type: ignore[arg-type]  # passed on

    option("--dataset", metavar="NAME", help="see `recattack data list`, or a CSV/TSV/.inter file")
    option("--protocol", metavar="NAME", help="preprocessing preset, e.g. poisonrec")
    option("--data-dir", metavar="DIR", help="folder to look for datasets in first")
    option("--cache-dir", metavar="DIR", help="folder of fitted victims")
    option("--n-fake-users", type=int, metavar="N", help="accounts that the attacker controls")
    option("--profile-size", type=int, metavar="T", help="clicks per fake user")
    option(
        "--targets",
        type=_targets,
        metavar="N|ID,ID,...",
        help="number of new items to promote, or ids of existing ones (a single id: `17,`)",
    )
    option(
        "--direction",
        choices=("push", "nuke"),
        help="promote or demote the targets; rules of thumb only promote",
    )
    option("--k", type=int, help="length of a recommendation list")
    option(
        "--n-candidates",
        type=_n_candidates,
        metavar="C|all",
        help="items ranked per user, targets included; `all` ranks the catalogue",
    )
    option(
        "--defense",
        nargs="+",
        metavar="NAME",
        help="detectors (the most suspicious 1 %% of accounts are kept out of training; with :weight, 2 %% "
        "with falling weights) and robust training, e.g. pca-varselect:weight apr; or bagging alone",
    )
    option("--retrain", choices=("finetune", "full"), help="how the platform takes in the poison")
    option(
        "--victim-config",
        nargs="+",
        type=key_value,
        action="extend",
        metavar="KEY=VALUE",
        help="settings of the victim, e.g. embedding_size=32 epochs=5",
    )
    option(
        "--platform-seed",
        type=int,
        metavar="SEED",
        help="fixes the clean victim and the candidate lists",
    )
    option("--device", help="where torch-based victims run, e.g. cuda")
    if for_training:
        option(
            "--resample-candidates",
            action="store_true",
            help="draw candidate lists and retraining afresh for every attack that is tried, as "
            "PoisonRec does; the best attack is then reported on the platform's own lists",
        )


OPTION_NAMES = (
    "dataset",
    "protocol",
    "data_dir",
    "cache_dir",
    "n_fake_users",
    "profile_size",
    "targets",
    "direction",
    "k",
    "n_candidates",
    "defense",
    "retrain",
    "victim_config",
    "platform_seed",
    "device",
    "resample_candidates",
)
"""What `add_environment_options` declares, as arguments of the environments."""


def environment_options(args: argparse.Namespace) -> dict[str, object]:
    """Return the environment arguments that the user gave."""
    options = {name: getattr(args, name) for name in OPTION_NAMES if hasattr(args, name)}
    if "victim_config" in options:
        options["victim_config"] = dict(options["victim_config"])
    return options


def qualified_id(env_id: str) -> str:
    """Return an environment id in the form `module:id`, which works in every process.

    Args:
        env_id: `RecPoison-NGCF-v0`, the same with a module before it, or just `NGCF`.

    Raises:
        UnknownNameError: If it is none of ours and names no module.
    """
    if env_id in VICTIM_NAMES or env_id in DEFENDED:
        env_id = f"RecPoison-{env_id}-v0"
    plain_id = env_id.removeprefix("recattack_gym:")
    if plain_id in ENV_IDS:
        return f"recattack_gym:{plain_id}"
    if ":" in plain_id:
        return plain_id
    raise UnknownNameError("environment", env_id, (*ENV_IDS, *VICTIM_NAMES, *DEFENDED))


def make_environment(env_id: str, options: Mapping[str, object]) -> "PoisonEnv":
    """Make an environment from its id and arguments.

    Raises:
        UnknownNameError: If there is no such environment.
        ArgumentError: If an argument is wrong, or the id belongs to something else.
    """
    import gymnasium as gym

    from recattack_gym.envs import PoisonEnv

    made_id = qualified_id(env_id)
    is_ours = made_id.startswith("recattack_gym:")
    mistakes = (gym.error.Error, ModuleNotFoundError, *(() if is_ours else (TypeError,)))
    try:
        env = gym.make(made_id, **options).unwrapped  # type: ignore[arg-type]  # checked there
    except mistakes as error:
        raise ArgumentError(f"ENV_ID must name an environment, got {env_id!r}: {error}") from error
    if not isinstance(env, PoisonEnv):
        raise ArgumentError(f"ENV_ID must name a poisoning environment, got {env_id!r}")
    return env


def resolved_config(env: "PoisonEnv") -> dict[str, object]:
    """Return every argument of an environment, defaults and the victim's settings included."""
    signature = inspect.signature(type(env).__init__)
    defaults = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.default is not parameter.empty
    }
    given = {} if env.spec is None else env.spec.kwargs
    victim_config = asdict(env.simulator.victim.config)
    arguments = {**defaults, **given, "victim_config": victim_config}
    arguments.pop("render_mode", None)
    return {name: _as_json(value) for name, value in sorted(arguments.items())}


def _as_json(value: object) -> object:
    try:
        return cast(object, json.loads(json.dumps(value)))
    except TypeError:
        return str(value)


def _targets(text: str) -> int | list[int]:
    try:
        if "," in text:
            return [int(item) for item in text.split(",") if item]
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be a number of new items or item ids with commas, got {text!r}"
        ) from error


def _n_candidates(text: str) -> int | None:
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number or `all`, got {text!r}") from error


def key_value(text: str) -> tuple[str, object]:
    """Parse `KEY=VALUE`, the value as a number or a truth value where it looks like one."""
    key, sign, value = text.partition("=")
    if not (key and sign and value):
        raise argparse.ArgumentTypeError(f"must look like KEY=VALUE, got {text!r}")
    literal = {"True": "true", "False": "false", "None": "null"}.get(value, value)
    try:
        return key, json.loads(literal)
    except json.JSONDecodeError:
        return key, value
