"""Figures of images: those that a plan gets wrong, and rows of pictures."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from torch import Tensor

from toastlib.data.transforms import Preprocessing
from toastlib.plots.axes import check_columns
from toastlib.plots.style import figure_size


def flipped_images(data: pd.DataFrame, *, pixels: Tensor, count: int = 16, columns: int = 8) -> np.ndarray:
    """Draw images that a plan turns from correct to wrong, each under its true and its predicted class.

    Parameters
    ----------
    data, pixels
        From `Evaluation.flips`; and the test images, `Images.pixels`: uint8, shape (images, 3, height, width).
    count, columns
        Images at most, and images in a row.

    Returns
    -------
    ndarray
        The axes, shape (lines, columns).
    """
    check_columns(data, "image", "true", "predicted")
    shown = data.head(count)
    lines = max(1, -(-len(shown) // columns))
    _, axes = plt.subplots(lines, columns, figsize=figure_size(1.4 * columns, 1.75 * lines), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (image, true, predicted) in zip(axes.flat, shown[["image", "true", "predicted"]].itertuples(index=False)):
        ax.imshow(pixels[image].permute(1, 2, 0).numpy())
        ax.set_title(f"{true}\n→ {predicted}", fontsize="small")
    return axes


def pictures(
    images: Mapping[str, Tensor], *, preprocessing: Preprocessing | None = None, count: int = 10
) -> np.ndarray:
    """Draw several sets of images, or the same images seen in several ways, one row for each.

    Parameters
    ----------
    images
        Name -> images, shape (images, 3, height, width): uint8, or pixel values.
    preprocessing, count
        Preprocessing that made the pixel values, which is undone; images in a row, at most.

    Returns
    -------
    ndarray
        The axes, shape (rows, images in a row).
    """
    count = min(count, *map(len, images.values()))
    size = figure_size(1.15 * count + 1, 1.2 * len(images))
    _, axes = plt.subplots(len(images), count, figsize=size, squeeze=False)
    for (name, row), line in zip(images.items(), axes, strict=True):
        for ax, image in zip(line, row, strict=False):
            shown = image.cpu().permute(1, 2, 0).numpy()
            if preprocessing is not None:
                shown = (shown.astype(float) * preprocessing.std + preprocessing.mean).clip(0, 1)
            ax.imshow(shown)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, horizontalalignment="right", verticalalignment="center")
    return axes
