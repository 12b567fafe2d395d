"""Figures of patches: what is read out of them, as pictures."""

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from toastlib.data.transforms import Preprocessing


def pictures(rows: dict[str, Tensor], preprocessing: Preprocessing) -> np.ndarray:
    """The same images seen in several ways, one row for each.

    Parameters
    ----------
    rows
        What a row shows -> pixel values, shape (images, 3, height, width).
    preprocessing
        What made pixel values of the images: it is undone.

    Returns
    -------
    ndarray
        The axes, one per row and image.
    """
    count = min(map(len, rows.values()))
    _, axes = plt.subplots(len(rows), count, figsize=(1.15 * count + 1, 1.2 * len(rows)), squeeze=False)
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (preprocessing.mean, preprocessing.std))
    for (name, images), line in zip(rows.items(), axes, strict=True):
        for ax, image in zip(line, images, strict=False):
            colours = image.cpu().double().numpy() * std + mean
            ax.imshow(colours.clip(0, 1).transpose(1, 2, 0))
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, horizontalalignment="right", verticalalignment="center")
    return axes
