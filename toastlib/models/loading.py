"""Encoders from checkpoints: an alias, a local folder or a Hub id in, an `Encoder` out."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from toastlib.data import catalog
from toastlib.data.hub import not_loaded
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError, unknown
from toastlib.models.encoder import Encoder
from toastlib.models.structure import WITHOUT_MASK, is_causal, reads_text
from toastlib.models.sublayer_split import SublayerSplit

if TYPE_CHECKING:
    from toastlib.models.modeling_toast import ToastPreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_encoder(
    name: str,
    *,
    features: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    blocks: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Load an encoder by alias, local folder or Hub id.

    Parameters
    ----------
    name
        ``"vit-mini"`` is embedded; the paper's models have aliases, see `MODELS`. A folder that
        `Encoder.save_pretrained` wrote opens as the encoder that was saved. Models of texts, such as
        ``"google-bert/bert-base-uncased"``, come with their tokenizer.
    features
        ``"cls"``, ``"mean"``, ``"pooler"`` or ``"last"``, see `Encoder`; if `None`, as it was saved, or else ``"cls"``,
        and ``"last"`` for decoders.
    device
        ``"auto"`` takes a GPU if there is one; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    dtype
        ``"float32"``, ``"bfloat16"`` or ``"float64"``; ``"auto"`` takes bfloat16 where the hardware computes faster
        in it, see `resolve_dtype`.
    blocks
        Dotted path of the block list, where it cannot be found by structure.
    trust_remote_code
        Run code that comes with the checkpoint; off unless asked for.

    Returns
    -------
    Encoder
        In evaluation mode, without gradients, on the device and in the dtype that were asked for.

    Raises
    ------
    InputError
        If the name, the device or the dtype is unknown, or the checkpoint cannot be fetched or read.
    """
    path = catalog.model_path(name)
    target = resolve_device(device)
    precision = resolve_dtype(dtype, target)
    model, missing = load_checkpoint(path, trust_remote_code)
    if model.config.model_type in WITHOUT_MASK:
        model, missing = load_checkpoint(path, trust_remote_code, WITHOUT_MASK[model.config.model_type])
    alias = catalog.model_alias(name)
    if model.config.model_type == "toast":
        preprocessing = _preprocessing(path, model.tower.config, trust_remote_code)
        return opened_encoder(model, features, preprocessing, alias).to(target, precision)
    tower = getattr(model, "vision_model", model)
    if tower is model and reads_text(model):
        features = features or ("last" if is_causal(model) else "cls")
        _settle_pooler(model, missing, features, name)
        tokenizer = load_tokenizer(path, name)
        return Encoder(model, blocks, features, name=alias, tokenizer=tokenizer).to(target, precision)
    features = features or "cls"
    if tower is not model:  # a text tower may be missing
        missing = [key for key in missing if key.startswith("vision_model.")]
    _settle_pooler(tower, missing, features, name)
    encoder = Encoder(tower, blocks, features, _preprocessing(path, tower.config, trust_remote_code), alias)
    return encoder.to(target, precision)


def resolve_device(device: str) -> torch.device:
    """The device of that name, ``"auto"`` being the GPU if there is one.

    Raises
    ------
    InputError
        If this machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"Device {device!r} is not there ({reason}): take 'cpu' or 'auto'.") from error
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; ``"auto"`` is bfloat16 on GPUs and CPUs whose products gain by it, float32 elsewhere.

    CPUs with AVX512-BF16 do, and so do those with AMX, which have it too.

    Raises
    ------
    InputError
        If there is no such dtype.
    """
    if dtype == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        on_cpu = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if on_gpu or on_cpu else torch.float32
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, ("auto", *DTYPES))
    return DTYPES[dtype]


def load_checkpoint(path: str, trust_remote_code: bool, auto: str = "AutoModel") -> tuple[nn.Module, list[str]]:
    """The model of a folder or Hub id, float32, and the names of weights that the checkpoint lacks; those are random.

    `auto` is the class of transformers that opens it.

    Raises
    ------
    InputError
        If it cannot be fetched or read.
    """
    import transformers

    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # weights that the checkpoint lacks are drawn, and drawn alike every time
            model, info = getattr(transformers, auto).from_pretrained(
                path,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # counted below, as missing
            )
    except Exception as error:  # each part of a checkpoint that can be broken raises another kind
        raise not_loaded("model", path, error, "vit-mini") from error
    return model, [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]


def load_tokenizer(path: str, name: str) -> Any:
    """The tokenizer of a checkpoint; where it has no token for padding, another takes its place, and is masked.

    Raises
    ------
    InputError
        If there is none that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what comes back where there is no file
            raise OSError("it knows no words")
    except Exception as error:  # each file of a tokenizer that can be missing or broken raises another kind
        raise InputError(f"The checkpoint of {name!r} has no tokenizer that can be loaded.") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _settle_pooler(model: nn.Module, missing: list[str], features: str, name: str) -> None:
    """Drop a pooler that the checkpoint has no weights for, unless its random output is what was asked for."""
    others = [key for key in missing if "pooler" not in key]
    if others:
        kind = "weights, or has them in another shape"
        raise InputError(f"The checkpoint of {name!r} lacks {len(others)} {kind}: {others[0]} among them.")
    if missing and features == "pooler":
        warnings.warn(f"{name} holds no pooler weights: its pooler is random, and the same every time.", stacklevel=3)
    elif missing:
        model.pooler = None


def _preprocessing(path: str, config: Any, trust_remote_code: bool) -> Preprocessing:
    if getattr(config, "pretrained_cfg", None):  # timm keeps it beside the architecture
        return Preprocessing.from_config(_timm_settings(config.pretrained_cfg))
    try:
        with quiet_transformers():
            return Preprocessing.from_config(_processor_settings(path, trust_remote_code))
    except OSError:
        size = getattr(config, "image_size", 224)
        warnings.warn(
            f"{path} has no usable preprocessor_config.json: images are resized to {size} pixels, scaled to [-1, 1].",
            stacklevel=3,
        )
        return Preprocessing(resize=(size, size))


def _processor_settings(path: str, trust_remote_code: bool) -> dict[str, Any]:
    """What the checkpoint's file says, completed by the processor's class: defaults, and what ``"size": 224`` means."""
    from transformers import AutoImageProcessor
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=trust_remote_code).to_dict()
    except (ImportError, ValueError):  # a class that needs torchvision, or that nobody knows
        return ImageProcessingMixin.get_image_processor_dict(path)[0]


def _timm_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What timm does to an image: resized a little larger than the input, then cropped."""
    height, width = config["input_size"][1:]
    share = config.get("crop_pct") or 0.875  # timm's own default
    larger = {"height": int(height / share), "width": int(width / share)}
    squash = config.get("crop_mode") == "squash"
    return {
        "size": larger if squash else {"shortest_edge": larger["height"]},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "resample": {"nearest": 0, "bilinear": 2, "bicubic": 3}[config["interpolation"]],
        "image_mean": config["mean"],
        "image_std": config["std"],
    }


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or notices while loading: what matters is raised or warned about by us."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def opened_encoder(
    model: "ToastPreTrainedModel", features: str | None, preprocessing: Preprocessing, name: str
) -> Encoder:
    """The encoder in a model that `AutoModel` opened; `features` as it was saved if `None`."""
    config = model.config
    encoder = Encoder(model.tower, config.blocks, features or config.features, preprocessing, name)
    encoder.sublayer_split = config.parting and SublayerSplit(**config.parting)
    return encoder
