"""The study in one figure: the encoder, the same with blocks dropped, and with maps in their place."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from toastlib.plan import ORIGINAL, Plan
from toastlib.plots.axes import share_texts
from toastlib.plots.style import COLOURS

KEPT, TRACK, LINE, SOFT, INK = "#dfe4ea", "#eef0f3", "#98a2b3", "#667085", "#1d2433"
NAMES, BAR, NUMBER, ROW = 6.0, 4.4, 2.2, 1.6  # room for each, in twelfths of the chain of blocks
DATASETS = {"mnist-mini": "MNIST"}
"""Data set -> its name in the title; another name stands for itself."""


@share_texts
def idea(data: pd.DataFrame, plan: str | Plan, block_count: int, *, ax: Axes | None = None) -> Axes:
    """Draw three encoders as chains of blocks, each with its size and accuracy; the title names data, model and result.

    Parameters
    ----------
    data
        `Evaluation.table` of one head, with rows of the original, and of `plan` with the translators ``"identity"`` and
        ``"linear"``. Seeds are averaged.
    plan, block_count
        Plan that is drawn, and number of blocks of the original.
    $ax
    """
    plan = Plan.parse(plan).check(block_count)
    if ax is None:
        figure, ax = plt.subplots(figsize=(10.4, 3.3), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.2, h_pad=0.2)  # white around it, where the page is dark
    means = data[data["plan"].isin([ORIGINAL, str(plan)])].groupby("translator")[["accuracy", "parameters"]].mean()
    count, maps = len(plan.removed), len(plan)
    names = {
        ORIGINAL: "original",
        "identity": f"{count} block{'s' * (count > 1)} dropped",
        "linear": "one matrix instead" if maps == 1 else f"{maps} matrices instead",
    }
    unit = block_count / 12
    chain = _Chain(ax, plan, block_count, unit)
    for place, (translator, name) in enumerate(names.items()):
        chain.draw(-place * ROW * unit, translator, name, *means.loc[translator])
    ax.set(xlim=(-NAMES * unit, (12 + BAR + NUMBER) * unit), ylim=(-2.85 * ROW * unit, 0.5 * ROW * unit))
    ax.set(aspect="equal")
    ax.set_axis_off()
    first = data.iloc[0]
    counted = f"{first['model']}, {first['images']} test images of {first['dataset']}, {first['head']} head"
    note = f"{counted}. W is fitted in closed form on training images; nothing is trained for it."
    ax.text((0.06 - NAMES) * unit, -2.75 * ROW * unit, note, color=SOFT, fontsize=9)
    original, dropped, mapped = means["accuracy"].loc[list(names)]
    parameters = means.loc[ORIGINAL, "parameters"]
    fitted = "one fitted matrix" if maps == 1 else f"{maps} fitted matrices"
    where = f"{DATASETS.get(first['dataset'], first['dataset'])} ({first['model']}, {_millions(parameters)})"
    finding = (
        f"On {where}:\n"
        f"without {count} of {block_count} blocks, accuracy is {dropped:.1f} % instead of {original:.1f} %.\n"
        f"With {fitted} in their place, it is {mapped:.1f} %."
    )
    ax.set_title(finding, loc="left", fontsize=15, fontweight="bold", color=INK)
    return ax


def _millions(parameters: float) -> str:
    return f"{parameters / 1e6:.3g} M parameters"


@dataclass(frozen=True)
class _Chain:
    """Blocks of one encoder in a line, 1 apart; `unit` is their distance if they were twelve."""

    ax: Axes
    plan: Plan
    block_count: int
    unit: float

    def draw(self, y: float, translator: str, name: str, accuracy: float, parameters: float) -> None:
        """One line of the figure: name and size, blocks, and the accuracy as a bar on a track of 100 %."""
        colour, unit = COLOURS[translator], self.unit
        bold = {"color": colour, "fontweight": "bold"}
        left = (0.06 - NAMES) * unit
        self.ax.text(left, y + 0.05 * unit, name, va="bottom", fontsize=12, **bold)
        self.ax.text(left, y - 0.1 * unit, _millions(parameters), color=SOFT, fontsize=9, va="top")
        self._blocks(y, translator, colour)
        start, length = self.block_count + 0.2 * unit, BAR * unit
        self.ax.barh(y, length, 0.5 * unit, start, color=TRACK)
        self.ax.barh(y, length * accuracy / 100, 0.5 * unit, start, color=colour)
        self.ax.text(start + length + 0.2 * unit, y, f"{accuracy:.1f} %", va="center_baseline", fontsize=14, **bold)

    def _blocks(self, y: float, translator: str, colour: str) -> None:
        removed = () if translator == ORIGINAL else self.plan.removed
        self.ax.plot([-0.8, self.block_count - 0.2], [y, y], color=LINE, linewidth=1.5, zorder=0)
        for block in range(self.block_count):
            if block not in removed:
                self._box(block, y, str(block), INK, facecolor=KEPT, edgecolor="none")
            elif translator == "identity":
                self._box(block, y, "×", colour, facecolor="white", edgecolor=colour, linestyle=(0, (2, 2)))
        for span in self.plan if translator == "linear" else ():
            ends = [span.start + 0.38, span.end + 0.62]
            self.ax.plot(ends, [y, y], color=colour, linewidth=3, solid_capstyle="butt", zorder=0)
            self._box(sum(ends) / 2, y, "W", "white", facecolor=colour, edgecolor="none")

    def _box(self, middle: float, y: float, text: str, ink: str, **style) -> None:
        shape = "round,pad=0,rounding_size=0.16"
        self.ax.add_patch(FancyBboxPatch((middle - 0.38, y - 0.38), 0.76, 0.76, boxstyle=shape, **style))
        points = (18 if text == "×" else 11) / self.unit
        self.ax.text(middle, y - 0.02, text, color=ink, fontsize=points, ha="center", va="center")
