"""What the benchmarks run on: the embedded encoder, and as many drawn shapes as asked for, or a data set by name."""

import torch

import toastlib as toast
from toastlib.data.builtin import shapes


def load(
    train_size: int, test_size: int, dataset: str = "", dtype: str = "float32"
) -> tuple[toast.Encoder, toast.ImageSet]:
    """vit-mini on the CPU, and images: those of a data set, or shapes drawn by the library where none is named."""
    encoder = toast.load_encoder("vit-mini", device="cpu", dtype=dtype)
    if dataset:
        return encoder, toast.load_images(dataset, encoder, train_size=train_size, test_size=test_size)
    splits = [
        toast.Images(
            torch.from_numpy(table.images).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(table.labels),
            table.class_names,
            encoder.preprocessing,
        )
        for table in shapes(train_size, test_size)
    ]
    return encoder, toast.ImageSet("shapes", *splits)
