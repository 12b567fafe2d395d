"""Feature alignment: one ridge behind the last block, fitted without labels, that brings features back.

With blocks removed, features lie elsewhere than a head that was trained on the original's expects. The ridge, towards
the identity, maps them to the original's on the calibration images. Folded into the head's weights it costs nothing.
"""

import torch
from torch import Tensor

from toastlib.errors import InputError
from toastlib.models.batch import BatchSize
from toastlib.models.encoder import Encoder
from toastlib.translators.linear import Ridge


def fit_alignment(features: Tensor, target: Tensor) -> Ridge:
    """The map from features to a target, shape (images, width) each, on five folds: `InputError` for fewer images."""
    if len(features) < 5:
        raise InputError(f"{len(features)} calibration images are too few to align features on 5 folds.")
    return Ridge().fit(features, target)


@torch.inference_mode()
def align_features(smaller: Encoder, original: Encoder, images, *, batch_size: BatchSize = "auto") -> Ridge:
    """The map that takes the features of a smaller encoder to the original's, fitted on images without labels.

    `smaller` is from `approximate`; calibration images are `Images`, or anything with ``batches(size)``, five at least.
    The map has a ``weight_`` of shape (width, width) and a ``bias_`` of shape (width,), float64.
    """
    return fit_alignment(*(encoder.encode(images, batch_size) for encoder in (smaller, original)))
