"""The study in one picture: the encoder, the same with blocks dropped, and with a map in their place."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from toastlib.plan import ORIGINAL, Plan
from toastlib.plots.style import COLOURS

KEPT, TRACK, LINE, SOFT, INK = "#dfe4ea", "#eef0f3", "#98a2b3", "#667085", "#1d2433"
NAMES, BAR, NUMBER, ROW = 6.0, 4.4, 2.2, 1.6  # room for each, in twelfths of the chain of blocks


def idea(frame: pd.DataFrame, plan: str | Plan, block_count: int, ax: Axes | None = None) -> Axes:
    """Three encoders drawn as chains of blocks; beside each its size, and how much it classifies rightly.

    Parameters
    ----------
    frame
        From `sweep`, one head only, with rows of the original, and of `plan` with the translators
        ``"identity"`` and ``"linear"``. Seeds are averaged.
    plan
        Which blocks are removed.
    block_count
        How many the original has.
    ax
        Where to draw; a figure of its own if `None`.

    Returns
    -------
    Axes
        Without a frame. The title says what was found, in the frame's numbers.
    """
    plan = Plan.parse(plan).check(block_count)
    if ax is None:
        figure, ax = plt.subplots(figsize=(10.4, 3.05), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.2, h_pad=0.2)  # white around it, where the page is dark
    means = frame[frame["plan"].isin([ORIGINAL, str(plan)])].groupby("translator")[["accuracy", "parameters"]].mean()
    unit, count = block_count / 12, len(plan.removed)
    names = {
        ORIGINAL: "original",
        "identity": f"{count} block{'s' * (count > 1)} dropped",
        "linear": f"{'one matrix' if len(plan) == 1 else f'{len(plan)} matrices'} instead",
    }
    for place, (translator, name) in enumerate(names.items()):
        row = _Row(ax, -place * ROW * unit, unit, COLOURS[translator])
        row.name(name, means.loc[translator, "parameters"])
        row.chain(plan, block_count, translator)
        row.bar(means.loc[translator, "accuracy"], block_count)
    ax.set(xlim=(-NAMES * unit, (12 + BAR + NUMBER) * unit), ylim=(-2.85 * ROW * unit, 0.5 * ROW * unit))
    ax.set(aspect="equal")
    ax.set_axis_off()
    ax.text((0.06 - NAMES) * unit, -2.75 * ROW * unit, _circumstances(frame), color=SOFT, fontsize=9)
    ax.set_title(_finding(means["accuracy"], plan, block_count), loc="left", fontsize=15, fontweight="bold", color=INK)
    return ax


@dataclass(frozen=True)
class _Row:
    """One encoder at height `y`, its blocks 1 apart; `unit` is what they would be apart if they were twelve."""

    ax: Axes
    y: float
    unit: float
    colour: str

    def name(self, text: str, parameters: float) -> None:
        left = (0.06 - NAMES) * self.unit
        style = {"color": self.colour, "fontsize": 12, "fontweight": "bold"}
        self.ax.text(left, self.y + 0.05 * self.unit, text, va="bottom", **style)
        size = f"{parameters / 1e6:.3g} M parameters"
        self.ax.text(left, self.y - 0.1 * self.unit, size, color=SOFT, fontsize=9, va="top")

    def chain(self, plan: Plan, block_count: int, translator: str) -> None:
        """Blocks on the line that the states travel along; what is dropped is crossed out, what stands in is filled."""
        gone = () if translator == ORIGINAL else plan.removed
        self.ax.plot([-0.8, block_count - 0.2], [self.y] * 2, color=LINE, linewidth=1.5, zorder=0)
        for block in range(block_count):
            if block not in gone:
                self._box(block, str(block), INK, facecolor=KEPT, edgecolor="none")
            elif translator == "identity":
                self._box(block, "×", self.colour, facecolor="white", edgecolor=self.colour, linestyle=(0, (2, 2)))
        for span in plan if translator == "linear" else ():
            ends = [span.start + 0.38, span.end + 0.62]
            self.ax.plot(ends, [self.y] * 2, color=self.colour, linewidth=3, solid_capstyle="butt", zorder=0)
            self._box(sum(ends) / 2, "W", "white", facecolor=self.colour, edgecolor="none")

    def bar(self, accuracy: float, block_count: int) -> None:
        """The accuracy, as a bar on a track of 100 %, and in figures."""
        left, length, height = block_count + 0.2 * self.unit, BAR * self.unit, 0.5 * self.unit
        self.ax.barh(self.y, length, height, left, color=TRACK)
        self.ax.barh(self.y, length * accuracy / 100, height, left, color=self.colour)
        style = {"color": self.colour, "fontsize": 14, "fontweight": "bold"}
        self.ax.text(left + length + 0.2 * self.unit, self.y, f"{accuracy:.1f} %", va="center_baseline", **style)

    def _box(self, middle: float, text: str, ink: str, size: float = 0.76, **style) -> None:
        corner = (middle - size / 2, self.y - size / 2)
        self.ax.add_patch(FancyBboxPatch(corner, size, size, boxstyle="round,pad=0,rounding_size=0.16", **style))
        points = (18 if text == "×" else 11) / self.unit
        self.ax.text(middle, self.y - 0.02, text, color=ink, fontsize=points, ha="center", va="center")


def _finding(accuracy: pd.Series, plan: Plan, block_count: int) -> str:
    original, dropped, mapped = accuracy.loc[[ORIGINAL, "identity", "linear"]]
    maps = "one fitted matrix" if len(plan) == 1 else f"{len(plan)} fitted matrices"
    fewer = f"Without {len(plan.removed)} of {block_count} blocks"
    return (
        f"{fewer}, accuracy is {dropped:.1f} % instead of {original:.1f} %.\n"
        f"With {maps} in their place, it is {mapped:.1f} %."
    )


def _circumstances(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    counted = f"{first['model']}, {first['images']} test images of {first['dataset']}, {first['head']} head"
    return f"{counted}. W is fitted in closed form on training images; nothing is trained for it."
