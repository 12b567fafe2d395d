"""Whether a model can be made smaller here: what is done to one is tried out on a few random inputs."""

import importlib.util
import pkgutil
import re
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from toastlib.approximation.engine import forward_plans
from toastlib.approximation.fuse import fuse_spans
from toastlib.approximation.prepare import prepare
from toastlib.approximation.replace import replace_spans
from toastlib.data import catalog
from toastlib.data.images import Images
from toastlib.data.texts import Texts
from toastlib.data.tokens import Tokens
from toastlib.data.transforms import Preprocessing, image_size
from toastlib.errors import InputError
from toastlib.export.onnx import NEEDED, export_onnx
from toastlib.models.encoder import Encoder
from toastlib.models.loading import load_checkpoint, load_encoder
from toastlib.models.quiet import find_checkpoint
from toastlib.models.saving import stored_dtype
from toastlib.models.sublayers import split_blocks
from toastlib.models.walk import check_walk
from toastlib.plan import Plan, Span
from toastlib.translators.base import RECOMMENDED

INPUTS, TOKENS = 6, 16  # random images or texts; tokens of the longest text
ESSENTIAL = ("blocks found", "features", "walk = forward", "maps")  # without these nothing can be done
MARKS = {True: "✓", False: "✗", None: "–"}


def check_model(model: str | nn.Module) -> pd.DataFrame:
    """Try out on a few random inputs what can be done to a model.

    Parameters
    ----------
    model
        An `Encoder`, or a module to make one of; or what `load_encoder` opens by name; or ``"module:function"``, a
        function without arguments, importable from the working folder, that returns one of the first two.

    Returns
    -------
    DataFrame
        Columns ``check``, ``works`` (`None` where a package is missing) and ``detail``. The last row is the first of
        the checks `ESSENTIAL` that fails, if one does. An `InputError` if there is no such model, or it cannot be read.
    """
    if isinstance(model, str) and re.fullmatch(r"[\w.]+:[\w.]+", model) and not model.startswith(catalog.TIMM):
        model = _made_by(model)
    rows = []
    with warnings.catch_warnings(action="ignore"):  # of so few inputs
        try:
            trials = _Trials(_opened(model))
        except Exception as error:
            if isinstance(model, str):
                load_checkpoint(find_checkpoint(model), False)  # raises unless it is read, and then refused
            rows = [("blocks found", False, _reason(error))]
        for check, trial in {} if rows else CHECKS.items():
            missing = [name for name in NEEDED if check == "ONNX" and importlib.util.find_spec(name) is None]
            try:
                found = (None, f"not installed: {', '.join(missing)}") if missing else (True, trial(trials))
            except Exception as error:  # whatever a model does, the other checks go on
                found = False, _reason(error)
            rows.append((check, *found))
            if found[0] is False and check in ESSENTIAL:
                break
    return pd.DataFrame(rows, columns=["check", "works", "detail"], dtype=object)


class _Trials:
    """What is tried out with an encoder: each trial returns a clause, or raises."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.smaller = encoder, encoder  # maps makes a smaller one
        self.inputs = _random_inputs(encoder)
        self.batch = next(batch for batch, _ in self.inputs.batches(INPUTS))
        last = len(encoder.blocks) - 1
        start = min(last // 3, last - 1)
        self.plan = Plan((Span(start, min(start + 2, last)),))

    def blocks(self) -> str:
        return f"{len(self.encoder.blocks)} of width {self.encoder.width} at {self.encoder.blocks_path}"

    def special_tokens(self) -> str:
        counted = self.encoder.special_tokens
        if not self.encoder.reads_text:  # what stands before the patches is the same for all images
            alike = [torch.allclose(*pair) for pair in zip(*self.encoder.embed(self.batch).hidden[:2])]
            if (count := [*alike, False].index(False)) != counted:
                raise InputError(f"{counted} by name, and {count} that are the same for all images: take linear maps.")
        return f"{counted or 'none'} before the {'others' if self.encoder.reads_text else 'patches'}"

    def features(self) -> str:
        features, width = self.encoder.encode(self.inputs), self.encoder.width
        if features.shape != (INPUTS, width) or not features.isfinite().all():
            raise InputError(f"They are no {width} finite numbers for each of {INPUTS} inputs: {(*features.shape,)}.")
        return f"{self.encoder.feature_kind}, {width} numbers"

    def walk(self) -> str:
        check_walk(self.encoder, self.batch)
        return "its features are those of its blocks, one after the other"

    def maps(self) -> str:
        names = ["linear", RECOMMENDED]
        prepared = prepare(self.encoder, None, self.plan, translators=names, calibration=self.inputs, batch_size=INPUTS)
        features = forward_plans(self.encoder, self.batch, prepared.variants, prepared.maps)
        for variant in prepared.variants[1:]:  # the first is the original
            self.smaller = replace_spans(self.encoder, {key[0]: prepared.maps[key] for key in variant.map_keys})
            name = f"features of the smaller encoder ({variant.translator})"
            _need_equal(self.smaller(self.batch), features[variant], name)
        return f"{' and '.join(names)} for {self.plan}"

    def save(self) -> str:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self.smaller.save_pretrained(folder)
            found = load_encoder(folder, device=str(self.encoder.device))(self.batch)
        _need_equal(found, self.smaller(self.batch), "features of the reopened encoder", stored_dtype(self.smaller))
        return "as a folder that load_encoder and transformers open"

    def fuse(self) -> str:
        fused = fuse_spans(self.encoder, self.plan, self.inputs)
        if not fused(self.batch).isfinite().all():
            raise InputError("Features are NaN or infinite.")
        return f"{len(fused.blocks)} blocks of its own architecture are left"

    def sublayers(self) -> str:
        _need_equal(split_blocks(self.encoder)(self.batch), self.encoder(self.batch), "features of the sublayers")
        return "attention and MLP of a block can be removed separately"

    def onnx(self) -> str:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self.smaller.save_pretrained(folder)
            _, difference, _ = export_onnx(folder, Path(folder) / "model.onnx")
        return f"differs from torch by {difference:.0e} of the largest output"


CHECKS = {
    "blocks found": _Trials.blocks,
    "features": _Trials.features,
    "walk = forward": _Trials.walk,
    "special tokens": _Trials.special_tokens,
    "maps": _Trials.maps,
    "save and reopen": _Trials.save,
    "fuse": _Trials.fuse,
    "sublayers": _Trials.sublayers,
    "ONNX": _Trials.onnx,
}


def _made_by(name: str) -> object:
    """What a function returns; its module lies in the working folder, or is installed."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return pkgutil.resolve_name(name)()
    except Exception as error:  # the module's own, of any kind
        raise InputError(f"{name} makes no model: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)


def _opened(model: str | nn.Module) -> Encoder:
    if isinstance(model, Encoder):
        return model
    named = isinstance(model, str)
    make = partial(load_encoder, device="cpu") if named else partial(Encoder, name=type(model).__name__)
    try:
        return make(model)
    except InputError:  # it may have no CLS token
        return make(model, features="mean")


def _random_inputs(encoder: Encoder) -> Images | Texts:
    """Noise of the size that the encoder reads, or texts of unequal length."""
    generator, config = torch.Generator().manual_seed(0), getattr(encoder.model, "config", encoder.model)
    if not encoder.reads_text:
        shape = INPUTS, 3, *image_size(encoder.preprocessing, config)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return Images(pixels, None, (), encoder.preprocessing or Preprocessing(), encoder.device, encoder.dtype)
    words = config.get_text_config().vocab_size
    ids = torch.randint(words // 2, words, (INPUTS, TOKENS), generator=generator)  # tokens with a role come before
    mask = (torch.arange(TOKENS) < TOKENS - torch.arange(INPUTS)[:, None]).long()
    return Texts(Tokens(ids * mask, mask), device=encoder.device)


def _need_equal(found: Tensor, expected: Tensor, what: str, dtype: torch.dtype = torch.float32) -> None:
    """Refuse features that differ by more than rounding to a dtype, as `check_walk` does."""
    share = float((found - expected).abs().max() / expected.abs().max())
    if not share <= torch.finfo(dtype).eps ** 0.5:  # NaN is not
        raise InputError(f"The {what} differ by {share:.1g} of the largest.")


def _reason(error: Exception) -> str:
    """The first sentence of an error; with its kind, unless it was foreseen."""
    sentence = re.split(r"(?<=[^.][.!?])\s", " ".join(str(error).split()), maxsplit=1)[0]
    return sentence if isinstance(error, InputError) else f"unexpected {type(error).__name__}: {sentence[:150]}"
