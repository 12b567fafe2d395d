"""Feature alignment: one ridge behind the last block, fitted without labels, that brings features back.

With blocks removed, features lie elsewhere than a head that was trained on the original's expects. The ridge, towards
the identity, maps them to the original's on the calibration images. Folded into the head's weights it costs nothing.
"""

import torch
from torch import Tensor

from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.plan import Span
from toastlib.statistics.moments import KFoldMoments
from toastlib.translators.linear import Ridge


def fit_alignment(features: Tensor, target: Tensor, folds: int = 5) -> Ridge:
    """The map from features to a target, shape (images, width) each; image i is held out with fold ``i % folds``.

    Raises
    ------
    InputError
        If there are fewer images than folds.
    """
    if len(features) < folds:
        raise InputError(f"{len(features)} calibration images are too few to align features on {folds} folds.")
    pairs = [(0, 0), (0, 1)]
    moments = KFoldMoments.of({0: features[:, None], 1: target[:, None]}, pairs, folds=folds)
    return Ridge().fit_moments(moments, Span(0, 1))


@torch.inference_mode()
def align_features(smaller: Encoder, original: Encoder, images, *, batch_size: int = 32) -> Ridge:
    """The map that takes the features of a smaller encoder to the original's, fitted on images without labels.

    Parameters
    ----------
    smaller, original
        From `approximate`, and what it was made from.
    images, batch_size
        Calibration images: `Images`, or anything with ``batches(size)``; and images per forward pass.

    Returns
    -------
    Ridge
        Fitted: ``weight_`` of shape (width, width) and ``bias_`` of shape (width,), float64.

    Raises
    ------
    InputError
        If there are fewer images than folds, five.
    """
    features, target = (
        torch.cat([encoder(pixel_values) for pixel_values, _ in images.batches(batch_size)])
        for encoder in (smaller, original)
    )
    return fit_alignment(features, target)
