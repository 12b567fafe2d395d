"""Output alignment: one closed-form map of the final features, fitted without labels, that the head takes in.

An encoder with blocks removed puts its features elsewhere than the original, and a head that was trained on the
original's looks in the wrong place. A ridge towards the identity, from the approximated features to the original's on
the calibration images, brings them back. Folded into the head's weights it costs nothing.
"""

import torch
from torch import Tensor

from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.plan import Span
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.linear import Ridge


def fit_alignment(features: Tensor, target: Tensor, folds: int = 5) -> Ridge:
    """The map from features to features, its penalty chosen on held-out images.

    Parameters
    ----------
    features, target
        Of the approximated and of the original encoder for the same images, shape (images, width).
    folds
        Image i is held out with fold ``i % folds``.

    Returns
    -------
    Ridge
        Fitted: its ``module()`` is an `nn.Linear`.

    Raises
    ------
    InputError
        If there are fewer images than folds.
    """
    if len(features) < folds:
        raise InputError(f"{len(features)} calibration images are too few to align features on {folds} folds.")
    pairs = [(0, 0), (0, 1)]
    parts = tuple(Moments.of({0: features[k::folds], 1: target[k::folds]}, pairs) for k in range(folds))
    return Ridge().fit(KFoldMoments({"image": parts}, special_tokens=0), Span(0, 1))


@torch.inference_mode()
def align_features(smaller: Encoder, original: Encoder, images, batch_size: int = 32) -> Ridge:
    """The map that takes the features of a smaller encoder to the original's, fitted on images without labels.

    Parameters
    ----------
    smaller, original
        From `approximate`, and what it was made from.
    images
        Calibration images: `Images`, or anything with ``batches(size)``.
    batch_size
        Images per forward pass.

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
