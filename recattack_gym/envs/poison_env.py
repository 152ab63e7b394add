"""The environment: one attack on a simulated recommender, click by click."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.attack import Direction
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.datasets import Dataset
from recattack_gym.envs.episodes import (
    Episodes,
    PlatformAttributes,
    as_seed,
    check_options,
)
from recattack_gym.envs.rendering import RENDER_FPS, RENDER_MODES, Frame, Screen
from recattack_gym.envs.rewards import Reward, StealthReward
from recattack_gym.simulator import Defense
from recattack_gym.victims.base import Retrain, Victim, VictimConfig

Observation = dict[str, Any]  # Any: NDArray[np.int64] under "clicks", np.int64 under the others
Info = dict[str, Any]  # Any: int, but NDArray[np.int64] under "target_exposure"


class PoisonEnv(PlatformAttributes, gym.Env[Observation, np.int64]):
    """Attack a recommender: the agent clicks for fake users, the platform retrains, targets get shown.

    ## Description

    A platform shows every user the top k of a list of candidates, ranked by a *victim*, a recommender
    that is trained on what users click. The attacker controls `n_fake_users` accounts that click
    `profile_size` items each, one account after the other. When all clicks are spent they are injected
    into the clean log, the victim is retrained, and the attacker is paid by how often its target items
    are then shown to genuine users (*RecNum*). Every episode starts from the same clean platform.

    The ids are `RecPoison-<victim>-v0`; all are this class with another `victim`, and a few, such as
    `RecPoison-PamaCF-PCAVarSelect-v0`, with a `defense`:

    ```python
    env = gymnasium.make("recattack_gym:RecPoison-ItemPop-v0", n_fake_users=5, profile_size=10)
    ```

    ## Action Space

    `Discrete(n_items)`: the item that the current fake user clicks next. Original items come first,
    then new target items. Any item may be clicked any number of times; `action_masks()` is always all
    true. Wrap the environment in `GroupedActions` for a `MultiDiscrete` space.

    ## Observation Space

    A `Dict` of

    | key | space | meaning |
    |---|---|---|
    | `clicks` | `Box(0, n_items, (profile_size,), int64)` | its clicks so far, filled up with `n_items` |
    | `fake_user` | `Discrete(n_fake_users)` | who clicks next |
    | `step` | `Discrete(profile_size)` | how many clicks it has made |

    After the last click, the observation still shows the last fake user, with all of its clicks and
    `step = profile_size - 1`. Item ids are meant to be embedded (`agents.sb3.ClickSequenceExtractor`);
    wrap the environment in `FlatObservation` for policies that want a vector of floats.

    ## Starting State

    Fake user 0, no clicks. The start is always the same.

    ## Rewards

    0 for every click but the last, then the reward of the whole attack, by `reward`:

    | `reward` | push | nuke |
    |---|---|---|
    | `"rec_num"` | RecNum | `max_rec_num` - RecNum |
    | `"normalized"` | (RecNum - clean) / (max - clean) | (clean - RecNum) / clean |
    | `"stealth"` | `"normalized"` less the share of fake users that screening caught | likewise |

    RecNum is the sum over genuine users of the target items in their list; fake users never count.
    Use a discount of 1.

    ## Episode End

    `terminated` after `n_fake_users * profile_size` clicks; an episode is never truncated.

    ## Information

    The same keys after every reset and click:

    | key | type | meaning |
    |---|---|---|
    | `rec_num` | int | RecNum of the finished attack, -1 while it goes on |
    | `max_rec_num` | int | the largest RecNum there can be |
    | `clean_rec_num` | int | RecNum without any attack, on the platform's own candidate lists |
    | `target_exposure` | int64 `(n_targets,)` | users who are shown each target; 0 until the end |
    | `n_queries` | int | attacks evaluated since the environment was made |

    and, where a `defense` screens accounts:

    | key | type | meaning |
    |---|---|---|
    | `cost` | int | fake users that were caught (kept out of training); 0 until the end |
    | `n_genuine_flagged` | int | genuine users flagged beside them, -1 until the end |

    What does not change with every click is an attribute of `env.unwrapped`: `item_popularity`,
    `target_items`, `budget`, `goal`, `last_profiles`; and, for researchers, `simulator`. Wrap the
    environment in `BlackBox` before handing it to an attacker that must not see the simulator.

    ## Reproducibility

    The platform (clean victim, candidate lists, retraining) draws from `platform_seed` and not from the
    seed of `reset`: equal clicks give equal rewards in every episode, copy and process, on one CPU model
    bit for bit. So the rewards of different clicks differ by the clicks alone (common random numbers).
    With `resample_candidates=True` every attack is evaluated with candidate lists and retraining drawn
    afresh from the environment's generator, as PoisonRec does; then the seed of `reset` matters.
    `clean_rec_num`, and the "clean" of `reward="normalized"` and of pictures, still are those of the
    platform's own lists and not of the fresh ones, whose ranking without the poison can cost as much
    again as the attack's evaluation.

    ## Arguments

    All are keyword-only.

    Args:
        victim: A name from `recattack_gym.victims.VICTIMS`, or a subclass of `Victim`.
        dataset: A name from `recattack_gym.datasets.DATASETS`, a `Dataset`, or `Interactions`.
        protocol: Preprocessing preset of a named dataset, such as `"poisonrec"`.
        n_fake_users: Accounts, N.
        profile_size: Clicks of each account, T.
        targets: How many *new* items to append to the catalogue and promote, or ids of existing items.
        direction: `"push"` promotes the targets, `"nuke"` demotes them (give ids of items that are shown:
            new ones have nothing to lose). The attackers of `agents.heuristic` only promote.
        k: Length of the list that a user is shown.
        n_candidates: Items that are ranked for each user, targets included; `None` ranks the whole
            catalogue without the items that the user has seen.
        resample_candidates: See Reproducibility.
        retrain: `"finetune"` continues from the clean victim, `"full"` trains from scratch. How well the
            first stands for the second differs by victim and log; see `recattack bench fidelity`.
        reward: A name from the table above, `StealthReward(price)`, or a function like those in
            `recattack_gym.envs.rewards`.
        defense: What the platform does against attacks: `None`; a name from
            `recattack_gym.defenses.DETECTORS` (the most suspicious 1 % of accounts are kept out of
            training), such as `"pca-varselect"`, or `"pca-varselect:weight"` (2 %, with weights that fall
            with suspicion); robust training, `"apr"` and `"pamacf"` (of BPR, LightGCN, PMF and MF-BCE)
            or `"lts"` (of ALS);
            `Screening(detector, share)` from `recattack_gym.defenses`; or several of these in a tuple; or,
            alone, `"bagging"` or `Bagging(n_models)`. See `recattack_gym.simulator.DefendedSimulator` and
            `BaggedSimulator`.
        victim_config: Settings of the victim by name, or its config object.
        platform_seed: See Reproducibility.
        device: Where torch-based victims run.
        data_dir: Where datasets lie; by default what `RECATTACK_DATA` says.
        cache_dir: Where fitted victims are kept; by default what `RECATTACK_CACHE` says.
        render_mode: `"ansi"` and `"rgb_array"` return the picture; `"human"` keeps a window up to date,
            or, without a display, writes the result of every attack to the terminal.

    Raises:
        ArgumentError: If an argument is wrong; unknown names suggest the nearest.
        DatasetNotFoundError: If the dataset is not on this machine and cannot be fetched.

    ## References

    J. Song, Z. Li, Z. Hu, Y. Wu, Z. Li, J. Li, J. Gao: PoisonRec: An Adaptive Data Poisoning Framework
    for Attacking Black-box Recommender Systems. ICDE 2020.

    Differs from the paper: candidate lists are fixed by default (the paper draws them for every
    evaluation); nuke attacks, existing targets, full-catalogue ranking and `reward="normalized"` are
    additions.

    ## Version History

    * v0: first version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  # an instance variable of gym.Env
        "render_modes": list(RENDER_MODES),
        "render_fps": RENDER_FPS,
    }

    def __init__(
        self,
        *,
        victim: str | type[Victim] = "BPR",
        dataset: str | Dataset | Interactions = "synthetic",
        protocol: str | None = None,
        n_fake_users: int = 20,
        profile_size: int = 20,
        targets: int | Sequence[int] = 8,
        direction: Direction = "push",
        k: int = 10,
        n_candidates: int | None = 100,
        resample_candidates: bool = False,
        retrain: Retrain = "finetune",
        reward: str | Reward | StealthReward = "rec_num",
        defense: Defense = None,
        victim_config: VictimConfig | Mapping[str, object] | None = None,
        platform_seed: int = 0,
        device: str = "cpu",
        data_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
        render_mode: str | None = None,
    ) -> None:
        self._screen = Screen(render_mode)
        self.render_mode = render_mode
        self._episodes = Episodes(
            1,
            n_fake_users=n_fake_users,
            profile_size=profile_size,
            reward=reward,
            resample_candidates=resample_candidates,
            platform_seed=platform_seed,
            victim=victim,
            dataset=dataset,
            protocol=protocol,
            targets=targets,
            direction=direction,
            k=k,
            n_candidates=n_candidates,
            retrain=retrain,
            defense=defense,
            victim_config=victim_config,
            device=device,
            data_dir=data_dir,
            cache_dir=cache_dir,
        )
        self.observation_space, self.action_space = self._episodes.spaces()

    @property
    def n_queries(self) -> int:
        """Attacks evaluated since this environment was made; a reset does not forget them."""
        return int(self._episodes.n_queries[0])

    @property
    def last_profiles(self) -> NDArray[np.int64] | None:
        """Clicks of the last finished attack, shape `(N, T)`, read-only; `None` before there is one."""
        profiles = self._episodes.last_profiles
        return None if profiles is None else profiles[0]

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which items may be clicked, shape `(n_items,)`: always all, repeats included."""
        return np.ones(self._episodes.n_items, dtype=np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Start a new attack on the clean platform.

        Args:
            seed: Reseeds the environment's generator, which only `resample_candidates` draws from.
            options: None are known.

        Returns:
            The first observation and the info.

        Raises:
            ArgumentError: If the seed or an option is wrong.
        """
        check_options(options, known=())
        super().reset(seed=as_seed("seed", seed))
        self._episodes.begin(self._episodes.copies)
        self._screen.follow(self._episodes, 0)
        return self._observation(), self._info()

    def step(self, action: int | np.int64) -> tuple[Observation, float, bool, bool, Info]:
        """Let the current fake user click one item.

        Args:
            action: An item id.

        Returns:
            Observation, reward, whether the attack is over, `False`, info.

        Raises:
            ArgumentError: If the action is no item id, or the reward function pays nonsense.
            StateError: Before the first reset, after the end of an attack, or if retraining diverged.

        A click whose evaluation raises has not happened: another one may be tried, or the environment
        reset.
        """
        episodes = self._episodes
        episodes.check_running(episodes.copies)
        item_ids = self._as_action(action)
        reward = episodes.click(item_ids, episodes.copies, lambda _: self.np_random)
        terminated = bool(episodes.is_over[0])
        self._screen.follow(self._episodes, 0)
        return self._observation(), float(reward[0]), terminated, False, self._info()

    def _as_action(self, action: object) -> NDArray[np.int64]:
        value = action[()] if isinstance(action, np.ndarray) else action
        if (
            isinstance(value, int | np.integer)
            and not isinstance(value, bool)
            and 0 <= value < self._episodes.n_items
        ):
            return np.array([value], dtype=np.int64)
        raise ArgumentError(
            f"action must be one item id, a whole number in [0, {self._episodes.n_items}), "
            f"got {action!r} ({type(action).__name__})"
        )

    def _observation(self) -> Observation:
        return {name: values[0] for name, values in self._episodes.observe().items()}

    def _info(self) -> Info:
        return {
            name: values[0] if values.ndim > 1 else int(values[0])
            for name, values in self._episodes.info().items()
        }

    def render(self) -> Frame:
        """Show the attack so far in the way of `render_mode`.

        Returns:
            Text for `"ansi"`, an image of shape `(height, width, 3)` for `"rgb_array"`; nothing for
            `"human"`, which draws by itself at every reset and click.

        Raises:
            StateError: If the environment was made without a `render_mode` or never reset.
        """
        return self._screen.show(self._episodes, 0)

    def hide_platform(self) -> None:
        """Let pictures show from here on only what a black-box attacker may know."""
        self._screen.hide_platform()

    def close(self) -> None:
        """Close the window, if there is one; closing again does nothing."""
        self._screen.close()
