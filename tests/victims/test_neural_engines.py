"""What the engines of AutoRec, NeuMF and MultiVAE, all of them networks, must all do."""

from collections.abc import Callable

import numpy as np
import pytest

from recattack_gym.core import Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import VICTIMS, CandidateLists

N_NEW = 3

SMALL: dict[str, dict[str, object]] = {
    "AutoRec": {
        "embedding_size": 5,
        "epochs": 60,
        "learning_rate": 0.02,
        "batch_size": 7,
        "finetune_epochs": 40,
        "finetune_learning_rate": 0.05,
        "unclicked_weight": 0.2,
    },
    "MultiVAE": {
        "embedding_size": 4,
        "hidden_size": 6,
        "epochs": 60,
        "learning_rate": 0.02,
        "batch_size": 7,
        "finetune_epochs": 40,
        "finetune_learning_rate": 0.1,
    },
    "NeuMF": {
        "embedding_size": 6,
        "epochs": 40,
        "batch_size": 16,
        "n_negatives": 2,
        "initial_scale": 0.3,
        "finetune_epochs": 40,
        "finetune_batch_size": 16,
        "finetune_learning_rate": 2e-3,
        "reg": 0.01,
    },
}

LARGE: dict[str, dict[str, object]] = {
    "AutoRec": {},
    "MultiVAE": {"epochs": 3},
    "NeuMF": {"epochs": 2, "new_items_as_negatives": False},
}

every_network = pytest.mark.parametrize("name", sorted(SMALL))


@every_network
def test_an_attack_on_one_target_brings_it_into_more_lists(
    name: str, small_log: Interactions, make_lists: Callable[..., CandidateLists]
) -> None:
    lists = make_lists(small_log, [24, 25, 26])
    profile = np.full((4, 5), 25)
    profile[:, 1:] = np.argsort(-small_log.item_popularity)[:4]
    before, after = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        victim = VICTIMS[name](SMALL[name]).fit(small_log, rng, n_new_items=N_NEW)
        before += victim.exposure(lists)
        after += victim.engine(lists).exposure(profile[None], 0)[0]
    assert after[1] > before[1] + 20
    assert after[1] > after[[0, 2]].max() + 20


@every_network
@pytest.mark.real_data
@pytest.mark.parametrize("dataset", ["steam", "ml-100k"])
def test_the_engine_counts_what_the_plain_path_counts_on_real_data(name: str, dataset: str) -> None:
    # Other rounding may swap two items of nearly equal score at the end of a list, and targets that
    # the same fake users click have nearly equal scores: so RecNum may differ by a few lists.
    original = load(dataset).log
    log = original.with_catalogue(original.n_items + N_NEW)
    victim = VICTIMS[name](LARGE[name]).fit(log, np.random.default_rng(0), n_new_items=N_NEW)
    rng = np.random.default_rng(4)
    users = np.arange(log.n_users)
    items = np.stack([rng.choice(original.n_items, 150, replace=False) for _ in users])
    seen = log.has(users[:, None], items)
    width = min(92, int((~seen).sum(axis=1).min()))
    items = np.take_along_axis(items, np.argsort(seen, axis=1, kind="stable")[:, :width], axis=1)
    popular = np.argsort(-log.item_popularity, kind="stable")
    targets = np.array([log.n_items - 3, popular[3], log.n_items - 1, log.n_items - 2])
    items = np.where(items == popular[3], popular[-N_NEW - 1], items)
    lists = CandidateLists(log, items, targets, 10)
    clicks = np.arange(60).reshape(6, 10)
    profiles = np.stack(
        [
            np.full((6, 10), log.n_items - 1),
            log.n_items - 1 - clicks % N_NEW,
            np.where(clicks % 2, log.n_items - 2, popular[clicks % 7]),
            popular[clicks % 20],
            rng.integers(0, log.n_items, (6, 10)),
        ]
    )
    assert len(np.unique(victim.engine(lists).exposure(profiles, 8))) > 4
    for chosen in (profiles, profiles[:, :1, :1]):
        counted = victim.engine(lists).exposure(chosen, 8).sum(axis=1)
        plain = victim.engine(lists, backend="plain").exposure(chosen, 8).sum(axis=1)
        np.testing.assert_allclose(counted, plain, atol=max(2.0, 1e-3 * log.n_users))
