"""Images beyond classification: what becomes of every patch where spans are replaced, and of what is read out of it."""

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from toastlib.approximation.engine import collect_calibration, fit_maps, forward_plans, variants_of
from toastlib.approximation.progress import progress_bar
from toastlib.data.images import Images, ImageSet
from toastlib.data.tokens import Inputs
from toastlib.errors import InputError
from toastlib.evaluation.metrics import paired_difference
from toastlib.models.encoder import Encoder, ReplayBlock
from toastlib.plan import Plan, parse_plans
from toastlib.statistics.collect import split_folds
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import Activations
from toastlib.translators.least_squares import RidgeFit, Sums, fit_ridge


def final_patches(encoder: Encoder, inputs: Inputs, hidden: Tensor | None = None) -> Tensor:
    """The patch tokens that an encoder hands on, behind its final norm: what detection and segmentation heads read.

    Parameters
    ----------
    encoder
        Any encoder of images.
    inputs
        Pixel values, shape (batch, 3, height, width).
    hidden
        The last block's output, shape (batch, tokens, width), where it is at hand; else the encoder runs.

    Returns
    -------
    Tensor
        Shape (batch, patches, width).
    """
    if hidden is None:
        output = encoder.run(encoder.model, inputs)
    else:
        with encoder.block_list([ReplayBlock(hidden, encoder.blocks[0])]):
            output = encoder.run(encoder.model, inputs[:1])
    states = output if isinstance(output, Tensor) else output.last_hidden_state
    return states[:, encoder.special_tokens :]


def pixel_patches(pixel_values: Tensor, count: int) -> Tensor:
    """The pixels under each patch, in the order of the tokens.

    Parameters
    ----------
    pixel_values
        Shape (batch, 3, height, width).
    count
        How many square patches an image has.

    Returns
    -------
    Tensor
        Shape (batch, count, 3 size^2).

    Raises
    ------
    InputError
        If so many squares do not fill the image.
    """
    height, width = pixel_values.shape[2:]
    size = round((height * width / count) ** 0.5)
    if (height // size) * (width // size) != count:
        raise InputError(f"{count} patches do not fill {height} x {width} pixels: pixels are read from square patches.")
    squares = pixel_values.unfold(2, size, size).unfold(3, size, size)  # (batch, 3, rows, columns, size, size)
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def join_patches(patches: Tensor, height: int, width: int) -> Tensor:
    """Pixel values of shape (batch, 3, height, width) from what `pixel_patches` gave; zero where no patch lies."""
    size = round((patches.shape[2] / 3) ** 0.5)
    rows, columns = height // size, width // size
    squares = patches.unflatten(2, (3, size, size)).unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
    joined = patches.new_zeros(len(patches), 3, height, width)
    joined[:, :, : rows * size, : columns * size] = squares.flatten(4).flatten(2, 3)
    return joined


@torch.inference_mode()
def fit_pixel_probe(encoder: Encoder, images: Images, folds: int = 5, batch_size: int = 32) -> RidgeFit:
    """The linear map from each final patch token to the pixels under it: a dense head, in closed form, without labels.

    Parameters
    ----------
    encoder
        The original.
    images
        Training images.
    folds
        The penalty is chosen on held-out images: image i belongs to fold ``i % folds``.
    batch_size
        Images per forward pass.

    Returns
    -------
    RidgeFit
        ``weight`` of shape (width, 3 size^2) and ``bias`` of shape (3 size^2,), float64.

    Raises
    ------
    InputError
        If there are fewer images than folds, or the patches do not fill an image.
    """
    parts: list[Sums] = []
    for part in split_folds(images, folds):
        sums = []
        for inputs, _ in part.batches(batch_size):
            tokens = final_patches(encoder, inputs)
            pixels = pixel_patches(inputs, tokens.shape[1])
            sums.append(Sums.of_rows(tokens.flatten(0, 1), pixels.flatten(0, 1)))
        parts.append(sum(sums[1:], start=sums[0]))
    return fit_ridge(parts, toward="zero")


@torch.inference_mode()
def reconstruct_pixels(encoder: Encoder, read_out: RidgeFit, pixel_values: Tensor) -> Tensor:
    """What a read-out sees in the final patches of an encoder, original or smaller.

    Parameters
    ----------
    encoder
        Any that is as wide as the original.
    read_out
        From `fit_pixel_probe`.
    pixel_values
        Shape (batch, 3, height, width).

    Returns
    -------
    Tensor
        Pixel values of the same shape and dtype.
    """
    read = final_patches(encoder, pixel_values).double() @ read_out.weight + read_out.bias
    return join_patches(read, *pixel_values.shape[2:]).to(pixel_values.dtype)


@torch.inference_mode()
def dense_errors(
    encoder: Encoder,
    dataset: ImageSet,
    plans: str | Plan | Iterable[str | Plan],
    translators: Iterable[str] = ("identity", "linear"),
    calibration_size: int = 500,
    calibration_seed: int = 0,
    batch_size: int = 32,
    moments: Moments | KFoldMoments | Activations | None = None,
    read_out: RidgeFit | None = None,
) -> pd.DataFrame:
    """How far plans lead the final patch tokens from the original's, and what that costs a read-out of pixels.

    Parameters
    ----------
    encoder, dataset
        The original encoder, and images; labels play no part.
    plans, translators
        Each plan is tried with each translator, but for aligned ones: alignment knows one vector of an image.
    calibration_size, calibration_seed
        How many training images the maps are fitted on, and the seed of that draw.
    batch_size
        Images per forward pass.
    moments
        Fit the maps on these instead, see `fit_spans`.
    read_out
        From `fit_pixel_probe`; fitted on the training images if `None`. It is kept as it is for every plan.

    Returns
    -------
    DataFrame
        One row per plan and translator, the original first: ``translator``, ``plan``; ``error``, ``|p - p0|^2`` in
        percent of ``|p0 - mean p0|^2``, with its 95 % interval ``error_low``, ``error_high``; ``explained``, percent of
        the variance of pixels that is read out; and ``lost``, ``lost_low``, ``lost_high``, the points of it that the
        plan costs, paired over test images.

    Raises
    ------
    InputError
        If a name is unknown, a plan does not fit, or the patches do not fill an image.
    """
    plans = [plan.check(len(encoder.blocks)) for plan in parse_plans(plans)]
    variants = variants_of(plans, dict.fromkeys(translators))
    if any(variant.aligned for variant in variants):
        raise InputError("Alignment brings back one vector of an image, not its patches: name the map alone.")
    if moments is None and any(plans):
        images = dataset.train.sample(calibration_size, calibration_seed)
        moments = collect_calibration(encoder, images, plans, {v.translator for v in variants[1:]}, batch_size)
    maps = fit_maps(encoder, variants, moments)
    read_out = read_out or fit_pixel_probe(encoder, dataset.train, batch_size=batch_size)
    moved, misread = torch.empty(2, len(variants), len(dataset.test), dtype=torch.float64)
    sums, done = [], 0
    with progress_bar(len(dataset.test), "patches") as progress:
        for inputs, _ in dataset.test.batches(batch_size):
            batch = forward_plans(
                encoder, inputs, variants, maps, lambda hidden, x: final_patches(encoder, x, hidden).double()
            )
            original, rows = batch[variants[0]], slice(done, done + len(inputs))
            target = pixel_patches(inputs, original.shape[1]).double()
            sums.append(Sums.of_rows(original.flatten(0, 1), target.flatten(0, 1)))
            for number, variant in enumerate(variants):
                read = batch[variant] @ read_out.weight + read_out.bias
                moved[number, rows] = (batch[variant] - original).square().sum((1, 2)).cpu()
                misread[number, rows] = (read - target).square().sum((1, 2)).cpu()
            done += len(inputs)
            progress.update(len(inputs))
    varies = sum(sums[1:], start=sums[0]).centred()
    images = len(dataset.test)  # errors of an image in shares of what its patches, and its pixels, vary on average
    moved, misread = images * moved / varies.gram.trace().cpu(), images * misread / varies.square.cpu()
    nothing = moved[0].numpy()
    rows = [
        (
            *(variant.translator, str(variant.plan), *paired_difference(moved[number].numpy(), nothing)),
            100 * (1 - misread[number].mean().item()),
            *paired_difference(misread[number].numpy(), misread[0].numpy()),
        )
        for number, variant in enumerate(variants)
    ]
    errors, lost = ["error", "error_low", "error_high"], ["lost", "lost_low", "lost_high"]
    return pd.DataFrame(rows, columns=["translator", "plan", *errors, "explained", *lost])
