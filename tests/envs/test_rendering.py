"""What the pictures say: texts are compared, images are looked at for what must be in them."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recattack_gym.core import Interactions, StateError
from recattack_gym.datasets import from_interactions
from recattack_gym.envs import BlackBox, PoisonEnv, PoisonVectorEnv, rendering

Arguments = dict[str, Any]
RED = (214, 38, 41)
GREY = (237, 237, 237)


def play(env: PoisonEnv, *item_ids: int) -> PoisonEnv:
    env.reset()
    for item in item_ids:
        env.step(item)
    return env


def has_colour(image: object, colour: tuple[int, int, int]) -> bool:
    """Tell whether a whole square, and not only the edge of a letter, has this colour."""
    assert isinstance(image, np.ndarray)
    return int((np.abs(image.astype(int) - colour).max(axis=-1) <= 2).sum()) > 1000


def test_text_says_who_clicked_what_and_who_is_shown_what(on_ladder: Arguments) -> None:
    env = play(PoisonEnv(**on_ladder, render_mode="ansi"), 6, 6, 6, 1)
    assert env.render() == (
        "ItemPop on a log of one's own: push 1 target item, 4 of 4 clicks\n"
        "  fake user 0: *target 0 x2\n"
        "  fake user 1: *target 0, item 1\n"
        "shown to users, clean -> poisoned\n"
        "  *target 0: 0 -> 3\n"
        "RecNum 3: clean 0, at most 4"
    )


def test_text_of_an_attack_in_progress_tells_no_result(on_ladder: Arguments) -> None:
    env = play(PoisonEnv(**on_ladder, render_mode="ansi"), 0)
    assert env.render() == (
        "ItemPop on a log of one's own: push 1 target item, 1 of 4 clicks\n"
        "  fake user 0: item 0\n"
        "shown to users, clean\n"
        "  *target 0: 0\n"
        "RecNum: clean 0, at most 4"
    )


def test_text_uses_the_names_of_the_dataset(on_ladder: Arguments, ladder: Interactions) -> None:
    games = ("Portal", "Braid", "Doom", "Myst", "Rez", "Zork")
    dataset = from_interactions(ladder, name="games", item_names=games)
    arguments = {**on_ladder, "dataset": dataset, "targets": [4], "render_mode": "ansi"}
    text = play(PoisonEnv(**arguments), 4, 0).render()
    assert isinstance(text, str)
    assert "ItemPop on games: push 1 target item" in text
    assert "fake user 0: *Rez, Portal" in text
    assert "*Rez: " in text


def test_a_black_box_shows_what_its_attacker_knows_and_no_more(
    on_ladder: Arguments, ladder: Interactions
) -> None:
    games = ("Portal", "Braid", "Doom", "Myst", "Rez", "Zork")
    dataset = from_interactions(ladder, name="games", item_names=games)
    arguments = {**on_ladder, "dataset": dataset, "targets": [3, 4], "render_mode": "ansi"}
    inside = PoisonEnv(**arguments)
    box = BlackBox(gym.wrappers.OrderEnforcing(inside))
    box.reset()
    box.step(np.int64(0))
    assert box.render() == (
        "black box: push 2 target items, 1 of 4 clicks\n"
        "  fake user 0: item 0\n"
        "RecNum: clean 0, at most 4"
    )
    for item in (4, 4, 4):
        *_, info = box.step(np.int64(item))
    shown = info["target_exposure"]
    assert box.render() == (
        "black box: push 2 target items, 4 of 4 clicks\n"
        "  fake user 0: item 0, *item 4\n"
        "  fake user 1: *item 4 x2\n"
        "shown to users, poisoned\n"
        f"  *item 3: {shown[0]}\n"
        f"  *item 4: {shown[1]}\n"
        f"RecNum {info['rec_num']}: clean {info['clean_rec_num']}, at most {info['max_rec_num']}"
    )
    assert inside.render() == copy.deepcopy(inside).render() == box.render()


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("mode", ["rgb_array", "human"])
def test_pictures_of_a_black_box_do_not_name_the_victim(
    mode: str, on_ladder: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes: list[rendering.Scene] = []
    draw = rendering.draw

    def watch(scene: rendering.Scene, figure: Figure) -> None:
        scenes.append(scene)
        draw(scene, figure)

    monkeypatch.setattr(rendering, "draw", watch)
    box = BlackBox(PoisonEnv(**on_ladder, render_mode=mode))
    box.reset()
    for item in (6, 6, 6, 6):
        box.step(np.int64(item))
        box.render()
    assert len(scenes) >= 4
    for scene in scenes:
        assert "ItemPop" not in scene.title
        assert scene.clean_exposure is None
    assert scenes[-1].exposure is not None
    assert scenes[-1].exposure.tolist() == [4]
    box.close()


def test_the_image_shows_target_clicks_in_red_and_unspent_ones_in_grey(
    on_ladder: Arguments,
) -> None:
    env = PoisonEnv(**on_ladder, render_mode="rgb_array")
    image = play(env, 0, 0).render()
    assert isinstance(image, np.ndarray)
    assert image.shape == (480, 960, 3)
    assert image.dtype == np.uint8
    assert (has_colour(image, RED), has_colour(image, GREY)) == (False, True)
    done = play(env, 0, 0, 0, 6).render()
    assert (has_colour(done, RED), has_colour(done, GREY)) == (True, False)


def test_the_image_has_room_for_the_targets_that_changed_most(
    small: Callable[..., Arguments],
) -> None:
    arguments = small("ItemPop", targets=30, n_candidates=None, render_mode="rgb_array")
    image = play(PoisonEnv(victim="ItemPop", **arguments), *[40] * 6).render()
    assert has_colour(image, RED)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Pretend that there is a display, and collect how often the window is brought up to date."""
    updates: list[float] = []
    plt.switch_backend("agg")
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "pretended")
    monkeypatch.setattr(plt, "pause", updates.append)
    yield updates
    plt.close("all")


def test_a_window_follows_every_finished_fake_user(
    on_ladder: Arguments, drawn: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    env = play(PoisonEnv(**on_ladder, render_mode="human"), 6, 6, 6, 6)
    assert len(drawn) == 3  # the reset and two fake users
    assert len(plt.get_fignums()) == 1
    env.close()
    env.close()
    assert not plt.get_fignums()
    assert capsys.readouterr().out == ""


def test_without_a_display_the_result_is_written_to_the_terminal(
    on_ladder: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    plt.switch_backend("agg")
    env = play(PoisonEnv(**on_ladder, render_mode="human"), 6, 6, 6, 6)
    assert capsys.readouterr().out.endswith("RecNum 4: clean 0, at most 4\n")
    env.close()


def test_a_vector_environment_gives_one_picture_per_copy(on_ladder: Arguments) -> None:
    envs = PoisonVectorEnv(num_envs=2, render_mode="ansi", **on_ladder)
    envs.reset()
    envs.step(np.array([6, 2]))
    texts = envs.render()
    assert texts is not None
    assert ["fake user 0: *target 0" in texts[0], "fake user 0: item 2" in texts[1]] == [True, True]


def test_the_window_of_a_vector_environment_shows_the_first_copy(
    on_ladder: Arguments, drawn: list[float]
) -> None:
    envs = PoisonVectorEnv(num_envs=2, render_mode="human", **on_ladder)
    envs.reset()
    assert envs.render() is None
    assert len(drawn) == 2
    envs.close()
    assert not plt.get_fignums()


def test_rendering_needs_a_mode_and_a_reset(on_ladder: Arguments) -> None:
    with pytest.raises(StateError, match="render needs a render_mode: make the environment with"):
        PoisonEnv(**on_ladder).render()
    with pytest.raises(StateError, match=r"before the first reset: call reset\(\) first"):
        PoisonEnv(**on_ladder, render_mode="ansi").render()
