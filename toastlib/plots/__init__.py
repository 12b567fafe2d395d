"""Figures: a tidy frame in, matplotlib Axes out; and tables for LaTeX."""

from toastlib.plots.idea import idea
from toastlib.plots.images import flipped_images, pictures
from toastlib.plots.matrices import matrix, similarity, to_latex
from toastlib.plots.points import accuracy_by_plan, curve, intervals, panels, scatter
from toastlib.plots.style import set_style

__all__ = [
    "accuracy_by_plan",
    "curve",
    "flipped_images",
    "idea",
    "intervals",
    "matrix",
    "panels",
    "pictures",
    "scatter",
    "set_style",
    "similarity",
    "to_latex",
]
