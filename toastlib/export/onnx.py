"""Models of images or texts as ONNX files, each checked against torch before it is kept."""

import contextlib
import copy
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from toastlib.data import catalog
from toastlib.data.transforms import Preprocessing, image_size
from toastlib.errors import InputError, need_packages, unknown
from toastlib.models.quiet import find_checkpoint, quiet_transformers
from toastlib.output import MARK, writing

TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "int8": 0.5}
"""Precision -> largest allowed difference between onnxruntime and eager torch, as a share of torch's largest output."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOKENS = 9  # at least, of the texts that a model is traced with
USE = """\
import onnxruntime
{imports}

inputs = {inputs}
session = onnxruntime.InferenceSession("{file}")
({output},) = session.run(None, {{name: inputs[name] for name in {names}}})  # {shape}"""


class Traced(nn.Module):
    """A model as a function of its inputs by position to one output: logits, features or hidden states."""

    def __init__(self, model: nn.Module, inputs: dict[str, tuple[int, ...]], output: str) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs  # name -> shape of one image; that of a text is free
        self.output = output

    @property
    def reads_images(self) -> bool:
        """Whether its input is pixel values, and not token ids with their mask."""
        return "pixel_values" in self.inputs

    def forward(self, first: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.model(**dict(zip(self.inputs, (first, mask), strict=False)))[self.output]

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Random inputs; all texts but the first are padded."""
        generator = torch.Generator().manual_seed(batch)
        if self.reads_images:
            return (torch.randn(batch, *self.inputs["pixel_values"], generator=generator),)
        words = self.model.get_input_embeddings().num_embeddings
        ids = torch.randint(words, (batch, TOKENS + batch), generator=generator)
        mask = torch.ones_like(ids)
        mask[1:, TOKENS:] = 0
        return ids, mask


def export_onnx(
    model: str | Path, target: str | Path | None = None, *, precision: str = "float32", force: bool = False
) -> tuple[Path, float, str]:
    """Write a model as ONNX, with any batch size, and compare it with the model in onnxruntime.

    Returned are the file, the largest difference from eager torch as a share of outputs, and code that uses the file.

    Parameters
    ----------
    model, target
        A folder of `Encoder.save_pretrained`, or any classifier, encoder or language model of images or texts that
        transformers opens by alias, folder or Hub id; and the file, by default ``model.onnx`` in a folder that toastlib
        wrote, or here. It takes ``pixel_values`` of shape (batch, 3, height, width), or ``input_ids`` and
        ``attention_mask`` of shape (batch, tokens), to ``logits``. A saved encoder gives ``pooler_output``,
        (batch, width), its features; another ``last_hidden_state``, (batch, tokens, width).
    precision
        ``"float32"``; ``"float16"`` for the weights and what is computed between inputs and outputs; ``"int8"`` for the
        weights of matrix products, whose inputs are rounded as they come (onnxruntime's dynamic quantisation).
    force
        Replace a file that toastlib did not write.

    Raises
    ------
    InputError
        If a package is missing, the model cannot be opened, or differs by more than `TOLERANCES`: no file is kept then.
    """
    need_packages("ONNX", NEEDED, "onnx")
    if precision not in TOLERANCES:
        raise unknown("precision", precision, TOLERANCES)
    path = find_checkpoint(str(model))
    traced = _opened(path)
    if target is None:
        name = "model.onnx" if precision == "float32" else f"model.{precision}.onnx"
        target = Path(path) / name if (Path(path) / MARK).exists() else name
    target = Path(target)
    with writing(target, force=force) as file:
        write_onnx(traced, file, precision)
        difference = _difference(traced, file)
        if not difference <= TOLERANCES[precision]:
            raise InputError(f"The {precision} ONNX model of {path} differs by {difference:.1e} of the largest output.")
    return target, difference, _use(traced, path, target)


def _use(traced: Traced, path: str, file: Path) -> str:
    """Lines of Python that use the file."""
    where = ", revision=".join(f'"{part}"' for part in catalog.split_revision(path) if part)
    if traced.reads_images:
        imports = "from PIL import Image\nfrom transformers import AutoImageProcessor"
        inputs = f'AutoImageProcessor.from_pretrained({where})(Image.open("image.png"), return_tensors="np")'
        shape = "float32, (batch, {}, {}, {})".format(*traced.inputs["pixel_values"])
    else:
        imports = "from transformers import AutoTokenizer"
        inputs = f'AutoTokenizer.from_pretrained({where})(["a text"], return_tensors="np")'
        shape = "int64, (batch, tokens)"
    names = list(traced.inputs)
    return USE.format(imports=imports, inputs=inputs, file=file, output=traced.output, names=names, shape=shape)


def write_onnx(traced: Traced, file: Path, precision: str = "float32") -> None:
    """Write a model, float32, as an ONNX file of that precision; an `InputError` if the exporter cannot."""
    fused = getattr(getattr(traced.model, "config", None), "_attn_implementation", None)
    with _quiet():
        try:
            _export(traced, file)
        except torch.onnx.OnnxExporterError:  # it stumbles over fused attention with a bias, BEiT's
            traced.model.set_attn_implementation("eager")
            try:
                _export(traced, file)
            except torch.onnx.OnnxExporterError as error:
                reason = re.search(r"^<class '[\w.]+'>: (.+)", str(error), re.MULTILINE)
                kind, why = type(traced.model).__name__, f": {reason[1]}" if reason else "."
                raise InputError(f"torch cannot write a {kind} as ONNX with an open batch size{why}") from error
            finally:
                traced.model.set_attn_implementation(fused)
        _convert(file, precision)


def _export(traced: Traced, file: Path) -> None:
    sizes = {0: torch.export.Dim("batch")} | ({} if traced.reads_images else {1: torch.export.Dim("tokens")})
    torch.onnx.export(
        traced,
        traced.example(2),
        file,
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=list(traced.inputs),
        output_names=[traced.output],
        dynamic_shapes=(sizes,) * len(traced.inputs),
    )


def _convert(file: Path, precision: str) -> None:
    """Drop what the exporter notes of each operation, a third of a small file, and convert to the precision."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16

    whole = onnx.load(file)
    whole.graph.ClearField("value_info")  # shapes in between, not all of them right: they are inferred anew
    for part in (whole, whole.graph, *whole.graph.node):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    if precision == "int8":
        quantize_dynamic(whole, file, weight_type=QuantType.QInt8)
    else:
        onnx.save(whole if precision == "float32" else convert_float_to_float16(whole, keep_io_types=True), file)


class OnnxModel:
    """A model in onnxruntime, on as many threads of the CPU as torch has, called with its inputs in their order."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.megabytes = file.stat().st_size / 1e6

    def __call__(self, *inputs: Tensor, **named: Tensor) -> ModelOutput:
        numbers = [(one.float() if one.is_floating_point() else one).numpy() for one in (*inputs, *named.values())]
        names = [one.name for one in self.session.get_inputs()]
        (found,) = self.session.run(None, dict(zip(names, numbers, strict=True)))
        return ModelOutput({self.session.get_outputs()[0].name: torch.from_numpy(found)})


def in_onnxruntime(model: transformers.PreTrainedModel, example: Tensor, precision: str) -> OnnxModel:
    """A classifier or encoder of images in onnxruntime; `example` is a batch of its images."""
    with torch.inference_mode():
        output = "logits" if "logits" in model(example) else "pooler_output"
    whole = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(Traced(whole, {"pixel_values": tuple(example.shape[1:])}, output), file, precision)
        return OnnxModel(file)


def _opened(path: str) -> Traced:
    """The model, float32, with the shapes of its inputs; that of a text is any."""
    where = catalog.at_revision(path)
    with catalog.loading("model", path):
        config = transformers.AutoConfig.from_pretrained(**where)
        architecture = (config.architectures or [""])[0].replace("LMHeadModel", "ForCausalLM")  # GPT-2's name for it
        head = re.search("For(ImageClassification|SequenceClassification|CausalLM)", architecture)
        auto = getattr(transformers, f"AutoModel{head[0]}" if head else "AutoModel")
        with quiet_transformers():
            model = auto.from_pretrained(**where, dtype=torch.float32).eval()
    tower = model if head else getattr(model, "vision_model", model)
    output = "logits" if head else "pooler_output" if config.model_type == "toast" else "last_hidden_state"
    if tower.main_input_name != "pixel_values":
        for part in tower.modules():
            if hasattr(part, "config"):
                part.config.use_cache = False
        return Traced(tower, dict.fromkeys(("input_ids", "attention_mask"), ()), output)
    try:
        preprocessing = Preprocessing.from_config(transformers.AutoImageProcessor.from_pretrained(**where).to_dict())
    except (OSError, ValueError):  # there is none
        preprocessing = None
    body = getattr(tower, "toast", tower)
    height, width = image_size(preprocessing, getattr(body, "tower", body).config)
    return Traced(tower, {"pixel_values": (3, height, width)}, output)


@torch.no_grad()
def _difference(traced: Traced, file: Path) -> float:
    """Largest difference between onnxruntime and eager, as a share of the largest output."""
    exported, shares = OnnxModel(file), []
    for inputs in map(traced.example, (1, 3)):
        expected = traced(*inputs)
        shares.append((exported(*inputs)[traced.output] - expected).abs().max() / expected.abs().max())
    return max(share.item() for share in shares)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence notes about operators of missing packages, and that a graph could be simplified."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
