"""Pictures of an attack in progress: as text, as an image, in a window."""

import sys
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArgumentError, StateError
from recattack_gym.envs.episodes import Episodes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RENDER_MODES = ("human", "rgb_array", "ansi")
RENDER_FPS = 4
FIGURE_INCHES, FIGURE_DPI = (9.6, 4.8), 100
MOST_BARS = 20
"""Target items that the chart shows; of more, those that gained or lost most."""

Frame = str | NDArray[np.uint8] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything that a picture of one attack shows."""

    title: str
    """Victim and dataset (unless the onlooker may not know them), goal and progress."""
    clicks: NDArray[np.int64]
    """Shape `(N, T)`; `len(item_names)` where nothing has been clicked yet."""
    item_names: list[str]
    """One per item of the catalogue."""
    item_popularity: NDArray[np.int64]
    """Shape `(n_items,)`."""
    target_items: NDArray[np.int64]
    """Shape `(n_targets,)`."""
    clean_rec_num: int
    """RecNum without any attack."""
    clean_exposure: NDArray[np.int64] | None
    """Shape `(n_targets,)`, or `None` if the onlooker may not know it."""
    exposure: NDArray[np.int64] | None
    """Shape `(n_targets,)`, or `None` while the attack goes on."""
    max_rec_num: int
    """The largest RecNum there can be."""

    @classmethod
    def of(cls, episodes: Episodes, copy: int, *, is_black_box: bool = False) -> Self:
        """Look at one copy.

        Args:
            episodes: The attacks.
            copy: Which of them.
            is_black_box: Whether to show only what a black-box attacker knows: its own clicks, which
                items are popular and which are targets, and what `info` says.

        Raises:
            StateError: If it was never reset.
        """
        n_clicks = int(episodes.n_clicks[copy])
        if n_clicks < 0:
            raise StateError("render was called before the first reset: call reset() first")
        simulator, goal = episodes.simulator, episodes.goal
        dataset = simulator.dataset
        source = "a log of one's own" if dataset is None else dataset.name
        platform = "black box" if is_black_box else f"{simulator.victim.name} on {source}"
        targets = "target item" if len(goal.target_items) == 1 else "target items"
        return cls(
            title=f"{platform}: {goal.direction} {len(goal.target_items)} "
            f"{targets}, {n_clicks} of {episodes.budget.n_clicks} clicks",
            clicks=episodes.clicks[copy],
            item_names=[f"item {item}" for item in range(episodes.n_items)]
            if is_black_box
            else _item_names(episodes),
            item_popularity=simulator.item_popularity,
            target_items=simulator.target_items,
            clean_rec_num=episodes.clean_rec_num,
            clean_exposure=None if is_black_box else simulator.clean_exposure,
            exposure=episodes.info()["target_exposure"][copy] if episodes.is_over[copy] else None,
            max_rec_num=episodes.max_rec_num,
        )

    @property
    def result(self) -> str:
        """RecNum in one line."""
        clean = f"clean {self.clean_rec_num}, at most {self.max_rec_num}"
        return (
            f"RecNum: {clean}"
            if self.exposure is None
            else f"RecNum {self.exposure.sum()}: {clean}"
        )


def _item_names(episodes: Episodes) -> list[str]:
    simulator = episodes.simulator
    n_original = simulator.n_original_items
    named = None if simulator.dataset is None else simulator.dataset.item_names
    names = list(named) if named else [f"item {item}" for item in range(n_original)]
    return names + [f"target {number}" for number in range(simulator.n_items - n_original)]


def as_text(scene: Scene) -> str:
    """Write who clicked what, then the exposure of every target; targets are marked with a star."""
    targets = set(scene.target_items.tolist())
    lines = [scene.title]
    for fake_user, row in enumerate(scene.clicks.tolist()):
        runs = [
            f"{'*' if item in targets else ''}{scene.item_names[item]}"
            + (f" x{count}" if count > 1 else "")
            for item, count in ((item, len(list(run))) for item, run in groupby(row))
            if item < len(scene.item_names)
        ]
        if runs:
            lines.append(f"  fake user {fake_user}: {', '.join(runs)}")
    known = [("clean", scene.clean_exposure), ("poisoned", scene.exposure)]
    shown = {name: exposure for name, exposure in known if exposure is not None}
    if shown:
        lines.append(f"shown to users, {' -> '.join(shown)}")
        for position, item in enumerate(scene.target_items.tolist()):
            counts = " -> ".join(str(exposure[position]) for exposure in shown.values())
            lines.append(f"  *{scene.item_names[item]}: {counts}")
    lines.append(scene.result)
    return "\n".join(lines)


def draw(scene: Scene, figure: "Figure") -> None:
    """Draw the clicks and the exposure of the targets onto a figure, which is cleared first."""
    figure.clear()
    left, right = figure.subplots(1, 2)
    figure.suptitle(scene.title)
    _draw_clicks(scene, left)
    _draw_exposure(scene, right)


def _draw_clicks(scene: Scene, axes: "Axes") -> None:
    """Draw one square per click: darker blue is more popular, red is a target, grey is unspent."""
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    n_items = len(scene.item_names)
    weight = np.log1p(np.append(scene.item_popularity, 0))
    shade = 0.25 + 0.75 * weight / max(float(weight.max()), 1.0)
    colours = mpl.colormaps["Blues"](shade[scene.clicks])[..., :3]
    colours[np.isin(scene.clicks, scene.target_items)] = (0.84, 0.15, 0.16)
    colours[scene.clicks == n_items] = (0.93, 0.93, 0.93)
    axes.imshow(colours, aspect="auto", interpolation="nearest")
    axes.set(title="clicks: red = target, blue = popularity", xlabel="click", ylabel="fake user")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def _draw_exposure(scene: Scene, axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    nothing = np.zeros_like(scene.target_items)
    before = nothing if scene.clean_exposure is None else scene.clean_exposure
    after = before if scene.exposure is None else scene.exposure
    shown = np.sort(np.argsort(-np.abs(after - before), kind="stable")[:MOST_BARS])
    rows = np.arange(len(shown))
    known = (
        (scene.clean_exposure, "clean", "#7f7f7f"),
        (scene.exposure, "poisoned", "#d62728"),
    )
    drawn = [(counts, label, colour) for counts, label, colour in known if counts is not None]
    for position, (counts, label, colour) in enumerate(drawn):
        offset = 0.4 * (position - (len(drawn) - 1) / 2)
        bars = axes.barh(rows + offset, counts[shown], 0.4, label=label, color=colour)
        axes.bar_label(bars)
    names = [scene.item_names[item] for item in scene.target_items[shown]]
    axes.set_yticks(rows, [name if len(name) <= 16 else f"{name[:15]}…" for name in names])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(
        0, max(1, int(after.max()), int(before.max())) * 1.5
    )  # the legend beside the bars
    axes.set(title=scene.result, xlabel="users who are shown the target")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.containers:
        axes.legend(loc="upper right")


def as_image(scene: Scene) -> NDArray[np.uint8]:
    """Return the drawing as an image, shape `(480, 960, 3)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=FIGURE_INCHES, dpi=FIGURE_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    draw(scene, figure)
    canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib has no annotation here
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]  # nor here
    return pixels[..., :3].copy()


class Screen:
    """Where an environment is shown.

    Args:
        render_mode: One of `RENDER_MODES`, or `None` for nowhere.

    Raises:
        ArgumentError: If there is no such mode.
    """

    def __init__(self, render_mode: str | None) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ArgumentError(
                f"render_mode must be None or one of {', '.join(map(repr, RENDER_MODES))}, "
                f"got {render_mode!r}"
            )
        self._mode = render_mode
        self._window: Figure | None = None
        self._is_black_box = False

    def hide_platform(self) -> None:
        """Show from here on only what a black-box attacker may know."""
        self._is_black_box = True

    def show(self, episodes: Episodes, copy: int) -> Frame:
        """Show one copy; text and images are returned, a window returns nothing.

        Raises:
            StateError: If there is no render mode, or the copy was never reset.
        """
        if self._mode is None:
            raise StateError(
                "render needs a render_mode: make the environment with render_mode='ansi', "
                "'rgb_array' or 'human'"
            )
        scene = Scene.of(episodes, copy, is_black_box=self._is_black_box)
        if self._mode == "ansi":
            return as_text(scene)
        if self._mode == "rgb_array":
            return as_image(scene)
        if not self._draws_window():
            sys.stdout.write(as_text(scene) + "\n")
        elif self._window is not None:
            import matplotlib.pyplot as plt

            draw(scene, self._window)
            plt.pause(0.001)
        return None

    def follow(self, episodes: Episodes, copy: int) -> None:
        """Keep the window up to date: after a reset, a finished fake user, the end of the attack.

        Without a display, only the end of an attack is written to the terminal.
        """
        if self._mode != "human":
            return
        is_milestone = episodes.n_clicks[copy] % episodes.budget.profile_size == 0
        if episodes.is_over[copy] or (is_milestone and self._draws_window()):
            self.show(episodes, copy)

    def _draws_window(self) -> bool:
        """Open the window if it is not open; tell whether there is a display to draw it on."""
        import matplotlib.pyplot as plt

        if self._window is None:
            self._window = plt.figure(figsize=FIGURE_INCHES, dpi=FIGURE_DPI, layout="constrained")
        return self._window.canvas.required_interactive_framework is not None

    def close(self) -> None:
        """Close the window, if there is one; closing again does nothing."""
        if self._window is not None:
            import matplotlib.pyplot as plt

            plt.close(self._window)
            self._window = None

    def __getstate__(self) -> dict[str, Any]:  # Any: the values of __dict__
        return {**self.__dict__, "_window": None}
