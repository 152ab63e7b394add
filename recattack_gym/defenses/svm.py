"""Support vector machines on profile features, alone and with target item analysis (SVM-TIA)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.attack import DIRECTIONS, Direction
from recattack_gym.core.checks import as_choice, as_count, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.defenses import features
from recattack_gym.defenses.base import DetectorConfig, State, SupervisedDetector
from recattack_gym.defenses.pairs import UserItems
from recattack_gym.defenses.tree import scikit_learn

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

STATE = ("mean", "scale", "vectors", "weights", "offset", "gamma")
"""Names of the arrays that a machine consists of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SVMConfig(DetectorConfig):
    """Settings of the machines; grids are searched by cross-validation on the training log."""

    c_grid: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    """Costs of an error."""
    gamma_grid: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Widths of the kernel, on features of mean 0 and variance 1."""
    n_folds: int = 5
    """Of the cross-validation; fewer where fewer users are fake."""
    cv_users: int = 1000
    """Most training users that the grids are searched on."""

    def __post_init__(self) -> None:
        for name in ("c_grid", "gamma_grid"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not values:
                raise ArgumentError(
                    f"{name} must be a tuple of at least one number, got {values!r}"
                )
            for value in values:
                as_real(name, value, above=0.0)
        as_count("n_folds", self.n_folds, at_least=2)
        as_count("cv_users", self.cv_users, at_least=10)


def rating_features(pairs: UserItems) -> Matrix:
    """Return RDMA, WDMA, WDA, and TMF, FMTD and MeanVar for push and for nuke; shape `(n_users, 9)`."""
    columns = [features.rdma(pairs), features.wdma(pairs), features.wda(pairs)]
    for function in (features.tmf, features.fmtd, features.mean_var):
        columns += [function(pairs, direction) for direction in DIRECTIONS]
    return np.stack(columns, axis=1)


def click_features(log: Interactions) -> Matrix:
    """Return LengthVar, DegSim, MUD, RUD and QUD in shares of users, TMF, and the share of repeated clicks.

    Shape `(n_users, 7)`. Ratings, if there are any, play no part.
    """
    pairs = UserItems.of(log if log.ratings is None else without_ratings(log))
    n_events = np.maximum(np.diff(log.indptr), 1)
    columns = [features.length_var(pairs), features.deg_sim(pairs)]
    kinds: tuple[features.Popularity, ...] = ("mean", "range", "quartile")
    columns += [features.popularity(pairs, kind) / log.n_users for kind in kinds]
    columns += [features.tmf(pairs, "push"), 1.0 - pairs.lengths / n_events]
    return np.stack(columns, axis=1)


def without_ratings(log: Interactions) -> Interactions:
    """Return a log of ratings as one of clicks."""
    return Interactions(log.user_ids, log.item_ids, log.n_users, log.n_items)


class SVM(SupervisedDetector):
    """Suspect users by the six classical features of their ratings, in a support vector machine.

    RDMA, WDMA, WDA, TMF, FMTD and MeanVar (Burke et al., KDD 2006; the last three for push and for nuke,
    since a defender does not know the direction); radial kernel; both kinds of user weigh the same. The score
    is the decision value.

    Differs from the paper: cost and width are chosen by cross-validation, by AUC.
    """

    name = "svm"
    needs_ratings = True
    config: SVMConfig
    config_class = SVMConfig

    def _fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> None:
        known = rating_features(UserItems.of(log))
        self._machine = train(known, is_fake, self.config, rng, self.name)

    def _scores(self, log: Interactions) -> Vector:
        return decide(self._machine, rating_features(UserItems.of(log)))

    def _state(self) -> State:
        return dict(self._machine)

    def _restore(self, state: State) -> None:
        self._machine = {name: state[name] for name in STATE}


class ClickSVM(SupervisedDetector):
    """Suspect users by what clicks alone show, in a support vector machine: `SVM` for logs without ratings.

    Features: LengthVar, DegSim (cosine), mean, range and lower quartile of item popularity, TMF over all
    items, and the share of clicks that repeat an earlier one.

    Differs from the paper: there is none; the features are those of the rating detectors that need no rating.
    """

    name = "svm-clicks"
    config: SVMConfig
    config_class = SVMConfig

    def _fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> None:
        self._machine = train(click_features(log), is_fake, self.config, rng, self.name)

    def _scores(self, log: Interactions) -> Vector:
        return decide(self._machine, click_features(log))

    def _state(self) -> State:
        return dict(self._machine)

    def _restore(self, state: State) -> None:
        self._machine = {name: state[name] for name in STATE}


@dataclass(frozen=True, kw_only=True, slots=True)
class SVMTIAConfig(SVMConfig):
    """Settings of `SVMTIA`."""

    direction: Direction = "push"
    """Whether targets are looked for among the highest ratings or the lowest."""
    threshold: float | None = None
    """Suspects that must rate one item so; `None`: max(5, 5 % of the suspects), the paper's is unknown."""

    def __post_init__(self) -> None:
        SVMConfig.__post_init__(self)
        as_choice("direction", self.direction, DIRECTIONS)
        if self.threshold is not None:
            as_real("threshold", self.threshold, at_least=0.0)


class SVMTIA(SupervisedDetector):
    """Clear suspects who share no target: a support vector machine, then target item analysis.

    Zhou, Wen, Xiong, Gao, Zeng, "SVM-TIA a shilling attack detection method based on SVM and target item
    analysis in recommender systems", Neurocomputing 2016. Phase one: the machine of `SVM`, trained with
    borderline-SMOTE, suspects all users above 0. Phase two: the item that most suspects rate highest is a
    target if more than a threshold do; they are fake, and the others are searched again. Fake users score
    in (1, 2), all others in (0, 1), each by the machine.

    Differs from the paper: its threshold and the share of SMOTE samples (here: until both kinds are equally
    many) are not known.
    """

    name = "svm-tia"
    needs_ratings = True
    config: SVMTIAConfig
    config_class = SVMTIAConfig

    def _fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> None:
        known = rating_features(UserItems.of(log))
        spread = known.std(axis=0)
        scale = np.where(spread > 0, spread, 1.0)
        made = borderline_smote((known - known.mean(axis=0)) / scale, is_fake, rng)
        more = np.concatenate([known, made * scale + known.mean(axis=0)])
        labels = np.append(is_fake, np.ones(len(made), dtype=np.bool_))
        self._machine = train(more, labels, self.config, rng, self.name)

    def _scores(self, log: Interactions) -> Vector:
        pairs, config = UserItems.of(log), self.config
        value = decide(self._machine, rating_features(pairs))
        is_suspect = value > 0
        threshold = config.threshold
        if threshold is None:
            threshold = max(5.0, 0.05 * int(is_suspect.sum()))
        is_found, _ = target_item_analysis(pairs, is_suspect, config.direction, threshold)
        from scipy.special import expit

        likelihood: Vector = expit(value)
        return likelihood + is_found

    def _state(self) -> State:
        return dict(self._machine)

    def _restore(self, state: State) -> None:
        self._machine = {name: state[name] for name in STATE}


def target_item_analysis(
    pairs: UserItems, is_suspect: NDArray[np.bool_], direction: Direction, threshold: float
) -> tuple[NDArray[np.bool_], list[int]]:
    """Return which suspects share a target, and the targets in the order in which they were found.

    Args:
        pairs: Of a log.
        is_suspect: Shape `(n_users,)`.
        direction: Whether a target has the highest or the lowest rating.
        threshold: More suspects than that must rate an item so.
    """
    is_open = features.is_target_part(pairs, direction) & is_suspect[pairs.user_ids]
    is_found = np.zeros(pairs.n_users, dtype=np.bool_)
    targets: list[int] = []
    while True:
        counts = np.bincount(pairs.item_ids[is_open], minlength=pairs.n_items)
        target = int(np.argmax(counts))
        if counts[target] <= threshold:
            return is_found, targets
        targets.append(target)
        is_found[pairs.user_ids[is_open & (pairs.item_ids == target)]] = True
        is_open &= ~is_found[pairs.user_ids]


def borderline_smote(
    rows: Matrix, is_fake: NDArray[np.bool_], rng: np.random.Generator, *, k: int = 5
) -> Matrix:
    """Return made-up fake users between those at the border to genuine ones and other fake ones.

    Han, Wang and Mao, "Borderline-SMOTE", ICIC 2005: fake users with at least half, but not only, genuine
    ones among their k nearest neighbours are at the border.

    Args:
        rows: Features on one scale, shape `(n_users, n_features)`.
        is_fake: Shape `(n_users,)`.
        rng: Source of all randomness.
        k: Neighbours.

    Returns:
        As many as fake users lack; none if nobody is at the border, or nobody else is fake.
    """
    fake = np.flatnonzero(is_fake)
    n_made = int((~is_fake).sum()) - len(fake)
    if len(fake) < 2 or n_made <= 0:
        return rows[:0]
    near = _nearest(rows[fake], rows, fake, k)
    n_genuine = (~is_fake[near]).sum(axis=1)
    border = np.flatnonzero((2 * n_genuine >= near.shape[1]) & (n_genuine < near.shape[1]))
    if not len(border):
        return rows[:0]
    kin = _nearest(rows[fake], rows[fake], np.arange(len(fake)), k)
    start = rng.choice(border, n_made)
    other = kin[start, rng.integers(kin.shape[1], size=n_made)]
    gap = rng.random((n_made, 1))
    made: Matrix = rows[fake[start]] + gap * (rows[fake[other]] - rows[fake[start]])
    return made


def _nearest(points: Matrix, among: Matrix, own: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Return the k nearest of `among` to each point, but not itself; shape `(n_points, k)` or fewer."""
    distance = ((points[:, None, :] - among[None, :, :]) ** 2).sum(axis=2)
    distance[np.arange(len(points)), own] = np.inf
    return np.argsort(distance, axis=1, kind="stable")[:, : min(k, len(among) - 1)]


def train(
    known: Matrix,
    is_fake: NDArray[np.bool_],
    config: SVMConfig,
    rng: np.random.Generator,
    detector: str,
) -> State:
    """Train a machine on standardised features.

    Args:
        known: Features of training users, shape `(n_users, n_features)`.
        is_fake: Shape `(n_users,)`.
        config: Grids to search.
        rng: Of the folds.
        detector: Whose machine it is, for messages.

    Returns:
        The arrays that `decide` needs.
    """
    mean, spread = known.mean(axis=0), known.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    rows = (known - mean) / scale
    kind = scikit_learn("svm", detector).SVC
    cost, gamma = _searched(rows, is_fake, config, rng, detector)
    machine = kind(C=cost, gamma=gamma, class_weight="balanced").fit(rows, is_fake)
    return {
        "mean": mean,
        "scale": scale,
        "vectors": machine.support_vectors_,
        "weights": machine.dual_coef_[0],
        "offset": machine.intercept_,
        "gamma": np.array([gamma]),
    }


def _searched(
    rows: Matrix,
    is_fake: NDArray[np.bool_],
    config: SVMConfig,
    rng: np.random.Generator,
    detector: str,
) -> tuple[float, float]:
    """Return the cost and width with the best AUC in cross-validation; the first ones of equals."""
    seed = draw_seed(rng) % 2**32
    n_folds = min(config.n_folds, int(is_fake.sum()), int((~is_fake).sum()))
    if len(config.c_grid) * len(config.gamma_grid) == 1 or n_folds < 2:
        middle = len(config.c_grid) // 2, len(config.gamma_grid) // 2
        return config.c_grid[middle[0]], config.gamma_grid[middle[1]]
    chosen = np.arange(len(rows))
    if len(rows) > config.cv_users:  # as many fake users as may be, and genuine ones
        fake, genuine = (rng.permutation(np.flatnonzero(part)) for part in (is_fake, ~is_fake))
        fake = fake[: max(n_folds, config.cv_users // 3)]
        chosen = np.concatenate([fake, genuine[: max(n_folds, config.cv_users - len(fake))]])
    selection = scikit_learn("model_selection", detector)
    search = selection.GridSearchCV(
        scikit_learn("svm", detector).SVC(class_weight="balanced"),
        {"C": list(config.c_grid), "gamma": list(config.gamma_grid)},
        scoring="roc_auc",
        cv=selection.StratifiedKFold(n_folds, shuffle=True, random_state=seed),
        refit=False,
    ).fit(rows[chosen], is_fake[chosen])
    return float(search.best_params_["C"]), float(search.best_params_["gamma"])


def decide(machine: State, rows: Matrix) -> Vector:
    """Return decision values; shape `(n_users,)`."""
    z = (rows - machine["mean"]) / machine["scale"]
    vectors = machine["vectors"]
    distance = (z**2).sum(axis=1)[:, None] + (vectors**2).sum(axis=1) - 2.0 * z @ vectors.T
    kernel = np.exp(-machine["gamma"][0] * np.maximum(distance, 0.0))
    value: Vector = kernel @ machine["weights"] + machine["offset"][0]
    return value
