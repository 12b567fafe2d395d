"""Encoders from checkpoints, by alias, local folder or Hub id."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
from torch import nn
from transformers.image_processing_base import ImageProcessingMixin

from toastlib.data import catalog
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError, need_encoder, unknown
from toastlib.models.attention import choose_attention
from toastlib.models.encoder import WITHOUT_MASK, Checkpoint, Encoder
from toastlib.models.quiet import find_checkpoint, quiet_transformers
from toastlib.models.structure import is_causal, reads_text, set_image_size
from toastlib.models.sublayer_split import SublayerSplit

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_encoder(
    name: str,
    *,
    features: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    image_size: int | None = None,
    blocks: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Load an encoder by alias, local folder or Hub id.

    Parameters
    ----------
    name
        ``"vit-mini"`` is embedded; the paper's models have aliases, see `MODELS`. Folders of `Encoder.save_pretrained`
        open as the saved encoder. Models of texts, such as ``"google-bert/bert-base-uncased"``, bring their tokenizer.
        ``"timm:vit_tiny_patch16_224"`` takes timm; ``"dinov2-s@main"`` names a branch, a tag or a commit of the Hub.
    features
        ``"cls"``, ``"mean"``, ``"pooler"`` or ``"last"``, see `Encoder`. `None`: as saved, else ``"last"`` for decoders
        and ``"cls"`` for all others.
    device
        ``"auto"`` takes a GPU if there is one; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    dtype
        ``"float32"``, ``"bfloat16"`` or ``"float64"``; ``"fastest"`` is bfloat16 where the hardware gains by it, and
        the faster of two ways to compute attention.
    image_size
        Height and width of images in pixels, a multiple of the patch size: position embeddings are interpolated, and
        resize and crop keep their proportion. The checkpoint's own size if `None` or 0.
    blocks, trust_remote_code
        Dotted path of the block list, if it is not found; whether to run code that comes with the checkpoint.

    Returns
    -------
    Encoder
        In evaluation mode, without gradients.

    Raises
    ------
    InputError
        If a name is unknown, the checkpoint cannot be fetched or read, or the encoder reads no images of this size.
    """
    target = resolve_device(device)
    precision = resolve_dtype(dtype, target)
    if callable(make := catalog.MODELS.get(catalog.model_path(name))):
        return _made(make, name, features, image_size).to(target, precision)
    path = find_checkpoint(name)
    model, missing = load_checkpoint(path, trust_remote_code)
    if model.config.model_type in WITHOUT_MASK:
        model, missing = load_checkpoint(path, trust_remote_code, WITHOUT_MASK[model.config.model_type])
    alias = catalog.model_alias(name)
    is_saved = model.config.model_type == "toast"
    tower = model.tower if is_saved else getattr(model, "vision_model", model)
    if not is_saved:
        if tower is not model:  # a text tower may be missing
            missing = [key for key in missing if key.startswith("vision_model.")]
        features = features or ("last" if reads_text(tower) and is_causal(tower) else "cls")
        _settle_pooler(tower, missing, features, name)
    if reads_text(tower):
        if image_size:
            raise InputError(f"{alias} reads texts: image_size is for encoders of images.")
        reader = {"tokenizer": load_tokenizer(path, name)}
    else:
        preprocessing = _preprocessing(path, tower.config, trust_remote_code)
        if image_size:
            set_image_size(tower, image_size)
            preprocessing = preprocessing.at(image_size)
        reader = {"preprocessing": preprocessing}
    make, *parts = (opened, model) if is_saved else (Encoder, tower, blocks)
    encoder = make(*parts, features, name=alias, **reader)
    encoder.to(target, precision)
    if dtype == "fastest":
        choose_attention(encoder)
    encoder.checkpoint = Checkpoint(path, image_size, trust_remote_code, stored_dtype_of(path, trust_remote_code))
    return encoder


def _made(make: Callable[[], Encoder], name: str, features: str | None, image_size: int | None) -> Encoder:
    """The encoder of a registered function, which alone decides on its features and its image size.

    A notebook always asks for features, its default if its user does not: so other ones are told, and not refused.
    """
    encoder = make()
    need_encoder(encoder)
    if image_size:
        raise InputError(f"{name} is made by a function, at its own image size: leave out image_size={image_size}.")
    if features not in (None, encoder.feature_kind):
        warnings.warn(
            f"{name} is made by a function, and keeps its features={encoder.feature_kind!r}, not {features!r}.",
            stacklevel=3,
        )
    encoder.name = name
    return encoder


def opened(model: Any, features: str | None, **settings: Any) -> Encoder:
    """The encoder that toastlib saved as this `ToastModel`."""
    config = model.config
    encoder = Encoder(model.tower, config.blocks, features or config.features, **settings)
    encoder.sublayer_split = config.parting and SublayerSplit(**config.parting)
    encoder.original_config = config.base if encoder.is_causal else None
    return encoder


def resolve_device(device: str) -> torch.device:
    """The device of that name; ``"auto"`` is the GPU if there is one. A device that is missing is refused."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"Device {device!r} is not there ({reason}): take 'cpu' or 'auto'.") from error
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; ``"fastest"`` is bfloat16 on GPUs and CPUs that multiply it faster, else float32."""
    if dtype == "fastest":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        on_cpu = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # CPUs with AMX have it too
        return torch.bfloat16 if on_gpu or on_cpu else torch.float32
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, ("fastest", *DTYPES))
    return DTYPES[dtype]


def load_checkpoint(path: str, trust_remote_code: bool, auto: str = "AutoModel") -> tuple[nn.Module, list[str]]:
    """The model of a folder or Hub id, float32, by a class of transformers; and the names of weights that it lacks."""
    with catalog.loading("model", path), quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights that the checkpoint lacks are drawn, and drawn alike every time
        model, info = getattr(transformers, auto).from_pretrained(
            **catalog.at_revision(path),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # counted below, as missing
        )
    if left_over := _of_a_list(info["unexpected_keys"], model):
        raise InputError(
            f"{path} has weights that its configuration has no place for, {left_over[0]} and {len(left_over) - 1} "
            "others: it has more blocks, or an adapter that was not merged."
        )
    return model, [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]


def _of_a_list(left_over: Iterable[str], model: nn.Module) -> list[str]:
    """The weights left over that belong to a list of the model, such as its blocks."""
    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)}
    base = f"{model.base_model_prefix}."
    lists |= {base + name for name in lists} | {name.removeprefix(base) for name in lists}

    def is_member(key: str) -> bool:
        parts = key.split(".")
        return any(part.isdigit() and ".".join(parts[:k]) in lists for k, part in enumerate(parts))

    return sorted(filter(is_member, left_over))


def stored_dtype_of(path: str, trust_remote_code: bool) -> torch.dtype:
    """The dtype that a checkpoint's configuration names; float32 if it names none."""
    dtype = transformers.AutoConfig.from_pretrained(
        **catalog.at_revision(path), trust_remote_code=trust_remote_code
    ).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def load_tokenizer(path: str, name: str) -> Any:
    """The tokenizer of a checkpoint; without a token for padding it pads with another one, which is masked."""
    try:
        with quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(**catalog.at_revision(path))
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what comes back where there is no file
            raise OSError("it knows no words")
    except Exception as error:  # each file of a tokenizer that can be missing or broken raises another kind
        missing = InputError(f"The checkpoint of {name!r} has no tokenizer that can be loaded.")
        raise catalog.refusal("model", path, error) or missing from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _settle_pooler(model: nn.Module, missing: list[str], features: str, name: str) -> None:
    """Drop a pooler without weights in the checkpoint, unless its random output is asked for; refuse other gaps."""
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
        return _timm_preprocessing(config.pretrained_cfg)
    try:
        with quiet_transformers():
            return Preprocessing.from_config(_processor_settings(path, trust_remote_code))
    except OSError as error:
        if refused := catalog.refusal("model", path, error):
            raise refused from error
        size = getattr(config, "image_size", 224)
        warnings.warn(
            f"{path} has no usable preprocessor_config.json: images are resized to {size} pixels, scaled to [-1, 1].",
            stacklevel=3,
        )
        return Preprocessing(resize=(size, size))


def _processor_settings(path: str, trust_remote_code: bool) -> dict[str, Any]:
    """Settings of the checkpoint's file, completed by the defaults of the processor's class."""
    where = catalog.at_revision(path)
    try:
        settings = {"backend": "pil", "trust_remote_code": trust_remote_code}
        return transformers.AutoImageProcessor.from_pretrained(**where, **settings).to_dict()
    except (ImportError, ValueError):  # a class that needs torchvision, or that nobody knows
        return ImageProcessingMixin.get_image_processor_dict(**where)[0]


def _timm_preprocessing(config: dict[str, Any]) -> Preprocessing:
    """timm's preprocessing: images are resized a little larger than the input, then cropped."""
    height, width = config["input_size"][1:]
    share = config.get("crop_pct") or 0.875  # timm's own default
    larger = int(height / share), int(width / share)
    return Preprocessing(
        resize=larger if config.get("crop_mode") == "squash" else larger[0],
        crop=(height, width),
        mode={"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}[config["interpolation"]],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
