"""ConsLOP: which co-visits with a target lift it into the most visible "also viewed" lists."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agents.base import Attacker, AttackerConfig
from recattack_gym.core import Interactions, Knowledge
from recattack_gym.core.checks import as_choice, as_count
from recattack_gym.core.view import AttackerView

Similarity = Literal["product", "cosine"]
SIMILARITIES: tuple[Similarity, ...] = ("product", "cosine")
NEVER = np.iinfo(np.int64).max
"""Co-visits of an anchor that no number of them can win."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsLOPConfig(AttackerConfig):
    """Settings of `ConsLOP`."""

    similarity: Similarity = "product"
    """What co-visits are divided by: `w_i w_j` (YouTube; the paper's experiments) or its root (Amazon)."""
    list_length: int = 10
    """k: a target should be among so many items; not in PoisonRec, its length of lists."""
    counts_all_visits: bool = False
    """Whether each anchor's price is for a target with the visits of the whole attack, not of its own share.

    The paper's price assumes that only the co-visits with this anchor visit the target; the others make the
    target more popular, and so less similar.
    """

    def __post_init__(self) -> None:
        as_choice("similarity", self.similarity, SIMILARITIES)
        as_count("list_length", self.list_length)


class ConsLOP(Attacker):
    """Buy the cheapest co-visits that put one random target on the lists of the most visited items.

    Yang, Gong and Cai, "Fake co-visitation injection attacks to recommender systems", NDSS 2017, §IV, with
    full knowledge; as a baseline with one random target and `N T / 2` co-visits: PoisonRec (Song et al., ICDE
    2020), §V. Needs the log, from which co-visits (consecutive clicks of one user on two items) are counted.

    Differs from the paper: anchors are chosen by an exact 0/1 knapsack, not a relaxed linear program. The
    thresholds of the appendix for the cosine have a sign and a square wrong; see `covisits_needed`. A
    co-visit is emitted as a click on the target and one on the anchor; the platform also counts the pair that
    follows (the anchor and the next click on the target), so an anchor gets up to twice what was bought.
    What is left of the budget repeats the chosen co-visits.
    """

    name = "conslop"
    knowledge = Knowledge.GRAY_BOX
    config: ConsLOPConfig
    config_class = ConsLOPConfig
    why_not = (
        "demotion needs other items pushed above the target; use an attacker that queries, for example "
        "'poisonrec'"
    )

    def _plan(self, view: AttackerView, rng: np.random.Generator) -> NDArray[np.int64]:
        target = int(rng.choice(np.array(view.goal.target_items)))
        n_users, n_clicks = view.budget.n_fake_users, view.budget.profile_size
        n_covisits = n_users * (n_clicks // 2)
        visits = view.item_popularity
        pairs, counts = covisit_counts(view.log, view.n_items)
        rival_covisits, rival_visits = _rivals(pairs, counts, visits, target, self.config)
        own = np.zeros(view.n_items, dtype=np.int64)
        rows, columns = np.divmod(pairs, view.n_items)
        own[rows[columns == target]] = counts[columns == target]
        extra = n_covisits if self.config.counts_all_visits else None
        price = covisits_needed(
            own,
            int(visits[target]),
            rival_covisits,
            rival_visits,
            self.config.similarity,
            limit=max(1, n_covisits),
            total_visits=extra,
        )
        price[list(view.goal.target_items)] = NEVER
        anchors = best_anchors(visits.astype(np.float64), price, n_covisits)
        bought = np.repeat(anchors, price[anchors])
        return _emit(target, bought, anchors, view, rng)


def covisit_counts(log: Interactions, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count consecutive clicks of one user on two different items, in both directions.

    Args:
        log: The log.
        n_items: Size of the catalogue, at least the log's.

    Returns:
        `j * n_items + i` for every pair with co-visits, ascending, and how many; both `(n_pairs,)`.
    """
    first, second = log.item_ids[:-1], log.item_ids[1:]
    is_pair = (log.user_ids[1:] == log.user_ids[:-1]) & (first != second)
    first, second = first[is_pair], second[is_pair]
    both = np.concatenate([first * n_items + second, second * n_items + first])
    pairs, counts = np.unique(both, return_counts=True)
    return pairs, counts.astype(np.int64)


def covisits_needed(
    covisits: NDArray[np.int64],
    target_visits: int,
    rival_covisits: NDArray[np.int64],
    rival_visits: NDArray[np.int64],
    similarity: Similarity,
    *,
    limit: int,
    total_visits: int | None = None,
) -> NDArray[np.int64]:
    """Return the smallest number q of co-visits that puts a target above an anchor's rival.

    The rival x is the last item of anchor j's list. Co-visits with j raise `w_jt`, `w_t` and `w_j`, and `w_j`
    cancels. With the product the target wins if `(w_jt + q) / (w_t + q) > w_jx / w_x`, with the cosine if
    `(w_jt + q) ** 2 / (w_t + q) > w_jx ** 2 / w_x`. Yang et al., NDSS 2017, §IV-B and appendix, where the
    closed form for the cosine has a sign and a square wrong: it is `q > (b + sqrt(b ** 2 + 4 c)) / 2` with
    `b = w_jx ** 2 / w_x - 2 w_jt` and `c = w_t w_jx ** 2 / w_x - w_jt ** 2`. Here q is found by bisection in
    whole numbers, so that no rounding decides; both left sides grow with q where they begin below 1.

    Args:
        covisits: `w_jt` of every anchor, shape `(n,)`.
        target_visits: `w_t`.
        rival_covisits: `w_jx`, shape `(n,)`; 0 where an anchor's list is not full.
        rival_visits: `w_x`, shape `(n,)`, at least 1.
        similarity: `"product"` or `"cosine"`.
        limit: The largest q of interest.
        total_visits: If given, the target has `w_t + total_visits` visits instead of `w_t + q`.

    Returns:
        Shape `(n,)`, at least 1; `NEVER` where `limit` is not enough.
    """
    w_jt, w_jx, w_x = (
        np.asarray(a, dtype=object) for a in (covisits, rival_covisits, rival_visits)
    )
    power = 1 if similarity == "product" else 2

    def wins(q: NDArray[np.int64]) -> NDArray[np.bool_]:
        added = q.astype(object)
        visits = target_visits + (added if total_visits is None else max(1, total_visits))
        won: NDArray[np.object_] = (w_jt + added) ** power * w_x > w_jx**power * visits
        return won.astype(np.bool_)

    low = np.zeros(len(covisits), dtype=np.int64)
    high = np.full(len(covisits), limit, dtype=np.int64)
    is_possible = wins(np.ones_like(low)) | wins(high)
    high[wins(np.ones_like(low))] = 1
    while (high - low > 1).any():
        middle = (low + high + 1) // 2
        won = wins(middle)
        high = np.where(won, middle, high)
        low = np.where(won, low, middle)
    return np.where(is_possible, high, NEVER)


def best_anchors(
    worth: NDArray[np.float64], price: NDArray[np.int64], budget: int
) -> NDArray[np.int64]:
    """Choose anchors of the largest total worth within a budget: an exact 0/1 knapsack.

    Dynamic programming over the budget. Of the anchors with price p only the `budget // p` most worthy can be
    in the answer.

    Args:
        worth: Shape `(n,)`, not negative.
        price: Whole numbers of at least 1, shape `(n,)`.
        budget: Not negative.

    Returns:
        Chosen positions, ascending.
    """
    candidates: list[int] = []
    for p in np.unique(price[price <= budget]).tolist():
        same = np.flatnonzero(price == p)
        same = same[np.argsort(-worth[same], kind="stable")][: budget // p]
        candidates.extend(same[worth[same] > 0].tolist())
    best = np.zeros(budget + 1)
    is_taken = np.zeros((len(candidates), budget + 1), dtype=np.bool_)
    for number, anchor in enumerate(candidates):
        p = int(price[anchor])
        with_it = np.full(budget + 1, -np.inf)
        with_it[p:] = best[: budget + 1 - p] + worth[anchor]
        is_taken[number] = with_it > best
        best = np.maximum(best, with_it)
    chosen, left = [], budget
    for number in range(len(candidates) - 1, -1, -1):
        if is_taken[number, left]:
            chosen.append(candidates[number])
            left -= int(price[candidates[number]])
    return np.array(sorted(chosen), dtype=np.int64)


def _rivals(
    pairs: NDArray[np.int64],
    counts: NDArray[np.int64],
    visits: NDArray[np.int64],
    target: int,
    config: ConsLOPConfig,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return co-visits and visits of the last item on every anchor's list; both shape `(n_items,)`.

    A target that is on the list already is no rival of itself. Where the list is not full: 0 and 1.
    """
    n_items = len(visits)
    rows, columns = np.divmod(pairs, n_items)
    others = columns != target
    rows, columns, counts = rows[others], columns[others], counts[others]
    power = 1.0 if config.similarity == "product" else 0.5
    similarity = (
        counts / visits[columns].astype(np.float64) ** power
    )  # the anchor's own visits cancel
    order = np.lexsort((columns, -similarity, rows))
    first = np.searchsorted(rows[order], np.arange(n_items))
    last = np.searchsorted(rows[order], np.arange(n_items), side="right")
    place = first + config.list_length - 1
    is_full = place < last
    covisits = np.zeros(n_items, dtype=np.int64)
    rival_visits = np.ones(n_items, dtype=np.int64)
    at = order[place[is_full]]
    covisits[is_full] = counts[at]
    rival_visits[is_full] = visits[columns[at]]
    return covisits, rival_visits


def _emit(
    target: int,
    bought: NDArray[np.int64],
    anchors: NDArray[np.int64],
    view: AttackerView,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Write co-visits as clicks, the target and an anchor in turn; shape `(N, T)`."""
    shape = (view.budget.n_fake_users, view.budget.profile_size)
    clicks = np.full(shape, target, dtype=np.int64)
    n_slots = clicks[:, 1::2].size
    if len(anchors) == 0:  # nothing can be won: the most visited items, as a guess
        targets = set(view.goal.target_items)
        ranked = np.argsort(-view.item_popularity, kind="stable").tolist()
        anchors = np.array(
            [item for item in ranked if item not in targets][:n_slots], dtype=np.int64
        )
    if n_slots and len(anchors):
        by_visits = anchors[np.argsort(-view.item_popularity[anchors], kind="stable")]
        again = np.resize(by_visits, max(0, n_slots - len(bought)))
        slots = rng.permutation(np.concatenate([bought, again]))
        clicks[:, 1::2] = slots.reshape(clicks[:, 1::2].shape)
    return clicks
