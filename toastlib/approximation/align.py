"""Output realignment: one closed-form map of the final features, fitted without labels, that the head takes in.

An encoder with blocks removed puts its features elsewhere than the original, and a head that was trained on the
original's looks in the wrong place. A ridge towards the identity, from the approximated features to the original's on
the calibration images, brings them back. Folded into the head's weights it costs nothing.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from toastlib.errors import InputError
from toastlib.evaluation.probe import Probe
from toastlib.models.encoder import Encoder
from toastlib.plan import Span
from toastlib.statistics.moments import FoldedMoments, Moments
from toastlib.translators.linear import Ridge

Head = TypeVar("Head", Probe, nn.Linear)


def fit_realignment(features: Tensor, target: Tensor, folds: int = 5) -> Ridge:
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
        raise InputError(f"{len(features)} calibration images are too few to realign features on {folds} folds.")
    pairs = [(0, 0), (0, 1)]
    parts = tuple(Moments.of({0: features[k::folds], 1: target[k::folds]}, pairs) for k in range(folds))
    return Ridge().fit(FoldedMoments({"image": parts}, special_tokens=0), Span(0, 1))


@torch.inference_mode()
def realign(smaller: Encoder, original: Encoder, images, batch_size: int = 32) -> Ridge:
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
    return fit_realignment(features, target)


def fold_into(head: Head, realignment: Ridge) -> Head:
    """A head that gives for features what the given one gives for realigned features.

    Parameters
    ----------
    head
        A fitted `Probe`, or an `nn.Linear`.
    realignment
        From `realign` or `fit_realignment`.

    Returns
    -------
    Probe or Linear
        A new head of the same kind, device and dtype.
    """
    folded = copy.deepcopy(head)
    probe = isinstance(head, Probe)
    old = head.weight_ if probe else head.weight.detach().mT  # (..., width, classes)
    weight, bias = (part.to(old.device, torch.float64) for part in (realignment.weight_, realignment.bias_))
    new, shift = (weight @ old.double()).to(old.dtype), (bias @ old.double()).to(old.dtype)
    if probe:
        folded.weight_, folded.bias_ = new, head.bias_ + shift[..., None, :]
    else:
        folded.weight.data = new.mT.contiguous()
        folded.bias = nn.Parameter(shift if head.bias is None else head.bias.detach() + shift, requires_grad=False)
    return folded
