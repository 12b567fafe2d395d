"""The study's look: one palette, told apart by the colour-blind and in grey, one set of markers and names."""

import matplotlib.pyplot as plt
import seaborn as sns

from toastlib.plan import ORIGINAL
from toastlib.translators.base import ALIGN

COLOURS = {
    "identity": "#d55e00",
    "linear": "#0072b2",
    "mlp": "#009e73",
    "res-mlp": "#cc79a7",
    "warm-start-mlp": "#e69f00",
    ORIGINAL: "#000000",
    "affine": "#56b4e9",
    "ridge": "#332288",
    "separate": "#882255",
    "context": "#44aa99",
    "low-rank": "#117733",
    "orthogonal": "#999933",
    "diagonal": "#aa4499",
    "scalar": "#888888",
}
"""Okabe and Ito's palette, and after the original Tol's muted one."""
MARKERS = {
    "identity": "X",
    "linear": "o",
    "mlp": "^",
    "res-mlp": "s",
    "warm-start-mlp": "P",
    ORIGINAL: "D",
    "affine": "v",
    "ridge": "*",
    "separate": "p",
    "context": "8",
    "low-rank": "<",
    "orthogonal": ">",
    "diagonal": "d",
    "scalar": "h",
}
for name in [*COLOURS]:  # aligned features: the colour of their map, and letters for a marker
    if name != ORIGINAL:
        COLOURS[name + ALIGN], MARKERS[name + ALIGN] = COLOURS[name], f"${name[:2]}$"
CLASS_COLOURS = (
    *("#332288", "#88ccee", "#44aa99", "#117733", "#999933"),
    *("#ddcc77", "#cc6677", "#882255", "#aa4499", "#000000"),
)
"""Tol's muted palette and black: ten classes."""
CLASS_MARKERS = ("o", "X", "s", "P", "D", "^", "v", "<", ">", "p")
METRIC_NAMES = {"mse": "MSE", "cosine": "cosine similarity", "cka": "linear CKA"}


def set_style() -> None:
    """The study's look, for every figure that follows."""
    sns.set_theme(context="notebook", style="ticks", palette=list(COLOURS.values())[:6])
    plt.rcParams.update(
        {
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 90,
            "legend.frameon": False,
            "savefig.dpi": 200,
            "svg.hashsalt": "toastlib",  # the same figure is the same file
        }
    )
