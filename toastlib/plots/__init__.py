"""Every figure of the study: tidy frames in, matplotlib Axes out."""

from toastlib.plots.accuracy import accuracy_against_parameters, accuracy_by_plan, accuracy_lost, ours_against_theirs
from toastlib.plots.blocks import last_block, metric_against_accuracy, pca, similarity
from toastlib.plots.style import set_style

__all__ = [
    "accuracy_against_parameters",
    "accuracy_by_plan",
    "accuracy_lost",
    "last_block",
    "metric_against_accuracy",
    "ours_against_theirs",
    "pca",
    "set_style",
    "similarity",
]
