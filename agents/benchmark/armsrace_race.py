"""One race of `recattack bench armsrace`: an attacker and a platform that learn in turns.

In a round the attacker asks the platform as it is, and the best poison set of the round is its attack. Then
audits find the fake users of everything that was tried, and the platform retrains its detector on them.
Three opponents: a platform without a detector, one whose detector has learnt once, from rules of thumb that
promoted other items, and one that begins with the same detector and goes on learning.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import gcd
from pathlib import Path

import numpy as np
from joblib import delayed
from numpy.typing import NDArray
from tqdm import tqdm

from agents.attackers import ATTACKERS
from agents.base import Attacker
from agents.benchmark.plans import Platform, platform_identity
from agents.benchmark.store import ResultStore
from agents.benchmark.workers import share_the_machine, workers
from agents.heuristic import HEURISTICS
from agents.interruption import raise_if_interrupted
from agents.poisonrec.agent import PoisonRec, PoisonRecAttacker
from agents.reports import Stopwatch, versions
from agents.search import SearchAttacker
from recattack_gym import __version__
from recattack_gym.core import AttackBudget, AttackGoal, Interactions, Knowledge, KnowledgeError
from recattack_gym.core.random import draw_seed
from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.datasets import Dataset, load
from recattack_gym.simulator import DefendedSimulator, PlatformSimulator
from recattack_gym.simulator.arms_race import (
    AdaptiveDetector,
    ArmsRaceConfig,
    genuine_log,
    screened_platform,
)

NO_DETECTOR, STATIC, ADAPTIVE = OPPONENTS = ("none", "static", "adaptive")
RULES_OF_THUMB = tuple(
    name for name, kind in HEURISTICS.items() if kind.knowledge is Knowledge.BLACK_BOX
)
"""Whose fake users every detector knows from the start."""
PLANS_KNOWN = 2
"""Attacks of each of them."""
LARGEST_BATCH = 32
"""Poison sets that PoisonRec tries together, if that divides the queries of a round."""
_MEASURING = 1
"""Of what `run_race` measures; to be raised when that changes."""
_DECISIVE = (
    "recattack_gym.simulator.arms_race",
    "recattack_gym.simulator.defended",
    "recattack_gym.simulator.known_users",
    "recattack_gym.simulator.visibility",
    "recattack_gym.defenses",
    "recattack_gym.core.random",
    "agents",
)


@dataclass(frozen=True, kw_only=True)
class Race:
    """One race to measure."""

    dataset: str
    protocol: str | None
    victim: str
    attacker: str
    """A key of `ATTACKERS`; black box."""
    opponent: str
    """One of `OPPONENTS`."""
    seed: int
    """Of the platform, the attacker and the detector."""
    n_rounds: int
    n_queries: int
    """Of each round, of attackers that query."""
    n_draws: int
    """Attacks of each round, of the others."""
    detector: str
    share: float
    max_attacks: int
    audit_rate: float

    @property
    def platform(self) -> Platform:
        """What decides the undefended platform."""
        return self.dataset, self.protocol, self.victim, self.seed

    @property
    def config(self) -> ArmsRaceConfig:
        """How the platform adapts."""
        return ArmsRaceConfig(
            detector=self.detector,
            share=self.share,
            max_attacks=self.max_attacks,
            audit_rate=self.audit_rate,
        )


class RaceView:
    """An `AttackerView`, black box, of a platform that may change between queries; keeps what was tried.

    Args:
        goal: What the attacker wants.
        item_popularity: What is public, shape `(n_items,)`.
        budget: What the attacker may inject.
        ask: Answers queries; `None` refuses them.
    """

    knowledge = Knowledge.BLACK_BOX

    def __init__(
        self,
        goal: AttackGoal,
        item_popularity: NDArray[np.int64],
        budget: AttackBudget,
        ask: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
    ) -> None:
        self.goal, self.item_popularity, self.budget = goal, item_popularity, budget
        self.n_items = len(item_popularity)
        self.n_queries = 0
        self.ask = ask
        self.tried: list[NDArray[np.int64]] = []
        """Poison sets since `forget`, in batches of shape `(M, N, T)`."""
        self.observed: list[NDArray[np.int64]] = []
        """RecNum of these, `(M,)` each."""

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `AttackerView.query`."""
        if self.ask is None:
            raise KnowledgeError("this view has no platform to ask")
        raise_if_interrupted()
        rec_nums = self.ask(profiles)
        self.n_queries += len(profiles)
        self.tried.append(profiles.copy())
        self.observed.append(rec_nums)
        return rec_nums

    def forget(self) -> None:
        """Begin to keep anew."""
        self.tried, self.observed = [], []

    @property
    def log(self) -> Interactions:
        """Raise `KnowledgeError`."""
        raise KnowledgeError("the log needs knowledge gray_box, this view has black_box")

    @property
    def victim_name(self) -> str:
        """Raise `KnowledgeError`."""
        raise KnowledgeError("the victim's kind needs knowledge white_box, this view has black_box")

    @property
    def victim_config(self) -> Mapping[str, object]:
        """Raise `KnowledgeError`."""
        raise KnowledgeError(
            "the victim's settings need knowledge white_box, this view has black_box"
        )


def rules_of_thumb(
    genuine: Interactions, goal: AttackGoal, budget: AttackBudget, seed: int
) -> NDArray[np.int64]:
    """Return attacks by rule of thumb that promoted other items, shape `(n, N, T)`.

    Their targets are drawn from the tenth of the original items with the fewest clicks. The goal's targets,
    which are new and come last in the catalogue, did not exist then: nobody clicks them.
    """
    n_targets = len(goal.target_items)
    popularity = genuine.item_popularity[: min(goal.target_items)]
    rare = np.argsort(popularity, kind="stable")[: max(n_targets, len(popularity) // 10)]
    plans = []
    for number, name in enumerate(RULES_OF_THUMB):
        for plan in range(PLANS_KNOWN):
            rng = np.random.default_rng([seed, number, plan])
            chosen = np.sort(rng.permutation(rare)[:n_targets])
            view = RaceView(AttackGoal(target_items=tuple(chosen.tolist())), popularity, budget)
            plans.append(ATTACKERS[name]().plan(view, rng).item_ids)
    return np.stack(plans)


class Side:
    """The attacker over all rounds.

    PoisonRec keeps its policy and goes on learning; other attackers that query begin anew in every round,
    and those that do not plan `n_draws` attacks.
    """

    def __init__(self, race: Race, view: RaceView) -> None:
        self.race, self.view = race, view
        name = race.attacker.encode()
        self._rngs = np.random.default_rng([race.seed, zlib.crc32(name)]).spawn(race.n_rounds)
        self.attacker = _attacker(race)
        self._agent: PoisonRec | None = None
        if isinstance(self.attacker, PoisonRecAttacker):
            self._agent = self.attacker.agent_class(
                view, self.attacker.config, seed=draw_seed(self._rngs[0])
            )

    def attacks(self, number: int) -> NDArray[np.int64]:
        """Attack in round `number`; return the attacks of the round, shape `(n, N, T)`.

        The best set for attackers that query, all draws of the others. What was tried is in the view.
        """
        view, rng = self.view, self._rngs[number]
        view.forget()
        if self._agent is not None:
            self._agent.learn(self.race.n_queries // self._agent.config.batch_size)
        elif isinstance(self.attacker, SearchAttacker):
            self.attacker.plan(view, rng)
        else:
            plans = [
                self.attacker.plan(view, each).item_ids for each in rng.spawn(self.race.n_draws)
            ]
            view.query(np.stack(plans))
            return np.concatenate(view.tried)
        best = int(np.argmax(np.concatenate(view.observed)))
        attack: NDArray[np.int64] = np.concatenate(view.tried)[best][None]
        return attack


def _attacker(race: Race) -> Attacker:
    kind = ATTACKERS[race.attacker]
    if not issubclass(kind, SearchAttacker):
        return kind()
    settings: dict[str, object] = {"n_queries": race.n_queries}
    if issubclass(kind, PoisonRecAttacker):
        batch = gcd(race.n_queries, LARGEST_BATCH)
        settings = {
            "n_queries": race.n_queries * race.n_rounds,
            "batch_size": batch,
            "n_examples": batch,
        }
    return kind(settings)


def run_race(race: Race) -> dict[str, object]:
    """Run a race.

    Returns:
        Plain JSON values: `rounds`, one mapping per round (see `_measured`), and what is the same in all.
    """
    watch = Stopwatch()
    arguments: dict[str, object] = {
        "dataset": _dataset(race.dataset, race.protocol),
        "victim": race.victim,
        "seed": race.seed,
    }
    plain = PlatformSimulator(**arguments)  # type: ignore[arg-type]  # as above
    genuine, budget = genuine_log(plain), AttackBudget()
    known = rules_of_thumb(genuine, plain.goal, budget, race.seed)
    defence = AdaptiveDetector(genuine, race.config, known=known, seed=race.seed)
    view = RaceView(plain.goal, genuine.item_popularity, budget)
    side = Side(race, view)
    simulator: PlatformSimulator | None = None
    rounds = []
    for number in range(race.n_rounds):
        raise_if_interrupted()
        if simulator is None or race.opponent == ADAPTIVE:
            screening = None if race.opponent == NO_DETECTOR else defence.screening
            simulator = screened_platform(arguments, plain, screening)
        view.ask = simulator.rec_num
        attacks = side.attacks(number)
        measured = _measured(simulator, defence, attacks, view)
        if race.opponent == ADAPTIVE:
            defence.note(np.concatenate(view.tried))
            defence.next_round()
        rounds.append({**measured, **_seen("after", defence, attacks)})
    return {
        "rounds": rounds,
        "max_rec_num": plain.max_rec_num,
        "undefended_clean_rec_num": plain.clean_rec_num,
        "n_users": plain.n_users,
        "n_fake_users": budget.n_fake_users,
        "k": plain.k,
        "attacker_config": asdict(side.attacker.config),
        **watch.fields(),
        "versions": versions(),
    }


def _measured(
    simulator: PlatformSimulator,
    defence: AdaptiveDetector,
    attacks: NDArray[np.int64],
    view: RaceView,
) -> dict[str, object]:
    """Return what the attacks of a round, shape `(n, N, T)`, did; means over them.

    `rec_num` after screening, `policy_rec_num` of everything in the last batch, AUC and recall at 1 % false
    positives of the round's own detector, who was dropped, and quality without (`clean_hr`) and with the
    first of the attacks.
    """
    n_dropped = n_flagged = 0.0
    genuine_dropped = 0
    if isinstance(simulator, DefendedSimulator):
        exposure, screened = simulator.screened_exposure(attacks)
        n_dropped = float(screened.n_dropped.mean())
        n_flagged = float(screened.n_genuine_flagged.mean())
        genuine_dropped = int(simulator.genuine_dropped.sum())
    else:
        exposure = simulator.exposure(attacks)
    effects = simulator.side_effects(attacks[0])
    return {
        "rec_num": float(exposure.sum(axis=1).mean()),
        "policy_rec_num": float(view.observed[-1].mean()),
        "clean_rec_num": simulator.clean_rec_num,
        "n_queries": sum(len(batch) for batch in view.tried),
        "target_share": float(np.isin(attacks, simulator.target_items).mean()),
        "n_dropped": n_dropped,
        "n_genuine_flagged": n_flagged,
        "n_genuine_dropped": genuine_dropped,
        "clean_hr": effects.clean_hr_at_k,
        "clean_ndcg": effects.clean_ndcg_at_k,
        "hr": float(effects.hr_at_k[0]),
        "ndcg": float(effects.ndcg_at_k[0]),
        **_seen("before", defence, attacks),
    }


def _seen(when: str, defence: AdaptiveDetector, attacks: NDArray[np.int64]) -> dict[str, object]:
    """Return how visible attacks are to the present detector, means over them."""
    found = defence.visibility(attacks)
    assert found is not None  # noqa: S101  # rules of thumb are known from the start
    return {f"auc_{when}": float(found.auc.mean()), f"recall_{when}": float(found.recall.mean())}


# -- pieces ----------------------------------------------------------------------------------------


def run_races(races: Sequence[Race], folder: Path, *, n_jobs: int, backend: str = "loky") -> None:
    """Run the races that are not stored yet; each is one file.

    Args:
        races: What to measure.
        folder: Of the `ResultStore`.
        n_jobs: Processes, each on one thread.
        backend: As in `workers`.

    Raises:
        KeyboardInterrupt: If interrupted; finished races are kept.
    """
    store = ResultStore(folder)
    missing = [race for race in races if store.get(race_identity(race)) is None]
    with workers(n_jobs, backend) as run_tasks:
        finished = run_tasks(delayed(_run)(race, folder, n_jobs) for race in missing)
        for _ in tqdm(finished, total=len(missing), desc="bench armsrace", unit="race"):
            raise_if_interrupted()


def _run(race: Race, folder: Path, n_jobs: int) -> None:
    share_the_machine(n_jobs)
    ResultStore(folder).put(race_identity(race), run_race(race))


def read_races(races: Sequence[Race], folder: Path) -> list[tuple[Race, dict[str, object]]]:
    """Return the finished ones of some races, with their results."""
    store = ResultStore(folder)
    found = [(race, store.get(race_identity(race))) for race in races]
    return [(race, result) for race, result in found if result is not None]


def race_identity(race: Race) -> dict[str, object]:
    """Return everything that decides the result of a race, as plain JSON values."""
    is_search = issubclass(ATTACKERS[race.attacker], SearchAttacker)
    given = asdict(race)
    del given["n_draws" if is_search else "n_queries"]
    return {
        "piece": f"{race.dataset}-{race.victim}-{race.attacker}-{race.opponent}-{race.seed}",
        "version": __version__,
        "measuring": _MEASURING,
        "code": _code(race.attacker),
        "platform": dict(platform_identity(race.platform)),
        "attacker_config": asdict(_attacker(race).config),
        "known": [RULES_OF_THUMB, PLANS_KNOWN],
        **given,
    }


@lru_cache(maxsize=32)
def _code(attacker: str) -> str:
    """Return a digest of the sources that decide a race, beside those of the undefended platform."""
    decisive = tuple(name for name in _DECISIVE if name != "agents")
    files = imported_files("recattack_gym.simulator.arms_race", decisive)
    files |= imported_files(ATTACKERS[attacker].__module__, _DECISIVE)
    for name in RULES_OF_THUMB:
        files |= imported_files(ATTACKERS[name].__module__, ("agents.heuristic",))
    return source_digest([*files, __file__])[:16]


@lru_cache(maxsize=1)
def _dataset(name: str, protocol: str | None) -> Dataset:
    return load(name, protocol=protocol)
