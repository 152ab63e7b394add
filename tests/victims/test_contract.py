"""What holds for every victim in the registry, from the first line of a new one."""

import hashlib
import json
import resource
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import (
    ArgumentError,
    ArtifactError,
    Interactions,
    RecAttackError,
    StateError,
    UnknownNameError,
)
from recattack_gym.victims import VICTIMS, CandidateLists, GradientConfig, Victim

NAMES = sorted(VICTIMS)
GRADIENT_NAMES = [n for n in NAMES if issubclass(VICTIMS[n].config_class, GradientConfig)]
PERSONAL_NAMES = [n for n in NAMES if n != "ItemPop"]
N_NEW = 3

Config = Callable[[str], dict[str, object]]
QuickVictim = Callable[[str], Victim]
MakeLists = Callable[..., CandidateLists]

every_victim = pytest.mark.parametrize("name", NAMES)


def state_hash(victim: Victim) -> str:
    digest = hashlib.sha256()
    for key, array in sorted(victim.state.items()):
        digest.update(f"{key} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def random_profiles(
    log: Interactions, m: int, n: int, t: int, *, seed: int = 0
) -> NDArray[np.int64]:
    """Half of the clicks on the new items; shape `(m, n, t)`."""
    rng = np.random.default_rng(seed)
    new = rng.integers(log.n_items - N_NEW, log.n_items, (m, n, t))
    return np.where(rng.random((m, n, t)) < 0.5, new, rng.integers(0, log.n_items, (m, n, t)))


def adversarial_profiles(log: Interactions, n: int, t: int) -> dict[str, NDArray[np.int64]]:
    """Return attacks at the edges, each of shape `(n, t)`."""
    last = log.n_items - 1
    popular = np.argsort(-log.item_popularity, kind="stable")
    clicks = np.arange(n * t).reshape(n, t)
    return {
        "one target": np.full((n, t), last),
        "all targets": last - clicks % N_NEW,
        "popular items": popular[clicks % 4],
        "targets and the most popular item": np.where(clicks % 2 == 0, last, popular[0]),
        "no target": clicks % (log.n_items - N_NEW),
        "a pair back and forth": np.where(clicks % 2 == 0, popular[0], popular[1]),
        "one popular item": np.full((n, t), popular[0]),
        "an item that nobody has": np.full((n, t), popular[-N_NEW - 1]),
    }


def exposure_by_definition(victim: Victim, lists: CandidateLists) -> NDArray[np.int64]:
    """Count one user, one item at a time: PoisonRec's RecNum, per target, spelled out.

    All are scored in one call: items that were clicked alike are tied, and a product of matrices of
    another shape may round them apart.
    """
    log = lists.log
    counts = np.zeros(len(lists.target_items), dtype=np.int64)
    users = np.arange(log.n_users)
    if lists.item_ids is None:
        offered = np.tile(np.arange(log.n_items), (len(users), 1))
    else:
        offered = np.hstack([lists.item_ids, np.tile(lists.target_items, (len(users), 1))])
    scores = victim.score(users, offered)
    for user in users.tolist():
        seen = set(log.items_of(user).tolist())
        pairs = zip(scores[user].tolist(), offered[user].tolist(), strict=True)
        ranked = sorted((-score, item) for score, item in pairs if item not in seen)
        shown = [item for _, item in ranked[: lists.k]]
        counts += [target in shown for target in lists.target_items.tolist()]
    return counts


# -- recommending ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PERSONAL_NAMES)
def test_the_right_colour_of_the_checkerboard_comes_first(
    name: str, checkerboard: Interactions, learning_config: Config
) -> None:
    victim = VICTIMS[name](learning_config(name)).fit(checkerboard, np.random.default_rng(0))
    users = np.arange(checkerboard.n_users)
    shown = victim.recommend(users, 3)
    right = (shown % 2 == users[:, None] % 2).mean()
    assert right > 0.95


@every_victim
def test_scoring_a_batch_equals_scoring_one_user_at_a_time(
    name: str, quick_victim: QuickVictim, small_log: Interactions
) -> None:
    victim = quick_victim(name)
    users = np.array([7, 0, 29, 7])
    items = np.random.default_rng(1).integers(0, small_log.n_items, (4, 6))
    together = victim.score(users, items)
    alone = [victim.score(users[[r]], items[[r]])[0] for r in range(4)]
    assert together.shape == (4, 6)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-5)


@every_victim
def test_a_score_does_not_depend_on_what_else_is_scored(
    name: str, quick_victim: QuickVictim, small_log: Interactions
) -> None:
    victim = quick_victim(name)
    users = np.arange(5)
    whole = victim.score(users, np.tile(np.arange(small_log.n_items), (5, 1)))
    some = victim.score(users, np.tile([20, 3], (5, 1)))
    np.testing.assert_allclose(some, whole[:, [20, 3]], rtol=1e-4, atol=1e-5)


@every_victim
def test_scoring_nothing_gives_nothing(name: str, quick_victim: QuickVictim) -> None:
    victim = quick_victim(name)
    assert victim.score(np.zeros(0, np.int64), np.zeros((0, 4), np.int64)).shape == (0, 4)
    assert victim.recommend(np.zeros(0, np.int64), 2).shape == (0, 2)


@every_victim
def test_never_recommends_a_seen_item(
    name: str, quick_victim: QuickVictim, small_log: Interactions
) -> None:
    users = np.arange(small_log.n_users)
    shown = quick_victim(name).recommend(users, 10)
    assert (shown >= 0).all()
    assert not small_log.has(users[:, None], shown).any()


@every_victim
def test_lists_are_sorted_by_score_and_ties_go_to_the_lower_id(
    name: str, quick_victim: QuickVictim, small_log: Interactions
) -> None:
    victim = quick_victim(name)
    users = np.arange(small_log.n_users)
    items = np.broadcast_to(np.arange(small_log.n_items), (len(users), small_log.n_items))
    scores = victim.score(users, items)
    for user, shown in enumerate(victim.recommend(users, 6)):
        ranked = np.lexsort((items[user], -scores[user]))
        unseen = ranked[~small_log.has(user, ranked)]
        assert shown.tolist() == unseen[:6].tolist()


@every_victim
def test_a_list_longer_than_what_is_unseen_ends_in_minus_one(
    name: str, quick_victim: QuickVictim, small_log: Interactions
) -> None:
    n_items = small_log.n_items
    shown = quick_victim(name).recommend(np.arange(small_log.n_users), n_items + 4)
    for user, row in enumerate(shown):
        unseen = set(range(n_items)) - set(small_log.items_of(user).tolist())
        assert set(row[: len(unseen)].tolist()) == unseen
        assert (row[len(unseen) :] == -1).all()


# -- training ----------------------------------------------------------------------------------


@every_victim
def test_the_same_seed_gives_the_same_victim_on_any_number_of_threads(
    name: str,
    quick_config: Config,
    small_log: Interactions,
    make_lists: MakeLists,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profiles = random_profiles(small_log, 5, 2, 4)
    lists = make_lists(small_log, [24, 25, 26])
    seen = []
    for threads in ("1", "3"):
        monkeypatch.setenv("RECATTACK_NUM_THREADS", threads)
        victim = VICTIMS[name](quick_config(name))
        victim.fit(small_log, np.random.default_rng(8), n_new_items=N_NEW)
        poisoned = victim.poisoned(profiles[0], 5, "finetune")
        exposure = victim.engine(lists).exposure(profiles, 5)
        seen.append((state_hash(victim), state_hash(poisoned), exposure.tolist()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", GRADIENT_NAMES)
def test_another_seed_gives_another_victim(
    name: str, quick_config: Config, small_log: Interactions
) -> None:
    victims = [
        VICTIMS[name](quick_config(name)).fit(small_log, np.random.default_rng(seed))
        for seed in (1, 2)
    ]
    assert state_hash(victims[0]) != state_hash(victims[1])


@every_victim
def test_fitting_again_starts_from_scratch(
    name: str, quick_config: Config, small_log: Interactions, checkerboard: Interactions
) -> None:
    used = VICTIMS[name](quick_config(name)).fit(checkerboard, np.random.default_rng(0))
    used.recommend(np.arange(3), 2)
    used.fit(small_log, np.random.default_rng(4), n_new_items=N_NEW)
    fresh = VICTIMS[name](quick_config(name))
    fresh.fit(small_log, np.random.default_rng(4), n_new_items=N_NEW)
    users = np.arange(small_log.n_users)
    assert state_hash(used) == state_hash(fresh)
    np.testing.assert_array_equal(used.recommend(users, 5), fresh.recommend(users, 5))


@every_victim
def test_users_and_items_without_events_are_scored(name: str, quick_config: Config) -> None:
    log = Interactions(np.array([1, 1, 1, 3]), np.array([0, 2, 0, 2]), n_users=5, n_items=6)
    victim = VICTIMS[name](quick_config(name)).fit(log, np.random.default_rng(0))
    shown = victim.recommend(np.arange(5), 6)
    assert (shown >= 0).sum(axis=1).tolist() == [6, 4, 6, 5, 6]
    profile = np.array([[5, 0, 5], [4, 4, 4]])
    poisoned = victim.poisoned(profile, 0, "finetune")
    assert poisoned.recommend(np.arange(7), 6).shape == (7, 6)


# -- poisoning ---------------------------------------------------------------------------------


@every_victim
def test_any_number_of_attacks_leaves_the_clean_victim_untouched(
    name: str, quick_victim: QuickVictim, small_log: Interactions, make_lists: MakeLists
) -> None:
    victim = quick_victim(name)
    lists = make_lists(small_log, [24, 25, 26])
    before, clean = state_hash(victim), victim.exposure(lists)
    profiles = random_profiles(small_log, 3, 2, 5)
    engine = victim.engine(lists)
    first = engine.exposure(profiles, 1)
    for _ in range(3):
        np.testing.assert_array_equal(engine.exposure(profiles, 1), first)
    victim.engine(lists, backend="plain").exposure(profiles, 1)
    for poisoned in victim.poison(profiles, np.random.default_rng(0)):
        poisoned.recommend(np.arange(4), 3)
    victim.poisoned(profiles[0], 2, "full")
    assert state_hash(victim) == before
    np.testing.assert_array_equal(victim.exposure(lists), clean)
    assert victim.log is small_log


@every_victim
@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_equal_clicks_give_equal_exposure_in_any_batch_and_order(
    name: str,
    backend: str,
    quick_victim: QuickVictim,
    small_log: Interactions,
    make_lists: MakeLists,
) -> None:
    engine = quick_victim(name).engine(
        make_lists(small_log, [24, 25, 26]),
        backend=backend,  # type: ignore[arg-type]  # parametrised text
    )
    profiles = random_profiles(small_log, 6, 3, 4)
    together = engine.exposure(profiles, 9)
    assert together.shape == (6, 3)
    order = np.array([4, 1, 1, 5, 0])
    np.testing.assert_array_equal(engine.exposure(profiles[order], 9), together[order])
    for m in range(6):
        np.testing.assert_array_equal(engine.exposure(profiles[[m]], 9)[0], together[m])


@every_victim
@pytest.mark.parametrize(
    ("targets", "k", "n_candidates"),
    [
        ([24, 25, 26], 3, 8),
        ([24, 25, 26], 1, 8),
        ([26], 4, 6),
        ([25, 0, 3, 24], 3, 8),
        ([1, 2], 5, 9),
        ([24, 25, 26], 40, 8),
        ([24, 25, 26], 3, None),
        ([2, 26, 0], 6, None),
        ([24, 25, 26], 40, None),
    ],
    ids=str,
)
def test_the_engine_equals_the_plain_path(
    name: str,
    targets: list[int],
    k: int,
    n_candidates: int | None,
    quick_victim: QuickVictim,
    small_log: Interactions,
    make_lists: MakeLists,
) -> None:
    victim = quick_victim(name)
    lists = make_lists(small_log, targets, k=k, n_candidates=n_candidates)
    engine, plain = victim.engine(lists), victim.engine(lists, backend="plain")
    adversarial = np.stack(list(adversarial_profiles(small_log, 3, 5).values()))
    for profiles in (adversarial, random_profiles(small_log, 4, 3, 5), adversarial[:, :1, :1]):
        np.testing.assert_array_equal(engine.exposure(profiles, 7), plain.exposure(profiles, 7))


@every_victim
@pytest.mark.parametrize("n_candidates", [8, None])
def test_exposure_counts_genuine_users_only_and_follows_its_definition(
    name: str,
    n_candidates: int | None,
    quick_victim: QuickVictim,
    small_log: Interactions,
    make_lists: MakeLists,
) -> None:
    victim = quick_victim(name)
    lists = make_lists(small_log, [0, 26, 24], k=4, n_candidates=n_candidates)
    np.testing.assert_array_equal(victim.exposure(lists), exposure_by_definition(victim, lists))
    for profile in adversarial_profiles(small_log, 4, 6).values():
        poisoned = victim.poisoned(profile, 3, "finetune")
        counted = victim.engine(lists).exposure(profile[None], 3)[0]
        np.testing.assert_array_equal(counted, exposure_by_definition(poisoned, lists))
        assert (counted <= lists.eligible.sum(axis=0)).all()


@every_victim
def test_every_click_of_every_fake_user_can_change_the_result(
    name: str, quick_victim: QuickVictim, small_log: Interactions
) -> None:
    victim = quick_victim(name)
    profile = np.array([[24, 3, 25], [8, 26, 1]])
    genuine = np.arange(small_log.n_users)
    items = np.broadcast_to(np.arange(small_log.n_items), (len(genuine), small_log.n_items))

    def result(clicks: NDArray[np.int64]) -> tuple[str, bytes]:
        poisoned = victim.poisoned(clicks, 6, "finetune")
        return state_hash(poisoned), poisoned.score(genuine, items).tobytes()

    unchanged = result(profile)
    assert result(profile.copy()) == unchanged
    for place in np.ndindex(profile.shape):
        changed = profile.copy()
        changed[place] = 13
        assert result(changed) != unchanged, place


@every_victim
@pytest.mark.parametrize("retrain", ["finetune", "full"])
def test_a_poisoned_victim_knows_its_fake_users(
    name: str, retrain: str, quick_victim: QuickVictim, small_log: Interactions
) -> None:
    profiles = random_profiles(small_log, 2, 3, 4)
    batch = quick_victim(name).poison(
        profiles,
        np.random.default_rng(2),
        retrain=retrain,  # type: ignore[arg-type]  # parametrised text
    )
    assert len(batch) == 2
    for profile, poisoned in zip(profiles, batch, strict=True):
        assert poisoned.log.n_users == small_log.n_users + 3
        fakes = small_log.n_users + np.arange(3)
        shown = poisoned.recommend(fakes, 5)
        assert not (shown[:, :, None] == profile[:, None, :]).any()
    users, items = np.array([0, 31]), np.array([[1, 24], [2, 25]])
    np.testing.assert_array_equal(
        batch.score(users, items), [poisoned.score(users, items) for poisoned in batch]
    )


@every_victim
def test_full_retraining_repeats_the_seed_of_the_clean_fit(
    name: str, quick_victim: QuickVictim, small_log: Interactions
) -> None:
    profile = random_profiles(small_log, 1, 2, 4)[0]
    first, second = (quick_victim(name).poisoned(profile, seed, "full") for seed in (1, 2))
    assert state_hash(first) == state_hash(second)


@pytest.mark.parametrize("name", [n for n in NAMES if VICTIMS[n].is_incremental])
def test_an_incremental_victim_finetunes_to_exactly_what_full_retraining_gives(
    name: str, quick_victim: QuickVictim, small_log: Interactions, make_lists: MakeLists
) -> None:
    victim = quick_victim(name)
    lists = make_lists(small_log, [24, 25, 26])
    for profile in adversarial_profiles(small_log, 4, 5).values():
        finetuned = victim.poisoned(profile, 1, "finetune")
        assert state_hash(finetuned) == state_hash(victim.poisoned(profile, 2, "full"))
        full = victim.engine(lists, retrain="full", backend="plain").exposure(profile[None], 3)
        np.testing.assert_array_equal(victim.engine(lists).exposure(profile[None], 4), full)


# -- saving ------------------------------------------------------------------------------------


@every_victim
def test_a_loaded_victim_is_the_saved_one(
    name: str,
    quick_victim: QuickVictim,
    small_log: Interactions,
    make_lists: MakeLists,
    tmp_path: Path,
) -> None:
    victim = quick_victim(name)
    victim.save(tmp_path / "victim.npz")
    loaded = VICTIMS[name].load(tmp_path / "victim.npz", small_log)
    assert state_hash(loaded) == state_hash(victim)
    assert loaded.config == victim.config
    assert loaded.n_new_items == victim.n_new_items
    users = np.arange(small_log.n_users)
    np.testing.assert_array_equal(loaded.recommend(users, 5), victim.recommend(users, 5))
    profiles = random_profiles(small_log, 2, 2, 4)
    lists = make_lists(small_log, [24, 25, 26])
    np.testing.assert_array_equal(
        loaded.engine(lists).exposure(profiles, 4), victim.engine(lists).exposure(profiles, 4)
    )
    for mode in ("finetune", "full"):
        assert state_hash(loaded.poisoned(profiles[0], 4, mode)) == state_hash(
            victim.poisoned(profiles[0], 4, mode)
        )


@every_victim
def test_saving_the_same_victim_twice_gives_the_same_arrays_and_no_other_file(
    name: str, quick_victim: QuickVictim, tmp_path: Path
) -> None:
    for _ in range(2):
        quick_victim(name).save(tmp_path / "victim.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["victim.npz"]


@every_victim
def test_a_victim_of_another_log_is_refused(
    name: str,
    quick_victim: QuickVictim,
    small_log: Interactions,
    checkerboard: Interactions,
    tmp_path: Path,
) -> None:
    quick_victim(name).save(tmp_path / "victim.npz")
    same_size = replace(small_log, item_ids=small_log.item_ids[::-1])
    for other in (checkerboard, same_size):
        with pytest.raises(ArtifactError, match=r"npz was saved with log '[0-9a-f]{64}', not"):
            VICTIMS[name].load(tmp_path / "victim.npz", other)


@every_victim
def test_a_file_of_another_victim_is_refused(
    name: str, quick_victim: QuickVictim, small_log: Interactions, tmp_path: Path
) -> None:
    other = NAMES[NAMES.index(name) - 1]
    quick_victim(other).save(tmp_path / "victim.npz")
    with pytest.raises(ArtifactError, match=f"saved with victim {other!r}, not {name!r}"):
        VICTIMS[name].load(tmp_path / "victim.npz", small_log)


def rewrite(
    path: Path, header: dict[str, object], drop: str = "", replace_by_ones: str = ""
) -> None:
    """Change the header and the arrays of a saved victim."""
    with np.load(path) as archive:
        content = {key: archive[key] for key in archive.files if key != drop}
    merged = {**json.loads(content["header"].tobytes()), **header}
    merged = {key: value for key, value in merged.items() if value is not None}
    content["header"] = np.frombuffer(json.dumps(merged).encode(), dtype=np.uint8)
    if replace_by_ones:
        content[replace_by_ones] = np.ones((2, 2, 2, 2))
    np.savez(path, **content)


@every_victim
@pytest.mark.parametrize(
    "header",
    [
        {"format": 0},
        {"format": None},
        {"config": {"no_such_setting": 1}},
        {"config": None},
        {"config": [1]},
        {"n_new_items": None},
        {"n_new_items": -1},
        {"n_new_items": 10_000},
        {"fit_seed": "x"},
    ],
    ids=str,
)
def test_a_file_with_a_wrong_header_is_refused(
    name: str,
    header: dict[str, object],
    quick_victim: QuickVictim,
    small_log: Interactions,
    tmp_path: Path,
) -> None:
    path = tmp_path / "victim.npz"
    quick_victim(name).save(path)
    rewrite(path, header)
    with pytest.raises(ArtifactError, match=r"victim\.npz"):
        VICTIMS[name].load(path, small_log)


@every_victim
def test_a_file_without_one_of_its_arrays_or_with_a_wrong_one_is_refused(
    name: str, quick_victim: QuickVictim, small_log: Interactions, tmp_path: Path
) -> None:
    path = tmp_path / "victim.npz"
    for array in quick_victim(name).state:
        quick_victim(name).save(path)
        rewrite(path, {}, drop=array)
        with pytest.raises(ArtifactError, match=array):
            VICTIMS[name].load(path, small_log)
        quick_victim(name).save(path)
        rewrite(path, {}, replace_by_ones=array)
        with pytest.raises(ArtifactError, match=array):
            VICTIMS[name].load(path, small_log)


@every_victim
def test_a_damaged_file_is_refused_or_reads_as_it_was(
    name: str, quick_victim: QuickVictim, small_log: Interactions, tmp_path: Path
) -> None:
    path = tmp_path / "victim.npz"
    victim = quick_victim(name)
    victim.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 60):
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            loaded = VICTIMS[name].load(path, small_log)
        except ArtifactError:
            continue
        assert state_hash(loaded) == state_hash(victim)
    for length in rng.integers(0, len(whole), 20):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"victim\.npz"):
            VICTIMS[name].load(path, small_log)


@every_victim
def test_a_missing_file_and_a_pickle_are_refused(
    name: str, small_log: Interactions, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"none\.npz"):
        VICTIMS[name].load(tmp_path / "none.npz", small_log)
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "pickle.npz", header=objects)
    with pytest.raises(ArtifactError, match=r"pickle\.npz"):
        VICTIMS[name].load(tmp_path / "pickle.npz", small_log)


@every_victim
def test_a_full_disk_keeps_the_file_that_was_there(
    name: str, quick_victim: QuickVictim, tmp_path: Path
) -> None:
    path = tmp_path / "victim.npz"
    path.write_bytes(b"precious")
    victim = quick_victim(name)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            victim.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["victim.npz"]
    victim.save(path)
    assert state_hash(VICTIMS[name].load(path, victim.log)) == state_hash(victim)


@every_victim
def test_training_that_is_killed_leaves_an_unfitted_victim_that_can_be_fitted(
    name: str, quick_config: Config, small_log: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = VICTIMS[name](quick_config(name))

    def killed(*args: object) -> None:
        raise KeyboardInterrupt(len(args))

    with monkeypatch.context() as patch:
        patch.setattr(victim, "_fit", killed)
        with pytest.raises(KeyboardInterrupt):
            victim.fit(small_log, np.random.default_rng(1), n_new_items=N_NEW)
    with pytest.raises(StateError, match="call fit"):
        victim.recommend(np.zeros(1, np.int64), 1)
    victim.fit(small_log, np.random.default_rng(1), n_new_items=N_NEW)
    assert victim.recommend(np.zeros(1, np.int64), 1).shape == (1, 1)


# -- wrong use ---------------------------------------------------------------------------------


@every_victim
def test_a_config_survives_the_way_through_a_mapping(name: str, quick_config: Config) -> None:
    victim = VICTIMS[name](quick_config(name))
    assert VICTIMS[name](asdict(victim.config)).config == victim.config
    assert VICTIMS[name](victim.config).config is victim.config
    assert VICTIMS[name]().config == VICTIMS[name].config_class()


@every_victim
def test_an_unknown_setting_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"setting of {name} 'learning_rat'"):
        VICTIMS[name]({"learning_rat": 0.1})


@pytest.mark.parametrize("name", GRADIENT_NAMES)
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", 0.0),
        ("learning_rate", "0.1"),
        ("finetune_learning_rate", -1.0),
        ("embedding_size", 0),
        ("embedding_size", 8.0),
        ("embedding_size", True),
        ("batch_size", 0),
        ("finetune_batch_size", -3),
        ("epochs", -1),
        ("finetune_epochs", None),
        ("reg", -0.1),
        ("finetune_replay", float("nan")),
        ("new_items_as_negatives", 1),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_name_and_value(
    name: str, setting: str, value: object
) -> None:
    with pytest.raises(ArgumentError) as caught:
        VICTIMS[name]({setting: value})
    assert setting in str(caught.value)
    assert repr(value) in str(caught.value)
    with pytest.raises(ArgumentError, match=setting):
        replace(VICTIMS[name].config_class(), **{setting: value})


@every_victim
def test_the_config_of_another_victim_is_refused(name: str) -> None:
    other = NAMES[NAMES.index(name) - 1]
    with pytest.raises(ArgumentError, match=f"config must be a .* for {name}"):
        VICTIMS[name](VICTIMS[other].config_class())


@every_victim
def test_a_victim_that_is_not_fitted_says_so(
    name: str, quick_config: Config, small_log: Interactions, make_lists: MakeLists, tmp_path: Path
) -> None:
    victim = VICTIMS[name](quick_config(name))
    users, items = np.zeros(1, np.int64), np.zeros((1, 1), np.int64)
    calls: list[Callable[[], object]] = [
        lambda: victim.score(users, items),
        lambda: victim.recommend(users, 1),
        lambda: victim.state,
        lambda: victim.poison(items, np.random.default_rng(0)),
        lambda: victim.save(tmp_path / "victim.npz"),
        lambda: victim.exposure(make_lists(small_log, [26])),
        lambda: victim.engine(make_lists(small_log, [26])),
        lambda: victim.engine(make_lists(small_log, [26]), backend="plain"),
    ]
    for call in calls:
        with pytest.raises(StateError, match="call fit"):
            call()
    assert list(tmp_path.iterdir()) == []


@every_victim
def test_a_log_that_cannot_be_fitted_is_refused(
    name: str, quick_config: Config, small_log: Interactions
) -> None:
    victim = VICTIMS[name](quick_config(name))
    rng = np.random.default_rng(0)
    empty = small_log.select(np.zeros(len(small_log), dtype=np.bool_))
    wrong: list[tuple[Interactions, int]] = [
        (empty, 0),
        (small_log, -1),
        (small_log, small_log.n_items),
        (small_log, 20),
    ]
    for log, n_new in wrong:
        with pytest.raises(ArgumentError):
            victim.fit(log, rng, n_new_items=n_new)
    with pytest.raises(ArgumentError, match="rng"):
        victim.fit(small_log, 7)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(StateError):
        victim.recommend(np.zeros(1, np.int64), 1)


@every_victim
@pytest.mark.parametrize(
    ("users", "items"),
    [
        ([30], [[0]]),
        ([-1], [[0]]),
        ([0], [[27]]),
        ([0], [[-1]]),
        ([0, 1], [[0]]),
        ([0], [0]),
        ([0.0], [[0]]),
        ([0], [[0.5]]),
        ([True], [[0]]),
    ],
    ids=str,
)
def test_ids_that_are_not_in_the_log_are_refused(
    name: str, users: list[int], items: list[list[int]], quick_victim: QuickVictim
) -> None:
    with pytest.raises(ArgumentError, match=r"(user|item)_ids must"):
        quick_victim(name).score(np.array(users), np.array(items))


@every_victim
@pytest.mark.parametrize(
    "profiles",
    [
        np.zeros((0, 2, 2), np.int64),
        np.zeros((2, 0), np.int64),
        np.zeros(3, np.int64),
        np.zeros((1, 1, 1, 1), np.int64),
        np.full((2, 2), 27),
        np.full((2, 2), -1),
        np.full((2, 2), np.nan),
        np.full((2, 2), 1.0),
        [["a"]],
    ],
    ids=str,
)
def test_profiles_that_are_no_profiles_are_refused(
    name: str, profiles: NDArray[np.int64], quick_victim: QuickVictim
) -> None:
    with pytest.raises(ArgumentError, match="profiles must"):
        quick_victim(name).poison(profiles, np.random.default_rng(0))


@every_victim
def test_unknown_modes_and_lengths_are_refused(
    name: str, quick_victim: QuickVictim, small_log: Interactions, make_lists: MakeLists
) -> None:
    victim = quick_victim(name)
    lists = make_lists(small_log, [26])
    calls: list[Callable[[], object]] = [
        lambda: victim.recommend(np.zeros(1, np.int64), 0),
        lambda: victim.recommend(np.zeros(1, np.int64), 2.0),  # type: ignore[arg-type]  # wrong
        lambda: victim.engine(lists, retrain="fine"),  # type: ignore[arg-type]  # wrong
        lambda: victim.engine(lists, backend="numba"),  # type: ignore[arg-type]  # wrong
        lambda: victim.poison(np.zeros((1, 1), int), np.random.default_rng(0), retrain=None),  # type: ignore[arg-type]  # wrong
        lambda: victim.poison(np.zeros((1, 1), int), None),  # type: ignore[arg-type]  # wrong
    ]
    for call in calls:
        with pytest.raises(RecAttackError, match=r"(k|retrain|backend|rng) must"):
            call()


@every_victim
def test_lists_of_another_log_are_refused(
    name: str, quick_victim: QuickVictim, checkerboard: Interactions, make_lists: MakeLists
) -> None:
    with pytest.raises(ArgumentError, match="lists must be made for the log"):
        quick_victim(name).engine(make_lists(checkerboard, [3]))


def test_the_registry_is_keyed_by_the_victims_own_names() -> None:
    assert all(victim.name == name for name, victim in VICTIMS.items())
    with pytest.raises(TypeError):
        VICTIMS["Mine"] = VICTIMS["ItemPop"]  # type: ignore[index]  # read-only on purpose


@every_victim
def test_the_docstring_names_the_paper_and_the_differences(name: str) -> None:
    assert "Differs from the paper:" in (VICTIMS[name].__doc__ or "")
