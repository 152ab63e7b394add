"""The platform: RecNum is right, reproducible, and every attack starts from the clean state."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions, StateError, UnknownNameError
from recattack_gym.datasets import SyntheticConfig, from_interactions, generate
from recattack_gym.simulator import PlatformSimulator, shared_simulator
from recattack_gym.victims import BPR, ItemPop

QUICK = {"epochs": 3, "embedding_size": 8, "finetune_epochs": 2}


def small_log(n_users: int = 40, n_items: int = 60, n_events: int = 600) -> Interactions:
    config = SyntheticConfig(n_users=n_users, n_items=n_items, n_events=n_events)
    return generate(config, np.random.default_rng(3)).log


def some_poison(simulator: PlatformSimulator, n_sets: int, seed: int = 0) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, simulator.n_items, (n_sets, 4, 5))


def five_users() -> Interactions:
    """Five users, four items: clicks 4, 3, 2, 1; every user misses at least one item."""
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2), (3, 0), (3, 3), (4, 1), (4, 2)]
    users, items = map(np.array, zip(*pairs, strict=True))
    return Interactions(users, items, 5, 4)


def test_rec_num_of_itempop_by_hand() -> None:
    # Clicks of items 0..3: 4, 3, 2, 1; one new target, item 4. Whole catalogue, lists of one.
    # Unseen items: user 0: 2, 3; user 1: 2, 3; user 2: 1, 3; user 3: 1, 2; user 4: 0, 3.
    platform = PlatformSimulator(five_users(), "ItemPop", targets=1, k=1, n_candidates=None)
    assert platform.clean_rec_num == 0
    clicks = np.full((4, 1, 5), 4)
    clicks[0, 0, 2:] = 0  # two clicks tie with item 2, and ties go to the lower id
    clicks[1, 0, 3:] = (
        0  # three clicks beat item 2 (users 0 and 1), tie with item 1 (users 2 and 3)
    )
    clicks[2, 0, 4:] = 1  # four clicks tie with item 1 (3 + 1) and item 0
    # The fourth set's five clicks beat everything for everyone.
    assert platform.rec_num(clicks).tolist() == [0, 2, 2, 5]
    assert platform.max_rec_num == 5


def test_seen_targets_are_never_shown() -> None:
    platform = PlatformSimulator(five_users(), "ItemPop", targets=[3], k=1, n_candidates=None)
    everyone_clicks_it = np.full((1, 20), 3)
    assert platform.exposure(everyone_clicks_it).tolist() == [[4]]  # all but user 3, who has it


def test_candidates_are_distinct_unseen_and_hold_every_target() -> None:
    log = small_log()
    platform = PlatformSimulator(log, "ItemPop", targets=3, n_candidates=20)
    candidates = platform.candidates
    assert candidates is not None
    assert candidates.shape == (log.n_users, 20)
    for user, row in enumerate(candidates):
        assert len(set(row.tolist())) == 20
        assert not set(row.tolist()) & set(log.items_of(user).tolist())
        assert row[-3:].tolist() == platform.target_items.tolist()


def test_seen_targets_do_not_make_room_for_other_candidates() -> None:
    # Six items, two of them targets that user 0 has seen: four other items are unseen.
    log = Interactions(np.array([0, 0, 1]), np.array([1, 2, 0]), 2, 6)
    for n_candidates in (3, 4, 5, 6):
        arguments = {"targets": [1, 2], "n_candidates": n_candidates, "k": 1}
        if n_candidates - 2 <= 3:  # user 1 has seen item 0, which is no target
            candidates = PlatformSimulator(log, "ItemPop", **arguments).candidates  # type: ignore[arg-type]
            assert candidates is not None
            assert candidates.shape == (2, n_candidates)
        else:
            with pytest.raises(ArgumentError, match="user 1 has only 3 unseen items"):
                PlatformSimulator(log, "ItemPop", **arguments)  # type: ignore[arg-type]


def test_candidates_are_uniform_over_unseen_items() -> None:
    log = Interactions(np.array([0, 1]), np.array([0, 1]), 2, 12)
    counts = np.zeros(13)
    for seed in range(400):
        candidates = PlatformSimulator(
            log, "ItemPop", targets=1, n_candidates=5, seed=seed, k=1
        ).candidates
        assert candidates is not None
        counts[candidates[0]] += 1
    assert counts[0] == 0
    assert counts[12] == 400
    expected = 400 * 4 / 11
    assert np.abs(counts[1:12] - expected).max() < 5 * np.sqrt(expected)


def test_the_reward_is_the_same_in_any_batch_and_order() -> None:
    platform = PlatformSimulator(
        small_log(), "BPR", targets=2, n_candidates=20, victim_config=QUICK
    )
    poison = some_poison(platform, 6)
    together = platform.exposure(poison)
    alone = np.concatenate([platform.exposure(one) for one in poison[::-1]])[::-1]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, platform.exposure(poison))


def test_attacks_leave_the_clean_victim_as_it_was() -> None:
    platform = PlatformSimulator(
        small_log(), "BPR", targets=2, n_candidates=20, victim_config=QUICK
    )
    before = platform.victim.state
    clean = platform.clean_rec_num
    platform.exposure(some_poison(platform, 5))
    platform.exposure(some_poison(platform, 1), retrain="full")
    platform.exposure(some_poison(platform, 1), rng=np.random.default_rng(0))
    for name, array in platform.victim.state.items():
        np.testing.assert_array_equal(array, before[name])
    assert int(platform.victim.exposure(platform.lists).sum()) == clean


def test_fake_users_never_count() -> None:
    # With more fake users than genuine ones, RecNum still cannot exceed what genuine users allow.
    platform = PlatformSimulator(five_users(), "ItemPop", targets=1, k=1, n_candidates=None)
    assert platform.rec_num(np.full((1, 50, 2), 4)).tolist() == [5]


def test_a_fresh_draw_depends_on_the_generator_alone() -> None:
    platform = PlatformSimulator(small_log(), "ItemPop", targets=2, n_candidates=10, k=3)
    poison = np.full((1, 2, 4), platform.target_items[0])
    first, again, other = (
        platform.exposure(poison, rng=np.random.default_rng(seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == again
    draws = {
        tuple(platform.exposure(poison, rng=np.random.default_rng(seed))[0]) for seed in range(20)
    }
    assert len(draws) > 1
    assert isinstance(other, list)


def test_threads_may_share_a_simulator() -> None:
    platform = PlatformSimulator(
        small_log(), "BPR", targets=2, n_candidates=20, victim_config=QUICK
    )
    poisons = [some_poison(platform, 4, seed) for seed in range(6)]
    expected = [platform.exposure(poison) for poison in poisons]
    found: dict[int, NDArray[np.int64]] = {}
    threads = [
        threading.Thread(target=lambda x=x: found.update({x: platform.exposure(poisons[x])}))
        for x in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x in range(6):
        np.testing.assert_array_equal(found[x], expected[x])


def test_a_call_may_retrain_in_another_way_than_the_platform() -> None:
    arguments = {"targets": 2, "n_candidates": 20, "victim_config": QUICK}
    tuned, full = (
        PlatformSimulator(small_log(), "BPR", retrain=mode, **arguments)  # type: ignore[arg-type]  # text
        for mode in ("finetune", "full")
    )
    poison = some_poison(tuned, 3)
    poison[:, :, ::2] = tuned.target_items[0]
    assert tuned.exposure(poison).tolist() != full.exposure(poison).tolist()
    np.testing.assert_array_equal(tuned.exposure(poison, retrain="full"), full.exposure(poison))
    np.testing.assert_array_equal(full.exposure(poison, retrain="finetune"), tuned.exposure(poison))


def test_side_effects_are_those_of_the_platforms_own_retraining() -> None:
    dataset = from_interactions(small_log())
    arguments = {"targets": 2, "n_candidates": 20, "victim_config": QUICK}
    platform = PlatformSimulator(dataset, "BPR", retrain="full", **arguments)  # type: ignore[arg-type]  # text
    poison = some_poison(platform, 1)
    poisoned = platform.victim.poisoned(poison[0], 0, "full")
    users = np.flatnonzero(dataset.split.evaluable("test"))
    shown = poisoned.recommend(users, 10)
    hits = [item in row for item, row in zip(dataset.split.test_items[users], shown, strict=True)]
    finetuned = PlatformSimulator(dataset, "BPR", **arguments).side_effects(poison)  # type: ignore[arg-type]  # text
    assert platform.side_effects(poison).hr_at_k[0] == pytest.approx(np.mean(hits))
    assert platform.side_effects(poison).ndcg_at_k[0] != finetuned.ndcg_at_k[0]


def test_a_fresh_draw_retrains_afresh_too() -> None:
    arguments = {
        "targets": 2,
        "n_candidates": None,
        "k": 3,
        "victim_config": QUICK,
    }  # no lists to draw
    platform = PlatformSimulator(small_log(), "BPR", **arguments)  # type: ignore[arg-type]  # text
    poison = some_poison(platform, 1)
    poison[:, :, 0] = platform.target_items[0]
    draws = [platform.exposure(poison, rng=np.random.default_rng(seed)) for seed in range(8)]
    assert len({tuple(draw[0].tolist()) for draw in draws}) > 1


@pytest.mark.parametrize("victim", ["BPR", "NeuMF", "AutoRec"])
def test_a_platform_that_has_been_used_can_be_pickled(victim: str) -> None:
    config = {"epochs": 1, "finetune_epochs": 2, "embedding_size": 4}
    platform = PlatformSimulator(
        small_log(), victim, targets=2, n_candidates=20, victim_config=config
    )
    poison = some_poison(platform, 3)
    before = platform.exposure(poison)
    again = pickle.loads(pickle.dumps(platform))  # noqa: S301  # our own bytes
    np.testing.assert_array_equal(again.exposure(poison), before)
    np.testing.assert_array_equal(platform.exposure(poison), before)


def test_side_effects_compare_held_out_quality_before_and_after() -> None:
    dataset = from_interactions(small_log())
    platform = PlatformSimulator(dataset, "ItemPop", targets=2, k=5, n_candidates=20)
    flood = np.stack([np.full((40, 20), platform.target_items[0]), np.full((40, 20), 0)])
    effects = platform.side_effects(flood)
    users = np.flatnonzero(dataset.split.evaluable("test"))
    shown = platform.victim.recommend(users, 5)
    hits = [item in row for item, row in zip(dataset.split.test_items[users], shown, strict=True)]
    assert effects.clean_hr_at_k == pytest.approx(np.mean(hits))
    assert effects.hr_at_k.shape == (2,)
    assert effects.hr_at_k[0] <= effects.clean_hr_at_k  # a useless item takes a place in every list


def test_the_platform_trains_on_no_held_out_event() -> None:
    dataset = from_interactions(small_log())
    platform = PlatformSimulator(dataset, "ItemPop", n_candidates=20)
    assert platform.log is dataset.split.train
    assert platform.item_popularity[: platform.n_original_items].sum() == len(dataset.split.train)


def test_side_effects_of_a_bare_log_say_what_to_do() -> None:
    platform = PlatformSimulator(small_log(), "ItemPop", n_candidates=20)
    with pytest.raises(StateError, match="from_interactions"):
        platform.side_effects(some_poison(platform, 1))


def test_max_rec_num_is_users_times_places() -> None:
    log = small_log()
    assert PlatformSimulator(log, "ItemPop", targets=8, k=10, n_candidates=20).max_rec_num == 320
    assert PlatformSimulator(log, "ItemPop", targets=8, k=3, n_candidates=20).max_rec_num == 120


def test_equal_platforms_of_a_process_are_one() -> None:
    arguments = {"dataset": "synthetic", "victim": "ItemPop", "targets": 2}
    first = shared_simulator(arguments)
    assert shared_simulator(dict(arguments)) is first
    assert shared_simulator({**arguments, "targets": 3}) is not first


def write_log(folder: Path, n_users: int) -> Path:
    """Write `clicks.csv`: so many users with three of their own four items each."""
    folder.mkdir(exist_ok=True)
    lines = [f"u{user},i{(user + place) % 4}" for user in range(n_users) for place in range(3)]
    (folder / "clicks.csv").write_text("\n".join(["user,item", *lines]) + "\n")
    return folder / "clicks.csv"


def test_a_file_that_has_changed_is_another_platform(tmp_path: Path) -> None:
    arguments = {
        "dataset": str(write_log(tmp_path, 4)),
        "victim": "ItemPop",
        "targets": 1,
        "n_candidates": None,
    }
    first = shared_simulator(arguments)
    assert shared_simulator(arguments) is first
    write_log(tmp_path, 5)
    assert (first.n_users, shared_simulator(arguments).n_users) == (4, 5)


@pytest.mark.parametrize("how", ["environment variable", "relative path", "working folder"])
def test_another_data_folder_is_another_platform(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, object] = {"dataset": "synthetic", "victim": "ItemPop", "targets": 2}
    simulators = []
    for name in ("a", "b"):
        folder = write_log(tmp_path / name, 4).parent
        if how == "environment variable":
            monkeypatch.setenv("RECATTACK_DATA", str(folder))
        else:
            monkeypatch.chdir(folder)
        if how == "relative path":
            arguments["data_dir"] = "."
        if how == "working folder":
            arguments |= {"dataset": "clicks.csv", "targets": 1, "n_candidates": None}
        simulators.append(shared_simulator(arguments))
        assert shared_simulator(arguments) is simulators[-1]
    assert simulators[0] is not simulators[1]


def test_a_victim_class_of_ones_own_can_be_attacked() -> None:
    class Mine(ItemPop):
        name = "Mine"

    platform = PlatformSimulator(five_users(), Mine, targets=1, k=1, n_candidates=None)
    assert platform.rec_num(np.full((1, 5, 2), 4)).tolist() == [5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 0}, "k must be a whole number >= 1, got 0"),
        ({"k": 2.5}, "k must be a whole number"),
        ({"targets": 0}, "targets must be a whole number >= 1"),
        ({"targets": []}, "targets must be one or more distinct item ids"),
        ({"targets": [1, 1]}, "targets must be one or more distinct item ids"),
        ({"targets": [999]}, r"targets must lie in \[0, 60\)"),
        ({"targets": "popular"}, "targets must be a number of new items or a sequence"),
        ({"targets": 1000}, "targets must be at most 60"),
        ({"n_candidates": 8}, "n_candidates must be > 8"),
        ({"n_candidates": 60}, "n_candidates must be at most"),
        ({"n_candidates": -1}, "n_candidates must be a whole number"),
        ({"retrain": "warm"}, "retrain must be one of 'finetune', 'full', got 'warm'"),
        ({"direction": "up"}, "direction must be one of 'push', 'nuke'"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"backend": "cuda"}, "backend must be one of"),
        ({"victim": "BRP"}, "did you mean 'BPR'"),
        ({"victim": 3}, "victim must be a name or a subclass of Victim"),
        ({"victim": "BPR", "victim_config": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"victim": "BPR", "victim_config": {"learning_rate": float("nan")}}, "learning_rate must"),
        ({"dataset": 5}, "dataset must be a name, a Dataset or Interactions"),
        ({"dataset": "steem"}, "did you mean 'steam'"),
        ({"protocol": "poisonrec"}, "protocol goes with a dataset's name"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], words: str) -> None:
    call = {"dataset": small_log(), "victim": "ItemPop", "n_candidates": 20, **arguments}
    with pytest.raises(ArgumentError, match=words):
        PlatformSimulator(**call)  # type: ignore[arg-type]  # wrong on purpose


def test_an_unknown_victim_is_a_key_error_too() -> None:
    with pytest.raises(KeyError) as caught:
        PlatformSimulator(small_log(), "NoSuchThing")
    assert isinstance(caught.value, UnknownNameError)


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        (np.zeros((2, 2)), "whole numbers"),
        (np.full((1, 2, 2), -1), r"profiles must lie in \[0, 68\), got -1 at index \(0, 0, 0\)"),
        (np.full((1, 2, 2), 68), "got 68 at index"),
        (np.full((1, 2, 2), np.nan), "whole numbers"),
        (np.zeros((2, 2), dtype=bool), "whole numbers"),
        (np.zeros(4, dtype=int), "must have shape"),
        (np.zeros((1, 0, 4), dtype=int), "at least one click"),
        (np.zeros((0, 2, 4), dtype=int), "at least one click"),
        (np.array([["a"]]), "whole numbers"),
    ],
)
def test_a_wrong_profile_is_refused_and_the_next_one_works(
    profiles: NDArray[np.int64], words: str
) -> None:
    platform = PlatformSimulator(small_log(), "ItemPop", n_candidates=20)
    with pytest.raises(ArgumentError, match=words):
        platform.exposure(profiles)
    assert platform.rec_num(np.full((1, 4, 5), 60)).shape == (1,)


def test_a_generator_is_asked_for_where_a_seed_is_given() -> None:
    platform = PlatformSimulator(small_log(), "ItemPop", n_candidates=20)
    with pytest.raises(ArgumentError, match="must be a numpy"):
        platform.exposure(some_poison(platform, 1), rng=7)  # type: ignore[arg-type]  # wrong on purpose


def test_the_plain_backend_agrees_with_the_engine() -> None:
    log = small_log()
    for victim in ("ItemPop", "CoVisitation", "BPR", "PMF"):
        config = QUICK if victim in ("BPR", "PMF") else None
        auto, plain = (
            PlatformSimulator(
                log, victim, targets=3, n_candidates=20, victim_config=config, backend=backend
            )
            for backend in ("auto", "plain")
        )
        poison = some_poison(auto, 5)
        np.testing.assert_array_equal(auto.exposure(poison), plain.exposure(poison))


def test_the_device_and_config_reach_the_victim() -> None:
    platform = PlatformSimulator(small_log(), "BPR", n_candidates=20, victim_config=QUICK)
    assert isinstance(platform.victim, BPR)
    assert platform.victim.config == BPR(QUICK).config
