"""Augmentation of calibration images: cropped, mirrored and recoloured copies, without labels or new images."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from toastlib.data.images import Images
from toastlib.errors import InputError, whole_number

CHUNK = 64  # images per step: the arithmetic is in float32, the result in uint8


@dataclass(frozen=True)
class Augmentation:
    """Images followed by copies of them that are cropped, mirrored and, if asked for, recoloured.

    Crops add a little of the variation that maps with many parameters need. Recolouring adds some in nearly every
    direction: it costs a little accuracy, and lets a map serve other kinds of images (03_generalization).

    Parameters
    ----------
    copies, mirror, seed
        Number of copies of each image, each of them mirrored with probability 0.5; seed of all random draws.
    recolour
        Draw a ground and a foreground colour for each copy and channel, map dark to light from one to the other, and
        blend another image, recoloured likewise, over it with a weight of at most 0.5.
    """

    copies: int = 4
    recolour: bool = False
    mirror: bool = True
    seed: int = 0

    def __call__(self, images: Images, fold: int = 0) -> Images:
        """The images, then their copies, with the labels repeated; each fold has its own random draws.

        Raises
        ------
        InputError
            If `images` are not `Images`, or `copies` or `seed` is no whole number from 0 on.
        """
        if not isinstance(images, Images):
            raise InputError(f"Only images can be augmented, not {type(images).__name__}.")
        whole_number("copies", self.copies)
        whole_number("seed", self.seed)
        seeds = torch.randint(2**31, (fold + 1,), generator=torch.Generator().manual_seed(self.seed))
        generator = torch.Generator().manual_seed(int(seeds[fold]))
        copies = [self._copy(images.pixels, generator) for _ in range(self.copies)]
        labels = None if images.labels is None else images.labels.repeat(self.copies + 1)
        return replace(images, pixels=torch.cat([images.pixels, *copies]), labels=labels)

    def _copy(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """One altered copy of each image, uint8, shape (images, 3, height, width)."""
        copies = []
        others = torch.randperm(len(pixels), generator=generator)
        for chunk, blended in zip(pixels.split(CHUNK), others.split(CHUNK), strict=True):
            view = self._view(chunk, generator)
            if self.recolour:
                weight = _uniform(0, 0.5, (len(view), 1, 1, 1), generator)
                view = view.lerp(self._view(pixels[blended], generator), weight)
            copies.append(view.round().clamp(0, 255).to(torch.uint8))
        return torch.cat(copies)

    def _view(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Images cropped and mirrored, and recoloured if asked for; float32."""
        zoom, shift = (0.5, 0.3) if self.recolour else (0.3, 0.15)
        view = _cropped(pixels.float(), zoom, shift, self.mirror, generator)
        if not self.recolour:
            return view
        ground, foreground = (_uniform(0, 255, (len(view), 3, 1, 1), generator) for _ in range(2))
        return ground.lerp(foreground, view / 255)


def _cropped(pixels: Tensor, zoom: float, shift: float, mirror: bool, generator: torch.Generator) -> Tensor:
    """Crops of at least ``1 - zoom`` of each edge, at most `shift` half edges away from the centre; float32."""
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
