"""The study in one figure: the encoder, the same with blocks dropped, and with maps in their place."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from toastlib.plan import ORIGINAL, Plan
from toastlib.plots.axes import share_texts
from toastlib.plots.style import COLOURS

KEPT, TRACK, LINE, SOFT, INK = "#dfe4ea", "#eef0f3", "#98a2b3", "#667085", "#1d2433"
NAMES, BAR, NUMBER, ROW = 6.0, 4.4, 2.2, 1.6  # room for each, in twelfths of the chain of blocks
DATASETS = {"mnist-mini": "MNIST"}  # data set -> its name in the title; another name stands for itself


@share_texts
def idea(data: pd.DataFrame, plan: str | Plan, block_count: int, *, ax: Axes | None = None) -> Axes:
    """Draw three encoders as chains of blocks, each with its size and accuracy; the title names data, model and result.

    Parameters
    ----------
    data
        `Evaluation.table` of one head: the original, and `plan` with ``"identity"`` and ``"linear"``, mean over seeds.
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
    unit = block_count / 12  # the distance of blocks if they were twelve; it is 1
    left, start, length = (0.06 - NAMES) * unit, block_count + 0.2 * unit, BAR * unit
    for place, (translator, name) in enumerate(names.items()):
        y, (accuracy, parameters) = -place * ROW * unit, means.loc[translator]
        bold = {"color": COLOURS[translator], "fontweight": "bold"}
        ax.text(left, y + 0.05 * unit, name, va="bottom", fontsize=12, **bold)
        ax.text(left, y - 0.1 * unit, _millions(parameters), color=SOFT, fontsize=9, va="top")
        _draw_blocks(ax, y, plan, block_count, translator)
        ax.barh(y, length, 0.5 * unit, start, color=TRACK)
        ax.barh(y, length * accuracy / 100, 0.5 * unit, start, color=COLOURS[translator])
        ax.text(start + length + 0.2 * unit, y, f"{accuracy:.1f} %", va="center_baseline", fontsize=14, **bold)
    ax.set(
        xlim=(-NAMES * unit, (12 + BAR + NUMBER) * unit), ylim=(-2.85 * ROW * unit, 0.5 * ROW * unit), aspect="equal"
    )
    ax.set_axis_off()
    first = data.iloc[0]
    counted = f"{first['model']}, {first['images']} test images of {first['dataset']}, {first['head']} head"
    note = f"{counted}. W is fitted in closed form on training images; nothing is trained for it."
    ax.text(left, -2.75 * ROW * unit, note, color=SOFT, fontsize=9)
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


def _draw_blocks(ax: Axes, y: float, plan: Plan, block_count: int, translator: str) -> None:
    """One encoder's blocks in a line, 1 apart."""
    colour, removed = COLOURS[translator], () if translator == ORIGINAL else plan.removed

    def box(middle: float, text: str, ink: str, **style) -> None:
        shape = "round,pad=0,rounding_size=0.16"
        ax.add_patch(FancyBboxPatch((middle - 0.38, y - 0.38), 0.76, 0.76, boxstyle=shape, **style))
        points = (18 if text == "×" else 11) * 12 / block_count
        ax.text(middle, y - 0.02, text, color=ink, fontsize=points, ha="center", va="center")

    ax.plot([-0.8, block_count - 0.2], [y, y], color=LINE, linewidth=1.5, zorder=0)
    for block in range(block_count):
        if block not in removed:
            box(block, str(block), INK, facecolor=KEPT, edgecolor="none")
        elif translator == "identity":
            box(block, "×", colour, facecolor="white", edgecolor=colour, linestyle=(0, (2, 2)))
    for span in plan if translator == "linear" else ():
        ends = [span.start + 0.38, span.end + 0.62]
        ax.plot(ends, [y, y], color=colour, linewidth=3, solid_capstyle="butt", zorder=0)
        box(sum(ends) / 2, "W", "white", facecolor=colour, edgecolor="none")
