"""What breaks: classes, images and confusions that a smaller model gets wrong and its original did not."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from toastlib.data.images import Images
from toastlib.data.texts import Texts
from toastlib.evaluation.heads import Head, points_lost

SHOWN = 12
"""Pictures of images that turn wrong, and confusions that are new."""


class Flip(NamedTuple):
    """An image or text whose answer turns wrong, its class, and both answers; pixels are uint8, (3, height, width)."""

    shown: Tensor | str
    label: str
    before: str
    after: str

    def __repr__(self) -> str:
        return f"Flip({self.label!r}, {self.before!r} -> {self.after!r})"


def by_class(images: Images, before: np.ndarray, after: np.ndarray, head: Head) -> pd.DataFrame:
    """A row for each class: ``class``, ``images``, ``before`` and ``after`` in percent, and the points lost.

    ``lost`` stands with the ends of its 95 % interval, ``low`` and ``high``.
    """
    labels, rows = images.labels.cpu().numpy(), []
    for label in np.unique(labels):
        of_class = labels == label
        shares = (100 * scores[of_class].mean() for scores in (before, after))
        lost = points_lost(before[of_class], after[of_class], head)
        rows.append((head.class_names[head.places[label]], int(of_class.sum()), *shares, *lost))
    return pd.DataFrame(rows, columns=["class", "images", "before", "after", "lost", "low", "high"])


def flips(
    images: Images | Texts,
    found: Sequence[Tensor],
    scores: Sequence[np.ndarray],
    head: Head,
    tokenizer: Any = None,
) -> list[Flip]:
    """The images or texts that turn wrong, in their order; without labels, those that are called something else."""
    rows, flipped = np.flatnonzero(scores[0] > scores[1]), []
    shown = images.decoded(tokenizer) if isinstance(images, Texts) else images.pixels
    for row in rows.tolist():
        before, after = (head.class_names[answers[row].argmax()] for answers in found)
        label = before if images.labels is None else head.class_names[head.places[images.labels[row]]]
        flipped.append(Flip(shown[row], label, before, after))
    return flipped


def new_confusions(flipped: list[Flip]) -> pd.DataFrame:
    """Of the images that turn wrong, how many of a class are called what: ``class``, ``called``, ``images``."""
    pairs = pd.DataFrame([(flip.label, flip.after) for flip in flipped], columns=["class", "called"])
    return pairs.value_counts().rename("images").reset_index().head(SHOWN)
