"""The study's look: one palette, told apart by the colour-blind and in grey, one set of markers and names."""

import matplotlib.pyplot as plt
import seaborn as sns

from toastlib.plan import ORIGINAL

COLOURS = {
    "identity": "#d55e00",
    "linear": "#0072b2",
    "mlp": "#009e73",
    "res-mlp": "#cc79a7",
    "fair-mlp": "#e69f00",
    ORIGINAL: "#000000",
}
"""Okabe and Ito's palette."""
MARKERS = {"identity": "X", "linear": "o", "mlp": "^", "res-mlp": "s", "fair-mlp": "P", ORIGINAL: "D"}
METRIC_NAMES = {"mse": "MSE", "cosine": "cosine similarity", "cka": "linear CKA"}


def set_style() -> None:
    """The study's look, for every figure that follows."""
    sns.set_theme(context="notebook", style="ticks", palette=list(COLOURS.values()))
    plt.rcParams.update(
        {
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 90,
            "legend.frameon": False,
            "savefig.dpi": 200,
        }
    )
