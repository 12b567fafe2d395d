"""A saved folder as an ONNX file, checked against torch before it is kept."""

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from toastlib.data.transforms import Preprocessing, image_size
from toastlib.errors import InputError
from toastlib.output import writing

TOLERANCE = 1e-4
"""Largest allowed difference between onnxruntime and eager torch, as a share of torch's largest output."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")


class _OneOutput(nn.Module):
    """Pixel values to one tensor: the logits of a classifier, or the features of an encoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        output = self.model(pixel_values)
        return output.logits if "logits" in output else output.pooler_output


def export_onnx(folder: str | Path, target: str | Path | None = None, *, force: bool = False) -> tuple[Path, float]:
    """Write a saved model as ONNX, with any batch size, and compare it with the model in onnxruntime.

    Returned are the file, and the largest difference from eager torch over batches of 1 and 3, as a share of the
    largest output. An `InputError` if a package is missing, the folder cannot be opened, or the difference exceeds
    `TOLERANCE`; then no file is kept.

    Parameters
    ----------
    folder, target
        A folder of `Encoder.save_pretrained`, and the file, by default ``model.onnx`` in it: ``pixel_values`` of shape
        (batch, 3, height, width) to ``logits`` (batch, classes), or ``features`` (batch, width) without a classifier.
    force
        Replace a file that toastlib did not write.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'toastlib[onnx]'.")
    if not Path(folder).is_dir():
        raise InputError(f"There is no folder {str(folder)!r}: save a model there first, by Encoder.save_pretrained.")
    model, size = _opened(Path(folder))
    target = Path(folder) / "model.onnx" if target is None else Path(target)
    name = "logits" if model.model.config.head else "features"
    example = torch.zeros(2, 3, *size)
    with writing(target, force=force) as file:
        with _quiet():
            torch.onnx.export(
                model,
                (example,),
                file,
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=["pixel_values"],
                output_names=[name],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        difference = _difference(model, file, size)
        if not difference <= TOLERANCE:
            raise InputError(f"The ONNX model of {folder} differs by {difference:.1e} of the largest output.")
    return target, difference


def _opened(folder: Path) -> tuple[_OneOutput, tuple[int, int]]:
    """The model in the folder, and the height and width of its images."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "toast":
            raise ValueError(f"its model type is {config.model_type!r}, and not 'toast'")
        auto = AutoModelForImageClassification if config.head else AutoModel
        model = auto.from_pretrained(folder, dtype=torch.float32).eval()
        settings = folder / "preprocessor_config.json"
        preprocessing = Preprocessing.from_config(json.loads(settings.read_text())) if settings.is_file() else None
    except Exception as error:  # each broken part of a folder raises another kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{str(folder)!r} is no folder of a saved smaller model: {reason}") from error
    body = model.toast if config.head else model
    return _OneOutput(model), image_size(preprocessing, body.tower.config)


@torch.no_grad()
def _difference(model: nn.Module, file: Path, size: tuple[int, int]) -> float:
    """Largest difference between onnxruntime and eager, as a share of the largest output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    shares = []
    for batch in (1, 3):
        inputs = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
        expected = model(inputs)
        (found,) = session.run(None, {"pixel_values": inputs.numpy()})
        shares.append((torch.from_numpy(found) - expected).abs().max() / expected.abs().max())
    return max(share.item() for share in shares)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence notes about operators of missing packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
