"""Maps of items: whose embeddings they show, what is counted on them, and that files are enough."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agents import cli
from agents.benchmark import embeddings, plans
from agents.benchmark.embeddings import (
    agent_features,
    agent_panel,
    item_embeddings,
    on_a_plane,
    panel_of,
)
from agents.benchmark.embeddings_figure import Panel
from agents.benchmark.plans import Plan
from agents.poisonrec.agent import PoisonRec, PoisonRecConfig
from recattack_gym.core import ArgumentError, ArtifactError, FakeProfiles
from recattack_gym.core.interactions import Interactions
from recattack_gym.simulator import PlatformSimulator, PlatformView
from recattack_gym.victims import VICTIMS
from recattack_gym.victims.ngcf import NGCF
from tests.agents.benchmark.test_transfer import CELL

LOG = Interactions(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 2, 0]), n_users=3, n_items=4)
BLOBS = np.concatenate(
    [np.random.default_rng(0).normal(centre, 0.1, (15, 4)) for centre in (-3, 3)]
).astype(np.float32)
"""Two clouds of 15 points, far from each other."""


def panel(clicks: list[int], popularity: list[int], targets: list[int]) -> Panel:
    n = len(clicks)
    return Panel(
        victim="BPR",
        embeddings_of="BPR",
        points=np.zeros((n, 2)),
        popularity=np.array(popularity),
        target_items=np.array(targets),
        clicks=np.array(clicks),
    )


@pytest.mark.parametrize("name", ["PMF", "BPR", "MF-BCE", "PamaCF", "PMF-APR", "MF-BCE-APR"])
def test_embeddings_are_what_the_victim_scores_by(name: str) -> None:
    victim = VICTIMS[name]({"epochs": 2}).fit(LOG, np.random.default_rng(0))
    items = item_embeddings(victim)
    assert items.shape[0] == LOG.n_items
    users, bias = victim._state()["users"], victim._state()["bias"]
    scores = victim.score(np.arange(3), np.tile(np.arange(4), (3, 1)))
    np.testing.assert_allclose(scores, users @ items.T + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["NeuMF", "GRU4Rec", "NGCF"])
def test_there_is_one_embedding_per_item_and_none_of_users(name: str) -> None:
    victim = VICTIMS[name]({"epochs": 9}).fit(LOG, np.random.default_rng(0))
    items = item_embeddings(victim)
    assert len(items) == LOG.n_items
    assert np.isfinite(items).all()
    if isinstance(victim, NGCF):  # its first layer enters the score as it is
        np.testing.assert_array_equal(items, victim._propagated()[: LOG.n_items, : items.shape[1]])


def test_victims_without_embeddings_are_drawn_on_those_of_pmf() -> None:
    assert {name: embeddings.source_of(name) for name in VICTIMS} == {
        "ItemPop": "PMF",
        "CoVisitation": "PMF",
        "CoVisitation-Counts": "PMF",
        "AutoRec": "PMF",
        "ALS": "PMF",
        "NuclearNorm": "PMF",
        "ItemKNN": "PMF",
        "LTS-MF": "PMF",
        "MultiVAE": "PMF",
        **{name: name for name in ("PMF", "BPR", "NeuMF", "GRU4Rec", "NGCF", "LightGCN", "MF-BCE")},
        **{name: name for name in ("APR", "PamaCF", "PMF-APR", "LightGCN-APR", "LightGCN-PamaCF")},
        **{name: name for name in ("MF-BCE-APR", "MF-BCE-PamaCF", "PMF-PamaCF")},
    }
    victim = VICTIMS["ItemPop"]().fit(LOG, np.random.default_rng(0))
    with pytest.raises(
        ArgumentError, match=r"victim must be one with item embeddings .* got ItemPop"
    ):
        item_embeddings(victim)


def test_a_map_keeps_neighbours_and_is_the_same_for_the_same_seed() -> None:
    first = on_a_plane(BLOBS, 5.0, 1)
    assert first.shape == (30, 2)
    np.testing.assert_array_equal(first, on_a_plane(BLOBS, 5.0, 1))
    distances = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    assert ((nearest < 15) == (np.arange(30) < 15)).all()
    with pytest.raises(ArgumentError, match="--perplexity must be below the number of items, 30"):
        on_a_plane(BLOBS, 30.0, 1)


def test_the_seed_and_the_perplexity_reach_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    class Recorder:
        """Takes t-SNE's place: from PCA, few rows give the same map whatever the seed."""

        def __init__(self, **settings: object) -> None:
            given.update(settings)

        def fit_transform(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
            return rows[:, :2]

    monkeypatch.setattr(embeddings, "tsne_class", lambda: Recorder)
    on_a_plane(BLOBS, 5.0, 2**40 + 7)  # scikit-learn takes 32 bits
    assert given["random_state"] == 7
    assert given["perplexity"] == 5.0


def test_the_numbers_of_a_panel_are_those_counted_by_hand() -> None:
    # items 0 to 4 are original and ranked 2, 0, 1, 3.5, 3.5 of 0 to 4 by popularity (3 and 4 tie)
    one = panel([2, 0, 1, 1, 0, 4, 0], [5, 9, 7, 1, 1, 0, 0], [5, 6])
    assert one.summary() == {
        "victim": "BPR",
        "map_of": "BPR",
        "target_share": 0.5,
        "n_targets_clicked": 1,
        "n_others_clicked": 3,
        "popularity_rank": pytest.approx((2 * 2 + 1 + 3.5) / 4 / 4, abs=1e-4),
    }
    assert panel([0, 0, 3], [1, 2, 0], [2]).summary()["popularity_rank"] is None


def test_clicks_are_counted_per_item_on_the_map_that_they_were_planned_for() -> None:
    header = {"n_items": 3, "target_items": [2]}
    plan = Plan(CELL, FakeProfiles(np.array([[0, 2], [2, 2]]), header=header))
    found = {"x": [1, 2, 3], "y": [4, 5, 6], "popularity": [7, 8, 0], "target_items": [2]}
    drawn = panel_of(plan, found)
    assert drawn.clicks.tolist() == [1, 0, 3]
    assert drawn.points.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert (drawn.victim, drawn.embeddings_of) == ("CoVisitation", "PMF")
    with pytest.raises(ArgumentError, match="target_items of the plan must be"):
        panel_of(plan, {**found, "target_items": [1]})


def test_the_features_of_a_checkpoint_are_the_agents(tmp_path: Path) -> None:
    simulator = PlatformSimulator("synthetic", "ItemPop")
    view = PlatformView(simulator)
    agent = PoisonRec(view, PoisonRecConfig(n_queries=8, batch_size=4, n_examples=4), seed=0)
    path = tmp_path / "itempop" / "checkpoint.npz"
    agent.save(path)
    with pytest.raises(ArtifactError, match="must be the checkpoint of a trained PoisonRec"):
        agent_features(path)
    agent.step()
    agent.save(path)
    features, profiles = agent_features(path)
    np.testing.assert_array_equal(features, agent.policy.item_features)
    np.testing.assert_array_equal(profiles.item_ids, agent.plan().item_ids)
    with pytest.raises(
        ArgumentError, match="--perplexity must be below"
    ):  # t-SNE of all would be slow
        agent_panel(path, ("synthetic", None, "ItemPop", 0), 1e6)
    simulator_file = tmp_path / "other.npz"
    profiles.save(simulator_file)
    with pytest.raises(ArtifactError, match="must be the checkpoint of a trained PoisonRec"):
        agent_features(simulator_file)


def test_a_picture_is_drawn_again_from_files_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []

    def quick(items: NDArray[np.float32], *_: object) -> object:
        sizes.append(items.shape)
        return np.asarray(items[:, :2], dtype=np.float64)

    monkeypatch.setattr(embeddings, "on_a_plane", quick)
    words = [
        *("bench", "embeddings", "--json", "--datasets", "synthetic", "--protocol", "none"),
        *("--victims", "ItemPop", "PMF", "--attackers", "popular", "--seeds", "0", "--draws", "1"),
        *("--out", str(tmp_path / "cells"), "--figures", str(tmp_path / "figures")),
    ]
    assert cli.main([*words, "--report-only"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["panels"] == []
    assert cli.main(words) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(x["victim"], x["map_of"]) for x in first["panels"]] == [
        ("ItemPop", "PMF"),
        ("PMF", "PMF"),
    ]
    assert len(sizes) == 1  # both are drawn on the same map
    (picture,) = map(Path, first["figures"])
    assert picture.name == "embeddings-synthetic-popular-0.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("files are enough")

    monkeypatch.setattr(plans, "run_cells", not_again)
    monkeypatch.setattr(embeddings, "platform_simulator", not_again)
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["panels"] == first["panels"]
    assert picture.exists()


def test_scikit_learn_is_asked_for_by_name_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    out = tmp_path / "cells"
    assert cli.main(["bench", "embeddings", "--smoke", "--out", str(out)]) == 2
    assert "pip install 'recattack-gym[plots]'" in capsys.readouterr().err
    assert not out.exists()
