"""A model of images as an ONNX file, checked against torch before it is kept."""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from toastlib.data import catalog
from toastlib.data.catalog import not_loaded
from toastlib.data.transforms import Preprocessing, image_size
from toastlib.errors import InputError
from toastlib.models.quiet import quiet_transformers
from toastlib.output import writing

TOLERANCE = 1e-4
"""Largest allowed difference between onnxruntime and eager torch, as a share of torch's largest output."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")


USE = """\
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
({output},) = session.run(None, {{"pixel_values": pixels}})  # pixels: float32, (batch, 3, {height}, {width})"""


class _OneOutput(nn.Module):
    """Pixel values to one tensor: logits, or features, or hidden states."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values)[self.output]


def export_onnx(model: str | Path, target: str | Path | None = None, *, force: bool = False) -> tuple[Path, float, str]:
    """Write a model as ONNX, with any batch size, and compare it with the model in onnxruntime.

    Returned are the file, the largest difference from eager torch over batches of 1 and 3, as a share of the largest
    output, and four lines of Python that use the file. An `InputError` if a package is missing, the model cannot be
    opened or reads texts, or the difference exceeds `TOLERANCE`; then no file is kept.

    Parameters
    ----------
    model, target
        A folder of `Encoder.save_pretrained`, or any classifier or encoder of images that transformers opens by alias,
        folder or Hub id; and the file, by default ``model.onnx`` in the folder, or here. It takes ``pixel_values`` of
        shape (batch, 3, height, width) to ``logits``, (batch, classes). A saved encoder gives ``pooler_output``,
        (batch, width), its features; another ``last_hidden_state``, (batch, tokens, width).
    force
        Replace a file that toastlib did not write.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'toastlib[onnx]'.")
    path = catalog.model_path(str(model))
    model, size = _opened(path)
    if target is None:  # aliases are embedded: their folders are no place to write to
        target = (
            Path(path) / "model.onnx" if Path(path).is_dir() and path not in catalog.MODELS.values() else "model.onnx"
        )
    target, example = Path(target), torch.zeros(2, 3, *size)
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
                output_names=[model.output],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        difference = _difference(model, file, size)
        if not difference <= TOLERANCE:
            raise InputError(f"The ONNX model of {path} differs by {difference:.1e} of the largest output.")
    return target, difference, USE.format(file=target, output=model.output, height=size[0], width=size[1])


def _opened(path: str) -> tuple[_OneOutput, tuple[int, int]]:
    """The model, float32, and the height and width of its images."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

    import toastlib.models.modeling_toast  # noqa: F401  # transformers knows saved folders from then on

    try:
        config = AutoConfig.from_pretrained(path)
        classifies = any("ForImageClassification" in kind for kind in config.architectures or [])
        auto = AutoModelForImageClassification if classifies else AutoModel
        with quiet_transformers():
            model = auto.from_pretrained(path, dtype=torch.float32).eval()
    except Exception as error:  # each broken part of a checkpoint raises another kind
        raise not_loaded("model", path, error, embedded="vit-mini") from error
    tower = model if classifies else getattr(model, "vision_model", model)
    if tower.main_input_name != "pixel_values":
        raise InputError(f"{path} reads texts: only models of images are exported as ONNX.")
    try:
        preprocessing = Preprocessing.from_config(AutoImageProcessor.from_pretrained(path).to_dict())
    except (OSError, ValueError):  # there is none
        preprocessing = None
    output = "logits" if classifies else "pooler_output" if config.model_type == "toast" else "last_hidden_state"
    body = getattr(tower, "toast", tower)
    return _OneOutput(tower, output), image_size(preprocessing, getattr(body, "tower", body).config)


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
