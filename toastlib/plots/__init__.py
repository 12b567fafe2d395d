"""Every figure of the study: tidy frames in, matplotlib Axes out."""

from toastlib.plots.accuracy import accuracy_against_parameters, accuracy_by_plan, accuracy_lost, ours_against_theirs
from toastlib.plots.blocks import last_block, metric_against_accuracy, pca, similarity
from toastlib.plots.calibration import sample_size, sample_size_residual
from toastlib.plots.classes import class_delta, confusion_delta, flip_counts, flipped_images
from toastlib.plots.dense import pictures
from toastlib.plots.idea import idea
from toastlib.plots.selection import choices_against_chance, predicted_against_lost, rank_correlations
from toastlib.plots.style import set_style
from toastlib.plots.sublayers import lost_against_saved, unknown_by_part
from toastlib.plots.text import bits_lost
from toastlib.plots.trade_off import accuracy_against_cost
from toastlib.plots.transfer import source_by_target
from toastlib.plots.translators import accuracy_against_map_cost, lost_by_translator, residuals
from toastlib.plots.zero_shot import accuracy_by_block

__all__ = [
    "accuracy_against_cost",
    "accuracy_against_map_cost",
    "accuracy_against_parameters",
    "accuracy_by_block",
    "accuracy_by_plan",
    "accuracy_lost",
    "bits_lost",
    "choices_against_chance",
    "class_delta",
    "confusion_delta",
    "flip_counts",
    "flipped_images",
    "idea",
    "last_block",
    "lost_against_saved",
    "lost_by_translator",
    "metric_against_accuracy",
    "ours_against_theirs",
    "pca",
    "pictures",
    "predicted_against_lost",
    "rank_correlations",
    "residuals",
    "sample_size",
    "sample_size_residual",
    "set_style",
    "similarity",
    "source_by_target",
    "unknown_by_part",
]
