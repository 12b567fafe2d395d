"""What the benchmarks run on: the embedded encoder, and as many drawn images as asked for, or a data set by name."""

import torch

import toastlib as toast
from toastlib.data.builtin import coloured_shapes


def load(
    train_size: int, test_size: int, dataset: str = "", dtype: str = "float32", model: str = "vit-mini"
) -> tuple[toast.Encoder, toast.ImageSet]:
    """An encoder on the CPU, and images: of a data set, or as many coloured shapes as asked for where none is named."""
    encoder = toast.load_encoder(model, device="cpu", dtype=dtype)
    if dataset:
        return encoder, toast.load_images(dataset, encoder, train_size=train_size, test_size=test_size)
    return encoder, shapes(train_size, test_size, encoder)


def shapes(train_size: int, test_size: int, encoder: toast.Encoder) -> toast.ImageSet:
    """As many coloured shapes as asked for, ready for an encoder."""
    splits = [
        toast.Images(
            torch.from_numpy(table.images).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(table.labels),
            table.class_names,
            encoder.preprocessing,
            encoder.device,
            encoder.dtype,
        )
        for table in coloured_shapes(train_size, test_size)
    ]
    return toast.ImageSet("coloured-shapes", *splits)
