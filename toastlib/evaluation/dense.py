"""Dense features: how far plans move the final patch tokens, and what a linear probe of the pixels loses."""

from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import fold, unfold

from toastlib.approximation.engine import THE_ORIGINAL, forward_plans, visible_batches
from toastlib.approximation.prepare import Prepared, Sources, name_translators, prepare
from toastlib.data.images import Images, ImageSet
from toastlib.data.tokens import Inputs
from toastlib.errors import InputError, need_set
from toastlib.evaluation.metrics import paired_difference
from toastlib.models.batch import BatchSize, batch_of
from toastlib.models.encoder import Encoder
from toastlib.plan import Plan
from toastlib.statistics.collect import split_folds
from toastlib.translators.base import split_align
from toastlib.translators.least_squares import RidgeFit, Sums, fit_ridge


def final_patches(encoder: Encoder, inputs: Inputs, hidden: Tensor | None = None) -> Tensor:
    """The patch tokens after the final norm, which detection and segmentation heads read.

    Parameters
    ----------
    encoder, inputs
        An encoder of images; pixel values, shape (batch, 3, height, width).
    hidden
        The last block's output, shape (batch, tokens, width); the encoder runs if `None`.

    Returns
    -------
    Tensor
        Shape (batch, patches, width).
    """
    if hidden is None:
        output = encoder.run(encoder.model, inputs)
    else:
        with encoder.replayed(inputs, hidden):
            output = encoder.run(encoder.model, inputs[:1])
    states = output if isinstance(output, Tensor) else output.last_hidden_state
    return states[:, encoder.special_tokens :]


def pixel_patches(pixel_values: Tensor, count: int) -> Tensor:
    """The pixels under each of `count` square patches, in the order of the tokens; shape (batch, count, 3 size^2)."""
    height, width = pixel_values.shape[2:]
    size = round((height * width / count) ** 0.5)
    if (height // size) * (width // size) != count:
        raise InputError(f"{count} patches do not fill {height} x {width} pixels: pixels are read from square patches.")
    return unfold(pixel_values, size, stride=size).mT


def join_patches(patches: Tensor, height: int, width: int) -> Tensor:
    """Pixel values of shape (batch, 3, height, width) from what `pixel_patches` gave; zero where no patch lies."""
    size = round((patches.shape[2] / 3) ** 0.5)
    return fold(patches.mT, (height, width), size, stride=size)


@torch.inference_mode()
def fit_pixel_probe(encoder: Encoder, images: Images, *, batch_size: BatchSize = "auto") -> RidgeFit:
    """Fit a linear map from each final patch token to the pixels under it: a dense head in closed form, without labels.

    Parameters
    ----------
    encoder, images, batch_size
        The original, training images, and their number per forward pass. Five folds of them choose the penalty.

    Returns
    -------
    RidgeFit
        ``weight``, (width, 3 size^2), and ``bias``, (3 size^2,), float64. An `InputError` for fewer than five images.
    """
    folds = []
    for part in split_folds(images, 5):
        sums = []
        for inputs, _ in part.batches(batch_of(encoder, batch_size)):
            tokens = final_patches(encoder, inputs)
            sums.append(Sums.of_rows(tokens.flatten(0, 1), pixel_patches(inputs, tokens.shape[1]).flatten(0, 1)))
        folds.append(reduce(add, sums))
    return fit_ridge(folds, shrink_to="zero")


@torch.inference_mode()
def reconstruct_pixels(encoder: Encoder, pixel_probe: RidgeFit, pixel_values: Tensor) -> Tensor:
    """Reconstruct pixels from the final patch tokens of an encoder, original or smaller.

    Parameters
    ----------
    encoder, pixel_probe, pixel_values
        An encoder as wide as the original, the fit of `fit_pixel_probe`, and images: shape (batch, 3, height, width).

    Returns
    -------
    Tensor
        Pixel values of the same shape and dtype.
    """
    read = final_patches(encoder, pixel_values).double() @ pixel_probe.weight + pixel_probe.bias
    return join_patches(read, *pixel_values.shape[2:]).to(pixel_values.dtype)


@torch.inference_mode()
def evaluate_dense(
    encoder: Encoder,
    data: ImageSet,
    plans: str | Plan | Iterable[str | Plan],
    *,
    translators: Sources = ("identity", "linear"),
    calibration: Any = 500,
    pixel_probe: RidgeFit | None = None,
    batch_size: BatchSize = "auto",
) -> pd.DataFrame:
    """Measure how far plans move the final patch tokens, and what that costs a linear probe of the pixels.

    Parameters
    ----------
    encoder, data
        The original encoder, and images; labels are not used.
    plans, translators, calibration, batch_size
        As for `evaluate_plans`; feature alignment, which maps one vector per image, is refused.
    pixel_probe
        From `fit_pixel_probe`; fitted on the training images if `None`. It is the same for every plan.

    Returns
    -------
    DataFrame
        One row per variant, the original first: ``translator``, ``calibration`` where there are several sets, ``plan``;
        ``error``, ``|p - p0|^2`` in percent of ``|p0 - mean p0|^2``, with its 95 % interval ``error_low``,
        ``error_high``; ``explained``, percent of the variance of the pixels; ``lost``, ``lost_low``, ``lost_high``,
        points of explained variance that the plan costs, paired over test images.

    Raises
    ------
    InputError
        If a name is unknown, a plan does not fit, or the patches do not fill an image.
    """
    need_set(data)
    translators = name_translators(translators)
    if any(split_align(name)[1] for name in translators):
        raise InputError("Feature alignment maps one vector of an image, not its patches: name the map alone.")
    ready = prepare(encoder, data, plans, translators=translators, calibration=calibration, batch_size=batch_size)
    pixel_probe = pixel_probe or fit_pixel_probe(encoder, data.train, batch_size=batch_size)
    moved, misread, sums = _patch_errors(encoder, data.test, ready, pixel_probe, batch_size)
    varies, images = sums.centred(), len(data.test)
    moved = (images * moved / varies.gram.trace().cpu()).numpy()  # shares of the variance in an average image
    misread = (images * misread / varies.square.cpu()).numpy()
    rows = []
    for names, error, left in zip(ready.names, moved, misread, strict=True):
        lost = paired_difference(left, misread[0])
        rows.append((*names.values(), *paired_difference(error, moved[0]), 100 * (1 - left.mean()), *lost))
    errors, lost = ["error", "error_low", "error_high"], ["lost", "lost_low", "lost_high"]
    return pd.DataFrame(rows, columns=[*ready.names[0], *errors, "explained", *lost])


def _patch_errors(
    encoder: Encoder, images: Images, ready: Prepared, pixel_probe: RidgeFit, batch_size: int
) -> tuple[Tensor, Tensor, Sums]:
    """Squared errors of patches and of pixels, shape (variants, images) each, and the sums of both for the original."""
    moved, misread = torch.empty(2, len(ready.variants), len(images), dtype=torch.float64)
    sums, done = [], 0
    for inputs in visible_batches(images, batch_of(encoder, batch_size), "patches"):
        patches = forward_plans(encoder, inputs, ready.variants, ready.maps, lambda h, x: final_patches(encoder, x, h))
        original, rows = patches[THE_ORIGINAL].double(), slice(done, done + len(inputs))
        target = pixel_patches(inputs, original.shape[1]).double()
        sums.append(Sums.of_rows(original.flatten(0, 1), target.flatten(0, 1)))
        for number, variant in enumerate(ready.variants):
            pixels = patches[variant].double() @ pixel_probe.weight + pixel_probe.bias
            moved[number, rows] = (patches[variant] - original).square().sum((1, 2)).cpu()
            misread[number, rows] = (pixels - target).square().sum((1, 2)).cpu()
        done += len(inputs)
    return moved, misread, reduce(add, sums)
