"""Write docs/environments.md from the docstrings of the environments: `python docs/make_environments.py`."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

from envs_registry import ENVIRONMENTS
from recattack_gym.envs import (
    ArmsRace,
    BlackBox,
    FlatObservation,
    FlatVectorObservation,
    GroupedActions,
    GroupedVectorActions,
    PoisonEnv,
    PoisonVectorEnv,
    VectorArmsRace,
)
from recattack_gym.envs.wrappers import flatten_observation, group_items
from recattack_gym.victims import VICTIMS

PAGE = Path(__file__).with_name("environments.md")
CLASSES = (PoisonEnv, PoisonVectorEnv)
WRAPPERS = (
    GroupedActions,
    GroupedVectorActions,
    FlatObservation,
    FlatVectorObservation,
    BlackBox,
    ArmsRace,
    VectorArmsRace,
)
FUNCTIONS = (group_items, flatten_observation)

INTRODUCTION = """# Environments

<!-- Made from the docstrings by `python docs/make_environments.py`; a test keeps it up to date. -->

`import recattack_gym` registers the ids. `"recattack_gym:<id>"` needs no import and works in worker
processes, configuration files and other libraries, so prefer it:

```python
import gymnasium

env = gymnasium.make("recattack_gym:RecPoison-ItemPop-v0", n_fake_users=5, profile_size=10)
envs = gymnasium.make_vec("recattack_gym:RecPoison-ItemPop-v0", num_envs=8, autoreset_mode="SameStep")
```

Gymnasium 1.x has no plug-in entry points, so `import gymnasium` alone cannot know these ids.
"""

DEFENDED = """Some defended platforms have ids of their own. They are presets: `defense=` puts any defence in
front of any victim ([defenses.md](defenses.md), [detectors.md](detectors.md))."""


def page() -> str:
    """Return the text of the page."""
    ids = ["| id | victim |", "|---|---|"]
    ids += [
        f"| `{env_id}` | {_first_line(VICTIMS[given['victim']])} |"
        for env_id, given in ENVIRONMENTS.items()
        if "defense" not in given
    ]
    ids += ["", DEFENDED, "", "| id | `victim` | `defense` |", "|---|---|---|"]
    ids += [
        f"| `{env_id}` | `{given['victim']}` | `{given['defense']}` |"
        for env_id, given in ENVIRONMENTS.items()
        if "defense" in given
    ]
    parts = [INTRODUCTION, "\n".join(ids) + "\n"]
    parts += [_section(item) for item in (*CLASSES, *WRAPPERS, *FUNCTIONS)]
    return "\n".join(parts)


def _first_line(item: object) -> str:
    return (inspect.getdoc(item) or "").split("\n", 1)[0]


def _section(item: Callable[..., object]) -> str:
    """Return a docstring as a section: headings one level down, arguments and errors as lists."""
    signature = inspect.signature(item)
    text = [f"## {item.__name__}", ""]
    block = None
    for line in (inspect.getdoc(item) or "").splitlines():
        if heading := re.fullmatch(r"(Args|Raises|Returns):", line):
            block = heading[1]
            text += [f"{'Arguments' if block == 'Args' else block}:", ""]
        elif not line.startswith("    "):
            block = block if line == "" else None
            text.append(f"#{line}" if line.startswith("#") else line)
        elif block is None:
            text.append(line)
        elif entry := re.fullmatch(r"    (\w+): (.*)", line):
            text.append(_entry(entry[1], entry[2], signature))
        else:
            text.append(line.strip() if block == "Returns" else f"  {line.strip()}")
    return "\n".join(text) + "\n"


def _entry(name: str, description: str, signature: inspect.Signature) -> str:
    parameter = signature.parameters.get(name)
    if parameter is None or parameter.default is parameter.empty:
        return f"* `{name}`: {description}"
    default = getattr(parameter.default, "value", parameter.default)
    return f"* `{name}={default!r}`: {description}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
