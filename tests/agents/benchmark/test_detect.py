"""`recattack bench detect`: what is learnt from is never what is tested on; it resumes, skips and reports."""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.attackers import ATTACKERS
from agents.benchmark import detect, detect_cases
from agents.benchmark.archive import pack
from agents.benchmark.detect_cases import (
    KNOWN_FAKES,
    N_CLICK_TARGETS,
    PLANNED,
    RATED_ATTACKS,
    SDLIB,
    LogView,
    kin_of,
    read_plan_file,
    world_of,
)
from agents.benchmark.detect_report import report, summary
from recattack_gym.core import (
    ArgumentError,
    ArtifactError,
    AttackBudget,
    AttackGoal,
    FakeProfiles,
    Interactions,
    KnowledgeError,
    StateError,
    UnknownNameError,
)
from recattack_gym.defenses import SupervisedDetector

QUICK = ("popularity", "degree-sad", "fap")


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    detect.add_arguments(parser)
    return parser.parse_args(words)


def target_of(plan: FakeProfiles) -> int:
    targets = plan.header["target_items"]
    assert isinstance(targets, list)
    (target,) = targets
    return int(target)


def test_halves_share_no_user_no_target_and_no_plan() -> None:
    world = world_of("generated-ratings", 0, 0.05, None)
    train, test = world.halves
    log = detect_cases.log_of("generated-ratings")
    assert train.n_users + test.n_users == log.n_users
    assert len(train) + len(test) == len(log)
    profiles = [tuple(half.items_of(u)) for half in world.halves for u in range(half.n_users)]
    assert sorted(profiles) == sorted(tuple(log.items_of(u)) for u in range(log.n_users))
    learnt = {target_of(plan) for plans in world.training.values() for plan in plans}
    tested = {target_of(plan) for plan in world.testing.values()}
    assert not learnt & tested
    assert len(learnt) == len(tested) == len(RATED_ATTACKS) == len(world.testing)
    hashes = [plan.content_hash for plans in world.training.values() for plan in plans]
    hashes += [plan.content_hash for plan in world.testing.values()]
    assert len(set(hashes)) == len(hashes)


def test_cases_hold_who_they_say() -> None:
    world = world_of("generated-clicks", 0, 0.05, None)
    whole, part = world.training_case(), world.training_case(without=["random"])
    assert int(whole.is_fake.sum()) - int(part.is_fake.sum()) == 2 * len(
        world.training["random"][0].item_ids
    )
    test, told = world.testing_case("middle"), world.told_case("middle")
    plan = world.testing["middle"].item_ids
    assert np.array_equal(
        test.log.item_ids[-plan[:-KNOWN_FAKES].size :], plan[:-KNOWN_FAKES].ravel()
    )
    assert np.array_equal(
        told.log.item_ids[-plan[-KNOWN_FAKES:].size :], plan[-KNOWN_FAKES:].ravel()
    )
    for case, half in ((whole, 0), (part, 0), (told, 0), (test, 1)):
        assert np.array_equal(
            ~case.is_fake, np.arange(case.log.n_users) < world.halves[half].n_users
        )
        genuine = world.halves[half].item_ids
        assert np.array_equal(case.log.item_ids[: len(genuine)], genuine)


class Counter(SupervisedDetector):
    """Remembers from how many fake users it has learnt."""

    name = "counter"

    def _fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> None:
        del log, rng
        self.n_fake = int(is_fake.sum())

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        return np.full(log.n_users, float(self.n_fake))


def test_unseen_attacks_are_not_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of("generated-clicks", 0, 0.05, None)
    monkeypatch.setattr(detect, "DETECTORS", {"counter": Counter})
    monkeypatch.setattr(detect, "_found", lambda found, case: {"n": found.scores(case.log)[0]})
    rows = detect._attack_rows({"detector": "counter", "config": {}}, world, 0)
    assert len(rows) == 2 * len(world.testing)
    for row in rows:
        without = [str(row["attack"])] if row["learnt"] == "unseen" else []
        assert row["n"] == world.training_case(without).is_fake.sum()


def test_archived_plans_are_learnt_from_on_one_victim_and_found_on_another(tmp_path: Path) -> None:
    log, rng = detect_cases.log_of("generated-clicks"), np.random.default_rng(0)
    tested = {}
    for name in detect_cases.ARCHIVED:
        for victim, seed in (("BPR", 0), ("NeuMF", 1)):
            items = rng.integers(log.n_items + N_CLICK_TARGETS, size=(20, 20))
            items[:, 0] = log.n_items
            plan = FakeProfiles(items, header={"attacker": name})
            plan.save(tmp_path / f"steam-{victim}-{name}-{seed}-0123456789abcdef.npz")
            tested[name] = plan.content_hash
    pack(sorted(tmp_path.glob("*.npz")), tmp_path / "plans.zip")
    world = detect_cases._clicked(
        detect_cases.halves_of(log, rng), 0.05, str(tmp_path / "plans.zip"), 0, rng
    )
    targets = [
        set(plans[0].item_ids[plans[0].item_ids >= log.n_items].tolist())
        for plans in world.training.values()
    ]
    targets.append(set(range(log.n_items, log.n_items + N_CLICK_TARGETS)))  # of those to be found
    assert len(set.union(*targets)) == sum(map(len, targets))
    found = {name: world.testing[name].content_hash for name in detect_cases.ARCHIVED}
    assert found == tested


def test_every_attack_in_clicks_that_is_learnt_from_has_targets_of_its_own() -> None:
    world = world_of("generated-clicks", 0, 0.05, None)
    n_original = detect_cases.log_of("generated-clicks").n_items
    used = []
    for plan in [*(plans[0] for plans in world.training.values()), world.testing["popular"]]:
        new = set(plan.item_ids[plan.item_ids >= n_original].tolist())
        assert 0 < len(new) <= N_CLICK_TARGETS
        used.append(new)
    assert len(set.union(*used)) == sum(map(len, used))
    assert set(world.testing) == set(PLANNED)


def test_a_log_alone_answers_no_query_and_has_no_victim() -> None:
    log = detect_cases.log_of("generated-clicks")
    view = LogView(log, AttackGoal(target_items=(0,)), AttackBudget(n_fake_users=2, profile_size=5))
    with pytest.raises(StateError, match="20 poison sets cannot be tried on a log without a platf"):
        ATTACKERS["random-search"]({"n_queries": 20}).plan(view, np.random.default_rng(0))
    for secret in ("victim_name", "victim_config"):
        with pytest.raises(KnowledgeError, match="needs knowledge white_box, this view has gray_b"):
            getattr(view, secret)


def test_attacks_of_one_idea_are_left_out_together() -> None:
    assert kin_of("copy") == {"copy"}
    assert kin_of("poisonrec") == {"poisonrec", "poisonrec-warm"}
    assert kin_of(SDLIB) == {SDLIB, "average"}
    names = [*PLANNED, *detect_cases.ARCHIVED]
    groups = detect.groups_of(names, 5)
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert {len(group) for group in groups} <= {3, 4}
    for group in groups:
        assert all(kin_of(name) & set(names) <= set(group) for name in group)
    assert detect.groups_of(RATED_ATTACKS, len(RATED_ATTACKS)) == [[kind] for kind in RATED_ATTACKS]


def test_plans_are_read_from_an_archive(tmp_path: Path) -> None:
    plan = FakeProfiles(np.array([[1, 2], [3, 4]]), header={"attacker": "poisonrec"})
    name = "steam-BPR-poisonrec-0-0123456789abcdef.npz"
    plan.save(tmp_path / name)
    archive = tmp_path / "plans.zip"
    pack([tmp_path / name], archive)
    found = read_plan_file(str(archive), "steam", "BPR", "poisonrec", 0)
    assert found.content_hash == plan.content_hash
    with pytest.raises(
        ArtifactError, match="must hold a plan of poisonrec against BPR on steam, seed 1"
    ):
        read_plan_file(str(archive), "steam", "BPR", "poisonrec", 1)
    with pytest.raises(ArtifactError, match="must be a readable archive"):
        read_plan_file(str(tmp_path / "none.zip"), "steam", "BPR", "poisonrec", 0)


@pytest.fixture
def sdlib_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a file like SDLib's: 80 genuine users with ratings up to 4, 20 fake ones with one 5 each."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "shilling-filmtrust-averageattack"
    folder.mkdir()
    lines = ["user,item,rating"]
    for user in range(1, 101):
        items = rng.permutation(60)[: rng.integers(12, 20)] + 1
        ratings = rng.integers(1, 9, len(items)) / 2
        if user > 80:
            items[0], ratings[0] = 7, 5.0
        lines += [f"{user},{i},{r}" for i, r in zip(items, ratings, strict=True)]
    labels = ["user,label", *(f"{user},{int(user > 80)}" for user in range(1, 101))]
    for name, text in (("interactions", lines), ("labels", labels)):
        with gzip.open(folder / f"{name}.csv.gz", "wt") as stream:
            stream.write("\n".join(text) + "\n")
    monkeypatch.setenv("RECATTACK_DATA", str(tmp_path))
    detect_cases.sdlib_file.cache_clear()
    world_of.cache_clear()
    return folder


def test_the_rating_that_gives_sdlibs_fake_users_away_is_masked(sdlib_folder: Path) -> None:
    assert sdlib_folder.is_dir()
    log, is_fake = detect_cases.sdlib_file()
    assert (log.n_users, int(is_fake.sum())) == (100, 20)
    assert log.ratings is not None
    assert log.ratings.max() == 4.0
    world = world_of("filmtrust", 0, 0.1, None)
    assert set(world.testing) == {SDLIB}
    case = world.testing_case(SDLIB)
    assert int(case.is_fake.sum()) == 5
    fake = case.log.select(case.is_fake[case.log.user_ids])
    originals = [set(log.items_of(int(u)).tolist()) for u in np.flatnonzero(is_fake)]
    for user in np.flatnonzero(case.is_fake):
        assert set(fake.items_of(int(user)).tolist()) in originals


def test_it_measures_reports_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, page = str(tmp_path / "pieces"), tmp_path / "detect.json"
    words = ("--smoke", "--detectors", *QUICK, "--out", out)
    result = detect.run(arguments(*words, "--write-docs", str(page)))
    assert result["n_pieces"] == result["n_finished"] == 6
    content = json.loads(page.read_text())
    rows = content["rows"]
    assert "--detectors popularity degree-sad fap" in content["command"]
    learnt = {(row["detector"], row["learnt"]) for row in rows}
    assert learnt == {
        ("popularity", "none"), ("degree-sad", "seen"), ("degree-sad", "unseen"),
        ("fap", "seen"), ("fap", "unseen"), ("fap", "told"),
    }  # fmt: skip
    for row in rows:
        for measure in ("auc", "average_precision", "recall_at_1", "precision_at_n"):
            assert 0 <= row[measure] <= 1
        assert row["n_genuine"] == 150
    uniform = [r for r in rows if (r["detector"], r["attack"]) == ("popularity", "random")]
    assert all(
        row["auc"] > 0.9 for row in uniform
    )  # the trivial baseline finds uniform filler items
    detectors = result["detectors"]
    assert isinstance(detectors, dict)
    assert set(detectors) == {f"generated-{k}/{d}" for k in ("ratings", "clicks") for d in QUICK}

    def measured_again(*_: object, **__: object) -> dict[str, object]:
        raise AssertionError("a finished piece was measured again")

    monkeypatch.setattr(detect, "measure", measured_again)
    assert detect.run(arguments(*words))["table"] == result["table"]
    damaged = next(Path(out).glob("*popularity*"))
    damaged.write_text(damaged.read_text()[:40])
    assert detect.run(arguments(*words, "--report-only"))["n_finished"] == 5
    with pytest.raises(AssertionError, match="measured again"):
        detect.run(arguments(*words))


def test_data_that_is_not_here_is_skipped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECATTACK_DATA", str(tmp_path))
    detect_cases.sdlib_file.cache_clear()
    world_of.cache_clear()
    words = ("--datasets", "filmtrust", "--detectors", "popularity", "--seeds", "0")
    result = detect.run(arguments(*words, "--out", str(tmp_path / "pieces")))
    skipped = result["skipped"]
    assert isinstance(skipped, dict)
    assert "shilling-filmtrust-averageattack is not in" in skipped["filmtrust"]
    assert result["n_finished"] == 0
    assert "nothing is measured yet" in str(result["table"])


def row(attack: str, detector: str, learnt: str, auc: float, **more: object) -> dict[str, object]:
    return {
        "dataset": "d", "seed": 0, "attack": attack, "detector": detector, "learnt": learnt,
        "auc": auc, "average_precision": auc / 2, "recall_at_1": auc / 4, "precision_at_n": auc,
        "n_fake": 5, "n_genuine": 20, **more,
    }  # fmt: skip


def test_tables_hold_means_and_the_weakest_attack() -> None:
    rows = [
        row("a", "svm", "seen", 0.9), row("a", "svm", "unseen", 0.8), row("b", "svm", "unseen", 0.4),
        row("a", "svm", "unseen", 0.6, seed=1), row("b", "popularity", "none", 0.5),
    ]  # fmt: skip
    text = report(rows)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if "|" in line
    ]
    assert ["svm", "all other attacks", "0.60", "0.30", "0.15", "b (0.40)"] in lines
    assert ["svm", "all attacks", "0.90", "0.45", "0.23", "a (0.90)"] in lines
    assert ["a", "0.70", "-"] in lines
    assert ["b", "0.40", "0.50"] in lines
    assert summary(rows)["d/svm"]["auc"] == 0.6
    reference = report([row("random", "pca-varselect", "none", 0.5, filler=0.03)])
    assert "| random: paper, PCA-VarSelect |" in reference
    assert "98.4" in reference
    assert "50.0" in reference


def test_mistakes_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown dataset 'ml-100'.*'ml-100k'"):
        detect.run(arguments("--datasets", "ml-100"))
    with pytest.raises(UnknownNameError, match="unknown detector 'smv'"):
        detect.run(arguments("--detectors", "smv"))
    with pytest.raises(ArgumentError, match="--attack-size must lie in"):
        detect.run(arguments("--attack-size", "0"))
    with pytest.raises(ArgumentError, match="--seeds must be a whole number >= 0, got -1"):
        detect.run(arguments("--seeds", "-1"))
