"""More to see in the same calibration images: altered copies of each, without a label."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from toastlib.data.images import Images
from toastlib.errors import InputError

CHUNK = 64
"""Images that are altered at a time: the arithmetic is in float32, the result in uint8."""


@dataclass(frozen=True)
class Augmentation:
    """Each image followed, further down, by copies of it that are cropped, mirrored and, if asked for, recoloured.

    A map is determined only where its calibration images vary. Crops let the same images vary a little more, which
    helps maps with many parameters at home. Recolouring makes them vary in nearly every direction, which costs a
    little at home and is what lets a map fitted on one kind of images serve another (03_generalization).

    Parameters
    ----------
    copies
        Of each image, beside the image itself: each makes the pass over the calibration images once longer.
    recolour
        Draw a ground and a foreground colour for each copy, go from one to the other in each channel as the image
        does, and lay another such image over it, at most half as strong.
    mirror
        Whether every second copy is mirrored, on average.
    seed
        Of all that is drawn.

    Examples
    --------
    >>> views = Augmentation(copies=4, recolour=True)
    >>> folds = toast.collect_folds(encoder, digits.train.sample(500, seed=0), views=views)  # doctest: +SKIP
    """

    copies: int = 4
    recolour: bool = False
    mirror: bool = True
    seed: int = 0

    def __call__(self, images: Images, part: int = 0) -> Images:
        """The images, then their copies.

        Parameters
        ----------
        images
            Any number, all of one size.
        part
            Of the calibration images: every part draws anew.

        Returns
        -------
        Images
            ``(copies + 1) * len(images)`` of them, the originals first; labels are repeated.

        Raises
        ------
        InputError
            If these are no images, or there are fewer copies than none.
        """
        if not isinstance(images, Images):
            raise InputError(f"These are {type(images).__name__}: only images have views.")
        if self.copies < 0:
            raise InputError(f"{self.copies} copies cannot be made: take none or more.")
        seeds = torch.randint(2**31, (part + 1,), generator=torch.Generator().manual_seed(self.seed))
        generator = torch.Generator().manual_seed(int(seeds[part]))
        copies = [self._copy(images.pixels, generator) for _ in range(self.copies)]
        labels = None if images.labels is None else images.labels.repeat(self.copies + 1)
        return replace(images, pixels=torch.cat([images.pixels, *copies]), labels=labels)

    def _copy(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        copied = torch.empty_like(pixels)
        others = torch.randperm(len(pixels), generator=generator)
        for start in range(0, len(pixels), CHUNK):
            rows = slice(start, start + CHUNK)
            view = self._view(pixels[rows], generator)
            if self.recolour:
                weight = _uniform(0, 0.5, (len(view), 1, 1, 1), generator)
                view = view.lerp(self._view(pixels[others[rows]], generator), weight)
            copied[rows] = view.round().clamp(0, 255).to(torch.uint8)
        return copied

    def _view(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        zoom, shift = (0.5, 0.3) if self.recolour else (0.3, 0.15)
        view = _cropped(pixels.float(), zoom, shift, self.mirror, generator)
        if not self.recolour:
            return view
        ground, foreground = (_uniform(0, 255, (len(view), 3, 1, 1), generator) for _ in range(2))
        return ground.lerp(foreground, view / 255)


def _cropped(pixels: Tensor, zoom: float, shift: float, mirror: bool, generator: torch.Generator) -> Tensor:
    """Crops of at least ``1 - zoom`` of each edge, off the centre by at most `shift` of half an edge; float32."""
    count = len(pixels)
    grid = torch.zeros(count, 2, 3)
    grid[:, 0, 0] = grid[:, 1, 1] = 1 - _uniform(0, zoom, (count,), generator)
    grid[:, :, 2] = _uniform(-shift, shift, (count, 2), generator)
    if mirror:
        grid[torch.rand(count, generator=generator) < 0.5, 0, 0] *= -1
    places = affine_grid(grid, pixels.shape, align_corners=False)
    return grid_sample(pixels, places, padding_mode="reflection", align_corners=False)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)
