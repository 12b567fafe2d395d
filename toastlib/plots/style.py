"""One look for all figures: colours and markers of names, texts of axes."""

from collections.abc import Hashable, Sequence

import matplotlib.pyplot as plt
import seaborn as sns

from toastlib.errors import InputError, unknown
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
    "per-position": "#6699cc",
}
"""The palette of Okabe and Ito; after the original Tol's muted palette."""
MARKERS = dict(zip(COLOURS, "Xo^sPDv*p8<>dhH", strict=True))
for name in [*COLOURS]:  # with feature alignment: the colour of the map, and letters as a marker
    if name != ORIGINAL:
        COLOURS[name + ALIGN], MARKERS[name + ALIGN] = COLOURS[name], f"${name[:2]}$"
OTHER_COLOURS = (
    *("#332288", "#cc6677", "#117733", "#88ccee", "#ddcc77"),
    *("#882255", "#44aa99", "#999933", "#aa4499", "#000000"),
)
"""Tol's muted palette and black, for classes and other names."""
OTHER_MARKERS = "oXsPD^v<>p"

LABELS = {
    "accuracy": "accuracy (%)",
    "calibration_size": "calibration images",
    "correlation": "rank correlation",
    "delta": "accuracy, change (points)",
    "gain": "accuracy gained (points)",
    "gflops": "GFLOPs per image",
    "lost": "accuracy lost (points)",
    "ours": "our accuracy (%)",
    "predicted": "predicted cost",
    "relative": "throughput (original = 1)",
    "removed": "removed blocks",
    "removed_parameters": "removed parameters",
    "residual": "residual (share of |h[e]|²)",
    "right_to_wrong": "images that turn wrong",
    "theirs": "published accuracy (%)",
    "wrong_to_right": "images that turn right",
}
"""Column -> text of its axis, with the unit; another column stands for itself."""
DIFFERENCES = ("correlation", "delta", "gain", "lead", "lost")  # columns whose axis has a line at zero
NAMES = {
    "mse": "MSE",
    "cosine": "cosine similarity",
    "block-influence": "Block Influence",
    "angular": "angular distance",
    "cka": "linear CKA",
    "debiased-cka": "linear CKA, debiased",
    "rsa": "RSA",
    "procrustes": "Procrustes distance",
    "fit": "post-fit error",
    "held-out": "post-fit error, held-out",
    "by-token": "post-fit error, held-out, by token",
    "features": "run: features",
    "divergence": "run: answers",
    "loss": "run: answers and labels",
}
"""Metrics and criteria in words; another name stands for itself."""


def looks(names: Sequence[Hashable]) -> dict[Hashable, dict[str, str]]:
    """Colour and marker of every name: a translator has its own, numbers are graded, others take what is free."""
    others = [name for name in names if name not in COLOURS]
    known = [name for name in names if name in COLOURS]
    colours = [colour for colour in OTHER_COLOURS if colour not in {COLOURS[name] for name in known}]
    markers = [marker for marker in OTHER_MARKERS if marker not in {MARKERS[name] for name in known}]
    if all(isinstance(name, int | float) for name in others):
        colours = sns.color_palette("viridis_r", len(others) + 1).as_hex()[1:]
    found = {name: (COLOURS.get(name), MARKERS.get(name)) for name in names}
    for k, name in enumerate(others):  # with more names than colours, pairs of colour and marker differ
        found[name] = (colours[k % len(colours)], markers[(k + k // len(colours)) % len(markers)])
    return {name: {"color": colour, "marker": marker} for name, (colour, marker) in found.items()}


WIDTHS = {"column": ("paper", 3.25, 8), "page": ("paper", 6.75, 8), "slide": ("talk", 10, 18)}
"""Where a figure goes -> seaborn's context, width in inches, size of the text in points."""
TEXT = 12  # points; the sizes of figures are made for it


def set_style(width: str | float | None = None) -> None:
    """Set the look of every figure that follows.

    Parameters
    ----------
    width
        ``"column"`` or ``"page"`` of a paper with two columns (3.25 and 6.75 inches wide, text of 8 points), or
        ``"slide"`` (10 inches, 18 points); a number: inches, with text of 8 points. `None`: each figure has the width
        that suits it, and text of 12 points.

    Raises
    ------
    InputError
        If it is none of these.
    """
    is_number = isinstance(width, int | float)
    if width not in WIDTHS and width is not None and not (is_number and 0 < width <= 100):
        refused = InputError(f"A width of {width} inches cannot be drawn.")
        raise refused if is_number else unknown("width", width, WIDTHS)
    other = ("notebook", 0, TEXT) if width is None else ("paper", width, 8)
    context, inches, points = WIDTHS.get(width, other)
    scale = points / sns.plotting_context(context)["font.size"]
    sns.set_theme(context=context, style="ticks", palette=list(COLOURS.values())[:6], font_scale=scale)
    plt.rcParams.update(
        {
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 90,
            "figure.figsize": (inches, 0.65 * inches) if inches else plt.rcParamsDefault["figure.figsize"],
            "legend.frameon": False,
            "pdf.fonttype": 42,  # TrueType, which can be searched and edited; venues refuse type 3
            "ps.fonttype": 42,
            "savefig.dpi": 200,
            "svg.hashsalt": "toastlib",  # the same figure is the same file
        }
    )


def figure_size(width: float, height: float) -> tuple[float, float]:
    """The size in inches that suits a figure; or the width that `set_style` was given, and a height for its text."""
    given = plt.rcParams["figure.figsize"][0]
    if given == plt.rcParamsDefault["figure.figsize"][0]:
        return width, height
    return given, height * plt.rcParams["font.size"] / TEXT
